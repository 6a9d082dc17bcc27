"""Tables of docs/evidence.md: gathered from run folders, kept in docs/data, written into the page.

python docs/evidence_tables.py gather runs/fashion_mnist-lenet5 runs/cifar10-lenet5 ...
python docs/evidence_tables.py write

A run folder is named DATA-NETWORK, or DATA-NETWORK-PART where its seeds are those of several, and holds
``experiment=crossed``. What stands in the page between the comments ``table: NAME`` and ``end`` is made from docs/data
alone; a test compares it. Of the earlier trainings only means and intervals over seeds are kept.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from controls_tables import cell, claims, signed
from memorised_tables import DATA, HERE, NETWORKS, replaced
from scipy import special

from gmmcnn.experiments.crossed import judge_crossed, regressed
from gmmcnn.experiments.intervals import CONFIDENCE, MIN_SEEDS, detectable
from gmmcnn.experiments.overfitting import CLAIMS, COUNTS
from gmmcnn.experiments.statistics import discovered, estimates_table

PAGE = HERE / "evidence.md"
CROSSED = DATA / "evidence-crossed.parquet"
EARLIER = {
    "lenet5-fashion_mnist": "LeNet-5, Fashion-MNIST",
    "lenet5-fashion_mnist-quick": "LeNet-5, Fashion-MNIST, 1,000 samples",
    "heldout-fashion_mnist-n100": "LeNet-5, Fashion-MNIST, N = 100",
    "lenet5-cifar10": "LeNet-5, CIFAR-10",
    "heldout-cifar10-n100": "LeNet-5, CIFAR-10, N = 100",
    "heldout2-cifar10-n100": "LeNet-5, CIFAR-10, N = 100, further seeds",
    "lenet5-cifar10-fit": "LeNet-5, CIFAR-10, N = 100, control of 4 × the samples",
    "simple_cnn-cifar10": "simple CNN, CIFAR-10",
    "alexnet-cifar10": "AlexNet, CIFAR-10",
    "alexnet-cifar10-heldout": "AlexNet, CIFAR-10, further seeds",
    "alexnet-cifar10-fit": "AlexNet, CIFAR-10, control of 2 × the samples",
    "resnet8-cifar10": "ResNet-8, CIFAR-10",
    "resnet8-cifar10-branch": "ResNet-8, CIFAR-10, tap `branch`",
}
"""Run of the earlier trainings → what it was."""
_MASKING = "H3, masking anomaly filters{} raises validation and lowers training accuracy"
_EXCEED = "H2, outliers exceed normal samples in the gradient"
H1 = {"H1, filters that meet all criteria rise with the generalisation gap": ""}
H2 = {_EXCEED: "norm", f"{_EXCEED} per unit error": "per unit error"}
H3 = {_MASKING.format(""): "", _MASKING.format(" by the strict rule"): "strict rule"}
"""Claim of the earlier trainings → what sets it apart in its table."""


def gather(folders: Iterable[Path]) -> None:
    """Keep everything that was measured in the crossed design."""
    parts = []
    for folder in folders:
        data, network = folder.name.split("-")[:2]
        for path in folder.glob("experiments/crossed-*/table.csv"):
            parts.append(pd.read_csv(path).assign(data=data, network=network))
    pd.concat(parts, ignore_index=True).to_parquet(CROSSED, index=False)


def tables() -> dict[str, str]:
    """Every table of the page by its name, in Markdown."""
    earlier = pd.read_parquet(DATA / "evidence-earlier.parquet")
    crossed = pd.read_parquet(CROSSED)
    made = {
        "trainings": _trainings(pd.read_parquet(DATA / "evidence-trainings.parquet")),
        "h1": _earlier(earlier, H1),
        "h2": _earlier(earlier, H2),
        "h3": _earlier(earlier, H3),
        "settings": _settings(pd.read_parquet(DATA / "evidence-variants.parquet")),
        "search": _search(pd.read_parquet(DATA / "evidence-search.parquet")),
        "planted": _planted(pd.read_parquet(DATA / "evidence-planted.parquet")),
        "growth": _growth(pd.read_parquet(DATA / "evidence-growth.parquet")),
        "crossed": _crossed(crossed),
        "coefficients": _coefficients(crossed),
        "cells": _cells(crossed),
    }
    return {name: "\n".join(lines) for name, lines in made.items()}


def written(text: str) -> str:
    """The page with its tables made anew."""
    return replaced(text, tables())


def _crossed(table: pd.DataFrame) -> Iterator[str]:
    parts = []
    for (data, network), rows in table.groupby(["data", "network"], sort=False):
        verdicts = [judge_crossed(rows, column, f"{CLAIMS[column]} follow the gap") for column in COUNTS]
        for verdict, stays in zip(verdicts, discovered(verdicts), strict=True):
            word = verdict.label + (" (false discovery rate held)" if stays else "")
            estimates = estimates_table(verdict).assign(claim=verdict.claim, verdict=word)
            parts.append(estimates.assign(data=data, network=network))
    yield from claims(pd.concat(parts, ignore_index=True))


def _coefficients(table: pd.DataFrame) -> Iterator[str]:
    yield "| | count | gap | updates | training loss |"
    yield "|---|---|---|---|---|"
    for (data, network), rows in table.groupby(["data", "network"], sort=False):
        for column in COUNTS:
            values = " | ".join(_number(e.value, e.low, e.high, 2) for e in regressed(rows, column))
            yield f"| {cell(data, network)} | {CLAIMS[column]} | {values} |"


def _cells(table: pd.DataFrame) -> Iterator[str]:
    """Every kind of training after its last round: means over seeds."""
    yield "| | samples | wrong labels | weight decay | updates | training loss | gap (nats) | training accuracy | gap in accuracy | filters flagged |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|---|---|"
    last = table[table["round"] == table["round"].max()]
    for (data, network, name), rows in last.groupby(["data", "network", "cell"], sort=False):
        mean = rows.mean(numeric_only=True)
        decay = str(name).partition("train.weight_decay=")[2].split(" ")[0]
        yield (
            f"| {cell(data, network)} | {mean['train_samples']:,.0f} | {mean['wrong_labels']:.0%} | {decay} | "
            f"{mean['updates']:,.0f} | {mean['train_loss']:.2f} | {signed(mean['gap'], 2)} | "
            f"{mean['train_accuracy']:.0%} | {signed(mean['accuracy_gap'], 2)} | {mean['flagged']:.1f} |"
        )


def _trainings(found: pd.DataFrame) -> Iterator[str]:
    yield "| | gap at the end, of the control (nats) | training accuracy | filters flagged, first → last round | of the control |"  # noqa: E501
    yield "|---|---|---|---|---|"
    for run, name in EARLIER.items():
        rows = found[found["run"] == run].set_index("condition")
        if len(rows):
            own, control = rows.loc["overfitting"], rows.loc["control"]
            yield (
                f"| {name} | {signed(own['gap_last'], 2)}, {signed(control['gap_last'], 2)} | "
                f"{own['train_accuracy_last']:.0%}, {control['train_accuracy_last']:.0%} | "
                f"{own['flagged_first']:.1f} → {own['flagged_last']:.1f} | "
                f"{control['flagged_first']:.1f} → {control['flagged_last']:.1f} |"
            )


def _earlier(earlier: pd.DataFrame, kinds: dict[str, str]) -> Iterator[str]:
    """A row for each run and claim, a column for each estimate."""
    rows = earlier[earlier["claim"].isin(list(kinds)) & earlier["value"].notna()]
    names = list(rows["name"].unique())
    yield f"| | seeds | {' | '.join(names)} |"
    yield "|---|---" + "|---" * len(names) + "|"
    for (run, title), (claim, kind) in product(EARLIER.items(), kinds.items()):
        own = rows[(rows["run"] == run) & (rows["claim"] == claim)].set_index("name")
        if len(own):
            cells = [
                _number(own["value"][name], own["low"][name], own["high"][name], 1 if name.startswith("rise") else 2)
                + _detectable(own.loc[name])
                for name in names
            ]
            yield f"| {title}{f', {kind}' if kind else ''} | {own['seeds'].iloc[0]} | {' | '.join(cells)} |"


def _detectable(row: pd.Series) -> str:
    """From Student's interval, which is cut off at most on one side."""
    n = int(row["seeds"])
    if n < MIN_SEEDS or pd.isna(row["low"]):
        return ""
    half = max(row["value"] - row["low"], row["high"] - row["value"])
    spread = half * np.sqrt(n) / special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    return f", *{spread * detectable(n):.2f}*"


def _number(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value):
        return "—"
    interval = "" if pd.isna(low) else f" [{signed(low, digits)}, {signed(high, digits)}]"
    return f"{signed(value, digits)}{interval}"


def _settings(variants: pd.DataFrame) -> Iterator[str]:
    """The range of the estimates over the values of each setting."""
    yield "| setting | values | filters flagged | Spearman with the gap | given the epoch |"
    yield "|---|---|---|---|---|"
    for factor, rows in variants.groupby("factor", sort=False):
        values = rows["value"] if len(rows) <= 6 else [f"{len(rows)} combinations of λ, K_max and N"]
        ranges = " | ".join(
            f"{signed(rows[c].min(), 2)} … {signed(rows[c].max(), 2)}" for c in ("effect", "given_epoch")
        )
        yield f"| {factor} | {', '.join(values)} | {rows['count'].min():.1f} … {rows['count'].max():.1f} | {ranges} |"


def _search(found: pd.DataFrame) -> Iterator[str]:
    """A row for each network in which something looked supported, and one for all others."""
    yield "| | cells | questions | looked supported | by chance at most | held on further seeds |"
    yield "|---|---|---|---|---|---|"
    looked = found["looked"] > 0
    for _, row in found[looked].iterrows():
        name = f"{row['hypothesis']}, {NETWORKS.get(row['run'], 'LeNet-5')}, CIFAR-10"
        yield _asked(name, row, f"{row['held']}: {row['what']}" if row["held"] else "0")
    yield _asked("all others", found[~looked].drop(columns="cells").sum(numeric_only=True), "")


def _asked(name: str, row: pd.Series, held: str) -> str:
    by_chance = row["questions"] * (1 - CONFIDENCE) / 2
    return f"| {name} | {row.get('cells', '')} | {row['questions']} | {row['looked']} | {by_chance:.1f} | {held} |"


def _planted(found: pd.DataFrame) -> Iterator[str]:
    yield "| noise images planted | strength (standard deviations of the pixels) | of them found | others reported |"
    yield "|---|---|---|---|"
    for _, row in found.iterrows():
        planted = int(row["planted"])
        strength, share = (f"{row['strength']:g}", f"{row['found']:.0%}") if planted else ("", "")
        yield f"| {planted} | {strength} | {share} | {row['others']:.0f} |"


def _growth(found: pd.DataFrame) -> Iterator[str]:
    costs = list(found["cost"].unique())
    yield f"| varied | {' | '.join(costs)} |"
    yield "|---" * (1 + len(costs)) + "|"
    for size, rows in found.groupby("size", sort=False):
        rows = rows.set_index("cost")
        cells = [
            f"{signed(rows['exponent'][c], 2)} [{signed(rows['low'][c], 2)}, {signed(rows['high'][c], 2)}]; "
            f"{rows['at_smallest'][c]:g} → {rows['at_largest'][c]:g} {rows['unit'][c]}"
            for c in costs
        ]
        yield f"| {size}: {rows['smallest'].iloc[0]} to {rows['largest'].iloc[0]} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gather", "write"])
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "gather":
        gather(arguments.folders)
    else:
        PAGE.write_text(written(PAGE.read_text()))
