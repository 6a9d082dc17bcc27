"""What is known to be impossible before any work is done."""

from gmmcnn.featuremaps.capture import find_taps
from gmmcnn.featuremaps.stream import require_analysed
from gmmcnn.mixture.sweep import mixture_engine
from gmmcnn.run_folder import Run


def require_possible(job: Run) -> None:
    """Draw the probe set, find the layers and look for the engine, as the stages after a long training would.

    Parameters
    ----------
    job : Run
        Its data, network and probe set are loaded, and kept for the stages.

    Raises
    ------
    ConfigurationError
        The training set is too small for the probe set, or a layer asked for is not in the network.
    CaptureError
        No layer of the network can be analysed.
    EngineError
        The engine does not run on this machine.
    """
    settings = job.settings
    mixture_engine(settings.engine.name)
    if not settings.extract.source:
        example = job.probe.images[:1]
        require_analysed(find_taps(job.model, example, tap=settings.extract.tap, layers=settings.extract.layers))
