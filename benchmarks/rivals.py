"""How others would do it: scikit-learn over a pool, and mixtures in plain torch."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor


def sklearn_sweep(scores: NDArray, k_min: int, k_max: int) -> int:
    """K of one filter by scikit-learn, as a user would write it."""
    indices = {}
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        for k in range(k_min, k_max + 1):
            labels = GaussianMixture(k, random_state=0, reg_covar=1e-6 * scores.var(axis=0).mean()).fit_predict(scores)
            if len(np.unique(labels)) > 1:
                indices[k] = calinski_harabasz_score(scores, labels)
    return max(indices, key=lambda k: indices[k], default=0)


def sklearn_pool(threads: int) -> Callable[[NDArray, int, int], list[int]]:
    """A warm pool of processes that sweeps filters."""
    pool = Parallel(n_jobs=threads)
    return lambda scores, k_min, k_max: pool(delayed(sklearn_sweep)(x, k_min, k_max) for x in scores)


def sklearn_pca(maps: NDArray, n_components: int) -> NDArray:
    """Scores of one filter by scikit-learn's default solver."""
    with threadpool_limits(1):
        return PCA(n_components, random_state=0).fit_transform(maps)


def torch_sweep(scores: NDArray, k_min: int, k_max: int, tol: float = 1e-3, max_iter: int = 100) -> Tensor:
    """Batched EM for all filters at once, one K after the other, in plain torch operations."""
    points = torch.from_numpy(scores)
    points = (points - points.mean(1, keepdim=True)) / points.var(1, correction=0).mean(-1).sqrt()[:, None, None]
    lower_bounds = []
    for k in range(k_min, k_max + 1):
        lower_bounds.append(_torch_em(points, _torch_kmeans(points, k), tol, max_iter))
    return torch.stack(lower_bounds)


def _torch_kmeans(points: Tensor, k: int, rounds: int = 10) -> Tensor:
    """One-hot labels (F, N, K) after a few rounds of Lloyd from random samples: a cheaper start than anybody else's."""
    centres = points[:, torch.randperm(points.shape[1])[:k]]
    for _ in range(rounds):
        labels = torch.cdist(points, centres).argmin(-1)
        members = torch.nn.functional.one_hot(labels, k).to(points.dtype)
        centres = members.transpose(1, 2) @ points / members.sum(1).clamp(min=1)[..., None]
    return members


def _torch_em(points: Tensor, responsibilities: Tensor, tol: float, max_iter: int) -> Tensor:
    n_samples, n_dims = points.shape[1:]
    lower_bound = torch.full((len(points),), -math.inf)
    for _ in range(max_iter):
        sizes = responsibilities.sum(1).clamp(min=1e-10)
        means = responsibilities.transpose(1, 2) @ points / sizes[..., None]
        offsets = points[:, :, None] - means[:, None]  # (F, N, K, d)
        covariances = torch.einsum("fnk,fnki,fnkj->fkij", responsibilities, offsets, offsets) / sizes[..., None, None]
        factors = torch.linalg.cholesky(covariances + 1e-6 * torch.eye(n_dims))
        whitened = torch.linalg.solve_triangular(factors, offsets.permute(0, 2, 3, 1), upper=False)
        log_determinant = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = (sizes / n_samples).log() - log_determinant - 0.5 * n_dims * math.log(2 * math.pi)
        joint = constant[:, None] - 0.5 * whitened.square().sum(2).transpose(1, 2)
        likelihood = joint.logsumexp(-1, keepdim=True)
        responsibilities = (joint - likelihood).exp()
        previous, lower_bound = lower_bound, likelihood.mean((1, 2))
        if ((lower_bound - previous).abs() < tol).all():
            break
    return lower_bound


def installed_mixture_libraries() -> dict[str, Callable[[NDArray, int, int], object]]:
    """Sweeps of one filter after the other by other libraries for torch, those that are installed."""
    found: dict[str, Callable[[NDArray, int, int], object]] = {}
    try:
        from torchgmm.bayes import GaussianMixture as TorchMixture

        def torchgmm(scores: NDArray, k_min: int, k_max: int) -> None:
            options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            for x in torch.from_numpy(scores):
                for k in range(k_min, k_max + 1):
                    mixture = TorchMixture(k, covariance_type="full", trainer_params={**options, "max_epochs": 100})
                    mixture.fit(x)

        found["torchgmm"] = torchgmm
    except ImportError:
        print("torchgmm is not installed: left out")
    try:
        from pomegranate.distributions import Normal
        from pomegranate.gmm import GeneralMixtureModel

        def pomegranate(scores: NDArray, k_min: int, k_max: int) -> None:
            for x in torch.from_numpy(scores):
                for k in range(k_min, k_max + 1):
                    GeneralMixtureModel([Normal() for _ in range(k)], max_iter=100, tol=1e-3 * len(x)).fit(x)

        found["pomegranate"] = pomegranate
    except ImportError:
        print("pomegranate is not installed: left out")
    return found
