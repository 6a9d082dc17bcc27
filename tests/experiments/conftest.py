"""Networks at their smallest, trained and analysed once for all tests of the experiments."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gmmcnn import config
from gmmcnn.experiments.laboratory import Laboratory


def _settings(**experiment) -> config.Settings:
    return config.Settings(
        task="experiment",
        data=config.Data(name="digits", label_noise=0.2),
        model=config.Model(name="lenet5"),
        train=config.Train(learning_rate=3e-3),
        gmm=config.Gmm(n_init=10, repeats=1),
        engine=config.Engine(threads=1),
        experiment=config.Experiment(size="smoke", **experiment),
    )


@pytest.fixture
def smoke_settings() -> Callable[..., config.Settings]:
    """Settings of the smallest size; keyword arguments are those of :class:`gmmcnn.config.Experiment`."""
    return _settings


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """LeNet-5 on 200 digits, a fifth of the labels wrong, and its control."""
    return Laboratory(_settings(), Path(tmp_path_factory.mktemp("laboratory")))
