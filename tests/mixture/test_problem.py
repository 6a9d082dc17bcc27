"""Settings of a sweep and the shape of what it answers, the same for both engines that run here."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from gmmcnn import config
from gmmcnn.mixture import cpu, reference
from gmmcnn.mixture.problem import (
    DEAD,
    OK,
    PERFECTLY_SEPARATED,
    STATUSES,
    TOO_FEW_DISTINCT,
    UNDEFINED,
    MixtureSettings,
    SweepResult,
)


def test_every_code_has_its_name():
    codes = {"ok": OK, "dead": DEAD, "too_few_distinct": TOO_FEW_DISTINCT, "undefined": UNDEFINED}
    codes["perfectly_separated"] = PERFECTLY_SEPARATED
    assert {name: STATUSES[code] for name, code in codes.items()} == {name: name for name in codes}
    assert len(STATUSES) == len(codes)


def test_every_k_is_tried_ends_included():
    assert list(MixtureSettings(k_min=3, k_max=6).component_counts) == [3, 4, 5, 6]
    assert list(MixtureSettings(k_min=4, k_max=4).component_counts) == [4]


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        MixtureSettings().k_min = 3


@pytest.mark.parametrize("name", ["k_min", "k_max", "tol", "max_iter", "reg_covar"])
def test_a_sweep_of_its_own_starts_from_the_settings_of_a_run(name):
    assert getattr(MixtureSettings(), name) == getattr(config.Gmm(), name)


@pytest.mark.parametrize("engine", [cpu, reference])
@pytest.mark.parametrize(("n_filters", "n_dims", "k_min", "k_max"), [(0, 2, 2, 4), (3, 2, 2, 2), (2, 2, 3, 5)])
def test_every_engine_answers_in_the_documented_shapes_and_types(engine, n_filters, n_dims, k_min, k_max):
    scores = np.random.default_rng(0).normal(size=(n_filters, 30, n_dims)).astype(np.float32)
    settings = MixtureSettings(k_min=k_min, k_max=k_max, threads=1)
    result = engine.fit_mixtures(scores, np.arange(n_filters, dtype=np.uint64), settings, {})
    n_k, f = k_max - k_min + 1, n_filters
    expected = {
        "status": ((f,), np.int8), "calinski_harabasz": ((f, n_k), np.float64), "lower_bound": ((f, n_k), np.float64),
        "n_iter": ((f, n_k), np.int32), "converged": ((f, n_k), np.bool_), "n_components": ((f,), np.int32),
        "labels": ((f, 30), np.int8), "weights": ((f, k_max), np.float64), "means": ((f, k_max, n_dims), np.float64),
        "covariances": ((f, k_max, n_dims, n_dims), np.float64),
    }  # fmt: skip
    assert {field.name for field in fields(SweepResult)} == set(expected)
    for name, (shape, dtype) in expected.items():
        array = getattr(result, name)
        assert (array.shape, array.dtype) == (shape, dtype), name


def test_a_changed_copy_leaves_the_settings_alone():
    settings = MixtureSettings()
    assert replace(settings, seed=5).seed == 5
    assert settings.seed == 0
