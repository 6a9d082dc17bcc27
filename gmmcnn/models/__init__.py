"""Networks: the publication's, two residual ones, and anybody's by dotted name."""

from gmmcnn.models.building import BUILT_IN as BUILT_IN
from gmmcnn.models.building import build as build
from gmmcnn.models.checkpoints import load_checkpoint as load_checkpoint
from gmmcnn.models.checkpoints import load_state as load_state
from gmmcnn.models.checkpoints import read_state as read_state
