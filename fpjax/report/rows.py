"""From an `AuditResult` to what people and programs read: JSON, the terminal's text, figures, one HTML file.

Only formats and draws; every statistic comes from `audit`. Numbers show no more digits than their interval supports.
The text and the HTML share their rows, so they cannot disagree.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..audit.canaries import CanaryResult
from ..audit.results import (
    AtThreshold,
    AuditResult,
    Bound,
    Heads,
    NllDiagnostics,
    NllGroup,
    NllSnapshot,
    RocCurve,
    Sensitivity,
    TargetResult,
)
from ..audit.verdict import MemberTests, Rate, SelfTest
from .numbers import (
    MISSING,
    MOST_SHOWN,
    counts_text,
    fixed,
    grid_width,
    held_out_text,
    last_level,
    num_decimals,
    one_in_text,
    p_text,
    percent,
    plural,
    rate_text,
    small,
    t50_text,
    time_text,
)


class Row(NamedTuple):
    """A line of a table, chosen by its id; the label is for people and may be reworded freely."""

    id: str
    label: str
    cells: tuple[str, ...]  # one a member, or one for all, or one a column


# Rows that text and HTML share


def make_row(id: str, label: str, *cells: str) -> Row:
    """A row of these cells."""
    return Row(id, label, cells)


def pick(rows: Iterable[Row], *ids: str) -> list[Row]:
    """The rows of these ids, in their own order."""
    return [row for row in rows if row.id in ids]


def _side_by_side(columns: Sequence[Sequence[Row]]) -> list[Row]:
    """Tables of the same rows as one, with a cell of each."""
    return [
        make_row(same[0].id, same[0].label, *(cell for row in same for cell in row.cells))
        for same in zip(*columns, strict=True)
    ]


def joined(rows: Sequence[Row]) -> list[Row]:
    """Rows of one cell: what differs between members in their order, what does not once."""

    def join(cells: tuple[str, ...]) -> str:
        if len(set(cells)) == 1:
            return cells[0]
        return " | ".join(cells[:MOST_SHOWN]) + " | ..." * (len(cells) > MOST_SHOWN)

    return [make_row(row.id, row.label, join(row.cells)) for row in rows]


def members_of(result: AuditResult) -> list[tuple[TargetResult, MemberTests]]:
    """Each member's search with its tests."""
    by_row = {target.row: target for target in result.targets}
    return [(by_row[test.row], test) for test in result.tests]


def controls_of(result: AuditResult) -> list[TargetResult]:
    """Held-out targets with chains; more of them may have been counted."""
    return [target for target in result.targets if not target.member]


def rank_last(result: AuditResult, member: TargetResult) -> float:
    """Where the t50 that is ranked is censored; the controls have only the chains that are."""
    return min(target.curve.t[-1] for target in [member, *controls_of(result)])


def _impossible(result: AuditResult, smallest: float, level: float, num_controls: int) -> str:
    """Says so where so few targets could not have rejected."""
    if smallest <= level:
        return ""
    return f"; with K = {len(result.tests)} and H = {num_controls} no p at or below the level is possible"


def _looks(result: AuditResult) -> list[Row]:
    """The counts of each declared look with their test."""
    model, rows = result.model, []
    for i, planned in enumerate(model.planned_looks):
        label = "counts" if len(model.planned_looks) == 1 else f"counts, look {i + 1} of {len(model.planned_looks)}"
        if i >= len(model.looks):
            rows.append(make_row(f"look_{i}", label, f"n = {planned:,}: not needed, an earlier look rejects"))
            continue
        look = model.looks[i]
        who = "the member" if len(look.members) == 1 else "the members"
        test = p_text(look.p, look.level) if look.controls else f"{MISSING} (no held-out targets)"
        note = _impossible(result, model.smallest_count_p, look.level, len(look.controls)) if look.controls else ""
        found = f"n = {look.num_samples:,}: {who} {counts_text(look.members)}, {held_out_text(look.controls)}"
        rows.append(make_row(f"look_{i}", label, f"{found}; {test}{note}"))
    return rows


def _prevalence(result: AuditResult) -> str:
    rate = result.model.prevalence
    if not result.model.num_count_controls:
        return f"{MISSING} (no held-out targets)"
    if rate.trials < 2:
        return f"{rate.hits} of {rate.trials}"
    decimals = num_decimals(rate.upper - rate.lower)
    ends = f"{fixed(rate.lower, decimals)} to {fixed(rate.upper, decimals)}"
    return f"{rate.hits} of {rate.trials} ({percent(result.settings.confidence)} interval of the share {ends})"


def tolerance_text(result: AuditResult) -> str:
    """The tolerance and where it is from."""
    stated = "stated" if result.settings.tolerance else "1/N, as often as a perfect memoriser"
    return f"{small(result.model.tolerance)} ({stated})"


def model_rows(result: AuditResult) -> list[Row]:
    """Tests of the model as a whole: one family, one level."""
    model, settings, k = result.model, result.settings, len(result.tests)
    t50 = f"{MISSING} (no held-out targets with chains)"
    if model.num_controls:
        note = _impossible(result, model.smallest_t50_p, model.t50_level, model.num_controls)
        t50 = f"{p_text(model.t50_p, model.t50_level)}{note}"
    limit = f"upper end of the {percent(settings.confidence)} interval, misses of the detectors allowed for"
    side = "below" if model.bound < model.tolerance else "not below"
    return [
        make_row(
            "level",
            "level of the tests",
            f"{settings.level:g} in all: counts {settings.count_level:g}, t50 {settings.t50_level:g}",
        ),
        *_looks(result),
        make_row("t50_test", "t50", t50),
        make_row("prevalence", "members above every held-out target", _prevalence(result)),
        make_row(
            "bound",
            "bound of the rate of reproduction",
            f"at most {small(model.bound)}, {one_in_text(model.bound)} ({limit}{'' if k == 1 else '; largest of any member'})",
        ),
        make_row("tolerance", "tolerance", f"{tolerance_text(result)}; the bound is {side} it"),
        make_row("detectable", "rate seen with a power of 80 %", _detectable(model.detectable_rate)),
    ]


def _detectable(rate: float) -> str:
    return f"{small(rate)} or more" if math.isfinite(rate) else "none (too few samples or targets)"


def _rank(result: AuditResult, p: float, adjusted: float, num_controls: int) -> str:
    """A member's own p-value, with Holm's where there are several members."""
    if num_controls == 0:
        return f"{MISSING} (no held-out targets)"
    k = len(result.tests)
    holm = f"; {small(adjusted)} by Holm over {k} members" if k > 1 else ""
    return f"p = {small(p)}, rank among {plural(num_controls, 'held-out target')}{holm}"


def _control_t50(result: AuditResult, member: TargetResult) -> str:
    """The t50 of the held-out targets by the chains that all share."""
    controls = controls_of(result)
    if not controls:
        return f"{MISSING} (no held-out targets)"
    values, last = [target.t50_rank for target in controls], rank_last(result, member)
    middle, low, high = (_ranked(result, t, last) for t in (float(np.median(values)), min(values), max(values)))
    return f"median {middle}, range {low} to {high} (H = {len(values)})"


def _ranked(result: AuditResult, value: float, last: float) -> str:
    """A t50 by the chains that members and held-out targets share."""
    width = float(np.median([target.t50_upper - target.t50_lower for target in controls_of(result)]))
    return time_text(value, width, last=last)


def _t_prime(member: TargetResult, *values: float) -> list[str]:
    """Values of t' with the digits that its range supports."""
    width = max(member.t_prime_upper - member.t_prime_lower, grid_width(member.curve))
    return [time_text(value, width, last=last_level(member.curve)) for value in values]


def _t_prime_alpha(member: TargetResult) -> list[str]:
    """t'_alpha and the ends of its range."""
    width = max(member.t_prime_alpha_upper - member.t_prime_alpha_lower, grid_width(member.curve))
    times = (member.t_prime_alpha, member.t_prime_alpha_lower, member.t_prime_alpha_upper)
    return [time_text(value, width, last=last_level(member.curve)) for value in times]


def search_rows(result: AuditResult, member: TargetResult, test: MemberTests) -> list[Row]:
    """One member's search."""
    confidence = result.settings.confidence
    repeats = f"{percent(confidence)} of repeats"
    t_prime, low, high = _t_prime(member, member.t_prime, member.t_prime_lower, member.t_prime_upper)
    alpha, alpha_low, alpha_high = _t_prime_alpha(member)
    controls = _control_t50(result, member)
    if controls_of(result):
        own = _ranked(result, member.t50_rank, rank_last(result, member))
        controls += f"; the member's by the same chains {own}"
    rows = [make_row("t_prime", "t' (largest t with a return)", f"{t_prime} ({repeats} {low} to {high})")]
    if result.detector.marks:
        label = "t' by the identity classifier alone"
        rows.append(make_row("t_prime_identity", label, *_t_prime(member, member.t_prime_identity)))
    return rows + [
        make_row(
            "t_prime_alpha",
            "t'_alpha (returns above the floor)",
            f"{alpha} ({repeats} {alpha_low} to {alpha_high}; floor {small(result.floor)})",
        ),
        make_row(
            "t50",
            "t50 (half the chains return)",
            t50_text(member.t50, member.t50_lower, member.t50_upper, member.curve.t[-1], confidence),
        ),
        make_row(
            "log_snr",
            "log-SNR at t50; at t'",
            f"{fixed(member.log_snr_t50, 1)}; {fixed(member.log_snr_t_prime, 1)}",
        ),
        make_row("t50_controls", "t50 of the held-out targets", controls),
        make_row("t50_rank", "rank of t50", _rank(result, test.t50_p, test.t50_holm, result.model.num_controls)),
    ]


def _expected(result: AuditResult, test: MemberTests) -> str:
    n = test.expected
    number = f"{n:,.{1 if n < 100 else 0}f}" if n >= 1 else small(n)
    return f"{number} (rate 1/N = {small(1 / result.num_train)})"


def count_rows(result: AuditResult, member: TargetResult, test: MemberTests) -> list[Row]:
    """One member's counts."""
    n, rate, controls = f"{result.num_samples:,}", test.rate, result.model.looks[-1].controls
    interval = f"{percent(result.settings.confidence)} interval {small(rate.lower)} to {small(rate.upper)}"
    parts = [
        make_row("num_fingerprint", "samples with a fingerprint, c_p+", f"{result.num_fingerprint:,} of {n}"),
        make_row("num_identity", "samples with the identity, c_id+", f"{member.num_identity:,} of {n}"),
    ]
    return (parts if result.detector.marks else []) + [
        make_row("num_detected", "samples detected as the target, |q|", f"{rate.hits:,} of {n}"),
        make_row("rate", "rate of reproduction", f"{small(rate.estimate)} ({interval})"),
        make_row("expected", "expected of a memoriser, E|q| = n/N", _expected(result, test)),
        make_row("count_controls", "counts of the held-out targets", control_counts_text(controls)),
        make_row("count_rank", "rank of |q|", _rank(result, test.count_p, test.count_holm, len(controls))),
    ]


def control_counts_text(controls: Sequence[int]) -> str:
    """Counts of held-out targets, as their range."""
    if not controls:
        return f"{MISSING} (no held-out targets)"
    middle = float(np.median(controls))
    return f"median {middle:,g}, range {min(controls):,} to {max(controls):,} (H = {len(controls)})"


def model_based_rows(result: AuditResult, member: TargetResult, test: MemberTests) -> list[Row]:
    """P-values that rest on more than exchangeability; s is the detectors' sensitivity."""
    del result, member
    return [
        make_row("fewer", "paper's test (H1: fewer than s n/N)", f"p = {small(test.fewer_p)}"),
        make_row("leak", "leak test (H1: above any false hits)", f"p = {small(test.leak_p)}"),
        make_row("gamma_poisson", "gamma-Poisson (H1: above held-out)", f"p = {small(test.gamma_poisson_p)}"),
    ]


MODEL_BASED = "Model-based, decides nothing"


def table_of(result: AuditResult, rows: Callable[[AuditResult, TargetResult, MemberTests], list[Row]]) -> list[Row]:
    """Rows of a table with one column for each member."""
    return _side_by_side([rows(result, member, test) for member, test in members_of(result)])


def member_table(result: AuditResult) -> tuple[list[str], list[Row]]:
    """Heads, and one short line for each member."""
    confidence = percent(result.settings.confidence)
    heads = ["member", "|q|", f"rate, {confidence}", "p; Holm", f"t50, {confidence}", "p; Holm", "t'", "t'_alpha"]
    lines = []
    for member, test in members_of(result):
        width, last = member.t50_upper - member.t50_lower, member.curve.t[-1]
        t50, low, high = (
            time_text(t, width, last=last, zero="0") for t in (member.t50, member.t50_lower, member.t50_upper)
        )
        cells = (
            f"{test.rate.hits:,}",
            f"{small(test.rate.lower)} to {small(test.rate.upper)}",
            f"{small(test.count_p)}; {small(test.count_holm)}" if result.model.num_count_controls else MISSING,
            f"{t50} [{low}, {high}]",
            f"{small(test.t50_p)}; {small(test.t50_holm)}" if result.model.num_controls else MISSING,
            *_t_prime(member, member.t_prime),
            _t_prime_alpha(member)[0],
        )
        lines.append(make_row(f"member_{test.row}", str(test.row), *(cell.replace(">= ", ">=") for cell in cells)))
    return heads, lines


def shared_rows(result: AuditResult) -> list[Row]:
    """What is the same for all members, in the terminal."""
    member, test = members_of(result)[0]
    once = count_rows(result, member, test) + search_rows(result, member, test)
    own = {
        "num_identity": " | ".join(f"{member.num_identity:,}" for member, _ in members_of(result)),
        "t50_controls": _control_t50(result, member),
    }
    ids = ("num_fingerprint", "num_identity", "expected", "count_controls", "t50_controls")
    return [make_row(row.id, row.label, own.get(row.id, *row.cells)) for row in pick(once, *ids)]


def likelihood_rows(result: AuditResult) -> list[Row]:
    """Densities of the members, a cell for each; none were they not computed."""
    columns = []
    for each in result.nll_members:
        p = small(each.rank_p)
        rank = p if p == MISSING else f"p = {p} (small: likelier than they are)"
        columns.append(
            [
                make_row("nll", "NLL of the member, bits/dim", fixed(each.bits_per_dim, 2)),
                make_row("nll_rank", "its rank among held-out targets", rank),
            ]
        )
    return _side_by_side(columns)


def group_row(group: NllGroup) -> Row:
    """Mean of a group with its standard error."""
    if not group.bits_per_dim:
        mean = MISSING
    elif math.isfinite(group.standard_error):
        decimals = num_decimals(2 * group.standard_error)
        mean = f"{fixed(group.mean, decimals)} +- {fixed(group.standard_error, decimals)} (standard error)"
    else:
        mean = fixed(group.mean, 2)
    lost = f", {group.not_converged} more did not converge" if group.not_converged else ""
    images = plural(len(group.bits_per_dim), "image")
    return make_row(f"nll_{group.name}", f"mean NLL, {group.name}", f"{mean}, {images}{lost}")


def _diagnosed(found: NllDiagnostics) -> str:
    """How a group's densities came about: parts, noise, evaluations, outcomes."""
    sign = "-" if found.divergence_nats < 0 else "+"
    lost = [f"{count:,} {name}" for name, count in found.outcomes.items() if count and name != "converged"]
    parts = [
        f"prior {fixed(found.prior_nats, 2)} {sign} divergence {fixed(abs(found.divergence_nats), 2)} nats/dim",
        f"one image +- {small(found.image_error)} bits/dim" if math.isfinite(found.image_error) else "",
        f"evaluations: median {fixed(found.median_evaluations, 0)}, most {found.most_evaluations:,}",
        f"lost: {', '.join(lost)}" if lost else "",
    ]
    return "; ".join(part for part in parts if part)


def diagnostic_rows(result: AuditResult) -> list[Row]:
    """How the densities of each group came about."""
    return [
        make_row(f"diagnostics_{group.name}", f"of {group.name}", _diagnosed(group.diagnostics))
        for group in result.nll
        if group.diagnostics
    ]


def _snapshot_cells(snapshot: NllSnapshot) -> list[str]:
    """Members with their ranks, then the mean of each other followed group."""
    members = [f"{fixed(m, 2)} (p = {small(p)})" for m, p in zip(snapshot.member, snapshot.rank_p, strict=True)]
    means = [f"{group.name} {fixed(group.mean, 2)}" for group in snapshot.groups if group.name != "member"]
    return [", ".join(members), ", ".join(means)]


def snapshot_rows(result: AuditResult) -> list[Row]:
    """Densities over the course of training."""
    return [
        make_row(f"snapshot_{snapshot.step}", f"after {snapshot.step:,} steps", f"member {members}; {means}")
        for snapshot in result.snapshots
        for members, means in [_snapshot_cells(snapshot)]
    ]


def _log_sum(value: float, end: float) -> str:
    return f"{fixed(value, 1)} nats (up to t = {small(end)})" if end else "none: there is no such t"


def bound_rows(found: Bound) -> list[Row]:
    """The Darboux sum of one member, with what tells how far to trust it."""
    known = [value for value in found.effective if math.isfinite(value)]
    largest = max(found.cells, key=lambda cell: cell.log_term, default=None)
    inflation = found.trace_error**2 / 2
    lost = f", {found.not_converged:,} more did not converge" if found.not_converged else ""
    term = f"t = {small(largest.t_low)} to {small(largest.t_high)}, " if largest else ""
    effective = f"median {fixed(float(np.median(known)), 1)}, least {fixed(min(known), 1)}" if known else MISSING
    return [
        make_row("log_sum", "log of the sum up to t'", _log_sum(found.log_sum, found.t_prime)),
        make_row("log_sum_alpha", "log of the sum up to t'_alpha", _log_sum(found.log_sum_alpha, found.t_prime_alpha)),
        make_row(
            "cells",
            "cells; largest term",
            f"{len(found.cells)}; " + (f"{term}{fixed(largest.log_term, 1)} nats" if largest else MISSING),
        ),
        make_row(
            "densities",
            "densities; effective of each mean",
            f"{found.num_densities - found.not_converged:,}{lost}; {effective}",
        ),
        make_row(
            "trace_error",
            "noise of a density by its trace",
            f"+- {fixed(found.trace_error, 1)} nats; it raises the logs, by at most {fixed(inflation, 1)} in the mean"
            if math.isfinite(found.trace_error)
            else f"{MISSING} (one probe, not repeated)",
        ),
        make_row("t_min", "t_min, which sets its size", f"{found.t_min:g}"),
        make_row("meaning", "what it means", "a sum of densities, not of probabilities: it bounds none"),
    ]


def bound_summary_rows(result: AuditResult) -> list[Row]:
    """The terminal's rows of the Darboux sums, short where there are several members."""
    if len(result.bound) == 1:
        return bound_rows(result.bound[0])
    rows = joined(_side_by_side([bound_rows(found) for found in result.bound]))
    return pick(rows, "log_sum", "log_sum_alpha", "t_min", "meaning")


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


SCORE_NAMES = {
    "count": "plain samples that are taken for the canary",
    "t50": "t50, the noise up to which it comes back",
    "nll": "the negative of its NLL",
}


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


def evaluation_rows(result: AuditResult) -> list[Row]:
    """Evaluations of the network, useful and executed."""
    share = result.evaluations["search"]["useful"] / result.exhaustive_evaluations
    cost = "" if result.strategy == "exhaustive" else f" for {small(share)} of what the exhaustive search would take"
    rows = [
        make_row("strategy", "strategy of the search", f"{result.strategy}{cost}"),
        make_row("misses", "what it cannot see", result.strategy_misses),
    ]
    for stage, spent in result.evaluations.items():
        useful = fixed(100 * spent["useful"] / spent["executed"], 1) if spent["executed"] else MISSING
        cell = f"{spent['executed']:,}, {useful} % of them useful"
        rows.append(make_row(f"evaluations_{stage}", f"network evaluations, {stage}", cell))
    return rows


def sampler_text(result: AuditResult) -> str:
    """Sampler, levels and process."""
    return f"{result.sampler}, {plural(result.num_levels, 'level')}, {result.sde}"


def density_text(result: AuditResult) -> str:
    """Whose densities were computed, and from which time."""
    if not math.isfinite(result.t_min_likelihood):
        return "not computed"
    return f"probability-flow ODE, t_min = {result.t_min_likelihood:g}"


def held_out_targets_text(result: AuditResult) -> str:
    """How many there are, and how many of them were searched.

    Those with chains are the first of those that are counted.
    """
    counted, searched = result.model.num_count_controls, result.model.num_controls
    return f"{counted:,} held-out targets" + (f" ({searched:,} of them with chains)" if searched != counted else "")
