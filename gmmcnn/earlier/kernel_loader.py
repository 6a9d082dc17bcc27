"""Earlier name of :mod:`gmmcnn.hardware.kernel_loader`."""

import sys

from gmmcnn.hardware import kernel_loader as _moved

sys.modules[__name__] = _moved
