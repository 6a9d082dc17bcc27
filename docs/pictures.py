"""Pictures for README and docs, by a browser: of a report, and of the evidence in docs/data.

python docs/pictures.py runs/demo/report.html
python docs/pictures.py
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import plotly.express as px
from controls_tables import cell
from evidence_tables import CROSSED
from playwright.sync_api import Page, sync_playwright

from gmmcnn.experiments.crossed import regressed
from gmmcnn.experiments.overfitting import CLAIMS, COUNTS

FOLDER = Path(__file__).parent / "pictures"
SECTIONS = ("samples",)
WIDTH, TALLEST, MARGIN = 1160, 716, 20
"""Pixels."""
NAMES = {"gap": "generalisation gap", "updates": "updates", "train_loss": "training loss"}


@contextmanager
def opened(page: Path) -> Iterator[Page]:
    """Open a page in a browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        yield shown
        browser.close()


def of_report(report: Path) -> None:
    """Take a picture of each of some sections of a report."""
    with opened(report) as page:
        for section in SECTIONS:
            box = page.locator(f"#{section}").bounding_box()
            assert box is not None
            wider = {"x": box["x"] - MARGIN, "width": box["width"] + 2 * MARGIN}
            clip = box | wider | {"height": min(box["height"], TALLEST)}
            page.screenshot(path=FOLDER / f"{section}.png", clip=clip, full_page=True)


def of_evidence() -> None:
    """Draw what the counts follow in the crossed design."""
    rows = [
        {"trained": cell(data, network), "count": CLAIMS[column], "on": NAMES[estimate.name], **vars(estimate)}
        for (data, network), table in pd.read_parquet(CROSSED).groupby(["data", "network"], sort=False)
        for column in COUNTS
        for estimate in regressed(table, column)
    ]
    found = pd.DataFrame(rows)
    figure = px.scatter(
        found, x="value", y="count", color="on", facet_col="trained", symbol="on", height=330, width=WIDTH,
        error_x=found["high"] - found["value"], error_x_minus=found["value"] - found["low"],
        labels={"value": "standardised coefficient of ranks, 95 % over seeds", "count": "", "trained": "", "on": ""},
    )  # fmt: skip
    figure.update_traces(marker_size=9).update_layout(scattermode="group", scattergap=0.6, template="plotly_white")
    figure.add_vline(0, line_dash="dot").for_each_annotation(lambda title: title.update(text=title.text.lstrip("=")))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "crossed.html"
        figure.write_html(path, include_plotlyjs=True)
        with opened(path) as page:
            page.locator(".plotly").screenshot(path=FOLDER / "crossed.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.report:
        of_report(arguments.report)
    else:
        of_evidence()
