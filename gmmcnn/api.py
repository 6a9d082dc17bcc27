"""One call from Python: a trained network and some images in, tables out."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.config import settings_from
from gmmcnn.data.probe import thumbnails
from gmmcnn.data.samples import Given, Samples, class_numbers
from gmmcnn.errors import ConfigurationError, DataWarning, SaturationWarning
from gmmcnn.featuremaps.capture import find_taps
from gmmcnn.featuremaps.live import LiveMaps
from gmmcnn.featuremaps.stream import require_analysed
from gmmcnn.featuremaps.taps import Taps
from gmmcnn.filters import fitting
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.live import fit_live
from gmmcnn.filters.screening import saturation
from gmmcnn.progress import progress


def analyze(
    model: nn.Module,
    images: Given,
    labels: ArrayLike | None = None,
    *,
    layers: list[str] | None = None,
    **settings: Any,
) -> Analysis:
    """Cluster the feature maps of every filter of a network, and find the anomalous filters.

    Parameters
    ----------
    model : nn.Module
        Any network with convolutions; comes back exactly as it was.
    images : (N, C, H, W) Tensor or ndarray, Dataset or DataLoader
        Samples that the network was trained on: floats, scaled as in training, or bytes, which are scaled to 0 … 1.
        All of them are clustered together unless ``samples`` splits them into batches. Of tuples, the first element is
        the image and the second the label. Of a DataLoader these are the samples that its sampler can draw, joined by
        its collate function: those of a ``SubsetRandomSampler`` in the order of its indices, else all of the data set
        in its own order.
    labels : (N,) int, optional
        Class of each sample, in place of the data set's: whole numbers of any type.
    layers : list of str, optional
        Dotted names of the convolutions to analyse; None takes all.
    **settings
        Settings by their names in :mod:`gmmcnn.config`, as ``k_max=8``, ``n_init=20``, ``small_cluster=3``,
        ``dims=3``, ``tap="pre_activation"``, ``samples=200``, ``random_state=1``, ``engine="cpu"``. The first
        ``batches`` batches of ``samples`` images are clustered, or as many as there are.

    Returns
    -------
    Analysis

    Raises
    ------
    ConfigurationError
        A setting is unknown or impossible, labels are no whole numbers, or a loader draws its samples by a sampler of
        its own (a ``Subset`` says which samples there are).
    CaptureError
        No feature map can be taken, or maps hold NaN or infinite values.

    Warns
    -----
    DataWarning
        ``samples`` does not divide the number of images, and ``batches`` does not say which of them are wanted: the
        last ones are left out.
    SaturationWarning
        There are so few samples that chance alone makes small clusters.

    Examples
    --------
    >>> analysis = gmmcnn.analyze(model, images, labels)       # doctest: +SKIP
    >>> analysis.filters.query("anomalous")                    # doctest: +SKIP
    >>> analysis.to_html("report.html")                        # doctest: +SKIP
    """
    if layers is not None and (not isinstance(layers, list | tuple) or not all(isinstance(n, str) for n in layers)):
        raise ConfigurationError(f"layers={layers!r}: expected a list of dotted names, such as ['features.conv1']")
    source = Samples(images, "images")
    chosen = settings_from(settings, n_samples=len(source))
    probe = chosen.probe
    if "batches" not in settings and len(source) % probe.samples:
        left_out = f"the last {len(source) % probe.samples} of {len(source)} images are left out"
        warnings.warn(f"samples={probe.samples}: {left_out}; expected a divisor", DataWarning, stacklevel=2)
    n_batches, n_samples = probe.divide(len(source))
    with torch.random.fork_rng(devices=[]):  # a data set may draw from it
        pixels, beside = source.take(range(n_batches * n_samples))
    small_cluster = chosen.screen.small_cluster_for(n_samples, chosen.gmm.k_max)
    found = saturation(n_samples, chosen.gmm.k_max, small_cluster)
    if found.is_saturated:
        warnings.warn(found.comment, SaturationWarning, stacklevel=2)
    samples = pd.DataFrame({"batch": np.repeat(np.arange(n_batches), n_samples), "label": pd.NA})
    if labels is not None:
        samples["label"] = class_numbers(labels, len(source))[: len(samples)]
    elif beside is not None:
        samples["label"] = class_numbers(beside, len(samples))
    return analyze_samples(model, pixels, samples, chosen, layers=layers)


def analyze_samples(
    model: nn.Module, pixels: Tensor, samples: pd.DataFrame, settings: config.Settings, *, layers: list[str] | None
) -> Analysis:
    """Do :func:`analyze`'s work on a probe set of whole batches.

    The feature maps are fitted where they are made, at most ``extract.memory`` MiB of them at once.

    Parameters
    ----------
    model : nn.Module
    pixels : (B * N, C, H, W) float Tensor
    samples : DataFrame
        What is known about each of them; at least ``batch``, which says what N is.
    settings : config.Settings
        Its ``extract``, ``pca``, ``gmm``, ``screen``, ``engine`` and ``seed``.
    layers : list of str, optional
        Dotted names of the convolutions to analyse; None takes all.
    """
    settings = replace(settings, probe=replace(settings.probe, samples=int((samples["batch"] == 0).sum())))
    taps = find_taps(model, pixels[:1], tap=settings.extract.tap, layers=layers, autocast=settings.extract.autocast)
    require_analysed(taps)
    return Analysis(
        fits=_fit(model, pixels, taps, settings),
        known=samples,
        thumbnails=thumbnails(pixels.cpu()),
        settings=settings.screen,
        skipped=tuple((skipped.layer, skipped.reason) for skipped in taps.skipped),
        name=type(model).__name__,
    )


def _fit(model: nn.Module, pixels: Tensor, taps: Taps, settings: config.Settings) -> Fits:
    n_samples = settings.probe.samples
    maps = LiveMaps(model, pixels, taps, n_samples, settings.extract)
    n_batches = len(pixels) // n_samples
    with (
        progress("feature maps", n_batches, "batches") as reducing,
        progress("fits", fitting.n_fits(maps, n_samples), "fits") as advance,
    ):
        return fit_live(maps, None, n_samples=n_samples, settings=settings, reducing=reducing, advance=advance)
