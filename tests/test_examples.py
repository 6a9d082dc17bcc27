"""The examples run as they stand, and say what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def said_by(name: str, folder: Path, warnings: str = "error") -> str:
    command = [sys.executable, "-W", warnings, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plain_loop_finds_most_wrong_labels(tmp_path):
    said = said_by("plain_loop.py", tmp_path)
    (found,) = re.findall(r"(\d+) of the 60 wrong labels", said)
    assert int(found) >= 40  # by chance six
    assert len(re.findall(r"^\d+ +\d+ ", said, re.MULTILINE)) >= 3


def test_a_residual_network_is_tapped_behind_its_additions(tmp_path):
    said = said_by("resnet.py", tmp_path)
    assert "4,800 filters in 20 layers" in said
    assert "add, relu" in said
    assert (tmp_path / "resnet18.html").exists()


def test_pictures_in_the_wrong_folder_are_found(tmp_path):
    (found,) = re.findall(r"(\d+) of the 20 pictures", said_by("image_folder.py", tmp_path))
    assert int(found) >= 14  # by chance two


def test_lightning_counts_in_every_epoch(tmp_path):
    pytest.importorskip("lightning")
    said = said_by("lightning_training.py", tmp_path, "default")  # Lightning warns of few workers
    assert [line.split()[0] for line in said.splitlines()[-4:]] == ["0", "1", "2", "3"]


def test_a_network_of_timm_is_analysed(tmp_path):
    pytest.importorskip("timm", exc_type=ImportError)
    said = said_by("timm_network.py", tmp_path, "default")
    assert "filters" in said
    assert (tmp_path / "mobilenetv3.html").exists()
