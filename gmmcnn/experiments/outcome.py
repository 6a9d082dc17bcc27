"""What an experiment leaves behind: a table, the estimates behind its verdicts, figures, and the verdicts in words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gmmcnn.console import say
from gmmcnn.experiments.statistics import Verdict, estimates_table


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment.

    Attributes
    ----------
    table : DataFrame
        Everything measured, one row a measurement.
    verdicts : tuple of Verdict
        On the claim itself first; may be empty where the experiment describes and claims nothing.
    remarks : tuple of str
        What else is to be said, one line each.
    figures : dict of plotly figures
        By file name without its ending.
    """

    table: pd.DataFrame
    verdicts: tuple[Verdict, ...]
    remarks: tuple[str, ...]
    figures: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write ``table.csv``, ``estimates.csv``, ``verdict.txt`` and one HTML page a figure; say the verdicts."""
        folder.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(folder / "table.csv", index=False)
        lines = [*map(str, self.verdicts), *self.remarks]
        if self.verdicts:
            parts = [
                estimates_table(verdict).assign(claim=verdict.claim, verdict=verdict.label) for verdict in self.verdicts
            ]
            pd.concat(parts).to_csv(folder / "estimates.csv", index=False)
        (folder / "verdict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, figure in self.figures.items():
            figure.write_html(folder / f"{name}.html", include_plotlyjs="directory")
        for line in lines:
            say(line)
        say(f"Tables and figures: {folder}")
