"""Carry out one experiment of a run."""

from importlib import import_module
from pathlib import Path

from gmmcnn.config import Settings
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments.laboratory import Laboratory


def require_possible(settings: Settings) -> None:
    """Raise ConfigurationError if a trained network or stored activations are given: an experiment trains its own."""
    for key, value in {
        "model.checkpoint": settings.model.checkpoint,
        "extract.source": settings.extract.source,
    }.items():
        if value:
            raise ConfigurationError(f"{key}={value}: task=experiment trains its own networks; expected no {key}")


def retrain(settings: Settings, folder: Path) -> list[Path]:
    """Train again what is damaged or lost of the networks that the experiment has trained; the files made again."""
    return Laboratory(settings, folder).retrained() if (folder / "networks").is_dir() else []


def run(settings: Settings, folder: Path) -> list[Path]:
    """Carry out ``settings.experiment``; its tables, figures and verdict come to ``experiments/NAME-SIZE``: which."""
    chosen = settings.experiment
    outcome = import_module(f"gmmcnn.experiments.{chosen.name}").run(Laboratory(settings, folder))
    return outcome.write(folder / "experiments" / f"{chosen.name}-{chosen.size}")
