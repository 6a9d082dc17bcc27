"""The figures of the report, built with plotly.

Colours are the page's own CSS variables, as ``var(--accent)``; ``figures.js`` puts their values in when it draws, so
that figures follow the page from light to dark. Sizes come from the page too.
"""

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from gmmcnn.report.content import ClusterPlot
from gmmcnn.report.views import points_of_percent

SMALL_CLUSTER_MARKS = {"diamond": "◆", "triangle-up": "▲", "square": "■", "triangle-down": "▼", "cross": "✚"}
"""Plotly's symbols for small clusters, in turn, and the characters that stand for them in text."""
CLOUD_COLOURS = 10
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Inter, sans-serif'
_GOLDEN_RATIO = 0.618034
_CURVES = [  # axis, column of the metrics, name, colour, dash
    ("y", "anomalous_filters", "anomalous", "accent", "solid"),
    ("y", "flagged_per_batch", "flagged per batch", "quiet", "dash"),
    ("y2", "validation_accuracy", "validation", "validation", "solid"),
    ("y2", "train_accuracy", "training", "training", "dash"),
]


def training(metrics: pd.DataFrame | None) -> go.Figure | None:
    """Counts of flagged filters above the accuracies, over the same epochs; None below two epochs.

    Parameters
    ----------
    metrics : DataFrame, optional
        As in :class:`gmmcnn.report.content.ReportContent`; columns that are missing or empty are left out.
    """
    if metrics is None or len(metrics) < 2:
        return None
    drawn = [curve for curve in _CURVES if curve[1] in metrics and metrics[curve[1]].notna().any()]
    both = {axis for axis, *_ in drawn} == {"y", "y2"}
    first, last = metrics["epoch"].min(), metrics["epoch"].max()
    epochs = {"range": [first - 0.02 * (last - first), last + 0.02 * (last - first)], **_whole([first, last])}
    cursor = {"spikecolor": "var(--quiet)", "spikethickness": 1}
    figure = _figure(
        hovermode="x unified",
        hoversubplots="axis",
        plot_bgcolor="var(--paper)",  # the cursor is outlined in this colour
        margin={"l": 52, "r": 12, "t": 34, "b": 44},
        xaxis=_axis(title="epoch", anchor=drawn[-1][0] if drawn else "y", showgrid=False, **epochs, **cursor),
    )
    counts = [metrics[column].max() for axis, column, *_ in drawn if axis == "y"]
    if counts:
        steps = _whole([0, *counts])
        figure.update_layout(yaxis=_axis(domain=[0.6, 1] if both else [0, 1], rangemode="tozero", **steps))
        figure.update_layout(legend=_legend("Filters", top=1))
    if len(drawn) > len(counts):
        figure.update_layout(yaxis2=_axis(domain=[0, 0.42] if both else [0, 1], ticksuffix=" %", nticks=6))
        figure.update_layout(legend2=_legend("Accuracy", top=0.42 if both else 1))
    for axis, column, name, colour, dash in drawn:
        share = axis == "y2"
        figure.add_scatter(
            x=metrics["epoch"].tolist(),
            y=(metrics[column] * (100 if share else 1)).tolist(),
            yaxis=axis,
            legend="legend2" if share else "legend",
            name=name,
            mode="lines" if share else "lines+markers",
            connectgaps=True,
            line={"color": f"var(--{colour})", "width": 2, "dash": dash},
            marker={"size": 7},
            hovertemplate="%{y:.1f} %" if share else "%{y:.3~g}",
        )
    return figure


def clusters(plot: ClusterPlot, class_of: dict[int, str]) -> go.Figure:
    """Scatter of one filter's feature maps, small clusters large and in front; points carry their sample's number.

    Parameters
    ----------
    plot : ClusterPlot
        Points without a finite score are left out. Where scores have one dimension, the height only spreads the points.
    class_of : dict
        Probe sample → name of its class, where known.
    """
    flat = plot.scores.shape[1] == 1
    y = np.arange(len(plot.scores)) * _GOLDEN_RATIO % 1 if flat else plot.scores[:, 1]
    points = np.column_stack([plot.scores[:, 0], y]).astype(np.float32)
    known = np.isfinite(points).all(axis=1)
    bare = {"showgrid": False, "zeroline": False, "showline": True, "showticklabels": False}
    figure = _figure(
        hovermode="closest",
        showlegend=False,
        margin={"l": 24, "r": 6, "t": 6, "b": 24},
        xaxis=_axis(title="the one direction kept (height only spreads the dots)" if flat else "1st direction", **bare),
        yaxis=_axis(title=None if flat else "2nd direction", **bare),
    )
    present = np.unique(plot.labels).tolist()
    small = [cluster for cluster in present if cluster >= 0 and plot.small[cluster]]
    for cluster in [cluster for cluster in present if cluster not in small] + small:
        members = (plot.labels == cluster) & known
        _add_cluster(
            figure,
            points[members],
            plot.samples[members].tolist(),
            class_of,
            what=_cluster_name(cluster, int((plot.labels == cluster).sum()), small=cluster in small),
            marker=_small_mark(small.index(cluster)) if cluster in small else _cloud_mark(cluster),
        )
    return figure


def masking(lanes: list[dict[str, Any]]) -> go.Figure:
    """Change of accuracy when the anomaly filters are off, among the changes under random masks.

    Parameters
    ----------
    lanes : list of dict
        ``name`` of the accuracy, its change ``anomalous`` and the list ``random`` of changes, as shares.
    """
    figure = _figure(
        hovermode="closest",
        showlegend=False,
        margin={"l": 78, "r": 30, "t": 12, "b": 46},
        xaxis=_axis(
            title="change of accuracy in points, against no mask",
            rangemode="tozero",
            zerolinecolor="var(--quiet)",
            nticks=8,
        ),
        yaxis=_axis(autorange="reversed", showgrid=False, zeroline=False, tickfont={"size": 13, "color": "var(--ink)"}),
    )
    for lane in lanes:
        figure.add_box(
            x=[100 * change for change in lane["random"] if change is not None],
            y=[lane["name"]] * sum(change is not None for change in lane["random"]),
            orientation="h",
            boxpoints="all",
            pointpos=0,
            jitter=0.7,
            hoveron="points",
            fillcolor="rgba(0, 0, 0, 0)",
            line={"color": "rgba(0, 0, 0, 0)"},
            marker={"size": 8, "color": "var(--live)", "line": {"color": "var(--quiet)", "width": 0.75}},
            hovertemplate="random mask: %{x:+.1f}<extra></extra>",
        )
    figure.add_scatter(
        x=[100 * lane["anomalous"] for lane in lanes],
        y=[lane["name"] for lane in lanes],
        mode="markers+text",
        marker=_small_mark(0) | {"size": 15},
        text=[f"<b>{points_of_percent(lane['anomalous'])}</b>" for lane in lanes],
        textposition="top center",
        textfont={"color": "var(--accent)"},
        cliponaxis=False,
        hovertemplate="anomaly filters off: %{text}<extra></extra>",
    )
    return figure


def _figure(**layout: Any) -> go.Figure:
    return go.Figure(
        layout={
            "template": "none",
            "paper_bgcolor": "rgba(0, 0, 0, 0)",
            "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "font": {"family": FONT, "size": 12, "color": "var(--quiet)"},
            "hoverlabel": {
                "bgcolor": "var(--card)",
                "bordercolor": "var(--line)",
                "align": "left",
                "font": {"family": FONT, "size": 12.5, "color": "var(--ink)"},
            },
            "hoverdistance": 24,
        }
        | layout
    )


def _axis(title: str | None = None, **settings: Any) -> dict[str, Any]:
    lines = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zerolinecolor": "var(--line)"}
    return lines | {"title": {"text": title, "standoff": 6, "font": {"size": 12}}} | settings


def _legend(title: str, top: float) -> dict[str, Any]:
    return {
        "title": {"text": f"<b>{title}</b>  ", "font": {"size": 13, "color": "var(--ink)"}},
        "orientation": "h",
        "x": 0,
        "y": top,
        "yanchor": "bottom",
        "bgcolor": "rgba(0, 0, 0, 0)",
    }


def _whole(values: ArrayLike) -> dict[str, Any]:
    """Ticks at whole numbers only, at most about eight."""
    return {"dtick": 1} if np.ptp(np.asarray(values)) < 8 else {"nticks": 8}


def _cluster_name(cluster: int, size: int, *, small: bool) -> str:
    if cluster < 0:
        return "in no cluster"
    return f"{'small cluster' if small else 'cluster'} of {size}"


def _small_mark(turn: int) -> dict[str, Any]:
    symbols = list(SMALL_CLUSTER_MARKS)
    outline = {"color": "var(--card)", "width": 1.25}
    return {"symbol": symbols[turn % len(symbols)], "size": 13, "color": "var(--accent)", "line": outline}


def _cloud_mark(cluster: int) -> dict[str, Any]:
    return {"size": 6, "color": f"var(--k{cluster % CLOUD_COLOURS})", "opacity": 0.62}


def _add_cluster(
    figure: go.Figure,
    points: NDArray[np.float32],
    samples: list[int],
    class_of: dict[int, str],
    *,
    what: str,
    marker: dict[str, Any],
) -> None:
    figure.add_scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        marker=marker,
        customdata=samples,
        hovertext=[f"<br>{escape(class_of[sample])}" if sample in class_of else "" for sample in samples],
        hovertemplate=f"<b>sample %{{customdata}}</b>%{{hovertext}}<br>{what}<extra></extra>",
    )
