"""The content of a report is plain data, which needs nothing that computes."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from gmmcnn.report.content import ReportContent


def test_contents_are_frozen_and_share_nothing(bare: ReportContent) -> None:
    given = {field.name: getattr(bare, field.name) for field in fields(ReportContent) if field.name != "targets"}
    first, second = ReportContent(**given), ReportContent(**given)
    assert first.targets == {}
    assert first.targets is not second.targets
    with pytest.raises(FrozenInstanceError):
        first.title = "other"
    assert replace(first, title="other").filters is first.filters


def test_every_part_that_may_be_missing_says_so_by_its_type() -> None:
    optional = {field.name for field in fields(ReportContent) if "None" in str(field.type)}
    assert optional == {"metrics", "class_names", "masking", "ranks", "command"}


def test_describing_a_report_loads_neither_networks_nor_stores() -> None:
    code = (
        "import sys, gmmcnn.report.content;"
        "assert not {'torch', 'numba', 'zarr', 'plotly'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
