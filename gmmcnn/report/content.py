"""What the report shows, as plain data: the page knows nothing of stores, models or engines."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NO_CLUSTER = 255


class Sliders(NamedTuple):
    """Values that each threshold can take, ascending, the one in force among them; names as in ``config.Screen``."""

    small_cluster: list[int]
    min_small_clusters: list[int]
    ch_ratio: list[float]
    activation_ratio: list[float]
    min_frequency: list[float]


class Ranks(NamedTuple):
    """What the criteria look at in F filters, in M = B R clusterings of each, repeats of a batch side by side."""

    planes: NDArray[np.uint8]
    """(A + 2, F, M) for each α the size of the α-th smallest cluster, which is small from the slider's value of this
    rank on; CH, then the activation, over the average: above all values of the slider before this rank. A clustering
    that cannot be judged has ranks with which no criterion holds."""
    live: NDArray[np.uint8]
    """(F,) 1 where a filter can be judged in most clusterings."""


class Scatters(NamedTuple):
    """Dots and ellipses of F filters, those of one filter after those of another; P dots and Q ellipses in all."""

    clustering: NDArray[np.int32]
    """(F,) which of the M = B R clusterings is drawn."""
    n_points: NDArray[np.uint16]
    """(F,)"""
    n_ellipses: NDArray[np.uint8]
    """(F,)"""
    step: NDArray[np.uint16]
    """(P,) from the sample of the dot before, in its batch, to this one's; from -1 for the first."""
    x: NDArray[np.uint8]
    """(P,)"""
    y: NDArray[np.uint8]
    """(P,)"""
    cluster: NDArray[np.uint8]
    """(P,) or NO_CLUSTER"""
    ellipses: NDArray[np.int16]
    """(Q, 5) centre x, y and the lower triangle of the covariance's root (x; y along x; y), in 1/64 of a dot's step."""


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page. Accuracies are shares in [0, 1]; empty tables and None mean nothing to show."""

    title: str
    facts: dict[str, str]
    """Settings and provenance, in the order in which they are shown."""
    findings: list[str]
    """Plain sentences; the first is the headline."""
    metrics: pd.DataFrame | None
    """One row per epoch: ``epoch, train_loss, train_accuracy, validation_loss, validation_accuracy`` and, NaN where an
    epoch was not analysed, ``anomalous_filters, flagged_per_batch``."""
    filters: pd.DataFrame
    """One row per filter of the checkpoint shown; the columns of ``filters.csv``."""
    outliers: pd.DataFrame
    """``sample, label, n_filters, filters`` and, optionally, ``planted`` (kind of a planted sample, else empty) and
    ``noisy_label`` (bool)."""
    images: dict[int, NDArray]
    """Probe sample → (H, W) or (H, W, 3) uint8; as many as the page has room for go into it."""
    sliders: Sliders
    """Thresholds that a reader can choose from."""
    places: dict[str, int]
    """Where each slider stands at first: name → position among its values."""
    ranks: dict[int | None, Ranks]
    """What the criteria look at, by epoch, ascending; the last is the checkpoint shown."""
    scatters: Scatters
    """One clustering of each filter."""
    index_by_k: NDArray
    """(F, S) median CH index for every number of clusters tried, NaN where undefined."""
    n_batches: int
    n_samples: int
    """N, samples in a probe batch."""
    k_min: int
    """Smallest number of clusters tried."""
    notes: list[str] = field(default_factory=list)
    """What to know of the settings, where nothing is amiss."""
    warnings: list[str] = field(default_factory=list)
    class_names: list[str] | None = None
    masking: pd.DataFrame | None = None
    """One row per mask: ``mask`` (``none``, ``anomalous`` or ``random``), ``n_filters, train_accuracy, train_loss,
    validation_accuracy, validation_loss``."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Layers not analysed, each with its reason."""
    targets: dict[int, int] = field(default_factory=dict)
    """Probe sample → class number, where known."""
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row per probe sample; the columns of ``samples.csv``."""
    command: str | None = None
    """Begin of the command that screens with other thresholds; None where there is no run folder."""
