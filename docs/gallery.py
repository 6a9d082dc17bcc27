"""Reports of six networks that people know, and a page that leads to them: `make gallery`.

python docs/gallery.py FOLDER

Five are trained here, briefly, on a thousand images or so: what they show is how a report looks, not how good the
networks are. The sixth has random weights and random images: what chance alone looks like. Half an hour on two cores; a
run that is there is gone on with, or left as it is once it is done.
"""

import argparse
import re
import subprocess
import sys
from html import escape
from importlib.resources import files
from pathlib import Path

FASHION = ["data=fashion_mnist", "data.train_samples=1000"]
RUNS = {
    "lenet5-digits": ("LeNet-5 on digits, four wrong labels and four foreign images planted", ["demo=digits"]),
    "lenet5-fashion": ("LeNet-5 on Fashion-MNIST", ["model=lenet5", *FASHION, "train.epochs=20"]),
    "alexnet-fashion": (
        "AlexNet on Fashion-MNIST, a tenth of the labels wrong",
        ["model=alexnet", *FASHION, "data.label_noise=0.1", "train.epochs=10", "gmm.repeats=2"],
    ),
    "resnet8-digits": (
        "ResNet-8 on digits, a fifth of the labels wrong",
        ["model=resnet8", "data.label_noise=0.2", "train.epochs=15"],
    ),
    "resnet20-fashion": (
        "ResNet-20 on Fashion-MNIST", ["model=resnet20", *FASHION, "train.epochs=8", "gmm.repeats=2"],
    ),
}  # fmt: skip
"""Folder → what it shows, and what is said to gmmcnn. Fashion-MNIST: see docs/data.md."""
UNTRAINED = "resnet18-untrained"
EXAMPLE = Path(__file__).parent.parent / "examples" / "resnet.py"


def main(folder: Path) -> None:
    """Make what is missing of the gallery, and its page."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shown, settings) in RUNS.items():
        print(f"{name}: {shown}", flush=True)
        if not (folder / name / "report.html").exists():
            subprocess.run([sys.executable, "-m", "gmmcnn", *settings, f"run={folder / name}"], check=True)
    untrained = folder / UNTRAINED
    untrained.mkdir(exist_ok=True)
    if not (untrained / "report.html").exists():
        subprocess.run([sys.executable, str(EXAMPLE)], cwd=untrained, check=True)
        (untrained / "resnet18.html").rename(untrained / "report.html")
    (folder / "index.html").write_text(index(folder), encoding="utf-8")
    print(f"Gallery: {folder / 'index.html'}")


def index(folder: Path) -> str:
    """HTML page that leads to the reports in a folder, each with its headline."""
    titles = {name: shown for name, (shown, _) in RUNS.items()}
    titles[UNTRAINED] = "ResNet-18 as torchvision builds it, random weights and random images: chance alone"
    cards = []
    for name, shown in titles.items():
        page = (folder / name / "report.html").read_text("utf-8")
        headline = re.search(r'<p class="headline">(.*?)</p>', page, re.DOTALL)
        said = headline[1] if headline else ""
        cards.append(
            f'<section><h2><a href="{name}/report.html">{escape(shown)}</a></h2><p class="lead">{said}</p></section>'
        )
    style = files("gmmcnn.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>gmmcnn gallery</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><header><h1>Reports of six networks</h1></header>"
        f"<main>{''.join(cards)}</main></body></html>\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
