"""What was found, in sentences that need no knowledge of the paper; the console and the report say the same."""

from collections.abc import Iterator, Sequence

import pandas as pd

from gmmcnn.constants import Status
from gmmcnn.data.planting import NOISE
from gmmcnn.filters.outcome import Outcome
from gmmcnn.filters.samples import most_surprising
from gmmcnn.report.views import class_name


def findings(
    analysis: Outcome,
    metrics: pd.DataFrame | None = None,
    masking: pd.DataFrame | None = None,
    class_names: Sequence[str] | None = None,
) -> list[str]:
    """Sum up an analysis; the first sentence is the headline.

    Parameters
    ----------
    analysis : Outcome
        Of the network as it is now.
    metrics : DataFrame, optional
        One row per epoch with ``epoch`` and ``flagged_per_batch``, NaN where it was not analysed.
    masking : DataFrame, optional
        What :func:`gmmcnn.pruning.masks.compare_masks` returns.
    class_names : sequence of str, optional
        By class; numbers are told where there are none.
    """
    if analysis.saturation.is_saturated:  # counts of what has a small cluster are counts of chance
        return [_saturated(analysis), *_planted(analysis), *_masking(masking)]
    return [
        _headline(analysis),
        *_which(analysis),
        *_outliers(analysis),
        *_planted(analysis),
        *_surprising(analysis, class_names),
        *_over_training(metrics),
        *_masking(masking),
    ]


def _saturated(analysis: Outcome) -> str:
    return (
        f"{_count(analysis.fits.n_filters, 'filter')}, saturated: chance alone makes small clusters here, so that no "
        f"count of anomalous ones means anything. {analysis.saturation.comment}."
    )


def _headline(analysis: Outcome) -> str:
    filters = analysis.filters
    n_anomalous = int(filters["anomalous"].sum())
    if not n_anomalous:
        none = f"None of {_count(len(filters), 'filter')} is anomalous"
        return f"{none}: none responds strongly and sets a few images apart."
    verbs = ("is", "it responds", "sets") if n_anomalous == 1 else ("are", "they respond", "set")
    return "{} of {} {} anomalous: {} strongly and {} a few images apart from all others.".format(
        n_anomalous, _count(len(filters), "filter"), *verbs
    )


def _which(analysis: Outcome) -> Iterator[str]:
    filters = analysis.filters
    names = [f"{row.layer}:{row.filter}" for row in filters[filters["anomalous"]].itertuples()]
    dead = int(filters["status"].isin([Status.DEAD, Status.NEAR_DEAD]).sum())
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    said = [f"Anomalous: {listed}"] if names else []
    said += [f"{_count(dead, 'filter')} (near-)dead and left out"] if dead else []
    if said:
        yield "; ".join(said) + "."


def _outliers(analysis: Outcome) -> Iterator[str]:
    outliers, n_batches = analysis.outliers, analysis.fits.n_batches
    over = f" over {n_batches} batches" if n_batches > 1 else ""
    total = len(analysis.known)
    if len(outliers):
        most = outliers.iloc[0]
        rare = "" if analysis.screening.anomalous else ", all by filters flagged too rarely to be anomalous"
        yield (
            f"{_count(len(outliers), 'outlier sample')} of {total:,}{over}{rare}; "
            f"sample {most['sample']} stands out most, in {_count(most['n_filters'], 'filter')}."
        )
    else:
        yield f"No outlier sample among {total:,}{over}."


def _planted(analysis: Outcome) -> Iterator[str]:
    if "planted" not in analysis.known:
        return
    kinds = analysis.known["planted"]
    in_probe, in_training = kinds.index[kinds == NOISE], kinds.index[~kinds.isin(["", NOISE])]
    outliers = analysis.outliers
    if len(in_probe):
        found = outliers[outliers["sample"].isin(in_probe)]
        filters = dict.fromkeys(name for names in found["filters"] for name in names.split(", "))
        by = f" by {', '.join(filters)}" if filters else ""
        yield (
            f"{_count(len(in_probe), 'noise image')} planted in the probe set (samples "
            f"{', '.join(map(str, in_probe))}): {len(found)} of {len(in_probe)} found{by}; "
            f"{_count(len(outliers) - len(found), 'other sample')} reported."
        )
    if len(in_training):
        of_kinds = kinds[in_training].value_counts(sort=False)
        listed = ", ".join(f"{number} {str(kind).replace('_', ' ')}" for kind, number in of_kinds.items())
        first = most_surprising(analysis.samples, 2 * len(in_training))["sample"]
        singled_out = outliers["sample"].isin(in_training).sum()
        yield (
            f"{_count(len(in_training), 'sample')} planted in the training set ({listed}): "
            f"{first.isin(in_training).sum()} of {len(in_training)} are among the {len(first)} of {len(kinds):,} that "
            f"stand first by memorisation rank (chance {len(in_training) * len(first) / len(kinds):.1f}); the criteria "
            f"of anomaly filters single out {singled_out} of them, and {_count(len(outliers) - singled_out, 'other')}."
        )


def _surprising(analysis: Outcome, class_names: Sequence[str] | None) -> Iterator[str]:
    first = most_surprising(analysis.samples, 1)
    if len(first):
        [row] = first.itertuples()
        own, others = (
            class_name(label, class_names) if class_names else label for label in (row.label, row.cluster_label)
        )
        said = "its clusters agree in the end" if row.label == row.cluster_label else f"its clusters say {others}"
        yield (
            f"Sample {row.sample} stands first by memorisation rank: labelled {own}, {said} "
            f"(label surprise {row.label_surprise:.2f} nats)."
        )


def _over_training(metrics: pd.DataFrame | None) -> Iterator[str]:
    analysed = pd.DataFrame() if metrics is None else metrics.dropna(subset="flagged_per_batch")
    if len(analysed) < 2:
        return
    first, last = analysed.iloc[0], analysed.iloc[-1]
    yield (
        f"Filters flagged per probe batch: {first['flagged_per_batch']:.1f} after epoch {first['epoch']:.0f}, "
        f"{last['flagged_per_batch']:.1f} after epoch {last['epoch']:.0f}. "
        "(Networks that do not overfit show such counts too: compare with a control before concluding.)"
    )


def _masking(masking: pd.DataFrame | None) -> Iterator[str]:
    if masking is None or not (masking["mask"] == "anomalous").any():
        return
    kinds = {str(kind): rows for kind, rows in masking.groupby("mask")}
    before, after = kinds["none"].iloc[0], kinds["anomalous"].iloc[0]
    text = (
        f"Masking {_count(int(after['n_filters']), 'anomaly filter')}: "
        f"training accuracy {before['train_accuracy']:.1%} → {after['train_accuracy']:.1%}, "
        f"validation accuracy {before['validation_accuracy']:.1%} → {after['validation_accuracy']:.1%}"
    )
    random = kinds.get("random")
    if random is not None:
        at_least = int((random["validation_accuracy"] >= after["validation_accuracy"]).sum())
        text += (
            f"; of {len(random)} random masks of the same size, {at_least} did as well or better on validation "
            f"(mean {random['validation_accuracy'].mean():.1%})"
        )
    yield text + "."


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("s" if n != 1 else "")
