import zlib
from base64 import b64decode

import numpy as np
import pytest

from gmmcnn.report.packing import TYPES, packed


def test_arrays_of_every_type_come_back_from_their_places_in_the_block():
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 100, size).astype(name) for name, size in zip(TYPES, (3, 5, 7, 1, 4), strict=True)}
    arrays |= {"empty": np.zeros((0, 2), np.float32), "odd": np.ones((3, 1), np.uint8)}
    directory, block = packed({name: arrays[name] for name in reversed(list(arrays))})
    data = zlib.decompress(b64decode(block))
    for name, array in arrays.items():
        about = directory[name]
        assert about["type"] == TYPES[array.dtype.name]
        assert about["offset"] % array.dtype.itemsize == 0  # what a typed array in a browser asks for
        found = np.frombuffer(data, array.dtype, about["length"], about["offset"]).reshape(about["shape"])
        assert np.array_equal(found, array)


def test_a_type_that_the_page_does_not_know_is_refused():
    with pytest.raises(KeyError, match="float64"):
        packed({"x": np.zeros(2)})
