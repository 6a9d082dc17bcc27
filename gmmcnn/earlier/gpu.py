"""Earlier name of :mod:`gmmcnn.hardware.gpu`."""

import sys

from gmmcnn.hardware import gpu as _moved

sys.modules[__name__] = _moved
