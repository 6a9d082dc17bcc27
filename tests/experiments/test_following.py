"""Verdicts on counts over training whose truth is known, one by one and a thousand at a time."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from gmmcnn.experiments.associations import partial_spearman, spearman
from gmmcnn.experiments.following import (
    at_the_same_fit,
    given_the_fit,
    judge_associations,
    judge_over_training,
)
from gmmcnn.experiments.statistics import NO_EFFECT, NOT_SPECIFIC, REFUTED, SUPPORTED, UNDECIDED

EPOCHS = np.arange(1, 13)


def training(seed: int, condition: str, count, gap, train_loss) -> pd.DataFrame:
    columns = {"epoch": EPOCHS, "count": count, "gap": gap, "train_loss": train_loss}
    return pd.DataFrame({"seed": seed, "condition": condition} | columns)


def experiment(count_of, n_seeds: int = 8, control: bool = True, wiggle: float = 0.3) -> pd.DataFrame:
    """A table in which ``count_of(epoch, gap, noise)`` makes the count; the control's gap stays near zero."""
    parts = []
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        for condition, slope in [("overfitting", 0.2), ("control", 0.0)][: 2 if control else 1]:
            gap = slope * EPOCHS + wiggle * rng.normal(size=len(EPOCHS))
            loss = 2 - 0.1 * EPOCHS + 0.05 * rng.normal(size=len(EPOCHS))
            parts.append(training(seed, condition, count_of(EPOCHS, gap, rng.normal(size=len(EPOCHS))), gap, loss))
    return pd.concat(parts)


def verdict(table: pd.DataFrame) -> str:
    return judge_over_training(table, "count", "the count follows the gap").label


def test_a_count_that_follows_the_gap_is_supported():
    assert verdict(experiment(lambda epoch, gap, noise: 3 + 4 * gap + 0.3 * noise)) == SUPPORTED


def test_a_count_that_follows_time_alone_is_not_specific():
    table = experiment(lambda epoch, gap, noise: 3 + epoch + 0.3 * noise)
    found = judge_over_training(table, "count", "the count follows the gap")
    assert found.effects[0].value > 0.7  # as strong an association as one could wish
    assert found.label == NOT_SPECIFIC


def test_without_a_control_nothing_is_decided():
    for count_of in (lambda epoch, gap, noise: 3 + epoch + 0.3 * noise, lambda epoch, gap, noise: 3 + 4 * gap):
        found = judge_over_training(experiment(count_of, control=False), "count", "the count follows the gap")
        assert [check.n for check in found.checks] == [0, 0, 0]
        assert found.label == UNDECIDED
        assert "too few seeds to judge" in str(found)


def test_a_count_that_rises_as_much_in_the_control_is_not_specific_though_it_follows_the_gap_given_the_epoch():
    table = experiment(lambda epoch, gap, noise: 3 + 4 * gap + 0.3 * noise)
    table.loc[table["condition"] == "control", "count"] += 2 * table.loc[table["condition"] == "control", "epoch"]
    assert verdict(table) == NOT_SPECIFIC


def test_a_count_that_falls_as_the_gap_widens_is_refuted():
    assert verdict(experiment(lambda epoch, gap, noise: 30 - 4 * gap + 0.3 * noise)) == REFUTED


def test_a_count_that_falls_with_time_alone_shows_no_effect_and_refutes_nothing():
    assert verdict(experiment(lambda epoch, gap, noise: 30 - epoch + 0.3 * noise, n_seeds=16)) == NO_EFFECT


def test_a_constant_count_needs_many_seeds_to_say_that_there_is_no_effect():
    for n_seeds, expected in ((6, UNDECIDED), (16, NO_EFFECT)):
        assert verdict(experiment(lambda epoch, gap, noise: np.full(len(epoch), 3.0), n_seeds)) == expected


@pytest.mark.parametrize("n_seeds", [1, 3, 5])
def test_too_few_seeds_decide_nothing(n_seeds):
    assert verdict(experiment(lambda epoch, gap, noise: 3 + 4 * gap, n_seeds)) == UNDECIDED


def test_more_epochs_do_not_make_a_verdict_surer():
    """Each epoch counted twice: the same associations, so the same interval."""
    table = experiment(lambda epoch, gap, noise: 3 + gap + noise)
    once, twice = (judge_over_training(t, "count", "") for t in (table, pd.concat([table, table])))
    assert once.effects[0].low == pytest.approx(twice.effects[0].low)
    assert once.effects[0].n == twice.effects[0].n == 8


@pytest.mark.parametrize(("of_gap", "expected"), [(0.0, 0.0), (10.0, 12.0)], ids=["follows the fit", "follows the gap"])
def test_at_the_same_fit_what_follows_the_fit_is_told_from_what_follows_the_gap(of_gap, expected):
    rows = []
    for seed in range(3):
        for epoch in range(1, 7):  # one fits fast and opens a gap of 1.2 at the losses that both have; one fits slowly
            for condition, loss, gap in (("overfitting", 2 - 0.3 * epoch, 1.0), ("control", 2 - 0.1 * epoch, -0.2)):
                count = 20 - 5 * loss + of_gap * gap
                rows.append({"seed": seed, "condition": condition, "epoch": epoch, "train_loss": loss, "count": count})
    assert at_the_same_fit(pd.DataFrame(rows), "count").value == pytest.approx(expected)


def test_at_the_same_fit_what_follows_time_comes_out_below_zero():
    rows = [
        {"seed": 0, "condition": condition, "epoch": epoch, "train_loss": 2 - slope * epoch, "count": float(epoch)}
        for epoch in range(1, 7)
        for condition, slope in (("overfitting", 0.3), ("control", 0.1))
    ]
    assert at_the_same_fit(pd.DataFrame(rows), "count").value < -2


def test_networks_that_were_never_as_closely_fitted_are_not_compared():
    rows = [{"seed": 0, "condition": "overfitting", "train_loss": 0.1, "flagged": 9}]
    rows += [{"seed": 0, "condition": "control", "train_loss": loss, "flagged": 3} for loss in (1.0, 2.0)]
    assert at_the_same_fit(pd.DataFrame(rows)).n == 0


# ------------------------------------------------------------------------------------------------ a thousand at a time

ROUNDS, EXPERIMENTS = 8, 1000


def curves(rng: np.random.Generator, n_seeds: int) -> tuple[NDArray, NDArray, NDArray]:
    """Epoch, training loss and gap (rounds of the overfitting network, then of its control; experiments; seeds).

    As measured with LeNet-5 on CIFAR-10: the overfitting network's loss falls to a fiftieth and its gap opens to 2.5
    nats; the control's loss halves, without a gap. Speeds and gaps differ between seeds by a fifth to a quarter.
    """
    share = np.arange(1, ROUNDS + 1)[:, None, None] / ROUNDS
    shape = (EXPERIMENTS, n_seeds)

    def factor(spread: float) -> NDArray:
        return np.exp(spread * rng.normal(size=shape))

    losses = [2 * np.exp(-rate * factor(0.2) * share) for rate in (4, 0.7)]
    gap = 2.5 * factor(0.25) * share**1.2 * (1 - np.exp(-3 * share))
    gaps = [gap, np.broadcast_to(-0.2 + 0.05 * rng.normal(size=shape), gap.shape)]
    loss = np.concatenate(losses) * np.exp(0.03 * rng.normal(size=(2 * ROUNDS, *shape)))
    measured = np.concatenate(gaps) + 0.03 * rng.normal(size=(2 * ROUNDS, *shape))
    return np.broadcast_to(np.concatenate([share, share]), loss.shape), loss, measured


def _outlier(seed_effects: NDArray) -> NDArray:
    seed_effects = np.zeros_like(seed_effects)
    seed_effects[..., 0] = 20
    return seed_effects


# Each makes a count of (epoch, loss, gap, strength of each seed, standard normal numbers of each seed, noise).
NULLS = {
    "noise": lambda t, loss, gap, b, z, noise: 2 * noise,
    "drift": lambda t, loss, gap, b, z, noise: noise.reshape(2, ROUNDS, *noise.shape[1:]).cumsum(1).reshape(t.shape),
    "time": lambda t, loss, gap, b, z, noise: 8 * b * t + noise,
    "time, late": lambda t, loss, gap, b, z, noise: 8 * b * t**3 + noise,
    "loss": lambda t, loss, gap, b, z, noise: -4 * b * loss + noise,
    "loss, logarithm": lambda t, loss, gap, b, z, noise: -2 * b * np.log(loss) + noise,
    "loss and time": lambda t, loss, gap, b, z, noise: -4 * b * loss + 4 * b * t + noise,
    "loss, falling": lambda t, loss, gap, b, z, noise: 4 * b * loss + noise,
    "heterogeneous": lambda t, loss, gap, b, z, noise: 3 * z * gap + noise,
    "heterogeneous, two kinds": lambda t, loss, gap, b, z, noise: 3 * np.sign(z) * gap + noise,
    "one outlier seed": lambda t, loss, gap, b, z, noise: _outlier(z) * gap + noise,
}
GAPS = {
    "gap": lambda t, loss, gap, b, z, noise: 2 * b * gap + noise,
    "gap, strong": lambda t, loss, gap, b, z, noise: 8 * b * gap + noise,
    "gap and time": lambda t, loss, gap, b, z, noise: 2 * b * gap + 8 * b * t + noise,
    "gap against time": lambda t, loss, gap, b, z, noise: 2 * b * gap - 8 * b * t + noise,
}
WRONG = dict.fromkeys(NULLS, (SUPPORTED, REFUTED)) | dict.fromkeys(GAPS, (REFUTED, NOT_SPECIFIC, NO_EFFECT))
WRONG |= dict.fromkeys(("noise", "one outlier seed"), (SUPPORTED, REFUTED, NOT_SPECIFIC))


def simulated(kind: str, n_seeds: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Count, gap, epoch and training loss of a thousand experiments, each (2 rounds, experiments, seeds)."""
    rng = np.random.default_rng([n_seeds, sorted(WRONG).index(kind)])
    epoch, loss, gap = curves(rng, n_seeds)
    strength, own = np.abs(1 + 0.3 * rng.normal(size=gap.shape[1:])), rng.normal(size=gap.shape[1:])
    count = (NULLS | GAPS)[kind](epoch, loss, gap, strength, own, rng.normal(size=gap.shape))
    return 20 + 2 * rng.normal(size=gap.shape[1:]) + count, gap, epoch, loss


def verdicts(count: NDArray, gap: NDArray, epoch: NDArray, loss: NDArray) -> list:
    """What :func:`judge_over_training` does, for many experiments at once."""
    flat = [values.reshape(2 * ROUNDS, -1) for values in (count, gap, epoch, loss)]
    thirds = [own[-(ROUNDS // 3) :].mean(0) - own[: ROUNDS // 3].mean(0) for own in np.split(flat[0], 2)]
    measured = {
        "within": spearman(flat[0][:ROUNDS], flat[1][:ROUNDS]),
        "given_epoch": partial_spearman(*flat[:3]),
        "beyond_control": thirds[0] - thirds[1],
        "given_fit": given_the_fit(*flat),
    }
    by_experiment = {name: values.reshape(count.shape[1:]) for name, values in measured.items()}
    return [
        judge_associations(
            "", span=float(np.ptp(count[:, number])), **{name: values[number] for name, values in by_experiment.items()}
        )
        for number in range(count.shape[1])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [6, 16])
@pytest.mark.parametrize("kind", WRONG)
def test_of_a_thousand_experiments_no_more_than_one_in_twenty_ends_in_a_wrong_word(kind, n_seeds):
    words = Counter(found.label for found in verdicts(*simulated(kind, n_seeds)))
    assert sum(words[word] for word in WRONG[kind]) <= 0.05 * EXPERIMENTS, words


@pytest.mark.slow
def test_with_sixteen_seeds_what_is_there_is_found():
    """A strong effect of the gap mostly, what time does nearly always: the rule is no way to say nothing."""
    for kind, word, share in (("gap, strong", SUPPORTED, 0.6), ("time", NOT_SPECIFIC, 0.95), ("noise", NO_EFFECT, 0.9)):
        words = Counter(found.label for found in verdicts(*simulated(kind, 16)))
        assert words[word] >= share * EXPERIMENTS, (kind, words)


def test_one_of_the_thousand_is_judged_as_a_table_is():
    count, gap, epoch, loss = (values[:, :1] for values in simulated("gap", 6))
    columns = {"epoch": epoch, "train_loss": loss, "gap": gap, "count": count}
    table = pd.concat(
        pd.DataFrame({name: values[rounds, 0, seed] for name, values in columns.items()}).assign(
            seed=seed, condition=condition
        )
        for seed in range(6)
        for condition, rounds in (("overfitting", slice(ROUNDS)), ("control", slice(ROUNDS, None)))
    )
    (many,) = verdicts(count, gap, epoch, loss)
    one = judge_over_training(table, "count", "")
    assert one.label == many.label
    for estimate, other in zip((*one.effects, *one.checks), (*many.effects, *many.checks), strict=True):
        assert estimate.value == pytest.approx(other.value)
        assert (estimate.low, estimate.high, estimate.p) == pytest.approx((other.low, other.high, other.p))
        assert estimate.smallest == pytest.approx(other.smallest)
