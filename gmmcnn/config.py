"""Typed settings: one dataclass per config group, with the defaults of the method and the range of every value.

These classes are the only place where defaults stand. Hydra's configuration is typed by them (``conf/`` holds named
variations), and :func:`gmmcnn.analyze` takes the same names as keyword arguments. Ranges are checked when a group is
built, so an impossible value fails before any work is done.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, get_type_hints

from gmmcnn.constants import MAX_COMPONENTS, MAX_DIMS, MAX_STARTS, SMALL_SHARE
from gmmcnn.errors import ConfigurationError
from gmmcnn.names import did_you_mean

TASKS = (
    "run", "train", "extract", "fit", "screen", "samples", "prune", "report", "verify", "repair", "experiment",
    "doctor", "aggregate",
)  # fmt: skip
EXPERIMENTS = (
    "overfitting", "gradients", "pruning", "ablation", "sensitivity", "scalability", "planted", "conditions",
    "memorised", "causal", "tied", "crossed",
)  # fmt: skip
SIZES = ("smoke", "quick", "full")
PRUNING = ("mask", "remove")
ENGINES = ("auto", "cpu", "cuda", "reference")
CUML = ("never", "auto")
CLUSTERS = ("none", "dask", "slurm", "cuda")
AUTOCAST = ("bfloat16", "float16")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")

ALL = "all"
MAX_SEED = 2**63 - 1
"""Of the run, and of ``gmm.random_state``: their sum names random streams of 64 bits."""
MAX_THREADS = 2**16
MAX_GPUS = 64


def _require(condition: bool, key: str, value: object, expected: str) -> None:  # noqa: FBT001 - as in assert
    if not condition:
        raise ConfigurationError(f"{key}={value}: expected {expected}")


def _require_one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, value, "one of " + ", ".join(choices))


_A_SEED = "a whole number from 0 to 2^63 - 1"
_KINDS = {int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "text")}


@dataclass
class _Group:
    """Settings of the types that their annotations say; numbers of any library become Python's own."""

    def __post_init__(self) -> None:
        prefix = "" if isinstance(self, Settings) else f"{self._group()}."
        for name, hint in get_type_hints(type(self)).items():
            kind = next((kind for kind in _KINDS if hint in (kind, kind | None)), None)
            value = getattr(self, name)
            if kind is None or (value is None and hint != kind):
                continue
            accepted, expected = _KINDS[kind]
            _require(isinstance(value, accepted) and not isinstance(value, bool), prefix + name, repr(value), expected)
            setattr(self, name, kind(value))

    @classmethod
    def _group(cls) -> str:
        """Name of the group on the command line."""
        return cls.__name__.lower()


@dataclass
class Data(_Group):
    """Where images and labels come from.

    ``name`` is one of the built-in data sets; ``image_folder``, pictures in ``root``, a subfolder for each class, with
    ``kwargs`` as in :class:`gmmcnn.data.image_folder.Preparation`; or the dotted name of a map-style data set class,
    which is called with ``kwargs`` and ``train=True`` or ``train=False``.
    """

    name: str = "digits"
    """A built-in data set, ``image_folder``, or ``package.module:Class`` of a map-style data set."""
    root: str | None = None
    """Folder of the data set's files; None looks in the system's own places."""
    train_samples: int | None = None
    """Size of the training set, drawn by seed; None takes all that the split leaves."""
    validation_share: float = 0.2
    """Share of the training images held out for validation where the data set has no split of its own."""
    label_noise: float = 0.0
    """Share of training labels replaced by another class."""
    plant_wrong_labels: int = 0
    """Training samples that get the label of another class, to see whether they are found; ``samples.csv`` says which
    they are."""
    plant_foreign: int = 0
    """Training images replaced by their inverse or by uniform noise, in turns, within the range of the pixels; they
    keep their labels."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the data set: ``data.kwargs.size=64``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.train_samples is None or self.train_samples >= 1, "data.train_samples", self.train_samples, ">= 1"
        )
        _require(0 < self.validation_share < 1, "data.validation_share", self.validation_share, "a number in (0, 1)")
        _require(0 <= self.label_noise <= 1, "data.label_noise", self.label_noise, "a number in [0, 1]")
        for key in ("plant_wrong_labels", "plant_foreign"):
            _require(getattr(self, key) >= 0, f"data.{key}", getattr(self, key), ">= 0")


@dataclass
class Model(_Group):
    """The network: a built-in name, or the dotted name of an ``nn.Module`` class or factory, called with ``kwargs``."""

    name: str = "simple_cnn"
    """A built-in network, or ``package.module:Class`` of an ``nn.Module`` class or factory."""
    checkpoint: str | None = None
    """State dict to start from (a ``.pt`` file, loaded with ``weights_only=True``); with it, nothing is trained."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network: ``model.kwargs.width=32``."""


@dataclass
class Train(_Group):
    """Training by Adam or SGD on cross-entropy."""

    epochs: int = 30
    """Passes through the training set."""
    batch_size: int = 64
    """Samples in one step."""
    optimizer: str = "adam"
    """``adam`` or ``sgd``."""
    learning_rate: float = 1e-3
    """Step size, the same in all epochs."""
    momentum: float = 0.9
    """Of SGD; Adam ignores it."""
    weight_decay: float = 0.0
    """L2 penalty on the weights."""
    checkpoint_epochs: list[int] | None = None
    """Epochs whose weights are kept and analysed; None: about ten, evenly spaced, the first and the last among them."""
    evaluate: str = "all"
    """Epochs after which loss and accuracy are measured: ``all``, or the ``kept`` ones only, for which alone
    ``metrics.csv`` then has a row, and among which the best one is looked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.epochs >= 1, "train.epochs", self.epochs, ">= 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        _require_one_of("train.optimizer", self.optimizer, ("adam", "sgd"))
        _require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "> 0")
        _require(0 <= self.momentum < 1, "train.momentum", self.momentum, "a number in [0, 1)")
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, ">= 0")
        _require_one_of("train.evaluate", self.evaluate, ("all", "kept"))
        for epoch in self.checkpoint_epochs or []:
            _require(
                1 <= epoch <= self.epochs,
                "train.checkpoint_epochs",
                epoch,
                f"epochs from 1 to train.epochs={self.epochs}",
            )

    @property
    def kept_epochs(self) -> list[int]:
        """Epochs (counted from 1) whose checkpoints are kept, ascending."""
        if self.checkpoint_epochs:
            return sorted(set(self.checkpoint_epochs))
        n_kept = min(10, self.epochs)
        return sorted({1 + round(i * (self.epochs - 1) / max(n_kept - 1, 1)) for i in range(n_kept)} | {self.epochs})


@dataclass
class Probe(_Group):
    """The training samples whose feature maps are clustered: ``batches`` disjoint batches of ``samples`` each."""

    samples: int = 200
    """N: samples in a batch, and points of every clustering."""
    batches: int | str = 10
    """At most; fewer where the training set is too small. ``all``: as many as take up the whole training set, all but
    a few samples, in batches of ``samples`` or up to a tenth more or fewer, whichever leaves the fewest out."""
    plant: int = 0
    """Probe images replaced by Gaussian noise: outliers planted on purpose, to see the check catch something."""
    plant_strength: float = 5.0
    """Standard deviation of the noise, in standard deviations of the probe images' pixels."""
    plant_clipped: bool = True
    """Clip the noise to the range of the training images' pixels: what lies beyond it no camera gives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.samples >= 3, "probe.samples", self.samples, ">= 3")
        whole = isinstance(self.batches, Integral) and not isinstance(self.batches, bool)
        possible = self.batches == ALL or (whole and int(self.batches) >= 1)
        _require(possible, "probe.batches", self.batches, f"a whole number >= 1, or {ALL}")
        self.batches = ALL if self.batches == ALL else int(self.batches)
        _require(self.plant >= 0, "probe.plant", self.plant, ">= 0")
        _require(self.plant_strength > 0, "probe.plant_strength", self.plant_strength, "> 0")

    def divide(self, available: int) -> tuple[int, int]:
        """Number of batches, and of samples in each, that so many samples suffice for; no batches if for none."""
        if isinstance(self.batches, int):
            return min(self.batches, available // self.samples), self.samples
        near = range(max(3, math.ceil(0.9 * self.samples)), math.floor(1.1 * self.samples) + 1)
        sizes = [size for size in near if size <= available] or [self.samples]
        best = min(sizes, key=lambda size: (available % size, abs(size - self.samples)))
        return available // best, best


@dataclass
class Extract(_Group):
    """Which feature maps are stored, and how."""

    tap: str = "auto"
    """Where the maps of a convolution are taken: ``auto``, after the first activation that follows it, else after its
    normalisation, else its own output; ``post_activation``, after the activation, and layers without one are left out;
    ``branch``, the same, but before its maps are added to others (a residual stream); ``pre_activation``, its own
    output."""
    layers: list[str] | None = None
    """Dotted names of convolutions; None takes all."""
    dtype: str = "float32"
    """``float32`` or ``float16``."""
    autocast: str | None = None
    """``bfloat16`` or ``float16``: the network is run in it where torch holds that for safe, as most are that run on a
    GPU; its maps are then other ones, by about a hundredth. None runs it as it is."""
    forward_samples: int = 256
    """Samples in one forward pass, at most; large maps are taken in smaller ones."""
    source: str | None = None
    """Feature maps to take in place of a model's: a ``.npy`` file or Zarr array of shape (N, C, H, W) or (N, C, P),
    with N a multiple of ``probe.samples``, or less than it: then they are one batch."""
    keep_maps: str = "last"
    """Feature maps that ``task=run`` stores: of ``all`` checkpoints, of the ``last`` one, or ``none``. All others are
    fitted where they are made and never touch the disk. Fits are always kept."""
    memory: int = 512
    """MiB of feature maps that are held at once where they are fitted without a store: a network whose maps of one
    probe batch fill more is run once for each such part of its filters. No result depends on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("extract.tap", self.tap, ("auto", "post_activation", "branch", "pre_activation"))
        _require_one_of("extract.dtype", self.dtype, ("float32", "float16"))
        if self.autocast is not None:
            _require_one_of("extract.autocast", self.autocast, AUTOCAST)
        _require_one_of("extract.keep_maps", self.keep_maps, ("all", "last", "none"))
        _require(self.forward_samples >= 1, "extract.forward_samples", self.forward_samples, ">= 1")
        _require(self.memory >= 1, "extract.memory", self.memory, ">= 1")


@dataclass
class Pca(_Group):
    """Reduction of each filter's maps."""

    dims: int = 2
    """d: principal components kept of every filter's maps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(1 <= self.dims <= MAX_DIMS, "pca.dims", self.dims, f"a whole number from 1 to {MAX_DIMS}")


@dataclass
class Gmm(_Group):
    """The mixture sweep; names and meanings as in ``sklearn.mixture.GaussianMixture``."""

    k_min: int = 2
    """Fewest components K that are tried."""
    k_max: int = 10
    """Most components K that are tried; the Calinski-Harabasz index chooses."""
    n_init: int = 1
    """Starts for each K; the best is kept. K differs from seed to seed for more than half of the filters with one, for
    45 % with ten."""
    repeats: int = 10
    """Independent fits, each of ``n_init`` starts, of every filter in every probe batch. Frequencies, counts and scores
    are over all of them, and steadier from seed to seed than those of one fit of as many starts, which takes as long
    (``gmm=best_of_ten``)."""
    tol: float = 1e-3
    """EM stops where a step gains less mean log-likelihood."""
    max_iter: int = 100
    """EM steps, at most."""
    reg_covar: float = 1e-6
    """Relative to the filter's mean score variance."""
    random_state: int = 0
    """Added to the run's seed where starts are drawn: another number clusters the same maps from other starts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.k_min >= 2, "gmm.k_min", self.k_min, ">= 2")
        of_k_max = f"a whole number from gmm.k_min={self.k_min} to {MAX_COMPONENTS}"
        _require(self.k_min <= self.k_max <= MAX_COMPONENTS, "gmm.k_max", self.k_max, of_k_max)
        _require(1 <= self.n_init < MAX_STARTS, "gmm.n_init", self.n_init, f"a whole number from 1 to {MAX_STARTS - 1}")
        _require(self.repeats >= 1, "gmm.repeats", self.repeats, ">= 1")
        _require(self.tol >= 0, "gmm.tol", self.tol, ">= 0")
        _require(1 <= self.max_iter < 2**31, "gmm.max_iter", self.max_iter, "a whole number from 1 to 2^31 - 1")
        _require(0 <= self.reg_covar <= 1, "gmm.reg_covar", self.reg_covar, "a number from 0 to 1")
        _require(0 <= self.random_state <= MAX_SEED, "gmm.random_state", self.random_state, _A_SEED)

    @property
    def of_a_sweep(self) -> dict[str, Any]:
        """Parameters of one :class:`gmmcnn.mixture.sweep.GaussianMixtureSweep`."""
        return {name: value for name, value in asdict(self).items() if name != "repeats"}


@dataclass
class Screen(_Group):
    """The three criteria of an anomaly filter; thresholds λ, α, β, θ of the method, in this order."""

    small_cluster: int | None = None
    """λ: a cluster of at most so many samples is small. None takes a quarter of an average cluster, N / (4 K_max)
    rounded down and at least 1, which keeps λ·K_max/N where the first criterion is informative: 5 for N = 200."""
    min_small_clusters: int = 1
    """α: so many small clusters make the classes unbalanced."""
    ch_ratio: float = 0.8
    """β: separated where CH exceeds this multiple of the average CH."""
    activation_ratio: float = 0.5
    """θ: active where the mean activation exceeds this multiple of the average."""
    min_frequency: float = 0.5
    """Share of probe batches in which a filter must be flagged to be called anomalous."""
    scope: str = "layer"
    """Averages over the live filters of the same ``layer`` or of the whole ``network``, where layers whose maps are one
    pixel, as in squeeze-and-excitation, have an average of their own."""
    average: str = "median"
    """Average of CH: ``median`` or ``mean``."""
    min_active_share: float = 0.05
    """A filter active on a smaller share of the samples is near-dead: never anomalous, and in no average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        possible = self.small_cluster is None or self.small_cluster >= 1
        _require(possible, "screen.small_cluster", self.small_cluster, ">= 1")
        _require(self.min_small_clusters >= 1, "screen.min_small_clusters", self.min_small_clusters, ">= 1")
        _require(self.ch_ratio >= 0, "screen.ch_ratio", self.ch_ratio, ">= 0")
        _require(self.activation_ratio >= 0, "screen.activation_ratio", self.activation_ratio, ">= 0")
        _require(0 < self.min_frequency <= 1, "screen.min_frequency", self.min_frequency, "a number in (0, 1]")
        _require_one_of("screen.scope", self.scope, ("layer", "network"))
        _require_one_of("screen.average", self.average, ("median", "mean"))
        _require(0 <= self.min_active_share < 1, "screen.min_active_share", self.min_active_share, "a number in [0, 1)")

    def small_cluster_for(self, n_samples: int, k_max: int) -> int:
        """λ in force for probe batches of N samples that at most K_max components are fitted to."""
        return self.small_cluster or max(1, math.floor(SMALL_SHARE * n_samples / k_max))


@dataclass
class Prune(_Group):
    """What masking the anomaly filters does to accuracy, beside random masks."""

    controls: int = 20
    """Random masks of the same size per layer."""
    method: str = "mask"
    """``mask``, or ``remove`` to write the smaller network as well: pruned.pt, pruned.pt2, pruning.csv."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("prune.method", self.method, PRUNING)
        _require(self.controls >= 0, "prune.controls", self.controls, ">= 0")


@dataclass
class Engine(_Group):
    """What computes the fits."""

    name: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``reference``."""
    threads: int | None = None
    """CPU threads; None takes all cores. No result depends on it."""
    gpus: int = 1
    """GPUs over which the CUDA engine shares out filters whose maps are stored; more than one for a job that has a node
    to itself. No result depends on it."""
    cuml: str = "never"
    """``auto``: starts of the CUDA engine for probe batches of 16,384 samples and more are found by cuML's k-means,
    where that is installed: it spreads one problem over the whole device. They are other ones than the engines' own, as
    those of another ``gmm.random_state`` are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("engine", self.name, ENGINES)
        _require_one_of("engine.cuml", self.cuml, CUML)
        possible = self.threads is None or 1 <= self.threads <= MAX_THREADS
        _require(possible, "engine.threads", self.threads, f"a whole number from 1 to {MAX_THREADS}")
        _require(1 <= self.gpus <= MAX_GPUS, "engine.gpus", self.gpus, f"a whole number from 1 to {MAX_GPUS}")


@dataclass
class Cluster(_Group):
    """Processes that share the work of one run, on one machine or several."""

    name: str = "none"
    """``none``: all work is done here. Else fits are made by Dask's workers: processes of this machine (``dask``), one
    for each of its GPUs (``cuda``) or ``slurm`` jobs, which see run folder and data set under the same paths. No result
    depends on it."""
    address: str | None = None
    """With ``dask``: a scheduler that runs already, as ``tcp://host:8786``; its workers are used, and none started."""
    workers: int = 2
    """Processes, or jobs, that are started."""
    threads: int = 1
    """CPU threads of each."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else Dask's class of the cluster takes: ``cluster.options.queue=long cluster.options.walltime=02:00:00``"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("cluster.name", self.name, CLUSTERS)
        _require(self.workers >= 1, "cluster.workers", self.workers, "a whole number >= 1")
        _require(1 <= self.threads <= MAX_THREADS, "cluster.threads", self.threads, f"1 to {MAX_THREADS}")
        known = self.address is None or self.name == "dask"
        _require(known, "cluster.address", self.address, "the address of a scheduler, beside cluster=dask")


@dataclass
class Experiment(_Group):
    """A question about the method and its answer beside controls; what is None, the size decides."""

    name: str = "overfitting"
    """Which question: the options of ``experiment=`` above."""
    size: str = "quick"
    """``smoke`` (seconds, proves nothing), ``quick`` (minutes) or ``full``."""
    seeds: int | None = None
    """Networks trained from different initial weights: ``seed`` and the next ones."""
    train_samples: int | None = None
    """Training set of the overfitting network, in place of ``data.train_samples``."""
    factor: int | None = None
    """The control network has so many times the samples, and sees each so many times less often."""
    rounds: int | None = None
    """Checkpoints; the overfitting network trains ``factor * rounds`` epochs in place of ``train.epochs``."""
    validation_samples: int | None = None
    """Held-out images that accuracies are measured on, at most."""
    controls: int | None = None
    """Random masks, or random draws of filters, for each comparison."""
    finetune_epochs: int = 0
    """Of the pruning experiment: epochs that masked networks, and the unmasked one beside them, are trained on."""
    factors: list[str] | None = None
    """Of the sensitivity study: what is varied, as ``[tap, k_max]``; None varies everything."""
    grid: dict[str, list[str]] = field(default_factory=dict)
    """Of the experiments ``conditions`` and ``crossed``: factors, each with its options, ``"group.key=value ..."``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("experiment", self.name, EXPERIMENTS)
        _require_one_of("experiment.size", self.size, SIZES)
        for key in ("seeds", "train_samples", "factor", "rounds", "validation_samples", "controls"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"experiment.{key}", value, ">= 1")
        _require(self.finetune_epochs >= 0, "experiment.finetune_epochs", self.finetune_epochs, ">= 0")


@dataclass
class Tracking(_Group):
    """Services that losses, accuracies and counts are sent to, epoch by epoch, beside the tables.

    Options are their names, several as ``tracking=[tensorboard,mlflow]``. They need the extra ``tracking``.
    """

    tensorboard: bool = False
    """Event files in the run folder, under ``tensorboard``."""
    mlflow: bool = False
    """A run on the server that ``MLFLOW_TRACKING_URI`` names, or in MLflow's local default."""
    wandb: bool = False
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it on this machine."""
    project: str = "gmmcnn"
    """Experiment of MLflow, project of Weights & Biases."""


@dataclass
class Settings(_Group):
    """Everything a run depends on; the groups stand in the order of the method."""

    task: str = "run"
    """What to do: see Tasks."""
    run: str | None = None
    """Run folder: that of an earlier run to go on in, or a new one."""
    sweep: str | None = None
    """Folder of a sweep: of an earlier one to go on with or to aggregate, or of a new one."""
    seed: int = 0
    """Of everything that is drawn: weights, order of training, samples, starts."""
    device: str = "auto"
    """Where the network runs, in training, on probe samples, under masks and in experiments: ``cpu``, ``cuda``, or
    ``cuda:1`` of several GPUs; ``auto``: a GPU where torch can use one. Networks that were trained on different devices
    differ, as those of different seeds do."""
    estimate: bool = False
    """With ``task=doctor``: say how long fitting would take here."""
    compile: bool = False
    """With ``task=doctor``: compile the CPU engine for every ``pca.dims`` ahead of work, into ``NUMBA_CACHE_DIR``."""
    dry_run: bool = False
    """With ``task=run`` or ``task=extract``: say what would be tapped, how much of it there is and how long it would
    take, and do nothing."""
    quiet: bool = False
    """Write nothing but errors; ``-q`` is short for it."""
    trust: bool = False
    """Import the network or data set that a run folder names, whoever wrote it: that runs its code."""
    debug: bool = False
    """Show the traceback of a failed run."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    probe: Probe = field(default_factory=Probe)
    extract: Extract = field(default_factory=Extract)
    pca: Pca = field(default_factory=Pca)
    gmm: Gmm = field(default_factory=Gmm)
    screen: Screen = field(default_factory=Screen)
    prune: Prune = field(default_factory=Prune)
    engine: Engine = field(default_factory=Engine)
    cluster: Cluster = field(default_factory=Cluster)
    experiment: Experiment = field(default_factory=Experiment)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("task", self.task, TASKS)
        _require(0 <= self.seed <= MAX_SEED, "seed", self.seed, _A_SEED)
        known = _DEVICE.fullmatch(self.device) is not None
        _require(known, "device", self.device, "auto, cpu, cuda, or one of several as cuda:1")


class _Launcher(_Group):
    @classmethod
    def _group(cls) -> str:
        return "hydra.launcher"


@dataclass
class LocalLauncher(_Launcher):
    """Jobs of a sweep on this machine, ``hydra/launcher=local``."""

    name: str = "local"
    jobs: int | None = None
    """At once. None: one for each GPU that is visible, or else for each core."""
    threads: int | None = None
    """Of each job. None shares the cores out."""
    gpus_per_job: int | None = None
    """1: each job has a GPU of its own, and a machine without one is refused. 0: none has. None: where there are
    some."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("jobs", "threads"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"hydra.launcher.{key}", value, ">= 1")
        _require(self.gpus_per_job in (None, 0, 1), "hydra.launcher.gpus_per_job", self.gpus_per_job, "0, 1 or null")


@dataclass
class SlurmLauncher(_Launcher):
    """Jobs of a sweep as an array of Slurm jobs, ``hydra/launcher=slurm``; names as in ``hydra-submitit-launcher``."""

    name: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 60
    """Time limit of a job."""
    signal_delay_s: int = 120
    """So long before its time limit a job is asked to end, and requeued."""
    max_num_timeout: int = 3
    """Requeues of a job at its time limit, at most; it goes on where it stopped."""
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = 2
    gpus_per_node: int | None = None
    """GPUs of a job: one that asks for some and sees none fails."""
    mem_gb: int | None = None
    array_parallelism: int = 256
    """Jobs at once, at most."""
    setup: list[str] | None = None
    """Shell commands before each job, as ``[module load cuda]``."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Options of sbatch that have no name here."""
    wait: bool = True
    """Stay until all jobs have ended, and aggregate; the jobs need nobody to wait for them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("timeout_min", "nodes", "tasks_per_node", "array_parallelism"):
            _require(getattr(self, key) >= 1, f"hydra.launcher.{key}", getattr(self, key), ">= 1")
        for key in ("signal_delay_s", "max_num_timeout"):
            _require(getattr(self, key) >= 0, f"hydra.launcher.{key}", getattr(self, key), ">= 0")


LAUNCHERS: dict[str, Any] = {"local": LocalLauncher, "slurm": SlurmLauncher}
"""Option of ``hydra/launcher`` → its settings."""

GROUPS: dict[str, Any] = {f.name: f.default_factory for f in fields(Settings) if isinstance(f.default_factory, type)}
"""Config group → its dataclass."""

MOVED = {
    "demo.plant": "probe.plant",
    "demo.strength": "probe.plant_strength",
    "extract.batch_samples": "extract.forward_samples",
}
"""Settings that had another name in an earlier version → their name now."""

MADE_FROM = {
    "weights": None,
    "maps": "weights",
    "fits": "maps",
    "screening": "fits",
    "masking": "screening",
    "cell": "screening",
}
"""Product → the product that it is made from. A cell is one place of an experiment: networks, and what is asked of
them."""

DECIDED_BY: dict[str, tuple[str, ...]] = {
    "weights": (
        "seed", "data.name", "data.train_samples", "data.validation_share", "data.label_noise", "data.kwargs",
        "data.plant_wrong_labels", "data.plant_foreign",
        "model.name", "model.checkpoint", "model.kwargs", "train.epochs", "train.batch_size", "train.optimizer",
        "train.learning_rate", "train.momentum", "train.weight_decay", "train.checkpoint_epochs", "train.evaluate",
    ),
    "maps": (
        "seed", "probe.samples", "probe.batches", "probe.plant", "probe.plant_strength", "probe.plant_clipped",
        "extract.tap", "extract.layers", "extract.dtype", "extract.source", "extract.autocast",
    ),
    "fits": (
        "seed", "pca.dims", "gmm.k_min", "gmm.k_max", "gmm.n_init", "gmm.repeats", "gmm.tol", "gmm.max_iter",
        "gmm.reg_covar", "gmm.random_state", "engine.cuml",
    ),
    "screening": (
        "screen.small_cluster", "screen.min_small_clusters", "screen.ch_ratio", "screen.activation_ratio",
        "screen.min_frequency", "screen.scope", "screen.average", "screen.min_active_share",
    ),
    "masking": ("seed", "prune.controls"),
    "cell": (
        "experiment.size", "experiment.seeds", "experiment.train_samples", "experiment.factor", "experiment.rounds",
        "experiment.validation_samples", "experiment.controls", "experiment.finetune_epochs",
    ),
    "nothing": (
        "task", "run", "sweep", "estimate", "compile", "dry_run",  # what to do, and where
        "quiet", "trust", "debug",  # how to talk about it
        "data.root",  # where files lie; what is in them has a digest of its own
        "extract.forward_samples", "extract.keep_maps", "extract.memory",  # how maps are made and kept
        "prune.method",  # what is written beside the mask
        "device", "engine.name", "engine.threads", "engine.gpus",  # who computes: engines agree within their tolerances
        "cluster.name", "cluster.address", "cluster.workers", "cluster.threads", "cluster.options",  # with whose help
        "experiment.name", "experiment.factors", "experiment.grid",  # which questions are asked
        "tracking.tensorboard", "tracking.mlflow", "tracking.wandb", "tracking.project",  # who is told meanwhile
    ),
}  # fmt: skip
"""Product → the settings that decide it directly, beside those behind the product that it is made from. The one
declaration of what depends on what: every name and identity of a product is made from it, by :func:`deciding` and
:func:`behind`, so that settings which decide nothing rename nothing. Each setting stands here at least once."""


AS_BEFORE = {"engine.cuml": "never", "extract.autocast": None}
"""Settings that came later → the value that does what was done before, and that no product is named by."""


def of_a_worker(settings: "Settings") -> "Settings":
    """Settings by which a process of a cluster does its share: its own threads, and one GPU."""
    engine = replace(settings.engine, threads=settings.cluster.threads, gpus=1)
    return replace(settings, engine=engine)


def deciding(settings: "Settings", product: str) -> dict[str, Any]:
    """Settings that decide a product directly: dotted name → value."""
    values = {name: value_of(settings, name) for name in DECIDED_BY[product]}
    return {name: value for name, value in values.items() if name not in AS_BEFORE or value != AS_BEFORE[name]}


def behind(settings: "Settings", product: str) -> dict[str, Any]:
    """All settings that a product depends on, those of the products that it is made from first: name → value."""
    source = MADE_FROM[product]
    return (behind(settings, source) if source else {}) | deciding(settings, product)


def value_of(settings: "Settings", name: str) -> Any:
    """Value of a setting by its dotted name; of ``train.checkpoint_epochs`` the epochs that it stands for."""
    if name == "train.checkpoint_epochs":
        return settings.train.kept_epochs
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def setting_names() -> list[str]:
    """Dotted names of all settings, in the order of the groups."""
    names = []
    for group in fields(Settings):
        inner = GROUPS.get(group.name)
        names += [f"{group.name}.{f.name}" for f in fields(inner)] if inner else [group.name]
    return names


_SECTIONS = ("probe", "extract", "pca", "gmm", "screen")

_UNREAD = ("layers", "source", "keep_maps", "plant", "plant_strength", "plant_clipped")
"""Of the settings of these groups: what says where maps come from, what is kept of them in a run folder, and what is
planted among samples of a data set."""

_RENAMED = {
    "random_state": "seed",
    "engine": "engine.name",
    "threads": "engine.threads",
    "batch_samples": "extract.forward_samples",  # an earlier name
}


def settings_from(given: Mapping[str, Any], *, n_samples: int) -> Settings:
    """Build settings from their short names; without ``samples`` there is one batch of all samples.

    Without ``batches`` there are as many as the samples suffice for.

    Raises
    ------
    ConfigurationError
        A setting is unknown or impossible, or ``samples`` is more than there are.
    """
    sections = {name: GROUPS[name] for name in _SECTIONS}
    places = {f.name: f"{section}.{f.name}" for section, kind in sections.items() for f in fields(kind)} | _RENAMED
    for name in _UNREAD:
        del places[name]
    values: dict[str, dict[str, Any]] = {section: {} for section in (*sections, "engine", "")}
    for name, value in ({"samples": n_samples, "batches": n_samples} | dict(given)).items():
        if name not in places:
            raise ConfigurationError(f"{name}: no such setting{did_you_mean(name, places)}")
        section, _, key = places[name].rpartition(".")
        values[section][key] = value
    built = {section: GROUPS[section](**values[section]) for section in (*sections, "engine")}
    probe = built["probe"]
    n_batches, batch_size = probe.divide(n_samples)
    if not n_batches:
        raise ConfigurationError(f"samples={probe.samples}: there are {n_samples} images; expected at most those")
    probe.batches, probe.samples = n_batches, batch_size
    return Settings(**built, **values[""])
