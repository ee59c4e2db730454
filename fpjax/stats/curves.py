"""Detection rate against noise: t50, t' and t'_alpha of a member's curve, with their ranges over repeats."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import binom

from ..core.errors import check
from .binomial import Counts, Interval, Values, check_inside, checked_counts, clopper_pearson


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
    hits, chains = checked_counts(hits, chains)
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
    hits, chains = checked_counts(hits, chains)
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
    say nothing, so the interval holds for curves of any shape there, not only straight ones. It is rarely narrower than
    one level spacing unless censored; like `t50`, upper == times[-1] means "or later".

    **Where q stays close to 1/2 over several levels it covers less than asked.** On a plateau over 8 of 20 levels, just
    above 1/2, at nominal 0.95 (150 runs each), with 4 / 16 / 64 chains a level: 0.77 / 0.72 / 0.80 at q = 0.51, 0.82 /
    0.81 / 0.91 at 0.52, 0.89 / 0.89 / 0.97 at 0.55, 0.95 / 0.98 / 1.00 at 0.6. All that it missed it missed low, the
    true crossing being the plateau's end; tests of t50 do not use it.

    Why so: in simulations at nominal 0.95 (nine shapes of q that fall through 1/2 without a plateau there, 1 to 64
    chains at 20 to 1000 levels, 100 to 600 runs each) it covered 0.97 to 1.00 of the time. Without the rounding: 0.16
    to 1.00, worst for curves steeper than the grid. From the plain fit: as good from 8 chains on, 0.60 to 0.98 with a
    single chain. The basic (reflected) interval: 0.37 to 0.99. The price is width: on coarse grids it covers more than
    asked, and with one or two chains a level it says little.

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
    hits, chains = checked_counts(hits, chains)
    times = _curve(times, hits, chains)
    check_inside("confidence", confidence)
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
    checked_counts(hits, np.maximum(hits, 1))
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
    hits, chains = checked_counts(hits, chains)
    times = _curve(times, hits, chains)
    check_inside("coverage", coverage)
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
    hits, chains = checked_counts(hits, chains)
    times = _curve(times, hits, chains)
    check(0 <= floor < 1, "floor", got=floor, expected="a rate in [0, 1)", fix="use max(1/N, false-positive rate)")
    check_inside("alpha", alpha)
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
    hits, chains = checked_counts(hits, chains)
    times = _curve(times, hits, chains)
    check(0 <= floor < 1, "floor", got=floor, expected="a rate in [0, 1)", fix="use max(1/N, false-positive rate)")
    check_inside("alpha", alpha)
    check_inside("coverage", coverage)
    # The limit exceeds the floor where so many hits or more have a probability below alpha there.
    needed = binom.isf(alpha, chains, floor) + 1
    reached = [np.cumprod(binom.sf(needed - 1, chains, fit(hits, chains))) for fit in (_off_the_ends, _smoothed)]
    lower, upper = zip(
        *(_central(np.append(0.0, times), np.append(1 - r, 1.0), coverage) for r in reached), strict=True
    )
    return Interval(min(lower), max(upper))
