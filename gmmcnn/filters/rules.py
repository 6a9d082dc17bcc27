"""The three criteria of an anomaly filter (arXiv 2412.10457), each a rule over what screening has measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gmmcnn import config

Columns = Mapping[str, Any]
"""What :func:`gmmcnn.filters.screening.measure` measures, by name: arrays (F, B, R), or columns of a table of them."""


class Rule(Protocol):
    """One criterion: a column name and the test of every entry of what has been measured."""

    @property
    def name(self) -> str:
        """Column that says where the criterion holds."""
        ...

    def __call__(self, measured: Columns) -> Any:
        """Test every filter in every probe batch."""
        ...


@dataclass(frozen=True)
class Unbalanced:
    """Criterion 1: at least ``min_small_clusters`` (α) clusters are small."""

    min_small_clusters: int
    name: str = "unbalanced"

    def __call__(self, measured: Columns) -> Any:
        """Test every entry by its number of small clusters."""
        return measured["n_small_clusters"] >= self.min_small_clusters


@dataclass(frozen=True)
class Separated:
    """Criterion 2: CH exceeds ``ratio`` (β) times the average CH."""

    ratio: float
    name: str = "separated"

    def __call__(self, measured: Columns) -> Any:
        """Test every entry by its CH over the average; an undefined CH is not separated."""
        return measured["ch_over_average"] > self.ratio


@dataclass(frozen=True)
class Active:
    """Criterion 3: the mean activation exceeds ``ratio`` (θ) times the average."""

    ratio: float
    name: str = "active"

    def __call__(self, measured: Columns) -> Any:
        """Test every entry by its activation over the average."""
        return measured["activation_over_average"] > self.ratio


def rules_of(settings: config.Screen) -> tuple[Rule, ...]:
    """Build the three criteria with their thresholds from the settings."""
    return (
        Unbalanced(settings.min_small_clusters),
        Separated(settings.ch_ratio),
        Active(settings.activation_ratio),
    )
