import json
import re
import zlib
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from report_outcomes import random_outcome

from gmmcnn.report.compose import content_of
from gmmcnn.report.content import ReportContent
from gmmcnn.report.page import render

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
        self.block = b""
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
        elif current == "script" and self.elements[-1][1].get("id") == "arrays":
            self.block = zlib.decompress(b64decode(data))
        elif current == "script":
            self.scripts += data
        else:
            self.text += data

    def array(self, name: str) -> np.ndarray:
        about = self.data["arrays"][name]
        kind = about["type"].removesuffix("Array").lower()
        return np.frombuffer(self.block, kind, about["length"], about["offset"]).reshape(about["shape"])

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
    assert [address[:22] for address in re.findall(r"url\((.*?)\)", page.styles)] == ["data:image/webp;base64"]
    assert "@import" not in page.styles
    assert "http" not in html.replace("http-equiv", "")
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_page_shows_what_it_was_given(content: ReportContent) -> None:
    page = Page(render(content))
    about = [content.title, *content.findings, *content.warnings, *content.notes]
    for text in [*about, *content.facts, *content.facts.values()]:
        assert text in page.text
    for layer, reason in content.skipped:
        assert layer in page.text
        assert reason in page.text
    assert "The same as a table" in page.text
    assert "contested" in page.text
    assert "need JavaScript" in page.text


def test_browser_gets_every_filter_and_clustering(content: ReportContent) -> None:
    page = Page(render(content))
    data, filters = page.data, content.filters
    assert [data["layers"][layer] for layer in page.array("layer")] == filters["layer"].tolist()
    assert page.array("filter").tolist() == filters["filter"].tolist()
    assert [data["statuses"][status] for status in page.array("status")] == filters["status"].tolist()
    assert np.array_equal(page.array("ch_over_average"), filters["ch_over_average"].astype(np.float32), equal_nan=True)
    assert data["epochs"] == [1, 4, 9]
    assert page.array("ranks").shape == (3, len(data["sliders"]["min_small_clusters"]) + 2, 22, 6)
    for number, ranks in enumerate(content.ranks.values()):
        assert np.array_equal(page.array("ranks")[number], ranks.planes)
        assert np.array_equal(page.array("live")[number], ranks.live)
    assert page.array("scatter.x").shape == (22 * content.n_samples,)
    assert page.array("targets").tolist() == [content.targets[sample] for sample in range(600)]


def test_images_are_those_of_the_gallery_first_then_of_the_dots(content: ReportContent) -> None:
    page = Page(render(content))
    first = [row["sample"] for row in page.data["samples"]]
    assert page.array("images").tolist()[: len(first)] == first
    assert sorted(page.array("images")) == sorted(content.images)
    few = Page(render(replace(content, images={3: content.images[3]})))
    assert few.array("images").tolist() == [3]
    assert few.data["sheet"] == {"columns": 1, "rows": 1}


def test_every_text_is_escaped(content: ReportContent) -> None:
    outliers = content.outliers.assign(filters=HOSTILE, planted=HOSTILE)
    hostile = replace(
        content,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        findings=[HOSTILE, HOSTILE],
        warnings=[HOSTILE],
        notes=[HOSTILE],
        filters=content.filters.assign(layer=HOSTILE, status=HOSTILE, reason=HOSTILE),
        outliers=outliers,
        samples=content.samples.rename(columns={"label_surprise:conv1": f"label_surprise:{HOSTILE}"}),
        class_names=[HOSTILE] * 10,
        skipped=[(HOSTILE, HOSTILE)],
        command=HOSTILE,
    )
    page = Page(render(hostile))
    assert not [tag for tag, attributes in page.elements if "onclick" in attributes]
    assert page.scripts == Page(render(content)).scripts
    assert page.data["layers"] == page.data["statuses"] == [HOSTILE]
    assert page.data["command"] == HOSTILE
    assert {row["class"] for row in page.data["samples"]} == {HOSTILE}


def test_an_empty_result_is_a_page_that_says_so(bare: ReportContent) -> None:
    html = render(bare)
    page = Page(html)
    assert "No sample was singled out" in page.text
    assert "The labels of the samples are not known" in page.text
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert not ids & {"training", "masking", "skipped"}  # no headings over nothing
    assert len(html) < 150_000


def test_nothing_analysed_at_all(bare: ReportContent) -> None:
    scatters = bare.scatters._replace(**{name: array[:0] for name, array in bare.scatters._asdict().items()})
    [ranks] = bare.ranks.values()
    nothing = replace(
        bare,
        filters=bare.filters.iloc[:0],
        findings=[],
        facts={},
        scatters=scatters,
        ranks={None: ranks._replace(planes=ranks.planes[:, :0], live=ranks.live[:0])},
        index_by_k=bare.index_by_k[:0],
    )
    assert "No filter was analysed" in Page(render(nothing)).text


def test_a_single_epoch_has_a_table_but_no_curve(content: ReportContent) -> None:
    page = Page(render(replace(content, metrics=content.metrics.iloc[:1])))
    assert page.data["metrics"] is None
    assert "The same as a table" in page.text
    assert "training-chart" not in {attributes.get("id") for _, attributes in page.elements}


def test_a_large_network_stays_within_the_size_that_is_promised() -> None:
    """1.5 MB and 1 kB a filter, with 100 clusterings of each and an image of every sample."""
    layers = {f"layer{number}.conv": 64 for number in range(4)}
    html = render(content_of(random_outcome(layers, n_batches=10, n_repeats=10)))
    n_filters = sum(layers.values())
    assert len(Page(html).array("filter")) == n_filters
    assert len(html.encode()) <= 1_500_000 + 1_000 * n_filters


def test_same_content_gives_the_same_page(content: ReportContent) -> None:
    assert render(content) == render(content)
