"""What can go wrong, in one line each.

Every message names the thing that was wrong (key, file, layer, filter, sample), what was expected, and what to do next.
Each class also derives from the built-in exception that a caller without gmmcnn in mind would catch.
"""

from collections.abc import Iterator


class GmmcnnError(Exception):
    """Base class of all errors that gmmcnn raises on purpose; the command line prints them without a traceback."""


class ConfigurationError(GmmcnnError, ValueError):
    """A setting is misspelt, of the wrong type, or impossible. The command line exits with 2."""


class DataError(GmmcnnError, ValueError):
    """A data set's file is truncated or is not what its name says, or a data set cannot serve what was asked of it."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data set's file is missing."""


class ModelError(GmmcnnError, ValueError):
    """A model cannot be built, or its checkpoint does not fit it."""


class TrainingError(GmmcnnError, RuntimeError):
    """Training diverged, or its folder holds a training with other settings."""


class CaptureError(GmmcnnError, ValueError):
    """Feature maps cannot be taken from a model, or hold NaN or infinite values."""


class ForwardError(CaptureError, RuntimeError):
    """A model's own forward pass raised an error."""


class LayerError(CaptureError, ConfigurationError):
    """A layer asked for is not one of the model's, or none is asked for."""


class StoreError(GmmcnnError, ValueError):
    """A store, or another file that a run keeps, is incomplete, corrupted, or something else."""


class BusyError(GmmcnnError, BlockingIOError):
    """Another process works in the same run folder."""


class DiskError(GmmcnnError, OSError):
    """A disk is full, fails, or may not be written: what was being written is named, and how to go on."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at that path."""


class EngineError(GmmcnnError, RuntimeError):
    """A compute engine was asked for that this machine cannot run."""


class DataWarning(UserWarning):
    """What was given is taken, but may not be what was meant."""


class SaturationWarning(DataWarning):
    """So few samples, or so large a λ, that chance alone makes small clusters: nothing can be concluded from them."""


class CouplingWarning(UserWarning):
    """The feature maps of a sample depend on the other samples in its forward pass."""


class ConvergenceWarning(UserWarning):
    """A fit stopped at its iteration cap; its result carries ``converged_ = False``."""


class EngineWarning(UserWarning):
    """A device is visible and cannot be used, so another engine takes its place."""


class TrackingWarning(UserWarning):
    """A service that curves are sent to failed, and gets no more of them."""


class CompileCacheWarning(UserWarning):
    """Compiled code on disk was damaged, or cannot be kept there: it is compiled anew."""


_LONGEST = 400
"""Characters of an error from elsewhere that are shown: some come with a page of advice."""


def one_line(error: BaseException) -> str:
    """Message of an error from elsewhere, without line breaks, to stand in one of ours."""
    said = f"it called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
    text = " ".join(said.split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on; each once, for errors that are raised again may lead round in a circle."""
    seen, at = set(), [error]
    while at:
        one = at.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            at += [other for other in (one.__cause__, one.__context__) if other is not None]
