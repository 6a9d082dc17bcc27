import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from gmmcnn.report import figures
from gmmcnn.report.content import ClusterPlot, ReportContent


def a_plot(scores: np.ndarray, labels: list[int], small: list[bool]) -> ClusterPlot:
    return ClusterPlot("c", 0, 0, scores, np.array(labels), 10 + np.arange(len(scores)), np.array(small))


def test_every_point_is_drawn_once_with_its_sample(content: ReportContent) -> None:
    plot = content.clusters[0]
    figure = figures.clusters(plot, {})
    drawn = {s: (x, y) for trace in figure.data for s, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)}
    assert drawn.keys() == set(plot.samples.tolist())
    expected = dict(zip(plot.samples.tolist(), plot.scores.astype(np.float32).tolist(), strict=True))
    assert {sample: list(place) for sample, place in drawn.items()} == expected


def test_small_clusters_are_larger_marked_apart_and_in_front(content: ReportContent) -> None:
    *clouds, first, second = figures.clusters(content.clusters[0], {}).data
    assert (len(first.x), len(second.x)) == (4, 1)
    assert [trace.marker.symbol for trace in (first, second)] == ["diamond", "triangle-up"]
    assert first.marker.size > max(trace.marker.size for trace in clouds)
    assert "small cluster of 4" in first.hovertemplate
    assert not any("small" in trace.hovertemplate for trace in clouds)


def test_hover_names_the_class_and_cannot_bring_markup() -> None:
    plot = a_plot(np.eye(2), [0, 0], [False])
    (trace,) = figures.clusters(plot, {10: "<b>&"}).data
    assert list(trace.hovertext) == ["<br>&lt;b&gt;&amp;", ""]


def test_points_without_a_finite_score_are_left_out_and_unclustered_ones_are_never_small() -> None:
    scores = np.array([[0, 1], [np.nan, 0], [1, np.inf], [2, 2]])
    figure = figures.clusters(a_plot(scores, [-1, 0, 0, 0], [True]), {})
    assert [list(trace.customdata) for trace in figure.data] == [[10], [13]]
    assert "in no cluster" in figure.data[0].hovertemplate
    assert "small cluster of 3" in figure.data[1].hovertemplate


def test_one_dimension_is_spread_over_the_height() -> None:
    figure = figures.clusters(a_plot(np.zeros((50, 1)), [0] * 50, [False]), {})
    assert len(set(figure.data[0].y)) == 50
    assert "height only spreads" in figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text is None


def test_counts_stand_above_accuracies_on_one_epoch_axis(content: ReportContent) -> None:
    figure = figures.training(content.metrics)
    assert figure is not None
    assert {trace.xaxis for trace in figure.data} == {None}
    by_name = {trace.name: trace for trace in figure.data}
    assert by_name["anomalous"].yaxis == by_name["flagged per batch"].yaxis == "y"
    assert by_name["training"].yaxis == by_name["validation"].yaxis == "y2"
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert by_name["training"].y == pytest.approx((100 * content.metrics["train_accuracy"]).tolist())
    assert by_name["anomalous"].x == tuple(content.metrics["epoch"])


def test_curves_need_two_epochs_and_leave_out_what_was_not_measured() -> None:
    metrics = pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.5, np.nan], "anomalous_filters": [np.nan, np.nan]})
    assert figures.training(None) is None
    assert figures.training(metrics.iloc[:1]) is None
    figure = figures.training(metrics)
    assert figure is not None
    assert [trace.name for trace in figure.data] == ["training"]
    assert figure.layout.yaxis2.domain == (0, 1)
    assert figure.layout.xaxis.anchor == "y2"


def test_masks_are_shown_in_points_of_percent() -> None:
    lanes = [
        {"name": "training", "anomalous": -0.12, "random": [-0.1, None]},
        {"name": "validation", "anomalous": 0.01, "random": []},
    ]
    *strips, anomalous = figures.masking(lanes).data
    assert [strip.x for strip in strips] == [(-10.0,), ()]
    assert anomalous.x == pytest.approx((-12, 1))
    assert anomalous.y == ("training", "validation")


def test_figures_take_their_colours_from_the_page(content: ReportContent) -> None:
    lanes = [{"name": "training", "anomalous": -0.12, "random": [-0.1]}]
    for figure in [
        figures.training(content.metrics),
        figures.clusters(content.clusters[0], {}),
        figures.masking(lanes),
    ]:
        assert isinstance(figure, go.Figure)
        colours = set(re.findall(r'"[\w]*color": ?"(.*?)"', json.dumps(json.loads(figure.to_json()))))
        assert all(colour.startswith("var(--") or colour == "rgba(0, 0, 0, 0)" for colour in colours)
        assert colours - {"rgba(0, 0, 0, 0)"}
