"""Print the tables of docs/evidence.md from the run folders of experiments.

python docs/evidence_tables.py runs/evidence/*

A run folder is named after its network and data; every experiment found in one adds a row for each of its claims.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd


def main(folders: Iterable[Path]) -> None:
    """Print one table for each experiment."""
    found = {
        (path.parent.name.rpartition("-")[0], folder.name): pd.read_csv(path)
        for folder in folders
        for path in sorted(folder.glob("experiments/*/estimates.csv"))
    }
    for experiment in dict.fromkeys(name for name, _ in found):
        runs = {run: table for (name, run), table in found.items() if name == experiment}
        print(f"### {experiment}\n")
        print(*table_of(runs), "", sep="\n")


def table_of(runs: dict[str, pd.DataFrame]) -> Iterator[str]:
    """Lines of a Markdown table: a row for each run and claim, a column for each estimate, the verdict last."""
    names = list(dict.fromkeys(name for table in runs.values() for name in table["name"]))
    header = ["network", "claim", *names, "verdict"]
    yield row(header)
    yield row(["---"] * len(header))
    for run, table in runs.items():
        for claim, estimates in table.groupby("claim", sort=False):
            cells = {estimate.name: in_numbers(estimate) for _, estimate in estimates.set_index("name").iterrows()}
            yield row([run, claim, *(cells.get(name, "") for name in names), estimates["verdict"].iloc[0]])


def in_numbers(estimate: pd.Series) -> str:
    """Value and 95 % interval; the value alone where too few seeds answer."""
    if pd.isna(estimate["value"]):
        return "—"
    interval = "" if pd.isna(estimate["low"]) else f" [{estimate['low']:+.3g}, {estimate['high']:+.3g}]"
    return f"{estimate['value']:+.3g}{interval}"


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(map(Path, sys.argv[1:]))
