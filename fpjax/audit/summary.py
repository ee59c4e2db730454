"""From the stages' results to the answer: every statistic with its interval, the tests, and the verdict.

Probabilities of the search and the count belong to the stochastic sampler that ran; densities belong to the
probability-flow ODE. They are different distributions once the score is learned, and are never compared here.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from .. import stats
from ..detectors import evaluation
from ..diffusion.flow import OUTCOMES
from ..diffusion.grid import TimeGrid, log_snr
from ..diffusion.sde import Process
from ..studies.bound import darboux_cells, log_darboux_sum
from ..studies.strategies import CONFIRM, CURVE, FIXED, MISSES, RANK
from .canaries import CanaryResult, audit_canaries
from .results import (
    AtThreshold,
    AuditResult,
    Bound,
    BoundCell,
    Curve,
    Detector,
    Gate,
    Heads,
    Likeness,
    MemberNll,
    NllDiagnostics,
    NllGroup,
    NllSnapshot,
    RocCurve,
    Sensitivity,
    TargetResult,
)
from .verdict import (
    BETA,
    AuditSettings,
    Evidence,
    Rate,
    SelfTest,
    audit_members,
    count_p,
    decide,
    make_rate,
)

ASSUMPTION = (
    "no mark was planted: that the held-out targets differ from the training images in nothing but the training "
    "(exchangeable) is assumed, not made so"
)


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
        found=make_rate(positives - content["missed"], positives, confidence),
        false=make_rate(content["false_images"], images if negatives else 0, confidence),
        found_rates=[n / positives for n in content["positives_above"]] if positives else [],
        false_rates=[n / negatives for n in content["negatives_above"]] if negatives else [],
    )


def _heads(images: str, hits: list[int], num_images: int, *, first: int, settings: AuditSettings, seed: int) -> Heads:
    """Heads of the targets from row `first` on."""
    worst = int(np.argmax(hits))
    rate = make_rate(hits[worst], num_images, settings.confidence)
    return Heads(images, num_images, list(hits), first + worst, rate, stats.equal_counts_p(hits, seed=seed))


def _detector(
    classifiers: dict[str, Any], count: dict[str, Any], settings: AuditSettings, *, members: int, seed: int
) -> Detector:
    """The detector's errors from what the stages counted."""
    real, oracle, c, said = classifiers["errors"], count["oracle"], settings.confidence, classifiers["detector"]
    counted = [roc for roc in real["roc"] + count["roc"] if said["marks"] or roc["decision"] == evaluation.IDENTITY]
    curves = [_roc(roc, c) for roc in counted]
    plain = {roc.decision: roc for roc in curves if roc.condition == "plain"}

    def accuracy(roc: RocCurve) -> Rate:
        trials = roc.found.trials + roc.false.trials
        return make_rate(roc.found.hits + roc.false.trials - roc.false.hits, trials, c)

    n, controls = count["num_samples"], count["num_detected"][members:]
    generated = make_rate(count["control_hit_samples"], n if controls else 0, c)
    real_joint = plain[evaluation.JOINT if said["marks"] else evaluation.IDENTITY].false
    heads = [_heads("real", real["false_by_head"], real["num_images"], first=0, settings=settings, seed=seed)]
    if controls:
        heads.append(_heads("generated", controls, n, first=members, settings=settings, seed=seed))
    poor = _sensitivity(real["poor_found"], real["draws_per_target"], first=0, confidence=c)
    low = count["sensitivity_detected"][members:]
    returns = _sensitivity(low, count["sensitivity_chains"], first=members, confidence=c)
    worst = make_rate(max(controls), n, c) if controls else real_joint
    return Detector(
        **said,
        fingerprint_accuracy=accuracy(plain[evaluation.FINGERPRINT]) if said["marks"] else None,
        identity_accuracy=accuracy(plain[evaluation.IDENTITY]),
        joint_false_real=real_joint,
        joint_false_generated=generated,
        gate=Gate(
            classifiers.get("attempts", {}),
            classifiers.get("epochs", {}),
            len(classifiers["dropped"]),
            classifiers.get("unseen", 0),
            sum(real["planted_found"]),
            real["heads"],
        ),
        sensitivity_poor=poor,
        sensitivity_returns=returns,
        sensitivity_lower=min((part.lower for part in (poor, returns) if part.targets), default=0.0),
        oracle_detected=sum(oracle["num_detected"][:members]),
        oracle_reproduced=sum(oracle["reproduced"]),
        oracle_samples=oracle["num_samples"],
        false_rate_upper=_one_sided(worst, "upper", c),
        threshold=classifiers["threshold"],
        roc=curves,
        heads=heads,
    )


def _sensitivity(found: list[int], copies: int, *, first: int, confidence: float) -> Sensitivity:
    """Of the targets from row `first` on, of whose copies so many were found."""
    if not found:
        return Sensitivity(0, copies, float("nan"), 0.0, 0.0, float("nan"), first)
    shares = np.asarray(found) / copies
    worst = int(np.argmin(shares))
    lower, sure = (stats.mean_lower_limit(shares, confidence=c) for c in ((1 + confidence) / 2, 1 - BETA))
    return Sensitivity(len(found), copies, float(shares.mean()), lower, sure, float(shares[worst]), first + worst)


def audit_auditor(count: dict[str, Any], settings: AuditSettings, *, members: int) -> list[SelfTest]:
    """The same audit of what is known: the perfect memoriser must be found; what held-out targets do is told.

    Args:
      count: content of count.json.
    """
    oracle, level = count["oracle"], settings.count_level
    hits, true = np.asarray(oracle["num_detected"]), oracle["reproduced"]
    # Were every reproduction seen, and nothing else.
    best = np.concatenate([true, np.zeros(len(hits) - members, int)])
    possible, p = count_p(best, members) <= level, count_p(hits, members)
    seen = f"{sum(oracle['detected'])} of the {sum(true)} in {oracle['num_samples']} plain samples are seen"
    text = f"the perfect memoriser is {'' if p <= level else 'not '}found: {seen} (p = {p:.2g}, level {level:g})"
    if not possible:
        text = (
            f"{oracle['num_samples']} plain samples of the perfect memoriser hold {sum(true)} reproductions, which "
            f"{members} members and {len(hits) - members} held-out targets cannot show at level {level:g}"
        )
    tests = [SelfTest("memoriser", bool(possible), bool(p <= level), True, text)]
    controls = count["num_detected"][members:]
    if len(controls) > 1:
        worst = int(np.argmax(controls))
        others = [hit for i, hit in enumerate(controls) if i != worst]
        p = min(1.0, len(controls) * stats.gamma_poisson_p(controls[worst], others))
        text = (
            f"of {len(controls)} held-out targets, which cannot be reproduced, the one that fires most has "
            f"{controls[worst]} of {count['num_samples']} samples (as one of gamma-distributed rates, p = {p:.2g})"
        )
        tests.append(SelfTest("held-out targets", True, p > level, False, text))
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
    # The test over levels needs chains that had no part in choosing them.
    tested = (times, hits, chains)
    if search["strategy"] not in FIXED:
        fresh = mine & (table["phase"] == CONFIRM)
        chosen = fresh if fresh.any() else rank
        level, *counts = (table[name][chosen] for name in ("level", "num_detected", "num_chains"))
        tested = (t[level], *counts)
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
    grid: TimeGrid,
    settings: AuditSettings,
    *,
    members: int,
    seed: int,
) -> list[AtThreshold]:
    """One member's answer at every threshold that was counted, the one in use among them."""
    classifiers, count, search = (results[stage] for stage in ("classifiers", "count", "search"))
    c = settings.confidence
    mine = np.asarray(search["target"]) == row
    phase, level, num_chains = (np.asarray(search[name])[mine] for name in ("phase", "level", "num_chains"))
    levels, place = np.unique(level, return_inverse=True)
    times = np.asarray(grid.t, np.float64)[levels]

    def pooled(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=len(levels)).astype(int)

    def column(main: Any, others: Any) -> np.ndarray:
        return np.concatenate([np.asarray(main)[..., None], np.asarray(others)], axis=-1)

    returned = column(search["num_detected"], search["num_detected_at"])[mine]
    detected = column(count["num_detected"], count["num_detected_at"])
    seen = column(count["sensitivity_detected"][row], count["sensitivity_detected_at"][row])
    found = {}
    for i, threshold in enumerate([classifiers["threshold"], *classifiers["thresholds"]]):
        hits = pooled(returned[:, i])
        low, high = stats.t50_interval(times, hits, pooled(num_chains), seed=seed, confidence=c)
        found[threshold] = AtThreshold(
            row,
            threshold,
            int(detected[row, i]),
            detected[members:, i].tolist(),
            count_p(detected[:, i], members),
            make_rate(int(seen[i]), count["sensitivity_chains"], c),
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


def _canaries(
    count: dict[str, Any], targets: list[TargetResult], nll: list[float], held_out: list[float], settings: AuditSettings
) -> CanaryResult:
    """Canaries by the score that was declared; a density that was not computed is the least likely one."""
    members = sum(target.member for target in targets)
    scores: dict[str, list[float]] = {
        "count": list(count["num_detected"]),
        "t50": [target.t50_rank for target in targets],
        "nll": [-bits if np.isfinite(bits) else -np.inf for bits in [*nll, *held_out]],
    }
    chosen = scores[settings.canary_score]
    return audit_canaries(
        chosen[:members],
        chosen[members:],
        score=settings.canary_score,
        confidence=settings.confidence,
        delta=settings.canary_delta,
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
      results: contents of data.json, classifiers.json, score.json, count.json, search.json, and, where they were run,
        likelihood.json and bound.json.
      seed: of the bootstrap.
      provenance: versions, devices and the like, shown as they are.
    """
    count, search, membership = results["count"], results["search"], results["classifiers"]["membership"]
    likelihood, bound = results.get("likelihood"), results.get("bound")
    num_train, num_members = membership["num_train"], membership["num_members"]
    searched, n = num_members + membership["num_controls"], count["num_samples"]
    detector = _detector(results["classifiers"], count, settings, members=num_members, seed=seed)
    self_tests = audit_auditor(count, settings, members=num_members)
    floor = max(1 / num_train, detector.false_rate_upper)
    targets = [
        _target(row, search, count, grid, sde, floor=min(floor, 0.999), settings=settings, seed=seed + row)
        for row in range(searched)
    ]
    groups, snapshots, bits, ranks, held_out = [], [], [], [], []
    if likelihood:
        groups, (bits, ranks) = _nll(likelihood), _nll_of_members(likelihood, num_members)
        snapshots = _snapshots(likelihood, num_members, num_steps=results["score"]["num_steps"])
        table = zip(likelihood["group"], likelihood["bits_per_dim"], likelihood["converged"], strict=True)
        held_out = [bits if ok else float("nan") for group, bits, ok in table if group == "held-out target"]
    sensitivities = [part for part in (detector.sensitivity_poor, detector.sensitivity_returns) if part.targets]
    evidence = Evidence(
        num_train=num_train,
        num_members=num_members,
        looks=count["looks"],
        planned_looks=count["planned_looks"],
        counts=np.asarray(count["looks_detected"]),
        any_control=count["control_hit_samples"],
        t50=[target.t50_rank for target in targets],
        sensitivity=detector.sensitivity_lower,
        sure_sensitivity=min((part.sure for part in sensitivities), default=0.0),
    )
    model, tests = audit_members(evidence, settings)
    verdict = decide(
        model,
        tests,
        settings,
        sensitivity=detector.sensitivity_lower,
        advice=detector.advice,
        self_tests=self_tests,
    )
    stamped = results["data"].get("fingerprint_byte", 0) is not None
    if not stamped:
        verdict = dataclasses.replace(verdict, reasons=[*verdict.reasons, ASSUMPTION])
    return AuditResult(
        name=name,
        verdict=verdict,
        targets=targets,
        model=model,
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
        t_min_likelihood=likelihood["t_min"] if likelihood else float("nan"),
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
            at
            for member in targets[:num_members]
            for at in _at_thresholds(member.row, results, grid, settings, members=num_members, seed=seed + member.row)
        ],
        hits=[Likeness(**hit, score=None) for hit in count["hits"]],
        near_misses=[Likeness(**miss) for miss in count["near_misses"]],
        snapshots=snapshots,
        bound=[_bound(bound, target, grid) for target in targets[:num_members]] if bound and bound["target"] else [],
        nll_members=[
            MemberNll(row, each if np.isfinite(each) else None, rank)
            for row, (each, rank) in enumerate(zip(bits, ranks, strict=True))
        ],
        canaries=_canaries(count, targets, bits, held_out, settings) if membership["canaries"] else None,
    )
