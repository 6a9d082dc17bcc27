"""Properties that shared numbers and names must have; that the kernels repeat the numbers is tested there."""

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest

from gmmcnn import constants
from gmmcnn.constants import Status, Stream
from gmmcnn.mixture.problem import STATUSES

PACKAGE = Path(constants.__file__).parent


def test_every_number_is_documented() -> None:
    blocks = Path(constants.__file__).read_text().split("\n\n")
    for name in (name for name in vars(constants) if name.isupper()):
        [block] = [block for block in blocks if f"\n{name} = " in f"\n{block}"]
        assert '"""' in block, name


def test_labels_of_the_largest_mixture_fit_their_type_and_the_random_counter() -> None:
    assert np.iinfo(np.int8).max >= constants.MAX_COMPONENTS
    assert constants.MAX_COMPONENTS < 64  # K takes six bits of the counter, the start the other 26
    assert constants.MAX_STARTS * 64 <= 2**32


def test_thresholds_lie_above_the_rounding_that_they_are_for() -> None:
    """float32 scores carry 6e-8 of their size; float64 sums over a million samples 1e-16 times a thousand."""
    assert constants.CH_ROUNDING > 1
    assert np.finfo(np.float32).eps ** 2 < constants.MIN_VARIANCE
    assert math.sqrt(1e6) * np.finfo(np.float64).eps < constants.CH_TIE
    assert np.finfo(np.float64).eps < constants.MIN_MEMBERSHIP


def test_philox_multipliers_are_odd_words() -> None:
    for number in (*constants.PHILOX_MULTIPLIERS, *constants.PHILOX_KEY_STEPS):
        assert 2**31 < number < 2**32
    assert all(number % 2 for number in constants.PHILOX_MULTIPLIERS)
    assert constants.PHILOX_ROUNDS == 10


def generators(path: Path) -> list[str]:
    """Arguments of every ``default_rng`` of a module."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call.args[0]) if call.args else ""
        for call in calls
        if ast.unparse(call.func).endswith("default_rng")
    ]


def test_no_draw_is_made_by_the_seed_alone_which_is_a_stream_of_its_own():
    assert np.random.default_rng(7).random() == np.random.default_rng([7, Stream.HOLD_OUT]).random()
    used = {path.name: generators(path) for path in sorted(PACKAGE.rglob("*.py"))}
    seeded = [argument for arguments in used.values() for argument in arguments if not argument.isdigit()]
    assert len(seeded) > 5
    for argument in seeded:
        assert "Stream." in argument, f"default_rng({argument})"


def test_every_stream_is_used_in_one_place():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for stream in Stream:
        assert len(re.findall(rf"\bStream\.{stream.name}\b", source)) == 1, stream.name


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_its_own_text_in_arrays_and_tables(status):
    assert np.array(STATUSES)[STATUSES.index(status)] == status.value == f"{status}"
    assert str(np.where([True], status, "other")[0]) == status


def test_near_dead_is_a_verdict_of_the_screening_alone():
    assert {*Status} - {*STATUSES} == {Status.NEAR_DEAD}
