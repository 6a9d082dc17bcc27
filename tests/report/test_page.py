import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from gmmcnn.report import views
from gmmcnn.report.page import ClusterPlot, ReportContent, render

VOID = {"meta", "br", "img", "input", "link", "hr"}
HOSTILE = '</script><b onclick="x()">&\''


class Page(HTMLParser):
    """Elements, visible text and the JSON block; unbalanced tags are an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts = ""
        self.styles = ""
        self.data: dict = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        current = self._open[-1] if self._open else ""
        if current == "style":
            self.styles += data
        elif current == "script" and self.elements[-1][1].get("id") == "data":
            self.data = json.loads(data, parse_constant=_no_constant)
        elif current == "script":
            self.scripts += data
        else:
            self.text += data

    def count(self, css_class: str) -> int:
        return sum(css_class in (attributes.get("class") or "").split() for _, attributes in self.elements)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_page_asks_for_nothing_outside_itself(content: ReportContent) -> None:
    html = render(content)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "base"}
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert all(address.startswith("data:image/png") for address in re.findall(r"url\((.*?)\)", page.styles))
    assert "@import" not in page.styles
    assert html.count(get_plotlyjs()) == 1
    assert "http" not in html.replace(get_plotlyjs(), "").replace("http-equiv", "")
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_page_shows_what_it_was_given(content: ReportContent) -> None:
    page = Page(render(content))
    for text in [content.title, *content.findings, *content.warnings, *content.facts, *content.facts.values()]:
        assert text in page.text
    for layer, reason in content.skipped:
        assert layer in page.text
        assert reason in page.text
    assert page.count("surprising") == views.MOST_SURPRISING
    assert page.count("outlier") == len(content.outliers) + views.MOST_SURPRISING
    assert page.count("planted") == (content.outliers["planted"] != "").sum() + 1 == 5
    assert page.count("wrong") == content.outliers["noisy_label"].sum() + 1
    assert page.count("cluster") == len(content.clusters)
    assert "The same as a table" in page.text
    assert "contested" in page.text


def test_browser_gets_every_filter_and_point(content: ReportContent) -> None:
    data = Page(render(content)).data
    assert data["filters"]["layer"] == content.filters["layer"].tolist()
    assert data["filters"]["anomalous"] == content.filters["anomalous"].tolist()
    dead = content.filters["status"] != "ok"
    assert [value is None for value in data["filters"]["calinski_harabasz"]] == dead.tolist()
    assert set(data["figures"]) == {"training", "masking", *(f"clusters-{n}" for n in range(len(content.clusters)))}
    shown = [samples_of(figure) for name, figure in data["figures"].items() if name.startswith("clusters")]
    assert sorted(shown) == sorted(sorted(plot.samples.tolist()) for plot in content.clusters)


def samples_of(figure: dict) -> list[int]:
    return sorted(sample for trace in figure["data"] for sample in trace["customdata"])


def test_every_figure_has_its_place_and_a_word_for_those_without_javascript(content: ReportContent) -> None:
    page = Page(render(content))
    places = [attributes for _, attributes in page.elements if "data-figure" in attributes]
    assert {attributes["data-figure"] for attributes in places} == set(page.data["figures"])
    assert all("scripted" in (attributes["class"] or "") and attributes["aria-label"] for attributes in places)
    assert "The curves need JavaScript" in page.text
    assert "The plots need JavaScript" in page.text


def test_each_image_stands_in_the_page_once_and_only_if_used(content: ReportContent) -> None:
    used = {int(sample) for plot in content.clusters for sample in plot.samples} | set(content.outliers["sample"])
    used |= set(range(views.MOST_SURPRISING))
    page = Page(render(replace(content, images=content.images | {9999: np.zeros((2, 2), np.uint8)})))
    rules = [int(sample) for sample in re.findall(r"\.i(\d+)\{", page.styles)]
    assert rules == sorted(used)


def test_every_text_is_escaped(content: ReportContent) -> None:
    hostile = replace(
        content,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        findings=[HOSTILE, HOSTILE],
        warnings=[HOSTILE],
        filters=content.filters.assign(layer=HOSTILE, status=HOSTILE, reason=HOSTILE),
        outliers=content.outliers.assign(filters=HOSTILE, planted=HOSTILE),
        samples=content.samples.rename(columns={"label_surprise:conv1": f"label_surprise:{HOSTILE}"}),
        clusters=[replace(plot, layer=HOSTILE) for plot in content.clusters],
        class_names=[HOSTILE] * 10,
        skipped=[(HOSTILE, HOSTILE)],
    )
    page = Page(render(hostile))
    assert not [tag for tag, attributes in page.elements if "onclick" in attributes]
    assert page.scripts == Page(render(content)).scripts
    assert set(page.data["filters"]["layer"]) == {HOSTILE}
    hovers = {text for trace in page.data["figures"]["clusters-0"]["data"] for text in trace["hovertext"]}
    assert hovers == {"<br>" + escape(HOSTILE)}
    labels = [attributes["aria-label"] for _, attributes in page.elements if "data-sample" in attributes]
    assert labels
    assert all(label is not None and label.endswith(HOSTILE) for label in labels)


def test_an_empty_result_is_a_page_that_says_so(bare: ReportContent) -> None:
    html = render(bare)
    page = Page(html)
    for sentence in [
        "a single checkpoint",
        "no clusters of flagged filters to show",
        "No sample was singled out",
        "There is no anomaly filter to switch off",
    ]:
        assert sentence in page.text
    assert page.data["figures"] == {}
    assert len(html) < 100_000  # plotly alone has millions
    assert "Layers not analysed" not in page.text


def test_nothing_analysed_at_all(bare: ReportContent) -> None:
    page = Page(render(replace(bare, filters=bare.filters.iloc[:0], findings=[], facts={})))
    assert "No filter was analysed" in page.text


def test_a_single_epoch_has_a_table_but_no_curve(content: ReportContent) -> None:
    page = Page(render(replace(content, metrics=content.metrics.iloc[:1])))
    assert "training" not in page.data["figures"]
    assert "The same as a table" in page.text


def test_one_dimension_and_no_images_or_labels(content: ReportContent) -> None:
    flat = [replace(plot, scores=plot.scores[:, :1]) for plot in content.clusters]
    unlabelled = content.outliers.assign(label=pd.NA)
    about = {"images": {}, "targets": {}, "class_names": None, "samples": content.samples.iloc[:0]}
    page = Page(render(replace(content, clusters=flat, outliers=unlabelled, **about)))
    assert all(hover == "" for trace in page.data["figures"]["clusters-0"]["data"] for hover in trace["hovertext"])
    assert "to see its" not in page.text
    assert not re.search(r"\.i\d+\{", page.styles)
    assert page.count("outlier") == len(content.outliers)


def test_many_plots_are_cut_to_the_most_flagged_and_it_says_so(content: ReportContent) -> None:
    plots = [replace(plot, batch=batch) for plot in content.clusters for batch in range(10)]
    page = Page(render(replace(content, clusters=plots)))
    assert page.count("cluster") == sum(name.startswith("clusters") for name in page.data["figures"]) == 40
    assert f"of {len(plots)} in all" in page.text


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_thousands_of_filters_stay_a_small_page(content: ReportContent, dtype: type) -> None:
    many = pd.concat([content.filters] * 200, ignore_index=True).astype({"filter": dtype})
    html = render(replace(content, filters=many, clusters=[], images={}, metrics=None, masking=None))
    assert len(Page(html).data["filters"]["layer"]) == len(many)
    assert len(html) < 1_000_000  # characters; about 150 a filter


def test_same_content_gives_the_same_page(content: ReportContent) -> None:
    assert render(content) == render(content)


def test_points_without_a_cluster_or_a_finite_score_are_no_obstacle(content: ReportContent) -> None:
    plot = content.clusters[0]
    scores, labels = plot.scores.copy(), plot.labels.copy()
    scores[0], labels[1] = np.nan, -1
    odd = ClusterPlot(plot.layer, plot.filter, plot.batch, scores, labels, plot.samples, plot.small)
    figure = Page(render(replace(content, clusters=[odd]))).data["figures"]["clusters-0"]
    assert samples_of(figure) == plot.samples[1:].tolist()
