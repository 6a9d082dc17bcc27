import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.report import views
from gmmcnn.report.content import ReportContent


def masks(change: float, random: list[float]) -> pd.DataFrame:
    accuracy = [0.8, 0.8 + change, *(0.8 + r for r in random)]
    return pd.DataFrame(
        {
            "mask": ["none", "anomalous"] + ["random"] * len(random),
            "n_filters": [0] + [3] * (1 + len(random)),
            "train_accuracy": accuracy,
            "train_loss": 1.0,
            "validation_accuracy": accuracy,
            "validation_loss": 1.0,
        }
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12, "12.0"),
        (0.12345, "0.123"),
        (-1234.5, "−1,234"),
        (3e-7, "3.00e−07"),
        (2e11, "2.00e+11"),
        (np.nan, "–"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert views.number(value) == text


def test_a_change_that_rounds_to_nothing_has_no_minus_sign() -> None:
    assert views.points_of_percent(-0.0004) == "+0.0"
    assert views.points_of_percent(-0.021) == "−2.1"


@given(st.lists(st.floats(width=32)))
def test_any_number_becomes_json(values: list[float]) -> None:
    text = json.dumps(views.finite(values), allow_nan=False)
    for original, stored in zip(values, json.loads(text), strict=True):
        if np.isfinite(original):
            assert stored == pytest.approx(original, rel=1e-4, abs=1e-44)  # five digits
        else:
            assert stored is None


@pytest.mark.parametrize(
    ("change", "random", "verdict"),
    [
        (0.05, [-0.01] * 19, "better than chance explains (one-sided rank test, p = 0.05)"),
        (-0.05, [-0.01] * 19, "these filters matter more than random ones"),
        (-0.01, [-0.02, 0.0] * 10, "no different from what random masks do"),
        (-0.01, [-0.01] * 30, "no different from what random masks do"),
        (0.05, [-0.01] * 5, "too few to tell"),
        (0.05, [], "no random masks were tried"),
    ],
)
def test_a_mask_is_judged_among_random_ones(change: float, random: list[float], verdict: str) -> None:
    shown = views.masking(masks(change, random))
    assert shown is not None
    assert verdict in shown["verdict"]
    assert shown["n_random"] == len(random)


def test_without_an_anomaly_mask_there_is_no_masking_result() -> None:
    assert views.masking(masks(0.0, []).iloc[:1]) is None
    assert views.masking(None) is None


def test_cards_are_the_first_by_any_ranking_with_all_that_is_known(content: ReportContent, monkeypatch) -> None:
    monkeypatch.setattr(views, "MOST_SAMPLES", 3)
    rows = views.sample_rows(content)
    table = content.samples.set_index("sample")
    shown = {row["sample"]: row for row in rows}
    assert set(table.nlargest(3, "memorisation_rank").index) <= set(shown)
    assert set(table.nlargest(3, "density").index) <= set(shown)
    assert 3 <= len(rows) <= 3 * len(views.RANKINGS)
    anomalous = {f"{r.layer}:{r.filter}" for r in content.filters[content.filters["anomalous"]].itertuples()}
    outliers = content.outliers.set_index("sample")
    assert any(row["n_anomalous"] for row in rows)
    for sample, row in shown.items():
        names = outliers["filters"].get(sample, "")
        assert ", ".join(row["filters"]) == names
        assert row["n_anomalous"] == sum(name in anomalous for name in row["filters"]) <= len(row["filters"])
        assert row["planted"] == ("uniform noise" if sample < 4 else "")
        assert row["wrong"] == (sample % 40 == 4)
        assert row["class"] == content.class_names[table["label"][sample]]
        assert row["sentence"].startswith(f"labelled {row['class']}, clusters ")


def test_samples_without_scores_or_labels_are_cards_of_outliers_alone(content: ReportContent) -> None:
    outliers = content.outliers.assign(label=pd.NA, planted=None).drop(columns="noisy_label")
    rows = views.sample_rows(replace(content, samples=content.samples.iloc[:0], outliers=outliers))
    assert {row["sample"] for row in rows} <= set(outliers["sample"])
    assert all(row["class"] is None and row["sentence"] is None for row in rows)
    assert not any(row["planted"] or row["wrong"] for row in rows)
    assert views.sample_rows(replace(content, samples=content.samples.iloc[:0], outliers=outliers.iloc[:0])) == []


def scored(profile: list[float], *, label: int = 1, says: int = 2, **more) -> dict:
    """A row of the samples' scores, with a label surprise in each of several layers."""
    layers = {f"label_surprise:conv{number}": value for number, value in enumerate(profile, 1)}
    return {"sample": 5, "label": label, "cluster_label": says, "label_surprise": 1.0, "memorisation_rank": 0.9} | (
        layers | more
    )


@pytest.mark.parametrize(
    ("profile", "says", "sentence"),
    [
        ([2, 1, 1, -1], 2, "labelled shirt, clusters say bag; surprising in conv1, conv2, conv3, memorised from conv4"),
        ([2, -1, 1, -1], 2, "labelled shirt, clusters say bag; surprising in conv1, conv3, memorised from conv4"),
        ([1, 1], 2, "labelled shirt, clusters say bag; surprising in conv1, conv2"),
        ([1, np.nan, -1], 2, "labelled shirt, clusters say bag; surprising in conv1, memorised from conv3"),
        ([-1, 1, 1, 1, 1], 2, "labelled shirt, clusters say bag; surprising in 4 layers from conv2 to conv5"),
        ([-1, -0.5], 2, "labelled shirt, clusters say bag; surprising in no layer alone"),
        ([-1, 0.5], 1, "labelled shirt, clusters agree in the end; surprising in conv2"),
    ],
)
def test_a_sample_is_put_into_words(profile: list[float], says: int, sentence: str) -> None:
    assert views.in_words(scored(profile, says=says), ["coat", "shirt", "bag"]) == sentence


def test_curves_need_two_epochs_and_leave_out_what_was_not_measured() -> None:
    metrics = pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.5, np.nan], "other": 1.0})
    assert views.curves(metrics) == {"epoch": [1.0, 2.0], "train_accuracy": [0.5, None]}
    assert views.curves(metrics.iloc[:1]) is None
    assert views.curves(None) is None


def test_tiles_tell_samples_of_anomaly_filters_from_those_of_filters_flagged_too_rarely(content: ReportContent) -> None:
    rarely = content.filters["layer"] == "conv2"
    content = replace(content, filters=content.filters.assign(anomalous=content.filters["anomalous"] & ~rarely))
    tiles = {what: (value, remark) for value, what, remark in views.tiles(content)}
    value, remark = tiles["outlier samples"]
    anomalous = {f"{r.layer}:{r.filter}" for r in content.filters[content.filters["anomalous"]].itertuples()}
    own = sum(bool(anomalous & set(names.split(", "))) for names in content.outliers["filters"])
    assert value == str(own)
    assert 0 < own < len(content.outliers)
    assert remark == f"singled out by anomaly filters; {len(content.outliers) - own} more by filters flagged too rarely"
