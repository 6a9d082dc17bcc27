"""Every error is one of ours, and one that a caller without gmmcnn in mind would catch."""

import inspect

import pytest

from gmmcnn import errors

OURS = [
    error for _, error in inspect.getmembers(errors, inspect.isclass)
    if error.__module__ == errors.__name__ and issubclass(error, Exception) and not issubclass(error, Warning)
]  # fmt: skip


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.__name__)
def test_an_error_is_ours_and_a_built_in_one(error: type[Exception]) -> None:
    assert issubclass(error, errors.GmmcnnError)
    assert error is errors.GmmcnnError or issubclass(error, ValueError | RuntimeError | OSError)
    assert error.__doc__
    assert str(error("conv1: 3 filters; expected 4")) == "conv1: 3 filters; expected 4"


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (errors.DataNotFoundError, (errors.DataError, FileNotFoundError)),
        (errors.StoreNotFoundError, (errors.StoreError, FileNotFoundError)),
        (errors.LayerError, (errors.CaptureError, errors.ConfigurationError)),
        (errors.EngineError, (RuntimeError,)),
        (errors.TrainingError, (RuntimeError,)),
    ],
)
def test_the_families_that_callers_rely_on(error: type[Exception], family: tuple[type[Exception], ...]) -> None:
    assert all(issubclass(error, parent) for parent in family)


def test_a_fit_that_stopped_early_is_a_warning() -> None:
    assert issubclass(errors.ConvergenceWarning, UserWarning)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\n  two\tthree "), "one two three"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "'key'"),
        (ZeroDivisionError(" \n "), "ZeroDivisionError"),
    ],
)
def test_a_foreign_message_becomes_one_line_or_at_least_a_name(error: Exception, line: str) -> None:
    assert errors.one_line(error) == line


def test_a_chain_of_errors_that_leads_round_in_a_circle_has_an_end():
    first, second = OSError("first"), ValueError("second")
    first.__context__, second.__cause__ = second, first
    assert list(errors.chain(second)) == [second, first]
