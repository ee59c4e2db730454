"""Likelihoods and the bound."""

import math

import numpy as np

from ...audit.results import (
    AuditResult,
    Bound,
    NllDiagnostics,
    NllGroup,
    NllSnapshot,
)
from ..numbers import (
    MISSING,
    fixed,
    num_decimals,
    plural,
    small,
)
from .base import Row, _side_by_side, joined, make_row, pick


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
