"""Carry out one experiment of a run."""

from importlib import import_module

from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments.laboratory import Laboratory
from gmmcnn.run.folder import Run


def run(job: Run) -> None:
    """Carry out ``settings.experiment``; its tables, figures and verdict come to ``experiments/NAME-SIZE``.

    Raises
    ------
    ConfigurationError
        A trained network or stored activations are given: an experiment trains its own.
    """
    chosen = job.settings.experiment
    for key, value in {
        "model.checkpoint": job.settings.model.checkpoint,
        "extract.source": job.settings.extract.source,
    }.items():
        if value:
            raise ConfigurationError(f"{key}={value}: task=experiment trains its own networks; expected no {key}")
    with job.timed(chosen.name):
        outcome = import_module(f"gmmcnn.experiments.{chosen.name}").run(Laboratory(job.settings, job.folder))
    outcome.write(job.folder / "experiments" / f"{chosen.name}-{chosen.size}")
