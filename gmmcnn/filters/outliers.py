"""Outlier samples: the members of the small clusters of flagged filters."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.filters.fits import Fits, LayerFits, cluster_sizes
from gmmcnn.filters.screening import Screening


def find_outliers(fits: Fits, screening: Screening, small_cluster: int) -> pd.DataFrame:
    """List every sample that a flagged filter puts into a small cluster.

    A filter counts in the probe batches that flag it, whether or not enough of them do to call it anomalous. Where a
    batch was clustered repeatedly, it counts for a sample that at least half of the repeats single out.

    Parameters
    ----------
    fits : Fits
        What was screened.
    screening : Screening
        Its outcome.
    small_cluster : int
        λ: largest size of a small cluster.

    Returns
    -------
    DataFrame
        ``sample`` (index in the probe set), ``batch``, ``n_filters`` that single it out and their names in ``filters``
        (``"conv1:3, conv2:7"``), most singled out first.
    """
    members = _members(fits, screening, small_cluster)
    times = members.groupby(["sample", "batch", "filters"], sort=False).size()
    members = times[times >= fits.n_repeats / 2].reset_index()
    found = members.groupby(["sample", "batch"], as_index=False).agg(
        n_filters=("filters", "size"), filters=("filters", ", ".join)
    )
    return found.sort_values(["n_filters", "sample"], ascending=[False, True], ignore_index=True)


def times_singled_out(fits: Fits, screening: Screening, small_cluster: int) -> NDArray[np.int64]:
    """How many clusterings of flagged filters put each sample into a small cluster; every repeat counts.

    Returns
    -------
    (B · N,) int64
        By sample of the probe set.
    """
    members = _members(fits, screening, small_cluster)["sample"].to_numpy(np.int64)
    return np.bincount(members, minlength=fits.n_batches * fits.n_samples)


def _members(fits: Fits, screening: Screening, small_cluster: int) -> pd.DataFrame:
    """Every sample that a flagged clustering puts into a small cluster, clustering by clustering."""
    flagged = screening.batches[screening.batches["flagged"]]
    parts = [
        _small_clusters(layer, rows, fits.layers[str(layer)], fits.n_samples, small_cluster)
        for layer, rows in flagged.groupby("layer", sort=False)
    ]
    return pd.concat([_NOBODY, *parts], ignore_index=True) if parts else _NOBODY


_NOBODY = pd.DataFrame(
    {"sample": np.empty(0, np.int64), "batch": np.empty(0, np.int64), "filters": np.empty(0, object)}
)


def _small_clusters(
    layer: object, flagged: pd.DataFrame, fits: LayerFits, n_samples: int, largest: int
) -> pd.DataFrame:
    """Every sample that one of these clusterings of a layer puts into a small cluster, clustering by clustering."""
    filter, batch, repeat = (flagged[name].to_numpy() for name in ("filter", "batch", "repeat"))
    labels = fits.labels[filter, batch, repeat]  # (M, N)
    sizes = np.take_along_axis(fits.cluster_sizes[filter, batch, repeat], labels.astype(np.intp), axis=1)
    row, member = np.nonzero((sizes <= largest) & (labels >= 0))
    names = np.array([f"{layer}:{number}" for number in range(len(fits))], object)
    return pd.DataFrame({"sample": batch[row] * n_samples + member, "batch": batch[row], "filters": names[filter[row]]})


def small_members(
    fits: Fits, layer: str, filter: int, batch: int, small_cluster: int, repeat: int = 0
) -> NDArray[np.int64]:
    """Samples (positions in the probe batch) that lie in a small cluster of this filter, in one of its clusterings."""
    labels = fits.layers[layer].labels[filter, batch, repeat]
    return np.flatnonzero(cluster_sizes(labels, labels.max() + 1)[labels] <= small_cluster)
