"""The detectors' errors, the audit of the auditor, canaries."""

import math

from ...audit.canaries import CanaryResult
from ...audit.results import (
    AtThreshold,
    AuditResult,
    Heads,
    RocCurve,
    Sensitivity,
)
from ...audit.verdict import Rate, SelfTest
from ..numbers import (
    MISSING,
    fixed,
    grid_width,
    last_level,
    num_decimals,
    percent,
    plural,
    rate_text,
    small,
    time_text,
)
from .base import Row, make_row

SCORE_NAMES = {
    "count": "plain samples that are taken for the canary",
    "t50": "t50, the noise up to which it comes back",
    "nll": "the negative of its NLL",
}


def _sensitivity(found: Sensitivity, confidence: float) -> str:
    """Detection of copies, with the target as the unit."""
    if not found.targets:
        return f"{MISSING} (not measured)"
    decimals = num_decimals(2 * (found.mean - found.lower))
    mean, lower, worst = (fixed(value, decimals) for value in (found.mean, found.lower, found.worst))
    return (
        f"mean {mean}, at least {lower} ({percent(confidence)} limit, the target as its unit); worst target "
        f"{found.worst_row}: {worst}; {plural(found.targets, 'target')}, {plural(found.copies, 'copy', many='copies')} of each"
    )


def _gate_rows(result: AuditResult) -> list[Row]:
    """What the detectors passed before any chain was run."""
    gate = result.detector.gate
    trained = [
        f"{name} {plural(attempts, 'attempt')}"
        + (f", {plural(gate.epochs[name], 'epoch')}" if name in gate.epochs else "")
        for name, attempts in gate.attempts.items()
    ]
    return [
        *([make_row("gate_training", "gate: training until it opened", "; ".join(trained))] if trained else []),
        make_row(
            "gate_dropped",
            "gate: targets dropped",
            f"{gate.dropped:,}, not seen by the detectors and replaced before membership was drawn"
            if gate.dropped
            else "none",
        ),
        *(
            [
                make_row(
                    "gate_unseen",
                    "gate: left shut",
                    f"{plural(gate.unseen, 'target')} not seen by the detectors stay (classifiers.gate = False)",
                )
            ]
            if gate.unseen
            else []
        ),
        make_row(
            "gate_planted",
            "gate: targets found",
            f"{gate.planted_found:,} of {plural(gate.targets, 'target')} found as planted",
        ),
    ]


def detector_rows(result: AuditResult) -> list[Row]:
    """Errors of the detectors."""
    detector, confidence = result.detector, result.settings.confidence
    oracle = (
        f"{detector.oracle_detected:,} of its {detector.oracle_samples:,} samples taken for a member, "
        f"{detector.oracle_reproduced:,} are"
    )
    marks = detector.fingerprint_accuracy
    identity = ", identity classifier" if detector.marks else " of the detector"
    return [
        make_row("detector", "detector", detector.description),
        make_row("threshold", "threshold of its scores", f"{detector.threshold:g}"),
        *_gate_rows(result),
        *(
            [make_row("accuracy_fingerprint", "accuracy, fingerprint classifier", rate_text(marks, confidence))]
            if marks
            else []
        ),
        make_row("accuracy_identity", f"accuracy{identity}", rate_text(detector.identity_accuracy, confidence)),
        make_row("false_real", "joint false hits, real images", rate_text(detector.joint_false_real, confidence)),
        make_row(
            "false_generated",
            "joint false hits, generated images",
            rate_text(detector.joint_false_generated, confidence),
        ),
        make_row("false_used", "false-hit rate used, at most", small(detector.false_rate_upper)),
        make_row(
            "sensitivity_poor", "sensitivity, other tones and blur", _sensitivity(detector.sensitivity_poor, confidence)
        ),
        make_row(
            "sensitivity_returns",
            "sensitivity, returns from low noise",
            _sensitivity(detector.sensitivity_returns, confidence),
        ),
        make_row(
            "sensitivity_used",
            "sensitivity used, at least",
            f"{fixed(detector.sensitivity_lower, 2)} (the smaller limit of poor copies and of returns)",
        ),
        make_row("memoriser", "audited memoriser, members", oracle),
        *(
            make_row(f"worst_{heads.images}", f"worst head, {heads.images} images", _head(heads, confidence))
            for heads in detector.heads
        ),
    ]


def _head(heads: Heads, confidence: float) -> str:
    """The head with the most false hits, and whether heads differ."""
    if not any(heads.hits):
        return f"no false hit of any of {plural(len(heads.hits), 'head')} on {plural(heads.num_images, 'image')}"
    return (
        f"target {heads.worst}, {rate_text(heads.worst_rate, confidence)}; all heads alike: p = {small(heads.equal_p)}"
    )


def _outcome(test: SelfTest) -> str:
    """One part of the audit of the auditor; what vetoes nothing is told."""
    if not test.vetoes:
        return "told"
    return "cannot tell" if not test.possible else "passed" if test.passed else "FAILED"


def self_rows(result: AuditResult) -> list[Row]:
    """The audit of the auditor."""
    return [
        make_row(f"self_{i}", test.what, f"{_outcome(test)}: {test.text}") for i, test in enumerate(result.self_tests)
    ]


def _epsilon(found: CanaryResult) -> tuple[str, str]:
    """The lower bound of epsilon, never rounded up, and what it could have been."""
    if found.epsilon is None or found.epsilon_most is None:
        missing = f"{MISSING} (the extra fpjax[privacy] is not installed)"
        return missing, missing
    shown = f"epsilon >= {math.floor(10 * found.epsilon + 1e-9) / 10:.1f} at confidence {percent(found.confidence)}"
    most = f"at most {found.epsilon_most:.1f} could have been shown with {plural(found.num_in + found.num_out, 'canary', many='canaries')}"
    return f"{shown} (delta = {small(found.delta)})", most


def canary_rows(result: AuditResult) -> list[Row]:
    """Canaries, each a member by a fair coin of its own; none without them."""
    found = result.canaries
    if found is None:
        return []
    epsilon, most = _epsilon(found)
    area = "too few to state"
    if found.area_upper - found.area_lower <= 0.5:
        decimals = num_decimals(found.area_upper - found.area_lower)
        own, low, high = (fixed(value, decimals) for value in (found.area, found.area_lower, found.area_upper))
        area = f"{own} ({percent(found.confidence)} interval {low} to {high})"
    tpr = Rate(found.tpr_hits, found.tpr_trials, found.tpr, found.tpr_lower, found.tpr_upper)
    return [
        make_row(
            "canaries",
            "canaries, m",
            f"{found.num_in + found.num_out:,}: {found.num_in:,} trained on, {found.num_out:,} left out, by fair coins",
        ),
        make_row("canary_score", "score that was declared", SCORE_NAMES[found.score]),
        make_row("auroc", "AUROC of the score", area),
        make_row("tpr", "TPR at an FPR of 1 %", rate_text(tpr, found.confidence)),
        make_row("epsilon", "epsilon from this one run", epsilon),
        make_row("epsilon_most", "what so many canaries can show", most),
    ]


def _area(roc: RocCurve) -> str:
    """Area under a ROC curve with its interval."""
    if not math.isfinite(roc.area):
        return MISSING
    if roc.area_upper - roc.area_lower > 0.5:
        return "too few to state"
    decimals = num_decimals(roc.area_upper - roc.area_lower)
    return f"{fixed(roc.area, decimals)} ({fixed(roc.area_lower, decimals)} to {fixed(roc.area_upper, decimals)})"


def roc_rows(result: AuditResult) -> list[Row]:
    """Each decision under each condition: area, targets found, false hits."""
    confidence = result.settings.confidence
    return [
        make_row(
            f"roc_{roc.decision}_{roc.condition}",
            f"{roc.decision}, {roc.condition}",
            _area(roc),
            rate_text(roc.found, confidence),
            rate_text(roc.false, confidence),
        )
        for roc in result.detector.roc
    ]


def threshold_row(result: AuditResult, at: AtThreshold) -> Row:
    """A member's answer at one threshold."""
    member = next(target for target in result.targets if target.row == at.row)
    curve, width = member.curve, at.t50_upper - at.t50_lower
    used = " (used)" if at.threshold == result.detector.threshold else ""
    who = f", member {at.row}" if len(result.tests) > 1 else ""
    ends = f"{time_text(at.t50_lower, width, zero='0')} to {time_text(at.t50_upper, width, last=curve.t[-1])}"
    return make_row(
        f"threshold_{at.threshold:g}_{at.row}",
        f"{at.threshold:g}{used}{who}",
        f"{at.num_detected:,} of {result.num_samples:,}",
        f"{max(at.control_detected):,} of {result.num_samples:,}" if at.control_detected else MISSING,
        small(at.count_p) if at.control_detected else MISSING,
        f"{at.sensitivity.hits:,} of {at.sensitivity.trials:,}",
        time_text(at.t_prime, grid_width(curve), last=last_level(curve)),
        f"{time_text(at.t50, width, last=curve.t[-1])} ({ends})",
    )
