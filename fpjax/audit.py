"""From the stages' results to the answer: every statistic with its interval, the tests, and the verdict.

Probabilities of the search and the count belong to the stochastic sampler that ran; densities belong to the
probability-flow ODE. They are different distributions once the score is learned, and are never compared here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from . import errors, stats
from .bound import darboux_cells, log_darboux_sum
from .checks import in_range
from .likelihood import OUTCOMES
from .sde import Process, TimeGrid, log_snr
from .strategies import CONFIRM, CURVE, MISSES, RANK

REPRODUCED, MEMORISED = "reproduced", "memorised"
ASSUMPTION = (
    "no mark was planted: that the held-out targets differ from the training images in nothing but the training "
    "(exchangeable) is assumed, not made so"
)
LEAK, NONE_FOUND, INCONCLUSIVE = "leak", "none found", "inconclusive"


@dataclasses.dataclass(frozen=True)
class AuditSettings:
    """Levels of the tests and what a verdict needs.

    Attributes:
      leak_level: of the test that counted reproductions exceed the false-positive rate.
      rank_level: of the test that the member's t50 ranks above the held-out targets'.
      min_sensitivity: lower limit of the detectors' sensitivity that "none found" needs.
      confidence: of every interval.
    """

    leak_level: float = 0.01
    rank_level: float = 0.05
    min_sensitivity: float = 0.9
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("leak_level", "rank_level", "min_sensitivity", "confidence"):
            in_range(f"audit.{name}", getattr(self, name), 0.0005, 0.9999)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A fraction with its two-sided interval."""

    hits: int
    trials: int
    estimate: float
    lower: float
    upper: float


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
class MemberTests:
    """Tests of one member."""

    row: int
    expected: float  # E|q| = n / N
    rate: Rate  # |q| / n; the upper end divided by the sensitivity's lower limit
    fewer_p: float  # the paper's test
    leak_p: float
    rank_p: float
    num_controls: int
    detectable_rate: float  # seen by the leak test with a power of 80 %
    nll_rank_p: float | None  # among the held-out targets
    bits_per_dim: float | None


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """One decision of the detector under one condition; see `errors.Roc`."""

    decision: str
    condition: str
    area: float  # NaN without positives or negatives
    area_lower: float
    area_upper: float
    found: Rate  # positives above the threshold in use
    false: Rate  # images with some negative above it
    found_rates: list[float]  # at each of errors.ROC_THRESHOLDS
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
class SelfTest:
    """One part of the audit of the auditor."""

    what: str
    possible: bool  # whether as many samples and controls can tell
    passed: bool
    text: str


@dataclasses.dataclass(frozen=True)
class AtThreshold:
    """What one member's answer would be at another threshold of the detectors."""

    row: int
    threshold: float
    num_detected: int  # |q|
    false_hits: int  # of `false_images` images, generated where there are controls, real otherwise
    false_images: int
    leak_p: float
    sensitivity: Rate  # chains from low levels
    t_prime: float
    t50: float
    t50_lower: float
    t50_upper: float


@dataclasses.dataclass(frozen=True)
class Detector:
    """Errors of the detectors, measured."""

    description: str  # what detects, in the detector's own words
    marks: bool  # whether it looks for the mark too
    advice: str  # what makes it err less
    fingerprint_accuracy: Rate | None  # None: it does not look for the mark
    identity_accuracy: Rate
    joint_false_real: Rate  # held-out real images under fresh discs, any head
    joint_false_generated: Rate  # plain samples of the audited model, any held-out head
    sensitivity_low: Rate  # chains of the audited model from below one grey level of noise
    sensitivity_oracle: Rate  # reproductions by the empirical oracle
    sensitivity_poor: Rate | None  # all targets in other tones and blurred, as the settings ask; None: they do not
    oracle_detected: int  # plain samples of the oracle taken for a member
    oracle_reproduced: int  # of those that are a member
    oracle_samples: int
    oracle_false: Rate  # oracle samples, any held-out head
    sensitivity_lower: float  # one-sided; the smallest of the first two kinds and all members
    false_rate_upper: float  # one-sided, generated images
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
class Likeness:
    """How far a plain sample is from a member, pixel by pixel, in model range."""

    target: int  # row of the member
    mse: float
    mae: float
    score: float | None  # joint score as that member; None: above the threshold


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer, in one word, with why and what would settle it."""

    verdict: str
    kinds: list[str]
    reasons: list[str]
    to_settle: list[str]


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """Everything that the report shows; holds integer counts, statistics of them, and no times."""

    name: str
    verdict: Verdict
    targets: list[TargetResult]
    tests: list[MemberTests]
    detector: Detector
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


def _rate(hits: int, trials: int, confidence: float) -> Rate:
    """A fraction with its exact interval; no trials give the whole range."""
    if trials == 0:
        return Rate(0, 0, float("nan"), 0.0, 1.0)
    lower, upper = stats.clopper_pearson(hits, trials, confidence=confidence)
    return Rate(int(hits), int(trials), hits / trials, float(lower), float(upper))


def _one_sided(rate: Rate, side: Literal["lower", "upper"], confidence: float) -> float:
    """One-sided limit of a fraction; no trials give the useless one."""
    if rate.trials == 0:
        return 0.0 if side == "lower" else 1.0
    lower, upper = stats.clopper_pearson(rate.hits, rate.trials, confidence=confidence, side=side)
    return float(lower if side == "lower" else upper)


def _roc(content: dict[str, Any], confidence: float) -> RocCurve:
    """Rates and area of a curve as counted."""
    positives, negatives, images = (content[f"num_{name}"] for name in ("positives", "negatives", "images"))
    area = stats.Area(float("nan"), 0.0, 1.0)
    if positives and negatives:
        area = stats.roc_area(
            content["positives_above"],
            content["negatives_above"],
            positives=positives,
            negatives=negatives,
            units=images,
            confidence=confidence,
        )
    return RocCurve(
        content["decision"],
        content["condition"],
        *area,
        found=_rate(positives - content["missed"], positives, confidence),
        false=_rate(content["false_images"], images if negatives else 0, confidence),
        found_rates=[n / positives for n in content["positives_above"]] if positives else [],
        false_rates=[n / negatives for n in content["negatives_above"]] if negatives else [],
    )


def _heads(images: str, hits: list[int], num_images: int, *, first: int, settings: AuditSettings, seed: int) -> Heads:
    """Heads of the targets from row `first` on."""
    worst = int(np.argmax(hits))
    rate = _rate(hits[worst], num_images, settings.confidence)
    return Heads(images, num_images, list(hits), first + worst, rate, stats.equal_counts_p(hits, seed=seed))


def _detector(
    classifiers: dict[str, Any], count: dict[str, Any], settings: AuditSettings, *, members: int, seed: int
) -> Detector:
    """The detector's errors from what the stages counted."""
    real, oracle, c, said = classifiers["errors"], count["oracle"], settings.confidence, classifiers["detector"]
    counted = [roc for roc in real["roc"] + count["roc"] if said["marks"] or roc["decision"] == errors.IDENTITY]
    curves = [_roc(roc, c) for roc in counted]
    plain = {roc.decision: roc for roc in curves if roc.condition == "plain"}

    def accuracy(roc: RocCurve) -> Rate:
        trials = roc.found.trials + roc.false.trials
        return _rate(roc.found.hits + roc.false.trials - roc.false.hits, trials, c)

    generated = _rate(count["control_hit_samples"], count["num_samples"] if count["num_controls"] else 0, c)
    lows = [_rate(hits, count["sensitivity_chains"], c) for hits in count["sensitivity_detected"][:members]]
    seens = [_rate(*pair, c) for pair in zip(oracle["chains_detected"], oracle["chains_reproduced"], strict=True)]
    low, seen = (_rate(sum(r.hits for r in rates), sum(r.trials for r in rates), c) for rates in (lows, seens))
    decision = errors.JOINT if said["marks"] else errors.IDENTITY
    real_joint = plain[decision].false
    heads = [_heads("real", real["false_by_head"], real["num_images"], first=0, settings=settings, seed=seed)]
    if count["num_controls"]:
        hits = count["num_detected"][members:]
        heads.append(_heads("generated", hits, count["num_samples"], first=members, settings=settings, seed=seed))
    return Detector(
        **said,
        fingerprint_accuracy=accuracy(plain[errors.FINGERPRINT]) if said["marks"] else None,
        identity_accuracy=accuracy(plain[errors.IDENTITY]),
        joint_false_real=real_joint,
        joint_false_generated=generated,
        sensitivity_low=low,
        sensitivity_oracle=seen,
        sensitivity_poor=next((r.found for r in curves if (r.decision, r.condition) == (decision, errors.POOR)), None),
        oracle_detected=sum(oracle["num_detected"][:members]),
        oracle_reproduced=sum(oracle["reproduced"]),
        oracle_samples=oracle["num_samples"],
        oracle_false=_rate(oracle["control_hit_samples"], oracle["num_samples"] if count["num_controls"] else 0, c),
        sensitivity_lower=min(_one_sided(r, "lower", 1 - (1 - c) / members) for r in lows + seens),
        false_rate_upper=_one_sided(generated if generated.trials else real_joint, "upper", c),
        threshold=classifiers["threshold"],
        roc=curves,
        heads=heads,
    )


def _memoriser_test(
    what: str, hits: list[int], true: list[int], trials: int, false: tuple[int, int], settings: AuditSettings
) -> SelfTest:
    """Whether the perfect memoriser's reproductions of each member are called a leak, by the test that members get.

    They must be where detectors as sensitive as "none found" needs, without false hits, would see enough of the `true`
    ones with a probability of 99 %.
    """
    level = settings.leak_level / len(hits)

    def p(hit: int, false_hits: int) -> float:
        return stats.leak_p(hit, trials, false_hits, false[1], beta=level / 10)

    enough = [p(int(binom.ppf(0.01, n, settings.min_sensitivity)), 0) <= level for n in true]
    p_values = [p(hit, false[0]) for hit in hits]
    passed = all(value <= level for value, can in zip(p_values, enough, strict=True) if can)
    # The member for which it is closest to failing.
    worst = max(range(len(hits)), key=lambda i: (enough[i], p_values[i]))
    seen = f"{hits[worst]} of the {true[worst]} in {trials} {what} are seen"
    text = f"the perfect memoriser is {'' if passed else 'not '}found: {seen} (leak test p = {p_values[worst]:.2g})"
    if not any(enough):
        text = f"{trials} {what} of the perfect memoriser hold {max(true)} reproductions, too few for the leak test"
    return SelfTest(f"memoriser, {what}", any(enough), passed, text)


def _control_test(
    what: str, hits: list[int], alone: list[int], any_hits: int, trials: int, settings: AuditSettings
) -> SelfTest:
    """Whether no held-out head is called a leak by the test that members get, against the other held-out heads.

    Args:
      hits: images that each takes for its target.
      alone: of those, images that no other takes for its own.
      any_hits: images that some of them does.
    """
    name = f"controls, {what}"
    if len(hits) < 2:
        return SelfTest(name, False, True, f"{what}: two held-out targets are needed to audit one against the other")
    level = settings.leak_level / len(hits)
    p_values = [
        stats.leak_p(hit, trials, any_hits - own, trials, beta=level / 10) for hit, own in zip(hits, alone, strict=True)
    ]
    worst = int(np.argmin(p_values))
    passed = p_values[worst] > level
    text = (
        f"{what}: {'no' if passed else 'a'} held-out target is called a leak; at most {hits[worst]} of {trials} images "
        f"are taken for one, {any_hits - alone[worst]} for some other (leak test p = {p_values[worst]:.2g}, level "
        f"{level:.2g})"
    )
    return SelfTest(name, True, passed, text)


def audit_auditor(count: dict[str, Any], false_real: Rate, settings: AuditSettings) -> list[SelfTest]:
    """The same audit of what is known: the perfect memoriser must be found, held-out targets must not.

    Args:
      count: content of count.json.
      false_real: joint false hits on real images, which decide where there are no controls.
    """
    oracle, controls = count["oracle"], count["num_controls"]
    members = len(oracle["reproduced"])
    samples, chains = oracle["num_samples"], oracle["num_chains"]
    real = false_real.hits, false_real.trials
    tests = [
        _memoriser_test(
            "plain samples",
            oracle["num_detected"][:members],
            oracle["reproduced"],
            samples,
            (oracle["control_hit_samples"], samples) if controls else real,
            settings,
        ),
        _memoriser_test(
            "chains",
            oracle["chains_detected"],
            oracle["chains_reproduced"],
            chains,
            (oracle["chains_control_hits"], members * chains) if controls else real,
            settings,
        ),
    ]
    for what, counted in (("audited model", count), ("perfect memoriser", oracle)):
        hits = counted["num_detected"][members:]
        some = counted["control_hit_samples"]
        tests.append(_control_test(what, hits, counted["control_alone"], some, counted["num_samples"], settings))
    return tests


def _target(
    row: int,
    search: dict[str, Any],
    count: dict[str, Any],
    grid: TimeGrid,
    sde: Process,
    *,
    floor: float,
    settings: AuditSettings,
    seed: int,
) -> TargetResult:
    """Curve and its summaries; all phases pooled, but for the rank and for what needs chains that chose no level."""
    table = {
        name: np.asarray(search[name])
        for name in ("target", "phase", "level", "num_chains", "num_detected", "num_identity")
    }
    mine = table["target"] == row
    levels = np.unique(table["level"][mine])
    pooled = {
        name: np.asarray([table[name][mine & (table["level"] == level)].sum() for level in levels])
        for name in ("num_chains", "num_detected", "num_identity")
    }
    t = np.asarray(grid.t, np.float64)
    times, hits, chains = t[levels], pooled["num_detected"], pooled["num_chains"]
    rank = mine & (table["phase"] == RANK)
    lower, upper = stats.clopper_pearson(hits, chains, confidence=settings.confidence)
    t50 = stats.t50(times, hits, chains)
    t50_lower, t50_upper = stats.t50_interval(times, hits, chains, seed=seed, confidence=settings.confidence)
    # t' grows with the chains: it is that of the curve alone, where there is one.
    alone = mine & (table["phase"] >= CURVE) if (mine & (table["phase"] >= CURVE)).any() else rank
    curve_levels = np.unique(table["level"][alone])
    curve_hits, curve_chains, curve_identity = (
        np.asarray([table[name][alone & (table["level"] == level)].sum() for level in curve_levels])
        for name in ("num_detected", "num_chains", "num_identity")
    )
    t_prime = stats.t_prime(t[curve_levels], curve_hits)
    t_lower, t_upper = stats.t_prime_range(t[curve_levels], curve_hits, curve_chains, coverage=settings.confidence)
    fresh = mine & (table["phase"] == CONFIRM)
    tested = tuple(table[name][fresh] for name in ("level", "num_detected", "num_chains"))
    tested = (t[tested[0]], *tested[1:]) if fresh.any() else (times, hits, chains)
    alpha_of = {"floor": floor, "alpha": 1 - settings.confidence}
    alpha_lower, alpha_upper = stats.t_prime_alpha_range(*tested, **alpha_of, coverage=settings.confidence)
    return TargetResult(
        row=row,
        member=row < search["num_members"],
        curve=Curve(
            levels.tolist(),
            times.tolist(),
            chains.tolist(),
            hits.tolist(),
            pooled["num_identity"].tolist(),
            lower.tolist(),
            upper.tolist(),
            stats.isotonic_rate(hits, chains).tolist(),
        ),
        t_prime=t_prime,
        t_prime_lower=t_lower,
        t_prime_upper=t_upper,
        t_prime_identity=stats.t_prime(t[curve_levels], curve_identity),
        t_prime_alpha=stats.t_prime_alpha(*tested, **alpha_of),
        t_prime_alpha_lower=alpha_lower,
        t_prime_alpha_upper=alpha_upper,
        t50=t50,
        t50_lower=float(t50_lower),
        t50_upper=float(t50_upper),
        t50_rank=stats.t50(t[table["level"][rank]], table["num_detected"][rank], table["num_chains"][rank]),
        log_snr_t50=float(log_snr(sde, t50)),
        log_snr_t_prime=float(log_snr(sde, t_prime)) if t_prime else float("inf"),
        num_identity=count["num_identity"][row],
        num_detected=count["num_detected"][row],
    )


def _at_thresholds(
    row: int,
    results: dict[str, dict[str, Any]],
    false_real: Rate,
    grid: TimeGrid,
    settings: AuditSettings,
    *,
    beta: float,
    seed: int,
) -> list[AtThreshold]:
    """One member's answer at every threshold that was counted, the one in use among them."""
    classifiers, count, search = (results[stage] for stage in ("classifiers", "count", "search"))
    real, c = classifiers["errors"], settings.confidence
    mine = np.asarray(search["target"]) == row
    phase, level, num_chains = (np.asarray(search[name])[mine] for name in ("phase", "level", "num_chains"))
    levels, place = np.unique(level, return_inverse=True)
    times = np.asarray(grid.t, np.float64)[levels]

    def pooled(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=len(levels)).astype(int)

    def column(main: Any, others: Any) -> np.ndarray:
        return np.concatenate([np.asarray(main)[..., None], np.asarray(others)], axis=-1)

    returned = column(search["num_detected"], search["num_detected_at"])[mine]
    detected = column(count["num_detected"][row], count["num_detected_at"][row])
    seen = column(count["sensitivity_detected"][row], count["sensitivity_detected_at"][row])
    false, images = column(count["control_hit_samples"], count["control_hit_samples_at"]), count["num_samples"]
    if not count["num_controls"]:
        false, images = column(false_real.hits, real["false_images_at"]), real["num_images"]
    found = {}
    for i, threshold in enumerate([classifiers["threshold"], *classifiers["thresholds"]]):
        hits = pooled(returned[:, i])
        low, high = stats.t50_interval(times, hits, pooled(num_chains), seed=seed, confidence=c)
        found[threshold] = AtThreshold(
            row,
            threshold,
            int(detected[i]),
            int(false[i]),
            images,
            stats.leak_p(detected[i], count["num_samples"], false[i], images, beta=beta),
            _rate(int(seen[i]), count["sensitivity_chains"], c),
            # Of the curve's chains alone, where there are such, as for the threshold in use.
            stats.t_prime(times, pooled(returned[:, i] * (phase >= min(CURVE, phase.max())))),
            stats.t50(times, hits, pooled(num_chains)),
            float(low),
            float(high),
        )
    return [found[threshold] for threshold in sorted(found)]


def _nll(likelihood: dict[str, Any]) -> list[NllGroup]:
    """Groups of images with the mean of those that converged."""
    groups = []
    for name in dict.fromkeys(likelihood["group"]):
        rows = [i for i, group in enumerate(likelihood["group"]) if group == name]
        bits = np.asarray([likelihood["bits_per_dim"][i] for i in rows if likelihood["converged"][i]], np.float64)
        error = float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan")
        mean = float(bits.mean()) if len(bits) else float("nan")
        groups.append(
            NllGroup(name, bits.tolist(), mean, error, len(rows) - len(bits), _nll_diagnostics(likelihood, rows))
        )
    return groups


def _nll_diagnostics(likelihood: dict[str, Any], rows: list[int]) -> NllDiagnostics:
    """Of a group's rows."""

    def column(name: str) -> np.ndarray:
        values = np.asarray([likelihood[name][i] for i in rows], np.float64)
        return values[np.isfinite(values)]

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else float("nan")

    # Over repeats the spread is of dequantisation and probes alike.
    errors, dims = column("repeat_error"), likelihood["num_dims"]
    errors = errors if len(errors) else column("probe_error")
    outcomes = [likelihood["outcome"][i] for i in rows]
    evaluations = [likelihood["nfe"][i] for i in rows]
    return NllDiagnostics(
        outcomes={name: outcomes.count(name) for name in OUTCOMES},
        prior_nats=mean(column("prior_nats")) / dims,
        divergence_nats=mean(column("delta_nats")) / dims,
        image_error=float(np.sqrt(mean(errors**2))) / (dims * np.log(2)),
        median_evaluations=float(np.median(evaluations)) if evaluations else float("nan"),
        most_evaluations=max(evaluations, default=0),
    )


def _nll_of_members(likelihood: dict[str, Any], num_members: int) -> tuple[list[float], list[float | None]]:
    """Bits/dim of each member, nan where not converged, and the p-value of its rank among the held-out targets."""
    table = list(
        zip(likelihood["group"], likelihood["row"], likelihood["bits_per_dim"], likelihood["converged"], strict=True)
    )
    # Marked in the same way; one whose density did not converge counts as likelier than the member.
    held_out = [bits if ok else -np.inf for group, _, bits, ok in table if group == "held-out target"]
    own = {row: bits for group, row, bits, ok in table if group == "member" and ok}
    members = [own.get(row, float("nan")) for row in range(num_members)]
    # A member that is likelier than held-out targets has fewer bits than they.
    ranks = [
        stats.rank_p_value(-bits, [-b for b in held_out]) if held_out and np.isfinite(bits) else None
        for bits in members
    ]
    return members, ranks


def _snapshots(likelihood: dict[str, Any], num_members: int, *, num_steps: int) -> list[NllSnapshot]:
    """The followed images at each kept length of training, and at its end; they are the study's first rows."""
    if not likelihood["snapshots"]:
        return []
    followed, found = len(likelihood["snapshots"][0]["nats"]), []
    end = {name: values[:followed] for name, values in likelihood.items() if isinstance(values, list)}
    for snapshot in [*likelihood["snapshots"], {"step": num_steps}]:
        table = {"num_dims": likelihood["num_dims"], **end, **snapshot}
        members, ranks = _nll_of_members(table, num_members)
        found.append(NllSnapshot(snapshot["step"], _nll(table), members, ranks))
    return found


def _bound(table: dict[str, Any], target: TargetResult, grid: TimeGrid) -> Bound:
    """The sum of one member up to both t'."""
    rows = [i for i, row in enumerate(table["target"]) if row == target.row]
    level, chains, lost = (np.asarray([table[n][i] for i in rows]) for n in ("level", "num_chains", "not_converged"))
    log_mean, effective = (np.asarray([table[n][i] for i in rows], np.float64) for n in ("log_mean", "effective"))
    t, edges = np.asarray(grid.t, np.float64), np.asarray(table["edges"][target.row])

    def cells_to(end: float) -> list[Any]:
        top = grid.level_at(end) if end > 0 else 0
        return darboux_cells(np.asarray(grid.std, np.float64), edges, level, log_mean, end=top)

    cells = []
    for cell in cells_to(target.t_prime):
        at = int(np.flatnonzero(level == cell.at)[0])
        low, high, sup = (float(t[i]) for i in (cell.low, cell.high, cell.at))
        cells.append(BoundCell(low, high, sup, cell.log_sup, cell.log_term, float(effective[at]), int(chains[at])))
    return Bound(
        row=target.row,
        t_prime=target.t_prime,
        log_sum=log_darboux_sum(cells_to(target.t_prime)),
        t_prime_alpha=target.t_prime_alpha,
        log_sum_alpha=log_darboux_sum(cells_to(target.t_prime_alpha)),
        cells=cells,
        t=t[level].tolist(),
        log_mean=log_mean.tolist(),
        effective=effective.tolist(),
        not_converged=int(lost.sum()),
        num_densities=int(chains.sum()),
        trace_error=float("nan") if table["trace_error"] is None else table["trace_error"],
        t_min=table["t_min"],
    )


def decide(
    tests: list[MemberTests],
    detector: Detector,
    settings: AuditSettings,
    *,
    num_train: int,
    self_tests: Sequence[SelfTest] = (),
) -> Verdict:
    """The verdict: leak, none found, or inconclusive, which it always is where the audit of the auditor fails.

    With K members every test is taken at its level divided by K (Bonferroni).
    """
    k = len(tests)
    kinds, reasons, settle = [], [], []
    for test in tests:
        who = f"member {test.row}: " if k > 1 else ""
        if test.leak_p <= settings.leak_level / k:
            kinds.append(REPRODUCED)
            reasons.append(
                f"{who}{test.rate.hits} of {test.rate.trials} plain samples are the target, more than false "
                f"positives explain (leak test p = {test.leak_p:.2g}, level {settings.leak_level / k:g})"
            )
        if test.rank_p <= settings.rank_level / k:
            kinds.append(MEMORISED)
            reasons.append(
                f"{who}its t50 ranks above the {test.num_controls} held-out targets "
                f"(rank test p = {test.rank_p:.2g}, level {settings.rank_level / k:g})"
            )
    failed = [test for test in self_tests if test.possible and not test.passed]
    if failed:
        why = [f"the audit of the auditor failed ({test.what}): {test.text}" for test in failed]
        why += [f"without that it would have been a leak: {reason}" for reason in reasons]
        return Verdict(INCONCLUSIVE, [], why, [f"{detector.advice} until the audit of the auditor passes"])
    if kinds:
        return Verdict(LEAK, sorted(set(kinds)), reasons, [])
    blind = detector.sensitivity_lower < settings.min_sensitivity
    weak = max(test.detectable_rate for test in tests) > 1 / num_train
    if blind:
        reasons.append(
            f"the detectors' sensitivity is shown to be at least {detector.sensitivity_lower:.2f} only; "
            f"{settings.min_sensitivity:g} is needed"
        )
        settle.append(f"{detector.advice}, or run more count.sensitivity_chains and count.oracle_chains")
    if weak:
        rate = max(test.detectable_rate for test in tests)
        reasons.append(
            f"a reproduction rate of {rate:.2g} or more would have been seen with a power of 80 %, "
            f"but a memoriser's is 1/N = {1 / num_train:.2g}"
        )
        false = detector.joint_false_generated
        settle.append(
            f"{detector.advice}: {false.hits} of {false.trials} plain samples are taken for targets that the model "
            "never saw"
            if false.trials and false.lower > 1 / num_train
            else f"raise count.num_samples from {tests[0].rate.trials}"
        )
    if blind or weak:
        return Verdict(INCONCLUSIVE, [], reasons, settle)
    return Verdict(
        NONE_FOUND,
        [],
        [
            f"{max(test.rate.hits for test in tests)} of {tests[0].rate.trials} plain samples are a target, no more "
            "than false positives explain, and no member's t50 stands out from the held-out targets'"
            + (
                ""
                if tests[0].num_controls + 1 >= k / settings.rank_level
                else f" (with {tests[0].num_controls} held-out targets the rank test cannot reject)"
            )
        ],
        [],
    )


def make_audit(
    results: dict[str, dict[str, Any]],
    grid: TimeGrid,
    sde: Process,
    settings: AuditSettings,
    *,
    name: str,
    sampler: str,
    seed: int,
    provenance: dict[str, Any],
) -> AuditResult:
    """Joins the stages' results.

    Args:
      results: contents of data.json, score.json, classifiers.json, count.json, search.json, likelihood.json,
        bound.json.
      seed: of the bootstrap.
      provenance: versions, devices and the like, shown as they are.
    """
    count, search, likelihood = results["count"], results["search"], results["likelihood"]
    num_train = results["data"]["num_train"]
    num_targets, num_members = len(count["num_detected"]), search["num_members"]
    detector = _detector(results["classifiers"], count, settings, members=num_members, seed=seed)
    self_tests = audit_auditor(count, detector.joint_false_real, settings)
    floor = max(1 / num_train, detector.false_rate_upper)
    targets = [
        _target(row, search, count, grid, sde, floor=min(floor, 0.999), settings=settings, seed=seed + row)
        for row in range(num_targets)
    ]
    controls = [target.t50_rank for target in targets[num_members:]]
    groups, (bits, nll_ranks) = _nll(likelihood), _nll_of_members(likelihood, num_members)
    n = count["num_samples"]
    real = detector.joint_false_real
    false = (count["control_hit_samples"], n) if count["num_controls"] else (real.hits, real.trials)
    # A tenth of the level goes to the uncertainty of the false-positive rate.
    beta = settings.leak_level / num_members / 10
    tests = []
    for row in range(num_members):
        hits = count["num_detected"][row]
        lower, upper = stats.reproduction_interval(
            hits, n, sensitivity_lower=max(detector.sensitivity_lower, 1e-6), confidence=settings.confidence
        )
        tests.append(
            MemberTests(
                row=row,
                expected=n / num_train,
                rate=Rate(hits, n, hits / n, float(lower), float(upper)),
                fewer_p=stats.fewer_than_expected_p(hits, n, 1 / num_train),
                leak_p=stats.leak_p(hits, n, *false, beta=beta),
                rank_p=stats.rank_p_value(targets[row].t50_rank, controls),
                num_controls=len(controls),
                detectable_rate=stats.detectable_rate(
                    n,
                    *false,
                    alpha=settings.leak_level / num_members,
                    beta=beta,
                    sensitivity=max(detector.sensitivity_lower, 1e-6),
                ),
                nll_rank_p=nll_ranks[row],
                bits_per_dim=bits[row] if np.isfinite(bits[row]) else None,
            )
        )
    stamped = results["data"].get("fingerprint_byte", 0) is not None
    verdict = decide(tests, detector, settings, num_train=num_train, self_tests=self_tests)
    if not stamped:
        verdict = dataclasses.replace(verdict, reasons=[*verdict.reasons, ASSUMPTION])
    return AuditResult(
        name=name,
        verdict=verdict,
        targets=targets,
        tests=tests,
        detector=detector,
        nll=groups,
        num_train=num_train,
        num_samples=n,
        num_fingerprint=count["num_fingerprint"],
        floor=floor,
        sampler=sampler,
        sde=type(sde).__name__,
        num_levels=grid.num_levels,
        t_min_likelihood=likelihood["t_min"],
        evaluations={
            stage: {"useful": results[stage]["evaluations"], "executed": results[stage]["executed"]}
            for stage in ("count", "search")
        },
        strategy=search["strategy"],
        strategy_misses=MISSES[search["strategy"]],
        exhaustive_evaluations=search["exhaustive_evaluations"],
        settings=settings,
        provenance=provenance,
        stamped=stamped,
        self_tests=self_tests,
        thresholds=[
            row
            for member in targets[:num_members]
            for row in _at_thresholds(member.row, results, real, grid, settings, beta=beta, seed=seed + member.row)
        ],
        hits=[Likeness(**hit, score=None) for hit in count["hits"]],
        near_misses=[Likeness(**miss) for miss in count["near_misses"]],
        snapshots=_snapshots(likelihood, num_members, num_steps=results["score"]["num_steps"]),
        bound=[_bound(results["bound"], target, grid) for target in targets[:num_members]]
        if results["bound"]["target"]
        else [],
    )
