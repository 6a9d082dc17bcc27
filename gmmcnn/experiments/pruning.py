"""H3: whether masking the anomaly filters of an overfitted network lowers training and raises validation accuracy.

Masked are all anomaly filters, those under a stricter rule (flagged in nine of ten probe batches) and under a more
lenient one (in one of five), single anomaly filters, and, as a curve of the dose, the one, two, four and eight filters
that are flagged most often. Masking any filter changes a network, so the effect is compared with that of as many
filters of every layer drawn at random among the live ones (a permutation test for each seed), of as many others drawn
among those of the same layer that are nearest in activation (whoever masks the active ones takes out more), of those
with the smallest weights (lowest L1 norm: Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*,
2017), and of those nearest to the others (FPGM: He, Liu, Wang, Hu, Yang, *Filter Pruning via Geometric Median*, 2019).

The same filters are also removed structurally, and the largest difference that makes to a logit is reported.

With ``experiment.finetune_epochs`` the networks are also trained on, each on its own training images with its filters
masked all the while, which is what one does after a removal. Training on changes a network by itself, and an overfitted
one mostly for the worse, so the comparison is with the unmasked network trained on for as long.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gmmcnn.analysis import Analysis
from gmmcnn.constants import Stream
from gmmcnn.errors import ModelError
from gmmcnn.experiments.associations import permutation_p
from gmmcnn.experiments.carriers import as_active, as_mask
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds
from gmmcnn.filters.fits import is_live
from gmmcnn.filters.screening import Screening
from gmmcnn.hardware.device import device_of
from gmmcnn.models.training import accuracies
from gmmcnn.pruning.masks import Mask, evaluate_masks, masked, random_masks
from gmmcnn.pruning.structural import remove_filters, require_torch_pruning

RULES: dict[str, dict[str, float]] = {
    "anomalous": {},
    "strict": {"min_frequency": 0.9},
    "lenient": {"min_frequency": 0.2},
}
"""Rule → thresholds that differ from those in force."""
DOSES = {f"top {n}": n for n in (1, 2, 4, 8)}
"""Rule → so many filters, those that are flagged most often, whatever the thresholds."""
SMALLEST_CHANGE = 0.01
"""Smallest change of accuracy of interest: one point."""
CONTROLS = ("random", "as_active", "l1", "fpgm")
FINETUNED = ("none", "chosen", *CONTROLS)
FINETUNED_DRAWS = 3
"""Random masks of each rule and seed that are trained on; the others are only evaluated."""
_STRUCTURAL = ("removed", "silenced", "logit_difference")
_FIGURES = ("train_accuracy", "train_loss", "validation_accuracy", "validation_loss")


def run(laboratory: Laboratory) -> Outcome:
    """Mask, compare, judge."""
    require_torch_pruning()  # before an hour of training, not after it
    table = effects_of_masks(laboratory)
    epochs = laboratory.settings.experiment.finetune_epochs
    verdicts = [verdict_on(table, rule) for rule in (*RULES, *DOSES)]
    verdicts += [finetuned_verdict_on(table, rule, epochs) for rule in RULES if epochs]
    return Outcome(table, tuple(verdicts), (*_remarks(table), *_finetuning_remarks(table, epochs)), _figures(table))


def effects_of_masks(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate accuracies and losses.

    Returns
    -------
    DataFrame
        One row per seed, ``rule``, ``mask`` (``none``, ``chosen``, ``single``, ``random``, ``as_active``, ``l1``,
        ``fpgm``) and ``number`` (of the single filter or of the draw), with ``n_filters``, ``activation`` (sum of the
        masked filters' mean activations, each over its layer's mean), accuracies and losses, each one's
        ``change_`` from the unmasked network, and for ``chosen`` the filters ``removed`` and ``silenced`` structurally
        and the largest ``logit_difference`` that makes, or ``why_not_removed``. Of the networks that were fine-tuned,
        :data:`FINETUNED` but no more than :data:`FINETUNED_DRAWS` random ones, also ``finetuned_`` accuracies and
        losses, and each one's ``change_finetuned_`` from the unmasked network fine-tuned as long.
    """
    return laboratory.of_each(
        [Network(seed, Condition.OVERFITTING) for seed in laboratory.seeds], "pruning", _of_network
    )


def verdict_on(table: pd.DataFrame, rule: str) -> Verdict:
    """Judge the claim for the filters that a rule chooses."""
    validation = _changes(table, rule, "change_validation_accuracy")
    effects = [
        _accuracy("validation accuracy", validation["chosen"]),
        _accuracy("loss of training accuracy", -_changes(table, rule, "change_train_accuracy")["chosen"]),
    ]
    claim = f"H3, masking {_named(rule)} raises validation and lowers training accuracy"
    return judge(claim, effects, _beyond_controls(validation))


def finetuned_verdict_on(table: pd.DataFrame, rule: str, epochs: int) -> Verdict:
    """Judge whether a network is better off without the filters that a rule chooses, once both are fine-tuned."""
    validation = _changes(table, rule, "change_finetuned_validation_accuracy")
    claim = f"H3, after {epochs} epochs of fine-tuning validation accuracy is higher without {_named(rule)} than with"
    return judge(claim, [_accuracy("validation accuracy", validation["chosen"])], _beyond_controls(validation))


def _changes(table: pd.DataFrame, rule: str, column: str) -> dict[str, pd.Series]:
    """Mean change by seed, for the chosen mask and each control."""
    rows = table[table["rule"] == rule]
    return {mask: rows[rows["mask"] == mask].groupby("seed")[column].mean() for mask in ("chosen", *CONTROLS)}


def _beyond_controls(validation: dict[str, pd.Series]) -> list[Estimate]:
    return [
        _accuracy(f"validation accuracy beyond {mask} masks'", validation["chosen"] - validation[mask])
        for mask in CONTROLS
    ]


def _accuracy(name: str, changes: pd.Series) -> Estimate:
    return over_seeds(name, changes, smallest=SMALLEST_CHANGE, possible=(-1, 1))


def _named(rule: str) -> str:
    if rule in DOSES:
        return "the filter flagged most often" if DOSES[rule] == 1 else f"the {DOSES[rule]} filters flagged most often"
    return "anomaly filters" if rule == "anomalous" else f"anomaly filters by the {rule} rule"


def _of_network(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Rows of one network."""
    number, splits = laboratory.rounds[-1], laboratory.data(network)
    model, analysis = laboratory.model(network, number), laboratory.analysis(network, number)

    def finetuned(mask: Mask) -> dict[str, float]:
        after = laboratory.finetuned(network, number, mask)
        changes = {f"change_finetuned_{key}": after[key] - unmasked[key] for key in _FIGURES}
        return {f"finetuned_{key}": after[key] for key in _FIGURES} | changes

    evaluate = partial(accuracies, data=splits)
    before = evaluate(model)
    epochs = laboratory.settings.experiment.finetune_epochs
    unmasked = laboratory.finetuned(network, number, {}) if epochs else {}
    rows = []
    for rule, chosen in chosen_filters(analysis):
        screening, singly = analysis.screening, rule == "anomalous"
        compared = list(masks(model, screening, chosen, laboratory.size.controls, network.seed, singly=singly))
        for (kind, index, mask), row in zip(compared, evaluate_masks(model, compared, evaluate), strict=True):
            changes = {f"change_{key}": row[key] - before[key] for key in _FIGURES}
            changes["activation"] = activation_of(mask, screening.filters)
            structural = _remove(model, mask, splits.validation.images[:100]) if kind == "chosen" else {}
            trained_on = epochs and rule in RULES and kind in FINETUNED and index < FINETUNED_DRAWS
            later = finetuned(mask) if trained_on else {}
            rows.append({"seed": network.seed, "rule": rule} | row | changes | structural | later)
    return pd.DataFrame(rows)


def chosen_filters(analysis: Analysis) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Rules, those of :data:`RULES` and then of :data:`DOSES`, with the filters by layer that they choose."""
    for rule, thresholds in RULES.items():
        yield rule, analysis.with_thresholds(**thresholds).screening.anomalous
    for rule, n in DOSES.items():
        yield rule, most_flagged(analysis.screening, n)


def most_flagged(screening: Screening, n: int) -> dict[str, list[int]]:
    """Choose the ``n`` live filters that are flagged most often, by layer; none where fewer are ever flagged."""
    filters = screening.filters
    flagged = filters[is_live(filters["status"]) & (filters["flag_frequency"] > 0)]
    first = flagged.sort_values("flag_frequency", ascending=False, kind="stable").head(n)
    if len(first) < n:
        return {}
    return {str(layer): sorted(rows["filter"].tolist()) for layer, rows in first.groupby("layer", sort=False)}


def masks(
    model: nn.Module, screening: Screening, chosen: Mask, n_random: int, seed: int, *, singly: bool = True
) -> Iterator[tuple[str, int, Mask]]:
    """Masks to compare: kind, number, filters by layer. Where no filter is chosen, only the empty one.

    Parameters
    ----------
    model : nn.Module
        Its weights decide about the controls ``l1`` and ``fpgm``.
    screening : Screening
        Of the same model: which filters are live, and how active.
    chosen : mapping
        Layer → filters to compare others with.
    n_random : int
        Random masks.
    seed : int
        Of the random masks.
    singly : bool
        Also mask chosen filters one by one, as ``single``: all of them, or ``n_random`` drawn at random.
    """
    yield "none", 0, {}
    if not chosen:
        return
    yield "chosen", 0, chosen
    singles = [(layer, index) for layer, filters in chosen.items() for index in filters if singly]
    drawn = np.random.default_rng([seed, Stream.SINGLE_MASKS]).permutation(len(singles))[:n_random]
    for number, (layer, index) in enumerate(singles[place] for place in sorted(drawn)):
        yield "single", number, {layer: [index]}
    live = screening.filters[is_live(screening.filters["status"])]
    by_layer = {str(layer): rows["filter"].tolist() for layer, rows in live.groupby("layer")}
    for number, mask in enumerate(random_masks(chosen, by_layer, n_random, seed)):
        yield "random", number, mask
    for number, mask in enumerate(matched_masks(chosen, live, n_random, seed)):
        yield "as_active", number, mask
    for kind, importance in (("l1", l1_norms), ("fpgm", distances)):
        yield (
            kind,
            0,
            {
                layer: _least(importance(model.get_parameter(f"{layer}.weight")), by_layer[layer], len(filters))
                for layer, filters in chosen.items()
            },
        )


def matched_masks(chosen: Mask, live: pd.DataFrame, n_masks: int, seed: int) -> Iterator[Mask]:
    """Draw masks of other filters that are about as active.

    Parameters
    ----------
    chosen : mapping
        The mask to be compared with.
    live : DataFrame
        ``layer``, ``filter`` and ``activation_over_average`` of the filters that may be drawn.
    n_masks, seed : int
        Number of masks, and seed of the draw.

    Yields
    ------
    mapping
        For each chosen filter one of the three that are nearest in activation among those of its layer that are neither
        chosen nor drawn yet; of another layer where its own has none left, and none where no layer has.
    """
    filters = list(zip(live["layer"], live["filter"], strict=True))
    places = np.array([filters.index((layer, index)) for layer, of_layer in chosen.items() for index in of_layer])
    active, rng = live["activation_over_average"].to_numpy(), np.random.default_rng([seed, Stream.MATCHED_MASKS])
    for _ in range(n_masks):
        yield as_mask(filters, as_active(places, filters, active, rng))


def activation_of(mask: Mask, filters: pd.DataFrame) -> float:
    """Sum of the mean activations of masked filters, each over the mean of its layer."""
    active = filters.set_index(["layer", "filter"])["activation_over_average"]
    return float(sum(active[layer, index] for layer, chosen in mask.items() for index in chosen))


def l1_norms(weight: Tensor) -> NDArray[np.float64]:
    """(C,) sums of the absolute weights of each filter."""
    return weight.detach().cpu().double().abs().flatten(1).sum(dim=1).numpy()


def distances(weight: Tensor) -> NDArray[np.float64]:
    """(C,) sums of the Euclidean distances of each filter to all others of its layer: small for the replaceable."""
    flat = weight.detach().cpu().double().flatten(1)
    return torch.cdist(flat, flat).sum(dim=1).numpy()


def _least(importance: NDArray, candidates: list[int], n: int) -> list[int]:
    """Return the ``n`` least important candidates, ascending."""
    return sorted(sorted(candidates, key=lambda index: (importance[index], index))[:n])


def _remove(model: nn.Module, mask: Mask, images: Tensor) -> dict[str, float | str]:
    """Remove the filters structurally, and compare with masking them; nothing is known where that cannot be done."""
    images = images.to(device_of(model))
    try:
        removal = remove_filters(model, mask, images[:1])
    except ModelError as error:
        return dict.fromkeys(_STRUCTURAL, float("nan")) | {"why_not_removed": str(error)}
    with torch.no_grad(), masked(model, mask):
        expected = model(images)
    with torch.no_grad():
        difference = (removal.model(images) - expected).abs().max()
    return {
        "removed": sum(map(len, removal.removed.values())),
        "silenced": sum(map(len, removal.silenced.values())),
        "logit_difference": float(difference),
    }


def _remarks(table: pd.DataFrame) -> Iterator[str]:
    for rule in (*RULES, *DOSES):
        rows = table[table["rule"] == rule]
        chosen = rows[rows["mask"] == "chosen"].set_index("seed")
        for seed in sorted(set(table["seed"]) - set(chosen.index)):
            none = "fewer filters are ever flagged" if rule in DOSES else "no anomaly filter"
            yield f"{rule}, seed {seed}: {none}, nothing to mask."
        for seed, row in chosen.iterrows():
            random = rows[(rows["seed"] == seed) & (rows["mask"] == "random")]["change_validation_accuracy"]
            p = permutation_p(row["change_validation_accuracy"], random)
            yield (
                f"{rule}, seed {seed}: {row['n_filters']} filters masked, training accuracy "
                f"{100 * row['change_train_accuracy']:+.1f}, validation {100 * row['change_validation_accuracy']:+.1f} "
                f"points (p = {p:.2g} among {len(random)} random masks); {_removal_in_words(row)}."
            )
        removed = chosen.dropna(subset="removed") if len(chosen) else chosen
        if len(removed):
            total = removed[["n_filters", "removed", "silenced"]].sum()
            yield (
                f"{rule}, all seeds: of {total['n_filters']:.0f} masked filters {total['removed']:.0f} were cut out, "
                f"{total['silenced']:.0f} share their channels with other layers and were silenced."
            )


def _removal_in_words(row: pd.Series) -> str:
    if np.isnan(row["removed"]):
        return f"not removed structurally: {row['why_not_removed']}"
    return (
        f"{row['removed']:.0f} removed structurally, {row['silenced']:.0f} silenced, "
        f"logits within {row['logit_difference']:.1g}"
    )


def _finetuning_remarks(table: pd.DataFrame, epochs: int) -> Iterator[str]:
    """What fine-tuning does to the network that nothing was masked in."""
    for row in table[(table["mask"] == "none") & (table["rule"] == "anomalous")].itertuples() if epochs else ():
        yield (
            f"seed {row.seed}: {epochs} epochs more change the unmasked network's training accuracy by "
            f"{100 * (row.finetuned_train_accuracy - row.train_accuracy):+.1f}, its validation accuracy by "
            f"{100 * (row.finetuned_validation_accuracy - row.validation_accuracy):+.1f} points."
        )


def _figures(table: pd.DataFrame) -> dict[str, object]:
    shown = table[table["mask"] != "none"]
    if shown.empty:
        return {}
    figure = px.strip(
        shown, x="mask", y="change_validation_accuracy", color="mask", facet_col="seed",
        facet_row="rule", title="Change of validation accuracy, a point a mask",
        labels={"change_validation_accuracy": "change"},
    )  # fmt: skip
    figure.add_hline(0, line_dash="dot")
    doses = shown[shown["rule"].isin(DOSES)].assign(filters=lambda rows: rows["rule"].map(DOSES))
    if doses.empty:
        return {"masks": figure}
    measures = ["change_validation_accuracy", "change_train_accuracy"]
    means = doses.groupby(["filters", "mask"])[measures].mean().reset_index().melt(["filters", "mask"])
    curve = px.line(
        means, x="filters", y="value", color="mask", facet_col="variable", markers=True, log_x=True,
        title="Masking the filters flagged most often, and as many others: means over seeds",
        labels={"value": "change"},
    )  # fmt: skip
    return {"masks": figure, "doses": curve.add_hline(0, line_dash="dot")}
