"""Every table on the controls is that of the data behind it."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE / "docs"))

import controls_tables  # noqa: E402


def test_the_tables_of_the_page_are_made_from_the_data():
    text = controls_tables.PAGE.read_text()
    assert controls_tables.written(text) == text
    assert set(re.findall(r"<!-- table: (\S+) -->", text)) == set(controls_tables.tables())


def test_a_changed_digit_is_noticed():
    text = controls_tables.PAGE.read_text()
    tables = re.findall(r"<!-- table: \S+ -->\n.*?<!-- end -->", text, re.DOTALL)
    assert len(tables) == len(controls_tables.tables()) >= 4
    for table in tables:
        place = text.index(table) + max(match.start() for match in re.finditer(r"\d", table))
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        assert controls_tables.written(changed) == text != changed
