"""An outcome under changing thresholds: fits made by hand, nothing refitted."""

import numpy as np
import pandas as pd
import pytest
from handmade_fits import K_MAX, ONE_OF_EACH, N, batches_of, fits_of, layer_of

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.filters import outcome
from gmmcnn.filters.outcome import Outcome
from gmmcnn.filters.screening import saturation


@pytest.fixture
def of_each() -> Outcome:
    """One filter with all marks, three that lack one, and a dead one."""
    return Outcome(
        fits=fits_of(ONE_OF_EACH),
        known=pd.DataFrame({"batch": 0, "label": np.arange(N) % 10, "planted": np.arange(N) == 38}),
        thumbnails=np.zeros((N, 4, 4), np.uint8),
        settings=config.Screen(),
    )


def test_filters_and_outliers_are_those_of_the_thresholds_in_force(of_each):
    assert of_each.filters["anomalous"].tolist() == [True, False, False, False, False]
    assert of_each.outliers["sample"].tolist() == [37, 38, 39]
    assert of_each.screening.anomalous == {"conv1": [0]}


def test_outliers_come_with_what_is_known_about_the_samples(of_each):
    assert of_each.outliers["label"].tolist() == [7, 8, 9]
    assert of_each.outliers["planted"].tolist() == [False, True, False]
    assert list(of_each.outliers.columns).count("batch") == 1


def test_other_thresholds_make_another_outcome_and_leave_this_one(of_each):
    loose = of_each.with_thresholds(ch_ratio=0.05, activation_ratio=0.05)
    assert loose.filters["anomalous"].tolist() == [True, False, True, True, False]
    assert of_each.filters["anomalous"].sum() == 1
    assert loose.fits is of_each.fits
    assert loose.settings == config.Screen(ch_ratio=0.05, activation_ratio=0.05)
    pd.testing.assert_frame_equal(of_each.screen(ch_ratio=0.05, activation_ratio=0.05), loose.filters)
    assert loose.with_thresholds(ch_ratio=5).settings.activation_ratio == 0.05  # what was changed stays so


def test_lambda_in_force_decides_about_outliers_too(of_each):
    two = batches_of(layer_of([[38, 2]], ch=[10], activation=[1]), layer_of([[36, 4]], ch=[10], activation=[1]))
    samples = pd.DataFrame({"batch": np.arange(2 * N) // N})
    found = Outcome(fits_of(two), samples, np.zeros((2 * N, 1, 1), np.uint8), config.Screen(small_cluster=5))
    assert len(found.outliers) == 6
    assert found.with_thresholds(small_cluster=3).outliers["sample"].tolist() == [38, 39]


def test_a_threshold_that_is_none_is_named(of_each):
    with pytest.raises(ConfigurationError, match="ch_rato: no such threshold; expected one of small_cluster, min_sm"):
        of_each.with_thresholds(ch_rato=1)
    with pytest.raises(ConfigurationError, match=r"screen\.small_cluster=0"):
        of_each.screen(small_cluster=0)


def test_saturation_is_of_the_samples_of_a_batch_and_of_lambda(of_each):
    assert of_each.with_thresholds(small_cluster=5).saturation == saturation(N, K_MAX, 5)
    assert of_each.small_cluster == 3  # a quarter of N / K_max
    assert of_each.saturation == saturation(N, K_MAX, 3)
    assert of_each.with_thresholds(small_cluster=2).saturation[0] == 2 * K_MAX / N


def test_screening_is_done_once(of_each, monkeypatch):
    calls = []
    screen = outcome.screen
    monkeypatch.setattr(outcome, "screen", lambda *arguments: calls.append(1) or screen(*arguments))
    for _ in range(2):
        assert len(of_each.filters) == 5
        assert len(of_each.outliers) == 3
    assert calls == [1]
