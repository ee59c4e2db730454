"""Statistics of detection counts: what can be said about rates, t' and reproduction, with which error.

Host code on NumPy arrays. The data are counts h_i of `hits` among c_i independent `chains` at times t_i, with
h_i ~ Bin(c_i, q(t_i)), or a count of hits among n samples from the prior, Bin(n, q). In the notation of this module:

- exact interval for a rate (Clopper & Pearson 1934): the rates r that leave both P(Bin(c, r) >= h) and
  P(Bin(c, r) <= h) above the tail probability; the ends are quantiles of Beta(h, c - h + 1) and Beta(h + 1, c - h);
- t50: the time at which q, assumed non-increasing with q(0) = 1, crosses 1/2; q is fitted by pool-adjacent-violators
  (Ayer et al. 1955), the maximum-likelihood fit under that order;
- t' (arXiv:2306.01363, Alg. 1): the largest t with a hit. It grows with the number of chains; t'_alpha, the end of the
  initial run of levels whose rate is shown to exceed a floor, does not;
- tests that decide: of "members are exchangeable with their controls" (a rank, a permutation), with Holm's adjustment
  for several, and of "the rate is 1/N" against a lower one (the paper's);
- model-based p-values that inform at most: of "the rate is at most the false-positive rate" (all heads err alike), and
  of a count among gamma-Poisson ones;
- detectors: the area under a ROC curve from counts above thresholds, and whether heads err equally often.

A test of level a rejects when p <= a; each p-value here satisfies P(p <= a) <= a under its hypothesis, for every a.
The gamma-Poisson one does so only as far as its fit is right.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, isotonic_regression, minimize_scalar
from scipy.stats import beta as beta_distribution
from scipy.stats import binom, nbinom, norm, rankdata

from .checks import check, in_range, one_of

Count = int | np.integer
Counts = Count | Sequence[Count] | NDArray
Values = Sequence | NDArray
End = TypeVar("End", float, NDArray)


class Interval(NamedTuple, Generic[End]):
    """Ends of a confidence interval: numbers, or arrays of one shape."""

    lower: End
    upper: End


def _inside(what: str, value: float) -> None:
    """Refuses numbers outside the open interval (0, 1)."""
    check(0 < value < 1, what, got=value, expected="a number strictly between 0 and 1", fix="choose one, such as 0.05")


def _counts(hits: Counts, chains: Counts) -> tuple[NDArray, NDArray]:
    """Both as integer arrays of one shape with 0 <= hits <= chains and chains > 0."""
    hits, chains = np.asarray(hits), np.asarray(chains)
    integers = np.issubdtype(hits.dtype, np.integer) and np.issubdtype(chains.dtype, np.integer)
    check(integers, "counts", got=f"{hits.dtype}, {chains.dtype}", expected="integers", fix="pass counts, not rates")
    shapes = f"shapes {hits.shape} and {chains.shape}"
    check(hits.shape == chains.shape, "counts", got=shapes, expected="one shape", fix="give one pair for each level")
    wrong = np.argwhere((hits < 0) | (hits > chains) | (chains < 1))
    if len(wrong):
        at = tuple(wrong[0].tolist())
        got = f"{hits[at]} of {chains[at]}" + (f" at index {at}" if at else "")
        check(False, "counts", got=got, expected="0 <= hits <= chains, chains > 0", fix="drop levels without chains")
    return hits, chains


def _curve(times: Values, *counts: NDArray) -> NDArray:
    """The times as a float array, increasing in (0, 1], one for each of the counts."""
    times = np.asarray(times, dtype=float)
    one_each = times.ndim == 1 and times.size > 0 and all(count.shape == times.shape for count in counts)
    shapes = f"shapes {times.shape} and {', '.join(str(count.shape) for count in counts)}"
    check(one_each, "times", got=shapes, expected="one row of levels, one shape", fix="give one count for each time")
    steps = np.diff(times, prepend=0.0)
    ok = np.all(steps > 0) and times[-1] <= 1
    worst = f"{times[np.argmin(steps)]:.6g} at index {np.argmin(steps)}, last {times[-1]:.6g}"
    check(bool(ok), "times", got=worst, expected="strictly increasing in (0, 1]", fix="sort them and drop level 0")
    return times


def clopper_pearson(
    hits: Counts,
    chains: Counts,
    *,
    confidence: float = 0.95,
    side: Literal["both", "lower", "upper"] = "both",
) -> Interval[NDArray]:
    """Exact confidence interval for a binomial rate (Clopper & Pearson 1934), elementwise.

    >>> low, high = clopper_pearson(0, 16, side="upper")
    >>> float(low), round(float(high), 3)
    (0.0, 0.171)

    Args:
      hits: integers, 0 <= hits <= chains; any shape.
      chains: positive integers of the same shape.
      confidence: in (0, 1); the interval covers the rate at least this often, whatever the rate.
      side: "both" splits the error evenly; "lower" and "upper" spend it on that end and set the other to 1 or 0.

    Returns:
      `Interval(lower, upper)`, rates in [0, 1], shaped like `hits`.

    Raises:
      RequestError: if the counts are not as above, or `confidence` or `side` is outside its range.
    """
    hits, chains = _counts(hits, chains)
    _inside("confidence", confidence)
    one_of("side", side, ("both", "lower", "upper"))
    tail = (1 - confidence) / (2 if side == "both" else 1)
    misses = chains - hits
    lower, upper = np.zeros(hits.shape), np.ones(hits.shape)
    # max(., 1) keeps the unused branch of each `where` finite.
    if side != "upper":
        lower = np.where(hits > 0, beta_distribution.ppf(tail, np.maximum(hits, 1), misses + 1), 0.0)
    if side != "lower":
        upper = np.where(misses > 0, beta_distribution.isf(tail, hits + 1, np.maximum(misses, 1)), 1.0)
    return Interval(lower, upper)


def _non_increasing(rates: NDArray, weights: NDArray) -> NDArray:
    return isotonic_regression(rates, weights=weights, increasing=False).x


def isotonic_rate(hits: Counts, chains: Counts) -> NDArray:
    """Non-increasing fit to the hit rates, weighted by the chains (Ayer et al. 1955).

    The maximum-likelihood fit of h_i ~ Bin(c_i, q_i) under q_1 >= q_2 >= ...: levels that rise are pooled.

    >>> isotonic_rate([4, 2, 3, 0], [4, 4, 4, 4])
    array([1.   , 0.625, 0.625, 0.   ])

    Args:
      hits: one integer for each level, in order of time.
      chains: positive integers, as many.

    Returns:
      The fitted rates in [0, 1], one for each level.

    Raises:
      RequestError: if the counts do not fit each other.
    """
    hits, chains = _counts(hits, chains)
    check(hits.ndim == 1, "counts", got=f"shape {hits.shape}", expected="one row of levels", fix="pass one target")
    return _non_increasing(hits / chains, chains)


def _smoothed(hits: NDArray, chains: NDArray) -> NDArray:
    """The isotonic fit after half a hit and half a miss at each level."""
    return _non_increasing((hits + 0.5) / (chains + 1), chains + 1)


def _off_the_ends(hits: NDArray, chains: NDArray) -> NDArray:
    """The isotonic fit; where it is 0 (1), half a hit (half a miss) is spread over all those chains."""
    rate = isotonic_rate(hits, chains)
    least, most = (0.5 / max(chains[rate == end].sum(), 1) for end in (0, 1))
    return np.where(rate == 0, least, np.where(rate == 1, 1 - most, rate))


def _crossing(times: NDArray, rates: NDArray) -> float:
    """Where non-increasing rates, joined by lines and 1 at t = 0, fall below 1/2; the last time if they never do."""
    times, rates = np.append(0.0, times), np.append(1.0, rates)
    below = rates < 0.5 - 1e-12  # A pooled rate of exactly 1/2 must not fall below it by rounding.
    if not below.any():
        return float(times[-1])
    i = int(np.argmax(below))
    return float(np.interp(0.5, rates[[i, i - 1]], times[[i, i - 1]]))


def t50(times: Values, hits: Counts, chains: Counts) -> float:
    """Time at which the isotonic fit of the hit rate crosses 1/2.

    The fit is joined by straight lines between levels and is 1 at t = 0, so a target that is never detected gets half
    the first time. **Censored** at the last time: if the fit never falls below 1/2, `times[-1]` is returned and means
    "at least this". Where the fit stays at exactly 1/2, the end of that stretch is returned.

    >>> round(t50([0.2, 0.4, 0.6], [16, 12, 4], [16, 16, 16]), 3)
    0.5

    Args:
      times: strictly increasing, in (0, 1].
      hits: one integer for each time, 0 <= hits <= chains.
      chains: positive integers, as many.

    Returns:
      A time in (0, times[-1]].

    Raises:
      RequestError: if times and counts are not as above.
    """
    hits, chains = _counts(hits, chains)
    times = _curve(times, hits, chains)
    return _crossing(times, _non_increasing(hits / chains, chains))


def t50_interval(
    times: Values,
    hits: Counts,
    chains: Counts,
    *,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval[float]:
    """Confidence interval for the time at which a non-increasing q crosses 1/2, by parametric bootstrap.

    Counts are redrawn from the isotonic fit of (hits + 1/2) / (chains + 1): the plain fit is 0 or 1 at most levels,
    where redrawn counts would never differ. The percentile interval of the redrawn t50, stretched to the estimate
    where it leaves it out, is then **rounded outward to the levels** (0 counts as one): between two levels the data
    say nothing, so the interval holds for any curve, not only one straight between levels. It is rarely narrower than
    one level spacing unless censored; like `t50`, upper == times[-1] means "or later".

    Why so: in simulations at nominal 0.95 (nine shapes of q, 1 to 64 chains at 20 to 1000 levels, 100 to 600 runs
    each) it covered 0.97 to 1.00 of the time. Without the rounding: 0.16 to 1.00, worst for curves steeper than the
    grid. From the plain fit: as good from 8 chains on, 0.60 to 0.98 with a single chain. The basic (reflected)
    interval: 0.37 to 0.99. The price is width: on coarse grids it covers more than asked, and
    with one or two chains a level it says little.

    Args:
      times: strictly increasing, in (0, 1].
      hits: one integer for each time, 0 <= hits <= chains.
      chains: positive integers, as many.
      seed: of the redrawn counts; the same seed gives the same interval.
      resamples: redrawn curves, at least 100.
      confidence: in (0, 1).

    Returns:
      `Interval(lower, upper)` with 0 <= lower <= t50 <= upper <= times[-1].

    Raises:
      RequestError: if the arguments are not as above.
    """
    hits, chains = _counts(hits, chains)
    times = _curve(times, hits, chains)
    _inside("confidence", confidence)
    check(resamples >= 100, "resamples", got=resamples, expected="at least 100", fix="use 1000")
    redrawn = (
        np.random.default_rng(seed).binomial(chains, _smoothed(hits, chains), size=(resamples, len(times))) / chains
    )
    crossings = [_crossing(times, _non_increasing(rates, chains)) for rates in redrawn]
    low, high = np.quantile(crossings, [(1 - confidence) / 2, (1 + confidence) / 2])
    estimate = _crossing(times, _non_increasing(hits / chains, chains))
    low, high, grid = min(low, estimate), max(high, estimate), np.append(0.0, times)
    return Interval(float(grid[grid <= low][-1]), float(grid[grid >= high][0]))


def t_prime(times: Values, hits: Counts) -> float:
    """The paper's t' (arXiv:2306.01363, Alg. 1): the largest time with a hit, 0 if there is none.

    It grows with the number of chains and levels even where hits are chance; see `t_prime_alpha`. The authors' later
    code returns -1 for no hit and 1 for a single one; neither is followed here.

    >>> t_prime([0.2, 0.4, 0.6], [16, 3, 0])
    0.4

    Args:
      times: strictly increasing, in (0, 1].
      hits: non-negative integers, as many.

    Returns:
      One of `times`, or 0.

    Raises:
      RequestError: if the times are not as above or the counts do not match them.
    """
    hits = np.asarray(hits)
    _counts(hits, np.maximum(hits, 1))
    times = _curve(times, hits)
    return float(np.max(times[hits > 0], initial=0.0))


def t_prime_range(times: Values, hits: Counts, chains: Counts, *, coverage: float = 0.95) -> Interval[float]:
    """Where t' of another search with the same levels and chains would fall, at the fitted curve.

    P(t' <= t_i) is the product of (1 - q_j)^chains_j over the levels above i, exactly, at the isotonic fit q. Where
    the fit is 0 (or 1) half a hit (a miss) is spread over all those chains, so that the ends can lie above (below) t'.
    Unlike the interval of a parameter it does not shrink with more chains: t' itself grows with them.

    In simulations at 0.95 (nine shapes of q, 1 to 64 chains at 20 to 200 levels) it covered 0.92 to 1.00 of the
    repeats. Without the half miss: the same from 2 chains on, but down to 0.76 with one. Half a hit at *each* level,
    which `t_prime_alpha_range` needs, would put t' near the top always: down to 0.

    >>> t_prime_range([0.2, 0.4, 0.6], [16, 16, 0], [16, 16, 16])
    Interval(lower=0.4, upper=0.6)

    Args:
      times: strictly increasing, in (0, 1].
      hits: one integer for each time, 0 <= hits <= chains.
      chains: positive integers, as many.
      coverage: probability of the range, in (0, 1).

    Returns:
      Two of `times`, or 0 for no hit at all.

    Raises:
      RequestError: if the arguments are not as above.
    """
    hits, chains = _counts(hits, chains)
    times = _curve(times, hits, chains)
    _inside("coverage", coverage)
    # Misses of all levels from i on; at i = 0 there is no hit at all.
    log_miss = chains * np.log1p(-_off_the_ends(hits, chains))
    at_most = np.exp(np.append(np.cumsum(log_miss[::-1])[::-1], 0.0))
    return _central(np.append(0.0, times), at_most, coverage)


def _central(values: NDArray, at_most: NDArray, coverage: float) -> Interval[float]:
    """The values between which a discrete distribution with this cdf lies with probability `coverage`."""
    ends = values[[np.argmax(at_most > (1 - coverage) / 2), np.argmax(at_most >= (1 + coverage) / 2)]]
    return Interval(float(ends[0]), float(ends[1]))


def t_prime_alpha(times: Values, hits: Counts, chains: Counts, *, floor: float, alpha: float = 0.05) -> float:
    """The largest time such that here and at all lower times the rate is shown to exceed `floor`; 0 if none.

    Levels are tested upward from the lowest, each by its one-sided Clopper-Pearson lower limit at level `alpha`,
    until one fails. In such a fixed sequence (Maurer, Hothorn & Lehmacher 1995) the chance that *any* level is
    wrongly passed is at most alpha without correction, for any shape of q: before a second wrong pass there must be a
    first. The order must not depend on the counts, and the chains must be fresh if earlier ones chose the levels.

    >>> t_prime_alpha([0.2, 0.4, 0.6, 0.8], [16, 6, 0, 1], [16, 16, 16, 16], floor=0.001)
    0.4

    Args:
      times: strictly increasing, in (0, 1].
      hits: one integer for each time, 0 <= hits <= chains.
      chains: positive integers, as many.
      floor: rate in [0, 1) that chance alone gives, such as max(1/N, joint false-positive rate).
      alpha: in (0, 1).

    Returns:
      One of `times`, or 0 if the first level fails.

    Raises:
      RequestError: if the arguments are not as above.
    """
    hits, chains = _counts(hits, chains)
    times = _curve(times, hits, chains)
    check(0 <= floor < 1, "floor", got=floor, expected="a rate in [0, 1)", fix="use max(1/N, false-positive rate)")
    _inside("alpha", alpha)
    passed = clopper_pearson(hits, chains, confidence=1 - alpha, side="lower").lower > floor
    return float(np.max(times[np.logical_and.accumulate(passed)], initial=0.0))


def t_prime_alpha_range(
    times: Values, hits: Counts, chains: Counts, *, floor: float, alpha: float = 0.05, coverage: float = 0.95
) -> Interval[float]:
    """Where t'_alpha of another search with the same levels and chains would fall, at the fitted curves.

    P(t'_alpha >= t_i) is the product over the levels up to i of the probabilities that each passes its test. The range
    holds those at two fits: the isotonic one, with half a miss spread over the levels where all chains returned, and
    that of (hits + 1/2) / (chains + 1), which allows for levels that were lucky. More levels make more chances to
    stop, so that t'_alpha of a fine grid is lower than that of a coarse one: compare searches by these ranges.

    In simulations at 0.95 (nine shapes of q, 20 to 1000 levels) it covered 0.96 to 1.00 of the repeats with 16 or 64
    chains and 0.91 to 1.00 with 1 to 4. The first fit alone: 0.71 to 1.00. The second alone: as good as both from 16
    chains on, down to 0 with one chain a level, where half a hit is no small change.

    >>> t_prime_alpha_range([0.2, 0.4, 0.6], [16, 8, 0], [16, 16, 16], floor=0.01)
    Interval(lower=0.4, upper=0.6)

    Args:
      times: strictly increasing, in (0, 1].
      hits: one integer for each time, 0 <= hits <= chains.
      chains: positive integers, as many.
      floor: as in `t_prime_alpha`, as is
      alpha: the level.
      coverage: probability of the range, in (0, 1).

    Returns:
      Two of `times`, or 0 where the first level may fail.

    Raises:
      RequestError: if the arguments are not as above.
    """
    hits, chains = _counts(hits, chains)
    times = _curve(times, hits, chains)
    check(0 <= floor < 1, "floor", got=floor, expected="a rate in [0, 1)", fix="use max(1/N, false-positive rate)")
    _inside("alpha", alpha)
    _inside("coverage", coverage)
    # The limit exceeds the floor where so many hits or more have a probability below alpha there.
    needed = binom.isf(alpha, chains, floor) + 1
    reached = [np.cumprod(binom.sf(needed - 1, chains, fit(hits, chains))) for fit in (_off_the_ends, _smoothed)]
    lower, upper = zip(
        *(_central(np.append(0.0, times), np.append(1 - r, 1.0), coverage) for r in reached), strict=True
    )
    return Interval(min(lower), max(upper))


def rank_p_value(member: float, controls: Values) -> float:
    """P-value of the member's rank among held-out controls: (1 + #{controls >= member}) / (H + 1).

    Valid in finite samples if, were the member not trained on, it and its H controls would be exchangeable (Barnard
    1963; Phipson & Smyth 2010): same draw, same levels, same number of chains. Ties count against the member, so
    censored values are safe. The smallest value is 1 / (H + 1): level 0.05 needs H >= 19.

    >>> rank_p_value(0.5, [0.3] * 19)
    0.05

    Args:
      member: statistic of the member, larger for more memorised.
      controls: the same statistic of the H >= 0 held-out targets.

    Returns:
      A p-value in [1 / (H + 1), 1].

    Raises:
      RequestError: if a value is NaN or the controls are not one row.
    """
    controls = np.asarray(controls, dtype=float)
    ok = controls.ndim == 1 and not np.isnan(controls).any() and not math.isnan(member)
    got = f"member {member}, controls of shape {controls.shape}"
    check(ok, "rank test", got=got, expected="numbers, one row of controls", fix="drop targets without a value")
    return float((1 + np.sum(controls >= member)) / (controls.size + 1))


_EXACT = 20_000  # K (K + H) up to which choices are counted: under a second


def permutation_p(members: Values, controls: Values, *, seed: int, draws: int = 9999) -> float:
    """P-value of "members are exchangeable with controls" against larger members, by the sum of their mid-ranks.

    The sum for the K members among all K + H values (ties share their mid-rank) is compared with that for every choice
    of K values: the share of the binom(K + H, K) choices whose sum is theirs or larger, counted exactly (rank by rank,
    as for Wilcoxon's test with ties). Where K (K + H) is above 20,000 choices are drawn instead, (1 + #{drawn sum >=
    theirs}) / (draws + 1) (Phipson & Smyth 2010). One member's is `rank_p_value`. Only the order of the values matters,
    so heads may err at unequal rates, as long as which of them are the members' was drawn at random.

    >>> permutation_p([7], [0] * 99, seed=0), round(1 / permutation_p([3, 2], [0] * 19, seed=0))
    (0.01, 210)

    Args:
      members: statistic of each of the K >= 1 members, larger for more memorised; infinite values are in order.
      controls: the same statistic of the H >= 0 controls.
      seed: of the draws, where there are any.
      draws: how many, at least 999.

    Returns:
      A p-value in (0, 1]; 1 without controls.

    Raises:
      RequestError: if a value is NaN, there is no member, or there are too few draws.
    """
    members, controls = np.asarray(members, dtype=float), np.asarray(controls, dtype=float)
    both = np.append(members, controls)
    ok = members.ndim == controls.ndim == 1 and members.size > 0 and not bool(np.isnan(both).any())
    got = f"members {members.tolist()}, controls of shape {controls.shape} with {np.isnan(controls).sum()} NaN"
    fix = "drop targets without a value"
    check(ok, "permutation test", got=got, expected="numbers, one row of members and one of controls", fix=fix)
    check(draws >= 999, "draws", got=draws, expected="at least 999", fix="use 9999")
    k = members.size
    # Doubled mid-ranks are integers, so that equal sums compare as equal.
    ranks = np.rint(2 * rankdata(both)).astype(int)
    theirs = int(ranks[:k].sum())
    if k * both.size <= _EXACT:
        # ways[i, s]: choices of i of the values so far whose ranks add up to s.
        ways = np.zeros((k + 1, int(np.sort(ranks)[-k:].sum()) + 1))
        ways[0, 0] = 1
        for rank in ranks:
            ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank]
        return float(ways[k, theirs:].sum() / ways[k].sum())
    values, counts = np.unique(ranks, return_counts=True)
    # How many of each rank a random choice of K takes.
    taken = np.random.default_rng(seed).multivariate_hypergeometric(counts, members.size, size=draws, method="count")
    return float((1 + np.sum(taken @ values >= theirs)) / (draws + 1))


def critical_count(controls: Values, *, num_members: int, level: float, seed: int) -> int | None:
    """The smallest count that, were it that of each member, would give `permutation_p` <= level.

    >>> critical_count([0] * 98 + [5], num_members=1, level=0.02, seed=0)
    1
    >>> critical_count([0] * 98 + [5], num_members=1, level=0.01, seed=0)
    6

    Args:
      controls: counts of the H >= 0 controls, integers of 0 or more.
      num_members: K >= 1.
      level: in (0, 1).
      seed: of the draws.

    Returns:
      A count of 1 or more; None if no count does, because the smallest p-value of so few is above the level.

    Raises:
      RequestError: if the arguments are not as above.
    """
    controls = np.asarray(controls, dtype=None if len(controls) else int)
    _counts(controls, np.maximum(controls, 1))
    check(num_members >= 1, "num_members", got=num_members, expected="1 or more", fix="give the number of members")
    _inside("level", level)
    # Ranks change only at a control's count and one above it; the p-value falls along these.
    tried = np.union1d(controls, controls + 1).tolist()
    at = bisect.bisect_left(
        tried, True, key=lambda count: permutation_p([count] * num_members, controls, seed=seed) <= level
    )
    return int(tried[at]) if at < len(tried) else None


def holm(p_values: Values) -> NDArray:
    """P-values adjusted for their number by Holm (1979): valid together, whatever their dependence.

    Rejecting those that are at most a errs anywhere with probability at most a.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])

    Args:
      p_values: one row of numbers in [0, 1].

    Returns:
      As many in the same order: of the i-th smallest of n the largest (n - j + 1) p_j with j <= i, at most 1.

    Raises:
      RequestError: if they are not as above.
    """
    p = np.asarray(p_values, dtype=float)
    ok = p.ndim == 1 and bool(np.all((p >= 0) & (p <= 1)))
    check(ok, "p-values", got=p.tolist(), expected="one row of numbers in [0, 1]", fix="drop tests without a value")
    order, adjusted = np.argsort(p), np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def gamma_poisson_p(member: Count, controls: Values) -> float:
    """Model-based P(C >= member) for a control's count C; **decides nothing**.

    Counts are taken as Poisson with means that a gamma distribution gives each head, that is, negative binomial. Its
    mean is (sum + 1/2) / H, its shape the maximum-likelihood one in [0.02, 10^4] (the upper end is nearly Poisson).
    Unlike a rank it can be smaller than 1 / (H + 1), but only because the model says how the tail goes on; that its
    parameters are estimates is not allowed for.

    >>> f"{gamma_poisson_p(4, [0] * 99):.1e}", gamma_poisson_p(0, [0, 1])
    ('1.0e-05', 1.0)

    Args:
      member: count of the member, 0 or more.
      controls: counts of the H >= 0 controls, integers of 0 or more.

    Returns:
      A probability in [0, 1]; 1 without controls.

    Raises:
      RequestError: if the counts are not integers, or negative.
    """
    controls = np.asarray(controls, dtype=None if len(controls) else int)
    _counts(np.append(controls, member), np.append(np.maximum(controls, 1), max(member, 1)))
    if not controls.size:
        return 1.0
    mean = (controls.sum() + 0.5) / controls.size

    def loss(log_shape: float) -> float:
        shape = math.exp(log_shape)
        return -float(np.sum(nbinom.logpmf(controls, shape, shape / (shape + mean))))

    best: Any = minimize_scalar(loss, bounds=(math.log(0.02), math.log(1e4)), method="bounded")
    shape = math.exp(best.x)
    return float(nbinom.sf(member - 1, shape, shape / (shape + mean)))


def fewer_than_expected_p(
    hits: Count, samples: Count, rate: float, *, sensitivity: float = 1.0, beta: float = 0.0
) -> float:
    """The paper's test (arXiv:2306.01363, section 4), mended: P(Bin(samples, rate * sensitivity) <= hits) + beta.

    H0: samples reproduce the target at `rate`, the paper's 1/N; H1: at a lower one. Not a test for safety: it can
    reject with reproductions among the samples. The paper takes every reproduction as detected; where a share of 0.9
    is, a true 1/1000 among 50,000 samples is then rejected at 0.05 with probability 0.166. With a lower limit of the
    sensitivity the p-value is too small only where the limit fails, and beta pays for that (Berger & Boos 1994).

    >>> f"{fewer_than_expected_p(0, 150_000, 1 / 20_000):.1e}"
    '5.5e-04'

    Args:
      hits: 0 <= hits <= samples.
      samples: images drawn from the prior, above 0.
      rate: of H0, in [0, 1].
      sensitivity: in [0, 1], lower limit of the probability that a reproduction is detected.
      beta: in [0, 1), probability that this limit fails.

    Returns:
      A p-value in [beta, 1].

    Raises:
      RequestError: if the arguments are not as above.
    """
    _counts(hits, samples)
    in_range("rate", rate, 0.0, 1.0)
    in_range("sensitivity", sensitivity, 0.0, 1.0)
    check(0 <= beta < 1, "beta", got=beta, expected="a probability in [0, 1)", fix="use 1 - the limit's confidence")
    return float(min(1.0, binom.cdf(hits, samples, rate * sensitivity) + beta))


def mean_lower_limit(values: Values, *, confidence: float = 0.95) -> float:
    """One-sided lower limit of the mean of independent values in [0, 1].

    For sensitivities: one value for each target, the share of its copies that were detected. Copies of one target are
    no independent looks, so the target is the unit. The limit is Clopper & Pearson's with the sum x of the n values
    for the hits, the quantile of Beta(x, n - x + 1) at 1 - confidence. Values between 0 and 1 spread less than hits
    and misses of the same mean; no proof for them is known to us, but exact sums over two-point values (n = 1 to 99)
    and simulations of beta-distributed ones found no coverage below the confidence, and equality for hits and misses.

    >>> round(mean_lower_limit([1.0] * 19), 3), mean_lower_limit([])
    (0.854, 0.0)

    Args:
      values: numbers in [0, 1], one for each independent unit.
      confidence: in (0, 1).

    Returns:
      A number in [0, 1); 0 without values.

    Raises:
      RequestError: if the arguments are not as above.
    """
    values = np.asarray(values, dtype=float)
    _inside("confidence", confidence)
    ok = values.ndim == 1 and bool(np.all((values >= 0) & (values <= 1)))
    check(ok, "values", got=values.tolist(), expected="one row of numbers in [0, 1]", fix="give a share of each target")
    total = min(float(values.sum()), values.size)
    return float(beta_distribution.ppf(1 - confidence, total, values.size - total + 1)) if total > 0 else 0.0


def leak_p(hits: Count, samples: Count, false_hits: Count, false_trials: Count, *, beta: float = 1e-3) -> float:
    """P-value of a leak: H0, detections come at no more than the detectors' false-positive rate.

    min(1, P(Bin(samples, u) >= hits) + beta), where u is the one-sided upper limit of the false-positive rate f at
    confidence 1 - beta (Berger & Boos 1994). Valid although f is only estimated: under H0 the p-value at the true f
    is valid, and the one at u is larger unless f > u, which happens with probability at most beta and is paid for by
    the added beta. That also makes **beta the smallest value**: choose it well below the level.

    **Model-based**: the level holds only where the false detections come from heads that err at one rate, the member's
    among them. Where one of H + 1 heads fires at 3 % the nominal 0.01 is 0.10 / 0.047 / 0.021 at H = 9 / 19 / 49. So it
    informs at most; `permutation_p` decides.

    >>> round(leak_p(3, 50_000, 0, 600_000), 4), leak_p(0, 50_000, 0, 600_000)
    (0.0218, 1.0)

    Args:
      hits: detections among the samples, 0 <= hits <= samples.
      samples: images drawn from the prior, above 0.
      false_hits: false detections, 0 <= false_hits <= false_trials.
      false_trials: independent images that show no target, above 0.
      beta: in (0, 1), error spent on the false-positive rate.

    Returns:
      A p-value in [beta, 1].

    Raises:
      RequestError: if the arguments are not as above.
    """
    _counts(hits, samples)
    _inside("beta", beta)
    limit = clopper_pearson(false_hits, false_trials, confidence=1 - beta, side="upper").upper
    return float(min(1.0, binom.sf(hits - 1, samples, limit) + beta))


def detectable_rate(samples: Count, critical: Count, *, power: float = 0.8, sensitivity: float = 1.0) -> float:
    """The smallest reproduction rate r with P(Bin(samples, r * sensitivity) >= critical) >= power.

    That probability is the cdf of Beta(k, n - k + 1) at r s, so r is its quantile over s. False detections among the
    samples would only help and are left out.

    >>> f"{detectable_rate(2048, 1):.1e}"
    '7.9e-04'

    Args:
      samples: images drawn from the prior, above 0.
      critical: smallest count that rejects, 1 or more, such as `critical_count`.
      power: in (0, 1).
      sensitivity: in (0, 1], the probability that a reproduction is detected; its lower limit if it was measured.

    Returns:
      A rate in (0, 1], or `inf` if none is found with this power: too few samples or too poor detectors.

    Raises:
      RequestError: if the arguments are not as above.
    """
    _counts(0, samples)
    check(bool(critical >= 1), "critical", got=critical, expected="a count of 1 or more", fix="use critical_count")
    _inside("power", power)
    check(0 < sensitivity <= 1, "sensitivity", got=sensitivity, expected="a rate in (0, 1]", fix="measure it again")
    if critical > samples:
        return math.inf
    rate = float(beta_distribution.ppf(power, critical, samples - critical + 1)) / sensitivity
    return rate if rate <= 1 else math.inf


def reproduction_interval(
    hits: Count, samples: Count, *, sensitivity_lower: float, confidence: float = 0.95
) -> Interval[float]:
    """Confidence interval for the reproduction rate, allowing for reproductions that the detectors miss.

    Clopper-Pearson for the rate of detections, its upper end divided by the lower limit of the sensitivity and capped
    at 1. The lower end needs no such factor (the sensitivity may be 1), but counts false detections as reproductions.
    Error adds up: with limits that fail with probabilities a and b the interval fails with at most a + b.

    >>> low, high = reproduction_interval(0, 150_000, sensitivity_lower=0.9)
    >>> low, f"{high:.1e}"
    (0.0, '2.7e-05')

    Args:
      hits: detections among the samples, 0 <= hits <= samples.
      samples: images drawn from the prior, above 0.
      sensitivity_lower: in (0, 1], lower limit of the probability that a reproduction is detected.
      confidence: in (0, 1), of the detection rate.

    Returns:
      `Interval(lower, upper)`, rates in [0, 1].

    Raises:
      RequestError: if the arguments are not as above.
    """
    ok = 0 < sensitivity_lower <= 1
    fix = "a limit of 0 bounds nothing: test more reproductions"
    check(ok, "sensitivity_lower", got=sensitivity_lower, expected="a rate in (0, 1]", fix=fix)
    lower, upper = clopper_pearson(hits, samples, confidence=confidence)
    return Interval(float(lower), min(1.0, float(upper) / sensitivity_lower))


def samples_needed(rate: float, *, alpha: float = 0.05) -> int:
    """Samples that must all be without a hit for the paper's test to reject `rate`: (1 - rate)^n <= alpha.

    About 3 / rate at alpha = 0.05.

    >>> samples_needed(1 / 1000)
    2995

    Args:
      rate: of H0, in (0, 1).
      alpha: level, in (0, 1).

    Returns:
      The smallest such n.

    Raises:
      RequestError: if an argument is outside its range.
    """
    _inside("rate", rate)
    _inside("alpha", alpha)
    return math.ceil(math.log(alpha) / math.log1p(-rate))


class Area(NamedTuple):
    """Area under a ROC curve with its interval."""

    estimate: float
    lower: float
    upper: float


def roc_area(
    positives_above: Counts,
    negatives_above: Counts,
    *,
    positives: int,
    negatives: int,
    units: int = 0,
    confidence: float = 0.95,
) -> Area:
    """Area under the ROC curve, P(positive scores higher) + P(equal) / 2, from counts above increasing thresholds.

    The interval holds both that of DeLong, DeLong & Clarke-Pearson (1988) for scores in these bins, and that of
    Newcombe (2006, method 5), the areas t within z standard errors of the estimate with the variance of Hanley & McNeil
    (1982) at t. The first knows how the scores spread, the second stays honest where no score was out of order: in
    simulations at nominal 0.95 (normal scores, 20 to 640 of each, areas 0.5 to 0.999, spreads 1:3 to 3:1, 250 runs
    each) the first alone covered 0.06 to 0.98 of the time, the second 0.81 to 1.00, both together 0.91 to 1.00.

    >>> area = roc_area([20, 19, 10], [12, 1, 0], positives=20, negatives=20)
    >>> round(area.estimate, 3), round(area.lower, 2), round(area.upper, 2)
    (0.972, 0.85, 1.0)

    Args:
      positives_above: how many of the positives' scores lie above each threshold; integers, non-increasing.
      negatives_above: of the negatives', as many.
      positives: number of all positives, above 0.
      negatives: of all negatives, above 0.
      units: independent images that the negatives come from, where each gives several; 0: as many as negatives.
      confidence: in (0, 1).

    Returns:
      `Area(estimate, lower, upper)` in [0, 1].

    Raises:
      RequestError: if the counts do not fit each other.
    """
    _inside("confidence", confidence)
    bins = []
    for name, above, total in (("positives", positives_above, positives), ("negatives", negatives_above, negatives)):
        counts = -np.diff(np.concatenate([[total], np.asarray(above), [0]]))
        ok = total > 0 and bool((counts >= 0).all())
        fix = "count scores above increasing thresholds"
        check(ok, name, got=f"{total}, {list(above)}", expected="counts that do not rise, of one or more", fix=fix)  # pyright: ignore[reportArgumentType]
        bins.append(counts)
    m, n = positives, units or negatives
    shares = [counts / counts.sum() for counts in bins]
    # Chance that a score of each bin is above one of the other kind; equal counts half.
    above = [np.cumsum(share) - 0.5 * share for share in shares[::-1]]
    area = float(np.sum(shares[0] * above[0]))
    spread = [float(np.sum(s * (a - np.sum(s * a)) ** 2)) for s, a in zip(shares, above, strict=True)]
    z = float(norm.isf((1 - confidence) / 2))
    half = z * math.sqrt(spread[0] / max(m - 1, 1) + spread[1] / max(n - 1, 1))

    def outside(t: float) -> float:
        more = (m + n) / 2 - 1
        return (t - area) ** 2 - z**2 * t * (1 - t) * (1 + more * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)

    # At the very ends the variance is 0, which is no interval: the root beyond is sought.
    tiny = 1e-9
    lower: Any = brentq(outside, 0.0, area - tiny) if area > tiny and outside(area - tiny) < 0 else 0.0
    upper: Any = brentq(outside, area + tiny, 1.0) if area < 1 - tiny and outside(area + tiny) < 0 else 1.0
    return Area(area, max(0.0, min(lower, area - half)), min(1.0, max(upper, area + half)))


def equal_counts_p(counts: Values, *, seed: int, draws: int = 9999) -> float:
    """P-value of "hits fall on each of these heads equally often", by Pearson's statistic and redrawn counts.

    Given how many hits there are, H0 makes them multinomial. Heads that look at the same images must err apart from
    each other for that, as rare errors nearly do; hits of several heads on one image make the value too small.

    >>> equal_counts_p([3, 4, 3], seed=0), equal_counts_p([10, 0, 0], seed=0) < 0.001
    (1.0, True)

    Args:
      counts: hits of each head, integers of 0 or more.
      seed: of the redrawn counts.
      draws: how many; the smallest p-value is 1 / (draws + 1).

    Returns:
      A p-value in (0, 1]; 1 without hits, or with a single head.

    Raises:
      RequestError: if the counts are not integers, or negative.
    """
    counts = np.asarray(counts)
    _counts(counts, np.maximum(counts, 1))
    total, heads = int(counts.sum()), counts.size
    if total == 0 or heads < 2:
        return 1.0
    redrawn = np.random.default_rng(seed).multinomial(total, np.full(heads, 1 / heads), size=draws)
    # With equal expectations Pearson's statistic orders as the sum of squares, which is exact.
    return float((1 + np.sum(np.sum(redrawn**2, axis=1) >= np.sum(counts**2))) / (draws + 1))
