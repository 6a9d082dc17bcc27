"""The CPU engine against the reference, and against itself: threads, subsets, order, interruption.

Tolerances. float32 carries 1e-7 of a standardised score; lower bounds agree to 1e-4, a tenth of ``tol``.
Labels may differ where two components claim a sample alike.
"""

import subprocess
import sys
import time
import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmmcnn.hardware import threads
from gmmcnn.mixture import cpu, reference
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.sweep import GaussianMixtureSweep

LOWER_BOUND_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
EQUAL_LABELS = {"float32": 0.999, "float64": 1.0}


def fit(scores, initial_labels=None, *, keys=None, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GaussianMixtureSweep(**parameters).fit(scores, initial_labels, keys=keys)


def given_starts(scores, k_max, seed=1):
    standardised = [reference.standardise(filter_scores).points for filter_scores in scores]
    return {
        k: np.array([kmeans_labels(points, k, seed, f, 0) for f, points in enumerate(standardised)])
        for k in range(2, k_max + 1)
    }


def assert_same_mixtures(actual, expected, dtype, rtol):
    np.testing.assert_allclose(actual.lower_bound_, expected.lower_bound_, atol=LOWER_BOUND_TOLERANCE[dtype])
    np.testing.assert_array_equal(actual.status_, expected.status_)
    assert (actual.n_components_ == expected.n_components_).mean() >= EQUAL_LABELS[dtype]
    assert (actual.labels_ == expected.labels_).mean() >= EQUAL_LABELS[dtype]
    same = (actual.labels_ == expected.labels_).all(axis=1) & (actual.n_components_ == expected.n_components_)
    scale = np.nanmax(np.abs(expected.means_))
    np.testing.assert_allclose(actual.weights_[same], expected.weights_[same], atol=rtol)
    np.testing.assert_allclose(actual.means_[same], expected.means_[same], atol=rtol * scale)
    np.testing.assert_allclose(actual.covariances_[same], expected.covariances_[same], atol=rtol * scale**2)
    index, wanted = actual.calinski_harabasz_[same].max(axis=1), expected.calinski_harabasz_[same].max(axis=1)
    np.testing.assert_allclose(index, wanted, rtol=1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_reference_on_every_filter_of_a_trained_network(lenet_scores, dtype):
    initial = given_starts(lenet_scores, 10)
    expected = fit(lenet_scores, initial, engine="reference")
    actual = fit(lenet_scores, initial, engine="cpu", dtype=dtype)
    assert_same_mixtures(actual, expected, dtype, rtol=2e-3 if dtype == "float32" else 1e-7)


@pytest.mark.parametrize("n_dims", [1, 4, 8])
def test_equals_reference_in_every_dimension(n_dims):
    rng = np.random.default_rng(n_dims)
    centres = rng.normal(scale=4, size=(3, 4, n_dims))
    mixing = rng.normal(size=(3, 4, n_dims, n_dims))
    member = rng.integers(4, size=(3, 333))
    filters = np.arange(3)[:, None]
    noise = rng.normal(size=(3, 333, n_dims, 1))
    scores = (centres[filters, member] + (mixing[filters, member] @ noise)[..., 0]) * 1e-3
    expected = fit(scores, k_max=5, engine="reference", random_state=4)
    actual = fit(scores, k_max=5, engine="cpu", dtype="float64", random_state=4)
    assert_same_mixtures(actual, expected, "float64", rtol=1e-7)


def test_many_components_and_several_starts(lenet_scores):
    scores = lenet_scores[:3]
    expected = fit(scores, k_min=30, k_max=32, n_init=3, engine="reference")
    actual = fit(scores, k_min=30, k_max=32, n_init=3, engine="cpu", dtype="float64")
    assert_same_mixtures(actual, expected, "float64", rtol=1e-6)
    one_start = fit(scores, k_min=30, k_max=32, engine="cpu", dtype="float64")
    assert (actual.lower_bound_ >= one_start.lower_bound_).all()


def test_more_samples_than_one_fold():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1, 5003, 2)) + 6 * rng.integers(0, 3, size=(1, 5003, 1))
    initial = given_starts(scores, 4)
    expected = fit(scores, initial, k_max=4, engine="reference")
    actual = fit(scores, initial, k_max=4, engine="cpu")
    assert_same_mixtures(actual, expected, "float32", rtol=1e-3)


def test_spikes_needles_and_distant_outliers():
    """A collapsed component far out, a line, and samples at 30 standard deviations: what float32 finds hardest."""
    rng = np.random.default_rng(3)
    broad = rng.normal(size=(300, 2))
    spike = np.array([9.0, -7.0]) + 1e-5 * rng.normal(size=(20, 2))
    needle = np.linspace(-5, 5, 60)[:, None] * [1.0, 1.0] + 1e-4 * rng.normal(size=(60, 2)) + [0, 12]
    scores = np.concatenate([broad, spike, needle, [[-30.0, 25.0], [28.0, 31.0]]])[None]
    initial = given_starts(scores, 8)
    expected = fit(scores, initial, engine="reference", k_max=8)
    actual = fit(scores, initial, engine="cpu", k_max=8)
    np.testing.assert_allclose(actual.lower_bound_, expected.lower_bound_, atol=2e-3)
    assert actual.n_components_ == expected.n_components_
    assert (actual.labels_ == expected.labels_).mean() > 0.99


@pytest.fixture(scope="module")
def whole_sweep(lenet_scores):
    """Fits of all filters at once, on one thread, in blocks as large as they get."""
    return {dtype: fit(lenet_scores, keys=keys_of(lenet_scores), n_init=2, threads=1, dtype=dtype) for dtype in DTYPES}


DTYPES = ("float32", "float64")


def keys_of(scores):
    return np.arange(len(scores), dtype=np.uint64) * np.uint64(2**40 + 1)


@settings(max_examples=15)
@given(
    order=st.permutations(range(20)),
    n_filters=st.integers(1, 20),
    workers=st.integers(1, 3),
    samples_per_block=st.sampled_from([1, 3000, cpu.SAMPLES_PER_BLOCK]),
    blocks_per_thread=st.sampled_from([1, threads.BLOCKS_PER_THREAD]),
    dtype=st.sampled_from(DTYPES),
)
def test_no_result_depends_on_order_subset_threads_or_blocks(
    lenet_scores, whole_sweep, order, n_filters, workers, samples_per_block, blocks_per_thread, dtype
):
    some = order[:n_filters]
    with (
        mock.patch.object(cpu, "SAMPLES_PER_BLOCK", samples_per_block),
        mock.patch.object(threads, "BLOCKS_PER_THREAD", blocks_per_thread),
    ):
        actual = fit(lenet_scores[some], keys=keys_of(lenet_scores)[some], n_init=2, threads=workers, dtype=dtype)
    for name in RESULTS:
        np.testing.assert_array_equal(getattr(actual, name), getattr(whole_sweep[dtype], name)[some], err_msg=name)


RESULTS = (
    "status_", "n_components_", "labels_", "calinski_harabasz_", "lower_bound_", "n_iter_", "converged_", "weights_",
    "means_", "covariances_",
)  # fmt: skip


def test_seed_and_key_choose_the_start(lenet_scores):
    base = fit(lenet_scores)
    assert (fit(lenet_scores).lower_bound_ == base.lower_bound_).all()
    assert (fit(lenet_scores, random_state=1).lower_bound_ != base.lower_bound_).any()
    assert (fit(lenet_scores, keys=np.arange(len(lenet_scores)) + 5).lower_bound_ != base.lower_bound_).any()


def test_results_do_not_depend_on_the_unit_of_the_scores(lenet_scores):
    scores = lenet_scores[:6]
    base, scaled = fit(scores), fit(scores * 2.0**20)
    np.testing.assert_array_equal(base.labels_, scaled.labels_)
    np.testing.assert_allclose(base.lower_bound_ - 2 * 20 * np.log(2), scaled.lower_bound_, rtol=1e-9)
    np.testing.assert_allclose(base.means_ * 2.0**20, scaled.means_, rtol=1e-9)


def test_cached_code_starts_quickly(tmp_path):
    """Of two processes with one cache, the second compiles nothing."""
    program = (
        "import time, numpy as np; from gmmcnn.mixture.sweep import GaussianMixtureSweep as S\n"
        "x = np.random.default_rng(0).normal(size=(2, 50, 1)); t = time.process_time()\n"
        "S(k_max=3, engine='cpu').fit(x); print(time.process_time() - t)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    first, second = (
        float(subprocess.run(command, env={"NUMBA_CACHE_DIR": str(tmp_path)}, capture_output=True, check=True).stdout)
        for _ in range(2)
    )
    assert first > 3  # or else nothing was compiled, and nothing is tested
    assert second < 3


def test_interrupt_stops_between_blocks():
    program = (
        "import numpy as np, signal; from gmmcnn.mixture.sweep import GaussianMixtureSweep as S\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored\n"
        "S(k_max=3).fit(np.random.default_rng(0).normal(size=(1, 50, 2))); print('ready', flush=True)\n"
        "S(n_init=200, tol=0).fit(np.random.default_rng(0).normal(size=(500, 1000, 2)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(2)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
