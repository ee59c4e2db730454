"""Which chains a search runs next, given what came back so far: five ways over the levels of the sampler's grid.

A strategy is a pure function of the counts; it is asked again after every look, until it wants none. All of them end
in the same kind of result, so that what they found and what they spent can be compared. A chain's draws depend on its
target, level and number alone: two strategies that run the same chain see the same image.

Levels of the later looks are chosen by what earlier ones saw. Counts at a level stay binomial, as its chains are drawn
after it was chosen; but a test over levels needs chains that had no part in choosing them, so the strategies that
close in on t50 end with a look of phase `CONFIRM`, whose chains are fresh, and t'_alpha is of these alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..stats.curves import isotonic_rate

FIXED = ("exhaustive", "random")  # strategies whose levels do not depend on what came back
RANK, CURVE, CONFIRM = 0, 1, 2  # phases, in the order in which the chains of one level are numbered


class Look(NamedTuple):
    """One round: pairs of a member and a level, and the phase of their chains."""

    phase: int
    target: np.ndarray
    level: np.ndarray


class Seen(NamedTuple):
    """Counts of phase `CURVE` before a look, int64 of shape (members, levels + 1); and whether `CONFIRM` is done."""

    num_chains: np.ndarray
    num_detected: np.ndarray
    confirmed: bool = False

    def curve(self, member: int) -> tuple[np.ndarray, np.ndarray]:
        """Levels at which a member has chains, and the non-increasing fit of its return rate there."""
        levels = np.flatnonzero(self.num_chains[member])
        return levels, isotonic_rate(self.num_detected[member, levels], self.num_chains[member, levels])


class Plan(NamedTuple):
    """What a strategy is told of the settings; see `SearchSettings`."""

    num_levels: int  # N of the grid
    member_levels: int
    coarse_levels: int
    fine_levels: int
    seed: tuple[int, ...]


def spaced_levels(top: int, count: int, *, bottom: int = 0) -> np.ndarray:
    """At most `count` distinct levels, evenly spaced, above `bottom` and up to `top`.

    >>> spaced_levels(100, 4).tolist(), spaced_levels(30, 2, bottom=20).tolist()
    ([25, 50, 75, 100], [25, 30])
    """
    return np.unique(np.round(np.linspace(bottom + (top - bottom) / count, top, count)).astype(int).clip(bottom + 1))


def _look(phase: int, levels: list[np.ndarray]) -> Look | None:
    """Each member's own levels; None if no member has any."""
    target = np.repeat(np.arange(len(levels)), [len(each) for each in levels])
    return Look(phase, target, np.concatenate(levels).astype(int)) if len(target) else None


def exhaustive(plan: Plan, seen: Seen) -> Look | None:
    """All `member_levels` evenly spaced levels at once (paper, section 5.3). The reference.

    Misses a return between its levels if `member_levels` is below N, and rates that M chains cannot see.
    """
    first = spaced_levels(plan.num_levels, plan.member_levels)
    return None if seen.num_chains.any() else _look(CURVE, [first] * len(seen.num_chains))


def random(plan: Plan, seen: Seen) -> Look | None:
    """`member_levels` levels drawn without replacement, the same for all members.

    An unbiased thinning of the exhaustive search: misses t' where the levels near it are not drawn.
    """
    if seen.num_chains.any():
        return None
    drawn = 1 + np.random.default_rng(plan.seed).choice(plan.num_levels, plan.member_levels, replace=False)
    return _look(CURVE, [np.sort(drawn)] * len(seen.num_chains))


def descending(plan: Plan, seen: Seen) -> Look | None:
    """From the top downwards, `coarse_levels` of the exhaustive levels in a look, until a chain returns (Alg. 1).

    Its t' is that of the exhaustive search with the same chains; levels below are not searched, so t50 and t'_alpha
    rest on the ranking chains alone.
    """
    levels = spaced_levels(plan.num_levels, plan.member_levels)[::-1]
    following = []
    for chains, hits in zip(seen.num_chains, seen.num_detected, strict=True):
        done = np.count_nonzero(chains)
        following.append(levels[:0] if hits.any() else levels[done : done + plan.coarse_levels])
    return _look(CURVE, following)


def bisection(plan: Plan, seen: Seen) -> Look | None:
    """Halves the levels at the rate 1/2, one level in a look; then confirms around the last one.

    Right where the rate falls with t; M chains decide each half, so an early chance majority misleads it, by as much
    as a half, and the confirming levels then show a flat curve. Sees no return far above t50: its t' is a lower one.
    """
    if seen.confirmed:
        return None
    ends = []
    for chains, hits in zip(seen.num_chains, seen.num_detected, strict=True):
        low, high = 0, plan.num_levels + 1
        while high - low > 1 and chains[middle := (low + high) // 2]:
            low, high = (middle, high) if 2 * hits[middle] >= chains[middle] else (low, middle)
        ends.append((low, high))
    if any(high - low > 1 for low, high in ends):
        return _look(CURVE, [np.arange((low + high) // 2, (low + high) // 2 + (high - low > 1)) for low, high in ends])
    around = [(low // 2, min(max(2 * low, plan.fine_levels), plan.num_levels)) for low, _ in ends]
    return _look(CONFIRM, [spaced_levels(top, plan.fine_levels, bottom=bottom) for bottom, top in around])


def coarse_to_fine(plan: Plan, seen: Seen) -> Look | None:
    """`coarse_levels` evenly spaced levels, then fresh chains at `fine_levels` where the rate falls from 0.9 to 0.05.

    Misses what happens between two coarse levels: a curve that falls and rises again, and a lone return above the fine
    levels, so that its t' is a lower one. t50 and t'_alpha lie where the rate falls.
    """
    if seen.confirmed:
        return None
    if not seen.num_chains.any():
        return _look(CURVE, [spaced_levels(plan.num_levels, plan.coarse_levels)] * len(seen.num_chains))
    fine = []
    for member in range(len(seen.num_chains)):
        levels, rate = seen.curve(member)
        bottom = int(np.max(levels[rate >= 0.9], initial=0))
        top = int(np.min(levels[rate <= 0.05], initial=plan.num_levels))
        fine.append(spaced_levels(top, plan.fine_levels, bottom=bottom) if bottom < top else levels[:0])
    return _look(CONFIRM, fine)


STRATEGIES: dict[str, Callable[[Plan, Seen], Look | None]] = {
    "exhaustive": exhaustive,
    "descending": descending,
    "coarse_to_fine": coarse_to_fine,
    "bisection": bisection,
    "random": random,
}
# In the report, beside t': what each one cannot see.
MISSES = {
    "exhaustive": "rates too small for M chains a level",
    "descending": "everything below t' (t50 and t'_alpha rest on the ranking chains)",
    "coarse_to_fine": "lone returns between coarse levels, so that t' is a lower bound of the exhaustive one",
    "bisection": "returns far above t50, so that t' is a lower bound of the exhaustive one; it trusts M chains a step",
    "random": "levels that were not drawn",
}


def most_levels(strategy: str, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Levels of a member's chains of phase `CURVE` and of phase `CONFIRM`, for their number and cost: at most these."""
    none = np.zeros((1, plan.num_levels + 1), np.int64)
    if strategy == "bisection":
        curve = np.full(plan.num_levels.bit_length(), plan.num_levels)
    else:
        look = STRATEGIES["exhaustive" if strategy == "descending" else strategy](plan, Seen(none, none))
        curve = look.level if look else none[0]
    closes_in = strategy in ("bisection", "coarse_to_fine")
    return curve, np.full(min(plan.fine_levels, plan.num_levels) * closes_in, plan.num_levels)
