"""How others would do it, as their users would write it.

Sweeps fit every K to scores (…, N, d) of unit variance and return the mean log-likelihood of a sample for each K.
"""

import importlib.util
import logging
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from gmmcnn import config

Sweep = Callable[[NDArray, int, int], NDArray]

TOL, MAX_ITER = 1e-3, 100


class Clustering(NamedTuple):
    """One filter's mixtures by scikit-learn, and the K that the Calinski-Harabasz index prefers."""

    lower_bounds: NDArray
    n_components: int
    calinski_harabasz: float
    labels: NDArray


def sklearn_clustering(scores: NDArray, k_min: int, k_max: int) -> Clustering:
    """Every K, its labels and its index."""
    lower_bounds = np.full(k_max - k_min + 1, np.nan)
    best = Clustering(lower_bounds, 0, -math.inf, np.full(len(scores), -1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits that stop at the cap
        for i, k in enumerate(range(k_min, k_max + 1)):
            mixture = GaussianMixture(k, random_state=0, tol=TOL, max_iter=MAX_ITER)
            labels = mixture.fit_predict(scores)
            lower_bounds[i] = mixture.lower_bound_
            if len(np.unique(labels)) > 1 and (index := calinski_harabasz_score(scores, labels)) > best[2]:
                best = Clustering(lower_bounds, k, index, labels)
    return best


def sklearn_sweep(scores: NDArray, k_min: int, k_max: int) -> NDArray:
    """One filter by scikit-learn."""
    return sklearn_clustering(scores, k_min, k_max).lower_bounds


def pomegranate_sweep(scores: NDArray, k_min: int, k_max: int) -> NDArray:
    """One filter by pomegranate, whose tolerance is of the sum over samples; NaN where it fails."""
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    x = torch.from_numpy(scores)
    lower_bounds = np.full(k_max - k_min + 1, np.nan)
    for i, k in enumerate(range(k_min, k_max + 1)):
        try:
            normals = [Normal() for _ in range(k)]
            mixture = GeneralMixtureModel(normals, tol=TOL * len(x), max_iter=MAX_ITER, random_state=0).fit(x)
            lower_bounds[i] = mixture.log_probability(x).mean()
        except (RuntimeError, ValueError, AttributeError):  # of covariances that are not positive, or empty clusters
            continue
    return lower_bounds


def torchgmm_sweep(scores: NDArray, k_min: int, k_max: int) -> NDArray:
    """One filter by torchgmm."""
    from torchgmm.bayes import GaussianMixture as TorchMixture

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its import sets it
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    lower_bounds = np.full(k_max - k_min + 1, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, k in enumerate(range(k_min, k_max + 1)):
            mixture = TorchMixture(
                k,
                covariance_type="full",
                convergence_tolerance=TOL,
                trainer_params={**quiet, "max_epochs": MAX_ITER},
            )
            try:
                lower_bounds[i] = -mixture.fit(torch.from_numpy(scores)).nll_
            except RuntimeError:
                continue
    return lower_bounds


def gmm_gpu_sweep(scores: NDArray, k_min: int, k_max: int) -> NDArray:
    """All filters at once by gmm-gpu, on the CPU."""
    from gmm_gpu.gmm import GMM

    x = torch.from_numpy(scores)
    lower_bounds = np.full((len(x), k_max - k_min + 1), np.nan)
    for i, k in enumerate(range(k_min, k_max + 1)):
        mixture = GMM(k, device="cpu", tol=TOL, max_iter=MAX_ITER, random_seed=1)
        mixture.fit(x)
        lower_bounds[:, i] = mixture.score(x)
    return lower_bounds


def torch_sweep(scores: NDArray, k_min: int, k_max: int) -> NDArray:
    """All filters at once, one K after the other, in plain torch operations; no labels and no index."""
    points = torch.from_numpy(scores).mT.contiguous()
    fits = [_torch_em(points, _torch_kmeans(points, k)) for k in range(k_min, k_max + 1)]
    return torch.stack(fits, dim=1).numpy()


def _torch_kmeans(points: Tensor, k: int, rounds: int = 10) -> Tensor:
    """One-hot labels (F, K, N) after a few rounds of Lloyd from random samples: a cheaper start than anybody else's."""
    centres = points[:, :, torch.randperm(points.shape[2])[:k]]  # (F, d, K)
    for _ in range(rounds):
        labels = torch.cdist(centres.mT, points.mT).argmin(1)
        members = torch.nn.functional.one_hot(labels, k).mT.to(points.dtype)
        centres = points @ members.mT / members.sum(2).clamp(min=1)[:, None]
    return members


def _torch_em(points: Tensor, responsibilities: Tensor) -> Tensor:
    """Mean log-likelihoods (F,) of EM from responsibilities (F, K, N); filters that have converged leave the batch."""
    n_filters, n_dims, n_samples = points.shape
    lower_bounds = torch.full((n_filters,), -math.inf)
    running = torch.arange(n_filters)
    for _ in range(MAX_ITER):
        sizes = responsibilities.sum(2).clamp(min=1e-10)
        means = responsibilities @ points.mT / sizes[..., None]
        offsets = points[:, None] - means[..., None]  # (F, K, d, N)
        covariances = (responsibilities[:, :, None] * offsets) @ offsets.mT / sizes[..., None, None]
        factors = torch.linalg.cholesky(covariances + 1e-6 * torch.eye(n_dims))
        whitened = torch.linalg.solve_triangular(factors, offsets, upper=False)
        log_determinant = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = (sizes / n_samples).log() - log_determinant - 0.5 * n_dims * math.log(2 * math.pi)
        joint = constant[..., None] - 0.5 * whitened.square().sum(2)
        likelihood = joint.logsumexp(1, keepdim=True)
        lower_bound = likelihood.mean((1, 2))
        moving = (lower_bound - lower_bounds[running]).abs() >= TOL
        lower_bounds[running] = lower_bound
        running, points = running[moving], points[moving]
        responsibilities = (joint - likelihood)[moving].exp()
        if not len(running):
            break
    return lower_bounds


ONE_BY_ONE: dict[str, Sweep] = {
    "scikit-learn": sklearn_sweep,
    "pomegranate": pomegranate_sweep,
    "torchgmm": torchgmm_sweep,
}
"""Libraries that fit one mixture at a time: filters are spread over processes."""

BATCHED: dict[str, Sweep] = {"plain torch": torch_sweep, "gmm-gpu": gmm_gpu_sweep}
"""All filters at once, on all cores."""

_MODULES = {"pomegranate": "pomegranate", "torchgmm": "torchgmm", "gmm-gpu": "gmm_gpu"}


def installed(rival: str) -> bool:
    """Whether a rival can be timed here; say so where not."""
    found = rival not in _MODULES or importlib.util.find_spec(_MODULES[rival]) is not None
    if not found:
        print(f"{rival} is not installed: left out")
    return found


def sklearn_pca(maps: NDArray, f: int, n_components: int) -> NDArray:
    """Scores of filter f of maps (F, N, P) by the default solver."""
    return PCA(n_components, random_state=0).fit_transform(maps[f])


FAILED = "failed"
"""Status of a filter whose fit scikit-learn gave up."""


def sklearn_filter(maps: NDArray, name: dict, k_min: int, k_max: int, settings: config.Screen) -> dict:
    """What screening needs to know of one filter in one probe batch, from its maps (N, P)."""
    active_share = (maps.max(axis=1) > 0).mean()
    row = {**name, "mean_activation": np.abs(maps).mean(), "active_share": active_share}
    if maps.std() == 0:
        return {**row, "status": "dead"}
    scores = PCA(2, random_state=0).fit_transform(maps)
    try:
        clustering = sklearn_clustering(scores / np.sqrt(scores.var(axis=0).mean()), k_min, k_max)
    except ValueError:  # a covariance that is none, in the maps' float32
        return {**row, "status": FAILED}
    sizes = np.unique_counts(clustering.labels).counts
    return {
        **row,
        "status": "ok" if active_share >= settings.min_active_share else "near_dead",
        "n_components": clustering.n_components,
        "calinski_harabasz": clustering.calinski_harabasz,
        "smallest_cluster": sizes.min(),
        "n_small_clusters": (sizes <= settings.small_cluster_for(len(maps), k_max)).sum(),
    }


def screened(rows: list[dict], settings: config.Screen) -> pd.DataFrame:
    """Table of filters (one row per layer and filter) from rows of filters and probe batches, by the three criteria."""
    batches = pd.DataFrame(rows)
    live = batches["status"] == "ok"
    groups = [batches["layer"], batches["batch"]]
    for column, average in [("calinski_harabasz", "median"), ("mean_activation", "mean")]:
        over = batches[column].where(live).groupby(groups).transform(average)
        batches[f"{column}_over_average"] = batches[column] / over
    batches["flagged"] = (
        live
        & (batches["n_small_clusters"] >= settings.min_small_clusters)
        & (batches["calinski_harabasz_over_average"] > settings.ch_ratio)
        & (batches["mean_activation_over_average"] > settings.activation_ratio)
    )
    filters = batches.groupby(["layer", "filter"], sort=False).agg(
        status=("status", lambda column: column.mode()[0]),
        n_components=("n_components", lambda column: column.mode().min()),
        calinski_harabasz=("calinski_harabasz", "median"),
        smallest_cluster=("smallest_cluster", "median"),
        mean_activation=("mean_activation", "mean"),
        active_share=("active_share", "mean"),
        flag_frequency=("flagged", "mean"),
    )
    filters["anomalous"] = filters["flag_frequency"] >= settings.min_frequency
    return filters.reset_index()
