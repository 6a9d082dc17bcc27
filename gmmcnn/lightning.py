"""The counts of :class:`gmmcnn.OverfittingMonitor` in every epoch of a Lightning training; needs the extra lightning.

>>> from lightning.pytorch import Trainer                              # doctest: +SKIP
>>> from gmmcnn.lightning import OverfittingCallback                   # doctest: +SKIP
>>> Trainer(callbacks=[OverfittingCallback()]).fit(module, loader)     # doctest: +SKIP
"""

from typing import Any

from torch.utils.data import DataLoader

from gmmcnn.errors import ConfigurationError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(f"gmmcnn.lightning needs Lightning ({error}): pip install 'gmmcnn[lightning]'") from error

from gmmcnn.monitor import OverfittingMonitor


class OverfittingCallback(Callback):
    """Log the number of filters that meet the criteria at the end of every training epoch.

    What the count tells and what it does not, see :class:`gmmcnn.OverfittingMonitor`: it describes filters and is no
    detector of overfitting.

    Logged are ``gmmcnn/flagged``, ``gmmcnn/unbalanced``, ``gmmcnn/separated``, ``gmmcnn/active``, ``gmmcnn/live``,
    ``gmmcnn/near_dead`` and ``gmmcnn/dead``. Of several processes the first one counts.

    Parameters
    ----------
    probe : Tensor, ndarray, Dataset or DataLoader, optional
        As for :class:`gmmcnn.OverfittingMonitor`; None draws it from the trainer's data loader, augmented as there.
    **settings
        As for :class:`gmmcnn.OverfittingMonitor`: ``samples``, ``layers``, ``every``, ``k_max`` and so on.

    Attributes
    ----------
    monitor : OverfittingMonitor or None
        Of the last training that was started, with ``history``, ``figure()`` and ``analysis``.
    """

    def __init__(self, probe: Any = None, **settings: Any) -> None:
        self.monitor: OverfittingMonitor | None = None
        self._probe = probe
        self._settings = settings

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the probe and find the layers."""
        if trainer.is_global_zero:
            probe = _training_data(trainer) if self._probe is None else self._probe
            self.monitor = OverfittingMonitor(pl_module, probe, **self._settings)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count, and log."""
        row = self.monitor.step(trainer.current_epoch) if self.monitor else None
        if row:
            del row["epoch"]
            named = {f"gmmcnn/{name}": count for name, count in row.items()}
            pl_module.log_dict(named, batch_size=1, rank_zero_only=True)


def _training_data(trainer: Trainer) -> DataLoader:
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(
            f"probe: the trainer reads a {type(loader).__name__}, not one DataLoader; give the callback a probe"
        )
    return loader
