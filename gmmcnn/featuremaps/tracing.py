"""Follow the output of every convolution through a forward pass, to where its maps may be taken.

Where a convolution's activation is cannot be read off the module tree: it may be a module, a function call, a tensor
method, in place, shared between layers, or stand behind a normalisation and a residual addition. So nothing is
guessed from the tree. Forward hooks tell which tensor a convolution has just made, and a
:class:`~torch.overrides.TorchFunctionMode` follows that tensor, its *trail*, through the operations that keep its
channels apart (:data:`FOLLOWED`, and :data:`MOVES` as long as the channels stay on one axis) to the first activation
function (:data:`ACTIVATIONS`).

An activation written by hand is a product: ``h * sigmoid(h)``, ``h * tanh(softplus(h))``, ``h * relu6(h + 3) / 6``.
What its function gives is a *gate*, and is followed further; where a gate meets its own convolution's maps in a
product, the product is the activation.

Two convolutions can end in one activation: a residual block's last one and its shortcut's. The sum counts for the
convolution with the longer chain of convolutions behind it; the other's trail ends.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gmmcnn.models.foreign import CONVOLUTIONS

# fmt: off
ACTIVATIONS = frozenset((
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "log_sigmoid", "logsigmoid", "tanhshrink",
    "hardshrink", "softshrink", "threshold", "clamp", "clamp_min", "clip",
))
"""Functions that count as an activation, by name; in-place forms have the same name."""

NORMALISATIONS = frozenset((
    "batch_norm", "instance_norm", "group_norm", "layer_norm", "local_response_norm", "rms_norm",
))

FOLLOWED = NORMALISATIONS | frozenset((
    "add", "sub", "mul", "div", "truediv", "neg",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "interpolate", "pad",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "double",
))
"""Functions that may stand between a convolution and its activation: each channel still belongs to one filter."""

MOVES = frozenset((
    "permute", "transpose", "swapaxes", "movedim", "moveaxis", "flatten", "unflatten", "view", "reshape", "squeeze",
    "unsqueeze",
))
"""Functions that may bring the channels to another axis."""

GATES = ACTIVATIONS | frozenset(("erf", "exp", "expit", "special_expit"))
"""Functions that a product may make an activation of."""

OF_GATES = GATES | frozenset((
    "add", "sub", "rsub", "mul", "div", "truediv", "rdiv", "neg", "reciprocal", "log1p", "log",
))
"""Functions of a gate that give a gate."""
# fmt: on

ADDITIONS = frozenset(("add", "sub"))
"""Functions that join the maps of two branches."""

_SCALINGS = frozenset(("mul", "div", "truediv"))
_CONVOLUTION = re.compile(r"conv(_transpose)?[123]d$")


@dataclass(frozen=True)
class Trail:
    """The way from a convolution to the tensor at hand."""

    layer: str
    kind: str
    """Class of the convolution."""
    n_filters: int
    depth: int
    """Convolutions from the model's input up to and including this one."""
    order: int
    """Position among the calls of all convolutions."""
    steps: tuple[str, ...] = ()
    axis: int = 1
    """Axis of the channels."""

    def __str__(self) -> str:
        return "after " + ", ".join(self.steps) if self.steps else OWN_OUTPUT

    def stepped(self, step: str, axis: int | None = None) -> "Trail":
        """One function further."""
        return replace(self, steps=(*self.steps, step), axis=self.axis if axis is None else axis)


OWN_OUTPUT = "its own output"

Visit = Callable[[Trail, Tensor, str], None]
"""``visit(trail, maps, place)`` wherever a trail gets to; place is ``own``, ``normalised``, ``activated``, ``joined``
(about to be added to other maps), or empty."""


class Tracer(TorchFunctionMode):
    """Follow the output of every convolution and call ``visit`` at each step.

    Keeps weak references only: what the forward pass frees is freed.

    Parameters
    ----------
    model : nn.Module
    n_samples : int
        Samples in the forward pass.
    visit : callable
    branch : bool
        A trail ends where its maps are about to be added to others.
    """

    def __init__(self, model: nn.Module, n_samples: int, visit: Visit, *, branch: bool = False) -> None:
        super().__init__()
        self.model = model
        self.n_samples = n_samples
        self.visit = visit
        self.branch = branch
        self.calls: Counter[str] = Counter()
        self.arrived: set[str] = set()
        self.dead_ends: dict[str, str] = {}
        self.functional: dict[str, str] = {}
        """Convolutions that are called as functions: name → function."""
        self.peak_bytes = 0
        self._depth = WeakTensorKeyDictionary()  # tensor → convolutions behind it
        self._trails = WeakTensorKeyDictionary()  # tensor → Trail, while its channels are one layer's filters
        self._gates = WeakTensorKeyDictionary()  # tensor → Trail of what was made of the maps by a gate's function
        self._products = WeakTensorKeyDictionary()  # tensor → Trail of an activation written as a product
        self._module = ""  # the innermost module at work, for descriptions
        self._convolving = 0  # convolutions at work
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on the convolutions and on the leaf modules, removed at the end."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                is_convolution = isinstance(module, CONVOLUTIONS)
                if is_convolution or not any(True for _ in module.children()):
                    stack.callback(module.register_forward_pre_hook(partial(self._enter, name)).remove)
                    leave = partial(self._leave, name if is_convolution else None)
                    stack.callback(module.register_forward_hook(leave).remove)
            yield

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, inputs = function_name(func), list(tensors([*args, *(kwargs or {}).values()]))
        if self.branch and name in ADDITIONS:
            self._visit_summands(inputs)  # before an addition in place overwrites one of them
        if _CONVOLUTION.match(name) and not self._convolving:
            weight = self._parameters.get(id(inputs[1])) if len(inputs) > 1 else None
            self.functional[weight or f"{name}() no. {len(self.functional) + 1}"] = name
        result = func(*args, **(kwargs or {}))
        for output in tensors([result]):
            self._follow(name, inputs, output)
        return result

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self._module = name
        self._convolving += isinstance(module, CONVOLUTIONS)

    def _leave(self, convolution: str | None, module: nn.Module, _: Any, output: Any) -> None:
        if convolution is not None:
            self._convolving -= 1
            self._start(convolution, module, output)
        elif "norm" in type(module).__name__.lower() and isinstance(output, Tensor) and output in self._trails:
            trail = self._trails[output]  # a normalisation that is written by hand
            if trail.layer not in self.arrived:
                self.visit(trail, output, "normalised")
        self._module = ""

    def _start(self, layer: str, module: Any, output: Any) -> None:
        """A convolution has made ``output``: begin to follow it."""
        self.calls[layer] += 1
        n_axes = 2 + len(module.kernel_size)
        if not (isinstance(output, Tensor) and output.ndim == n_axes and output.shape[0] == self.n_samples):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            self.dead_ends[layer] = (
                f"gives {shape} for {self.n_samples} samples instead of one map of each filter a sample"
            )
            return
        depth = self._depth.get(output, 0) + 1
        kind = type(module).__name__.removeprefix("Parametrized")
        trail = Trail(layer, kind, int(output.shape[1]), depth, order=sum(self.calls.values()))
        self._depth[output] = depth
        self._trails[output] = trail
        self.visit(trail, output, "own")

    def _follow(self, name: str, inputs: list[Tensor], output: Tensor) -> None:
        """Carry the way of ``inputs`` over to ``output``, which ``name`` has just made (or changed in place)."""
        self.peak_bytes = max(self.peak_bytes, output.numel() * output.element_size())
        self._depth[output] = max((self._depth.get(tensor, 0) for tensor in inputs), default=0)
        step = f"{name} ({self._module})" if self._module else name
        product = self._product(name, step, inputs)
        gate = next((self._gates[tensor] for tensor in inputs if tensor in self._gates), None)
        sources = [
            (trail, tensor)
            for tensor in inputs
            if (trail := self._trails.get(tensor)) and trail.layer not in self.arrived
        ]
        for known in (self._trails, self._gates, self._products):
            known.pop(output, None)
        if product and _holds(output, product, self.n_samples):
            self._products[output] = product
            self.visit(product, output, "activated")
            return
        if gate and name in OF_GATES and _holds(output, gate, self.n_samples):
            self._gates[output] = gate.stepped(step)
        if sources:
            self._continue(name, step, sources, output)

    def _product(self, name: str, step: str, inputs: list[Tensor]) -> Trail | None:
        """Trail of an activation that is a product of maps and a gate made of them, or of its multiple."""
        if name not in _SCALINGS or not inputs:
            return None
        if len(inputs) == 1:
            product = self._products.get(inputs[0])
            return product and product.stepped(step)
        gates = [gate for tensor in inputs if (gate := self._gates.get(tensor))]
        layers = {trail.layer for tensor in inputs if (trail := self._trails.get(tensor))}
        return next((gate.stepped(f"{step} with its input") for gate in gates if gate.layer in layers), None)

    def _continue(self, name: str, step: str, sources: list[tuple[Trail, Tensor]], output: Tensor) -> None:
        main, tensor = max(sources, key=lambda source: (source[0].depth, -source[0].order))
        trails = {trail for trail, _ in sources}
        axis = _axis_in(output, tensor, main) if name in MOVES else main.axis
        moved = name in MOVES and axis is not None
        follows = name in ACTIVATIONS | FOLLOWED and output.ndim == tensor.ndim
        on = main.stepped(step, axis)
        if (moved or follows) and _holds(output, on, self.n_samples):
            for other in trails - {main}:
                self._end(other, f"is joined with {main.layer!r} by {step}: the sum is analysed there")
            if name in ACTIVATIONS:
                self.arrived.add(on.layer)
                self._gates[output] = on
                self.visit(on, output, "activated")
                return
            self._trails[output] = on
            self.visit(on, output, "normalised" if name in NORMALISATIONS else "")
            return
        if name in GATES and _holds(output, on, self.n_samples):
            self._gates[output] = on
        for trail in trails:
            self._end(trail, f"no activation follows: {trail} enters {step}")

    def _visit_summands(self, inputs: list[Tensor]) -> None:
        """Visit what is about to be added to other maps of the same shape."""
        if len(inputs) < 2 or any(tensor.shape != inputs[0].shape for tensor in inputs):
            return
        for tensor in inputs:
            trail = self._trails.get(tensor)
            if trail and trail.layer not in self.arrived:
                self.arrived.add(trail.layer)
                self.visit(trail, tensor, "joined")

    def _end(self, trail: Trail, reason: str) -> None:
        """Note a dead end; another branch may still lead to an activation."""
        self.dead_ends.setdefault(trail.layer, reason)


def by_filter(maps: Tensor, axis: int) -> Tensor:
    """Maps as (N, C, H, W), whatever their number of dimensions: one row, or the slices one below the other.

    Parameters
    ----------
    maps : (N, …) Tensor
    axis : int
        Of the channels.
    """
    maps = maps.movedim(axis, 1)
    if maps.ndim == 4:
        return maps
    *rows, width = maps.shape[2:] or (1,)
    return maps.reshape(*maps.shape[:2], -1 if rows else 1, width)


def function_name(func: Callable) -> str:
    """One name for all forms: ``relu_`` is ``relu``; ``__iadd__``, ``__radd__`` and ``add_`` are ``add``."""
    name = getattr(func, "__name__", "")
    return re.sub(r"^__[ir]?(add|sub|mul|truediv)__$", r"\1", name).strip("_")


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among ``values``, also inside lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def _holds(output: Tensor, trail: Trail, n_samples: int) -> bool:
    """Whether a tensor can be the maps of a trail."""
    return output.ndim > trail.axis and output.shape[0] == n_samples and output.shape[trail.axis] == trail.n_filters


def _axis_in(output: Tensor, source: Tensor, trail: Trail) -> int | None:
    """Axis of a trail's channels in a view of its maps, told by its step in memory; None where that cannot be told."""
    if output.data_ptr() != source.data_ptr() or output.shape[:1] != source.shape[:1]:
        return None
    channels = trail.n_filters, source.stride(trail.axis)
    axes = [axis for axis in range(1, output.ndim) if (output.shape[axis], output.stride(axis)) == channels]
    return axes[0] if len(axes) == 1 else None
