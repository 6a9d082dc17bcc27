"""Directions in padded rows."""

import numpy as np

from gmmcnn.constants import MAX_DIMS
from gmmcnn.hardware.vectors import aligned_empty
from gmmcnn.principal_components.orthogonal import (
    GROUP,
    SPARE_DIRECTIONS,
    block_size,
    hashed,
    orthonormalise,
    scale_exponent,
)


def test_a_block_has_directions_to_spare_and_is_whole_groups():
    assert [block_size(d) for d in (1, 2, 3, 6, 7, 8)] == [4, 4, 8, 8, 12, 12]
    for d in range(1, MAX_DIMS + 1):
        assert block_size(d) >= d + SPARE_DIRECTIONS
        assert block_size(d) % GROUP == 0


def test_rows_become_orthonormal_and_what_lies_in_the_span_of_others_zero():
    width = 32
    rows = aligned_empty(4 * width, np.float64)
    rows[:] = np.random.default_rng(0).normal(size=4 * width)
    rows[2 * width : 3 * width] = rows[:width] - 2 * rows[width : 2 * width]
    assert orthonormalise(rows, 0, 4, width, 1e-12) == 3
    q = rows.reshape(4, width)
    np.testing.assert_allclose(q @ q.T, np.diag([1.0, 1.0, 0.0, 1.0]), atol=1e-15)


def test_hashed_numbers_are_spread_evenly():
    x = np.array([hashed(i) for i in range(4000)])
    assert -1 <= x.min() < x.max() < 1
    assert abs(x.mean()) < 0.03  # three standard errors
    assert abs(x.var() - 1 / 3) < 0.02


def test_a_power_of_two_brings_every_number_near_one():
    for number in (1e-300, 3e-5, 0.5, 1.0, 7e11, 1e300):
        assert 0.5 <= number * 2.0 ** scale_exponent(number) < 1
