"""Sizes that can decide something, and are what the documentation says."""

from pathlib import Path

import pytest

from gmmcnn import config
from gmmcnn.experiments.intervals import MIN_SEEDS
from gmmcnn.experiments.sizes import SIZES

EVIDENCE = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_sizes_are_those_that_can_be_asked_for():
    assert tuple(SIZES) == config.SIZES


def test_all_but_the_smallest_have_seeds_enough_to_decide():
    assert [size.seeds >= MIN_SEEDS for size in SIZES.values()] == [False, True, True]


@pytest.mark.parametrize("name", ["quick", "full"])
def test_the_documentation_says_what_they_are(name):
    size = SIZES[name]
    factor, rounds = size.factor, size.rounds
    numbers = f"{size.seeds} | {size.train_samples:,} | {factor * size.train_samples:,} | {rounds}"
    assert f"| `{name}` | {numbers} | {factor * rounds}, {rounds} |\n" in EVIDENCE
