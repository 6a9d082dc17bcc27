"""The Lightning callback in real trainings."""

import subprocess
import sys
import warnings

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gmmcnn.errors import ConfigurationError
from gmmcnn.monitor import COLUMNS, OverfittingMonitor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # whatever Lightning's own imports deprecate
    from lightning.pytorch import LightningModule, Trainer, seed_everything
    from lightning.pytorch.loggers import CSVLogger

    from gmmcnn.lightning import OverfittingCallback

# Lightning 2.6 with torch 2.13: its copy of torch's tree functions uses a class that torch renames. And a machine with
# Slurm's commands gets advice to use them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning", "ignore:The `srun` command is available"
)

SETTINGS = {"samples": 60, "k_max": 4, "engine": "cpu"}
NAMES = [f"gmmcnn/{name}" for name in COLUMNS[1:]]


class Classifier(LightningModule):
    """A small network with batch normalisation and dropout, for 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture
def loader(digits):
    data = TensorDataset(digits.train.images[:200], digits.train.labels[:200])
    return DataLoader(data, batch_size=50, shuffle=True)


def fit(loader, *callbacks, epochs=3, logger=False):
    """Train a classifier from seed 0."""
    seed_everything(0, verbose=False)
    module = Classifier()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=list(callbacks), logger=logger, log_every_n_steps=1,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module, trainer


def test_the_counts_are_logged_every_epoch(loader, tmp_path):
    callback = OverfittingCallback(**SETTINGS)
    module, trainer = fit(loader, callback, logger=CSVLogger(tmp_path, "", ""))
    history = callback.monitor.history
    assert history["epoch"].tolist() == [0, 1, 2]
    logged = pd.read_csv(next(tmp_path.rglob("metrics.csv"))).dropna(subset=NAMES)
    assert logged["epoch"].tolist() == [0, 1, 2]
    assert logged[NAMES].to_numpy().tolist() == history[list(COLUMNS[1:])].to_numpy().tolist()
    assert float(trainer.callback_metrics["gmmcnn/live"]) == history["live"].iloc[-1]
    again = OverfittingMonitor(module, loader, **SETTINGS).step(2)
    assert again == history.iloc[-1].to_dict()


def test_the_training_ends_with_the_same_weights_as_without(loader, digits):
    plain, _ = fit(loader)
    drawn, _ = fit(loader, OverfittingCallback(**SETTINGS))
    given, _ = fit(loader, OverfittingCallback(digits.train.images[:100], **SETTINGS))
    for name, value in plain.state_dict().items():
        assert torch.equal(drawn.state_dict()[name], value)
        assert torch.equal(given.state_dict()[name], value)


def test_epochs_are_left_out(loader):
    callback = OverfittingCallback(every=2, **SETTINGS)
    fit(loader, callback, epochs=4)
    assert callback.monitor.history["epoch"].tolist() == [0, 2]


def test_each_training_has_its_own_monitor(loader):
    callback = OverfittingCallback(**SETTINGS)
    fit(loader, callback, epochs=1)
    first = callback.monitor
    fit(loader, callback, epochs=1)
    assert callback.monitor is not first
    assert len(first.history) == len(callback.monitor.history) == 1


def test_a_probe_is_asked_for_where_there_is_no_single_loader(loader):
    with pytest.raises(
        ConfigurationError, match="the trainer reads a list, not one DataLoader; give the callback a probe"
    ):
        fit([loader, loader], OverfittingCallback(**SETTINGS))


def test_importing_gmmcnn_does_not_import_lightning():
    code = (
        "import sys, gmmcnn; gmmcnn.OverfittingMonitor; assert 'lightning' not in sys.modules;"
        "sys.modules['lightning'] = None\n"
        "try: import gmmcnn.lightning\n"
        "except ImportError as error: assert 'pip install' in str(error), error\n"
        "else: raise AssertionError('imported without Lightning')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
