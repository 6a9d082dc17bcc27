"""Numbers and names that several modules must agree on.

Settings a user may turn stand in :mod:`gmmcnn.config`; these are properties of the algorithm. Numbers that the CUDA
kernels need too are repeated in ``kernels/common.cuh``, and a test compares the two.
"""

from enum import IntEnum, StrEnum


class Stream(IntEnum):
    """Random streams of a run: ``numpy.random.default_rng([seed, stream])``, one for every purpose.

    No draw is made by the seed alone: numpy reads that as stream 0. Starts of mixtures are drawn by counter
    (:mod:`gmmcnn.mixture.random_numbers`), and torch's numbers come from generators of its own.
    """

    HOLD_OUT = 0
    TRAINING_SUBSET = 1
    WRONG_LABELS = 2
    PLANTED = 3
    PROBE = 100
    PROBE_NOISE = 101
    PLANTED_FOR_EXPERIMENTS = 103
    RANDOM_MASKS = 104
    SINGLE_MASKS = 105
    RANDOM_SELECTIONS = 106
    BOOTSTRAP = 107
    TRANSFORMS = 108
    """Of a map-style data set, which draws by torch."""
    CARRIERS = 109
    MONITORED = 110
    VALIDATION = 111
    MATCHED_MASKS = 112
    LEFT_OUT = 120
    """Training samples that a network is trained without."""
    TIED = 121
    """Filters that are tied to samples, and which."""


class Status(StrEnum):
    """What became of a filter's clustering in a probe batch."""

    OK = "ok"
    DEAD = "dead"
    """The scores do not vary."""
    TOO_FEW_DISTINCT = "too_few_distinct"
    """Fewer distinct points than ``k_min``: nothing can be fitted."""
    PERFECTLY_SEPARATED = "perfectly_separated"
    """The chosen clusters have no spread that the precision of the data could tell from none: CH is infinite."""
    UNDEFINED = "undefined"
    """Mixtures were fitted, and none has a Calinski-Harabasz index."""
    NEAR_DEAD = "near_dead"
    """Active on too few samples to be judged, says the screening."""


MAX_DIMS = 8
"""Largest d that the compiled engines serve."""

MAX_COMPONENTS = 32
"""Largest K that the compiled engines serve."""

MIN_VARIANCE = 1e-10
"""Floor of every conditional variance of a component, relative to the filter's mean score variance; ``reg_covar`` is
one too."""

MIN_MEMBERSHIP = 2.3e-15
"""A component that holds less than this sum of responsibilities is dead: it keeps its parameters and gets weight 0."""

LLOYD_TOL = 1e-4
"""Lloyd's iteration stops when its centres together move by no more than this (squared, relative to the mean score
variance)."""

LLOYD_MAX_ITER = 300
"""Lloyd's iteration stops after so many rounds."""

CH_TIE = 1e-9
"""A larger K wins only if its Calinski-Harabasz index is larger by more than this share."""

CH_ROUNDING = 8.0
"""A dispersion is rounding where no offset need be larger than so many units in the last place of its coordinate."""

SMALL_SHARE = 0.25
"""λ·K_max/N that is aimed for where λ is not given: a small cluster is a quarter of an average one."""

STRICT = 0.1
"""Below this λ·K_max/N hardly any filter has a small cluster: only isolated samples are found."""

SATURATED = 0.3
"""Above this λ·K_max/N chance alone makes small clusters, in any filter."""

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Philox-4x32-10: Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3* (2011)."""

MAX_STARTS = 1 << 26
"""Starts that the random counter tells apart."""
