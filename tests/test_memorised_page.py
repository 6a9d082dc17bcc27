"""Every table and figure on memorised samples is that of the data behind it."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE / "docs"))

import memorised_tables  # noqa: E402

EASY, HARD = ("digits", "fashion_mnist"), ("cifar10",)


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    """AUC by data set and network (rows) and score, mean over kinds and seeds."""
    aucs = pd.read_parquet(memorised_tables.DATA / "memorised-auc.parquet")
    return memorised_tables.of_seeds(aucs).groupby(["data", "network", "score"]).mean().unstack("score")


def test_the_tables_of_the_page_are_made_from_the_data():
    text = memorised_tables.PAGE.read_text()
    assert memorised_tables.written(text) == text
    assert set(re.findall(r"<!-- table: (\S+) -->", text)) == set(memorised_tables.tables())


def test_a_changed_digit_is_noticed():
    text = memorised_tables.PAGE.read_text()
    changed = text.replace("| 0.993 |", "| 0.994 |", 1)
    assert changed != text
    assert memorised_tables.written(changed) == text


@pytest.mark.parametrize(("score", "data"), [(s, d) for s in ("memorisation rank", "final loss") for d in (EASY, HARD)])
def test_the_readme_gives_the_range_over_networks(score, data, cells):
    values = cells.loc[list(data), score]
    expected = f"{values.min():.2f} to {values.max():.2f}"
    (paragraph,) = re.findall(
        r"Of samples that networks had memorised.*?\n\n", (HERE / "README.md").read_text(), re.DOTALL
    )
    found = re.findall(r"0\.\d\d(?:\s+to\s+)0\.\d\d", paragraph)
    place = {
        ("memorisation rank", EASY): 0,
        ("memorisation rank", HARD): 1,
        ("final loss", EASY): 2,
        ("final loss", HARD): 3,
    }
    assert " ".join(found[place[score, data]].split()) == expected


def test_the_readme_gives_the_range_of_the_rule(cells):
    values = cells["paper's rule"]
    assert f"the paper's rule {values.min():.2f} to {values.max():.2f};" in (HERE / "README.md").read_text()
    assert len(values) == 10
