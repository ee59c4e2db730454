"""How often the detectors err, and whether they would find what is known to be there."""

from typing import Literal

import numpy as np

from .. import stats
from ..detectors import evaluation
from ..detectors.evaluation import Roc
from ..detectors.results import ClassifiersResult
from ..studies.memoriser import OracleResult
from ..studies.tally import CountResult
from .results import DetectorErrors, Gate, Heads, RocCurve, Sensitivity
from .verdict import BETA, AuditSettings, Rate, SelfTest, count_p, make_rate


def _one_sided(rate: Rate, side: Literal["lower", "upper"], confidence: float) -> float:
    """One-sided limit of a fraction; no trials give the useless one."""
    if rate.trials == 0:
        return 0.0 if side == "lower" else 1.0
    lower, upper = stats.clopper_pearson(rate.hits, rate.trials, confidence=confidence, side=side)
    return float(lower if side == "lower" else upper)


def _roc_curve(counted: Roc, confidence: float) -> RocCurve:
    """Rates and area of a curve as counted."""
    positives, negatives, images = counted.num_positives, counted.num_negatives, counted.num_images
    area = stats.Area(float("nan"), 0.0, 1.0)
    if positives and negatives:
        area = stats.roc_area(
            counted.positives_above,
            counted.negatives_above,
            positives=positives,
            negatives=negatives,
            units=images,
            confidence=confidence,
        )
    return RocCurve(
        counted.decision,
        counted.condition,
        *area,
        found=make_rate(positives - counted.missed, positives, confidence),
        false=make_rate(counted.false_images, images if negatives else 0, confidence),
        found_rates=(counted.positives_above / positives).tolist() if positives else [],
        false_rates=(counted.negatives_above / negatives).tolist() if negatives else [],
    )


def _heads(images: str, hits: np.ndarray, num_images: int, *, first: int, settings: AuditSettings, seed: int) -> Heads:
    """Heads of the targets from row `first` on."""
    worst = int(np.argmax(hits))
    rate = make_rate(int(hits[worst]), num_images, settings.confidence)
    return Heads(images, num_images, hits.tolist(), first + worst, rate, stats.equal_counts_p(hits.tolist(), seed=seed))


def detector_errors(
    classifiers: ClassifiersResult, count: CountResult, oracle: OracleResult, settings: AuditSettings, *, seed: int
) -> DetectorErrors:
    """The detector's errors from what the stages counted."""
    real, c, said, members = (
        classifiers.errors,
        settings.confidence,
        classifiers.detector,
        classifiers.membership.num_members,
    )
    counted = [roc for roc in real.roc + count.roc if said.marks or roc.decision == evaluation.IDENTITY]
    curves = [_roc_curve(roc, c) for roc in counted]
    plain = {roc.decision: roc for roc in curves if roc.condition == "plain"}

    def accuracy(roc: RocCurve) -> Rate:
        trials = roc.found.trials + roc.false.trials
        return make_rate(roc.found.hits + roc.false.trials - roc.false.hits, trials, c)

    n, controls = count.num_samples, count.num_detected[members:]
    generated = make_rate(count.control_hit_samples, n if len(controls) else 0, c)
    real_joint = plain[evaluation.JOINT if said.marks else evaluation.IDENTITY].false
    heads = [_heads("real", real.false_by_head, real.num_images, first=0, settings=settings, seed=seed)]
    if len(controls):
        heads.append(_heads("generated", controls, n, first=members, settings=settings, seed=seed))
    poor = _sensitivity(real.poor_found, real.draws_per_target, first=0, confidence=c)
    low = count.sensitivity_detected[members:]
    returns = _sensitivity(low, count.sensitivity_chains, first=members, confidence=c)
    worst = make_rate(int(controls.max()), n, c) if len(controls) else real_joint
    trained = classifiers.trained
    return DetectorErrors(
        description=said.description,
        marks=said.marks,
        advice=said.advice,
        fingerprint_accuracy=accuracy(plain[evaluation.FINGERPRINT]) if said.marks else None,
        identity_accuracy=accuracy(plain[evaluation.IDENTITY]),
        joint_false_real=real_joint,
        joint_false_generated=generated,
        gate=Gate(
            trained.attempts if trained else {},
            trained.epochs if trained else {},
            len(classifiers.dropped),
            trained.unseen if trained else 0,
            int(real.planted_found.sum()),
            real.heads,
        ),
        sensitivity_poor=poor,
        sensitivity_returns=returns,
        sensitivity_lower=min((part.lower for part in (poor, returns) if part.targets), default=0.0),
        oracle_detected=int(oracle.num_detected[:members].sum()),
        oracle_reproduced=int(oracle.reproduced.sum()),
        oracle_samples=oracle.num_samples,
        false_rate_upper=_one_sided(worst, "upper", c),
        threshold=classifiers.threshold,
        roc=curves,
        heads=heads,
    )


def _sensitivity(found: np.ndarray, copies: int, *, first: int, confidence: float) -> Sensitivity:
    """Of the targets from row `first` on, of whose copies so many were found."""
    if not len(found):
        return Sensitivity(0, copies, float("nan"), 0.0, 0.0, float("nan"), first)
    shares = found / copies
    worst = int(np.argmin(shares))
    lower, sure = (stats.mean_lower_limit(shares, confidence=c) for c in ((1 + confidence) / 2, 1 - BETA))
    return Sensitivity(len(found), copies, float(shares.mean()), lower, sure, float(shares[worst]), first + worst)


def audit_auditor(count: CountResult, oracle: OracleResult, settings: AuditSettings, *, members: int) -> list[SelfTest]:
    """The same audit of what is known: the perfect memoriser must be found; what held-out targets do is told."""
    level, hits, true = settings.count_level, oracle.num_detected, oracle.reproduced
    # Were every reproduction seen, and nothing else.
    best = np.concatenate([true, np.zeros(len(hits) - members, int)])
    possible, p = count_p(best, members) <= level, count_p(hits, members)
    seen = f"{oracle.detected.sum()} of the {true.sum()} in {oracle.num_samples} plain samples are seen"
    text = f"the perfect memoriser is {'' if p <= level else 'not '}found: {seen} (p = {p:.2g}, level {level:g})"
    if not possible:
        text = (
            f"{oracle.num_samples} plain samples of the perfect memoriser hold {true.sum()} reproductions, which "
            f"{members} members and {len(hits) - members} held-out targets cannot show at level {level:g}"
        )
    tests = [SelfTest("memoriser", bool(possible), bool(p <= level), True, text)]
    controls = count.num_detected[members:].tolist()
    if len(controls) > 1:
        worst = int(np.argmax(controls))
        others = [hit for i, hit in enumerate(controls) if i != worst]
        p = min(1.0, len(controls) * stats.gamma_poisson_p(controls[worst], others))
        text = (
            f"of {len(controls)} held-out targets, which cannot be reproduced, the one that fires most has "
            f"{controls[worst]} of {count.num_samples} samples (as one of gamma-distributed rates, p = {p:.2g})"
        )
        tests.append(SelfTest("held-out targets", True, p > level, False, text))
    return tests
