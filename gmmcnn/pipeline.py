"""The method, top to bottom: train, maps, PCA and mixtures (K by the CH index), screening, masks.

Each task reads what the one before it left in the run folder and writes its own part, so a run can stop after any of
them, go on later, or start over from any of them with other settings::

    RUN/checkpoints/epoch-0030.pt, metrics.csv      train
    RUN/probe/FINGERPRINT.npz                       extract: what is known of the probe samples
    RUN/activations/epoch-0030/maps.zarr            extract: feature maps
    RUN/activations/epoch-0030/fits/KEY/LAYER/      fit: PCA, a mixture for every K, CH index, K
    RUN/filters.csv, outliers.csv, metrics.csv      screen: anomaly filters, outlier samples
    RUN/samples.csv                                 screen, samples: scores of every probe sample
    RUN/mask.json, masking.csv                      prune: accuracies without the anomaly filters
    RUN/pruned.pt, pruned.pt2, pruning.csv          prune.method=remove: the network without them

Screening, and the page, need nothing but the run folder. ``task=run`` fits maps where they are made, and stores those
that ``extract.keep_maps`` asks for behind the fit; ``task=extract`` and ``task=fit`` go by way of the store. Both give
the same bits.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from gmmcnn import models
from gmmcnn.files import remove_folder, write_table
from gmmcnn.filters.fits import is_live
from gmmcnn.models import retraining, training
from gmmcnn.progress import progress, say
from gmmcnn.pruning import masks as pruning
from gmmcnn.pruning import smaller, structural
from gmmcnn.report.findings import findings
from gmmcnn.run import preview, stages, tables
from gmmcnn.run.folder import Checkpoint, Run
from gmmcnn.run.stages import Analysed


def run(job: Run) -> list[Analysed]:
    """Do the whole method for one network and data set; analyses of all checkpoints, the network as it is now last."""
    stages.require_possible(job)
    if job.trained_here and not (job.folder / "checkpoints").exists():
        say(preview.intent(job))
    train(job)
    checkpoints, opened = job.checkpoints(), []
    for checkpoint in checkpoints:
        keep = _is_kept(job, checkpoint, last=checkpoints[-1])
        opened.append(stages.fit_as_made(job, stages.open_checkpoint(checkpoint), keep=keep))
        if not keep:
            remove_folder(checkpoint.maps)
    found = [stages.analyse(job, stage) for stage in opened]
    _screen(job, found)
    _prune(job, found[-1])
    return found


def train(job: Run) -> None:
    """Train with checkpoints, or go on where training stopped; a network given by its checkpoint is not trained."""
    settings, folder = job.settings, job.folder / "checkpoints"
    if not job.trained_here:
        return
    network, data = job.network(), job.data()
    training.require_same(folder, data, settings.train, seed=settings.seed, model=network)
    job.accept()
    with job.timed("train"), progress(f"training {settings.model.name}", settings.train.epochs, "epochs") as advance:
        result = training.train(
            network, data, settings.train, folder, seed=settings.seed, advance=advance, log=partial(_track_losses, job)
        )
    last = result.metrics.iloc[-1]
    say(
        f"Trained {settings.train.epochs} epochs: training accuracy {last['train_accuracy']:.1%}, "
        f"validation accuracy {last['validation_accuracy']:.1%}; validation loss was best at epoch {result.best_epoch}."
    )


def retrain(job: Run) -> list[Path]:
    """Train again what is damaged or lost of the training in the folder; returns the files made again."""
    settings, folder = job.settings, job.folder / "checkpoints"
    if not (job.trained_here and retraining.problems(folder)):
        return []
    network, data = job.network(), job.data()
    with progress(f"training {settings.model.name} again", settings.train.epochs, "epochs") as advance:
        names = retraining.again(network, data, settings.train, folder, seed=settings.seed, advance=advance)
    return [folder / name for name in names]


def extract(job: Run) -> None:
    """Stream the feature maps of the probe samples to a store, one for each checkpoint."""
    checkpoints = job.checkpoints()
    job.require_own_training()
    for checkpoint in checkpoints:
        stages.extract(job, stages.open_checkpoint(checkpoint))


def fit(job: Run) -> None:
    """Fit every filter of every store; fits that are there already are kept."""
    for checkpoint in job.checkpoints():
        stages.fit(job, stages.open_checkpoint(checkpoint))


def fit_again(job: Run) -> None:
    """Make again what is damaged or missing of maps and fits; maps are stored where they were, or are to be."""
    job.require_own_training()
    checkpoints = job.checkpoints()
    for checkpoint in checkpoints:
        keep = checkpoint.maps.exists() or _is_kept(job, checkpoint, last=checkpoints[-1])
        stages.fit_as_made(job, stages.open_checkpoint(checkpoint), keep=keep)


def screen(job: Run) -> None:
    """Apply the criteria to the stored fits of every checkpoint, and tell what was found."""
    _screen(job, analysed(job))


def samples(job: Run) -> None:
    """Score every probe sample by the stored fits of every checkpoint, and tell whose labels surprise most."""
    scored = analysed(job)
    job.accept()
    tables.write_samples(job.folder, {found.checkpoint: found.analysis for found in scored})
    job.keep("samples.csv")
    say(tables.surprising(scored[-1].analysis))


def prune(job: Run) -> None:
    """Mask the anomaly filters of the network as it is now, and compare with random masks of the same size."""
    _prune(job, latest(job))


def analysed(job: Run) -> list[Analysed]:
    """Analyses of all checkpoints, from stored fits."""
    return [stages.analyse(job, stages.open_checkpoint(checkpoint)) for checkpoint in job.checkpoints()]


def latest(job: Run) -> Analysed:
    """Analysis of the network as it is now, from stored fits."""
    return stages.analyse(job, stages.open_checkpoint(job.checkpoints()[-1]))


def _screen(job: Run, analysed: Sequence[Analysed]) -> None:
    metrics = job.training_metrics() if job.trained_here else None
    job.accept()
    analyses = {found.checkpoint: found.analysis for found in analysed}
    counted = tables.write(job.folder, analyses, metrics)
    job.keep(*tables.NAMES)
    if job.trained_here:
        _track_counts(job, counted)
    last = analysed[-1].analysis
    say(tables.layers(last))
    for sentence in findings(last, counted if job.trained_here else None, class_names=analysed[-1].class_names):
        say(sentence)
    say(last.saturation[1])
    for layer, reason in last.skipped:
        say(f"Not analysed: {layer}: {reason}")


def _track_losses(job: Run, row: Mapping[str, float]) -> None:
    """Tell an epoch's losses and accuracies, as ``train/loss`` and so on."""
    job.track({name.replace("_", "/"): value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))


def _track_counts(job: Run, counted: pd.DataFrame) -> None:
    """Tell the counts of each epoch that was analysed."""
    names = counted.columns.difference([*training.METRICS, "checkpoint"])
    for row in counted.dropna(subset=names).to_dict("records"):
        job.track({f"gmmcnn/{name}": float(row[name]) for name in names}, int(row["epoch"]))


def _prune(job: Run, found: Analysed) -> None:
    weights, analysis = found.checkpoint.weights, found.analysis
    if weights is None:
        return
    network = job.network(models.read_state(weights), weights)
    mask, table = analysis.screening.anomalous, job.folder / "masking.csv"
    removing = job.settings.prune.method == "remove"
    if removing:
        structural.require_torch_pruning()
    job.accept()
    table.unlink(missing_ok=True)  # it may be of another mask
    pruning.save_mask(job.folder / "mask.json", mask)
    job.keep("mask.json", table.name)
    if not mask:
        return
    live = analysis.filters[is_live(analysis.filters["status"])]
    by_layer = {str(layer): rows["filter"].tolist() for layer, rows in live.groupby("layer")}
    controls = pruning.random_masks(mask, by_layer, job.settings.prune.controls, job.settings.seed)
    evaluate = partial(training.accuracies, data=job.data())
    with job.timed("prune"), progress("masking", len(controls) + 2, "masks") as advance:
        masking = pruning.compare_masks(network, mask, controls, evaluate, advance)
    write_table(table, masking)
    job.keep(table.name)
    say(findings(analysis, masking=masking)[-1])
    if removing:
        _remove(job, network, mask)


def _remove(job: Run, network: nn.Module, mask: pruning.Mask) -> None:
    """Write the network without the filters of a mask, and what that saves."""
    example = job.data().validation.images[:1]
    removal = structural.remove_filters(network.cpu().eval(), mask, example)  # files are to be read anywhere
    sizes = smaller.compare(network, removal, example, partial(training.accuracies, data=job.data()))
    write_table(job.folder / "pruning.csv", sizes)
    problem = smaller.save(job.folder, network, removal, example)
    job.keep("pruning.csv", "pruned.pt", "pruned.pt2")
    say(smaller.sentence(sizes, removal))
    if problem:
        say(f"No pruned.pt2: torch cannot export this network ({problem}); pruned.pt holds its weights and the plan")


def _is_kept(job: Run, checkpoint: Checkpoint, *, last: Checkpoint) -> bool:
    """Whether a checkpoint's feature maps are to be stored; the network's own are the last."""
    keep = job.settings.extract.keep_maps
    return keep == "all" or (keep == "last" and checkpoint == last)
