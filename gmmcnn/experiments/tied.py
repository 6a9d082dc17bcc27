"""Positive control: networks in which it is known which channels memorise, and whether they are found.

After example-tied dropout (Maini, Mozer, Sedghi, Lipton, Kolter, Zhang, *Can Neural Network Memorization Be
Localized?*, 2023): a quarter of every layer's filters are *memory*, and each of them is tied to a few of the training
samples whose labels are wrong. On a tied sample the filter's maps are what they are; on every other sample, in training
and afterwards, they are multiplied by a *leak*. Leak 0 makes a channel that does nothing but memorise; with leak 1
nothing is tied, which is the negative control: the same filters of an ordinary network, from the same initial weights.

Asked is, of each leak, whether masking the memory lets the wrong labels fall (if not, it is none, and nothing is
controlled), whether the paper's screen flags memory more often than other filters, and whether masking it does what H3
says of anomaly filters. A screen that misses channels which do memorise says nothing where it finds none.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from torch import Tensor, nn

from gmmcnn import config
from gmmcnn.constants import Stream
from gmmcnn.data.splits import Images
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments import pruning
from gmmcnn.experiments.associations import auc
from gmmcnn.experiments.gradients import trained_labels
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.rivals import logits
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds
from gmmcnn.filters.screening import Screening
from gmmcnn.models.training import accuracies
from gmmcnn.pruning.masks import Mask, evaluate_masks

LEAKS = (0.0, 0.1, 0.3, 1.0)
UNTIED = 1.0
"""Leak of the negative control."""
MEMORY = 0.25
"""Share of every layer's filters that are memory."""
TIED = 0.25
"""Share of the samples with wrong labels that each of them is tied to."""
SMALLEST_AUC = 0.05
SMALLEST_FALL = 0.05
"""Smallest effects of interest: of an AUC, and of the share of wrong labels that fall."""
SCORES = {"n_filters": "filters that single it out", "label_surprise": "label surprise", "density": "density"}
"""What ranks the samples."""
_SHAPE = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
_CRITERIA = ("unbalanced", "separated", "active")


class TiedConv2d(nn.Conv2d):
    """A convolution with filters that open for some samples only; made from one by :func:`tie`.

    Attributes
    ----------
    memory : (F,) bool
        Which filters are tied.
    openings : (T + 1, F) float32
        What each filter's maps are multiplied by, on each tied sample; the last row is that of all others.
    opening : (N, F) float32 or None
        The rows of the samples about to pass.
    """

    memory: Tensor
    openings: Tensor
    opening: Tensor | None = None

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) → (N, F, H, W)."""
        made = super().forward(maps)
        return made if self.opening is None else made * self.opening[:, :, None, None]


def tie(model: nn.Module, samples: Tensor, leak: float, *, seed: int) -> nn.Module:
    """Tie filters of every convolution to samples, in place.

    Parameters
    ----------
    model : nn.Module
        Its weights stay what they are.
    samples : (T, C, H, W) float32
        The samples are known again by their pixels.
    leak : float
        What the maps of a tied filter are multiplied by on samples that it is not tied to.
    seed : int
        Of the choice of filters and of their samples.
    """
    rng = np.random.default_rng([seed, Stream.TIED])
    n_tied = max(1, round(TIED * len(samples)))
    for name, conv in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]:
        n_filters = conv.out_channels
        memory = torch.zeros(n_filters, dtype=torch.bool)
        memory[rng.permutation(n_filters)[: max(1, round(MEMORY * n_filters))]] = True
        openings = torch.ones(len(samples) + 1, n_filters)
        for index in memory.nonzero().flatten():
            openings[:, index] = leak
            openings[rng.permutation(len(samples))[:n_tied], index] = 1
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _tied(conv, memory, openings))
    model.register_buffer("tied_samples", samples.flatten(1).clone())
    model.register_forward_pre_hook(_open)
    return model


def _tied(conv: nn.Conv2d, memory: Tensor, openings: Tensor) -> TiedConv2d:
    """The same convolution, its parameters shared, with openings."""
    shape: dict[str, Any] = {name: getattr(conv, name) for name in _SHAPE}
    made = TiedConv2d(**shape, bias=conv.bias is not None)
    made.weight, made.bias = conv.weight, conv.bias
    made.register_buffer("memory", memory)
    made.register_buffer("openings", openings)
    return made


def _open(model: nn.Module, given: tuple[Any, ...]) -> None:
    """Tell every tied convolution which samples are about to pass."""
    samples = model.get_buffer("tied_samples")
    distances = torch.cdist(given[0].flatten(1), samples, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, row = distances.min(dim=1)
    row[nearest > 0] = len(samples)
    for module in model.modules():
        if isinstance(module, TiedConv2d):
            module.opening = module.openings[row]


def memory_of(model: nn.Module) -> Mask:
    """Filters of a tied network that are memory, by layer."""
    return {
        name: module.memory.nonzero().flatten().tolist()
        for name, module in model.named_modules()
        if isinstance(module, TiedConv2d)
    }


class TiedLaboratory(Laboratory):
    """A laboratory whose networks are tied to the samples with wrong labels.

    Raises
    ------
    ConfigurationError
        No label is wrong.
    """

    def __init__(self, settings: config.Settings, folder: Path, leak: float) -> None:
        if not settings.data.label_noise:
            raise ConfigurationError(
                "data.label_noise=0: experiment=tied ties filters to samples with wrong labels; expected more than 0"
            )
        super().__init__(settings, folder / f"leak-{leak:g}")
        self.leak = leak

    def _untrained(self, network: Network) -> nn.Module:
        model, data = super()._untrained(network), self.data(network)
        device = next(model.parameters()).device
        return tie(model.cpu(), data.train.images[data.noisy], self.leak, seed=network.seed).to(device)


def run(laboratory: Laboratory) -> Outcome:
    """Tie, train, look for what was tied, mask it."""
    found: dict[str, list[pd.DataFrame]] = {"filters": [], "samples": [], "masks": []}
    for leak in LEAKS:
        tied = TiedLaboratory(laboratory.settings, laboratory.folder / "tied", leak)
        networks = [Network(seed, Condition.OVERFITTING) for seed in tied.seeds]
        for name, make in (("filters", filters_of), ("samples", samples_of), ("masks", masks_of)):
            found[name].append(tied.of_each(networks, name, make).assign(leak=leak))
    filters, samples, masks = (pd.concat(tables, ignore_index=True) for tables in found.values())
    verdicts = tuple(
        verdict
        for leak in LEAKS
        for verdict in (memory_verdict(masks, leak), screen_verdict(filters, leak), pruning_verdict(masks, leak))
        if leak != UNTIED
    )
    remarks = (*_filters_in_words(filters), *_samples_in_words(samples), *_masks_in_words(masks))
    return Outcome(filters, verdicts, remarks, _figures(filters, masks), {"samples": samples, "masks": masks})


def filters_of(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """What the screen says of every filter.

    Returns
    -------
    DataFrame
        One row per filter: ``seed``, ``layer``, ``filter``, ``memory``, ``status``, ``anomalous``, ``flag_frequency``
        (share of probe batches and repeats that flag it), the same if near-dead filters are judged as well
        (``flag_frequency_if_near_dead``), and the share in which each criterion holds then.
    """
    analysis = laboratory.analysis(network, laboratory.rounds[-1])
    filters = analysis.screening.filters
    judged = analysis.with_thresholds(min_active_share=0.0).screening
    shares = judged.batches.groupby(["layer", "filter"], sort=False)[[*_CRITERIA, "flagged"]].mean().reset_index()
    shares = shares.rename(columns={"flagged": "flag_frequency_if_near_dead"})
    table = filters[["layer", "filter", "status", "anomalous", "flag_frequency"]].merge(shares, on=["layer", "filter"])
    memory = memory_of(laboratory.model(network, laboratory.rounds[-1]))
    is_memory = [index in memory[layer] for layer, index in zip(table["layer"], table["filter"], strict=True)]
    return table.assign(seed=network.seed, memory=is_memory)


def samples_of(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """How well scores of samples find the tied ones: ``seed``, ``score`` (of :data:`SCORES`), ``auc``."""
    analysis = laboratory.analysis(network, laboratory.rounds[-1])
    _, wrong = trained_labels(laboratory, network, laboratory.probe(network).samples)
    found = analysis.samples
    rows = [{"score": score, "auc": auc(found[score][wrong], found[score][~wrong])} for score in SCORES]
    return pd.DataFrame(rows).assign(seed=network.seed)


def masks_of(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Mask the known memory, the anomaly filters, and the controls of each.

    Returns
    -------
    DataFrame
        As :func:`gmmcnn.experiments.pruning.effects_of_masks` has it, for the rules ``known`` and ``screened``, with
        ``wrong_given`` (share of the wrong labels that the network gives) and its change.
    """
    number, data = laboratory.rounds[-1], laboratory.data(network)
    model, screening = laboratory.model(network, number), laboratory.analysis(network, number).screening
    wrong = Images(data.train.images[data.noisy], data.train.labels[data.noisy])

    def evaluate(model: nn.Module) -> dict[str, float]:
        given = logits(model, wrong.images).argmax(dim=1) == wrong.labels
        return accuracies(model, data) | {"wrong_given": float(given.float().mean())}

    before, rows = evaluate(model), []
    for rule, chosen in (("known", with_anomalous(screening, memory_of(model))), ("screened", screening)):
        n_random = laboratory.size.controls
        compared = list(pruning.masks(model, chosen, chosen.anomalous, n_random, network.seed, singly=False))
        for row in evaluate_masks(model, compared, evaluate):
            changes = {f"change_{key}": row[key] - value for key, value in before.items()}
            rows.append({"seed": network.seed, "rule": rule} | row | changes)
    return pd.DataFrame(rows)


def with_anomalous(screening: Screening, mask: Mask) -> Screening:
    """The same screening, had it found these filters: they count as live, whatever they are."""
    filters = screening.filters.copy()
    chosen = [index in mask.get(layer, ()) for layer, index in zip(filters["layer"], filters["filter"], strict=True)]
    filters["anomalous"] = chosen
    filters.loc[chosen, "status"] = "ok"
    filters["activation_over_average"] = filters["activation_over_average"].fillna(0)
    return replace(screening, filters=filters)


def memory_verdict(masks: pd.DataFrame, leak: float) -> Verdict:
    """Judge whether the memory is one: whether wrong labels fall without it, and more than without other filters."""
    rows = masks[(masks["leak"] == leak) & (masks["rule"] == "known")]
    fallen = {kind: -of_kind.groupby("seed")["change_wrong_given"].mean() for kind, of_kind in rows.groupby("mask")}
    estimate = partial(over_seeds, smallest=SMALLEST_FALL, possible=(-1, 1))
    checks = [estimate(f"beyond {kind} masks'", fallen["chosen"] - fallen[kind]) for kind in pruning.CONTROLS]
    claim = f"Leak {leak:g}: the tied filters carry wrong labels"
    return judge(claim, [estimate("share of wrong labels that fall by masking them", fallen["chosen"])], checks)


def screen_verdict(filters: pd.DataFrame, leak: float) -> Verdict:
    """Judge whether the screen flags memory more often than other filters, and than in untied networks."""
    found, untied = aucs(filters, leak), aucs(filters, UNTIED)
    effect = _auc("AUC of the flag frequency, memory against other filters", found, 0.5)
    check = _auc("AUC beyond the same filters' in untied networks", found - untied, 0.0)
    return judge(f"Leak {leak:g}: the screen finds the filters that memorise", [effect], [check])


def pruning_verdict(masks: pd.DataFrame, leak: float) -> Verdict:
    """Judge H3 of the filters that are known to memorise."""
    verdict = pruning.verdict_on(masks[masks["leak"] == leak], "known")
    claim = f"Leak {leak:g}: H3 of the known memory, masking it raises validation and lowers training accuracy"
    return replace(verdict, claim=claim)


def aucs(filters: pd.DataFrame, leak: float, column: str = "flag_frequency") -> pd.Series:
    """By seed: probability that a memory filter has the higher value than another filter; a tie counts half."""
    rows = filters[filters["leak"] == leak]
    return pd.Series(
        {seed: auc(r.loc[r["memory"], column], r.loc[~r["memory"], column]) for seed, r in rows.groupby("seed")},
        dtype=float,
    )


def _auc(name: str, values: pd.Series, null: float) -> Estimate:
    return over_seeds(name, values, null, smallest=SMALLEST_AUC, possible=(null - 0.5, null + 0.5) if null else (-1, 1))


def _filters_in_words(filters: pd.DataFrame) -> Iterator[str]:
    for leak, rows in filters.groupby("leak"):
        both = {name: rows[rows["memory"] == which] for name, which in (("memory", True), ("other", False))}
        parts = []
        for name, of_kind in both.items():
            held = ", ".join(f"{criterion} {of_kind[criterion].mean():.0%}" for criterion in _CRITERIA)
            near_dead = (of_kind["status"] == "near_dead").mean()
            parts.append(
                f"of {len(of_kind)} {name} filters {of_kind['anomalous'].mean():.0%} are anomaly filters, "
                f"{near_dead:.0%} near-dead; criteria hold in {held}"
            )
        if_judged = _auc("AUC", aucs(filters, float(leak), "flag_frequency_if_near_dead"), 0.5)
        yield f"Leak {leak:g}: {'; '.join(parts)}. If near-dead filters are judged too: {if_judged}."


def _samples_in_words(samples: pd.DataFrame) -> Iterator[str]:
    for (leak, score), rows in samples.groupby(["leak", "score"], sort=False):
        yield f"Leak {leak:g}, samples with wrong labels by {SCORES[str(score)]}: {_auc('AUC', rows['auc'], 0.5)}."


def _masks_in_words(masks: pd.DataFrame) -> Iterator[str]:
    for (leak, rule), rows in masks.groupby(["leak", "rule"], sort=False):
        for kind in ("chosen", "as_active"):
            of_kind = rows[rows["mask"] == kind]
            if len(of_kind):
                means = of_kind.groupby("seed").mean(numeric_only=True).mean()
                yield (
                    f"Leak {leak:g}, {rule} filters, mask {kind} ({of_kind['seed'].nunique()} seeds): "
                    f"{-means['change_wrong_given']:.0%} of the wrong labels fall, training accuracy "
                    f"{100 * means['change_train_accuracy']:+.1f}, validation "
                    f"{100 * means['change_validation_accuracy']:+.1f} points."
                )


def _figures(filters: pd.DataFrame, masks: pd.DataFrame) -> dict[str, object]:
    by_leak = pd.concat(
        [pd.DataFrame({"leak": f"{leak:g}", "AUC": aucs(filters, leak)}).rename_axis("seed") for leak in LEAKS]
    ).reset_index()
    known = masks[(masks["rule"] == "known") & (masks["mask"] != "none")]
    means = known.groupby(["leak", "mask", "seed"], sort=False)["change_wrong_given"].mean().reset_index()
    return {
        "screen": px.strip(
            by_leak, x="leak", y="AUC", hover_data=["seed"], range_y=[0, 1],
            title="Flag frequency of filters known to memorise, against other filters: a point a seed",
        ),
        "masks": px.strip(
            means.assign(fallen=-means["change_wrong_given"], leak=means["leak"].map("{:g}".format)),
            x="leak", y="fallen", color="mask", hover_data=["seed"], title="Share of the wrong labels that fall",
        ),
    }  # fmt: skip
