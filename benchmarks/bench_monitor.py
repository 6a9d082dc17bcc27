"""What the monitor adds to a training: the time of a step as a share of an epoch's.

    python -m benchmarks.bench_monitor [--json FILE]

A plain training loop (Adam, batches of 64, no evaluation) with all cores, a step of the monitor after every epoch, with
its defaults: 200 samples, one start, one thread. The first step, which loads the compiled engine, is told apart. Then
the same with ``every="auto"``, where the monitor chooses the epochs.
"""

import argparse
import math
import os
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import gmmcnn
from benchmarks import cases, timing
from gmmcnn import config
from gmmcnn.data import Images, load
from gmmcnn.models import build

CASES = (
    ("lenet5", "digits", None),
    ("simple_cnn", "digits", None),
    ("lenet5", "fashion_mnist", 2000),
    ("lenet5", "fashion_mnist", 10000),
    ("simple_cnn", "fashion_mnist", 10000),
)
BAR = 0.05
"""Share of an epoch's time that the monitor shall stay within."""


@dataclass(frozen=True)
class Cost:
    """Medians over epochs, seconds; the share is the median of the shares in each epoch."""

    network: str
    data: str
    train_samples: int
    n_filters: int
    first_step_s: float
    epoch_s: float
    step_s: float
    share: float
    lowest_share: float
    highest_share: float
    auto_share: float
    """Of all steps but the first two in the time of all epochs but the first two, with ``every="auto"``."""

    @property
    def every(self) -> int:
        """Epochs from one step to the next that keep within the bar."""
        return max(1, math.ceil(self.share / BAR))


def main() -> None:
    parser = cases.parser(__doc__)
    parser.set_defaults(rounds=7)
    parser.add_argument("--samples", type=int, default=200, help="N, samples in the probe batch")
    parser.add_argument("--threads", type=int, default=1, help="of the monitor")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    costs = [measure(*case, arguments) for case in CASES]
    for cost in costs:
        print(
            f"{cost.network:11s} {cost.data:14s} {cost.train_samples:6d} samples {cost.n_filters:4d} filters   "
            f"epoch {1e3 * cost.epoch_s:7.0f} ms   step {1e3 * cost.step_s:5.1f} ms "
            f"(first {cost.first_step_s:.1f} s)   "
            f"share {cost.share:6.1%} ({cost.lowest_share:.1%} to {cost.highest_share:.1%})   "
            f"within {BAR:.0%} from every={cost.every}   every='auto': {cost.auto_share:.1%}"
        )
    sizes = {"samples": arguments.samples, "threads": arguments.threads, "rounds": arguments.rounds}
    timing.write_json(arguments.json, {"title": "monitor", "sizes": sizes, "results": [asdict(cost) for cost in costs]})


def measure(network: str, name: str, train_samples: int | None, arguments: argparse.Namespace) -> Cost:
    """Train, step after every epoch, and compare the times."""
    data = load(config.Data(name=name, train_samples=train_samples), seed=0)
    model = build(
        config.Model(name=network),
        in_channels=data.in_channels, image_size=data.image_size, n_classes=data.n_classes, seed=0,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    every_epoch = gmmcnn.OverfittingMonitor(
        model, data.train.images, samples=arguments.samples, threads=arguments.threads, engine="cpu"
    )
    by_itself = gmmcnn.OverfittingMonitor(
        model, data.train.images, samples=arguments.samples, threads=arguments.threads, engine="cpu", every="auto"
    )

    def times(monitor: gmmcnn.OverfittingMonitor, n_epochs: int) -> NDArray[np.float64]:
        """Seconds (E, 2) of each epoch and of the step after it."""
        return np.array([
            (timing.seconds(lambda: train_epoch(model, optimizer, data.train)),
            timing.seconds(lambda epoch=epoch: monitor.step(epoch)))
            for epoch in range(n_epochs)
        ])  # fmt: skip

    of_each = times(every_epoch, arguments.rounds + 1)
    first, (epochs, steps) = of_each[0, 1], of_each[1:].T
    shares = steps / epochs
    auto_epochs, auto_steps = times(by_itself, 2 + 4 * arguments.rounds)[2:].sum(axis=0)
    return Cost(
        network, name, len(data.train), every_epoch.analysis.fits.n_filters, first,
        float(np.median(epochs)), float(np.median(steps)), float(np.median(shares)), shares.min(), shares.max(),
        auto_steps / auto_epochs,
    )  # fmt: skip


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, samples: Images) -> None:
    """Pass once over the samples in random order."""
    model.train()
    for batch in torch.randperm(len(samples)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(samples.images[batch]), samples.labels[batch]).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
