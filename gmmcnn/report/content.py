"""What the report shows, as plain data: the page knows nothing of stores, models or engines."""

from dataclasses import dataclass, field

import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClusterPlot:
    """The clustering of one flagged filter in one probe batch; N samples, d PCA dimensions, K clusters."""

    layer: str
    filter: int
    batch: int
    scores: NDArray
    """(N, d) float, d >= 1, PCA scores; the first two dimensions are drawn."""
    labels: NDArray
    """(N,) int, cluster of each sample, 0 … K - 1."""
    samples: NDArray
    """(N,) int, index of each sample in the probe set."""
    small: NDArray
    """(K,) bool, clusters that are small."""


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page. Accuracies are shares in [0, 1]; empty tables and None mean nothing to show."""

    title: str
    facts: dict[str, str]
    """Settings and provenance, in the order in which they are shown."""
    findings: list[str]
    """Plain sentences; the first is the headline."""
    warnings: list[str]
    metrics: pd.DataFrame | None
    """One row per epoch: ``epoch, train_loss, train_accuracy, validation_loss, validation_accuracy`` and, NaN where an
    epoch was not analysed, ``anomalous_filters, flagged_per_batch``."""
    filters: pd.DataFrame
    """One row per filter of the checkpoint shown; the columns of ``filters.csv``."""
    outliers: pd.DataFrame
    """``sample, label, n_filters, filters`` and, optionally, ``planted`` (kind of a planted sample, else empty) and
    ``noisy_label`` (bool)."""
    clusters: list[ClusterPlot]
    images: dict[int, NDArray]
    """Probe sample → (H, W) or (H, W, 3) uint8; those that the page shows go into it."""
    class_names: list[str] | None
    masking: pd.DataFrame | None
    """One row per mask: ``mask`` (``none``, ``anomalous`` or ``random``), ``n_filters, train_accuracy, train_loss,
    validation_accuracy, validation_loss``."""
    skipped: list[tuple[str, str]]
    """Layers not analysed, each with its reason."""
    targets: dict[int, int] = field(default_factory=dict)
    """Probe sample → class number, where known."""
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row per probe sample; the columns of ``samples.csv``."""
