"""Feature maps of every Conv2d of any module, taken while the forward pass runs.

Where a convolution's activation is cannot be read off the module tree: it may be a module, a function call, a tensor
method, in place, shared between layers, or stand behind a normalisation and a residual addition. So nothing is
guessed from the tree. Forward hooks tell which tensor a convolution has just made, and a
:class:`~torch.overrides.TorchFunctionMode` follows that tensor through the operations that keep its channels apart
(:data:`FOLLOWED`) to the first activation function (:data:`ACTIVATIONS`), whose output is handed to the consumer at
once, before any later operation can overwrite it. The same tracer finds the taps and captures them, so that the two
cannot disagree.

Two convolutions can end in one activation: a residual block's last one and its shortcut's. The sum is analysed once,
as the maps of the convolution with the longer chain of convolutions behind it, and the other is listed as skipped.
With the tap ``branch`` nothing is followed through an addition: each convolution's maps are taken as they enter it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gmmcnn.errors import CaptureError, LayerError, one_line
from gmmcnn.featuremaps.taps import Skipped, Tap, Taps
from gmmcnn.models.foreign import eager, runnable, undisturbed, unwrapped

TAPS = ("post_activation", "branch", "pre_activation")

# fmt: off
ACTIVATIONS = frozenset((
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "log_sigmoid", "logsigmoid", "tanhshrink",
    "hardshrink", "softshrink", "threshold", "clamp", "clamp_min", "clip",
))
"""Functions that count as an activation, by name; in-place forms have the same name."""

FOLLOWED = frozenset((
    "batch_norm", "instance_norm", "group_norm", "layer_norm", "local_response_norm", "rms_norm",
    "add", "sub", "mul", "div", "truediv",
    "max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "interpolate", "pad",
    "dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout",
    "contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "double",
))
# fmt: on
"""Functions that may stand between a convolution and its activation: each channel still belongs to one filter."""

ADDITIONS = frozenset(("add", "sub"))
"""Functions that join the maps of two branches."""

Consume = Callable[[str, Tensor], None]
"""``consume(layer, maps)`` with maps (N, C, H, W); later operations may overwrite them."""


def find_taps(
    model: nn.Module, example: Tensor, *, tap: str = "post_activation", layers: Iterable[str] | None = None
) -> Taps:
    """Run a small batch through the model and see where each convolution's maps can be taken.

    Parameters
    ----------
    model : nn.Module
        Any module; wrappers of ``torch.compile`` and ``DataParallel`` are looked through. Comes back as it was.
    example : (N, …) Tensor
        At least one image, of the size to be analysed.
    tap : {"post_activation", "branch", "pre_activation"}
        Take the output of the first activation after each convolution; the same, but before its maps are added to
        others; or the convolution's own output.
    layers : names, optional
        Dotted names of the convolutions to analyse; None takes all.

    Raises
    ------
    LayerError
        There is no layer of that name, or none is asked for.
    CaptureError
        There is no convolution at all, or the model does not run on the example.
    """
    if tap not in TAPS:
        raise CaptureError(f"tap={tap!r}: expected one of {', '.join(TAPS)}")
    model = runnable(model, CaptureError)
    wanted = _wanted(_convolutions(model), layers)
    found: dict[str, Tap] = {}

    def note(layer: str, maps: Tensor, description: str) -> None:
        found.setdefault(layer, Tap(layer, *_map_shape(maps), description))

    tracer = _Tracer(model, len(example), tap, note)
    try:
        _forward(model, example, tracer)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = tuple(example.shape)
        raise CaptureError(f"the model does not run on images of shape {shape}: {one_line(error)}") from error
    reasons = {layer: reason for layer in wanted if (reason := tracer.reason_to_skip(layer, found))}
    return Taps(
        tap=tap,
        analysed=tuple(found[layer] for layer in wanted if layer not in reasons),
        skipped=tuple(Skipped(layer, reason) for layer, reason in reasons.items()),
        peak_bytes_per_sample=tracer.peak_bytes // len(example),
    )


def capture(model: nn.Module, images: Tensor, taps: Taps, consume: Consume, *, sample_offset: int = 0) -> None:
    """Run one forward pass in eval mode and hand over each analysed layer's maps as soon as they are computed.

    Parameters
    ----------
    model : nn.Module
        Comes back as it was: modes, hooks, gradients, buffers and random state, also after an error or an interruption.
    images : (N, …) Tensor
        One batch; moved to the model's device and floating-point type.
    taps : Taps
        What :func:`find_taps` found for this model.
    consume : callable
        Called as ``consume(layer, maps)`` with maps (N, C, H, W) on the model's device, once for each analysed layer,
        in the order of computation. The tensor may be overwritten afterwards: copy what is to be kept.
    sample_offset : int
        Index of the first image among all samples, for error messages.

    Raises
    ------
    CaptureError
        Maps hold NaN or infinite values, or this pass takes another way than the one that found the taps.
    """
    expected = {tap.layer: tap for tap in taps.analysed}
    received: set[str] = set()

    def hand_over(layer: str, maps: Tensor, _: str) -> None:
        if layer not in expected:
            return
        if layer in received or _map_shape(maps) != expected[layer].shape:
            raise _changed_its_way(layer)
        require_finite(layer, maps, sample_offset)
        received.add(layer)
        consume(layer, maps)

    model = unwrapped(model)
    tracer = _Tracer(model, len(images), taps.tap, hand_over)
    _forward(model, images, tracer)
    for layer in expected:
        if layer not in received or tracer.calls[layer] != 1:
            raise _changed_its_way(layer)


def require_finite(layer: str, maps: Tensor, sample_offset: int = 0) -> None:
    """Raise CaptureError naming layer, filter and sample if any value of ``maps`` (N, C, …) is NaN or infinite."""
    if math.isfinite(maps.sum(dtype=torch.float32)) or torch.isfinite(maps).all():  # a sum is quicker, but may overflow
        return
    sample, channel, *_ = torch.nonzero(~torch.isfinite(maps))[0].tolist()
    raise CaptureError(
        f"layer {layer!r}, filter {channel}, sample {sample + sample_offset}: "
        "the feature map holds NaN or infinite values; check the image and the model's weights (has training diverged?)"
    )


def model_input(model: nn.Module, images: Tensor) -> Tensor:
    """Images on the model's device and in its floating-point type; CaptureError if they are integers."""
    if not images.is_floating_point():
        raise CaptureError(
            f"images are {images.dtype}; expected floating point, scaled as the model was trained on them"
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images if parameter is None else images.to(parameter.device, parameter.dtype)


def _convolutions(model: nn.Module) -> dict[str, nn.Module]:
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d) or _scripted(module)
    }
    if not found:
        raise CaptureError(f"{type(model).__name__} has no Conv2d layer, so there are no feature maps to analyse")
    return found


def _scripted(module: nn.Module) -> bool:
    """Whether this is a Conv2d inside a scripted module: it can be listed, but no hook of it fires."""
    return isinstance(module, torch.jit.ScriptModule) and module.original_name == "Conv2d"


def _wanted(convolutions: dict[str, nn.Module], layers: Iterable[str] | None) -> list[str]:
    """Names asked for, in the model's order; a string would be taken letter by letter, so it counts as one name."""
    names = set(convolutions) if layers is None else {layers} if isinstance(layers, str) else set(layers)
    if not names:
        raise LayerError(f"layers=[]: expected at least one of {', '.join(convolutions)}; None takes all of them")
    for unknown in sorted(names - convolutions.keys()):
        near = get_close_matches(unknown, convolutions, n=1, cutoff=0) or list(convolutions)
        raise LayerError(f"layer {unknown!r}: the model has no Conv2d of that name; the nearest is {near[0]!r}")
    return [name for name in convolutions if name in names]


def _map_shape(maps: Tensor) -> tuple[int, int, int]:
    _, n_filters, height, width = maps.shape
    return n_filters, height, width


def _changed_its_way(layer: str) -> CaptureError:
    return CaptureError(
        f"layer {layer!r}: this forward pass computes its maps another way than the pass that found the taps; "
        "the model's forward must not depend on the images' values, and all images must have one size"
    )


@dataclass(frozen=True)
class _Trail:
    """The way from a convolution to the tensor at hand."""

    layer: str
    n_filters: int
    depth: int
    """Convolutions from the model's input up to and including this one."""
    order: int
    """Position among the calls of all convolutions."""
    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "after " + ", ".join(self.steps) if self.steps else "its own output"


class _Tracer(TorchFunctionMode):
    """Follow the output of every convolution to its tap and call ``emit(layer, maps, description)`` there.

    Keeps weak references only: what the forward pass frees is freed.
    """

    def __init__(self, model: nn.Module, n_samples: int, tap: str, emit: Callable[[str, Tensor, str], None]) -> None:
        super().__init__()
        self.model = model
        self.n_samples = n_samples
        self.tap = tap
        self.emit = emit
        self.calls: Counter[str] = Counter()
        self.tapped: set[str] = set()
        self.dead_ends: dict[str, str] = {}
        self.peak_bytes = 0
        self._depth = WeakTensorKeyDictionary()  # tensor → convolutions behind it
        self._trail = (
            WeakTensorKeyDictionary()
        )  # tensor → _Trail, while its channels are one layer's filters before activation
        self._module = ""  # the innermost module at work, for descriptions

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on the convolutions and on the leaf modules, removed at the end."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                is_convolution = isinstance(module, nn.Conv2d)
                if is_convolution or not any(True for _ in module.children()):
                    stack.callback(module.register_forward_pre_hook(partial(self._enter, name)).remove)
                    leave = partial(self._leave, name if is_convolution else None)
                    stack.callback(module.register_forward_hook(leave).remove)
            yield

    def reason_to_skip(self, layer: str, found: dict[str, Tap]) -> str | None:
        """Why a layer cannot be analysed after this forward pass, None if it can."""
        if self.calls[layer] == 0:
            return "is never called as a module in a forward pass, or is scripted"
        if self.calls[layer] > 1:
            return (
                f"is called {self.calls[layer]} times in one forward pass, so a sample has no single map of each filter"
            )
        if layer in found:
            return None
        return self.dead_ends.get(layer, "no activation follows it; tap=pre_activation analyses its own output")

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, inputs = function_name(func), list(tensors([*args, *(kwargs or {}).values()]))
        if self.tap == "branch" and name in ADDITIONS:
            self._tap_summands(inputs)  # before an addition in place overwrites one of them
        result = func(*args, **(kwargs or {}))
        for output in tensors([result]):
            self._follow(name, inputs, output)
        return result

    def _enter(self, name: str, *_: Any) -> None:
        self._module = name

    def _leave(self, convolution: str | None, module: nn.Module, _: Any, output: Any) -> None:
        if convolution is not None:
            self._start(convolution, output)
        self._module = ""

    def _start(self, layer: str, output: Any) -> None:
        """A convolution has made ``output``: tap it, or begin to follow it."""
        self.calls[layer] += 1
        if not (isinstance(output, Tensor) and output.ndim == 4 and output.shape[0] == self.n_samples):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            self.dead_ends[layer] = (
                f"gives {shape} for {self.n_samples} samples instead of one map of each filter a sample"
            )
            return
        depth = self._depth.get(output, 0) + 1
        trail = _Trail(layer, n_filters=int(output.shape[1]), depth=depth, order=sum(self.calls.values()))
        self._depth[output] = depth
        if self.tap == "pre_activation":
            self._tap(trail, output)
        else:
            self._trail[output] = trail

    def _follow(self, name: str, inputs: list[Tensor], output: Tensor) -> None:
        """Carry the way of ``inputs`` over to ``output``, which ``name`` has just made (or changed in place)."""
        self.peak_bytes = max(self.peak_bytes, output.numel() * output.element_size())
        self._depth[output] = max((self._depth.get(tensor, 0) for tensor in inputs), default=0)
        trails = {trail for tensor in inputs if (trail := self._trail.get(tensor)) and trail.layer not in self.tapped}
        self._trail.pop(output, None)
        if not trails:
            return
        main = max(trails, key=lambda trail: (trail.depth, -trail.order))
        step = f"{name} ({self._module})" if self._module else name
        keeps_channels = output.ndim == 4 and output.shape[:2] == (self.n_samples, main.n_filters)
        if keeps_channels and name in ACTIVATIONS | FOLLOWED:
            for other in trails - {main}:
                self._end(other, f"is joined with {main.layer!r} by {step}: the sum is analysed there")
            main = replace(main, steps=(*main.steps, step))
            if name in ACTIVATIONS:
                self._tap(main, output)
            else:
                self._trail[output] = main
        else:
            for trail in trails:
                self._end(trail, f"no activation follows: {trail} enters {step}")

    def _tap_summands(self, inputs: list[Tensor]) -> None:
        """Tap what is about to be added to other maps of the same shape."""
        if len(inputs) < 2 or any(tensor.shape != inputs[0].shape for tensor in inputs):
            return
        for tensor in inputs:
            trail = self._trail.get(tensor)
            if trail and trail.layer not in self.tapped:
                self._tap(trail, tensor)

    def _tap(self, trail: _Trail, maps: Tensor) -> None:
        self.tapped.add(trail.layer)
        self.emit(trail.layer, maps, str(trail))

    def _end(self, trail: _Trail, reason: str) -> None:
        """Note a dead end; another branch may still lead to an activation."""
        self.dead_ends.setdefault(trail.layer, f"{reason}; tap=pre_activation analyses its own output")


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


def _forward(model: nn.Module, images: Tensor, tracer: _Tracer) -> None:
    with undisturbed(model), tracer.hooked(), torch.no_grad(), eager(), tracer:
        model(model_input(model, images))
