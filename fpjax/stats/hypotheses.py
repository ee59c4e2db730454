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

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..core.errors import check
from .binomial import Values, check_inside, checked_counts


def rank_p_value(member: float | np.number, controls: Values) -> float:
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
    checked_counts(controls, np.maximum(controls, 1))
    check(num_members >= 1, "num_members", got=num_members, expected="1 or more", fix="give the number of members")
    check_inside("level", level)
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
    checked_counts(counts, np.maximum(counts, 1))
    total, heads = int(counts.sum()), counts.size
    if total == 0 or heads < 2:
        return 1.0
    redrawn = np.random.default_rng(seed).multinomial(total, np.full(heads, 1 / heads), size=draws)
    # With equal expectations Pearson's statistic orders as the sum of squares, which is exact.
    return float((1 + np.sum(np.sum(redrawn**2, axis=1) >= np.sum(counts**2))) / (draws + 1))
