"""Modules are found under the names that they had before they moved, and are the same modules."""

import subprocess
import sys
from importlib import import_module

import pytest

MOVED = {
    "cost": "hardware.cost_model",
    "gpu": "hardware.gpu",
    "gradients": "models.gradients",
    "kernel_loader": "hardware.kernel_loader",
    "pca_cuda": "principal_components.cuda",
    "structural": "pruning.structural",
}


@pytest.mark.parametrize("earlier", MOVED)
def test_an_earlier_name_is_the_module_that_moved(earlier):
    assert import_module(f"gmmcnn.{earlier}") is import_module(f"gmmcnn.{MOVED[earlier]}")


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, gmmcnn; print(*(name for name in sys.modules if name.startswith('gmmcnn.')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
