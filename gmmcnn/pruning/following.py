"""What a mask does downstream: masked channels stay zero through everything that keeps channels apart.

A tensor that holds masked channels carries a mark, a boolean tensor that broadcasts to it and is False where nothing
but masked filters went in. Those numbers are zero, always. Each function that reads a marked tensor has a rule, by
kind, for the mark of its result (:data:`_RULES`):

- what *moves* numbers (cat, chunk, permute, view) moves the mark alike, by the very same call;
- what treats *each number* or each channel on its own (activations, normalisations, pooling, depthwise convolution)
  leaves the channel zero, whatever its shift or its value at zero;
- what *joins* maps (addition, maximum, where) is masked where all that it joins is: of a residual stream, the other
  summand passes. A summand that does not depend on the images (a parameter, ones) is a shift, and no stream;
- a *product* is masked where any factor is;
- what *mixes* channels (convolution, linear layers, losses) reads zero, and its result belongs to other filters.

A function without a rule, or a rule that does not apply, ends in :class:`~gmmcnn.errors.ModelError`: that the channel
stays zero cannot be shown. So does code that no rule sees (scripted functions, ``torch.func.vmap``), which
:class:`_Unseen` notices by the operators that it runs.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gmmcnn.errors import ModelError
from gmmcnn.featuremaps.tracing import ACTIVATIONS, function_name, tensors

_MARK = "_gmmcnn_kept_channels"
_CONSTANT = "_gmmcnn_constant"

# fmt: off
_MOVES = frozenset((
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack",
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint", "T", "H", "mT", "mH",
    "flip", "fliplr", "flipud", "rot90", "roll", "getitem", "index_select", "narrow", "select", "gather",
    "take_along_dim", "diagonal", "masked_select",
    "reshape", "view", "reshape_as", "view_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze",
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unsafe_chunk", "unsafe_split",
    "unbind", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold",
))
"""Change no number, only its place; zeros may be put between."""

_KEPT_AS_THEY_ARE = frozenset((
    "contiguous", "clone", "detach", "data", "to", "cpu", "cuda", "type", "type_as", "float", "half", "bfloat16",
    "double", "requires_grad", "alias", "identity", "real",
))
"""Change no number, and its place neither."""

_EACH = ACTIVATIONS | frozenset((
    "batch_norm", "instance_norm", "group_norm", "layer_norm", "local_response_norm", "rms_norm", "normalize",
    "softmax", "log_softmax", "softmin", "gumbel_softmax",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "abs", "absolute", "neg", "negative", "positive", "sign", "sgn", "square", "sqrt", "rsqrt", "reciprocal", "pow",
    "rpow", "rdiv", "float_power", "exp", "exp2", "expm1", "log", "log1p", "sin", "sinh", "asin", "asinh", "tan",
    "atan", "erf", "floor", "ceil", "round", "trunc", "frac", "nan_to_num", "masked_fill", "clamp_max", "logical_not",
    "bitwise_not", "invert", "isnan", "isfinite", "isinf",
))
"""Make of each number, or of each channel, one of the same place."""

_JOINS = frozenset((
    "add", "sub", "subtract", "rsub", "where", "maximum", "minimum", "fmax", "fmin",
    "lt", "le", "gt", "ge", "eq", "ne", "less", "less_equal", "greater", "greater_equal", "not_equal",
    "logical_and", "logical_or", "logical_xor",
))
"""Make one number of those of the same place in several maps."""

_REDUCTIONS = {
    "sum": 1, "nansum": 1, "mean": 1, "nanmean": 1, "prod": 1, "std": 1, "var": 1, "amax": 1, "amin": 1, "max": 1,
    "min": 1, "median": 1, "logsumexp": 1, "any": 1, "all": 1, "count_nonzero": 1, "norm": 2, "vector_norm": 2,
}
"""Function → position of its argument ``dim``."""

_MIXES = frozenset((
    "bilinear",
    "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu", "cross_entropy", "nll_loss", "mse_loss",
    "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "cdist", "cosine_similarity", "pairwise_distance",
))

_PRODUCTS = frozenset(("mul", "multiply", "logical_and"))
_QUOTIENTS = frozenset(("div", "divide", "truediv", "true_divide", "floordiv", "floor_divide", "rtruediv"))
_CONTRACTIONS = frozenset(("matmul", "mm", "bmm", "einsum", "tensordot", "rmatmul"))
_FRESH = re.compile(r"(new_\w+|\w+_like|grad)$")
_RESAMPLES = re.compile(r"((adaptive_)?(max|avg)|lp|fractional_max)_pool\dd(_with_indices)?$|max_unpool\dd$"
                        r"|interpolate$|upsample\w*$|grid_sample$")  # fmt: skip
_CONVOLUTION = re.compile(r"conv(_transpose)?[123]d$")
# fmt: on


@dataclass(frozen=True)
class _Mark:
    """What is kept of a tensor, and the version of the tensor's memory that this was said of."""

    kept: Tensor
    """bool, broadcasts to the tensor."""
    version: int | None


def zeroed(maps: Tensor, kept: Tensor) -> Tensor:
    """Maps with zero where they are not kept, marked so that :class:`ZeroKeeper` goes on with it.

    Parameters
    ----------
    maps : Tensor
    kept : bool Tensor
        Broadcasts to ``maps``; False where a channel is masked. What is masked in ``maps`` already stays so.
    """
    earlier = kept_of(maps)
    kept = kept.to(maps.device)
    kept = kept if earlier is None else kept & earlier
    result = torch.where(kept, maps, torch.zeros((), dtype=maps.dtype, device=maps.device))
    _mark(result, kept)
    return result


def kept_of(maps: Tensor) -> Tensor | None:
    """What is kept of a tensor, None where nothing of it is masked.

    Raises
    ------
    ModelError
        Its memory has been changed through another tensor since.
    """
    mark: _Mark | None = getattr(maps, _MARK, None)
    if mark is None:
        return None
    if mark.version != _version(maps):
        raise ModelError(
            "maps with a masked channel were changed in place through another view of their memory, and cannot be "
            "followed; leave the filters before them out of the mask"
        )
    return mark.kept


class ZeroKeeper(TorchFunctionMode):
    """Follow masked channels through the functions of a forward pass, and keep them zero.

    Parameters
    ----------
    model : nn.Module
        Its parameters and buffers do not depend on the images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._buffers = {id(buffer) for buffer in model.buffers()}
        self._unseen = _Unseen()

    def __enter__(self) -> "ZeroKeeper":
        self._unseen.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._unseen.__exit__(*error)
        if error[0] is None:
            self._unseen.complain()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors([*args, *kwargs.values()]))
        if inputs:  # and not what restores a mode after an error
            self._unseen.complain()
        constant = all(self._is_constant(tensor) for tensor in inputs)
        name = _name(func)
        if not any(hasattr(tensor, _MARK) for tensor in inputs):
            if name == "setitem" and not constant:
                self._noted(inputs[:1], constant=False)
            return self._noted(func(*args, **kwargs), constant=constant or _FRESH.match(name) is not None)
        with self._unseen.known():
            call = _Call(name, func, args, kwargs, inputs, [tensor for tensor in inputs if self._is_constant(tensor)])
            return self._noted(call.carried_out(), constant=_FRESH.match(name) is not None)

    def _is_constant(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or id(tensor) in self._buffers or hasattr(tensor, _CONSTANT)

    @staticmethod
    def _noted(result: Any, *, constant: bool) -> Any:
        for output in tensors([result]):
            if constant:
                setattr(output, _CONSTANT, True)
            else:
                for written in (output, output._base):  # noqa: SLF001 - in place, or to a part of the tensor behind it
                    if written is not None and hasattr(written, _CONSTANT):
                        delattr(written, _CONSTANT)
        return result


class _Unseen(TorchDispatchMode):
    """Notice operators that read marked tensors without a function call that could be followed."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._noticed: str | None = None

    @contextmanager
    def known(self) -> Iterator[None]:
        """Inside the block, marks are looked after."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def complain(self) -> None:
        """Raise ModelError if something was noticed; not at once, since the interpreter of scripts hides errors."""
        noticed, self._noticed = self._noticed, None
        if noticed:
            raise ModelError(
                f"a scripted or transformed function ({noticed}) reads a masked channel, and cannot be followed; "
                "leave the filters before it out of the mask"
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        in_backward_pass = torch._C._current_graph_task_id() != -1  # noqa: SLF001 - there is no public name for it
        if not self._depth and not in_backward_pass:
            marked = any(hasattr(tensor, _MARK) for tensor in tensors([*args, *kwargs.values()]))
            if marked and func is not torch.ops.aten.detach.default:  # by which torch prints and copies tensors
                self._noticed = func.__name__
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - an operator is a function too
            return func(*args, **kwargs)


@dataclass
class _Call:
    """One function call that reads marked tensors."""

    name: str
    func: Callable
    args: tuple
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    constants: list[Tensor]
    marks: list[Tensor | None] = field(init=False)
    """What is kept of each input, before the call."""

    def __post_init__(self) -> None:
        self.marks = [kept_of(tensor) for tensor in self.inputs]

    def carried_out(self) -> Any:
        """Result of the function, marked, and zero where it is masked."""
        if self.name == "setitem":
            return self._written(self._item_written())
        if self.name == "copy":
            return self._written(self._copied())
        if self.name == "set":
            raise self.unclear()
        masks = self._moved() if self.name in _MOVES else None  # before what moves in place has moved
        result = self.func(*self.args, **self.kwargs)
        outputs = list(tensors([result]))
        if not outputs:
            return result
        if masks is not None:
            return self._moved_result(result, outputs, masks)
        maps, *others = outputs
        kept = self._rule()(self, maps) if self._counts(maps) else None
        if others and not (self._indexed() or kept is None):
            raise self.unclear()
        if kept is None or kept.all():
            self._forget(maps)
            return result
        if not _broadcasts(kept, maps):
            raise self.unclear()
        kept = kept.to(maps.device)
        if not _holds_maps(maps) or (self.name in _KEPT_AS_THEY_ARE and _holds_maps(self.inputs[0])):
            _mark(maps, kept)
            return result
        changed = self._kept_zero(maps, kept)
        return changed if result is maps else type(result)((changed, *others))

    def _counts(self, maps: Tensor) -> bool:
        """Whether a function's result can hold anything of a masked channel that matters."""
        if _FRESH.match(self.name):
            return False
        return self._rule() is not _unknown or _holds_maps(maps)

    def _rule(self) -> Callable[["_Call", Tensor], Tensor | None]:
        return next((rule for belongs, rule in _RULES if belongs(self)), _unknown)

    def _indexed(self) -> bool:
        """Whether the function gives values and their indices."""
        return self.name in ("max", "min", "median") or "pool" in self.name

    def _kept_zero(self, maps: Tensor, kept: Tensor) -> Tensor:
        if any(maps is tensor for tensor in self.inputs):  # in place, and what is returned may not be looked at
            mark = self.marks[next(i for i, tensor in enumerate(self.inputs) if tensor is maps)]
            if mark is None and _is_part(maps):
                raise self.unclear()
            maps.data.masked_fill_(~kept, 0)  # .data: a backward pass may need the values that are kept
            _mark(maps, kept)
            if not (maps.requires_grad and torch.is_grad_enabled()):
                return maps
        if hasattr(maps, _MARK):
            _mark(maps, kept)
        return zeroed(maps, kept)

    def _forget(self, maps: Tensor) -> None:
        """Take a mark away that is no longer true: maps were changed in place."""
        if hasattr(maps, _MARK):
            delattr(maps, _MARK)

    # ------------------------------------------------------------------------------------------------ moved, written

    def _moved(self) -> list[Tensor]:
        """Where the results of a function that only moves numbers are masked."""
        args, kwargs = list(self.args), dict(self.kwargs)
        try:
            if args:
                args[0] = self._masks(args[0])
            else:
                first = next(iter(kwargs))
                kwargs[first] = self._masks(kwargs[first])
            result = self.func(*args, **{name: value for name, value in kwargs.items() if name != "out"})
        except (Exception, SystemExit) as error:
            raise self.unclear() from error
        return [masked.bool() for masked in tensors([result])]

    def _masks(self, values: Any) -> Any:
        """Where tensors are masked, each in the shape and order in memory of the tensor."""
        if isinstance(values, list | tuple):
            return [self._masks(value) for value in values]
        index = next(i for i, tensor in enumerate(self.inputs) if tensor is values)
        return _masked(values, self.marks[index], float32=self.name == "unfold")

    def _moved_result(self, result: Any, outputs: list[Tensor], masks: list[Tensor]) -> Any:
        if len(outputs) != len(masks):
            raise self.unclear()
        for maps, masked in zip(outputs, masks, strict=True):
            self._forget(maps)
            if masked.any():
                if masked.shape != maps.shape:
                    raise self.unclear()
                _mark(maps, ~masked)
        return result

    def _item_written(self) -> Tensor:
        """What is kept of the target of ``target[index] = value``."""
        target, index, value = self.args
        masked = _masked(target, kept_of(target))
        mark = kept_of(value) if isinstance(value, Tensor) else None
        masked[index] = False if mark is None else ~mark.expand(value.shape)
        return ~masked

    def _copied(self) -> Tensor:
        """What is kept of the target of ``target.copy_(source)``."""
        target, source = self.inputs[:2]
        mark = kept_of(source)
        return torch.ones((), dtype=torch.bool) if mark is None else mark.expand(source.shape).expand(target.shape)

    def _written(self, kept: Tensor) -> Any:
        target = self.inputs[0]
        new = not hasattr(target, _MARK)
        if not kept.all() and new and _is_part(target):
            raise ModelError(
                f"{self.name}() writes a masked channel into a part of a larger tensor, and cannot be followed; "
                "leave the filters before it out of the mask"
            )
        result = self.func(*self.args, **self.kwargs)
        self._forget(target)
        if hasattr(target, _CONSTANT):
            delattr(target, _CONSTANT)
        if not kept.all():
            _mark(target, kept.to(target.device))
        return result

    def unclear(self) -> ModelError:
        return ModelError(
            f"{self.name}() makes something of a masked channel, and cannot be followed; "
            "leave the filters before it out of the mask, or use an activation of torch.nn"
        )

    # -------------------------------------------------------------------------------------------------------- rules

    def of_each(self, _: Tensor) -> Tensor | None:
        """Of the first tensor, alike; the others are parameters."""
        if any(mark is not None for mark in self.marks[1:]):
            raise self.unclear()
        return self.marks[0]

    def of_the_first(self, _: Tensor) -> Tensor | None:
        """Of the first tensor, alike; others say a type or a shape."""
        return self.marks[0]

    def of_all_joined(self, output: Tensor) -> Tensor | None:
        """Masked where all maps of the result's shape are; what is broadcast is a shift, as that of a normalisation."""
        maps = [
            mark
            for tensor, mark in zip(self.inputs, self.marks, strict=True)
            if tensor.shape == output.shape and not any(tensor is constant for constant in self.constants)
        ]
        followed = [mark for mark in maps if mark is not None]
        return reduce(or_, followed) if followed and len(followed) == len(maps) else None

    def of_any_factor(self, _: Tensor) -> Tensor | None:
        """Masked where any factor is."""
        return reduce(and_, [mark for mark in self.marks if mark is not None])

    def of_a_quotient(self, _: Tensor) -> Tensor | None:
        """Masked where what is divided is; nothing else may be divided by zero."""
        numerator, *denominators = self.marks
        if any(mark is not None and (numerator is None or (numerator & ~mark).any()) for mark in denominators):
            raise self.unclear()
        return numerator

    def of_a_channel(self, _: Tensor) -> Tensor | None:
        """Of a function that looks at all pixels of a channel, and at no other channel."""
        if any(mark is not None for mark in self.marks[1:]):
            raise self.unclear()
        maps, mark = self.inputs[0], self.marks[0]
        if mark is None:
            return None
        digits = re.search(r"(\d)d", self.name)
        try:
            return self._uniform(mark, range(-int(digits[1]), 0) if digits else range(2, maps.ndim))
        except ModelError:
            if "unpool" in self.name or "grid" in self.name:
                raise
        by_weight = self.func(mark.expand(maps.shape).float(), *self.args[1:], **self.kwargs)  # of what is in a window
        return next(tensors([by_weight])) != 0

    def of_a_padded_channel(self, _: Tensor) -> Tensor | None:
        """Masked on its border too where a whole channel is; channels that are added hold a constant."""
        mark, widths = self.marks[0], self.args[1] if len(self.args) > 1 else self.kwargs["pad"]
        if mark is None:
            return None
        constant = self.kwargs.get("mode", self.args[2] if len(self.args) > 2 else "constant") == "constant"
        for dim in range(mark.ndim - len(widths) // 2, mark.ndim):
            before, after = widths[2 * (mark.ndim - 1 - dim) :][:2]
            ends = mark.amin(dim, keepdim=True)
            if dim != 1 and torch.equal(mark.amax(dim, keepdim=True), ends):
                mark = ends
            else:
                if min(before, after) < 0 or not constant:
                    raise self.unclear()
                size = self.inputs[0].shape[dim]
                first, own, last = (
                    values.expand([n if d == dim else m for d, m in enumerate(mark.shape)])
                    for values, n in ((torch.ones_like(ends), before), (mark, size), (torch.ones_like(ends), after))
                )
                mark = torch.cat([first, own, last], dim)
        return mark

    def of_a_reduction(self, output: Tensor) -> Tensor | None:
        """Masked where all that is reduced is."""
        if self.marks[0] is None or any(mark is not None for mark in self.marks[1:]):
            raise self.unclear()
        position = _REDUCTIONS[self.name]
        dims = self.kwargs.get(
            "dim", self.kwargs.get("axis", self.args[position] if len(self.args) > position else None)
        )
        n = self.inputs[0].ndim
        if dims is None or isinstance(dims, bool) or dims == ():
            dims = range(n)
        dims = sorted({dim % n for dim in ([dims] if isinstance(dims, int) else dims)})
        kept = self.marks[0].amax(dims, keepdim=True)
        return kept if output.ndim == n else kept.reshape([m for d, m in enumerate(kept.shape) if d not in dims])

    def of_a_contraction(self, _: Tensor) -> Tensor | None:
        """Masked where every product that is summed has a masked factor; read as zero where all are."""
        known = {id(tensor): mark for tensor, mark in zip(self.inputs, self.marks, strict=True)}

        def weight(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(weight(each) for each in value)
            if not isinstance(value, Tensor) or id(value) not in known:
                return value
            mark = known[id(value)]
            return torch.ones(value.shape, device=value.device) if mark is None else mark.expand(value.shape).float()

        options = {name: value for name, value in self.kwargs.items() if name not in ("out", "dtype")}
        return _or_read(self.func(*map(weight, self.args), **{k: weight(v) for k, v in options.items()}) > 0)

    def of_linear(self, _: Tensor) -> Tensor | None:
        """Masked in rows that are masked as a whole, where linear layers mix pixels; elsewhere channels are mixed."""
        if any(mark is not None for mark in self.marks[1:]):
            raise self.unclear()
        mark = self.marks[0]
        if mark is not None and not mark.any() and mark.ndim > 2:
            raise self.unclear()  # of channels or of pixels?
        return None if mark is None else _or_read(mark.amax(-1, keepdim=True))

    def of_attention(self, _: Tensor) -> Tensor | None:
        """Of scaled dot products: masked where all values are; queries and keys are mixed."""
        value = self.kwargs.get("value", self.args[2] if len(self.args) > 2 else None)
        mark = next((m for tensor, m in zip(self.inputs, self.marks, strict=True) if tensor is value), None)
        return None if mark is None else _or_read(mark.amax(-2, keepdim=True))

    def of_a_convolution(self, output: Tensor) -> Tensor | None:
        """Of a depthwise convolution, each channel's own; of others, nothing."""
        maps, weight, mark = self.inputs[0], self.inputs[1], self.marks[0]
        dims = weight.ndim - 2
        channel = -1 - dims
        groups = self.kwargs.get("groups", self.args[6] if len(self.args) > 6 else 1)
        if mark is None or groups == 1 or groups != maps.shape[channel]:
            return None
        kept = self._uniform(mark, range(-dims, 0))
        kept = kept.expand([maps.shape[channel] if d == kept.ndim + channel else n for d, n in enumerate(kept.shape)])
        return kept.repeat_interleave(output.shape[channel] // groups, dim=channel)

    def of_nothing(self, _: Tensor) -> None:
        """Channels are mixed: zero is read, and the result belongs to other filters."""

    def _uniform(self, mark: Tensor, dims: Iterable[int]) -> Tensor:
        """A mark with size 1 along dimensions that it does not change along."""
        dims = list(dims)
        ends = mark.amin(dims, keepdim=True)
        if not torch.equal(mark.amax(dims, keepdim=True), ends):
            raise self.unclear()
        return ends


def _unknown(call: _Call, _: Tensor) -> None:
    raise call.unclear()


def _named(names: Iterable[str]) -> Callable[[_Call], bool]:
    chosen = frozenset(names)
    return lambda call: call.name in chosen


_RULES: tuple[tuple[Callable[[_Call], bool], Callable[[_Call, Tensor], Tensor | None]], ...] = (
    (
        _named(("max", "min")),
        lambda call, maps: (call.of_all_joined if len(call.inputs) > 1 else call.of_a_reduction)(maps),
    ),
    (_named(_KEPT_AS_THEY_ARE), _Call.of_the_first),
    (_named(_EACH), _Call.of_each),
    (_named(_PRODUCTS), _Call.of_any_factor),
    (_named(_QUOTIENTS), _Call.of_a_quotient),
    (_named(_JOINS), _Call.of_all_joined),
    (_named(_REDUCTIONS), _Call.of_a_reduction),
    (lambda call: _RESAMPLES.match(call.name) is not None, _Call.of_a_channel),
    (_named(("pad",)), _Call.of_a_padded_channel),
    (lambda call: _CONVOLUTION.match(call.name) is not None, _Call.of_a_convolution),
    (_named(("linear",)), _Call.of_linear),
    (_named(_CONTRACTIONS), _Call.of_a_contraction),
    (_named(("scaled_dot_product_attention",)), _Call.of_attention),
    (_named(_MIXES | {"fill", "zero"}), _Call.of_nothing),
)
"""Kinds of functions, and what each keeps; the first that fits."""


def _name(func: Callable) -> str:
    """Name of a function, or of the property that is read."""
    name = function_name(func).partition(".")[0]
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "get" else name


def _mark(maps: Tensor, kept: Tensor) -> None:
    setattr(maps, _MARK, _Mark(kept, _version(maps)))


def _version(maps: Tensor) -> int | None:
    """Count of the changes of a tensor's memory, by whatever view of it; tensors of inference mode have none."""
    return None if maps.is_inference() else maps._version  # noqa: SLF001 - there is no public name for it


def _masked(maps: Tensor, kept: Tensor | None, *, float32: bool = False) -> Tensor:
    """Where a tensor is masked: in its shape, and in its order in memory, on which views depend."""
    masked = torch.empty_strided(
        maps.shape, maps.stride(), dtype=torch.float32 if float32 else torch.bool, device=maps.device
    )
    if kept is None:
        masked.zero_()
        return masked
    apart = tuple(slice(0, 1) if step == 0 else slice(None) for step in maps.stride())  # what is expanded is one number
    masked[apart] = (~kept.expand(maps.shape))[apart].to(masked)
    return masked


def _or_read(kept: Tensor) -> Tensor | None:
    """Nothing where everything is masked: such a layer reads zeros, and adds its bias."""
    return kept if kept.any() else None


def _holds_maps(tensor: Tensor) -> bool:
    """Whether numbers are zero where they are masked: those of comparisons and counts are not, until they are maps."""
    return tensor.is_floating_point() or tensor.is_complex()


def _is_part(maps: Tensor) -> bool:
    """Whether a tensor is a view, or has only a part of its memory."""
    is_view = maps._is_view()  # noqa: SLF001 - ``_base`` is private too
    return is_view or maps.untyped_storage().nbytes() > math.prod(maps.shape) * maps.element_size()


def _broadcasts(kept: Tensor, maps: Tensor) -> bool:
    return kept.ndim == maps.ndim and all(n in (1, size) for n, size in zip(kept.shape, maps.shape, strict=True))
