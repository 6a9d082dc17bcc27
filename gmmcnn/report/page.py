"""The HTML report: one file that opens anywhere, with no request to any other.

What needs no reader's choice is written here, through ``page.html``. Everything that follows the thresholds, or the
filter and samples that a reader asks for, is drawn in the browser by the scripts beside this file, from one JSON block,
one block of arrays and one sheet of images. The page's own content security policy forbids every outside address.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

from gmmcnn.report import views
from gmmcnn.report.content import ReportContent
from gmmcnn.report.images import sheet
from gmmcnn.report.packing import packed

SCRIPTS = ("core", "screening", "drawing", "charts", "state", "thresholds", "table", "filter", "samples", "main")
"""In the order in which they stand in the page; each uses those before it."""


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
    masking = views.masking(content.masking)
    samples = views.sample_rows(content)
    order = _images_in_order(content, samples)
    pictures = sheet([content.images[sample] for sample in order])
    shown = order[: pictures.n_images] if pictures else []
    directory, block = packed(_arrays(content, shown))
    return template("page.html").render(
        scripts=SCRIPTS,
        content=content,
        tiles=views.tiles(content),
        layers=views.layers(content.filters),
        masking=masking,
        has_samples=bool(samples),
        sheet=pictures,
        block=Markup(block),
        data={
            "arrays": directory,
            "batches": content.n_batches,
            "classNames": content.class_names,
            "command": content.command,
            "epochs": list(content.ranks),
            "kMin": content.k_min,
            "layers": list(dict.fromkeys(content.filters["layer"])),
            "masking": masking and masking["lanes"],
            "metrics": views.curves(content.metrics),
            "places": content.places,
            "samples": samples,
            "samplesPerBatch": content.n_samples,
            "sheet": pictures and {"columns": pictures.columns, "rows": pictures.rows},
            "sliders": content.sliders._asdict(),
            "statuses": sorted(set(content.filters["status"])),
            "title": content.title,
        },
    )


_NUMBERS = (
    *("n_components", "n_components_share", "calinski_harabasz", "smallest_cluster", "n_small_clusters"),
    *("mean_activation", "active_share", "ch_over_average", "activation_over_average"),
)
"""Columns of the table of filters that no threshold of the page changes."""


def _arrays(content: ReportContent, images: list[int]) -> dict[str, NDArray]:
    """Everything of which there are many, by the name that the scripts know it by."""
    filters = content.filters
    layers, statuses = list(dict.fromkeys(filters["layer"])), sorted(set(filters["status"]))
    targets = np.full(max([content.n_batches * content.n_samples, *(s + 1 for s in content.targets)]), -1, np.int32)
    targets[list(content.targets)] = list(content.targets.values())
    return {
        "layer": np.array([layers.index(layer) for layer in filters["layer"]], np.uint16),
        "filter": filters["filter"].to_numpy(np.int32),
        "status": np.array([statuses.index(status) for status in filters["status"]], np.uint8),
        **{name: filters[name].to_numpy(np.float32, na_value=np.nan) for name in _NUMBERS},
        "ranks": np.stack([ranks.planes for ranks in content.ranks.values()]),
        "live": np.stack([ranks.live for ranks in content.ranks.values()]),
        "indexByK": content.index_by_k.astype(np.float32),
        "images": np.array(images, np.int32),
        "targets": targets,
        **{f"scatter.{name}": array for name, array in content.scatters._asdict().items()},
    }


def _images_in_order(content: ReportContent, samples: list[dict[str, Any]]) -> list[int]:
    """Samples that have an image: those of the gallery first, then those of the other dots, as there is room."""
    first = dict.fromkeys(row["sample"] for row in samples)
    return [sample for sample in first | dict.fromkeys(sorted(content.images)) if sample in content.images]


def _script(names: Sequence[str]) -> Markup:
    """Some scripts as one, whose names nobody else sees."""
    here = files("gmmcnn.report").joinpath("scripts")
    parts = [here.joinpath(f"{name}.js").read_text("utf-8") for name in names]
    return Markup('(() => {{\n"use strict";\n{}\n}})();').format(Markup("\n".join(parts)))


@cache
def template(name: str) -> Template:
    """A page's template, with what all of them use."""
    environment = Environment(
        loader=PackageLoader("gmmcnn.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": views.percent, "number": views.number, "plural": views.plural}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals["script"] = _script
    environment.globals["style"] = lambda: Markup(files("gmmcnn.report").joinpath("page.css").read_text("utf-8"))
    return environment.get_template(name)
