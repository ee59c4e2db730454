"""From the stages' results to the answer: every statistic with its interval, the tests, and the verdict.

Probabilities of the search and the count belong to the stochastic sampler that ran; densities belong to the
probability-flow ODE. They are different distributions once the score is learned, and are never compared here.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from . import stats
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
class Detector:
    """Errors of the detectors, measured."""

    fingerprint_accuracy: Rate
    identity_accuracy: Rate
    joint_false_real: Rate  # held-out real images under fresh discs, any head
    joint_false_generated: Rate  # plain samples of the audited model, any held-out head
    sensitivity_low: Rate  # chains of the audited model from below one grey level of noise
    sensitivity_oracle: Rate  # reproductions by the empirical oracle
    oracle_detected: int  # plain samples of the oracle taken for a member
    oracle_reproduced: int  # of those that are a member
    oracle_samples: int
    oracle_false: Rate  # oracle samples, any held-out head
    sensitivity_lower: float  # one-sided; the smallest of both kinds and all members
    false_rate_upper: float  # one-sided, generated images
    threshold: float
    rule: str = ""  # how the nearest training images decide; empty: classifiers do


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


def _detector(classifiers: dict[str, Any], count: dict[str, Any], settings: AuditSettings) -> Detector:
    """Both classifiers' errors from what the stages counted."""
    real, oracle, c = classifiers["errors"], count["oracle"], settings.confidence
    generated = _rate(count["control_hit_samples"], count["num_samples"] if count["num_controls"] else 0, c)
    members = len(count["sensitivity_detected"])
    lows = [_rate(hits, count["sensitivity_chains"], c) for hits in count["sensitivity_detected"]]
    seens = [_rate(*pair, c) for pair in zip(oracle["chains_detected"], oracle["chains_reproduced"], strict=True)]
    low, seen = (_rate(sum(r.hits for r in rates), sum(r.trials for r in rates), c) for rates in (lows, seens))
    real_joint = _rate(real["joint_false_images"], real["num_images"], c)
    looked = 2 * real["num_images"]
    return Detector(
        fingerprint_accuracy=_rate(looked - real["fingerprint_missed"] - real["fingerprint_false"], looked, c),
        identity_accuracy=_rate(
            real["identity_images"] + real["num_images"] - real["identity_missed"] - real["identity_false_images"],
            real["identity_images"] + real["num_images"],
            c,
        ),
        joint_false_real=real_joint,
        joint_false_generated=generated,
        sensitivity_low=low,
        sensitivity_oracle=seen,
        oracle_detected=oracle["detected"] + oracle["false_detected"],
        oracle_reproduced=oracle["reproduced"],
        oracle_samples=oracle["num_samples"],
        oracle_false=_rate(oracle["control_hit_samples"], oracle["num_samples"] if count["num_controls"] else 0, c),
        sensitivity_lower=min(_one_sided(r, "lower", 1 - (1 - c) / members) for r in lows + seens),
        false_rate_upper=_one_sided(generated if generated.trials else real_joint, "upper", c),
        threshold=classifiers["threshold"],
        rule="" if classifiers.get("detector") != "nearest" else _rule(classifiers),
    )


def _rule(classifiers: dict[str, Any]) -> str:
    """When the nearest training images tell that an image is the target; see `nearest.nearest_scores`."""
    ratio = 2 * (1 - classifiers["threshold"]) * classifiers["ratio"]
    return (
        f"nearest training images: distance to the target below {ratio:.3g} of the mean to the "
        f"{classifiers['neighbours']} nearest others"
    )


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


def decide(tests: list[MemberTests], detector: Detector, settings: AuditSettings, *, num_train: int) -> Verdict:
    """The verdict of design section 6: leak, none found, or inconclusive.

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
    if kinds:
        return Verdict(LEAK, sorted(set(kinds)), reasons, [])
    blind = detector.sensitivity_lower < settings.min_sensitivity
    weak = max(test.detectable_rate for test in tests) > 1 / num_train
    if blind:
        reasons.append(
            f"the detectors' sensitivity is shown to be at least {detector.sensitivity_lower:.2f} only; "
            f"{settings.min_sensitivity:g} is needed"
        )
        longer = "" if detector.rule else "train the detectors longer, or "
        settle.append(f"{longer}run more count.sensitivity_chains and count.oracle_chains")
    if weak:
        rate = max(test.detectable_rate for test in tests)
        reasons.append(
            f"a reproduction rate of {rate:.2g} or more would have been seen with a power of 80 %, "
            f"but a memoriser's is 1/N = {1 / num_train:.2g}"
        )
        false = detector.joint_false_generated
        better = "lower classifiers.ratio" if detector.rule else "train the model or the detectors longer"
        settle.append(
            f"{better}: {false.hits} of {false.trials} plain samples are taken for targets that the model never saw"
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
    detector = _detector(results["classifiers"], count, settings)
    floor = max(1 / num_train, detector.false_rate_upper)
    num_targets, num_members = len(count["num_detected"]), search["num_members"]
    targets = [
        _target(row, search, count, grid, sde, floor=min(floor, 0.999), settings=settings, seed=seed + row)
        for row in range(num_targets)
    ]
    controls = [target.t50_rank for target in targets[num_members:]]
    groups, (bits, nll_ranks) = _nll(likelihood), _nll_of_members(likelihood, num_members)
    n = count["num_samples"]
    false = (
        (count["control_hit_samples"], n)
        if count["num_controls"]
        else (results["classifiers"]["errors"]["joint_false_images"], results["classifiers"]["errors"]["num_images"])
    )
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
    verdict = decide(tests, detector, settings, num_train=num_train)
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
        hits=[Likeness(**hit, score=None) for hit in count["hits"]],
        near_misses=[Likeness(**miss) for miss in count["near_misses"]],
        snapshots=_snapshots(likelihood, num_members, num_steps=results["score"]["num_steps"]),
        bound=[_bound(results["bound"], target, grid) for target in targets[:num_members]]
        if results["bound"]["target"]
        else [],
    )
