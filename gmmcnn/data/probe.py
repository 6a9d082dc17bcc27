"""The probe set: training samples whose feature maps are clustered, in disjoint batches."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gmmcnn import config
from gmmcnn.constants import Stream
from gmmcnn.data.planting import NOISE
from gmmcnn.data.splits import Splits
from gmmcnn.errors import ConfigurationError
from gmmcnn.files import digest_arrays

_THUMBNAIL_PIXELS = 64


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """B batches of N samples, one after the other.

    Attributes
    ----------
    images : (B * N, C, H, W) float32
    samples : DataFrame
        One row per sample: ``batch``, ``dataset_index`` (in the data set's own training images), ``label`` (the one
        trained with), ``noisy_label`` (bool) and ``planted``: the kind of a planted sample, as
        :mod:`gmmcnn.data.planting` names it, empty where it is none.
    n_batches : int
        B.
    """

    images: Tensor
    samples: pd.DataFrame
    n_batches: int

    @property
    def n_samples(self) -> int:
        """Samples in a batch (N)."""
        return len(self.samples) // self.n_batches

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the images and of all that is known about the samples."""
        return digest_arrays(self.samples.to_csv().encode(), self.images.numpy())[:16]


def draw_probe(data: Splits, settings: config.Probe, *, seed: int) -> ProbeSet:
    """Draw the probe set from the training samples: the same for every checkpoint and filter.

    Parameters
    ----------
    data : Splits
        Data set; its training samples are drawn from.
    settings : config.Probe
        Size and number of the batches; fewer batches are drawn where the samples do not suffice. ``plant`` samples
        are replaced by Gaussian noise, to see whether they are found.
    seed : int
        Of both draws.

    Raises
    ------
    ConfigurationError
        The training set is smaller than one batch, or more samples are to be planted than there are.
    """
    n_training = len(data.train)
    n_batches, batch_size = settings.divide(n_training)
    if n_batches == 0:
        raise ConfigurationError(
            f"probe.samples={settings.samples}: the training set has {n_training} samples; expected at most as many: "
            f"set probe.samples={max(3, n_training // 2)}, say, for smaller batches, of which less can be said"
        )
    n_samples = n_batches * batch_size
    if settings.plant > n_samples:
        raise ConfigurationError(
            f"probe.plant={settings.plant}: the probe set has {n_samples} samples; expected at most as many"
        )

    chosen = np.random.default_rng([seed, Stream.PROBE]).permutation(n_training)[:n_samples]
    images = data.train.images[torch.from_numpy(chosen)].clone()
    planted = np.array([data.planted.get(position, "") for position in chosen.tolist()], object)
    planted[_plant_noise(images, data.train.images, settings, seed)] = NOISE

    samples = pd.DataFrame(
        {
            "batch": np.arange(n_samples) // batch_size,
            "dataset_index": data.train_indices.numpy()[chosen],
            "label": data.train.labels.numpy()[chosen],
            "noisy_label": np.isin(chosen, data.noisy.numpy()),
            "planted": planted,
        }
    )
    return ProbeSet(images, samples, n_batches)


def _plant_noise(images: Tensor, training: Tensor, settings: config.Probe, seed: int) -> np.ndarray:
    """Replace some images by noise, in place; return which."""
    rng = np.random.default_rng([seed, Stream.PROBE_NOISE])
    planted = rng.permutation(len(images))[: settings.plant]
    deviation = settings.plant_strength * float(images.std())
    noise = rng.normal(float(images.mean()), deviation, size=(len(planted), *images.shape[1:]))
    if settings.plant_clipped:
        noise = noise.clip(float(training.min()), float(training.max()))
    images[torch.from_numpy(planted)] = torch.from_numpy(noise.astype(np.float32))
    return planted


def thumbnails(images: Tensor) -> np.ndarray:
    """Render images for the eye.

    Parameters
    ----------
    images : (S, C, H, W) float
        Any range; that of all but the most extreme percent of the pixels is stretched over black to white.

    Returns
    -------
    (S, h, w) uint8, or (S, h, w, 3) where C = 3
        At most 64 pixels wide and high; of other numbers of channels the mean is shown.
    """
    images = images.float()
    scale = _THUMBNAIL_PIXELS / max(images.shape[2:])
    if scale < 1:
        images = torch.nn.functional.interpolate(images, scale_factor=scale, mode="area")
    if images.shape[1] != 3:
        images = images.mean(dim=1, keepdim=True)
    low, high = np.percentile(images.numpy(), [0.5, 99.5])
    grey = ((images - low) / max(high - low, 1e-12) * 255).clamp(0, 255).round().to(torch.uint8)
    return grey.permute(0, 2, 3, 1).squeeze(-1).numpy() if images.shape[1] == 1 else grey.permute(0, 2, 3, 1).numpy()
