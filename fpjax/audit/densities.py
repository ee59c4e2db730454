"""What the densities say: of groups of images, of each member's rank, over training, and in the paper's bound."""

from typing import Any

import numpy as np

from .. import stats
from ..diffusion.flow import OUTCOMES
from ..diffusion.grid import TimeGrid
from ..studies.bound import BoundResult, darboux_cells, log_darboux_sum
from ..studies.likelihood import HELD_OUT_TARGET, MEMBER, Densities, LikelihoodResult
from .results import Bound, BoundCell, MemberNll, NllDiagnostics, NllGroup, NllSnapshot, TargetResult


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def nll_groups(densities: Densities, num_dims: int) -> list[NllGroup]:
    """Groups of images with the mean of those that converged."""
    groups = []
    for name in dict.fromkeys(densities.group):
        mine = densities.of_group(name)
        bits = mine.bits_per_dim[mine.converged]
        error = float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan")
        lost = len(mine.row) - len(bits)
        groups.append(NllGroup(name, bits.tolist(), _mean(bits), error, lost, _diagnostics(mine, num_dims)))
    return groups


def _diagnostics(mine: Densities, num_dims: int) -> NllDiagnostics:
    """Of a group."""
    # Over repeats the spread is of dequantisation and probes alike.
    errors = _finite(mine.repeat_error)
    errors = errors if len(errors) else _finite(mine.probe_error)
    return NllDiagnostics(
        outcomes={name: mine.outcome.count(name) for name in OUTCOMES},
        prior_nats=_mean(_finite(mine.prior_nats)) / num_dims,
        divergence_nats=_mean(_finite(mine.delta_nats)) / num_dims,
        image_error=float(np.sqrt(_mean(errors**2))) / (num_dims * np.log(2)),
        median_evaluations=float(np.median(mine.nfe)) if len(mine.nfe) else float("nan"),
        most_evaluations=int(mine.nfe.max(initial=0)),
    )


def held_out_bits(densities: Densities) -> list[float]:
    """Bits/dim of the held-out targets, nan where not converged."""
    held_out = densities.of_group(HELD_OUT_TARGET)
    return np.where(held_out.converged, held_out.bits_per_dim, np.nan).tolist()


def member_nll(densities: Densities, num_members: int) -> list[MemberNll]:
    """Bits/dim of each member, and the p-value of its rank among the held-out targets; None where not converged."""
    # Marked in the same way; one whose density did not converge counts as likelier than the member.
    held_out = [bits if np.isfinite(bits) else -np.inf for bits in held_out_bits(densities)]
    mine = densities.of_group(MEMBER)
    own = dict(zip(mine.row[mine.converged].tolist(), mine.bits_per_dim[mine.converged].tolist(), strict=True))
    found = []
    for row in range(num_members):
        bits = own.get(row)
        # A member that is likelier than held-out targets has fewer bits than they.
        p = None if bits is None or not held_out else stats.rank_p_value(-bits, [-b for b in held_out])
        found.append(MemberNll(row, bits, p))
    return found


def member_bits(members: list[MemberNll]) -> list[float]:
    """Bits/dim of each member, nan where not converged."""
    return [float("nan") if one.bits_per_dim is None else one.bits_per_dim for one in members]


def nll_snapshots(likelihood: LikelihoodResult, num_members: int, *, num_steps: int) -> list[NllSnapshot]:
    """The followed images at each kept length of training, and at its end; they are the study's first rows."""
    if not likelihood.snapshots:
        return []
    tables = [(one.step, one.densities) for one in likelihood.snapshots]
    tables.append((num_steps, likelihood.densities.rows(slice(len(tables[0][1].row)))))
    found = []
    for step, densities in tables:
        members = member_nll(densities, num_members)
        groups = nll_groups(densities, likelihood.num_dims)
        found.append(NllSnapshot(step, groups, member_bits(members), [one.rank_p for one in members]))
    return found


def bound_result(table: BoundResult, target: TargetResult, grid: TimeGrid) -> Bound:
    """The sum of one member up to both t'."""
    mine = table.target == target.row
    level, chains, lost = table.level[mine], table.num_chains[mine], table.not_converged[mine]
    log_mean, effective = table.log_mean[mine], table.effective[mine]
    t, edges = np.asarray(grid.t, np.float64), np.asarray(table.edges[target.row])

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
        trace_error=float("nan") if table.trace_error is None else table.trace_error,
        t_min=table.t_min,
    )
