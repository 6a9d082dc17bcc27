"""What a page needs to screen by itself, with whatever thresholds its reader chooses, and to agree with Python exactly.

A slider takes a few hundred values. Whether a measured value lies above a threshold then depends on its *rank* alone,
the number of the slider's values below it, which is a byte: smaller than a float, and no rounding can change a verdict.
"""

import numpy as np
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.filters.fits import Fits, cluster_sizes, is_live
from gmmcnn.filters.screening import measure, usual_status
from gmmcnn.report.content import Ranks, Sliders

_MOST_VALUES = 250
"""Of a slider: ranks are bytes."""
_MOST_SMALL_CLUSTERS = 4
_RATIOS = (
    *(round(0.02 * step, 2) for step in range(100)),
    *(round(2 + 0.1 * step, 1) for step in range(30)),
    *(round(5 + 0.5 * step, 1) for step in range(30)),
    *range(20, 101, 5),
)
"""Multiples of an average: finest about the defaults."""


def sliders_around(settings: config.Screen, small_cluster: int) -> Sliders:
    """Build sliders that can be set to the thresholds in force.

    Parameters
    ----------
    settings : config.Screen
    small_cluster : int
        λ in force.
    """
    most = max(20, 2 * small_cluster)
    sizes = np.linspace(1, most, min(most, _MOST_VALUES)).round().astype(int).tolist()
    return Sliders(
        sorted({*sizes, small_cluster}),
        sorted({*range(1, _MOST_SMALL_CLUSTERS + 1), settings.min_small_clusters}),
        sorted({*map(float, _RATIOS), settings.ch_ratio}),
        sorted({*map(float, _RATIOS), settings.activation_ratio}),
        sorted({*(round(0.05 * step, 2) for step in range(1, 21)), settings.min_frequency}),
    )


def places(sliders: Sliders, settings: config.Screen, small_cluster: int) -> dict[str, int]:
    """Where each slider stands with the thresholds in force: name → position among its values."""
    in_force = {name: getattr(settings, name) for name in sliders._fields} | {"small_cluster": small_cluster}
    return {name: values.index(in_force[name]) for name, values in sliders._asdict().items()}


def ranks(fits: Fits, settings: config.Screen, sliders: Sliders) -> Ranks:
    """Rank everything that the criteria look at among the values of its slider.

    Parameters
    ----------
    fits : Fits
    settings : config.Screen
        Scope and kind of the averages, and which filters are near-dead.
    sliders : Sliders
        With A values of α.

    Returns
    -------
    Ranks
        Of filters of all layers one after the other.
    """
    measured = measure(fits, settings)
    live = is_live(measured["status"])
    sizes = np.concatenate([_ascending_sizes(layer.labels, layer.weights.shape[-1]) for layer in fits.layers.values()])
    planes = []
    for alpha in sliders.min_small_clusters:
        smallest = sizes[..., alpha - 1] if alpha <= sizes.shape[-1] else np.full(live.shape, np.inf)
        planes.append(np.searchsorted(sliders.small_cluster, np.where(live, smallest, np.inf)))
    for name, values in [
        ("ch_over_average", sliders.ch_ratio),
        ("activation_over_average", sliders.activation_ratio),
    ]:
        judged = live & ~np.isnan(measured[name])
        planes.append(np.searchsorted(values, np.where(judged, measured[name], -np.inf)))
    stacked = np.stack(planes).astype(np.uint8).reshape(len(planes), fits.n_filters, -1)
    return Ranks(stacked, is_live(usual_status(measured["status"])).astype(np.uint8))


def _ascending_sizes(labels: NDArray[np.int16], k_max: int) -> NDArray[np.float64]:
    """(F, B, R, K) sizes of occupied clusters, the smallest first, infinite beyond the last."""
    sizes = cluster_sizes(labels, k_max).astype(float)
    return np.sort(np.where(sizes > 0, sizes, np.inf), axis=-1)
