"""The method, top to bottom: train, extract, fit, screen, mask.

Each task reads what the one before it left in the run folder and writes its own part, so a run can stop after any of
them, go on later, or start over from any of them with other settings::

    RUN/checkpoints/epoch-0030.pt, metrics.csv      train
    RUN/activations/epoch-0030/maps.zarr            extract
    RUN/activations/epoch-0030/fits/KEY/LAYER/      fit
    RUN/filters.csv, outliers.csv, metrics.csv      screen
    RUN/mask.json, masking.csv                      prune
"""

import shutil
from functools import partial

from gmmcnn.files import write_table
from gmmcnn.filters.fits import is_live
from gmmcnn.models import training
from gmmcnn.progress import progress, say
from gmmcnn.pruning import masks as pruning
from gmmcnn.report.findings import findings
from gmmcnn.run import stages as activations
from gmmcnn.run import tables
from gmmcnn.run.folder import Checkpoint, Run
from gmmcnn.run.stages import require_possible


def run(job: Run) -> None:
    """Do the whole method for one network and data set."""
    require_possible(job)
    train(job)
    for checkpoint in job.checkpoints:
        activations.extract(job, checkpoint)
        activations.fit(job, checkpoint)
        _tidy(job, checkpoint)
    screen(job)
    prune(job)


def train(job: Run) -> None:
    """Train with checkpoints, or go on where training stopped; a network given by its checkpoint is not trained."""
    settings = job.settings
    if settings.model.checkpoint or settings.extract.source:
        return
    with job.timed("train"), progress(f"training {settings.model.name}", settings.train.epochs, "epochs") as advance:
        result = training.train(
            job.model, job.data, settings.train, job.folder / "checkpoints", seed=settings.seed, advance=advance
        )
    last = result.metrics.iloc[-1]
    say(
        f"Trained {settings.train.epochs} epochs: training accuracy {last['train_accuracy']:.1%}, "
        f"validation accuracy {last['validation_accuracy']:.1%}; validation loss was best at epoch {result.best_epoch}."
    )


def extract(job: Run) -> None:
    """Stream the feature maps of the probe samples to a store, one for each checkpoint."""
    for checkpoint in job.checkpoints:
        activations.extract(job, checkpoint)


def fit(job: Run) -> None:
    """Fit every filter of every store; fits that are there already are kept."""
    for checkpoint in job.checkpoints:
        activations.fit(job, checkpoint)


def screen(job: Run) -> None:
    """Apply the criteria to the stored fits of every checkpoint, and tell what was found."""
    analyses = {checkpoint: activations.analysis(job, checkpoint) for checkpoint in job.checkpoints}
    job.require_own_training()
    tables.write(job, analyses)
    latest = analyses[job.checkpoints[-1]]
    say(tables.layers(latest))
    for sentence in findings(latest, job.metrics):
        say(sentence)
    say(latest.saturation[1])
    for layer, reason in latest.skipped:
        say(f"Not analysed: {layer}: {reason}")


def prune(job: Run) -> None:
    """Mask the anomaly filters of the network as it is now, and compare with random masks of the same size."""
    checkpoint = job.checkpoints[-1]
    if checkpoint.weights is None:
        return
    analysis = activations.analysis(job, checkpoint)
    job.require_own_training()
    mask, table = analysis.screening.anomalous, job.folder / "masking.csv"
    table.unlink(missing_ok=True)  # it may be of another mask
    pruning.save_mask(job.folder / "mask.json", mask)
    if not mask:
        return
    live = analysis.filters[is_live(analysis.filters["status"])]
    by_layer = {str(layer): rows["filter"].tolist() for layer, rows in live.groupby("layer")}
    controls = pruning.random_masks(mask, by_layer, job.settings.prune.controls, job.settings.seed)
    evaluate = partial(training.accuracies, data=job.data)
    with job.timed("prune"), progress("masking", len(controls) + 2, "masks") as advance:
        masking = pruning.compare_masks(job.load_weights(checkpoint), mask, controls, evaluate, advance)
    write_table(table, masking)
    say(findings(analysis, masking=masking)[-1])


def _tidy(job: Run, checkpoint: Checkpoint) -> None:
    """Delete feature maps that are not to be kept once they are fitted; the network's own are the last."""
    keep = job.settings.extract.keep_maps
    if keep == "none" or (keep == "last" and checkpoint != job.checkpoints[-1]):
        shutil.rmtree(checkpoint.maps, ignore_errors=True)
