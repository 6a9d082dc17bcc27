"""How many filters meet the criteria, epoch by epoch, while a network is trained in anybody's loop.

One probe batch is drawn once and kept; a step is one forward pass over it, one clustering of its feature maps in
memory, and the count. The model and all random states are afterwards what they were, so that the training ends with
the same weights bit by bit.
"""

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.api import settings_from
from gmmcnn.constants import Stream
from gmmcnn.data.probe import thumbnails
from gmmcnn.data.samples import Samples
from gmmcnn.errors import ConfigurationError, SaturationWarning
from gmmcnn.featuremaps.capture import find_taps, unwrapped
from gmmcnn.featuremaps.live import LiveMaps
from gmmcnn.featuremaps.stream import require_analysed
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.live import fit_live
from gmmcnn.filters.screening import counts, saturation
from gmmcnn.hardware import gpu
from gmmcnn.progress import note
from gmmcnn.tracking import Tracker, Trackers

if TYPE_CHECKING:
    import plotly.graph_objects as go

NOTE = (
    "gmmcnn's counts describe filters; they do not detect overfitting: they change with training time in networks "
    "that do not overfit too, and where time, training loss and generalisation gap were set apart (LeNet-5 on "
    "Fashion-MNIST), the number of flagged filters rose with time and not with the gap."
)
COLUMNS = ("epoch", "flagged", "unbalanced", "separated", "active", "live", "near_dead", "dead")
"""Columns of :attr:`OverfittingMonitor.history`."""

SHARE_OF_TIME = 0.05
"""Of a training, which steps stay within with ``every="auto"``."""

_DEFAULTS = {"repeats": 1, "threads": 1}


class OverfittingMonitor:
    """Count the filters that meet the criteria, epoch by epoch, inside any training loop.

    What the count tells: in how many filters, at this epoch, a handful of the probe samples stands apart from the
    others while the filter is strongly active. What it does **not** tell: whether the network overfits. The count
    changes with training time also in networks that do not overfit, and where time, training loss and generalisation
    gap were set apart (LeNet-5 on Fashion-MNIST), it rose with time and not with the gap (docs/evidence.md). Nor is a
    single fit reproducible: read the course of the count, not one filter's verdict. ``gmmcnn task=experiment
    experiment=overfitting`` puts the same count beside its controls, ``experiment=crossed`` sets them apart.

    Parameters
    ----------
    model : nn.Module
        The network in training, with convolutions; looked at as it is whenever :meth:`step` is called.
    probe : (N, C, H, W) float Tensor or ndarray, Dataset or DataLoader
        Samples that the network is trained on, scaled as in training; of tuples, the first element is the image. Of a
        DataLoader these are the samples that its sampler can draw, joined by its collate function. The probe batches
        are drawn from them once, by ``random_state``, and kept in memory.
    samples : int, optional
        N, samples in a probe batch; None takes 200, or all where there are fewer.
    batches : int
        Disjoint probe batches that the counts are averaged over.
    layers : list of str, optional
        Dotted names of the convolutions to look at; None takes all.
    every : int or "auto"
        Look only at every such epoch, counted from the first. ``"auto"`` looks as often as keeps the steps within 5 %
        of the training's time; which epochs these are then depends on the machine. The first two are looked at in any
        case, since the first step loads the engine and the second tells what a step takes.
    tracker : Tracker, optional
        Where each row of :attr:`history` goes, too, as ``gmmcnn/flagged`` and so on: one of :mod:`gmmcnn.tracking`, or
        anything with its methods. One that fails is left out, with a warning; closing it is left to whoever opened it.
    **settings
        As in :func:`gmmcnn.analyze`. Unlike there, one fit (``repeats=1``) and one thread (``threads=1``) are the
        default: the count needs no more, and the other cores may be loading data.

    Raises
    ------
    ConfigurationError
        The probe is empty, too small or no images, a loader draws it by a sampler of its own (a ``Subset`` says which
        samples there are), or a setting is unknown or impossible.
    CaptureError
        No feature map can be taken from the model.

    Notes
    -----
    The maps of one epoch are held in memory, at most ``memory`` MiB of them at once. The first step after the
    installation compiles the engine, which is kept on disk; in every later process the first step loads it.

    Examples
    --------
    >>> monitor = gmmcnn.OverfittingMonitor(model, train_images)        # doctest: +SKIP
    >>> for epoch in range(1, 31):                                      # doctest: +SKIP
    ...     train_one_epoch(model)
    ...     row = monitor.step(epoch)    # {'epoch': 1, 'flagged': 3.0, 'unbalanced': 9.0, ...}
    >>> monitor.history.plot(x="epoch", y="flagged")                    # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Tensor | NDArray | Dataset | DataLoader,
        *,
        samples: int | None = None,
        batches: int = 1,
        layers: list[str] | None = None,
        every: int | Literal["auto"] = 1,
        tracker: Tracker | None = None,
        **settings: Any,
    ) -> None:
        if every != "auto" and (not isinstance(every, int) or every < 1):
            raise ConfigurationError(f"every={every!r}: expected a whole number >= 1, or 'auto'")
        self.model = model
        self.every = every
        self._trackers = Trackers({type(tracker).__name__: tracker} if tracker else {})
        with _random_states_kept():
            self.images, self.settings = _prepare(probe, samples, batches, settings)
            extract = self.settings.extract
            self._taps = find_taps(model, self.images[:1], tap=extract.tap, layers=layers, autocast=extract.autocast)
        require_analysed(self._taps)
        self._rows: list[dict[str, float]] = []
        self._last: int | None = None
        self._took = self._ended = 0.0
        self._fits: Fits | None = None

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch looked at, with :data:`COLUMNS`: numbers of filters, means over probe batches."""
        return pd.DataFrame(self._rows, columns=list(COLUMNS))

    @property
    def analysis(self) -> Analysis:
        """Everything about the epoch that was looked at last: tables of filters and outliers, and a page."""
        if self._fits is None:
            raise ConfigurationError("analysis: no epoch has been looked at; call step(epoch) first")
        batch = np.repeat(np.arange(self._fits.n_batches), self._fits.n_samples)
        return Analysis(
            fits=self._fits,
            known=pd.DataFrame({"batch": batch, "label": pd.NA}),
            thumbnails=thumbnails(self.images.cpu()),
            settings=self.settings.screen,
            skipped=tuple((skipped.layer, skipped.reason) for skipped in self._taps.skipped),
            name=f"{type(unwrapped(self.model)).__name__}, epoch {self._rows[-1]['epoch']:.0f}",
        )

    def step(self, epoch: int) -> dict[str, float] | None:
        """Look at the model as it is now.

        Parameters
        ----------
        epoch : int
            Its number, larger than at the last call.

        Returns
        -------
        dict or None
            The new row of :attr:`history`; None where ``every`` leaves this epoch out.

        Raises
        ------
        ConfigurationError
            The epoch is not larger than the last one.
        CaptureError
            Maps hold NaN or infinite values: the training has diverged.
        """
        if self._last is not None and epoch <= self._last:
            raise ConfigurationError(
                f"epoch={epoch}: epoch {self._last} has been looked at already; expected a later one "
                "(another training needs a monitor of its own)"
            )
        row = None
        if self._is_due(epoch):
            started = time.perf_counter()
            self._fits = self._fit()
            row = {"epoch": epoch} | counts(self._fits, self.settings.screen)
            self._rows.append(row)
            self._trackers.log({f"gmmcnn/{name}": row[name] for name in COLUMNS[1:]}, epoch)
            note(NOTE)
            self._ended = time.perf_counter()
            self._took = self._ended - started
        self._last = epoch
        return row and dict(row)

    def _is_due(self, epoch: int) -> bool:
        if self.every != "auto":
            return not self._rows or (epoch - self._rows[0]["epoch"]) % self.every == 0
        return len(self._rows) < 2 or time.perf_counter() - self._ended >= self._took / SHARE_OF_TIME

    def figure(self) -> "go.Figure":
        """Draw the counts over the epochs."""
        import plotly.express as px

        shown = ["flagged", "unbalanced", "separated", "active", "live"]
        long = self.history.melt("epoch", shown, "filters that are", "filters in a probe batch")
        return px.line(
            long, x="epoch", y="filters in a probe batch", color="filters that are", markers=True,
            title="Filters by criterion, and all together: a description, no detector of overfitting",
        )  # fmt: skip

    def _fit(self) -> Fits:
        n_samples = self.settings.probe.samples
        with _random_states_kept():
            maps = LiveMaps(self.model, self.images, self._taps, n_samples, self.settings.extract)
            return fit_live(maps, None, n_samples=n_samples, settings=self.settings)


def _prepare(probe: Any, samples: int | None, batches: int, given: dict[str, Any]) -> tuple[Tensor, config.Settings]:
    """Images (B * N, C, H, W) of the probe batches, drawn from the probe, and the settings."""
    source = Samples(probe, "probe")
    available = len(source)
    samples = min(config.Probe().samples, available) if samples is None else samples
    chosen = settings_from(_DEFAULTS | given | {"samples": samples, "batches": batches}, n_samples=available)
    if samples <= chosen.gmm.k_max:
        raise ConfigurationError(
            f"probe: a batch has {samples} samples; expected more than k_max={chosen.gmm.k_max}, better a few hundred"
        )
    found = saturation(samples, chosen.gmm.k_max, chosen.screen.small_cluster_for(samples, chosen.gmm.k_max))
    if found.is_saturated:
        warnings.warn(found.comment, SaturationWarning, stacklevel=3)
    chosen.engine.name = gpu.resolved(chosen.engine.name)  # now: to look for a device in every step takes a millisecond
    order = np.random.default_rng([chosen.seed, Stream.MONITORED]).permutation(available)
    n_batches, n_samples = chosen.probe.divide(available)
    return source.take(order[: n_batches * n_samples])[0], chosen


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Undo what reading a data set or running a model draws from the generators of Python, NumPy and torch."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - whoever uses it shall not notice us
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
