"""The experiments on what anomaly filters have to do with overfitting, each beside its controls.

Each is a module with ``run(laboratory) -> Outcome``, and the name of the module is that of the experiment.
"""

from importlib import import_module

from gmmcnn.run_folder import Run


def run(job: Run) -> None:
    """Carry out ``settings.experiment``; its tables, figures and verdict come to ``experiments/NAME-SIZE``."""
    from gmmcnn.experiments.networks import Laboratory

    chosen = job.settings.experiment
    with job.timed(chosen.name):
        outcome = import_module(f"gmmcnn.experiments.{chosen.name}").run(Laboratory(job.settings, job.folder))
    outcome.write(job.folder / "experiments" / f"{chosen.name}-{chosen.size}")
