"""Every kernel against its twin in the package, for every dimension, ragged sizes, one and many blocks and every route.

Tolerances: float32 carries 6e-8 a number. Sums over up to 1024 samples stay below 1e-6 of the scale of their terms, a
log-likelihood below 1e-5 (it adds a log-determinant), and the bar for the whole fit is 1e-4.
"""

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from cuda_shim.device import SCHEDULES, device

from gmmcnn import constants
from gmmcnn.featuremaps.activation import activation_statistics
from gmmcnn.hardware import gpu, kernel_loader
from gmmcnn.mixture import calinski_harabasz as twin
from gmmcnn.mixture import cuda, reference
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.problem import MixtureSettings, SweepResult
from gmmcnn.mixture.random_numbers import uniforms
from gmmcnn.principal_components import cuda as pca_cuda
from gmmcnn.principal_components.pca import pca

CASES: dict[str, Callable] = {}


def case(name: str) -> Callable[[Callable], Callable]:
    def register(test: Callable) -> Callable:
        CASES[name] = test
        return test

    return register


def sources() -> list[str]:
    return sorted(path.name for path in files("gmmcnn.kernels").iterdir() if path.name.endswith((".cu", ".cuh")))


def test_every_kernel_has_a_parity_case() -> None:
    kernels = {
        f"{file.removesuffix('.cu')}.{name}"
        for file in sources()
        for name in re.findall(
            r'extern "C" __global__ .*?(\w+)\(\n', files("gmmcnn.kernels").joinpath(file).read_text()
        )
    }
    assert len(kernels) >= 9
    assert kernels == set(CASES)


NOT_IN_KERNELS = (
    "MAX_DIMS", "MAX_STARTS", "PHILOX_MULTIPLIERS", "PHILOX_KEY_STEPS", "SMALL_SHARE", "STRICT", "SATURATED",
)  # fmt: skip


def test_constants_agree_between_kernels_and_package() -> None:
    text = "".join(files("gmmcnn.kernels").joinpath(file).read_text() for file in sources())
    in_kernels = dict(re.findall(r"(\w+) = (0x[0-9A-F]+|[-0-9.e]+)[,;]", text))
    for name, value in vars(constants).items():
        if name.isupper() and name not in NOT_IN_KERNELS:
            assert float(in_kernels[name]) == value, name
    for i in range(2):
        assert int(in_kernels[f"PHILOX_MULTIPLIER_{i}"], 16) == constants.PHILOX_MULTIPLIERS[i]
        assert int(in_kernels[f"PHILOX_KEY_STEP_{i}"], 16) == constants.PHILOX_KEY_STEPS[i]
    assert (int(in_kernels["TILE"]), int(in_kernels["MAX_THREADS"])) == (cuda.TILE, cuda.MAX_THREADS)
    assert (int(in_kernels["CHUNK"]), int(in_kernels["ROWS"])) == (pca_cuda.CHUNK, pca_cuda.ROWS)
    assert int(in_kernels["MAX_TRIALS"]) == 2 + int(np.log(constants.MAX_COMPONENTS))
    assert "fast" not in " ".join(kernel_loader.COMPILER_OPTIONS)
    assert uniforms(0, 0, 2, constants.MAX_STARTS - 1, 1).size  # a start's number fits into its counter word
    assert (constants.MAX_STARTS - 1) * 64 + 63 < 2**32


def grouped_scores(n_filters: int, n_samples: int, n_dims: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Samples in four groups of different shape, filter by filter at another place and scale."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(n_filters, 4, n_dims))
    shapes = rng.normal(size=(n_filters, 4, n_dims, n_dims)) * 0.6
    group = rng.integers(0, 4, (n_filters, n_samples))
    every = np.arange(n_filters)[:, None]
    noise = np.einsum("fnij,fnj->fni", shapes[every, group], rng.normal(size=(n_filters, n_samples, n_dims)))
    return ((centres[every, group] + noise) * 10.0 ** rng.uniform(-2, 2, (n_filters, 1, 1)) + 1).astype(dtype)


def keys(n_filters: int) -> np.ndarray:
    return np.arange(n_filters, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


# ---- small kernels, one by one ---------------------------------------------------------------------------------------


@case("gmm_em.standardise")
@pytest.mark.parametrize(("n_samples", "n_dims", "dtype"), [(1, 1, "float32"), (301, 2, "float32"), (65, 8, "float64")])
def test_standardise(cupy: Any, n_samples: int, n_dims: int, dtype: str) -> None:
    scores = grouped_scores(5, n_samples, n_dims, dtype)
    scores[1] = 3.5
    scores[2] = scores[2, :1]
    scores[2, -1] *= 2  # two distinct samples
    scores[3, ::2] = scores[3, :1]
    k_max = 7
    points, scale = cupy.empty((5, n_dims, n_samples), dtype), cupy.empty(5)
    centre, n_distinct = cupy.empty((5, n_dims)), cupy.empty(5, np.int32)
    real = "float" if dtype == "float32" else "double"
    kernel = kernel_loader.kernel("gmm_em", "standardise", DIMS=n_dims, REAL=real, SCORE=real, MAX_K=16, RESIDENT=1)
    eps = np.finfo(dtype).eps
    arguments = (
        cupy.asarray(scores),
        np.int32(n_samples),
        np.int32(k_max),
        np.float64(eps),
        points,
        centre,
        scale,
        n_distinct,
    )
    kernel((5,), (64,), arguments)
    for f in range(5):
        expected = reference.standardise(scores[f].astype(np.float64), float(eps))
        found = int(cupy.asnumpy(n_distinct)[f])
        if expected is None:
            assert found == 0
            assert not cupy.asnumpy(points)[f].any()
            continue
        assert found == min(k_max, len(np.unique(scores[f], axis=0)))
        np.testing.assert_allclose(cupy.asnumpy(points)[f].T, expected.points, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(cupy.asnumpy(centre)[f], expected.centre, rtol=1e-12)
        np.testing.assert_allclose(cupy.asnumpy(scale)[f], expected.scale, rtol=1e-12)


SIZES = [(2, 1, "float32"), (37, 49, "float32"), (5, 70, "float64")]


@case("activation.activation")
@pytest.mark.parametrize(("n_samples", "n_pixels", "dtype"), SIZES)
def test_activation(cupy: Any, n_samples: int, n_pixels: int, dtype: str) -> None:
    maps = np.random.default_rng(0).normal(size=(6, n_samples, n_pixels)).astype(dtype)
    maps[1] = np.maximum(maps[1] - 2, 0)
    maps[2] = 0
    maps[3] = -np.abs(maps[3])
    maps[4] = -1
    maps[4, 1, -1] = 1e-30  # one value above 0, the last
    found = activation_statistics(cupy.asarray(maps))
    expected = activation_statistics(maps)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    np.testing.assert_array_equal(found[1], expected[1])
    alone = [activation_statistics(maps[f : f + 1], engine="cuda") for f in range(6)]
    np.testing.assert_array_equal(found, np.concatenate(alone, axis=1))


@case("calinski_harabasz.calinski_harabasz")
@pytest.mark.parametrize(("n_samples", "n_dims", "real"), [(2, 1, "float"), (301, 2, "float"), (1025, 8, "double")])
def test_calinski_harabasz(cupy: Any, n_samples: int, n_dims: int, real: str) -> None:
    k_max, n_labellings = 9, 5
    scores = grouped_scores(4, n_samples, n_dims, {"float": "float32", "double": "float64"}[real])
    scores -= scores.mean(axis=1, keepdims=True)
    labels = np.random.default_rng(1).integers(0, k_max, (4, n_labellings, n_samples)).astype(np.int8)
    labels[0, 0] = 3  # one cluster
    labels[0, 1] = -1  # none
    labels[1, 2] = np.arange(n_samples) % 2 * 8  # seven of them empty
    scores[3] = np.where(labels[3, 0][:, None] == labels[3, 0, 0], 1.0, -1.0)
    labels[3, 0] = labels[3, 0] == labels[3, 0, 0]  # no spread within
    index = cupy.empty((4, n_labellings))
    points = cupy.asarray(np.ascontiguousarray(scores.swapaxes(1, 2)))
    kernel = kernel_loader.kernel("calinski_harabasz", "calinski_harabasz", DIMS=n_dims, REAL=real)
    eps = np.finfo(scores.dtype).eps
    sizes = np.int32(k_max), np.int32(n_samples), np.float64(eps)
    kernel((4, n_labellings), (128,), (points, cupy.asarray(labels), *sizes, index))
    expected = np.stack([twin.calinski_harabasz(scores, np.maximum(labels[:, i], 0), k_max) for i in range(5)], axis=1)
    expected[0, 1] = np.nan
    np.testing.assert_allclose(cupy.asnumpy(index), expected, rtol=1e-9)
    assert np.isnan(expected[3, 0]) if n_samples == 2 else np.isposinf(expected[3, 0])


@case("calinski_harabasz.choose_n_components")
def test_choose_n_components(cupy: Any) -> None:
    index = np.random.default_rng(0).uniform(1, 9, (300, 4))
    index[np.random.default_rng(1).random(index.shape) < 0.4] = np.nan
    index[0] = np.nan
    index[1] = [5, 5 * (1 + 1e-10), 3, 5 * (1 + 1e-8)]
    index[2] = [5, 5 * (1 + 1e-10), 3, np.nan]
    index[3] = [7, np.nan, np.inf, np.inf]
    chosen = cupy.empty(300, np.int32)
    kernel = kernel_loader.kernel("calinski_harabasz", "choose_n_components", DIMS=2, REAL="float")
    kernel((3,), (128,), (cupy.asarray(index), np.int32(2), np.int32(4), np.int32(300), chosen))
    assert np.array_equal(cupy.asnumpy(chosen), twin.choose_n_components(index, 2))
    assert cupy.asnumpy(chosen)[:4].tolist() == [0, 5, 2, 4]


def test_uniform_random_numbers(cupy: Any) -> None:
    source = (
        files("gmmcnn.kernels").joinpath("common.cuh").read_text()
        + """
    extern "C" __global__ void draw(unsigned long long seed, unsigned long long key, int k, int start, double* out) {
        out[threadIdx.x] = uniform(Stream{seed, key, k, start}, threadIdx.x);
    }"""
    )
    kernel = cupy.RawModule(code=source, options=kernel_loader.options()).get_function("draw")
    for seed, key, k, start in [
        (0, 0, 2, 0),
        (5, 2**63 + 11, 7, 3),
        (2**64 - 1, 2**64 - 1, 32, constants.MAX_STARTS - 1),
    ]:
        out = cupy.empty(64)
        kernel((1,), (64,), (np.uint64(seed), np.uint64(key), np.int32(k), np.int32(start), out))
        assert np.array_equal(cupy.asnumpy(out), uniforms(seed, key, k, start, 64))


# ---- the fit ---------------------------------------------------------------------------------------------------------

ROUTES = [  # d, N, K, samples in shared memory, dtype: ragged, short and many-tiled N; both sizes of K
    (1, 333, 2, True, "float32"),
    (2, 33, 3, True, "float32"),
    (2, 1030, 5, True, "float32"),
    (2, 2500, 4, False, "float32"),
    (2, 333, 19, True, "float32"),
    (2, 200, 32, False, "float32"),
    (2, 333, 3, True, "float64"),
    (3, 333, 4, False, "float32"),
    (4, 257, 17, True, "float32"),
    (5, 400, 3, False, "float32"),
    (6, 333, 4, True, "float32"),
    (7, 500, 3, False, "float32"),
    (8, 500, 4, True, "float32"),
    (8, 500, 4, True, "float64"),
]


def route(monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    monkeypatch.setattr(gpu, "shared_bytes_per_multiprocessor", lambda: 10**6 if resident else 0)


def assert_bitwise_equal(one: SweepResult, other: SweepResult) -> None:
    for name, array in vars(one).items():
        assert np.array_equal(array, getattr(other, name), equal_nan=array.dtype.kind == "f"), name


@case("gmm_em.fit_mixtures")
@pytest.mark.parametrize(("n_dims", "n_samples", "k", "resident", "dtype"), ROUTES)
def test_fit_from_the_same_start(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, n_dims: int, n_samples: int, k: int, resident: bool, dtype: str
) -> None:
    route(monkeypatch, resident)
    scores = grouped_scores(3, n_samples, n_dims, dtype)
    labels = np.random.default_rng(0).integers(0, k, (3, n_samples)).astype(np.int8)
    labels[0, labels[0] == 1] = 0  # a label that occurs nowhere
    settings = MixtureSettings(k_min=k, k_max=k, dtype=dtype, max_iter=12, tol=0)
    fitted = cuda.fit_mixtures(scores, keys(3), settings, {k: labels})
    expected = reference.fit_mixtures(scores, keys(3), settings, {k: labels})
    tolerance = 1e-5 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(fitted.lower_bound, expected.lower_bound, atol=10 * tolerance, rtol=tolerance)
    assert np.array_equal(fitted.n_iter, expected.n_iter)
    assert (fitted.labels == expected.labels).mean() >= 0.999
    np.testing.assert_allclose(fitted.weights, expected.weights, atol=100 * tolerance)
    spread = scores.std(axis=1).max(axis=1)[:, None, None]
    np.testing.assert_allclose(fitted.means / spread, expected.means / spread, atol=1000 * tolerance)


@pytest.mark.parametrize(("n_dims", "n_samples", "k", "resident", "dtype"), ROUTES[:5] + ROUTES[-2:-1])
def test_fit_from_its_own_start(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, n_dims: int, n_samples: int, k: int, resident: bool, dtype: str
) -> None:
    """k-means++ draws the reference's samples and Lloyd finds its centres: the fits are the same fits."""
    route(monkeypatch, resident)
    scores = grouped_scores(6, n_samples, n_dims, dtype)
    settings = MixtureSettings(k_min=k, k_max=k, dtype=dtype, seed=3)
    fitted = cuda.fit_mixtures(scores, keys(6), settings, {})
    expected = reference.fit_mixtures(scores, keys(6), settings, {})
    np.testing.assert_allclose(fitted.lower_bound, expected.lower_bound, atol=1e-4)
    assert (fitted.labels == expected.labels).mean() >= 0.999


@case("gmm_em.predict")
def test_predict_takes_the_best_start_and_labels_by_it(cupy: Any) -> None:
    scores = grouped_scores(4, 120, 2)
    both = MixtureSettings(k_min=3, k_max=4, n_init=3)
    fitted = cuda.fit_mixtures(scores, keys(4), both, {})
    for f in range(4):
        points = reference.standardise(scores[f].astype(np.float64)).points
        for i, k in enumerate((3, 4)):
            starts = [kmeans_labels(points, k, 0, int(keys(4)[f]), start) for start in range(3)]
            fits = [reference.expectation_maximisation(points, labels, k, both) for labels in starts]
            best = max(fits, key=lambda fit: fit.lower_bound)
            index = twin.calinski_harabasz(points[None], reference.predict(points, best.mixture)[None], k)[0]
            # Starts that end in the same optimum may be told apart by rounding: the index then agrees all the same.
            np.testing.assert_allclose(fitted.calinski_harabasz[f, i], index, rtol=1e-5)


@pytest.mark.parametrize(
    ("n_dims", "n_samples", "k", "resident"),
    [(1, 70, 3, True), (2, 1030, 3, False), (2, 200, 17, True), (8, 65, 3, True)],
)
def test_bits_do_not_depend_on_the_schedule_and_the_check_mode_is_silent(
    fibers: Any, monkeypatch: pytest.MonkeyPatch, n_dims: int, n_samples: int, k: int, resident: bool
) -> None:
    route(monkeypatch, resident)
    scores = grouped_scores(2, n_samples, n_dims)
    scores[1, 1:] = scores[1, :1]  # two distinct samples only
    settings = (
        MixtureSettings(k_min=2, k_max=2, max_iter=4, n_init=2)
        if k == 3
        else MixtureSettings(k_min=k, k_max=k, max_iter=2)
    )
    results = []
    for schedule in SCHEDULES:
        with device(schedule=schedule, seed=5):
            results.append(cuda.fit_mixtures(scores, keys(2), settings, {}))
    with device(schedule="random", check=True):
        results.append(cuda.fit_mixtures(scores, keys(2), settings, {}))
    for result in results[1:]:
        assert_bitwise_equal(results[0], result)


# ---- principal components --------------------------------------------------------------------------------------------


def relu_maps(n_filters: int, n_samples: int, n_pixels: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Maps with a falling spectrum and many zeros; filter 0 is constant."""
    rng = np.random.default_rng(seed)
    rank = min(n_pixels, 12)
    patterns = np.exp(-np.arange(rank) / 3)[:, None] * rng.normal(size=(n_filters, rank, n_pixels))
    maps = rng.normal(size=(n_filters, n_samples, rank)) @ patterns + 0.05 * rng.normal(
        size=(n_filters, n_samples, n_pixels)
    )
    maps[0] = 3
    return np.maximum(maps, 0).astype(dtype)


@case("pca.column_means")
@case("pca.project")
@case("pca.backproject")
@pytest.mark.parametrize(
    ("n_samples", "n_pixels", "columns", "dtype"),
    [(1, 1, 8, "float32"), (37, 70, 8, "float32"), (1030, 33, 12, "float32"), (37, 70, 16, "float64")],
)
def test_passes_over_the_maps(cupy: Any, n_samples: int, n_pixels: int, columns: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    maps, basis = relu_maps(3, n_samples, n_pixels, dtype), rng.normal(size=(3, n_pixels, columns)).astype(dtype)
    n_chunks, n, p = -(-n_samples // pca_cuda.CHUNK), np.int32(n_samples), np.int32(n_pixels)
    macros = {"REAL": {"float32": "float", "float64": "double"}[dtype], "COLUMNS": columns}
    names = "column_means", "project", "backproject"
    column_means, project, backproject = (kernel_loader.kernel("pca", name, **macros) for name in names)
    done = np.array([False, False, True])
    means, projected = cupy.empty((3, n_pixels), dtype), cupy.zeros((3, n_samples, columns), dtype)
    partial = cupy.zeros((3, n_chunks, n_pixels, columns), dtype)
    scale, rounding = np.array([0.25, 1, 4], dtype), cupy.empty((3, n_pixels), dtype)
    inputs = cupy.asarray(maps), cupy.asarray(scale), means, rounding
    column_means((-(-n_pixels // 64), 3), (64,), (*inputs[:2], n, p, means, rounding))
    project((-(-n_samples // 8), 3), (64,), (*inputs, cupy.asarray(basis), cupy.asarray(done), n, p, projected))
    backward = (*inputs, projected, cupy.asarray(done), n, p, np.bool_(False), partial)
    backproject((-(-n_pixels // 64), n_chunks, 3), (64,), backward)

    exact = maps * scale[:, None, None].astype(np.float64)
    centred = exact - exact.mean(axis=1, keepdims=True)
    expected = centred @ basis
    expected[2] = 0  # a filter that is done is left alone
    eps = 100 * np.finfo(dtype).eps
    found = cupy.asnumpy(means).astype(np.float64) + cupy.asnumpy(rounding)
    np.testing.assert_allclose(found, exact.mean(axis=1), rtol=1e-13 if dtype == "float32" else eps)
    np.testing.assert_allclose(cupy.asnumpy(projected), expected, atol=eps * np.abs(exact).max() * n_pixels)
    total = cupy.asnumpy(partial).sum(axis=1)
    np.testing.assert_allclose(
        total, centred.swapaxes(1, 2) @ expected, atol=10 * eps * n_samples * np.abs(exact).max() ** 2
    )


@case("pca.rotate")
@pytest.mark.parametrize(
    ("n_samples", "n_pixels", "n_components", "dtype"),
    [(200, 64, 2, "float32"), (50, 120, 1, "float32"), (30, 1, 2, "float32"), (30, 5, 3, "float32"),
     (2, 40, 2, "float32"), (1, 4, 2, "float32"), (1300, 20, 8, "float32"), (90, 70, 5, "float64")],
)  # fmt: skip
def test_pca_is_the_singular_value_decomposition(
    cupy: Any, n_samples: int, n_pixels: int, n_components: int, dtype: str
) -> None:
    maps = relu_maps(3, n_samples, n_pixels, dtype)
    found = pca_cuda.pca_on_device(maps, n_components)
    expected = pca(maps.astype(np.float64), n_components, engine="reference")
    scale = max(np.abs(expected.scores).max(), 1.0)
    tolerance = (
        1e-4 if dtype == "float32" else 1e-8
    )  # the bar, and a residual of 1e-10 over the gap between eigenvalues
    assert found.scores.dtype == dtype
    np.testing.assert_allclose(found.scores / scale, expected.scores / scale, atol=tolerance)
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-5, atol=1e-6 * scale**2)
    assert not found.scores[0].any()
    assert (found.residual <= pca_cuda.TOLERANCE[dtype]).all()


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [("float32", 1e-37, 0), ("float32", 1e-25, 0), ("float32", 1e19, 0), ("float32", 3e37, 0), ("float32", 1, 1e6),
     ("float32", 1, 1e7), ("float64", 1e-300, 0), ("float64", 1e300, 0), ("float64", 1e-170, 1e7)],
)  # fmt: skip
def test_pca_of_any_scale_and_offset(cupy: Any, dtype: str, scale: float, offset: float) -> None:
    maps = ((relu_maps(2, 60, 40, "float64") + offset) * scale).astype(dtype)
    found = pca_cuda.pca_on_device(maps)
    exact = maps.astype(np.float64) / scale
    expected = pca(exact - exact.mean(axis=1, keepdims=True), engine="reference").scores
    tolerance = 1e-4 if dtype == "float32" else 1e-6
    np.testing.assert_allclose(found.scores / scale, expected, atol=tolerance * np.abs(expected).max())
    assert np.isfinite(found.residual).all()
    assert (found.residual < 1e-4).all()
    assert not found.scores[0].any()


@pytest.mark.parametrize(("n_samples", "n_pixels", "n_components"), [(70, 50, 2), (20, 3, 3), (33, 40, 8)])
def test_pca_bits_do_not_depend_on_the_schedule_and_the_check_mode_is_silent(
    fibers: Any, n_samples: int, n_pixels: int, n_components: int
) -> None:
    maps = relu_maps(2, n_samples, n_pixels)
    expected = pca_cuda.pca_on_device(maps, n_components)
    for changes in ({"schedule": "lifo"}, {"schedule": "random"}, {"schedule": "random", "check": True}):
        with device(**changes):
            found = pca_cuda.pca_on_device(maps, n_components)
        assert np.array_equal(found.scores, expected.scores)
        assert np.array_equal(found.explained_variance, expected.explained_variance)
