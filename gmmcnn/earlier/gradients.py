"""Earlier name of :mod:`gmmcnn.models.gradients`."""

import sys

from gmmcnn.models import gradients as _moved

sys.modules[__name__] = _moved
