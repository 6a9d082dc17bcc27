"""Run folders that are disturbed, and what has to come of it: the tables, weights and maps of undisturbed ones."""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from file_shim.disturbed import DISTURBANCES, TINY, Commands, Ended
from file_shim.power_loss import Disk, read_log, restore

from gmmcnn.multirun.record import Status, Sweep


@dataclass(frozen=True)
class Scenario:
    """A command, and the folder that it works in.

    Attributes
    ----------
    before : tuple of str
        Tasks that were done there already.
    task : str
    more : tuple of str
        Settings other than those of the tiny run.
    lost : tuple of str
        Files that are not there any more.
    sweep : str
        Where the folder is a sweep's, of two jobs: whose operations are disturbed, those of the ``jobs``, each of them
        at the same, or those of the ``submitter``.
    """

    before: tuple[str, ...]
    task: str
    more: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    sweep: str = ""


SCENARIOS = {
    "run": Scenario((), "run"),
    "train": Scenario((), "train"),
    "store": Scenario(("train",), "extract"),
    "live fit": Scenario(("train",), "run", ("extract.keep_maps=none",)),
    "fit": Scenario(("train", "extract"), "fit"),
    "screen": Scenario(("run",), "screen", ("screen.ch_ratio=1.1",)),
    "report": Scenario(("run",), "report", lost=("report.html",)),
    "prune": Scenario(("run",), "prune", ("prune.controls=2",)),
    "other maps": Scenario(("run",), "run", ("extract.tap=pre_activation",)),
    "repair": Scenario(
        ("run",), "repair", lost=("checkpoints/epoch-0001.pt", "filters.csv", "activations/epoch-0002/taps.json")
    ),
    "experiment": Scenario((), "experiment", ("experiment=gradients", "experiment.size=smoke", "experiment.seeds=1")),
    "sweep": Scenario((), "run", sweep="submitter"),
    "jobs of a sweep": Scenario((), "run", sweep="jobs"),
}
"""What is disturbed, by name."""

UNLIKE = ("run.json", "digests.json", "log.csv", "jobs.csv", "sweep.json")
"""Files that say when and how something was made, or the digest of one whose pickle differs where it was resumed."""


def kept(folder: Path) -> dict[str, str]:
    """Everything that a folder keeps: path → digest of what it says."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        str(name): _digest(path)
        for name, path in files.items()
        if name.name not in UNLIKE and name.suffix != ".html" and not any(part.startswith(".") for part in name.parts)
    }


def _bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _digest(path: Path) -> str:
    if path.name == "last.pt":
        return hashlib.sha256(repr(_plain(torch.load(path, weights_only=True))).encode()).hexdigest()
    content = path.read_bytes()
    if path.name == "config.yaml":  # which names its own folder, and ends in a digest of that
        content = b"".join(line for line in content.splitlines() if not line.startswith((b"run:", b"# sha256")))
    return hashlib.sha256(content).hexdigest()


def _plain(value: object) -> object:
    """Content of a state without what differs between equal ones: seconds, and how often a text stands in it."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items() if name != "seconds"}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else repr(value)


def differing(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Files that are not as expected, in a folder that should be."""
    found = kept(folder)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


class Trials:
    """Scenarios disturbed, in folders below one.

    Parameters
    ----------
    commands : Commands
    folder : Path
    names : sequence of str
        Scenarios that are drawn from.
    """

    def __init__(self, commands: Commands, folder: Path, names: Sequence[str] = tuple(SCENARIOS)) -> None:
        self.commands = commands
        self.folder = folder
        self.names = names
        self.undisturbed = cache(self._undisturbed)
        self._before = cache(self._made_before)

    def _made_before(self, tasks: tuple[str, ...]) -> Path | None:
        """Folder in which some tasks were done."""
        if not tasks:
            return None
        folder = self.folder / f"after-{'-'.join(tasks)}"
        for task in tasks:
            ended = self.commands.run(folder, task)
            assert ended.code == 0, ended.said
        return folder

    def start(self, scenario: Scenario, name: str) -> Path:
        """New folder for a scenario, as it is before."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        before = self._before(scenario.before)
        if before is not None:
            shutil.copytree(before, folder)
        for lost in scenario.lost:
            (folder / lost).unlink()
        return folder

    def do(self, scenario: Scenario, folder: Path, **disturbance: object) -> Ended:
        """Carry out the scenario's command; in a sweep, once no job of an earlier one is at work."""
        if not scenario.sweep:
            return self.commands.run(folder, scenario.task, *scenario.more, **disturbance)
        while (folder / "sweep.json").exists() and _at_work(folder):
            time.sleep(0.1)
        asked = ["-m", "seed=0,1", f"task={scenario.task}", *TINY, *scenario.more, f"sweep={folder}"]
        jobs = scenario.sweep == "jobs" and bool(disturbance)
        return self.commands.do([*asked, "hydra.launcher.jobs=2"], folder, jobs=jobs, **disturbance)

    def _undisturbed(self, scenario: Scenario) -> tuple[dict[str, str], int]:
        """What the command leaves, and the number of its operations."""
        folder = self.start(scenario, "undisturbed")
        ended = self.do(scenario, folder)
        assert ended.code == 0, ended.said
        of_a_job = scenario.sweep == "jobs"  # which are counted nowhere, and about those of a run
        return kept(folder), self.undisturbed(SCENARIOS["run"])[1] if of_a_job else ended.operations

    def disturb(self, scenario: Scenario, disturbance: str, at: int) -> list[str]:
        """Disturb a command at one operation, and repeat it; what is wrong with what comes of that: should be nothing.

        Parameters
        ----------
        scenario : Scenario
        disturbance : str
            As of :data:`~file_shim.disturbed.DISTURBANCES`.
        at : int
        """
        expected, _ = self.undisturbed(scenario)
        folder = self.start(scenario, "disturbed")
        ended = self.do(scenario, folder, disturbance=disturbance, at=at)
        wrong = []
        if disturbance in ("killed", "torn"):
            if ended.code != (1 if scenario.sweep == "jobs" else -9):
                wrong.append(f"was not killed: {ended}")
        elif ended.code == 0:
            wrong += [f"ended well with another {name}" for name in differing(folder, expected)]
        elif not ended.told_in_one_line:
            wrong.append(f"not told in one line: {ended.said}")
        elif "from then on" not in disturbance and _says_running(folder):
            wrong.append("run.json says that it is running")
        again = self.do(scenario, folder)
        if again.code:
            wrong.append(f"the same command does not go on: {again.said}")
        wrong += [f"another {name} in the end" for name in differing(folder, expected)]
        return wrong

    def damage(self, draw: random.Random) -> tuple[str, list[str]]:
        """Damage a file of a whole run; what was done, and what is wrong with what verification and repair made of it.

        Damage that changes nothing that is kept, such as a bit that nobody reads, may stay unsaid.
        """
        folder = self.start(Scenario(("run",), "verify"), "damaged")
        expected, bytes_before = kept(folder), _bytes(folder)
        what, wrong = spoil(folder, draw), []
        if _bytes(folder) == bytes_before:
            return f"{what}, which left it as it was", []
        found = self.commands.run(folder, "verify")
        if found.code == 0:
            wrong.append("silent: verification finds nothing")
        elif not found.told_in_one_line:
            wrong.append(f"not told in one line: {found.said[-600:]}")
        repaired = self.commands.run(folder, "repair")
        if what.startswith("config.yaml") and repaired.told_in_one_line:
            return what, wrong  # the one record that nothing can be made again without
        if repaired.code:
            wrong.append(f"not repaired: {repaired.said[-600:]}")
        wrong += [f"another {name} in the end" for name in differing(folder, expected)]
        again = self.commands.run(folder, "verify")
        if again.code:
            wrong.append(f"wrong after repair: {again.said[-600:]}")
        return what, wrong

    def walk(self, steps: int, draw: random.Random) -> tuple[str, list[str]]:
        """Tasks, other settings, kills, errors and damage in a row; what was done, and what is wrong in the end.

        Whatever happens, a command ends well or says in one line what is wrong, and in the end repair and a run give
        the tables of an undisturbed one.
        """
        scenario = SCENARIOS["run"]
        expected, operations = self.undisturbed(scenario)
        folder, done, wrong, spoilt = self.start(scenario, "walked"), [], [], False
        for _ in range(steps):
            if kept(folder) and draw.random() < 0.3:
                done.append(spoil(folder, draw))
                spoilt = spoilt or done[-1].startswith("config.yaml")
                continue
            task, more = draw.choice(TASKS), draw.choice([(), (), ("screen.ch_ratio=1.1",), ("gmm.k_max=2",)])
            how, at = draw.choice(["", "", *DISTURBANCES]), draw.randint(1, operations)
            done.append(" ".join([task, *more, f"({how} at {at})" * bool(how)]))
            ended = self.commands.run(folder, task, *more, disturbance=how, at=at)
            if ended.code not in (0, -9) and not ended.told_in_one_line:
                wrong.append(f"{done[-1]}: {ended.code}: {ended.said[-600:]}")
        if spoilt:
            (folder / "config.yaml").unlink(missing_ok=True)  # as is said, where it is damaged
        for task in ("repair", "run"):
            ended = self.commands.run(folder, task)
        if ended.code:
            wrong.append(f"does not go on: {ended.said[-600:]}")
        others = [name for name in differing(folder, expected) if Path(name).name in TABLES]
        return ", ".join(done), wrong + [f"another {name} in the end" for name in others]

    def together(self, other: Commands, draw: random.Random) -> tuple[str, list[str]]:
        """Two tasks at once in one folder; what they were, and what is wrong with what came of it.

        Each ends well, or is told that the other works there, or what is not there yet; nothing of theirs is mixed.
        """
        before = draw.choice([(), ("train",), ("train", "extract"), ("run",)])
        tasks = [draw.choice(TASKS) for _ in range(2)]
        expected, _ = self.undisturbed(SCENARIOS["run"])
        folder, wait = self.start(Scenario(before, "run"), "shared"), draw.random() * draw.choice([0.0, 1.0])

        def later(task: str) -> Ended:
            time.sleep(wait)
            return other.run(folder, task)

        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(later, tasks[1])
            ended = [self.commands.run(folder, tasks[0]), second.result()]
        wrong = [f"{one.code}: {one.said[-600:]}" for one in ended if one.code and not one.told_in_one_line]
        last = self.commands.run(folder)
        if last.code:
            wrong.append(f"does not go on: {last.said[-600:]}")
        wrong += [f"another {name} in the end" for name in differing(folder, expected)]
        return f"after {before}: {' and '.join(tasks)}, {wait:.2f} s later", wrong

    def lose_power(self, scenario: Scenario, n: int, draw: random.Random) -> Iterator[tuple[int, float, list[str]]]:
        """Lose the power at operations drawn at random; only for scenarios that begin in an empty folder.

        Parameters
        ----------
        scenario : Scenario
        n : int
            How often.
        draw : random.Random

        Yields
        ------
        at : int
            Number of changes that were made before.
        chance : float
            Of a change that was not synchronised to be on disk.
        wrong : list of str
            What is wrong with what came of it.
        """
        folder, log = self.start(scenario, "powered"), self.folder / "log"
        expected = kept(folder) if self.do(scenario, folder, log=log).code == 0 else {}
        changes = read_log(log)
        for at in sorted(draw.choices(range(1, len(changes) + 1), k=n)):
            chance = draw.choice([0.0, 0.5, 0.9, 1.0])
            disk = Disk(str(folder))
            for change in changes[:at]:
                disk.do(change)
            left = self.folder / "left"
            shutil.rmtree(left, ignore_errors=True)
            restore(disk.left(chance, draw), left)
            again = self.do(scenario, left)
            wrong = [f"the same command does not go on: {again.said}"] if again.code else []
            yield at, chance, wrong + [f"another {name} in the end" for name in differing(left, expected)]


TASKS = ("run", "run", "train", "extract", "fit", "screen", "report", "prune")
TABLES = ("filters.csv", "filters.parquet", "outliers.csv", "samples.csv", "metrics.csv", "masking.csv", "mask.json")
DAMAGES = {
    "a bit": lambda content, draw: _with_bit(content, draw.randrange(8 * len(content))),
    "zeros": lambda content, draw: _zeroed(content, draw.randrange(len(content)), draw.randint(1, 4096)),
    "the end": lambda content, draw: content[: draw.randrange(len(content))],
    "everything": lambda content, draw: b"",
}
"""What happens to the content of a file."""


def _with_bit(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _zeroed(content: bytes, start: int, n_bytes: int) -> bytes:
    end = min(start + n_bytes, len(content))
    return content[:start] + bytes(end - start) + content[end:]


def spoil(folder: Path, draw: random.Random) -> str:
    """Damage one file of a folder: a bit, zeros, cut short, deleted, or exchanged for another; says what was done."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if not path.name.startswith(".")]
    by_kind: dict[str, list[Path]] = {}
    for file in files:
        by_kind.setdefault(_kind(file), []).append(file)
    path = draw.choice(draw.choice([*by_kind.values()]))
    how = draw.choice([*DAMAGES, "deleted", "exchanged"])
    name, content = path.relative_to(folder), path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "exchanged":
        other = draw.choice([file for file in files if file.suffix == path.suffix])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        how = f"exchanged for {other.relative_to(folder)}"
    else:
        path.write_bytes(DAMAGES[how](content, draw))
    return f"{name}: {how}"


def _kind(path: Path) -> str:
    """What a file is, so that each kind is damaged as often as any other."""
    if path.parent.name == "checkpoints":
        return f"checkpoints/{path.suffix}"
    known = ("probe", "complete", "maps.zarr", "fits")
    return next((name for name in known if name in path.parts), path.name)


def _at_work(folder: Path) -> bool:
    return any(state.status is Status.RUNNING for state in Sweep.read(folder).states().values())


def _says_running(folder: Path) -> bool:
    path = folder / "run.json"
    return path.exists() and json.loads(path.read_text())["status"] == "running"


def some(names: Sequence[str]) -> str:
    """The first lines of many."""
    return "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")
