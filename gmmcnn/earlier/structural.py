"""Earlier name of :mod:`gmmcnn.pruning.structural`."""

import sys

from gmmcnn.pruning import structural as _moved

sys.modules[__name__] = _moved
