"""Time and memory of work that takes a known amount of both; processes that die."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gmmcnn import config
from gmmcnn.errors import EngineError
from gmmcnn.experiments.costs import Cell, Isolated, build, measure_cell

MIB = 2**20
SETTINGS = config.Settings(gmm=config.Gmm(k_max=4, n_init=2, repeats=1), engine=config.Engine(threads=1))


def test_peak_memory_is_what_the_work_takes_at_once_and_not_what_came_before():
    program = (  # in a process of its own, where nothing else comes and goes
        "import json, time, numpy as np\n"
        "from gmmcnn.experiments.costs import costs_of\n"
        "def work():\n"
        "    for _ in range(3):\n"
        "        np.ones(40 << 17)\n"  # 40 MiB, touched, then freed
        "        time.sleep(0.02)\n"
        "np.ones(200 << 17)\n"
        "print(json.dumps([costs_of(work), costs_of(lambda: None)]))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    busy, idle = json.loads(run.stdout)
    assert 35 * MIB < busy["peak_bytes"] < 60 * MIB
    assert 0.06 <= busy["seconds"] < 5
    assert idle["peak_bytes"] == MIB


def test_a_killed_process_is_told_with_its_cell():
    images = np.zeros((20, 1, 8, 8), np.float32)
    with Isolated() as isolated, pytest.raises(EngineError, match=r"width=2, depth=1.*killed"):
        measure_cell(lambda *_: isolated(os._exit, 9), Cell(2, 1, 4, 20, 1), SETTINGS, images)


def test_networks_keep_the_size_of_the_maps_and_the_scale_of_the_signal():
    network = build(Cell(width=32, depth=8, side=12, samples=20, batches=1), 3, seed=0)
    images = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = network(images)
    assert maps.shape == (20, 32, 12, 12)
    assert 0.05 < maps.std() / images.std() < 20
    again = build(Cell(width=32, depth=8, side=12, samples=20, batches=1), 3, seed=0)
    assert torch.equal(again.get_parameter("conv8.weight"), network.get_parameter("conv8.weight"))
