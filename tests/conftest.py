"""Data and trained networks that tests share; each is made once a session."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

from gmmcnn import config
from gmmcnn.data import Images, Splits, load
from gmmcnn.data.fashion_mnist import SYSTEM_FOLDER
from gmmcnn.models import build
from gmmcnn.models.training import TrainingResult, train

settings.register_profile("gmmcnn", deadline=None, derandomize=True)  # a busy machine is no failure; every run is alike
settings.load_profile("gmmcnn")
torch.set_num_threads(1)  # the networks here are so small that threads would only wait for each other


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run of ``-m gpu`` in which no test passed has shown nothing, and fails."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.markexpr == "gpu" and reporter and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def fashion_mnist_root() -> Path:
    """Folder of the Fashion-MNIST files."""
    if not (SYSTEM_FOLDER / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no Fashion-MNIST files in {SYSTEM_FOLDER}; remedy: apt-get install dataset-fashion-mnist")
    return SYSTEM_FOLDER


@pytest.fixture(scope="session")
def digits() -> Splits:
    """The digits, split by seed 0."""
    return load(config.Data(name="digits"), seed=0)


@pytest.fixture(scope="session")
def fashion_mnist(fashion_mnist_root: Path) -> Splits:
    """2,000 training and 1,000 validation images of Fashion-MNIST."""
    data = load(config.Data(name="fashion_mnist", root=str(fashion_mnist_root), train_samples=2000), seed=0)
    return replace(data, validation=Images(data.validation.images[:1000], data.validation.labels[:1000]))


def build_for(name: str, data: Splits, seed: int = 0) -> nn.Module:
    """A built-in network for a data set."""
    return build(
        config.Model(name=name),
        in_channels=data.in_channels, image_size=data.image_size, n_classes=data.n_classes, seed=seed,
    )  # fmt: skip


@pytest.fixture(scope="session")
def _digits_cnn(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, TrainingResult]:
    model = build_for("simple_cnn", digits)
    result = train(
        model, digits, config.Train(epochs=6, learning_rate=3e-3), tmp_path_factory.mktemp("digits_cnn"), seed=0
    )
    return model, result


@pytest.fixture
def digits_cnn(_digits_cnn: tuple[nn.Module, TrainingResult]) -> nn.Module:
    """A simple_cnn trained on ``digits`` for six epochs; every test has its own copy."""
    return copy.deepcopy(_digits_cnn[0])


@pytest.fixture(scope="session")
def digits_training(_digits_cnn: tuple[nn.Module, TrainingResult]) -> TrainingResult:
    """Checkpoints and metrics of ``digits_cnn``, to be read only."""
    return _digits_cnn[1]


@pytest.fixture(scope="session")
def _fashion_lenet5(fashion_mnist: Splits, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    model = build_for("lenet5", fashion_mnist)
    train(model, fashion_mnist, config.Train(epochs=10), tmp_path_factory.mktemp("fashion_lenet5"), seed=0)
    return model


@pytest.fixture
def fashion_lenet5(_fashion_lenet5: nn.Module) -> nn.Module:
    """A LeNet-5 trained on ``fashion_mnist`` for ten epochs; every test has its own copy."""
    return copy.deepcopy(_fashion_lenet5)
