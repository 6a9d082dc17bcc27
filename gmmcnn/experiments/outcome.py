"""What an experiment leaves behind: a table, the estimates behind its verdicts, figures, and the verdicts in words."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from gmmcnn.experiments.statistics import Verdict, estimates_table, several_judged
from gmmcnn.files import write_table, write_text
from gmmcnn.progress import say


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
    tables : dict of DataFrame
        What was made of the table, by file name without its ending.
    """

    table: pd.DataFrame
    verdicts: tuple[Verdict, ...]
    remarks: tuple[str, ...]
    figures: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Write all tables (``table.csv``), ``estimates.csv``, ``verdict.txt`` and the figures; say the verdicts.

        Where there are several, a line says what is left of them when that is taken into account.

        Returns
        -------
        list of Path
            The files written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in {"table": self.table, **self.tables}.items():
            write_table(folder / f"{name}.csv", table)
        several = [several_judged(self.verdicts)] if len(self.verdicts) > 1 else []
        lines = [*map(str, self.verdicts), *several, *self.remarks]
        if self.verdicts:
            parts = [
                estimates_table(verdict).assign(claim=verdict.claim, verdict=verdict.label) for verdict in self.verdicts
            ]
            write_table(folder / "estimates.csv", pd.concat(parts))
        write_text(folder / "verdict.txt", "\n".join(lines) + "\n")
        if self.figures:
            write_text(folder / "plotly.min.js", get_plotlyjs())  # where the pages look for it
        for name, figure in self.figures.items():
            write_text(folder / f"{name}.html", figure.to_html(include_plotlyjs="directory"))
        for line in lines:
            say(line)
        say(f"Tables and figures: {folder}")
        names = ["verdict.txt", *(f"{name}.csv" for name in ("table", *self.tables))]
        names += ["estimates.csv"] if self.verdicts else []
        names += ["plotly.min.js", *(f"{name}.html" for name in self.figures)] if self.figures else []
        return [folder / name for name in names]
