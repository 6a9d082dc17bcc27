"""Feature maps that are fitted where they are made: a network that is run now, in place of a store.

As many probe batches as fit into the memory allowed make a round. Where one batch alone is too large, its filters are
taken in groups, with one pass over its samples for each group. The forward passes are those of
:func:`gmmcnn.featuremaps.stream.extract`, sample by sample in the same company, so the maps are the same bit by bit,
however they are grouped. A store that is to be kept is written meanwhile, by its own background thread, from the same
passes.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gmmcnn.config import Extract
from gmmcnn.errors import ConfigurationError
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import Writer, block_samples, capture_by_filter, require_fitting
from gmmcnn.featuremaps.taps import Tap, Taps
from gmmcnn.hardware.device import device_of, host_copy, uploaded
from gmmcnn.progress import Advance

BYTES_PER_ROUND = 64 << 20
"""Maps of a round on the CPU, at most, where a round has more than one batch: more memory gains nothing there. On a GPU
a round fills what ``extract.memory`` allows."""


@dataclass(frozen=True)
class Group:
    """Filters of one layer whose maps are held at once."""

    tap: Tap
    filters: range

    def shape(self, n_samples: int) -> tuple[int, int, int]:
        """(F, N, P) of their maps."""
        return len(self.filters), n_samples, self.tap.height * self.tap.width


@dataclass(frozen=True, eq=False)
class Taken:
    """Maps of some filters of a layer over some probe batches.

    Attributes
    ----------
    layer : str
    filters, batches : range
    maps : (F, B * N, P) float32 Tensor
        On the model's device; overwritten when the next ones are asked for.
    """

    layer: str
    filters: range
    batches: range
    maps: Tensor


class LiveMaps:
    """Feature maps of a network on its probe samples, made when asked for.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; comes back as it was.
    images : (B * N, …) Tensor
        The probe batches, one after the other.
    taps : Taps
        What :func:`~gmmcnn.featuremaps.capture.find_taps` found for this model.
    n_samples : int
        N, samples in a probe batch.
    settings : config.Extract
        Its ``dtype``, ``forward_samples`` and ``memory``.
    keep : ActivationStore, optional
        What :func:`~gmmcnn.featuremaps.stream.store_for` opened for the same maps; written as rounds go by.

    Raises
    ------
    ConfigurationError
        The images are no whole number of batches.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        taps: Taps,
        n_samples: int,
        settings: Extract,
        *,
        keep: ActivationStore | None = None,
    ) -> None:
        if len(images) % n_samples:
            raise ConfigurationError(
                f"probe.samples={n_samples}: there are {len(images)} samples; expected a divisor of that"
            )
        self.layers = {tap.layer: tap for tap in taps.analysed}
        self.n_samples = len(images)
        self._model, self._images, self._taps, self._keep = model, images, taps, keep
        self._batch = n_samples
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        self._bytes = settings.memory << 20
        self._pass = block_samples(taps, n_samples, len(images), settings.forward_samples)
        self._arena = torch.empty(0)

    @cached_property
    def rounds(self) -> list[range]:
        """Probe batches that are taken together."""
        n_batches = self.n_samples // self._batch
        most = self._bytes if device_of(self._model).type != "cpu" else min(self._bytes, BYTES_PER_ROUND)
        together = min(n_batches, max(1, most // self._bytes_of(self._all, self._batch)))
        return [range(first, min(first + together, n_batches)) for first in range(0, n_batches, together)]

    def is_kept(self, batches: range) -> bool:
        """Whether the store that is to be kept, if any, has all that the passes over these batches bring to it."""
        return self._keep is None or not set(self._keep.missing_blocks) & set(self._begun_in(batches))

    def take(self, rounds: Iterable[range], advance: Advance = lambda n=1, /: None) -> Generator[Taken]:
        """Run the network on some rounds, one after the other.

        Parameters
        ----------
        rounds : ranges
            Some of :attr:`rounds`.
        advance : Advance
            Called with the number of probe batches whose maps have all been taken, and worked on.

        Raises
        ------
        CaptureError
            A map holds NaN or infinite values, or values that do not fit into ``extract.dtype``.
        """
        if self._keep and self._keep.missing_blocks:
            self._keep.remove_orphans()
        with Writer() as writer:
            for batches in rounds:
                missing = set(self._keep.missing_blocks) & set(self._begun_in(batches)) if self._keep else set()
                for group in self._groups(len(batches) * self._batch):
                    yield from self._taken(group, batches, writer, missing)
                if self._keep:
                    for block in sorted(missing):
                        writer(self._keep.commit, block)
                advance(len(batches))

    @property
    def _all(self) -> list[Group]:
        return [Group(tap, range(tap.n_filters)) for tap in self._taps.analysed]

    def _bytes_of(self, group: Sequence[Group], n_samples: int) -> int:
        return sum(4 * len(part.filters) * n_samples * part.tap.height * part.tap.width for part in group)

    def _groups(self, n_samples: int) -> list[list[Group]]:
        """Divide the filters of all layers, in the model's order, into groups whose maps fit."""
        groups: list[list[Group]] = [[]]
        left = self._bytes
        for tap in self._taps.analysed:
            a_filter, first = 4 * n_samples * tap.height * tap.width, 0
            while first < tap.n_filters:
                if left < a_filter and groups[-1]:
                    groups.append([])
                    left = self._bytes
                last = min(tap.n_filters, first + max(1, left // a_filter))
                groups[-1].append(Group(tap, range(first, last)))
                left -= (last - first) * a_filter
                first = last
        return groups

    def _begun_in(self, batches: range) -> range:
        """Passes, which are blocks of a store, whose first sample is one of these batches."""
        first, last = batches.start * self._batch, batches.stop * self._batch
        return range(-(-first // self._pass), -(-last // self._pass))

    def _taken(self, group: list[Group], batches: range, writer: Writer, missing: set[int]) -> Iterator[Taken]:
        """Maps of a group over some batches, in as many passes as a store would have blocks there."""
        first, last = batches.start * self._batch, batches.stop * self._batch
        tapped = {part.tap.layer: part for part in group}
        taps = replace(self._taps, analysed=tuple(part.tap for part in group))
        held: dict[str, Tensor] = {}
        for block, images in self._passes(range(first // self._pass, -(-last // self._pass))):
            start, stop = block * self._pass, min((block + 1) * self._pass, self.n_samples)
            wanted = slice(max(start, first) - start, min(stop, last) - start)
            into = slice(max(start, first) - first, min(stop, last) - first)
            kept = self._keep if block in missing else None

            def hold(layer: str, by_filter: Tensor, at: Any = (block, start, wanted, into, kept)) -> None:
                block, start, wanted, into, kept = at
                part = tapped[layer]
                if not held:
                    held.update(self._room(group, last - first, by_filter))
                if kept is not None and part.filters.start == 0:
                    copy = host_copy(by_filter)
                    writer(lambda: kept.write(layer, block, copy()))
                chosen = by_filter[part.filters.start : part.filters.stop, wanted].flatten(2)
                stored = chosen.to(self._dtype)
                require_fitting(layer, stored, start + wanted.start, part.filters.start)
                held[layer][:, into] = stored

            capture_by_filter(self._model, images, taps, hold, start)
        for layer, part in tapped.items():
            yield Taken(layer, part.filters, batches, held[layer])

    def _passes(self, blocks: range) -> Iterator[tuple[int, Tensor]]:
        """Numbers of some passes and their images, which come to the model's device while the pass before runs."""
        images = ((self._images[block * self._pass : (block + 1) * self._pass],) for block in blocks)
        for block, (batch,) in zip(blocks, uploaded(images, device_of(self._model)), strict=True):
            yield block, batch

    def _room(self, group: list[Group], n_samples: int, beside: Tensor) -> dict[str, Tensor]:
        """A place for the maps of each layer of a group, all in one piece of memory that every group uses again."""
        sizes = [self._bytes_of([part], n_samples) // 4 for part in group]
        if len(self._arena) < sum(sizes) or self._arena.device != beside.device:
            # Large enough for the others too: whoever took this group's maps still holds them when the next ones come.
            largest = max(self._bytes_of(other, n_samples) for other in self._groups(n_samples)) // 4
            self._arena = beside.new_empty(largest, dtype=torch.float32)
        pieces = self._arena[: sum(sizes)].split(sizes)
        return {part.tap.layer: piece.view(part.shape(n_samples)) for part, piece in zip(group, pieces, strict=True)}
