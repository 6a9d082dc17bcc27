"""The handwritten digits that come with scikit-learn: 1,797 images of 8 × 8 pixels, no download."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from gmmcnn.data.splits import BytePool, Source


def source(root: Path | None) -> Source:
    """Read the digits; they ship with scikit-learn, so ``root`` is not looked at."""
    digits = load_digits()
    images = digits.images[:, None].astype(np.uint8)  # (N, 1, 8, 8), ink from 0 to 16
    return Source(
        description="handwritten digits (scikit-learn)",
        class_names=tuple(str(digit) for digit in range(10)),
        train=BytePool(images, digits.target.astype(np.uint8), white=16),
        validation=None,
    )
