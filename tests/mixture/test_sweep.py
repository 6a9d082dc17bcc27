"""What every engine owes its callers: degenerate input, errors, scikit-learn's habits."""

import numpy as np
import pytest
from sklearn.base import clone

from gmmcnn.constants import MAX_COMPONENTS, MAX_STARTS
from gmmcnn.errors import CaptureError, ConfigurationError, ConvergenceWarning, EngineError
from gmmcnn.mixture import cpu, reference
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.mixture.sweep import GaussianMixtureSweep, mixture_engine

pytestmark = pytest.mark.filterwarnings("ignore::gmmcnn.errors.ConvergenceWarning")

engines = pytest.mark.parametrize("engine", ["cpu", "reference"])


@engines
@pytest.mark.parametrize("value", [0.0, 5.3, -1e30])
def test_constant_scores_are_dead(engine, value):
    sweep = GaussianMixtureSweep(engine=engine).fit(np.full((2, 30, 2), value))
    assert list(sweep.status_) == ["dead", "dead"]
    assert (sweep.n_components_ == 0).all()
    assert (sweep.labels_ == -1).all()
    assert np.isnan(sweep.calinski_harabasz_).all()
    assert np.isnan(sweep.lower_bound_).all()
    assert np.isnan(sweep.means_).all()
    assert not sweep.n_iter_.any()


@engines
def test_fewer_distinct_points_than_components(engine):
    scores = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), [20, 5, 1], axis=0)[None]
    sweep = GaussianMixtureSweep(k_max=6, engine=engine).fit(scores)
    assert sweep.status_[0] == "perfectly_separated"
    assert sweep.n_components_[0] == 3  # K = 3 has no spread within clusters, more cannot be fitted
    assert (sweep.n_iter_[0] > 0).tolist() == [True, True, False, False, False]
    assert np.isposinf(sweep.calinski_harabasz_[0, 1])
    assert np.isnan(sweep.calinski_harabasz_[0, 2:]).all()
    assert np.isfinite(sweep.lower_bound_[0, :2]).all()
    assert np.isnan(sweep.lower_bound_[0, 2:]).all()
    few = GaussianMixtureSweep(k_min=4, k_max=6, engine=engine).fit(scores)
    assert few.status_[0] == "too_few_distinct"


@engines
@pytest.mark.parametrize("unit", [1.0, 1e-300, 1e300])
def test_two_distinct_points_are_perfectly_separated(engine, unit):
    scores = np.repeat([[0.0], [1.0]], 10, axis=0)[None] * unit
    sweep = GaussianMixtureSweep(engine=engine).fit(scores)
    assert sweep.status_[0] == "perfectly_separated"
    assert sweep.n_components_[0] == 2
    assert np.isposinf(sweep.calinski_harabasz_[0, 0])
    assert sorted(np.bincount(sweep.labels_[0])) == [10, 10]
    np.testing.assert_allclose(np.sort(sweep.means_[0, :2, 0]) / unit, [0, 1], atol=1e-6)


@engines
@pytest.mark.parametrize("n_samples", [1, 2, 3, 5])
def test_fewer_samples_than_components(engine, n_samples):
    scores = np.random.default_rng(0).normal(size=(1, n_samples, 2))
    sweep = GaussianMixtureSweep(engine=engine).fit(scores)
    expected = {1: "dead", 2: "undefined", 3: "ok", 5: "ok"}[n_samples]
    assert sweep.status_[0] == expected
    assert sweep.n_components_[0] < max(n_samples, 1)


@engines
def test_zero_columns_do_no_harm(engine):
    """A map of one pixel has one component; the second score is zero throughout."""
    scores = np.zeros((1, 60, 2))
    scores[0, :, 0] = np.repeat([-5, 0, 5], 20) + np.random.default_rng(0).normal(size=60)
    sweep = GaussianMixtureSweep(engine=engine).fit(scores)
    assert sweep.n_components_[0] >= 3
    assert len(np.unique(sweep.labels_[0])) == sweep.n_components_[0]
    assert np.isfinite(sweep.lower_bound_).all()


@engines
def test_a_filter_active_on_one_sample(engine):
    scores = np.zeros((1, 200, 2))
    scores[0, 17] = [3.0, 1.0]
    scores -= scores.mean(axis=1, keepdims=True)
    sweep = GaussianMixtureSweep(engine=engine).fit(scores)
    assert sweep.status_[0] == "perfectly_separated"
    assert sweep.n_components_[0] == 2
    assert (sweep.labels_[0] != sweep.labels_[0, 0]).sum() == 1
    assert sweep.labels_[0, 17] != sweep.labels_[0, 0]


@engines
@pytest.mark.parametrize(("dtype", "offset"), [("float32", 1e7), ("float64", 1e7), ("float64", 1e14)])
def test_scores_far_from_zero_are_not_dead(engine, dtype, offset):
    groups = np.repeat([[0.0, 0.0], [40.0, 8.0]], 30, axis=0) + np.random.default_rng(0).normal(size=(60, 2))
    sweep = GaussianMixtureSweep(k_max=4, engine=engine).fit((groups + offset)[None].astype(dtype))
    assert sweep.status_[0] == "ok"
    assert sweep.n_components_[0] >= 2
    assert set(sweep.labels_[0, :30]).isdisjoint(sweep.labels_[0, 30:])


@engines
@pytest.mark.parametrize("distance", [1e4, 1e8, 1e12])
def test_clusters_however_far_apart_are_found(engine, distance):
    scores = np.random.default_rng(0).normal(size=(1, 80, 2))
    scores[0, 40:, 0] += distance
    sweep = GaussianMixtureSweep(k_max=3, engine=engine).fit(scores)
    assert sweep.status_[0] in ("ok", "perfectly_separated")
    assert set(sweep.labels_[0, :40]).isdisjoint(sweep.labels_[0, 40:])


@pytest.mark.parametrize("unit", [2.0**-1000, 2.0**-40, 2.0**1000])
@engines
def test_the_unit_of_the_scores_does_not_matter(engine, unit):
    scores = np.random.default_rng(0).normal(size=(2, 60, 2)) + np.repeat([[0], [6]], 30, axis=0)
    expected = GaussianMixtureSweep(k_max=4, engine=engine).fit(scores)
    found = GaussianMixtureSweep(k_max=4, engine=engine).fit(scores * unit)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    np.testing.assert_array_equal(found.calinski_harabasz_, expected.calinski_harabasz_)
    np.testing.assert_allclose(found.means_, expected.means_ * unit, rtol=1e-12)


@engines
@pytest.mark.parametrize("dtype", [">f8", "int64", "longdouble", "float16"])
def test_scores_of_other_types_are_taken_with_their_values(engine, dtype):
    scores = np.round(100 * (np.random.default_rng(0).normal(size=(1, 60, 2)) + np.repeat([[0], [6]], 30, axis=0)))
    expected = GaussianMixtureSweep(k_max=3, engine=engine).fit(scores.astype(np.float16).astype(float))
    found = GaussianMixtureSweep(k_max=3, engine=engine).fit(scores.astype(np.float16).astype(dtype))
    np.testing.assert_array_equal(found.labels_, expected.labels_)


def test_no_filters():
    sweep = GaussianMixtureSweep(engine="cpu").fit(np.empty((0, 10, 2)))
    assert sweep.labels_.shape == (0, 10)
    assert sweep.calinski_harabasz_.shape == (0, 9)


@engines
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named(engine, bad):
    scores = np.random.default_rng(0).normal(size=(4, 20, 2))
    scores[2, 7, 1] = bad
    with pytest.raises(CaptureError, match=r"filter 2, sample 7 hold"):
        GaussianMixtureSweep(engine=engine).fit(scores)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k_min": 1}, "k_min=1: expected a whole number from 2 to 32"),
        ({"k_min": 5, "k_max": 4}, "k_max=4: expected a whole number from 5 to 32"),
        ({"k_max": 33}, "k_max=33"),
        ({"n_init": 0}, "n_init=0"),
        ({"n_init": 2.5}, r"n_init=2.5: expected a whole number"),
        ({"max_iter": True}, "max_iter=True"),
        ({"tol": -1e-3}, "tol=-0.001: expected a number from 0"),
        ({"reg_covar": float("nan")}, "reg_covar=nan"),
        ({"random_state": -1}, "random_state=-1"),
        ({"threads": 0}, "threads=0"),
        ({"engine": "gpu"}, "engine='gpu': expected one of auto, cpu, cuda, reference"),
        ({"dtype": "float16"}, "dtype='float16': expected 'float32' or 'float64'"),
    ],
)
def test_impossible_parameters_are_named(parameters, message):
    with pytest.raises(ConfigurationError, match=message):
        GaussianMixtureSweep(**parameters).fit(np.zeros((1, 5, 2)))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("k_min", 2, 10), ("k_max", 2, MAX_COMPONENTS), ("n_init", 1, MAX_STARTS - 1), ("max_iter", 1, 2**31 - 1),
        ("random_state", 0, 2**64 - 1), ("reg_covar", 0, 1), ("threads", 1, 2**16),
    ],
)  # fmt: skip
def test_a_parameter_may_take_the_ends_of_its_range_and_nothing_beyond(name, least, most):
    for value in (least, most):
        settings = GaussianMixtureSweep(**{name: value})._settings()
        assert getattr(settings, "seed" if name == "random_state" else name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ConfigurationError, match=f"{name}={value}|k_max=10"):
            GaussianMixtureSweep(**{name: value})._settings()


def test_a_tolerance_may_be_anything_from_zero_up():
    assert [GaussianMixtureSweep(tol=tol)._settings().tol for tol in (0, np.inf)] == [0, np.inf]


def test_every_parameter_reaches_the_engine():
    chosen = {
        "k_min": 3, "k_max": 4, "n_init": 5, "tol": 0.5, "max_iter": 6, "reg_covar": 0.25, "threads": 7,
        "dtype": "float64",
    }  # fmt: skip
    settings = GaussianMixtureSweep(**chosen, random_state=8)._settings()
    assert settings == MixtureSettings(**chosen, seed=8)
    assert GaussianMixtureSweep(threads=None)._settings().threads is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": np.zeros((5, 2))}, r"shape \(5, 2\): expected \(F, N, d\)"),
        ({"scores": np.zeros((5, 10, 9))}, "1 to 8 dimensions"),
        ({"scores": np.zeros((2, 0, 2))}, r"shape \(2, 0, 2\)"),
        ({"scores": np.zeros((2, 5, 0))}, r"shape \(2, 5, 0\)"),
        ({"initial_labels": {2: np.full((2, 10), -1)}}, "hold -1 to -1: expected 0 to 1"),
        ({"initial_labels": {2: np.zeros((2, 10))}}, "float64"),
        ({"initial_labels": {1: np.zeros((2, 10), int)}}, "K=1: expected K from 2 to 10"),
        ({"keys": np.arange(3)}, r"expected \(2,\) integers"),
        ({"keys": np.zeros(2)}, "float64"),
        ({"initial_labels": {11: np.zeros((2, 10), int)}}, "K=11: expected K from 2 to 10"),
        ({"initial_labels": {2: np.zeros((2, 9), int)}}, r"expected \(2, 10\) integers"),
        ({"initial_labels": {2: np.full((2, 10), 2)}}, "hold 2 to 2: expected 0 to 1"),
    ],
)
def test_wrong_arrays_are_named(arguments, message):
    scores = arguments.pop("scores", np.random.default_rng(0).normal(size=(2, 10, 2)))
    with pytest.raises(ValueError, match=message):
        GaussianMixtureSweep().fit(scores, **arguments)


@engines
def test_scores_of_any_real_type_are_taken_and_keep_their_precision(engine):
    whole = np.random.default_rng(0).integers(-9, 9, (2, 30, 2))
    sweep = {"k_max": 3, "engine": engine, "dtype": "float64"}
    expected = GaussianMixtureSweep(**sweep).fit(whole.astype(float)).lower_bound_
    for scores in (whole, whole.tolist(), whole.astype(np.float32), whole.astype(np.float16)):
        np.testing.assert_array_equal(GaussianMixtureSweep(**sweep).fit(scores).lower_bound_, expected)


@engines
def test_finite_scores_whose_sum_is_not_are_no_error(engine):
    scores = np.full((1, 10, 1), np.finfo(np.float32).max, np.float32)
    assert GaussianMixtureSweep(engine=engine).fit(scores).status_[0] == "dead"


@engines
def test_keys_name_the_streams_and_are_numbers_of_filters_by_default(engine):
    scores = np.repeat(np.random.default_rng(1).normal(size=(1, 40, 2)), 3, axis=0)
    sweep = {"k_min": 5, "k_max": 5, "engine": engine}
    by_default = GaussianMixtureSweep(**sweep).fit(scores).lower_bound_
    named = GaussianMixtureSweep(**sweep).fit(scores, keys=[2, 1, 0]).lower_bound_
    np.testing.assert_array_equal(named, by_default[::-1])


@engines
def test_given_starts_take_the_place_of_all_others_of_their_k(engine):
    scores = np.random.default_rng(0).normal(size=(2, 40, 2))
    labels = np.random.default_rng(1).integers(0, 3, (2, 40))
    base = GaussianMixtureSweep(k_max=3, engine=engine, n_init=3)
    one, three = (
        GaussianMixtureSweep(k_max=3, engine=engine, n_init=n).fit(scores, {3: labels}).lower_bound_ for n in (1, 3)
    )
    np.testing.assert_array_equal(one[:, 1], three[:, 1])
    np.testing.assert_array_equal(three[:, 0], base.fit(scores).lower_bound_[:, 0])


def test_auto_is_the_cpu_where_no_device_answers(monkeypatch):
    monkeypatch.setattr("gmmcnn.hardware.gpu.why_unavailable", lambda: "no CUDA device is visible")
    assert mixture_engine("auto") is mixture_engine("cpu") is cpu.fit_mixtures
    assert mixture_engine("reference") is reference.fit_mixtures
    with pytest.raises(ConfigurationError, match="engine='gpu': expected one of"):
        mixture_engine("gpu")


def test_cuda_without_a_device_says_so(monkeypatch):
    monkeypatch.setattr("gmmcnn.hardware.gpu.why_unavailable", lambda: "no CUDA device is visible")
    with pytest.raises(EngineError, match="no CUDA device is visible"):
        GaussianMixtureSweep(engine="cuda").fit(np.zeros((1, 5, 2)))


@engines
def test_not_converging_is_a_warning_and_a_flag(engine):
    scores = np.random.default_rng(0).normal(size=(3, 100, 2))
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        sweep = GaussianMixtureSweep(max_iter=2, tol=0, engine=engine).fit(scores)
    assert not sweep.converged_.any()
    assert (sweep.n_iter_ == 2).all()


def test_defaults_are_those_of_a_plain_sweep():
    assert GaussianMixtureSweep()._settings() == MixtureSettings()
    assert GaussianMixtureSweep().get_params() == {
        "k_min": 2, "k_max": 10, "n_init": 1, "tol": 1e-3, "max_iter": 100, "reg_covar": 1e-6, "random_state": 0,
        "engine": "auto", "threads": None, "dtype": "float32", "cuml": "never",
    }  # fmt: skip


def test_behaves_as_a_scikit_learn_estimator():
    sweep = GaussianMixtureSweep(k_max=4, n_init=2)
    assert clone(sweep.set_params(tol=1e-2)).get_params() == sweep.get_params()
    assert sweep.get_params()["tol"] == 1e-2
    assert sweep.fit(np.random.default_rng(0).normal(size=(2, 30, 2))) is sweep
    assert sweep.calinski_harabasz_.shape == (2, 3)
    assert sweep.means_.shape == (2, 4, 2)
    with pytest.raises(AttributeError):
        _ = clone(sweep).labels_


@engines
def test_groups_are_found(engine):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 25)
    scores = 10 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[groups] + rng.normal(size=(5, 100, 2))
    sweep = GaussianMixtureSweep(n_init=5, engine=engine).fit(scores.astype(np.float32))
    assert (sweep.n_components_ == 4).all()
    for labels in sweep.labels_:
        assert {tuple(np.unique(labels[groups == g])) for g in range(4)} == {(0,), (1,), (2,), (3,)}
    np.testing.assert_allclose(sweep.weights_[:, :4], 0.25, atol=1e-3)
