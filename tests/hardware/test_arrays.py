"""The door for arrays: every real type comes in with its values, and a loss that counts does not pass."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.errors import DataError
from gmmcnn.hardware.arrays import LARGEST_LOSS, Loss, as_floats, as_numbers, float_type

VALUES = np.arange(24).reshape(2, 4, 3)
REAL_TYPES = {
    "?": "f4", "i1": "f4", "u1": "f4", "i2": "f4", "u2": "f4", "f2": "f4", "f4": "f4",
    "i4": "f8", "u4": "f8", "i8": "f8", "u8": "f8", "f8": "f8", "g": "f8",
}  # fmt: skip
LAYOUTS = {
    "plain": lambda a: a,
    "flipped": lambda a: a[::-1, :, ::-1],
    "strided": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
    "fortran": np.asfortranarray,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("order", "<>=")
@pytest.mark.parametrize(("given", "kept"), REAL_TYPES.items())
def test_every_real_type_keeps_its_values(given, kept, order):
    array = VALUES.astype(np.dtype(given).newbyteorder(order))
    floats = as_floats(array, "maps")
    assert floats.dtype == np.dtype(kept)
    assert floats.dtype.isnative
    np.testing.assert_array_equal(floats, array)


@pytest.mark.parametrize("dtype", ["f4", ">f8", "g", "u1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_taken(layout, dtype):
    array = LAYOUTS[layout](VALUES.astype(dtype))
    floats = as_floats(array, "maps")
    assert floats.flags.c_contiguous
    np.testing.assert_array_equal(floats, np.asarray(array))


def test_a_float_array_is_not_copied():
    for dtype in (np.float32, np.float64):
        array = VALUES.astype(dtype)
        assert as_floats(array, "maps") is array


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, requires_grad=True),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(3, 2).T,
        torch.ones(2, 3, dtype=torch.complex64).conj().real,
        torch.zeros(2, 3).neg() + 1,
    ],
)
def test_tensors_are_taken(tensor):
    np.testing.assert_array_equal(as_floats(tensor, "maps"), np.ones((2, 3)))


@pytest.mark.parametrize(
    "given",
    [
        np.array([["a"]]), np.zeros(3, complex), np.zeros(3, "M8[s]"), np.zeros(3, "m8[s]"), np.array([None, 1]),
        np.zeros(3, [("a", "f4")]), [[1], [2, 3]], None, {"a": 1}, np.ma.masked_equal([1, 2], 2), b"bytes",
        torch.zeros(3).to_sparse(), torch.zeros(3, device="meta"), torch.zeros(3, dtype=torch.complex64),
    ],
)  # fmt: skip
def test_what_holds_no_real_numbers_is_refused_by_its_name(given):
    with pytest.raises(DataError, match=r"^maps: "):
        as_floats(given, "maps")


def test_numbers_keep_their_type():
    assert as_numbers(VALUES.astype(">i8"), "labels").dtype == np.int64
    assert as_numbers([1.5], "labels").dtype == np.float64


def outcome(call):
    """What a call returns, and the refusal's message, empty where there is none."""
    try:
        return call(), ""
    except DataError as error:
        return None, str(error)


@given(
    dtype=st.sampled_from(["g", "i8", "u8"]),
    offset=st.integers(0, 62),
    spread=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_wide_types_are_kept_or_refused(dtype, offset, spread, seed):
    """Right: every difference between samples is kept to four times the largest loss, with Python's own integers."""
    noise = np.random.default_rng(seed).integers(0, 2**spread, size=(1, 30, 2))
    wide = noise.astype(dtype) + np.asarray(2**offset, dtype)
    floats, refusal = outcome(lambda: as_floats(wide, "maps"))
    if refusal:
        assert "maps: float64 would move values of filter 0" in refusal
        assert offset > 40
        return
    exact = [int(v) - int(wide[0, 0, p % 2]) for p, v in enumerate(wide.ravel())]
    kept = [int(v) - int(floats[0, 0, p % 2]) for p, v in enumerate(floats.ravel())]
    largest = max(map(abs, exact))
    of_its_own_rounding = dtype == "g" and largest <= 16 * np.finfo(dtype).eps * 2 ** (offset + 1)
    assert (
        of_its_own_rounding or max(abs(a - b) for a, b in zip(exact, kept, strict=True)) <= 4 * LARGEST_LOSS * largest
    )


def narrowed(values, blocks=1):
    with np.errstate(over="ignore", under="ignore"):
        kept = values.astype(np.float32)
    loss = Loss()
    for one, other in zip(np.array_split(values, blocks, 1), np.array_split(kept, blocks, 1), strict=True):
        loss.add(one, other)
    loss.require_small("maps", np.float32)


@given(
    offset=st.floats(-1e9, 1e9),
    exponent=st.integers(-300, 300),
    blocks=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_narrowing_keeps_differences_or_is_refused(offset, exponent, blocks, seed):
    values = (np.random.default_rng(seed).normal(size=(2, 20, 3)) + offset) * 2.0**exponent
    scaled = np.ldexp(values, -exponent)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        kept = np.ldexp(values.astype(np.float32).astype(np.float64), -exponent)
        error = np.abs((kept - kept[:, :1]) - (scaled - scaled[:, :1])).max()
    wrong = not error <= 2.1 * LARGEST_LOSS * np.abs(scaled - scaled[:, :1]).max()
    _, refusal = outcome(lambda: narrowed(values, blocks))
    if refusal:
        assert refusal.startswith(("maps: filter", "maps: float32 would move values of filter"))
        assert abs(offset) > 100 or not -130 < exponent < 100
    assert refusal or not wrong


def test_of_one_filter_in_many_the_message_names_the_number():
    values = np.random.default_rng(0).normal(size=(5, 30, 4))
    narrowed(values)
    values[3] += 1e8
    with pytest.raises(DataError, match=r"maps: float32 would move values of filter 3 by up to \d"):
        narrowed(values)
    values[3] *= 1e300
    with pytest.raises(DataError, match="maps: filter 3 has values beyond the range of float32"):
        narrowed(values)


def test_a_constant_filter_and_one_of_mere_rounding_lose_nothing():
    values = np.full((2, 10, 3), 1 / 3)
    values[1] += np.random.default_rng(0).integers(-2, 3, size=(10, 3)) * 2.0**-54
    narrowed(values)
    narrowed(np.full((1, 4, 2), np.nan))


def test_the_type_of_float_is_the_narrowest_that_holds_all():
    assert [float_type(t) for t in ("f2", "u2", "i4", ">f4", "f8")] == [
        np.dtype(k) for k in ("f4", "f4", "f8", "f4", "f8")
    ]
