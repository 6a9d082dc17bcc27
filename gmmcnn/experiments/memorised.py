"""Which scores find the training samples that a network has memorised, and in which layers and filters they lie.

Samples with wrong labels and odd images are planted in the training set (:mod:`gmmcnn.experiments.plants`). For every
seed two networks of the same initial weights are trained for as many epochs: one on all samples, and its *twin* without
the planted ones. A planted sample is *memorised* where the network gives its label and the twin does not, which is the
definition of Feldman and Zhang (*What Neural Networks Memorize and Why*, 2020) for one pair of networks.

Every score ranks all training samples. Its AUC for a kind is the probability that a planted sample of that kind stands
above one that nothing is wrong with. Beside the scores from stored clusterings stand the paper's rule (how many anomaly
filters single a sample out) and the rivals of :mod:`gmmcnn.experiments.rivals`.

*Where* a sample is memorised shows in two ways: in the AUC of each layer's own surprise, and in what masking filters
does (:mod:`gmmcnn.experiments.carriers`). Masked are the filters whose clusters agree with a sample's label best, or
put it into the smallest clusters, and it is counted how many memorised labels fall and how many other predictions
change, beside as many filters chosen by the gradient of the sample's loss (after Maini et al., *Can Neural Network
Memorization Be Localized?*, 2023), by how far the sample's activation exceeds the others' (UnitMem: Wang et al.,
*Localizing Memorization in SSL Vision Encoders*, 2024), and drawn at random among filters that are as active on it.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
from numpy.typing import NDArray
from torch import nn

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.data.probe import ProbeSet
from gmmcnn.data.splits import Images, Splits
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments import carriers, rivals
from gmmcnn.experiments.associations import auc
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.plants import CONTROL, KINDS, Planted, plant
from gmmcnn.experiments.statistics import over_seeds
from gmmcnn.filters.samples import PROFILE

TRAINED, TWIN = Condition.OVERFITTING, Condition.CONTROL
EPOCHS = {"smoke": (4, 3), "quick": (10, 8), "full": (20, 8)}
"""Size → checkpoints, and epochs between two of them, where the settings leave it open."""
SHARE_OF_A_KIND = 0.008
"""Planted samples of each kind, as a share of the training samples: eight of 1,000."""
FEWEST = 3
"""Memorised samples of a kind that a seed must have for an AUC of its own."""
OURS = "clusterings"
"""What the scores below need: the stored clusterings of the final network."""
SCORES = {
    "memorisation rank": OURS,
    "label surprise": OURS,
    "cluster evidence": OURS,
    "map evidence": OURS,
    "density": OURS,
    "paper's rule": OURS,
} | rivals.NEEDS
"""Score → what it needs."""


def run(laboratory: Laboratory) -> Outcome:
    """Plant, train, score, mask."""
    planted = PlantedLaboratory(laboratory.settings, laboratory.folder / "planted")
    networks = [Network(seed, TRAINED) for seed in planted.seeds]
    samples = planted.of_each(networks, "score", score)
    table = aucs(samples)
    summary, profile = summarise(table, samples), by_layer(samples)
    masking = planted.of_each(networks, "mask", partial(mask, samples))
    tables = {"summary": summary, "profile": profile, "masking": masking, "samples": samples}
    remarks = (*_finding(summary), *_depth(profile), *carriers.in_words(masking))
    return Outcome(table, (), remarks, _figures(summary, profile, masking), tables)


class PlantedLaboratory(Laboratory):
    """A laboratory whose networks are trained on planted samples, and their twins without them.

    Every training sample is in the one probe batch, in the order of the training set.

    Raises
    ------
    ConfigurationError
        The data set has wrong labels or foreign images already: nobody would know which of the others are right.
    """

    def __init__(self, settings: config.Settings, folder: Path) -> None:
        given = settings.experiment
        for key in ("label_noise", "plant_wrong_labels", "plant_foreign"):
            if value := getattr(settings.data, key):
                raise ConfigurationError(
                    f"data.{key}={value}: experiment=memorised plants samples of its own, "
                    "and must know that nothing is wrong with the others; expected 0"
                )
        rounds, factor = EPOCHS[given.size]
        experiment = replace(given, rounds=given.rounds or rounds, factor=given.factor or factor)
        super().__init__(replace(settings, experiment=experiment), folder)
        self.settings = replace(self.settings, probe=config.Probe(samples=self.size.train_samples, batches=1))
        self.planted = lru_cache(maxsize=1)(self._planted)

    def settings_of(self, network: Network) -> config.Settings:
        """Those of the trained network, for its twin too."""
        return super().settings_of(Network(network.seed, TRAINED))

    def _planted(self, seed: int) -> Planted:
        """Data set of a seed with its planted samples (kept for the last one asked for)."""
        number = max(1, round(SHARE_OF_A_KIND * self.size.train_samples))
        return plant(super()._data(Network(seed, TRAINED)), number, seed=seed)

    def _data(self, network: Network) -> Splits:
        planted = self.planted(network.seed)
        return planted.without() if network.condition == TWIN else planted.data

    def probe(self, network: Network, source: str = "training") -> ProbeSet:
        """All training samples, in their order."""
        train = self.planted(network.seed).data.train
        samples = pd.DataFrame({"batch": 0, "label": train.labels.numpy()})
        return ProbeSet(train.images, samples, n_batches=1)


def score(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Score every training sample of a network.

    Returns
    -------
    DataFrame
        One row per training sample: ``seed``, ``sample``, ``kind`` (empty where nothing was planted), ``fitted`` (the
        network gives its label), ``memorised`` (and the twin does not), a column for each of :data:`SCORES`, and
        ``label_surprise:LAYER`` for each layer.
    """
    assert isinstance(laboratory, PlantedLaboratory)
    planted, last = laboratory.planted(network.seed), laboratory.rounds[-1]
    train, analysis = planted.data.train, laboratory.analysis(network, last)
    twin = laboratory.model(Network(network.seed, TWIN), last)
    fitted = _gives_label(laboratory.model(network, last), train)
    table = pd.DataFrame({"seed": network.seed, "sample": np.arange(len(train)), "kind": planted.kinds})
    table["fitted"] = fitted
    table["memorised"] = fitted & ~_gives_label(twin, train) & ~np.isin(planted.kinds, ["", CONTROL])
    layer = list(analysis.fits.layers)[-1]
    others = rivals.scores(lambda number: laboratory.model(network, number), last, train, layer)
    return table.join(of_clusterings(analysis)).join(pd.DataFrame(others))


def _gives_label(model: nn.Module, samples: Images) -> NDArray[np.bool_]:
    return (rivals.logits(model, samples.images).argmax(dim=1) == samples.labels).numpy()


def of_clusterings(analysis: Analysis) -> pd.DataFrame:
    """Scores of the samples of an analysis, higher for odder ones, from its stored fits alone."""
    found = analysis.samples
    scores = pd.DataFrame(
        {
            "memorisation rank": found["memorisation_rank"],
            "label surprise": found["label_surprise"],
            "cluster evidence": -found["cluster_evidence"],
            "map evidence": -found["map_evidence"],
            "density": found["density"],
            "paper's rule": found["n_filters"],
        }
    )
    profile = found[[column for column in found if column.startswith(PROFILE)]]
    return scores.join(profile.dropna(axis="columns")).astype(float)


def aucs(samples: pd.DataFrame) -> pd.DataFrame:
    """AUC of every score for every kind and seed.

    Returns
    -------
    DataFrame
        ``seed``, ``score``, ``kind``, ``planted`` and ``memorised`` (numbers of samples), ``auc`` (all planted samples
        of the kind against those that nothing is wrong with) and ``auc_memorised`` (the memorised ones of them; NaN
        with fewer than :data:`FEWEST`). The control kind is one of the rows.
    """
    rows = []
    for seed, of_seed in samples.groupby("seed"):
        right = of_seed["kind"].isin(["", CONTROL])
        for name in (name for name in SCORES if name in of_seed):
            values = of_seed[name].to_numpy()
            for kind in KINDS:
                chosen = (of_seed["kind"] == kind).to_numpy()
                others = values[right.to_numpy() & ~chosen]
                memorised = chosen & of_seed["memorised"].to_numpy()
                numbers = {"planted": int(chosen.sum()), "memorised": int(memorised.sum())}
                enough = memorised.sum() >= FEWEST
                found = {
                    "auc": auc(values[chosen], others),
                    "auc_memorised": auc(values[memorised], others) if enough else np.nan,
                }
                rows.append({"seed": seed, "score": name, "kind": kind} | numbers | found)
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Mean AUC over kinds of every score, with its interval over seeds.

    Returns
    -------
    DataFrame
        One row per score, best first: ``score``, ``needs``, ``auc`` with ``low`` and ``high`` (memorised samples, mean
        over kinds but the control), ``auc_planted`` (all planted samples), ``precision`` (share of planted samples
        among as many of the highest scores as were planted) and ``seeds``.
    """
    rows = []
    for name, of_score in table[table["kind"] != CONTROL].groupby("score"):
        means = of_score.groupby("seed")[["auc_memorised", "auc"]].mean()
        estimate = over_seeds(str(name), means["auc_memorised"], 0.5, possible=(0, 1))
        rows.append(
            {
                "score": name,
                "needs": SCORES[str(name)],
                "auc": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "auc_planted": means["auc"].mean(),
                "precision": np.mean([_precision(rows, str(name)) for _, rows in samples.groupby("seed")]),
                "seeds": estimate.n,
            }
        )
    return pd.DataFrame(rows).sort_values("auc", ascending=False, ignore_index=True)


def _precision(samples: pd.DataFrame, name: str) -> float:
    """Of ties, those at the cut count by their share."""
    planted = ~samples["kind"].isin(["", CONTROL])
    n_planted = int(planted.sum())
    cut = samples[name].nlargest(n_planted).iloc[-1]
    above, at = samples[name] > cut, samples[name] == cut
    return float((planted[above].sum() + planted[at].mean() * (n_planted - above.sum())) / n_planted)


def by_layer(samples: pd.DataFrame) -> pd.DataFrame:
    """How well each layer's own surprise tells memorised samples from those that nothing is wrong with.

    Returns
    -------
    DataFrame
        ``seed``, ``layer``, ``kind`` and ``auc``, one row for each kind with at least :data:`FEWEST` memorised ones.
    """
    rows = []
    for seed, of_seed in samples.groupby("seed"):
        right = of_seed["kind"].isin(["", CONTROL])
        for column in (column for column in of_seed if column.startswith(PROFILE)):
            for kind, members in of_seed[of_seed["memorised"]].groupby("kind"):
                if len(members) >= FEWEST:
                    value = auc(members[column], of_seed.loc[right, column])
                    rows.append({"seed": seed, "layer": column.removeprefix(PROFILE), "kind": kind, "auc": value})
    return pd.DataFrame(rows, columns=["seed", "layer", "kind", "auc"])


def mask(samples: pd.DataFrame, laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Mask the filters that carry memorised wrong labels of a network; ``seed``, and what ``fallen_labels`` returns."""
    samples = samples[samples["seed"] == network.seed]
    memorised = samples["memorised"] & samples["kind"].str.startswith("wrong label")
    others = (samples["kind"] == "") & samples["fitted"]
    last = laboratory.rounds[-1]
    table = carriers.fallen_labels(
        laboratory.model(network, last),
        laboratory.analysis(network, last).fits,
        laboratory.data(network).train,
        np.flatnonzero(memorised)[: carriers.SAMPLES],
        np.flatnonzero(others)[: carriers.OTHERS],
        seed=network.seed,
    )
    table.insert(0, "seed", network.seed)
    return table


def _finding(summary: pd.DataFrame) -> Iterator[str]:
    """One line per score, best first."""
    for row in summary.itertuples():
        interval = "" if np.isnan(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
        memorised = f"AUC {row.auc:.3f}{interval} for memorised samples, mean over kinds and {row.seeds} seeds"
        yield (
            f"{row.score} ({row.needs}): {memorised if row.seeds else 'too few memorised samples'}; "
            f"{row.auc_planted:.3f} for all planted ones; precision {row.precision:.2f}."
        )


def _depth(profile: pd.DataFrame) -> Iterator[str]:
    """One line per kind: the AUC layer by layer."""
    for kind, rows in profile.groupby("kind", sort=False):
        means = rows.groupby("layer", sort=False)["auc"].mean()
        yield f"{kind}, AUC by layer: " + ", ".join(f"{layer} {value:.2f}" for layer, value in means.items())


def _figures(summary: pd.DataFrame, profile: pd.DataFrame, masking: pd.DataFrame) -> dict[str, object]:
    by_layer_and_kind = profile.groupby(["layer", "kind"], sort=False)["auc"].mean().reset_index()
    fallen = masking.groupby(["order", "share"], sort=False)[["fallen", "others_changed"]].mean().reset_index()
    return {
        "scores": px.bar(
            summary, x="auc", y="score", color="needs", orientation="h", range_x=[0.4, 1],
            title="Memorised samples: AUC, mean over kinds and seeds",
        ),
        "profile": px.line(
            by_layer_and_kind, x="layer", y="auc", color="kind", markers=True,
            title="Memorised samples: AUC of the label surprise of one layer",
        ),
        "masking": px.line(
            fallen, x="others_changed", y="fallen", color="order", markers=True, hover_data=["share"],
            title="Memorised labels that fall, against other predictions that change",
        ),
    }  # fmt: skip
