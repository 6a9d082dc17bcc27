"""Pictures of a report for README and docs, by a browser.

python docs/pictures.py runs/demo/report.html
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "pictures"
SECTIONS = ("samples",)
WIDTH, TALLEST, MARGIN = 1160, 716, 20
"""Pixels."""


def main(report: Path) -> None:
    """Take a picture of each of some sections of a report."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        for section in SECTIONS:
            box = page.locator(f"#{section}").bounding_box()
            assert box is not None
            wider = {"x": box["x"] - MARGIN, "width": box["width"] + 2 * MARGIN}
            clip = box | wider | {"height": min(box["height"], TALLEST)}
            page.screenshot(path=FOLDER / f"{section}.png", clip=clip, full_page=True)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    main(parser.parse_args().report)
