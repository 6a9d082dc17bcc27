"""Every table of the evidence is that of the data behind it, and its prose has no figure that no table has."""

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE / "docs"))

import evidence_tables  # noqa: E402

TABLE = r"<!-- table: (\S+) -->\n.*?<!-- end -->"


def test_the_tables_of_the_page_are_made_from_the_data():
    text = evidence_tables.PAGE.read_text()
    assert evidence_tables.written(text) == text
    assert set(re.findall(r"<!-- table: (\S+) -->", text)) == set(evidence_tables.tables())


def test_a_changed_digit_is_noticed():
    text = evidence_tables.PAGE.read_text()
    for found in re.finditer(TABLE, text, re.DOTALL):
        place = max(match.start() for match in re.finditer(r"\d", text[: found.end()]))
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        assert evidence_tables.written(changed) == text != changed


@pytest.mark.parametrize("claim", ["H1", "H2", "H3"])
def test_the_prose_on_a_claim_has_no_figures_of_its_own(claim):
    """What a sentence says of a result is read off the table below it, which is made anew from the data."""
    (section,) = re.findall(rf"^## {claim}: .*?(?=^## )", evidence_tables.PAGE.read_text(), re.DOTALL | re.MULTILINE)
    prose = re.sub(TABLE, "", section, flags=re.DOTALL)
    assert not re.findall(r"\d+[.,]\d|\d+ %|[+−]\d", prose)


def test_the_data_is_small():
    assert sum(path.stat().st_size for path in evidence_tables.DATA.iterdir()) < 10e6
