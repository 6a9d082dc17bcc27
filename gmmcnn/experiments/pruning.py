"""H3: whether masking the anomaly filters of an overfitted network lowers training and raises validation accuracy.

Masked are all anomaly filters, those under a stricter rule (flagged in nine of ten probe batches) and under a more
lenient one (in one of five), and each single anomaly filter. Masking any filter changes a network, so the effect is
compared with that of as many filters of every layer drawn at random among the live ones (a permutation test for each
seed), of those with the smallest weights (lowest L1 norm: Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for
Efficient ConvNets*, 2017), and of those nearest to the others (FPGM: He, Liu, Wang, Hu, Yang, *Filter Pruning via
Geometric Median*, 2019).

The same filters are also removed structurally, and the largest difference that makes to a logit is reported.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gmmcnn.experiments.networks import Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Verdict, judge, over_seeds, permutation_p
from gmmcnn.progress import progress
from gmmcnn.pruning import Mask, masked, random_masks
from gmmcnn.screening import Screening
from gmmcnn.structural import remove_filters, require_torch_pruning
from gmmcnn.training import evaluate

RULES: dict[str, dict[str, float]] = {
    "anomalous": {},
    "strict": {"min_frequency": 0.9},
    "lenient": {"min_frequency": 0.2},
}
"""Rule → thresholds that differ from those in force."""
CONTROLS = ("random", "l1", "fpgm")
_FIGURES = ("train_accuracy", "train_loss", "validation_accuracy", "validation_loss")


def run(laboratory: Laboratory) -> Outcome:
    """Mask, compare, judge."""
    require_torch_pruning()  # before an hour of training, not after it
    table = measure(laboratory)
    verdicts = tuple(verdict_on(table, rule) for rule in RULES)
    return Outcome(table, verdicts, tuple(_remarks(table)), _figures(table))


def measure(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate accuracies and losses.

    Returns
    -------
    DataFrame
        One row per seed, ``rule``, ``mask`` (``none``, ``chosen``, ``single``, ``random``, ``l1``, ``fpgm``) and
        ``number`` (of the single filter or of the draw), with ``n_filters``, accuracies and losses, each one's
        ``change_`` from the unmasked network, and for ``chosen`` the filters ``removed`` and ``silenced`` structurally
        and the largest ``logit_difference`` that makes.
    """
    with progress("networks", len(laboratory.seeds), "networks") as advance:
        tables = []
        for seed in laboratory.seeds:
            tables.append(_measure(laboratory, Network(seed, "overfitting")))
            advance()
    return pd.concat(tables, ignore_index=True)


def verdict_on(table: pd.DataFrame, rule: str) -> Verdict:
    """Judge the claim for the filters that a rule chooses."""
    rows = table[table["rule"] == rule]
    changes = {
        mask: rows[rows["mask"] == mask].groupby("seed")[["change_train_accuracy", "change_validation_accuracy"]].mean()
        for mask in ("chosen", *CONTROLS)
    }
    chosen = changes["chosen"]
    effects = [
        over_seeds("validation accuracy", chosen["change_validation_accuracy"]),
        over_seeds("loss of training accuracy", -chosen["change_train_accuracy"]),
    ]
    checks = [
        over_seeds(
            f"validation accuracy beyond {mask} masks'",
            (chosen - changes[mask])["change_validation_accuracy"],
        )
        for mask in CONTROLS
    ]
    name = "anomaly filters" if rule == "anomalous" else f"anomaly filters by the {rule} rule"
    return judge(f"H3, masking {name} raises validation and lowers training accuracy", effects, checks)


def _measure(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Rows of one network."""
    number, splits = laboratory.rounds[-1], laboratory.data(network)
    model, analysis = laboratory.model(network, number), laboratory.analysis(network, number)

    def accuracies(model: nn.Module) -> dict[str, float]:
        train_loss, train_accuracy = evaluate(model, splits.train.images, splits.train.labels)
        loss, accuracy = evaluate(model, splits.validation.images, splits.validation.labels)
        return dict(zip(_FIGURES, (train_accuracy, train_loss, accuracy, loss), strict=True))

    before = accuracies(model)
    rows = []
    for rule, thresholds in RULES.items():
        screening = analysis.with_thresholds(**thresholds).screening
        seed = network.seed
        for kind, index, mask in masks(model, screening, laboratory.size.controls, seed, singly=rule == "anomalous"):
            with masked(model, mask):
                after = accuracies(model)
            row = {"seed": seed, "rule": rule, "mask": kind, "number": index, "n_filters": sum(map(len, mask.values()))}
            changes = {f"change_{key}": after[key] - before[key] for key in _FIGURES}
            structural = _remove(model, mask, splits.validation.images[:100]) if kind == "chosen" else {}
            rows.append(row | after | changes | structural)
    return pd.DataFrame(rows)


def masks(
    model: nn.Module, screening: Screening, n_random: int, seed: int, *, singly: bool = True
) -> Iterator[tuple[str, int, Mask]]:
    """Masks to compare: kind, number, filters by layer. Without an anomaly filter, only the empty one.

    Parameters
    ----------
    model : nn.Module
        Its weights decide about the controls ``l1`` and ``fpgm``.
    screening : Screening
        Its anomaly filters are the ``chosen`` ones.
    n_random : int
        Random masks.
    seed : int
        Of the random masks.
    singly : bool
        Also mask the chosen filters one by one, as ``single``.
    """
    yield "none", 0, {}
    chosen = screening.anomalous
    if not chosen:
        return
    yield "chosen", 0, chosen
    singles = [(layer, index) for layer, filters in chosen.items() for index in filters if singly]
    for number, (layer, index) in enumerate(singles):
        yield "single", number, {layer: [index]}
    live = screening.filters[screening.filters["status"] == "ok"]
    by_layer = {str(layer): rows["filter"].tolist() for layer, rows in live.groupby("layer")}
    for number, mask in enumerate(random_masks(chosen, by_layer, n_random, seed)):
        yield "random", number, mask
    for kind, importance in (("l1", l1_norms), ("fpgm", distances)):
        yield (
            kind,
            0,
            {
                layer: _least(importance(model.get_parameter(f"{layer}.weight")), by_layer[layer], len(filters))
                for layer, filters in chosen.items()
            },
        )


def l1_norms(weight: Tensor) -> NDArray[np.float64]:
    """(C,) sums of the absolute weights of each filter."""
    return weight.detach().double().abs().flatten(1).sum(dim=1).numpy()


def distances(weight: Tensor) -> NDArray[np.float64]:
    """(C,) sums of the Euclidean distances of each filter to all others of its layer: small for the replaceable."""
    flat = weight.detach().double().flatten(1)
    return torch.cdist(flat, flat).sum(dim=1).numpy()


def _least(importance: NDArray, candidates: list[int], n: int) -> list[int]:
    """Return the ``n`` least important candidates, ascending."""
    return sorted(sorted(candidates, key=lambda index: (importance[index], index))[:n])


def _remove(model: nn.Module, mask: Mask, images: Tensor) -> dict[str, float]:
    """Remove the filters structurally, and compare with masking them."""
    removal = remove_filters(model, mask, images[:1])
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
    for rule in RULES:
        rows = table[table["rule"] == rule]
        chosen = rows[rows["mask"] == "chosen"].set_index("seed")
        for seed in sorted(set(table["seed"]) - set(chosen.index)):
            yield f"{rule}, seed {seed}: no anomaly filter, nothing to mask."
        for seed, row in chosen.iterrows():
            random = rows[(rows["seed"] == seed) & (rows["mask"] == "random")]["change_validation_accuracy"]
            p = permutation_p(row["change_validation_accuracy"], random)
            yield (
                f"{rule}, seed {seed}: {row['n_filters']} filters masked, training accuracy "
                f"{100 * row['change_train_accuracy']:+.1f}, validation {100 * row['change_validation_accuracy']:+.1f} "
                f"points (p = {p:.2g} among {len(random)} random masks); {row['removed']:.0f} removed structurally, "
                f"{row['silenced']:.0f} silenced, logits within {row['logit_difference']:.1g}."
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
    return {"masks": figure}
