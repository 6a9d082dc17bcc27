"""The door for arrays of numbers: which types are kept, which are converted, and what may be lost on the way.

======================================================  ==========================================================
given                                                   becomes
======================================================  ==========================================================
float32, float64                                        itself
bool, float16, bfloat16, integers of at most 16 bits    float32, which holds each of their values
integers of 32 bits                                     float64, which holds each of their values
integers of 64 bits, long double                        float64, where that loses nothing that counts
text, dates, complex numbers, objects, records          an error
======================================================  ==========================================================

The byte order becomes the machine's, and a view that is flipped or strided is copied. Clusters are made of differences
between samples. So a rounding counts when it reaches :data:`LARGEST_LOSS` of the spread of a filter's maps, however
small it is beside the values themselves.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gmmcnn.errors import DataError, one_line

LARGEST_LOSS = 1e-4
"""Largest rounding of a value, over the largest difference between the filter's samples."""

_EXACT_IN_FLOAT32 = (np.bool_, np.float16, np.int8, np.uint8, np.int16, np.uint16)


def as_floats(given: Any, name: str) -> NDArray:
    """Floats of any real numbers, without a loss that counts.

    Parameters
    ----------
    given : array_like or Tensor
        (F, N, …) where it holds 64-bit integers or long doubles: the first axis is that of the filters, the second that
        of the samples. Any shape else. A tensor may lie on a device or require gradients.
    name : str
        What the user calls it, for messages.

    Returns
    -------
    ndarray
        float32 or float64, contiguous, in the machine's byte order; the given array itself where it is all that.

    Raises
    ------
    DataError
        It holds no real numbers, or its numbers are not kept by float64.
    """
    array = as_numbers(given, name)
    with np.errstate(over="ignore"):  # Loss tells it
        kept = np.asarray(array, float_type(array.dtype), order="C")
    if _wide(array.dtype) != np.float64 and array.ndim >= 2:
        loss = Loss()
        loss.add(array, kept)
        loss.require_small(name, kept.dtype)
    return kept


def as_numbers(given: Any, name: str) -> NDArray:
    """Array of real numbers, of the type that they have. DataError where there are none."""
    array = as_array(given, name)
    if not is_real(array.dtype):
        raise DataError(f"{name}: values of type {array.dtype.name}; expected real numbers, such as float32")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def is_real(dtype: DTypeLike) -> bool:
    """Whether values of a type are real numbers."""
    return np.dtype(dtype).kind in "fiub"


def float_type(dtype: DTypeLike) -> np.dtype:
    """Type of float that the numbers of a type become: float32 where it holds them all, float64 elsewhere."""
    return np.dtype(np.float32 if np.dtype(dtype).type in (*_EXACT_IN_FLOAT32, np.float32) else np.float64)


class Loss:
    """What a conversion loses, counted block by block of samples.

    The spread of a filter is the largest difference of a pixel between a sample and the first one.
    """

    def __init__(self) -> None:
        self._first: Any = None
        self._rounding: Any = 0.0
        self._spread: Any = 0.0
        self._floor: Any = 0.0
        self._outside: Any = False

    def add(self, values: NDArray, kept: NDArray) -> None:
        """Count a block.

        Parameters
        ----------
        values : (F, N, …) real numbers
        kept : (F, N, …) float32 or float64
            What they have become. NaN and infinite values are left to whoever looks for them.
        """
        exact = values.reshape(*values.shape[:2], -1).astype(_wide(values.dtype), copy=False)
        finite = np.isfinite(exact)
        exact = np.where(finite, exact, 0)
        rounding = np.abs(np.where(finite, kept.reshape(exact.shape).astype(exact.dtype, copy=False), 0) - exact)
        self._first = exact[:, :1] if self._first is None else self._first
        self._outside = self._outside | ~np.isfinite(rounding).all(axis=(1, 2))
        self._rounding = np.maximum(self._rounding, _largest(rounding))
        self._spread = np.maximum(self._spread, _largest(np.abs(exact - self._first)))
        self._floor = np.maximum(self._floor, _largest(np.abs(exact)) * _noise(values.dtype))

    def require_in_range(self, name: str, dtype: DTypeLike) -> None:
        """Raise DataError, which names the first filter concerned, if a value has become infinite."""
        if np.any(self._outside):
            f, kind = int(np.argmax(self._outside)), np.dtype(dtype).name
            raise DataError(f"{name}: filter {f} has values beyond the range of {kind}; divide all by a power of two")

    def require_small(self, name: str, dtype: DTypeLike) -> None:
        """Raise DataError, which names the first filter concerned, if a loss counts."""
        self.require_in_range(name, dtype)
        lost = (self._rounding > LARGEST_LOSS * self._spread) & (self._spread > self._floor)
        if np.any(lost):
            f, kind = int(np.argmax(lost)), np.dtype(dtype).name
            raise DataError(
                f"{name}: {kind} would move values of filter {f} by up to {float(self._rounding[f]):.2g}, where its "
                f"samples differ by {float(self._spread[f]):.2g} at most; subtract from every sample the same map, "
                "such as the mean one, or multiply all by a power of two"
            )


def _largest(magnitudes: NDArray) -> NDArray:
    """Largest (F,) of (F, N, P)."""
    return magnitudes.max(axis=(1, 2), initial=0)


def _noise(dtype: np.dtype) -> float:
    """Share of a value below which differences are the rounding of what computed it."""
    return 16 * float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0


def _wide(dtype: np.dtype) -> np.dtype:
    """Type that holds every value of a type: long double for what float64 does not hold."""
    wider = dtype.itemsize >= 8 and dtype != np.float64
    return np.dtype(np.longdouble if wider else np.float64)


def as_array(given: Any, name: str) -> NDArray:
    """Array of any type: of a tensor, a sequence, or anything else that NumPy takes for one. DataError elsewhere."""
    torch = sys.modules.get("torch")  # who has not loaded it, gives no tensor
    if torch is not None and isinstance(given, torch.Tensor):
        return _of_tensor(given, name)
    if np.ma.is_masked(given):
        raise DataError(f"{name}: a masked array with masked values; expected all of them: fill or leave them out")
    try:
        return np.asarray(given)
    except (Exception, SystemExit) as error:  # whatever the user's class raises
        raise DataError(f"{name}: a {type(given).__name__} that is no array ({one_line(error)})") from error


def _of_tensor(tensor: Any, name: str) -> NDArray:
    import torch

    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    except Exception as error:  # sparse, quantised, on no device
        raise DataError(
            f"{name}: a tensor of type {tensor.dtype}, layout {tensor.layout} on {tensor.device} that is no array "
            f"({one_line(error)})"
        ) from error
