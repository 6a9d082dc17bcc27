"""Data sets: images in memory, split, thinned and given wrong labels by seed alone."""

from gmmcnn.data.loading import BUILT_IN as BUILT_IN
from gmmcnn.data.loading import load as load
from gmmcnn.data.splits import Images as Images
from gmmcnn.data.splits import Splits as Splits
