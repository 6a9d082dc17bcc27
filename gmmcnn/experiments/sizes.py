"""How much work an experiment is, by the name of its size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much work an experiment is."""

    seeds: int
    train_samples: int
    """Of the overfitting network."""
    factor: int
    """The control has so many times the samples."""
    rounds: int
    """Checkpoints, evenly spaced in updates; the overfitting network is trained for ``factor * rounds`` epochs."""
    validation_samples: int | None
    """At most so many held-out images; None takes all."""
    controls: int
    """Random masks, or random draws of filters, for each comparison."""


SIZES = {
    "smoke": Size(seeds=3, train_samples=200, factor=3, rounds=4, validation_samples=200, controls=5),
    "quick": Size(seeds=6, train_samples=1000, factor=10, rounds=6, validation_samples=2000, controls=20),
    "full": Size(seeds=16, train_samples=2000, factor=10, rounds=8, validation_samples=5000, controls=100),
}
