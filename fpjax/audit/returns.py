"""What the search says of each target: its curve q_M(t) and the curve's summaries, also at other thresholds."""

import numpy as np

from .. import stats
from ..detectors.results import ClassifiersResult
from ..diffusion.grid import TimeGrid, log_snr
from ..diffusion.sde import Process
from ..studies.search import SearchResult
from ..studies.strategies import CONFIRM, CURVE, FIXED, RANK
from ..studies.tally import CountResult
from .results import AtThreshold, Curve, TargetResult
from .verdict import AuditSettings, count_p, make_rate


def target_result(
    row: int,
    search: SearchResult,
    count: CountResult,
    grid: TimeGrid,
    sde: Process,
    *,
    floor: float,
    settings: AuditSettings,
    seed: int,
) -> TargetResult:
    """Curve and its summaries; all phases pooled, but for the rank and for what needs chains that chose no level.

    Args:
      row: of the target.
      floor: rate that t'_alpha must exceed.
      seed: of the bootstrap.
    """
    t = np.asarray(grid.t, np.float64)
    mine = search.target == row

    def pooled(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """Levels, and at each the chains, those detected, and those that c_id alone detects."""
        levels, place = np.unique(search.level[chosen], return_inverse=True)
        counts = (search.num_chains, search.num_detected, search.num_identity)
        return levels, *(np.bincount(place, each[chosen], minlength=len(levels)).astype(int) for each in counts)

    levels, chains, hits, identity = pooled(mine)
    times, rank = t[levels], mine & (search.phase == RANK)
    lower, upper = stats.clopper_pearson(hits, chains, confidence=settings.confidence)
    t50 = stats.t50(times, hits, chains)
    t50_lower, t50_upper = stats.t50_interval(times, hits, chains, seed=seed, confidence=settings.confidence)
    # t' grows with the chains: it is that of the curve alone, where there is one.
    curve = mine & (search.phase >= CURVE)
    curve_levels, curve_chains, curve_hits, curve_identity = pooled(curve if curve.any() else rank)
    t_prime = stats.t_prime(t[curve_levels], curve_hits)
    t_lower, t_upper = stats.t_prime_range(t[curve_levels], curve_hits, curve_chains, coverage=settings.confidence)
    # The test over levels needs chains that had no part in choosing them.
    tested = (times, hits, chains)
    if search.strategy not in FIXED:
        fresh = mine & (search.phase == CONFIRM)
        chosen = fresh if fresh.any() else rank
        tested = t[search.level[chosen]], search.num_detected[chosen], search.num_chains[chosen]
    alpha_of = {"floor": floor, "alpha": 1 - settings.confidence}
    alpha_lower, alpha_upper = stats.t_prime_alpha_range(*tested, **alpha_of, coverage=settings.confidence)
    return TargetResult(
        row=row,
        member=row < search.num_members,
        curve=Curve(
            levels.tolist(),
            times.tolist(),
            chains.tolist(),
            hits.tolist(),
            identity.tolist(),
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
        t50_rank=stats.t50(t[search.level[rank]], search.num_detected[rank], search.num_chains[rank]),
        log_snr_t50=float(log_snr(sde, t50)),
        log_snr_t_prime=float(log_snr(sde, t_prime)) if t_prime else float("inf"),
        num_identity=int(count.num_identity[row]),
        num_detected=int(count.num_detected[row]),
    )


def at_thresholds(
    row: int,
    classifiers: ClassifiersResult,
    count: CountResult,
    search: SearchResult,
    grid: TimeGrid,
    settings: AuditSettings,
    *,
    seed: int,
) -> list[AtThreshold]:
    """One member's answer at every threshold that was counted, the one in use among them."""
    c, mine, members = settings.confidence, search.target == row, search.num_members
    phase, num_chains = search.phase[mine], search.num_chains[mine]
    levels, place = np.unique(search.level[mine], return_inverse=True)
    times = np.asarray(grid.t, np.float64)[levels]

    def pooled(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=len(levels)).astype(int)

    returned = np.column_stack([search.num_detected, search.num_detected_at])[mine]
    detected = np.column_stack([count.num_detected, count.num_detected_at])
    seen = np.append(count.sensitivity_detected[row], count.sensitivity_detected_at[row])
    found = {}
    for i, threshold in enumerate([classifiers.threshold, *classifiers.thresholds]):
        hits = pooled(returned[:, i])
        low, high = stats.t50_interval(times, hits, pooled(num_chains), seed=seed, confidence=c)
        found[threshold] = AtThreshold(
            row,
            threshold,
            int(detected[row, i]),
            detected[members:, i].tolist(),
            count_p(detected[:, i], members),
            make_rate(int(seen[i]), count.sensitivity_chains, c),
            # Of the curve's chains alone, where there are such, as for the threshold in use.
            stats.t_prime(times, pooled(returned[:, i] * (phase >= min(CURVE, phase.max())))),
            stats.t50(times, hits, pooled(num_chains)),
            float(low),
            float(high),
        )
    return [found[threshold] for threshold in sorted(found)]
