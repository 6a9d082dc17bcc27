import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.report import views
from gmmcnn.report.content import ClusterPlot


def a_plot(index: int, batch: int = 0) -> ClusterPlot:
    return ClusterPlot("c", index, batch, np.zeros((3, 2)), np.array([0, 0, 1]), np.arange(3), np.array([False, True]))


def frequencies(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": "c", "filter": range(len(values)), "anomalous": [v >= 0.5 for v in values], "flag_frequency": values}
    )


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


def test_every_filter_is_plotted_once_before_one_is_plotted_twice() -> None:
    plots = [a_plot(index, batch) for index in range(30) for batch in range(5)]
    filters = frequencies([1 - index / 100 for index in range(30)])
    chosen = views.chosen_plots(plots, filters)
    assert len(chosen) == views.MOST_PLOTS
    assert {plot.filter for plot in chosen} == set(range(30))
    assert [(plot.filter, plot.batch) for plot in chosen[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_beyond_the_limit_the_least_flagged_filters_are_dropped() -> None:
    filters = frequencies([index / 60 for index in range(60)])
    chosen = views.chosen_plots([a_plot(index) for index in range(60)], filters)
    assert [plot.filter for plot in chosen] == list(range(59, 19, -1))


def test_a_figure_lists_the_members_of_its_small_clusters_only() -> None:
    figure = views.figure(a_plot(1), views.verdicts(frequencies([0.2, 0.7])))
    assert figure["members"] == [[2]]
    assert (figure["anomalous"], figure["frequency"], figure["n_clusters"]) == (True, 0.7, 2)


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


def test_gallery_is_ranked_and_reads_missing_badges_as_none() -> None:
    table = pd.DataFrame(
        {
            "sample": [3, 1, 2],
            "label": [1, np.nan, 0],
            "n_filters": [1, 4, 1],
            "filters": "c:0",
            "planted": [None, "wrong_label", ""],
        }
    )
    cards = views.gallery(table)
    assert [card["sample"] for card in cards] == [1, 3, 2]
    assert [card["planted"] for card in cards] == ["wrong label", "", ""]
    assert [card["label"] for card in cards] == [None, 1, 0]
    assert not any(card["noisy_label"] for card in cards)


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


def test_samples_are_shown_by_rank_if_their_label_surprises() -> None:
    rows = [
        scored([1, 1], memorisation_rank=0.7, label_surprise=0.2, sample=0),
        scored([1, 1], memorisation_rank=0.9, label_surprise=0.1, sample=1, planted="inverted", noisy_label=True),
        scored([1, 1], memorisation_rank=0.8, label_surprise=-0.1, sample=2),
        scored([1, 1], memorisation_rank=np.nan, label_surprise=np.nan, sample=3),
    ]
    cards = views.surprising(pd.DataFrame(rows), None)
    assert [(card["sample"], card["planted"], card["noisy_label"]) for card in cards] == [
        (1, "inverted", True),
        (0, "", False),
    ]
    assert cards[0]["sentence"].startswith("labelled class 1, clusters say class 2")
    assert views.surprising(pd.DataFrame(), None) == []
