"""Print the tables of docs/evidence.md from the run folders of experiments.

python docs/evidence_tables.py runs/evidence/*
python docs/evidence_tables.py --together flagged runs/seeds-0-to-7 runs/seeds-8-to-15

A run folder is named after its network and data, and is a row in the table of every claim that an experiment in it
judged; those on sensitivity and on scalability have tables of their own. What an experiment remarks besides is printed
as it stands. ``--together`` judges H1 by one count over the seeds of several folders.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from gmmcnn.experiments.following import at_the_same_fit, judge_over_training
from gmmcnn.experiments.overfitting import COUNTS
from gmmcnn.experiments.sensitivity import ESTIMATES
from gmmcnn.experiments.statistics import Estimate, Verdict

OVER_TRAINING = "experiments/overfitting-*/table.csv"
"""Counts beside losses, in a run folder."""


def main(folders: Iterable[Path]) -> None:
    """Print all tables, by experiment."""
    folders = list(folders)
    found = {
        (path.parent.name.rpartition("-")[0], folder.name): pd.read_csv(path)
        for folder in folders
        for path in sorted(folder.glob("experiments/*/estimates.csv"))
    }
    for experiment in dict.fromkeys(name for name, _ in found):
        runs = {run: table for (name, run), table in found.items() if name == experiment}
        print(f"### {experiment}\n")
        print(*tables_of(runs), sep="\n")
    followed = {folder.name: pd.read_csv(path) for folder in folders for path in folder.glob(OVER_TRAINING)}
    if followed:
        print("### fit\n\nThe gap, and filters, beyond those of the control at the same training loss:\n")
        print(*table_of_fit(followed), "", sep="\n")
    for folder in folders:
        for path in sorted(folder.glob("experiments/sensitivity-*/variants.csv")):
            print(f"### variants, {folder.name}\n")
            print(*table_of_variants(pd.read_csv(path)), "", sep="\n")
        for path in sorted(folder.glob("experiments/scalability-*/exponents.csv")):
            print(f"### growth, {folder.name}\n")
            print(*table_of_growth(pd.read_csv(path)), "", sep="\n")
    for folder in folders:
        print(f"### remarks, {folder.name}\n")
        for path in sorted(folder.glob("experiments/*/verdict.txt")):
            print(f"{path.parent.name.rpartition('-')[0]}:\n")
            print(*(f"- {line}" for line in remarks(path)), "", sep="\n")


def remarks(path: Path) -> Iterator[str]:
    """Lines of a ``verdict.txt`` that are no verdicts: those stand in the tables."""
    judged = path.with_name("estimates.csv")
    claims = tuple(pd.read_csv(judged)["claim"].unique()) if judged.exists() else ()
    yield from (line.strip() for line in path.read_text().splitlines() if not line.startswith(claims))


def together(folders: Iterable[Path], count: str) -> tuple[Verdict, Estimate]:
    """Verdict on H1 by one count, a column of ``experiment=overfitting``, over the seeds of all folders.

    And how much higher it is than in the control at the same training loss.
    """
    table = pd.concat([pd.read_csv(path) for folder in folders for path in folder.glob(OVER_TRAINING)])
    if table.duplicated(["seed", "condition", "round"]).any():
        raise ValueError("the folders share seeds; expected each seed in one of them")
    return judge_over_training(table, count, f"H1 by {count}"), at_the_same_fit(table, count)


def table_of_fit(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    """Lines of a Markdown table: a row for each run, a column for the gap and for each count."""
    yield row(["network", "seeds with a training loss in common", "gap", *COUNTS])
    yield row(["---"] * (3 + len(COUNTS)))
    for run, table in tables.items():
        estimates = [at_the_same_fit(table, column) for column in ("gap", *COUNTS)]
        yield row([run, str(estimates[0].n), *(in_numbers(pd.Series(vars(estimate))) for estimate in estimates)])


def table_of_growth(growths: pd.DataFrame) -> Iterator[str]:
    """Lines of a Markdown table: a row for each axis, a column for each cost of each stage."""
    columns = [(stage, cost) for cost in ("seconds", "peak_bytes") for stage in ("extract", "fit")]
    names = {"seconds": "time", "peak_bytes": "memory"}
    yield row(["varied", *(f"{names[cost]} of {stage}" for stage, cost in columns)])
    yield row(["---"] * (1 + len(columns)))
    for size, found in growths.groupby("size", sort=False):
        by_column = found.set_index(["stage", "cost"])
        cells = []
        for stage, cost in columns:
            growth = by_column.loc[(stage, cost)]
            ends = [f"{growth[end]:.2g} s" if cost == "seconds" else f"{growth[end] / 2**20:.0f} MiB"
                    for end in ("cost_at_smallest", "cost_at_largest")]  # fmt: skip
            cells.append(
                f"{growth['exponent']:.2f} ({growth['low']:.2f} to {growth['high']:.2f}), last {growth['last']:.2f}; "
                f"{ends[0]} to {ends[1]}"
            )
        sizes = found.iloc[0]
        yield row([f"{size}: {sizes['smallest']:g} to {sizes['largest']:g}", *cells])


def tables_of(runs: dict[str, pd.DataFrame]) -> Iterator[str]:
    """Lines of Markdown tables, one a claim: a row for each run, a column for each estimate, the verdict last."""
    everything = pd.concat([table.assign(run=run) for run, table in runs.items()])
    for claim, estimates in everything.groupby("claim", sort=False):
        names = list(estimates["name"].unique())
        yield f"{claim}:"
        yield ""
        yield row(["network", "seeds", *names, "verdict"])
        yield row(["---"] * (len(names) + 3))
        for run, found in estimates.groupby("run", sort=False):
            numbers = found.set_index("name")
            cells = [in_numbers(numbers.loc[name]) if name in numbers.index else "" for name in names]
            yield row([run, str(found["seeds"].max()), *cells, found["verdict"].iloc[0]])
        yield ""


def table_of_variants(variants: pd.DataFrame) -> Iterator[str]:
    """Lines of a Markdown table: a row for each variant, the value in force in bold."""
    yield row(["setting", "value", "λ·K_max/N", "filters", *ESTIMATES.values(), "verdict"])
    yield row(["---"] * (5 + len(ESTIMATES)))
    for _, variant in variants.iterrows():
        value = f"**{variant['value']}**" if variant["in_force"] else str(variant["value"])
        estimates = [
            in_numbers(
                pd.Series(
                    {key: variant.get(place) for key, place in zip(("value", "low", "high"), places, strict=True)}
                )
            )
            for places in ((name, f"{name}_low", f"{name}_high") for name in ESTIMATES)
        ]
        numbers = [f"{variant['ratio']:.2f}", f"{variant['count']:.1f}"]
        yield row([variant["factor"], value, *numbers, *estimates, variant["verdict"]])


def in_numbers(estimate: pd.Series) -> str:
    """Value and 95 % interval; the value alone where too few seeds answer."""
    if pd.isna(estimate["value"]):
        return "—"
    interval = "" if pd.isna(estimate["low"]) else f" [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"
    return f"{estimate['value']:+.3f}{interval}"


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--together", metavar="COUNT")
    arguments = parser.parse_args()
    if arguments.together:
        print(*together(arguments.folders, arguments.together), sep="\n")
    else:
        main(arguments.folders)
