"""The model's tests, and each member's search and counts."""

import math
from collections.abc import Sequence

import numpy as np

from ...audit.results import (
    AuditResult,
    TargetResult,
)
from ...audit.verdict import MemberTests
from ..numbers import (
    MISSING,
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
    small,
    t50_text,
    time_text,
)
from .base import Row, controls_of, make_row, members_of, pick, rank_last, tolerance_text

MODEL_BASED = "Model-based, decides nothing"


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
