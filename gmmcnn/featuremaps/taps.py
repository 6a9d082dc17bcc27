"""Where feature maps are taken, in words and numbers: plain records shared by capture and store."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tap:
    """One layer whose feature maps are analysed."""

    layer: str
    """Dotted name of the convolution."""
    n_filters: int
    height: int
    """Rows of one map, pixels."""
    width: int
    """Columns of one map, pixels."""
    description: str
    """Where the maps are taken, as ``"after batch_norm (bn1), relu"``."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(filters, height, width)."""
        return self.n_filters, self.height, self.width


@dataclass(frozen=True)
class Skipped:
    """One layer that is not analysed, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Taps:
    """Every convolution of a model: analysed, or skipped with the reason; both in the order of the model's modules."""

    tap: str
    """``"post_activation"``, ``"branch"`` or ``"pre_activation"``."""
    analysed: tuple[Tap, ...]
    skipped: tuple[Skipped, ...]
    peak_bytes_per_sample: int
    """Largest tensor that the forward pass makes, per sample: what bounds how many samples go through at once."""
