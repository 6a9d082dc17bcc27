"""Whatever file operation a run is disturbed at, the same command ends it with the same tables, weights and maps."""

import random
from collections.abc import Iterator

import pytest
from file_shim.disturbed import DISTURBANCES, Commands, built, commands
from file_shim.power_loss import Disk, read_log
from file_shim.trials import SCENARIOS, Trials

DISTURBED = 2
"""Operations of each scenario that are disturbed; ``make disturb`` tries any number, those of sweeps as well."""
LOSSES, DAMAGED, WALKS = 4, 4, 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands(built(tmp_path_factory.mktemp("shim"))) as started:
        yield started


@pytest.fixture(scope="module")
def trials(forked: Commands, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(forked, tmp_path_factory.mktemp("trials"))


def test_every_change_in_a_folder_is_seen(forked, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert forked.run(folder, log=log).code == 0
    disk = Disk(str(folder))
    for change in read_log(log):
        disk.do(change)
    found = {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    assert disk.left(1.0, random.Random(0)) == found


def test_what_a_record_speaks_of_is_on_the_disk(forked, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert forked.run(folder, log=log).code == 0
    disk = Disk(str(folder))
    for change in read_log(log):
        disk.do(change)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    lost = found - disk.left(0.0, random.Random(0)).keys()
    assert lost == set()


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if not scenario.sweep])
def test_a_task_disturbed_at_any_operation_goes_on_to_the_same_end(trials, name):
    scenario, draw = SCENARIOS[name], random.Random(name)
    _, operations = trials.undisturbed(scenario)
    for number in range(DISTURBED):
        disturbance = draw.choice(["killed", "torn"] if number else [*DISTURBANCES][2:])
        at = draw.randint(1, operations)
        assert not trials.disturb(scenario, disturbance, at), f"{name}, {disturbance} at {at}"


def test_a_run_goes_on_after_a_loss_of_power(trials):
    for at, chance, wrong in trials.lose_power(SCENARIOS["run"], LOSSES, random.Random(0)):
        assert not wrong, f"at {at}, unsynchronised changes kept with a chance of {chance}"


def test_damage_to_any_kind_of_file_is_found_and_repaired(trials):
    draw = random.Random(2)
    for _ in range(DAMAGED):
        what, wrong = trials.damage(draw)
        assert not wrong, what


def test_whatever_happens_in_a_folder_a_run_there_ends_as_it_should(trials):
    draw = random.Random(0)
    for _ in range(WALKS):
        done, wrong = trials.walk(4, draw)
        assert not wrong, done
