"""The HTML report: one file that opens anywhere, with no request to any other.

Text, tables and images are written here, through ``page.html``. Figures and filter table are drawn in the browser from
one JSON block, the figures by plotly, which stands in the page only where there is a figure. Images stand in the page
once, as style rules, however many figures show them. The page's own content security policy forbids every outside
address.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gmmcnn.report import figures, views
from gmmcnn.report.content import ClusterPlot as ClusterPlot
from gmmcnn.report.content import ReportContent as ReportContent
from gmmcnn.report.images import data_uri


def render(content: ReportContent) -> str:
    """Complete HTML page.

    Parameters
    ----------
    content : ReportContent
        What to show; any of its tables may be empty.

    Returns
    -------
    str
        To be written in UTF-8. Every text of ``content`` is escaped.
    """
    plots = views.chosen_plots(content.clusters, content.filters)
    known = views.verdicts(content.filters)
    masking = views.masking(content.masking)
    gallery = views.gallery(content.outliers)
    surprising = views.surprising(content.samples, content.class_names)
    shown = {card["sample"] for card in [*gallery, *surprising]} | {int(s) for plot in plots for s in plot.samples}
    return _template().render(
        content=content,
        tiles=views.tiles(content),
        layers=views.layers(content.filters),
        figures=[views.figure(plot, known) for plot in plots],
        gallery=gallery,
        surprising=surprising,
        masking=masking,
        image_uris={sample: data_uri(content.images[sample]) for sample in sorted(shown & content.images.keys())},
        data={
            "filters": views.columns(content.filters, views.FILTER_COLUMNS),
            "figures": _figures(content, plots, masking),
        },
    )


def _figures(
    content: ReportContent, plots: list[ClusterPlot], masking: dict[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Figures by the names that the page gives them, ready for JSON."""
    class_of = {s: views.class_name(target, content.class_names) for s, target in content.targets.items()}
    drawn = {
        "training": figures.training(content.metrics),
        "masking": masking and figures.masking(masking["lanes"]),
        **{f"clusters-{number}": figures.clusters(plot, class_of) for number, plot in enumerate(plots)},
    }
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items() if figure is not None}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("gmmcnn.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": views.percent, "number": views.number, "plural": views.plural}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals |= {"class_name": views.class_name, "marks": list(figures.SMALL_CLUSTER_MARKS.values())}
    environment.globals["plotly"] = lambda: Markup(get_plotlyjs())
    environment.globals["asset"] = lambda name: Markup(files("gmmcnn.report").joinpath(name).read_text("utf-8"))
    return environment.get_template("page.html")
