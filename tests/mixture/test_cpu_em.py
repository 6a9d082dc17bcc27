"""Each compiled step of EM against the same step of the reference, in float64 and two dimensions."""

import numpy as np
import pytest

from gmmcnn.constants import MIN_VARIANCE
from gmmcnn.hardware.vectors import aligned_empty, lanes
from gmmcnn.mixture import cpu, cpu_em, reference
from gmmcnn.mixture.cpu_layout import EMSettings, Samples, Workspace, entry, n_numbers

D, K, N = 2, 3, 83
DIMS = (0.0,) * D
TRIANGLE = [(i, j) for i in range(D) for j in range(i + 1)]
REG_COVAR = 1e-4
SETTINGS = EMSettings(2, 1, 1e-3, 100, REG_COVAR, REG_COVAR, np.uint64(0), 2.0**-52)


def triangle(matrix: np.ndarray) -> np.ndarray:
    """Lower triangle by rows."""
    return np.array([matrix[i, j] for i in range(len(matrix)) for j in range(i + 1)])


@pytest.fixture
def points() -> np.ndarray:
    """Three groups, and three samples so far from all that their densities are no numbers of float64."""
    rng = np.random.default_rng(0)
    groups = np.array([[0, 0], [4, 1], [-3, 5]])[rng.integers(0, 3, N - 3)] + rng.normal(size=(N - 3, 2))
    return np.concatenate([groups, [[90.0, -80], [-70, -95], [60, 60]]])


@pytest.fixture
def started(points) -> tuple[Samples, Workspace, np.ndarray]:
    """Samples, a workspace with hard labels and centres near their means, and the labels."""
    stride = -(-N // lanes("float64")) * lanes("float64")
    rows = aligned_empty(D * stride, "float64")
    rows[:] = 0
    rows.reshape(D, stride)[:, :N] = points.T
    space = cpu.workspace(D, K, stride, np.dtype("float64"))
    labels = np.arange(N) % K
    space.labels[:] = -1
    space.labels[:N] = labels
    space.centres[:] = np.array([points[labels == k].mean(axis=0) + 0.1 for k in range(K)]).ravel()
    cpu_em.set_nothing(DIMS, K, SETTINGS.min_pivot, space)
    cpu_em.set_centres(DIMS, K, space)
    cpu_em.hard_sums(Samples(rows, N, stride, DIMS), K, space)
    return Samples(rows, N, stride, DIMS), space, labels


def mixture_in(space: Workspace) -> reference.Mixture:
    numbers = space.mixture.reshape(K, -1)
    factors = np.zeros((K, D, D))
    for i, j in TRIANGLE:
        factors[:, i, j] = numbers[:, 1 + D + entry(i, j)]
    return reference.Mixture(numbers[:, 0].copy(), numbers[:, 1 : 1 + D].copy(), factors)


def assert_same(found: reference.Mixture, expected: reference.Mixture) -> None:
    for name in reference.Mixture._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12, err_msg=name)


NOTHING = reference.Mixture(np.zeros(K), np.zeros((K, D)), np.sqrt(REG_COVAR) * np.broadcast_to(np.eye(D), (K, D, D)))


def test_sums_of_hard_labels_are_moments_around_the_centres(started, points):
    _, space, labels = started
    sums, centres = space.sums.reshape(K, -1), space.centres.reshape(K, D)
    for k in range(K):
        u = points[labels == k] - centres[k]
        expected = np.concatenate([[len(u)], u.sum(axis=0), triangle(u.T @ u)])
        np.testing.assert_allclose(sums[k], expected, rtol=1e-12, atol=1e-9)


def test_every_step_is_that_of_the_reference(started, points):
    """M on hard labels, then three rounds of E and M; samples far out take the way without underflow."""
    samples, space, labels = started
    shift = cpu_em.maximise(samples, K, SETTINGS, space)
    expected = reference.maximise(points, np.eye(K)[labels], NOTHING, REG_COVAR)
    assert_same(mixture_in(space), expected)
    for _ in range(3):
        cpu_em.predict(samples, K, space.constants, space.labels)
        np.testing.assert_array_equal(space.labels[:N], reference.predict(points, expected))
        assert (space.labels[N:] == -1).all()
        log2_likelihood = cpu_em.expect_and_maximise(samples, K, space)
        responsibilities, lower_bound = reference.expect(points, expected)
        assert (log2_likelihood / N + shift) * np.log(2) == pytest.approx(lower_bound, rel=1e-10)
        np.testing.assert_allclose(space.sums.reshape(K, -1)[:, 0], responsibilities.sum(axis=0), rtol=1e-9)
        shift = cpu_em.maximise(samples, K, SETTINGS, space)
        expected = reference.maximise(points, responsibilities, expected, REG_COVAR)
        assert_same(mixture_in(space), expected)


def test_constants_whiten_and_hold_the_logarithm_of_the_density_at_the_mean(started, points):
    """u = A x + b, with log2(π N(x)) = h − |u|² + shift; the largest h is zero, so that nothing overflows."""
    samples, space, _ = started
    shift = cpu_em.maximise(samples, K, SETTINGS, space)
    constants, mixture = space.constants.reshape(K, -1), mixture_in(space)
    assert constants[:, 0].max() == 0
    for k in range(K):
        factor = np.zeros((D, D))
        for i, j in TRIANGLE:
            factor[i, j] = constants[k, 1 + D + entry(i, j)]
        u = points @ factor.T + constants[k, 1 : 1 + D]
        log2_joint = constants[k, 0] - (u**2).sum(axis=1) + shift
        np.testing.assert_allclose(log2_joint * np.log(2), reference.log_joint(points, mixture)[:, k], rtol=1e-9)


def test_a_component_without_samples_keeps_its_place_and_weight_zero(started):
    samples, space, labels = started
    space.labels[:N] = np.where(labels == 1, 0, labels)
    cpu_em.hard_sums(samples, K, space)
    cpu_em.maximise(samples, K, SETTINGS, space)
    found = mixture_in(space)
    assert found.weights[1] == 0
    assert found.weights.sum() == pytest.approx(1)
    assert not found.means[1].any()
    np.testing.assert_array_equal(found.cholesky[1], NOTHING.cholesky[1])
    assert np.isneginf(space.constants.reshape(K, -1)[1, 0])
    cpu_em.expect_and_maximise(samples, K, space)
    assert not space.sums.reshape(K, -1)[1, 0]
    cpu_em.predict(samples, K, space.constants, space.labels)
    assert 1 not in space.labels[:N]


@pytest.mark.parametrize("d", [1, 2, 5])
def test_small_matrices_are_those_of_numpy(d):
    rng, dims = np.random.default_rng(d), (0.0,) * d
    lower = np.tril(rng.normal(size=(d, d))) + 3 * np.eye(d)
    symmetric = rng.normal(size=(d, d))
    symmetric = symmetric @ symmetric.T + np.eye(d)
    inverse = np.zeros(d * d)
    cpu_em.invert_triangle(np.concatenate([[7.0], triangle(lower)]), 1, dims, inverse)
    np.testing.assert_allclose(np.tril(inverse.reshape(d, d)), np.linalg.inv(lower), atol=1e-12)
    matrix = symmetric.ravel().copy()
    cpu_em.congruence(lower.ravel().copy(), matrix, dims, np.empty(d * d))
    np.testing.assert_allclose(matrix.reshape(d, d), lower @ symmetric @ lower.T, atol=1e-9)
    factor = np.full(2 + len(triangle(lower)), 7.0)
    determinant = cpu_em.cholesky(symmetric.ravel().copy(), dims, SETTINGS, factor, 2)
    expected = np.linalg.cholesky(symmetric + REG_COVAR * np.eye(d))
    np.testing.assert_allclose(factor[2:], triangle(expected), rtol=1e-9, atol=1e-12)
    assert determinant == pytest.approx(np.prod(np.diagonal(expected)))
    assert factor[:2].tolist() == [7, 7]


def test_pivots_are_clamped_from_below():
    least = EMSettings(2, 1, 1e-3, 100, 0.0, MIN_VARIANCE, np.uint64(0), 2.0**-52)
    factor = np.zeros(3)
    determinant = cpu_em.cholesky(np.array([4.0, 2.0, 2.0, 1.0]), DIMS, least, factor, 0)
    np.testing.assert_allclose(factor, [2, 1, np.sqrt(MIN_VARIANCE)])
    assert determinant == pytest.approx(2 * np.sqrt(MIN_VARIANCE))


@pytest.mark.parametrize(("n_dims", "n_components"), [(1, 1), (2, 10), (8, 32)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_block_fits_into_the_room_that_is_made_for_it(n_dims, n_components, dtype):
    work = aligned_empty(cpu_em.block_size(n_dims, n_components, np.dtype(dtype).itemsize), dtype)
    block = cpu_em.block_of(work, (0.0,) * n_dims, n_components)
    assert block.row % lanes(dtype) == 0
    assert block.likelihood_at >= n_components * (n_dims + 1) * block.row
    assert block.inverse_at - block.likelihood_at >= block.row
    assert block.partial_at - block.inverse_at >= block.row
    assert block.partial_at + n_components * n_numbers(n_dims) * lanes(dtype) <= len(work)
