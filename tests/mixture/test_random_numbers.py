"""Philox against its authors' known answers, and draws that depend on their address alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.constants import MAX_COMPONENTS, MAX_STARTS
from gmmcnn.mixture.random_numbers import philox, uniforms

ONES = 0xFFFFFFFF
addresses = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**64 - 1),
        "key": st.integers(0, 2**64 - 1),
        "n_components": st.integers(2, MAX_COMPONENTS),
        "start": st.integers(0, MAX_STARTS - 1),
    }
)


def test_philox_gives_the_published_numbers():
    """Known answers of Random123, the authors' own library (kat_vectors, philox4x32 10)."""
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ONES,) * 4, (ONES,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(counter, key) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_draws_are_uniform_and_differ_by_every_part_of_their_address():
    base = {"seed": 3, "key": 5, "n_components": 4, "start": 0, "n_draws": 4000}
    draws = uniforms(**base)
    assert abs(draws.mean() - 0.5) < 0.02  # four standard errors
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.07
    for part in ("seed", "key", "n_components", "start"):
        for larger in (base[part] + 1, base[part] + 2**34) if part in ("seed", "key") else (base[part] + 1,):
            assert abs(np.corrcoef(draws, uniforms(**{**base, part: larger}))[0, 1]) < 0.07


@given(address=addresses, n_draws=st.integers(0, 40), fewer=st.integers(0, 40))
def test_fewer_draws_are_the_first_of_more(address, n_draws, fewer):
    draws = uniforms(**address, n_draws=n_draws)
    assert draws.shape == (n_draws,)
    assert ((draws > 0) & (draws < 1)).all()
    np.testing.assert_array_equal(uniforms(**address, n_draws=min(fewer, n_draws)), draws[:fewer])


@given(address=addresses, part=st.sampled_from(["seed", "key", "n_components", "start"]), step=st.integers(0, 63))
def test_every_bit_of_the_address_counts(address, part, step):
    other = {**address, part: address[part] ^ (1 << step % {"n_components": 6, "start": 26}.get(part, 64))}
    assert (uniforms(**address, n_draws=8) != uniforms(**other, n_draws=8)).all()


def test_a_draw_is_the_word_of_its_block():
    """Block 2 of (seed, key) = (a + b 2^32, c + d 2^32), K = 7, start 3: counter (2, 3 * 64 + 7, a, b), key (c, d)."""
    words = philox((2, 199, 11, 13), (17, 19))
    draws = uniforms(11 + (13 << 32), 17 + (19 << 32), 7, 3, 12)
    np.testing.assert_array_equal(draws[8:], (np.array(words) + 0.5) / 2**32)


@pytest.mark.parametrize("word", [0, 1, 2])
def test_the_counter_changes_all_words(word):
    base = [5, 6, 7, 8]
    other = [*base]
    other[word] += 1
    assert all(a != b for a, b in zip(philox(tuple(base), (1, 2)), philox(tuple(other), (1, 2)), strict=True))
