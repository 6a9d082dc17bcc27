"""Cluster every filter of a convolutional network, find the anomalous ones, and test what they mean for overfitting.

The public names load on first use, so that ``import gmmcnn`` costs next to nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gmmcnn.analysis import Analysis as Analysis
    from gmmcnn.analysis import load as load
    from gmmcnn.api import analyze as analyze
    from gmmcnn.errors import GmmcnnError as GmmcnnError
    from gmmcnn.mixture.sweep import GaussianMixtureSweep as GaussianMixtureSweep
    from gmmcnn.monitor import OverfittingMonitor as OverfittingMonitor
    from gmmcnn.principal_components.pca import pca as pca
    from gmmcnn.principal_components.reference import PCAResult as PCAResult
    from gmmcnn.pruning.masks import masked as masked
    from gmmcnn.pruning.structural import remove_filters as remove_filters

_HOMES = {
    "Analysis": "analysis",
    "GaussianMixtureSweep": "mixture.sweep",
    "GmmcnnError": "errors",
    "OverfittingMonitor": "monitor",
    "PCAResult": "principal_components.reference",
    "analyze": "api",
    "load": "analysis",
    "masked": "pruning.masks",
    "pca": "principal_components.pca",
    "remove_filters": "pruning.structural",
}
__all__ = list(_HOMES)
__path__.append(str(Path(__file__).with_name("earlier")))  # modules by the names that they had before they moved


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("gmmcnn")  # pyproject.toml says it, and nothing else does
    if name not in _HOMES:
        raise AttributeError(f"module 'gmmcnn' has no attribute {name!r}")
    value = getattr(import_module(f"gmmcnn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
