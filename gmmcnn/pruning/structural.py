"""Structural removal: the smaller network that computes what the masked one does.

A masked filter's channel is zero wherever it is read (:func:`gmmcnn.masked`). Where only the next layer reads it, the
filter, its share of the normalisation and the next layer's weights on it can be cut out, and the outputs stay the same.
A channel that is added to a residual stream is *coupled* with a channel of every other layer that writes to the stream:
cutting it out would take those too, and the stream's own content. Such a filter stays and is silenced: its weights and
its normalisation's scale and shift become zero. Dependencies are found by Torch-Pruning (Fang, Ma, Song, Mi, Wang,
*DepGraph: Towards Any Structural Pruning*, 2023).

Each layer is changed on a copy, and the copy counts only if its outputs are the masked network's: what a third party
makes of an unusual network is found out, and no network is left half cut.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gmmcnn.errors import EngineError, GmmcnnError, ModelError, one_line
from gmmcnn.featuremaps.capture import model_input
from gmmcnn.featuremaps.tracing import tensors
from gmmcnn.models.foreign import CONVOLUTIONS, outcome, runnable
from gmmcnn.pruning.masks import Mask, checked, masked

_COUPLING = ("AddBackward", "SubBackward", "MulBackward")  # channels that meet others of the same number
# The private bases: own normalisations derive from them.
_NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)  # noqa: SLF001
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Removal:
    """A network without some of its filters.

    Attributes
    ----------
    model : nn.Module
        A new network, in eval mode. Weights that the given one computes from others (weight_norm, spectral_norm) are
        plain parameters here.
    removed : dict
        Filters that were cut out, by layer, in the numbering of the network given.
    silenced : dict
        Filters that stay, with zero for their output, because they cannot be cut out without changing more than that.
    """

    model: nn.Module
    removed: dict[str, list[int]]
    silenced: dict[str, list[int]]


@dataclass
class _Draft:
    """A network that is being made smaller."""

    model: nn.Module
    left: dict[str, list[int]]
    """Filters of each convolution that are still there, in the numbering of the network given."""

    def places(self, layer: str, filters: Sequence[int]) -> list[int]:
        """Where filters are now; those that went together with others are nowhere."""
        return [place for place, index in enumerate(self.left[layer]) if index in filters]

    def copied(self) -> "_Draft":
        return _Draft(copy.deepcopy(self.model), dict(self.left))


class _Impossible(Exception):
    """A change cannot be made, for the reason that is its message."""


def remove_filters(model: nn.Module, mask: Mask, example: Tensor) -> Removal:
    """Cut filters out of a copy of a network, so that its outputs are those of the masked network in eval mode.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    mask : mapping
        Filters by dotted name of a convolution, as of :func:`gmmcnn.masked`.
    example : (1, C, H, W) float32
        An image, to follow the channels through the network.

    Returns
    -------
    Removal

    Raises
    ------
    ModelError
        A layer is not a convolution of the model, a filter is not one of its output channels, the network does not run
        on the image, or a filter can neither be cut out nor silenced.
    EngineError
        Torch-Pruning is not installed.
    """
    network = runnable(model, ModelError)
    chosen = {layer: filters for layer, filters in checked(network, mask).items() if filters}
    if chosen:
        require_torch_pruning()
    whole = _with_plain_weights(_copied(network))
    convolutions = {name: module for name, module in whole.named_modules() if isinstance(module, CONVOLUTIONS)}
    draft = _Draft(_copied(whole), {name: list(range(m.out_channels)) for name, m in convolutions.items()})
    images = _images_like(model_input(whole, example))
    removed: dict[str, list[int]] = {}
    silenced: dict[str, list[int]] = {}
    so_far: dict[str, list[int]] = {}
    for layer, filters in chosen.items():
        so_far[layer] = filters
        with masked(whole, so_far):
            expected = [_outputs(whole, image) for image in images]
        draft, cut = _changed(draft, layer, filters, images, expected)
        (removed if cut else silenced)[layer] = filters
    return Removal(draft.model.requires_grad_(), removed, silenced)


def require_torch_pruning() -> Any:
    """Import Torch-Pruning; raises EngineError where it is not installed."""
    try:
        import torch_pruning
    except ImportError:
        raise EngineError("structural removal needs Torch-Pruning: pip install 'gmmcnn[prune]'") from None
    return torch_pruning


def _changed(
    draft: _Draft, layer: str, filters: list[int], images: list[Tensor], expected: list[list[Tensor]]
) -> tuple[_Draft, bool]:
    """The network without a layer's filters, and whether they were cut out; ModelError where neither can be."""
    reasons: list[str] = []
    ways: tuple[Callable[[_Draft, str, list[int], Tensor], None], ...] = (_cut, _silence)
    for change in ways:
        candidate = draft.copied()
        try:
            if candidate.places(layer, filters):
                change(candidate, layer, filters, images[0])
            _require_same([_outputs(candidate.model, image) for image in images], expected)
        except _Impossible as reason:
            reasons.append(str(reason))
        except GmmcnnError as error:
            reasons.append(f"the network no longer runs ({one_line(error)})")
        else:
            return candidate, change is _cut
    raise ModelError(
        f"{layer}: {reasons[1]} where its filters are silenced, and they cannot be cut out: {reasons[0]}; "
        "the network does something to these channels that cannot be followed: mask them instead"
    )


def _cut(draft: _Draft, layer: str, filters: list[int], example: Tensor) -> None:
    """Cut filters out of a draft, with everything that belongs to them."""
    torch_pruning = require_torch_pruning()
    places = draft.places(layer, filters)
    if len(places) == len(draft.left[layer]):
        raise _Impossible("no filter would be left")
    names = {module: name for name, module in draft.model.named_modules()}
    module = draft.model.get_submodule(layer)
    draft.model.requires_grad_()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(
                draft.model, example_inputs=example, output_transform=lambda output: list(tensors([output]))
            )
            prune = graph.get_pruner_of_module(module).prune_out_channels
            group = graph.get_pruning_group(module, prune, idxs=places)
            if any(operation in dependency.target.name for dependency, _ in group for operation in _COUPLING):
                raise _Impossible("their channels meet channels of other layers")
            for dependency, gone in group:
                target = dependency.target.module
                if isinstance(target, CONVOLUTIONS) and graph.is_out_channel_pruning_fn(dependency.handler):
                    kept = draft.left[names[target]]
                    draft.left[names[target]] = [index for place, index in enumerate(kept) if place not in set(gone)]
            group.prune()
    except _Impossible:
        raise
    except (Exception, SystemExit) as error:  # whatever a third party raises on a network that it does not know
        raise _Impossible(
            f"its channels cannot be followed through the network ({type(error).__name__}: {one_line(error)})"
        ) from error
    for name, kept in draft.left.items():
        if draft.model.get_submodule(name).out_channels != len(kept):
            raise _Impossible(f"other filters of {name} would go with them")
    if draft.places(layer, filters):
        raise _Impossible("they would stay")


def _silence(draft: _Draft, layer: str, filters: list[int], example: Tensor) -> None:
    """Set to zero what makes these filters' outputs: weights, bias, and scale and shift of the normalisation behind."""
    convolution, places = draft.model.get_submodule(layer), draft.places(layer, filters)
    behind = _normalisations_behind(draft.model, convolution, example)
    with torch.no_grad():
        _weights_by_filter(convolution)[places] = 0
        for module in [convolution, *behind]:
            for name, parameter in module.named_parameters(recurse=False):
                if module is not convolution or name == "bias":
                    parameter[places] = 0


def _weights_by_filter(convolution: Any) -> Tensor:
    """(C, …) view of a convolution's weights."""
    weight = convolution.weight
    if not convolution.transposed:
        return weight
    groups = convolution.groups  # (inputs, filters of a group, …)
    by_group = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    if groups > 1:
        raise _Impossible("a transposed convolution in groups has no row of weights for each filter")
    return by_group[0]


def _normalisations_behind(model: nn.Module, convolution: nn.Module, example: Tensor) -> list[nn.Module]:
    """Normalisations that read a convolution's very output."""
    outputs: list[Tensor] = []
    found: list[nn.Module] = []

    def remember(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        outputs.append(output)

    def follow(module: nn.Module, inputs: tuple) -> None:
        if any(inputs[0] is output for output in outputs):
            found.append(module)

    handles = [convolution.register_forward_hook(remember)]
    handles += [m.register_forward_pre_hook(follow) for m in model.modules() if isinstance(m, _NORMALISATIONS)]
    try:
        _outputs(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _require_same(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for some, others in zip(found, expected, strict=True):
        if [output.shape for output in some] != [output.shape for output in others]:
            raise _Impossible("the outputs have another shape than the masked network's")
        for output, other in zip(some, others, strict=True):
            largest = float(other.abs().max()) if other.numel() else 0.0
            difference = float((output - other).abs().max()) if other.numel() else 0.0
            if not difference <= _TOLERANCE * max(1.0, largest):
                raise _Impossible(f"logits differ from the masked network's by {difference:.2g}")


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Tensors of numbers that a model gives."""
    with torch.no_grad():
        result = outcome(model, images, ModelError)
    found = [output.clone() for output in tensors([result]) if output.is_floating_point()]
    if not found:
        raise ModelError(
            f"{type(model).__name__} gives a {type(result).__name__}; expected a tensor or a tuple of tensors: "
            "wrap the model in a module that returns its logits"
        )
    return found


def _images_like(example: Tensor) -> list[Tensor]:
    """The example, and noise of its size and scale: a channel may happen to be zero on one image."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(example.shape, generator=generator).to(example)
    return [example, example.mean() + noise * (example.std() if example.numel() > 1 else 1)]


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({one_line(error)}); first remove hooks, and weights that hooks "
            "compute (torch.nn.utils.remove_weight_norm)"
        ) from error


def _with_plain_weights(model: nn.Module) -> nn.Module:
    """Make parametrisations (weight_norm, spectral_norm) permanent: computed weights have no rows to cut.

    Not by torch's own ``remove_parametrizations``, which takes the property off a class that a copy shares with its
    original.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return model
