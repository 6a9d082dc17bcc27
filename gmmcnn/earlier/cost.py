"""Earlier name of :mod:`gmmcnn.hardware.cost_model`."""

import sys

from gmmcnn.hardware import cost_model as _moved

sys.modules[__name__] = _moved
