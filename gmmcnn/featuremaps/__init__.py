"""Feature maps: taken from a model (capture), kept on disk (store), and streamed between the two (stream)."""

from gmmcnn.featuremaps.activation import activation_statistics as activation_statistics
from gmmcnn.featuremaps.capture import capture as capture
from gmmcnn.featuremaps.capture import find_taps as find_taps
from gmmcnn.featuremaps.store import ActivationStore as ActivationStore
from gmmcnn.featuremaps.stream import extract as extract
from gmmcnn.featuremaps.stream import filter_blocks as filter_blocks
from gmmcnn.featuremaps.stream import import_activations as import_activations
from gmmcnn.featuremaps.taps import Skipped as Skipped
from gmmcnn.featuremaps.taps import Tap as Tap
from gmmcnn.featuremaps.taps import Taps as Taps
