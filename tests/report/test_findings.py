"""What was found, in sentences: a count where counts mean something, and what is wrong where they do not."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from handmade_fits import ONE_OF_EACH, N, fits_of
from report_outcomes import random_outcome

from gmmcnn import config
from gmmcnn.filters.outcome import Outcome
from gmmcnn.report.findings import _surprising, findings

METRICS = pd.DataFrame({"epoch": [1, 9], "flagged_per_batch": [1.0, 3.0]})


def outcome(small_cluster: int | None = None, **about) -> Outcome:
    return Outcome(
        fits=fits_of(ONE_OF_EACH),
        known=pd.DataFrame({"batch": 0, "label": np.arange(N) % 10, **about}),
        thumbnails=np.zeros((N, 4, 4), np.uint8),
        settings=config.Screen(small_cluster=small_cluster),
    )


def test_the_headline_counts_anomaly_filters():
    headline, which, outliers, first, course = findings(outcome(), METRICS)
    assert headline == (
        "1 of 5 filters is anomalous: it responds strongly and sets a few images apart from all others."
    )
    assert which == "Anomalous: conv1:0; 1 filter (near-)dead and left out."
    assert outliers == "3 outlier samples of 40; sample 37 stands out most, in 1 filter."
    assert first.startswith("Sample ")
    assert "stands first by memorisation rank: labelled " in first
    assert course.startswith("Filters flagged per probe batch: 1.0 after epoch 1, 3.0 after epoch 9.")


def test_outliers_of_filters_that_are_not_anomalous_are_said_to_be_such():
    rarely = random_outcome({"conv1": 6}, min_frequency=1.0)
    assert len(rarely.outliers) > 0
    assert not rarely.screening.anomalous
    assert "by filters flagged too rarely to be anomalous; sample" in " ".join(findings(rarely))


def test_where_chance_makes_small_clusters_the_headline_says_so_and_nothing_is_counted():
    said = findings(outcome(small_cluster=5), METRICS)
    assert len(said) == 1
    assert "5 filters, saturated: chance alone makes small clusters here" in said[0]
    assert "λ·K_max/N = 5·3/40 = 0.38" in said[0]
    assert "raise probe.samples to 50 or more, or set screen.small_cluster=4 or less" in said[0]
    assert findings(outcome(small_cluster=4))[0].startswith("1 of 5 filters is anomalous")


def test_what_was_planted_is_told_beside_what_else_was_reported():
    planted = findings(outcome(small_cluster=5, planted=np.where(np.arange(N) == 38, "noise", "")))[1]
    assert planted == (
        "1 noise image planted in the probe set (samples 38): 1 of 1 found by conv1:0; 2 other samples reported."
    )


@pytest.mark.parametrize(("said", "words"), [(3, "its clusters agree in the end"), (5, "its clusters say 5")])
def test_a_sample_that_stands_first_is_not_said_to_surprise_where_its_clusters_agree(said, words):
    row = {"sample": [7], "label": [3], "cluster_label": [said], "label_surprise": [0.2], "memorisation_rank": [1.0]}
    (sentence,) = _surprising(SimpleNamespace(samples=pd.DataFrame(row)), None)
    assert sentence == f"Sample 7 stands first by memorisation rank: labelled 3, {words} (label surprise 0.20 nats)."
