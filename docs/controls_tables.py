"""Tables of docs/controls.md: gathered from run folders, kept in docs/data, written into the page.

python docs/controls_tables.py gather runs/digits-lenet5 runs/fashion_mnist-lenet5 ...
python docs/controls_tables.py write

A run folder is named DATA-NETWORK and holds ``experiment=tied``, ``causal`` or ``gradients``. What stands in the page
between the comments ``table: NAME`` and ``end`` is made from docs/data alone; a test compares it.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from memorised_tables import DATA, DATA_SETS, HERE, NETWORKS, replaced

from gmmcnn.experiments.causal import CHOICES

PAGE = HERE / "controls.md"
EXPERIMENTS = ("tied", "causal", "gradients")
CELL = ["data", "network"]
_TIED = ["unbalanced", "separated", "active", "near_dead", "anomalous"]
_CAUSAL = ["left_out", "wrong_labels", "train_accuracy", "validation_accuracy", "accuracy_gap"]


def gather(folders: Iterable[Path]) -> None:
    """Keep every estimate behind a verdict, and by seed what else the tables show."""
    found: dict[str, list[pd.DataFrame]] = {}
    for folder in folders:
        data, _, network = folder.name.partition("-")
        for experiment in EXPERIMENTS:
            for place in folder.glob(f"experiments/{experiment}-*"):
                table = pd.read_csv(place / "table.csv")
                estimates = pd.read_csv(place / "estimates.csv").assign(experiment=experiment)
                for name, kept in (("estimates", estimates), (experiment, _KEPT[experiment](table))):
                    kept.insert(0, "data", data)
                    kept.insert(1, "network", network)
                    found.setdefault(name, []).append(kept)
    for name, parts in found.items():
        pd.concat(parts, ignore_index=True).to_parquet(DATA / f"controls-{name}.parquet", index=False)


def _filters(table: pd.DataFrame) -> pd.DataFrame:
    table = table.assign(near_dead=table["status"] == "near_dead")
    return table.groupby(["leak", "memory", "seed"])[_TIED].mean().reset_index()


def _left_out(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby(["dose", "choice", "seed"], sort=False)[_CAUSAL].mean().reset_index()


def _rounds(table: pd.DataFrame) -> pd.DataFrame:
    return table[["condition", "measure", "round", "seed", "auc", "auc_random", "auc_samples", "outliers"]].copy()


_KEPT = {"tied": _filters, "causal": _left_out, "gradients": _rounds}


def tables() -> dict[str, str]:
    """Every table of the page by its name, in Markdown."""
    estimates = pd.read_parquet(DATA / "controls-estimates.parquet")
    found = {str(name): "\n".join(claims(rows)) for name, rows in estimates.groupby("experiment", sort=False)}
    for name, (experiment, lines) in _MEASURED.items():
        if experiment in found:
            found[name] = "\n".join(lines(pd.read_parquet(DATA / f"controls-{experiment}.parquet")))
    return found


def written(text: str) -> str:
    """The page with its tables made anew."""
    return replaced(text, tables())


def claims(estimates: pd.DataFrame) -> Iterator[str]:
    """A row for each claim: the verdict, its effects, and the check whose interval reaches lowest."""
    yield "| | claim | verdict | effects [95 %], *detectable* | weakest check | seeds |"
    yield "|---|---|---|---|---|---|"
    for (data, network, claim), rows in estimates.groupby([*CELL, "claim"], sort=False):
        effects, checks = rows[rows["role"] == "effect"], rows[rows["role"] == "check"]
        weakest = checks.loc[(checks["low"] - checks["null"]).fillna(-9).idxmin()]
        yield (
            f"| {cell(data, network)} | {claim} | **{rows['verdict'].iloc[0]}** | "
            f"{'; '.join(_estimate(row) for _, row in effects.iterrows())} | {_estimate(weakest)} | "
            f"{_range(rows['seeds'])} |"
        )


def _estimate(row: pd.Series) -> str:
    if pd.isna(row["low"]):
        return f"{row['name']} {signed(row['value'])}" if pd.notna(row["value"]) else f"{row['name']}: none"
    detectable = "" if pd.isna(row["detectable"]) else f", *{row['detectable']:.3f}*"
    return f"{row['name']} {signed(row['value'])} [{signed(row['low'])}, {signed(row['high'])}]{detectable}"


def signed(value: float, digits: int = 3) -> str:
    """With a sign, but for what rounds to nothing."""
    nothing = abs(value) < 0.5 * 10**-digits
    return f"{0:.{digits}f}" if nothing else f"{value:+.{digits}f}".replace("-", "−")


def _range(seeds: pd.Series) -> str:
    return f"{seeds.min()}" if seeds.nunique() == 1 else f"{seeds.min()} to {seeds.max()}"


def cell(data: str, network: str) -> str:
    """What was trained on what, in words."""
    return f"{DATA_SETS[data]}, {NETWORKS[network]}"


def _shares(filters: pd.DataFrame) -> Iterator[str]:
    """How often each criterion holds in memory and in other filters: means over seeds."""
    yield "| | leak | filters | unbalanced | separated | active | near-dead | anomaly filters |"
    yield "|---|---|---|---|---|---|---|---|"
    means = filters.groupby([*CELL, "leak", "memory"])[_TIED].mean().sort_index(ascending=[True, True, True, False])
    for (data, network, leak, memory), row in means.iterrows():
        shares = " | ".join(f"{row[name]:.0%}" for name in _TIED)
        yield f"| {cell(data, network)} | {leak:g} | {'memory' if memory else 'others'} | {shares} |"


def _accuracies(left_out: pd.DataFrame) -> Iterator[str]:
    yield "| | left out | samples | of them wrong labels | training accuracy | validation accuracy | gap |"
    yield "|---|---|---|---|---|---|---|"
    means = left_out.groupby([*CELL, "dose", "choice"], sort=False)[_CAUSAL].mean()
    for (data, network, dose, choice), row in means.iterrows():
        what = "nothing" if dose == "none" else f"{dose}: {CHOICES.get(str(choice), 'random samples')}"
        wrong = "" if pd.isna(row["wrong_labels"]) else f"{row['wrong_labels']:.0%}"
        accuracies = " | ".join(f"{row[name]:.3f}" for name in _CAUSAL[2:])
        yield f"| {cell(data, network)} | {what} | {row['left_out']:.0f} | {wrong} | {accuracies} |"


def _by_round(rounds: pd.DataFrame) -> Iterator[str]:
    """AUC after each round, and beyond as many outliers of random filters: means over seeds."""
    numbers = sorted(rounds["round"].unique())
    yield f"| | network, gradient | {' | '.join(f'round {number}' for number in numbers)} |"
    yield "|---" * (2 + len(numbers)) + "|"
    rounds = rounds.assign(beyond=rounds["auc"] - rounds["auc_random"])
    means = rounds.groupby([*CELL, "condition", "measure", "round"], sort=False)[["auc", "beyond"]].mean()
    for (data, network, condition, measure), of_each in means.groupby(level=[0, 1, 2, 3], sort=False):
        values = " | ".join(f"{row['auc']:.2f} ({row['beyond']:+.2f})" for _, row in of_each.iterrows())
        yield f"| {cell(data, network)} | {condition}, {measure} | {values} |"


_MEASURED = {
    "filters": ("tied", _shares),
    "left-out": ("causal", _accuracies),
    "rounds": ("gradients", _by_round),
}
"""Table → the experiment that it shows, and what makes its lines."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gather", "write"])
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "gather":
        gather(arguments.folders)
    else:
        PAGE.write_text(written(PAGE.read_text()))
