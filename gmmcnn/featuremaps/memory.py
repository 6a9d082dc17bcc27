"""Feature maps that need no store: those of a small network on its probe samples, held in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gmmcnn.featuremaps.taps import Tap

_ALL = slice(None)


class Maps(Protocol):
    """Feature maps of several layers over the same samples, wherever they are."""

    @property
    def layers(self) -> Mapping[str, Tap]:
        """Layer name → shape and description, in the model's order."""

    @property
    def n_samples(self) -> int:
        """Samples of all probe batches."""


@dataclass(frozen=True, eq=False)
class MapsInMemory:
    """What a complete :class:`~gmmcnn.featuremaps.store.ActivationStore` gives, without files.

    Attributes
    ----------
    layers : dict of str to Tap
        Layer name → shape and description, in the model's order.
    n_samples : int
        N, samples of all probe batches.
    by_layer : dict of str to (F, N, P) float32
        Maps of each layer.
    """

    layers: Mapping[str, Tap]
    n_samples: int
    by_layer: Mapping[str, NDArray[np.float32]]

    def read(self, layer: str, filters: slice = _ALL, samples: slice = _ALL) -> NDArray[np.float32]:
        """Maps of some filters over some samples: (F, N, P) float32; without a copy where they lie together."""
        return np.ascontiguousarray(self.by_layer[layer][filters, samples])
