"""Fits, t', t50 and t'_alpha against naive loops and simulated searches; see `coverage` for how they are judged."""

import math
import time

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from fpjax import stats

from .coverage import CURVES, Z, enough, shrunk, simulate_t50

# The curve: isotonic fit, t50, its interval


def naive_isotonic(hits, chains):
    """Max-min formula: fit_i = min over a <= i of max over b >= i of the pooled rate of a..b."""
    levels = range(len(hits))
    pooled = {(a, b): sum(hits[a : b + 1]) / sum(chains[a : b + 1]) for a in levels for b in levels if a <= b}
    return [min(max(pooled[a, b] for b in levels if b >= i) for a in levels if a <= i) for i in levels]


def naive_t50(times, hits, chains):
    """Walks up the fit, level by level."""
    before, rate_before = 0.0, 1.0
    for t, rate in zip(times, naive_isotonic(hits, chains), strict=True):
        if rate < 0.5 - 1e-9:
            return before + (t - before) * (rate_before - 0.5) / (rate_before - rate)
        before, rate_before = t, rate
    return times[-1]


def test_isotonic_fit_and_t50_match_naive_loops():
    rng = np.random.default_rng(0)
    for _ in range(200):
        levels = rng.integers(1, 15)
        times, chains = np.sort(rng.uniform(0.01, 1, levels)), rng.integers(1, 17, levels)
        hits = rng.binomial(chains, rng.uniform(size=levels))
        fit = stats.isotonic_rate(hits, chains)
        np.testing.assert_allclose(fit, naive_isotonic(hits, chains), atol=1e-12)
        assert stats.t50(times, hits, chains) == pytest.approx(naive_t50(times, hits, chains), abs=1e-9)


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ([0, 0, 0, 0], 0.125),  # Never detected: half the first time.
        ([10, 10, 10, 10], 1.0),  # Censored.
        ([10, 10, 0, 0], 0.625),
        ([10, 8, 2, 0], 0.625),
        ([10, 3, 7, 0], 0.75),  # Pooled to exactly 1/2, which is not below it.
        ([10, 10, 10, 5], 1.0),
    ],
)
def test_t50_by_hand(hits, expected):
    assert stats.t50([0.25, 0.5, 0.75, 1.0], hits, [10] * 4) == pytest.approx(expected)


def test_t50_takes_a_pooled_half_as_a_half():
    """Rounding makes this fit 1/2 - 6e-17; below 1/2 it would cross before the first level."""
    assert stats.t50([0.25, 0.5, 0.75, 1.0], [6, 2, 24, 19], [25, 3, 43, 31]) == 1


@pytest.mark.parametrize(
    ("name", "levels", "num_chains", "widest", "too_narrow"),
    [
        ("collapse", 100, 16, 0.06, 1 / 3),
        ("collapse", 20, 1, 0.8, 1 / 3),
        ("plateau", 20, 16, 0.36, 2 / 3),
        ("late", 100, 16, 0.1, 2 / 3),
        ("steep", 20, 64, 0.051, 1 / 3),
    ],
)
def test_t50_interval_covers(name, levels, num_chains, widest, too_narrow):
    interval, estimates, truth = simulate_t50(name, levels, num_chains, runs=150)
    assert np.all((interval.lower <= estimates) & (estimates <= interval.upper))
    assert enough((interval.lower <= truth) & (truth <= interval.upper))
    assert np.mean(interval.upper - interval.lower) < widest  # Covering by being useless would not do.
    # Conservative by up to a level spacing at each end, so not every curve can tell an interval shrunk by 2/3.
    wrong = shrunk(interval, too_narrow)
    assert not enough((wrong.lower <= truth) & (truth <= wrong.upper))


def test_t50_interval_is_a_percentile_interval_rounded_outward():
    """Step by step, with the public routines and the same draws."""
    times, chains = np.arange(1, 31) / 30, np.full(30, 4)
    hits = np.random.default_rng(7).binomial(chains, 0.8 - 0.6 * times)
    fit = naive_isotonic(hits + 0.5, chains + 1.0)
    redrawn = np.random.default_rng(8).binomial(chains, fit, size=(300, 30))
    crossings = [stats.t50(times, row, chains) for row in redrawn]
    low, high = stats.t50_interval(times, hits, chains, seed=8, resamples=300, confidence=0.8)
    levels = np.append(0.0, times)
    assert low == levels[np.searchsorted(levels, np.quantile(crossings, 0.1), side="right") - 1]
    assert high == levels[np.searchsorted(levels, np.quantile(crossings, 0.9), side="left")]


def test_t50_interval_at_the_edges():
    times = np.arange(1, 21) / 20
    chains = np.full(20, 16)
    all_hit = stats.t50_interval(times, chains, chains, seed=0)
    assert all_hit.upper == 1
    assert all_hit.lower > 0.9
    assert stats.t50_interval(times, 0 * chains, chains, seed=0) == (0.0, 0.05)
    step = stats.t50_interval(times, np.where(times < 0.42, 16, 0), chains, seed=0)
    assert step.lower <= 0.4 + 1e-9  # The level below the step, and the one above.
    assert step.upper >= 0.45 - 1e-9
    assert step.upper - step.lower < 0.16


def test_t50_interval_is_a_function_of_its_seed_and_quick():
    times = np.arange(1, 21) / 20
    hits, chains = np.rint(16 * CURVES["late"](times)).astype(int), np.full(20, 16)
    started = time.process_time()
    first = stats.t50_interval(times, hits, chains, seed=3, resamples=1000)
    assert time.process_time() - started < 0.5
    assert first == stats.t50_interval(times, hits, chains, seed=3, resamples=1000)
    wide = stats.t50_interval(times, hits, chains, seed=3, resamples=1000, confidence=0.999)
    assert wide.lower < first.lower


# t' and t'_alpha


def naive_t_prime_alpha(times, hits, chains, floor, alpha):
    """Tests by the binomial tail, without intervals, and stops at the first failure."""
    last = 0.0
    for t, h, c in zip(times, hits, chains, strict=True):
        if binom.sf(h - 1, c, floor) >= alpha:
            return last
        last = t
    return last


def test_t_primes_match_naive_loops():
    rng = np.random.default_rng(1)
    for _ in range(100):
        levels = rng.integers(1, 15)
        times, chains = np.sort(rng.uniform(0.01, 1, levels)), rng.integers(1, 17, levels)
        hits = rng.binomial(chains, np.sort(rng.uniform(size=levels))[::-1])
        assert stats.t_prime(times, hits) == max([t for t, h in zip(times, hits, strict=True) if h], default=0)
        for floor, alpha in ((0.1, 0.05), (0.001, 0.01)):
            expected = naive_t_prime_alpha(times, hits, chains, floor, alpha)
            assert stats.t_prime_alpha(times, hits, chains, floor=floor, alpha=alpha) == expected


def test_t_primes_without_a_hit_and_with_one():
    times, chains = [0.2, 0.4, 1.0], [16, 16, 16]
    assert stats.t_prime(times, [0, 0, 0]) == 0
    assert stats.t_prime(times, [0, 1, 0]) == 0.4
    assert stats.t_prime(times, [0, 0, 1]) == 1
    assert stats.t_prime_alpha(times, [0, 16, 16], chains, floor=0.001) == 0
    assert stats.t_prime_alpha(times, [16, 16, 16], chains, floor=0.001) == 1


def test_chance_moves_t_prime_but_not_t_prime_alpha():
    """An ideal memoriser of 1000 images (field notes, 1.7): chance hits carry t' to nearly 1."""
    times, chains = np.arange(1, 1001) / 1000, np.full(1000, 16)
    hits = np.random.default_rng(2).binomial(chains, 0.999 * expit((0.4 - times) / 0.02) + 0.001)
    assert stats.t_prime(times, hits) > 0.9
    assert 0.4 < stats.t_prime_alpha(times, hits, chains, floor=0.001) < 0.6


@pytest.mark.parametrize(("floor", "num_chains"), [(0.001, 50), (0.03, 16), (0.3, 16)])
def test_t_prime_alpha_level(floor, num_chains):
    """Rate equal to the floor at every level above 0.25: passing beyond it is an error."""
    alpha, runs = 0.05, 1000
    times, chains = np.arange(1, 21) / 20, np.full(20, num_chains)
    rates = np.where(times <= 0.25, 1.0, floor)
    searches = np.random.default_rng(4).binomial(chains, rates, size=(runs, 20))
    beyond = [stats.t_prime_alpha(times, hits, chains, floor=floor, alpha=alpha) > 0.25 for hits in searches]
    allowed = alpha + Z * math.sqrt(alpha * (1 - alpha) / runs)
    assert np.mean(beyond) <= allowed
    # The largest level that passes by itself, without the sequence, errs far more often.
    alone = stats.clopper_pearson(searches, np.broadcast_to(chains, searches.shape), confidence=0.95, side="lower")
    assert np.mean(np.any((alone.lower > floor) & (times > 0.25), axis=1)) > allowed


# Speed


def test_a_paper_sized_search_for_100_targets_takes_under_a_second():
    times, chains = np.arange(1, 1001) / 1000, np.full(1000, 16)
    hits = np.random.default_rng(6).binomial(chains, expit((0.4 - times) / 0.05), size=(100, 1000))
    started = time.process_time()
    for row in hits:
        stats.clopper_pearson(row, chains)
        stats.t50(times, row, chains)
        stats.t_prime(times, row)
        stats.t_prime_alpha(times, row, chains, floor=0.001)
    assert time.process_time() - started < 1


def repeats(name, levels, num_chains, runs=400):
    """Times, chains, and pairs of independent searches with them."""
    times, chains = np.arange(1, levels + 1) / levels, np.full(levels, num_chains)
    return times, chains, np.random.default_rng(levels).binomial(chains, CURVES[name](times), (2, runs, levels))


def covers(ranges, values):
    low, high = np.array(ranges).T
    return (low <= values) & (values <= high)


@pytest.mark.parametrize(
    ("name", "levels", "num_chains"),
    [
        ("collapse", 20, 16),
        ("collapse", 20, 1),
        ("chance", 20, 1),
        ("plateau", 40, 64),
        ("late", 20, 4),
        ("wide", 100, 16),
    ],
)
def test_t_prime_range_covers_repeated_searches(name, levels, num_chains):
    times, chains, (searches, others) = repeats(name, levels, num_chains)
    values = np.array([stats.t_prime(times, row) for row in others])
    assert enough(covers([stats.t_prime_range(times, row, chains) for row in searches], values))
    own = np.array([stats.t_prime(times, row) for row in searches])
    assert not enough(own == values)  # A range of the search's own t' alone would not pass.
    if num_chains == 1:  # Nor would a fit of 1 taken as certain, as it once was.

        def certain(row):
            rate = stats.isotonic_rate(row, chains)
            miss = np.log1p(-np.clip(rate, 0.5 / max((rate == 0).sum(), 1), 1 - 1e-12))
            at_most = np.exp(np.append(np.cumsum(miss[::-1])[::-1], 0.0))
            return np.append(0.0, times)[[np.argmax(at_most > 0.025), np.argmax(at_most >= 0.975)]]

        assert not enough(covers([certain(row) for row in searches], values))


@pytest.mark.parametrize(
    ("name", "levels", "num_chains", "plain_fails"),
    [
        ("collapse", 20, 16, True),
        ("chance", 20, 16, True),
        ("plateau", 20, 16, True),
        ("wide", 20, 16, True),
        ("chance", 20, 1, True),
        ("plateau", 20, 4, True),
        ("late", 20, 4, False),
        ("steep", 20, 16, False),
        ("collapse", 100, 1, False),
        ("wide", 40, 64, False),
        ("collapse", 200, 16, False),
    ],
)
def test_t_prime_alpha_range_covers_repeated_searches(name, levels, num_chains, plain_fails):
    floor, (times, chains, (searches, others)) = 0.002, repeats(name, levels, num_chains)
    values = np.array([stats.t_prime_alpha(times, row, chains, floor=floor) for row in others])
    assert enough(covers([stats.t_prime_alpha_range(times, row, chains, floor=floor) for row in searches], values))

    def plain(row):
        """At the isotonic fit as it is."""
        passes = binom.sf(binom.isf(0.05, chains, floor), chains, stats.isotonic_rate(row, chains))
        at_most = np.append(1 - np.cumprod(passes), 1.0)
        return np.append(0.0, times)[[np.argmax(at_most > 0.025), np.argmax(at_most >= 0.975)]]

    if plain_fails:
        assert not enough(covers([plain(row) for row in searches], values))


def test_t_prime_alpha_range_of_many_chains_is_that_of_many_searches():
    levels = 40
    times = np.arange(1, levels + 1) / levels
    rate = 1 / (1 + np.exp((times - 0.4) * 25))
    many = np.random.default_rng(1).binomial(400, rate, (1000, levels))
    lower = stats.clopper_pearson(many, np.full(many.shape, 400), confidence=0.95, side="lower").lower
    ends = np.quantile(np.logical_and.accumulate(lower > 0.01, axis=1).sum(axis=1) / levels, [0.025, 0.975])
    found = stats.t_prime_alpha_range(times, np.round(400 * rate).astype(int), np.full(levels, 400), floor=0.01)
    np.testing.assert_allclose(found, ends, atol=1.5 / levels)


def test_t_prime_range_without_hits():
    lower, upper = stats.t_prime_range([0.2, 0.4], [0, 0], [16, 16])
    assert lower == 0.0
    assert upper >= 0.2
