"""The digits of scikit-learn as a source of images."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from gmmcnn.data import digits


def test_all_digits_in_their_order_from_no_ink_to_full() -> None:
    source, original = digits.source(None), load_digits()
    images = source.train.take(np.arange(len(source.train)))
    assert images.images.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(images.images[:, 0].numpy() * 16, original.images)
    assert images.labels.tolist() == original.target.tolist()
    assert (images.images.min(), images.images.max()) == (0, 1)


def test_classes_are_the_digits_and_no_validation_split_is_their_own() -> None:
    source = digits.source(None)
    assert source.class_names == tuple("0123456789")
    assert source.validation is None


def test_no_folder_is_looked_at(tmp_path: Path) -> None:
    assert len(digits.source(tmp_path / "nowhere").train) == 1797
