"""Feature maps of every convolution of any module, taken while the forward pass runs.

Maps are handed to the consumer at once where they are computed, before any later operation can overwrite them. The
same tracer (:mod:`gmmcnn.featuremaps.tracing`) finds the taps and captures them: a tap is known by the way that leads
to it, in words, so that the two cannot disagree.

With the tap ``auto`` a convolution's maps are taken after its activation; where none follows (a linear bottleneck, a
block that is normalised first, a shortcut), after its normalisation; where there is none either, they are its own
output. With ``branch`` nothing is followed through an addition: each convolution's maps are taken as they enter it.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from gmmcnn.errors import CaptureError, CouplingWarning, ForwardError, LayerError
from gmmcnn.featuremaps.taps import Skipped, Tap, Taps
from gmmcnn.featuremaps.tracing import Tracer, Trail, by_filter
from gmmcnn.models.foreign import CONVOLUTIONS, eager, outcome, runnable, undisturbed, unwrapped

TAPS = ("auto", "post_activation", "branch", "pre_activation")

COUPLING = 1e-3
"""A sample's maps that differ by more than this share of their largest value, with another sample beside it, depend on
that sample; rounding makes differences of 1e-6."""

Consume = Callable[[str, Tensor], None]
"""``consume(layer, maps)`` with maps (N, C, H, W); later operations may overwrite them."""


def find_taps(
    model: nn.Module,
    example: Tensor,
    *,
    tap: str = "auto",
    layers: Iterable[str] | None = None,
    autocast: str | None = None,
) -> Taps:
    """Run a small batch through the model and see where each convolution's maps can be taken.

    Parameters
    ----------
    model : nn.Module
        Any module; wrappers of ``torch.compile`` and ``DataParallel`` are looked through. Comes back as it was.
    example : (N, …) Tensor
        At least one image, of the size to be analysed.
    tap : {"auto", "post_activation", "branch", "pre_activation"}
        Take the output of the first activation after each convolution, or the best place there is (``auto``); that of
        the activation or nothing; the same, but before its maps are added to others; or the convolution's own output.
    layers : names, optional
        Dotted names of the convolutions to analyse; None takes all.
    autocast : {"bfloat16", "float16"}, optional
        Type that the model is run in, now and whenever maps are taken, where torch holds that for safe.

    Raises
    ------
    LayerError
        There is no layer of that name, or none is asked for.
    CaptureError
        There is no convolution at all, or the model does not run on the example, or not on two images at once.

    Warns
    -----
    CouplingWarning
        A sample's maps depend on the other samples in its forward pass.
    """
    if tap not in TAPS:
        raise CaptureError(f"tap={tap!r}: expected one of {', '.join(TAPS)}")
    model = runnable(model, CaptureError)
    wanted = _wanted(_convolutions(model), layers)
    places: dict[str, _Places] = {}

    def note(trail: Trail, maps: Tensor, place: str) -> None:
        places.setdefault(trail.layer, _Places()).note(trail, maps, place)

    tracer = Tracer(model, len(example), note, branch=tap == "branch")
    _forward(model, example, tracer, CaptureError, autocast)
    found = {layer: at for layer, known in places.items() if (at := known.chosen(tap))}
    reasons = {layer: reason for layer in wanted if (reason := _reason_to_skip(tracer, layer, found))}
    functional = [] if layers is not None else _functions(tracer, reasons)
    taps = Taps(
        tap=tap,
        analysed=tuple(found[layer] for layer in wanted if layer not in reasons),
        skipped=tuple(Skipped(layer, reason) for layer, reason in [*reasons.items(), *functional]),
        peak_bytes_per_sample=tracer.peak_bytes // len(example),
        autocast=autocast,
    )
    return replace(taps, analysed=_with_couplings(model, example, taps))


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
        in the order of computation; maps of one dimension are one row, of three their slices one below the other. The
        tensor may be overwritten afterwards: copy what is to be kept. What it raises is not touched.
    sample_offset : int
        Index of the first image among all samples, for error messages.

    Raises
    ------
    CaptureError
        Maps hold NaN or infinite values, or this pass takes another way than the one that found the taps.
    ForwardError
        The model's own forward pass raised something.
    """
    expected = {tap.layer: tap for tap in taps.analysed}
    received: set[str] = set()

    def hand_over(trail: Trail, maps: Tensor, _: str) -> None:
        layer = trail.layer
        if layer not in expected or layer in received or str(trail) != expected[layer].description:
            return
        maps = by_filter(maps, trail.axis)
        if _map_shape(maps) != expected[layer].shape:
            raise _changed_its_way(layer)
        require_finite(layer, maps, sample_offset)
        received.add(layer)
        try:
            consume(layer, maps)
        except Exception as error:
            raise _ConsumerFailed(error) from error

    model = unwrapped(model)
    tracer = Tracer(model, len(images), hand_over, branch=taps.tap == "branch")
    try:
        _forward(model, images, tracer, ForwardError, taps.autocast)
    except _ConsumerFailed as failed:
        raise failed.error from failed.error.__cause__
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


class _ConsumerFailed(BaseException):
    """An error of the consumer, on its way out of a forward pass that must not take it for its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@dataclass
class _Places:
    """Where one convolution's maps could be taken."""

    first: dict[str, Tap] = field(default_factory=dict)
    """Place → the first tap there; of activations the last, since a gate comes before its product."""

    def note(self, trail: Trail, maps: Tensor, place: str) -> None:
        """Keep a place that a trail got to."""
        if place == "activated" or (place and place not in self.first):
            extent = maps.movedim(trail.axis, 1).shape[2:]
            size = "" if len(extent) == 2 else " × ".join(map(str, extent))
            shape = _map_shape(by_filter(maps, trail.axis))
            self.first[place] = Tap(trail.layer, *shape, str(trail), kind=trail.kind, size=size)

    def chosen(self, tap: str) -> Tap | None:
        """Where a tap takes the maps, None where it takes none."""
        order = {
            "auto": ("activated", "normalised", "own"),
            "post_activation": ("activated",),
            "branch": ("joined", "activated"),
            "pre_activation": ("own",),
        }[tap]
        return next((self.first[place] for place in order if place in self.first), None)


def _reason_to_skip(tracer: Tracer, layer: str, found: dict[str, Tap]) -> str | None:
    """Why a layer cannot be analysed after a forward pass, None if it can."""
    if tracer.calls[layer] == 0:
        return "is never called as a module in a forward pass, or is scripted"
    if tracer.calls[layer] > 1:
        return (
            f"is called {tracer.calls[layer]} times in one forward pass, so a sample has no single map of each filter"
        )
    if layer in found:
        return None
    reason = tracer.dead_ends.get(layer, "no activation follows it")
    return reason if reason.startswith("gives") else f"{reason}; tap=pre_activation analyses its own output"


def _functions(tracer: Tracer, reasons: dict[str, str]) -> list[tuple[str, str]]:
    """Convolutions that are function calls, by their weight; those of a layer that is listed say it there."""
    said = "is a function call, {}(), with a weight of its own: only modules are analysed"
    for layer in reasons:
        if function := tracer.functional.get(f"{layer}.weight"):
            reasons[layer] = f"is never called as a module: its weight is used by {function}()"
    listed = {f"{layer}.weight" for layer in reasons}
    return [(name, said.format(function)) for name, function in tracer.functional.items() if name not in listed]


def _with_couplings(model: nn.Module, example: Tensor, taps: Taps) -> tuple[Tap, ...]:
    """The taps, those marked whose maps of a sample depend on what stands beside it in the forward pass.

    The sample goes through beside itself and beside another: two passes of one size, which round alike.
    """
    if not taps.analysed:
        return ()
    one = example[:1]
    generator = torch.Generator().manual_seed(0)
    spread = 3 * (float(one.float().std()) if one.numel() > 1 else 0.0) + 1
    other = example[1:2] if len(example) > 1 else one + spread * torch.randn(one.shape, generator=generator).to(one)
    alone, beside = (_maps_of_first(model, torch.cat([one, second]), taps) for second in (one, other))
    coupled = {
        layer
        for layer, maps in alone.items()
        if layer in beside and _differ(maps, beside[layer])
    }  # fmt: skip
    if coupled:
        warnings.warn(
            f"{', '.join(tap.layer for tap in taps.analysed if tap.layer in coupled)}: the maps of a sample depend on "
            "the other samples in its forward pass (a BatchNorm without running statistics?), and so does everything "
            "found: results are those of this extract.forward_samples and this order of the samples",
            CouplingWarning,
            stacklevel=3,
        )
    return tuple(replace(tap, coupled=tap.layer in coupled) for tap in taps.analysed)


def _maps_of_first(model: nn.Module, images: Tensor, taps: Taps) -> dict[str, Tensor]:
    """Maps of the first image, by layer, as far as this pass gets to the taps."""
    descriptions = {tap.layer: tap.description for tap in taps.analysed}
    maps: dict[str, Tensor] = {}

    def keep(trail: Trail, output: Tensor, _: str) -> None:
        if trail.layer not in maps and descriptions.get(trail.layer) == str(trail):
            maps[trail.layer] = output[0].clone()

    tracer = Tracer(model, len(images), keep, branch=taps.tap == "branch")
    _forward(model, images, tracer, CaptureError, taps.autocast)
    return maps


def _differ(maps: Tensor, others: Tensor) -> bool:
    if maps.shape != others.shape:
        return True
    difference, largest = float((maps - others).abs().max()), float(maps.abs().max())
    return difference > COUPLING * largest


def _convolutions(model: nn.Module) -> dict[str, nn.Module]:
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS) or _scripted(module)
    }
    if not found:
        raise CaptureError(f"{type(model).__name__} has no convolution, so there are no feature maps to analyse")
    return found


def _scripted(module: nn.Module) -> bool:
    """Whether this is a convolution inside a scripted module: it can be listed, but no hook of it fires."""
    names = {kind.__name__ for kind in CONVOLUTIONS}
    return isinstance(module, torch.jit.ScriptModule) and module.original_name in names


def _wanted(convolutions: dict[str, nn.Module], layers: Iterable[str] | None) -> list[str]:
    """Names asked for, in the model's order; a string would be taken letter by letter, so it counts as one name."""
    names = set(convolutions) if layers is None else {layers} if isinstance(layers, str) else set(layers)
    if not names:
        raise LayerError(f"layers=[]: expected at least one of {', '.join(convolutions)}; None takes all of them")
    for unknown in sorted(names - convolutions.keys()):
        near = get_close_matches(unknown, convolutions, n=1, cutoff=0) or list(convolutions)
        raise LayerError(f"layer {unknown!r}: the model has no convolution of that name; the nearest is {near[0]!r}")
    return [name for name in convolutions if name in names]


def _map_shape(maps: Tensor) -> tuple[int, int, int]:
    _, n_filters, height, width = maps.shape
    return n_filters, height, width


def _changed_its_way(layer: str) -> CaptureError:
    return CaptureError(
        f"layer {layer!r}: this forward pass computes its maps another way than the pass that found the taps; "
        "the model's forward must not depend on the images' values, and all images must have one size"
    )


def _forward(model: nn.Module, images: Tensor, tracer: Tracer, kind: type[CaptureError], autocast: str | None) -> None:
    images = model_input(model, images)
    dtype = getattr(torch, autocast) if autocast else None
    cast = torch.autocast(images.device.type, dtype) if autocast else nullcontext()
    with undisturbed(model), tracer.hooked(), torch.no_grad(), eager(), cast, tracer:
        outcome(model, images, kind)
