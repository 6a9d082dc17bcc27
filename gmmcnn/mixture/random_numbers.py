"""Counter-based random numbers: every draw has an address, so no result depends on the order in which draws are made.

A uniform number is a pure function of (seed, filter key, K, start, draw): block ``draw // 4`` of Philox-4x32-10 with

    key     = (key mod 2^32, key div 2^32)
    counter = (draw div 4, start * 64 + K, seed mod 2^32, seed div 2^32)

gives four 32-bit words; word ``draw mod 4``, plus one half, over 2^32 is the number. It lies strictly between 0 and 1.
"""

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, PHILOX_ROUNDS

_MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox-4x32-10: four 32-bit words from a 128-bit counter and a 64-bit key, both as 32-bit words, lowest first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = PHILOX_MULTIPLIERS[0] * c0, PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _MASK, (product0 >> 32) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & _MASK, (k1 + PHILOX_KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(seed: int, key: int, n_components: int, start: int, n_draws: int) -> NDArray[np.float64]:
    """Draws 0 … n_draws - 1 of one start, shape (n_draws,), each in (0, 1)."""
    words = [
        word
        for block in range(-(-n_draws // 4))
        for word in philox((block, start * 64 + n_components, seed & _MASK, seed >> 32), (key & _MASK, key >> 32))
    ]
    return (np.array(words[:n_draws], dtype=np.float64) + 0.5) / 2.0**32
