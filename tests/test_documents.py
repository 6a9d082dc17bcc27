"""What README and docs tell people to type: commands that are taken, code that runs, links that lead somewhere."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch

from gmmcnn import cli
from gmmcnn.models.plain import LeNet5

HERE = Path(__file__).parent.parent
PAGES = [HERE / "README.md", HERE / "CONTRIBUTING.md", HERE / "SECURITY.md", *sorted((HERE / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line.startswith("gmmcnn ") or line == "gmmcnn"})


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_the_command_line_takes(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = "conditions" if "run=runs/conditions-" in command else "overfitting"  # what the page says NAME stands for
    command = command.replace("...", "").replace("=NAME", f"={name}").replace('"experiment.grid=GRID"', "")
    arguments = shlex.split(command, comments=True)[1:]
    cli.check([cli._normalise(argument) for argument in arguments])


def test_commands_are_found():
    assert len(commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_readme_is_read_in_three_minutes():
    assert len((HERE / "README.md").read_text().splitlines()) <= 120


def test_the_example_of_the_readme_runs(digits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(HERE / "README.md", "python")
    torch.manual_seed(0)
    images, labels = digits.train.images[:400], digits.train.labels[:400]
    model = LeNet5(in_channels=1, image_size=(8, 8), n_classes=10).eval()
    names = {"model": model, "images": images, "labels": labels}
    exec(example, names)
    assert len(names["analysis"].samples) == 400
    assert (tmp_path / "report.html").stat().st_size > 1e5
