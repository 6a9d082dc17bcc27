"""Disturb run folders thousands of times, in ways drawn at random: does anything get lost, or silently wrong?

``python tests/disturbances.py kills 1000`` and so on: takes hours for all, and says at the end how many came to what
they should. A failure names what to repeat: ``--seed`` and the number of the trial.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import killed_sweep
from file_shim.disturbed import built, commands
from file_shim.trials import SCENARIOS, Trials, some

Trial = tuple[str, list[str]]
"""What was done, and what is wrong with what came of it."""


def kills(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """Tasks killed at an operation drawn at random, before it or halfway through it."""
    for _ in range(n):
        name, how = draw.choice(trials.names), draw.choice(["killed", "torn"])
        at = draw.randint(1, trials.undisturbed(SCENARIOS[name])[1])
        yield f"{name}, {how} at {at}", trials.disturb(SCENARIOS[name], how, at)


def errors(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """Operations of the tiny run that fail for want of space, and by a failing disk: the first ``n``, or all."""
    scenario = SCENARIOS["run"]
    for at in range(1, 1 + min(n, trials.undisturbed(scenario)[1])):
        for how in ("no space, once", "input/output error, once"):
            yield f"{how}, at {at}", trials.disturb(scenario, how, at)


def losses(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """Losses of power at operations drawn at random."""
    for at, chance, wrong in trials.lose_power(SCENARIOS["run"], n, draw):
        yield f"power lost at {at}, unsynchronised changes kept with a chance of {chance}", wrong


def damages(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """Files of a whole run damaged: found by verification, and repaired."""
    for _ in range(n):
        yield trials.damage(draw)


def pairs(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """Two tasks at once in one folder."""
    with commands(built(trials.folder)) as other:
        for _ in range(n):
            yield trials.together(other, draw)


def walks(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """Tasks, other settings, kills, errors and damage in a row, in one folder."""
    for _ in range(n):
        yield trials.walk(draw.randint(2, 7), draw)


def sweep(trials: Trials, n: int, draw: random.Random) -> Iterator[Trial]:
    """A sweep of so many jobs, ten of which are killed, and the launcher."""
    yield f"a sweep of {n} jobs", killed_sweep.kill(trials.folder / "sweep", n, min(10, n // 2), draw)


KINDS = {kind.__name__: kind for kind in (kills, errors, losses, damages, pairs, walks, sweep)}


def main() -> int:
    """Read what to do; the exit code is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, nargs="+", default=[*SCENARIOS], help="what is killed")
    asked = parser.parse_args()
    n_wrong = n_done = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, commands(built(Path(folder))) as started:
        for what, wrong in KINDS[asked.kind](
            Trials(started, Path(folder), asked.only), asked.n, random.Random(asked.seed)
        ):
            n_done += 1
            n_wrong += bool(wrong)
            if wrong or not n_done % 100:
                print(f"{n_done}: {what}: {some(wrong) or 'as it should be'}", flush=True)
    print(f"{asked.kind}: {n_done - n_wrong} of {n_done} as they should be, in {time.monotonic() - began:.0f} s")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
