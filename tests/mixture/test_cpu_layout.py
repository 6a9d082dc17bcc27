"""The order of numbers in the kernels' flat arrays."""

import numpy as np
import pytest
from numba import njit

from gmmcnn.constants import MAX_DIMS
from gmmcnn.mixture.cpu_layout import entry, n_numbers

every_d = pytest.mark.parametrize("n_dims", range(1, MAX_DIMS + 1))


@every_d
def test_a_component_is_a_scalar_a_vector_and_a_lower_triangle(n_dims):
    assert n_numbers(n_dims) == 1 + n_dims + np.tril_indices(n_dims)[0].size


@every_d
def test_entries_are_those_of_the_lower_triangle_by_rows(n_dims):
    rows, columns = np.tril_indices(n_dims)
    assert [entry(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)] == list(range(len(rows)))


def test_compiled_they_are_the_same():
    @njit
    def of(i, j):
        return entry(i, j), n_numbers(i)

    assert [of(i, j) for i in range(1, 5) for j in range(i + 1)] == [
        (entry(i, j), n_numbers(i)) for i in range(1, 5) for j in range(i + 1)
    ]
