"""Outlier samples: the members of the small clusters of flagged filters."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.filters.fits import Fits
from gmmcnn.filters.screening import Screening, cluster_sizes


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
    singled_out = [
        (int(sample), int(row.batch), f"{row.layer}:{row.filter}")
        for row in screening.batches[screening.batches["flagged"]].itertuples()
        for sample in row.batch * fits.n_samples
        + small_members(fits, row.layer, row.filter, row.batch, small_cluster, row.repeat)
    ]
    members = pd.DataFrame(singled_out, columns=["sample", "batch", "filters"])
    times = members.groupby(["sample", "batch", "filters"], sort=False).size()
    members = times[times >= fits.n_repeats / 2].reset_index()
    found = members.groupby(["sample", "batch"], as_index=False).agg(
        n_filters=("filters", "size"), filters=("filters", ", ".join)
    )
    return found.sort_values(["n_filters", "sample"], ascending=[False, True], ignore_index=True)


def small_members(
    fits: Fits, layer: str, filter: int, batch: int, small_cluster: int, repeat: int = 0
) -> NDArray[np.int64]:
    """Samples (positions in the probe batch) that lie in a small cluster of this filter, in one of its clusterings."""
    labels = fits.layers[layer].labels[filter, batch, repeat]
    return np.flatnonzero(cluster_sizes(labels, labels.max() + 1)[labels] <= small_cluster)
