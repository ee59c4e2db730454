"""Types of everything that an audit says; the report only formats them."""

import dataclasses
from typing import Any

from ..data.results import DataResult
from ..detectors.results import ClassifiersResult
from ..diffusion.results import ScoreResult
from ..studies.bound import BoundResult
from ..studies.likelihood import LikelihoodResult
from ..studies.search import SearchResult
from ..studies.tally import CountResult, Likeness
from .canaries import CanaryResult
from .verdict import (
    AuditSettings,
    MemberTests,
    ModelTests,
    Rate,
    SelfTest,
    Verdict,
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """q_M(t) of one target, with intervals level by level."""

    level: list[int]
    t: list[float]
    num_chains: list[int]
    num_detected: list[int]
    num_identity: list[int]
    lower: list[float]
    upper: list[float]
    isotonic: list[float]


@dataclasses.dataclass(frozen=True)
class TargetResult:
    """What the search and the count say about one target."""

    row: int
    member: bool
    curve: Curve
    t_prime: float  # the paper's, largest t with a hit
    t_prime_lower: float  # range of t' over repetitions of the search at the fitted curve
    t_prime_upper: float
    t_prime_identity: float  # by the identity classifier alone (paper, section 6)
    t_prime_alpha: float
    t_prime_alpha_lower: float  # range over repetitions, as of t'
    t_prime_alpha_upper: float
    t50: float
    t50_lower: float
    t50_upper: float
    t50_rank: float  # from the ranking chains alone, which members and controls share
    log_snr_t50: float
    log_snr_t_prime: float
    num_identity: int  # c_id+ among the plain samples
    num_detected: int  # |q|


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """One decision of the detector under one condition; see `evaluation.Roc`."""

    decision: str
    condition: str
    area: float  # NaN without positives or negatives
    area_lower: float
    area_upper: float
    found: Rate  # positives above the threshold in use
    false: Rate  # images with some negative above it
    found_rates: list[float]  # at each of evaluation.ROC_THRESHOLDS
    false_rates: list[float]


@dataclasses.dataclass(frozen=True)
class Heads:
    """How unlike the heads err on images of one kind."""

    images: str
    num_images: int
    hits: list[int]  # false hits of each head
    worst: int  # its target's row
    worst_rate: Rate
    equal_p: float  # of the test that all of them err equally often


@dataclasses.dataclass(frozen=True)
class AtThreshold:
    """What one member's answer would be at another threshold of the detectors; not tested, for it was not declared."""

    row: int
    threshold: float
    num_detected: int  # |q|
    control_detected: list[int]  # of each held-out target
    count_p: float  # of all members together
    sensitivity: Rate  # chains from low levels
    t_prime: float
    t50: float
    t50_lower: float
    t50_upper: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How often copies of a target are detected, with the target as the unit: its copies are no independent looks."""

    targets: int
    copies: int  # of each
    mean: float  # over targets; NaN without any
    lower: float  # that of the two-sided interval
    sure: float  # the same at 1 - BETA
    worst: float  # share of the target that is seen least
    worst_row: int


@dataclasses.dataclass(frozen=True)
class Gate:
    """What the classifiers passed before any chain was run."""

    attempts: dict[str, int]  # by classifier
    epochs: dict[str, int]  # of the last attempt
    dropped: int  # targets that they do not see, replaced before membership was drawn
    unseen: int  # targets that they do not see and that stay, where the gate need not open
    planted_found: int  # targets that are found as planted
    targets: int


@dataclasses.dataclass(frozen=True)
class DetectorErrors:
    """Errors of the detectors, measured."""

    description: str  # what detects, in the detector's own words
    marks: bool  # whether it looks for the mark too
    advice: str  # what makes it err less
    fingerprint_accuracy: Rate | None  # None: it does not look for the mark
    identity_accuracy: Rate
    joint_false_real: Rate  # held-out real images under fresh discs, any head
    joint_false_generated: Rate  # plain samples of the audited model, any held-out head
    gate: Gate
    sensitivity_poor: Sensitivity  # all targets in other tones and blurred, as the settings ask
    sensitivity_returns: Sensitivity  # held-out targets, as they come back from below one grey level of noise
    sensitivity_lower: float  # the smaller of both limits; 0 where neither was measured
    oracle_detected: int  # plain samples of the oracle taken for a member
    oracle_reproduced: int  # samples that are a member
    oracle_samples: int
    false_rate_upper: float  # of the held-out head that fires most, on generated images, or else of any on real ones
    threshold: float
    roc: list[RocCurve]
    heads: list[Heads]


@dataclasses.dataclass(frozen=True)
class NllDiagnostics:
    """How the densities of a group came about; means are over the images that converged."""

    outcomes: dict[str, int]  # images by `OUTCOMES`
    prior_nats: float  # mean for each dimension
    divergence_nats: float  # likewise; the sum of both is the log density
    image_error: float  # root mean square of one image's own standard error in bits/dim; nan if nothing tells it
    median_evaluations: float  # of the network, for one image over its repeats
    most_evaluations: int


@dataclasses.dataclass(frozen=True)
class NllGroup:
    """Density of one group of images under the probability-flow ODE."""

    name: str
    bits_per_dim: list[float]
    mean: float
    standard_error: float
    not_converged: int
    diagnostics: NllDiagnostics | None = None


@dataclasses.dataclass(frozen=True)
class MemberNll:
    """Density of one member; descriptive, no part of the verdict."""

    row: int
    bits_per_dim: float | None
    rank_p: float | None  # among the held-out targets


@dataclasses.dataclass(frozen=True)
class NllSnapshot:
    """Densities of the followed groups at one length of training."""

    step: int
    groups: list[NllGroup]
    member: list[float]  # bits/dim of each, nan where not converged
    rank_p: list[float | None]  # among the held-out targets


@dataclasses.dataclass(frozen=True)
class BoundCell:
    """One term of the Darboux sum; densities in nats."""

    t_low: float
    t_high: float
    t_sup: float  # where E[p(x')] is largest
    log_sup: float
    log_term: float  # with the cell's width in sigma
    effective: float  # sample size of that mean
    num_chains: int


@dataclasses.dataclass(frozen=True)
class Bound:
    """The upper Darboux sum of the paper's eq. 9 for one member, up to both t'; nats. It bounds no probability."""

    row: int
    t_prime: float
    log_sum: float  # up to t'; -inf where no chain came back
    t_prime_alpha: float
    log_sum_alpha: float
    cells: list[BoundCell]  # up to t'; t'_alpha cuts one of them
    t: list[float]  # fine levels
    log_mean: list[float]  # log E[p(x')] at each
    effective: list[float]
    not_converged: int  # densities left out
    num_densities: int
    trace_error: float  # standard error of one density by the trace's estimate
    t_min: float


@dataclasses.dataclass(frozen=True)
class StageResults:
    """What the audit is made of: the stages' results."""

    data: DataResult
    classifiers: ClassifiersResult
    score: ScoreResult
    count: CountResult
    search: SearchResult
    likelihood: LikelihoodResult | None = None  # None: not run, as the next
    bound: BoundResult | None = None


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """Everything that the report shows; holds integer counts, statistics of them, and no times."""

    name: str
    verdict: Verdict
    targets: list[TargetResult]
    model: ModelTests
    tests: list[MemberTests]
    detector: DetectorErrors
    nll: list[NllGroup]
    num_train: int
    num_samples: int
    num_fingerprint: int
    floor: float  # of t'_alpha
    sampler: str
    sde: str
    num_levels: int
    t_min_likelihood: float
    evaluations: dict[str, dict[str, int]]
    strategy: str
    strategy_misses: str
    exhaustive_evaluations: int  # of the same search with the exhaustive strategy
    settings: AuditSettings
    provenance: dict[str, Any]
    stamped: bool = True  # False: targets carry no mark
    self_tests: list[SelfTest] = dataclasses.field(default_factory=list)
    thresholds: list[AtThreshold] = dataclasses.field(default_factory=list)
    hits: list[Likeness] = dataclasses.field(default_factory=list)  # the first samples detected as a member
    near_misses: list[Likeness] = dataclasses.field(default_factory=list)  # nearest to a member of those not detected
    snapshots: list[NllSnapshot] = dataclasses.field(default_factory=list)
    bound: list[Bound] = dataclasses.field(default_factory=list)
    nll_members: list[MemberNll] = dataclasses.field(default_factory=list)
    canaries: CanaryResult | None = None
