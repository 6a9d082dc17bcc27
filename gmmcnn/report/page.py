"""The HTML report: one file that opens anywhere, with no request to any other.

Text, tables and images are written here, through ``page.html``; the charts and the filter table are drawn in the
browser from one JSON block (``charts.js``, ``table.js``), because only there is the width of the screen known. Images
stand in the page once, as style rules, however many figures show them. The page's own content security policy forbids
every outside address.
"""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from gmmcnn.report import views
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
    training = views.training(content.metrics)
    gallery = views.gallery(content.outliers)
    shown = {card["sample"] for card in gallery} | {int(s) for plot in plots for s in plot.samples}
    return _template().render(
        content=content,
        tiles=views.tiles(content),
        layers=views.layers(content.filters),
        training=training,
        figures=[views.figure(plot, known) for plot in plots],
        gallery=gallery,
        masking=masking,
        image_uris={sample: data_uri(content.images[sample]) for sample in sorted(shown & content.images.keys())},
        data={
            "training": training,
            "filters": views.columns(content.filters, views.FILTER_COLUMNS),
            "plots": [views.points(plot) for plot in plots],
            "targets": {s: int(content.targets[s]) for s in sorted(shown & content.targets.keys())},
            "class_names": content.class_names,
            "masking": masking and masking["lanes"],
        },
    )


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
    environment.globals["asset"] = lambda name: Markup(files("gmmcnn.report").joinpath(name).read_text("utf-8"))
    return environment.get_template("page.html")
