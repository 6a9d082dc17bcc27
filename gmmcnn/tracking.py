"""Curves and counts of a run in TensorBoard, MLflow or Weights & Biases, beside the tables that are always written.

Each is an optional package (the extra ``tracking``) behind the same three methods, imported when it is asked for. What
they do must not cost a result: one that fails while a run goes on is left out from there, with a warning.

>>> tracker = gmmcnn.tracking.TensorBoard("runs/mine")                          # doctest: +SKIP
>>> monitor = gmmcnn.OverfittingMonitor(model, images, tracker=tracker)         # doctest: +SKIP
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from gmmcnn.errors import ConfigurationError, TrackingWarning, one_line
from gmmcnn.files import read_json, write_json

IDENTITIES = "tracking.json"
"""What a run is called in services that give it a name, so that it is gone on with there, too."""


class Tracker(Protocol):
    """Where numbers go, step by step."""

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Say once what the run was made with: dotted name → value."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve, at an epoch."""

    def close(self) -> None:
        """Write what is left, and end."""


class TensorBoard:
    """Event files for TensorBoard.

    Parameters
    ----------
    folder : path
        Where they are written; ``tensorboard --logdir`` takes it, or a folder above it.

    Raises
    ------
    ConfigurationError
        The package tensorboard is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = imported("tensorboard", "torch.utils.tensorboard").SummaryWriter(str(folder))

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Write the settings as text."""
        rows = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        with _others_warnings_left_out():
            self._writer.add_text("settings", rows)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        with _others_warnings_left_out():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow:
    """A run of an MLflow experiment, on the server that ``MLFLOW_TRACKING_URI`` names or in MLflow's local default.

    Parameters
    ----------
    experiment : str
        Made if it is not there.
    name : str, optional
        Of the run.
    run_id : str, optional
        Of an earlier run to go on with.

    Attributes
    ----------
    run_id : str

    Raises
    ------
    ConfigurationError
        The package mlflow is missing.
    """

    def __init__(self, experiment: str = "gmmcnn", name: str | None = None, run_id: str | None = None) -> None:
        tracking = imported("mlflow", "mlflow.tracking")
        with _others_warnings_left_out():
            self._client = tracking.MlflowClient()
            if run_id is None:
                found = self._client.get_experiment_by_name(experiment)
                where = found.experiment_id if found else self._client.create_experiment(experiment)
                run_id = self._client.create_run(where, run_name=name).info.run_id
            else:
                self._client.update_run(run_id, status="RUNNING")
        self.run_id = str(run_id)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Log the settings as parameters; those of a run that is gone on with as tags, since parameters are fixed."""
        with _others_warnings_left_out():
            known = self._client.get_run(self.run_id).data.params
            for name, value in settings.items():
                if name not in known:
                    self._client.log_param(self.run_id, name, value)
                elif known[name] != str(value):
                    self._client.set_tag(self.run_id, name, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        with _others_warnings_left_out():
            for name, value in values.items():
                self._client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        with _others_warnings_left_out():
            self._client.set_terminated(self.run_id)


class WandB:
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it on this machine until ``wandb sync``.

    Parameters
    ----------
    project : str
    name : str, optional
        Of the run.
    folder : path, optional
        Where it keeps its files.
    run_id : str, optional
        Of an earlier run to go on with.

    Attributes
    ----------
    run_id : str

    Raises
    ------
    ConfigurationError
        The package wandb is missing.
    """

    def __init__(
        self,
        project: str = "gmmcnn",
        name: str | None = None,
        folder: str | Path | None = None,
        run_id: str | None = None,
    ) -> None:
        wandb = imported("wandb", "wandb")
        with _others_warnings_left_out():
            self._run = wandb.init(
                project=project, name=name, dir=folder and str(folder), id=run_id, resume="allow",
                settings=wandb.Settings(silent=True),
            )  # fmt: skip
            self._run.define_metric("*", step_metric="epoch")  # a service's own steps never go back; epochs may
        self.run_id = str(self._run.id)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Write the settings to the run's configuration."""
        with _others_warnings_left_out():
            self._run.config.update(dict(settings), allow_val_change=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        with _others_warnings_left_out():
            self._run.log({**values, "epoch": step})

    def close(self) -> None:
        """Finish the run."""
        with _others_warnings_left_out():
            self._run.finish()


class Trackers:
    """Several trackers as one; one that fails is left out from there, with a :class:`TrackingWarning`."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Say once what the run was made with."""
        self._tell(lambda tracker: tracker.describe(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._tell(lambda tracker: tracker.log(values, step))

    def close(self) -> None:
        """End all of them."""
        self._tell(lambda tracker: tracker.close())
        self._trackers.clear()

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as error:  # noqa: BLE001 - whatever a service raises, the run's results come first
                del self._trackers[name]
                warnings.warn(
                    f"tracking={name}: left out from here on: {one_line(error)}", TrackingWarning, stacklevel=3
                )


KINDS: dict[str, tuple[str, Callable[[Path, str, str, str | None], Tracker]]] = {
    "tensorboard": (
        "torch.utils.tensorboard",
        lambda folder, project, name, run_id: TensorBoard(folder / "tensorboard"),
    ),
    "mlflow": ("mlflow.tracking", lambda folder, project, name, run_id: MLflow(project, name, run_id)),
    "wandb": ("wandb", lambda folder, project, name, run_id: WandB(project, name, folder, run_id)),
}
"""Name → the module it needs, and what opens it for a run folder, a project, a name, and an earlier run's identity."""


def require(names: Sequence[str]) -> None:
    """Raise ConfigurationError if a package that one of these trackers needs is missing."""
    for name in names:
        imported(name, KINDS[name][0])


def opened(names: Sequence[str], folder: Path, project: str, name: str) -> Trackers:
    """Open trackers for a run folder, where ``tracking.json`` keeps what the run is called in them.

    Raises
    ------
    ConfigurationError
        A package is missing, or a service refuses the run.
    """
    known = read_json(folder / IDENTITIES)
    trackers: dict[str, Tracker] = {}
    for kind in names:
        earlier = known.get(kind)
        try:
            trackers[kind] = KINDS[kind][1](folder, project, name, earlier if isinstance(earlier, str) else None)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(f"tracking={kind}: cannot be opened: {one_line(error)}") from error
    found = {kind: tracker.run_id for kind, tracker in trackers.items() if isinstance(tracker, MLflow | WandB)}
    if found.items() - known.items():
        write_json(folder / IDENTITIES, known | found)
    return Trackers(trackers)


def imported(name: str, module: str) -> Any:
    """Import what a tracker needs. ConfigurationError, with what to install, if that fails."""
    try:
        with _others_warnings_left_out():
            return import_module(module)
    except Exception as error:
        raise ConfigurationError(
            f"tracking={name}: needs a package that cannot be imported ({one_line(error)}): "
            "pip install 'gmmcnn[tracking]'"
        ) from error


@contextmanager
def _others_warnings_left_out() -> Iterator[None]:
    """Keep what these packages warn of in their own insides from whoever runs an analysis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
