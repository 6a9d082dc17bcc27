"""The gallery: commands that the command line takes, and a page that leads to what they made."""

import importlib.util
from pathlib import Path

import pytest

from gmmcnn import cli

PATH = Path(__file__).parent.parent / "docs" / "gallery.py"
spec = importlib.util.spec_from_file_location("gallery", PATH)
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


@pytest.mark.parametrize("name", gallery.RUNS)
def test_each_run_is_one_that_the_command_line_takes(name):
    cli.check([*gallery.RUNS[name][1], f"run={name}"])


def test_the_page_leads_to_six_reports_and_says_what_each_found(tmp_path):
    for name in (*gallery.RUNS, gallery.UNTRAINED):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.html").write_text(f'<p class="headline">{name} found &lt;this&gt;</p>')
    page = gallery.index(tmp_path)
    for name in (*gallery.RUNS, gallery.UNTRAINED):
        assert f'href="{name}/report.html"' in page
        assert f"{name} found &lt;this&gt;" in page
    assert page.count("<h2>") == 6
