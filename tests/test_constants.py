"""Properties that the numbers shared by all engines must have; that the kernels repeat them is tested there."""

import math
from pathlib import Path

import numpy as np

from gmmcnn import constants


def test_every_number_is_documented() -> None:
    blocks = Path(constants.__file__).read_text().split("\n\n")
    for name in (name for name in vars(constants) if name.isupper()):
        [block] = [block for block in blocks if f"\n{name} = " in f"\n{block}"]
        assert '"""' in block, name


def test_labels_of_the_largest_mixture_fit_their_type_and_the_random_counter() -> None:
    assert np.iinfo(np.int8).max >= constants.MAX_COMPONENTS
    assert constants.MAX_COMPONENTS < 64  # K takes six bits of the counter, the start the other 26
    assert constants.MAX_STARTS * 64 <= 2**32


def test_thresholds_lie_above_the_rounding_that_they_are_for() -> None:
    """float32 scores carry 6e-8 of their size; float64 sums over a million samples 1e-16 times a thousand."""
    assert np.finfo(np.float32).eps < constants.DEAD_RANGE
    assert np.finfo(np.float32).eps ** 2 < constants.MIN_VARIANCE
    assert np.finfo(np.float64).eps * 1e3 < constants.CH_MIN_WITHIN
    assert math.sqrt(1e6) * np.finfo(np.float64).eps < constants.CH_TIE
    assert np.finfo(np.float64).eps < constants.MIN_MEMBERSHIP


def test_philox_multipliers_are_odd_words() -> None:
    for number in (*constants.PHILOX_MULTIPLIERS, *constants.PHILOX_KEY_STEPS):
        assert 2**31 < number < 2**32
    assert all(number % 2 for number in constants.PHILOX_MULTIPLIERS)
    assert constants.PHILOX_ROUNDS == 10
