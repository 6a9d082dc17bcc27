"""Arrays and images as text that a page can hold, and a browser opens without asking anybody."""

import zlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"float32": "Float32Array", "int32": "Int32Array", "int16": "Int16Array", "uint16": "Uint16Array"} | {
    "uint8": "Uint8Array"
}
"""Types that both sides know, wide ones first."""


def packed(arrays: Mapping[str, NDArray]) -> tuple[dict[str, Any], str]:
    """Compress arrays into one block.

    Parameters
    ----------
    arrays : mapping of name to array
        Of one of ``TYPES``.

    Returns
    -------
    directory : dict
        Name → type in JavaScript, first byte, number of values and shape.
    block : str
        Base64 of the zlib stream of their bytes, little-endian, wide types first so that each begins at a multiple of
        its width.
    """
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    directory, parts, offset = {}, [], 0
    for name in order:
        array = np.ascontiguousarray(arrays[name])
        directory[name] = {
            "type": TYPES[array.dtype.name],
            "offset": offset,
            "length": array.size,
            "shape": list(array.shape),
        }
        parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        offset += array.nbytes
    return directory, b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii")
