"""Earlier name of :mod:`gmmcnn.principal_components.cuda`."""

import sys

from gmmcnn.principal_components import cuda as _moved

sys.modules[__name__] = _moved
