"""Levels and power of the tests, exact or simulated; see `coverage` for how they are judged."""

import itertools
import math
import time

import numpy as np
import pytest
from scipy.stats import binom, nbinom, poisson

from fpjax import stats
from fpjax.core.errors import RequestError

from .coverage import Z

# Tests: rank, paper's, leak


@pytest.mark.parametrize("num_controls", [1, 4, 19])
def test_rank_level_is_exact(num_controls):
    """With distinct exchangeable values the member has each rank once: P(p <= k / (H + 1)) = k / (H + 1)."""
    values = np.random.default_rng(5).normal(size=num_controls + 1)
    p = np.sort([stats.rank_p_value(float(v), np.delete(values, i)) for i, v in enumerate(values)])
    np.testing.assert_allclose(p, np.arange(1, num_controls + 2) / (num_controls + 1))
    without_one = p - 1 / (num_controls + 1)  # Forgetting to count the member itself gives p = 0.
    assert np.mean(without_one <= 0) > 0


def test_rank_counts_ties_against_the_member():
    assert stats.rank_p_value(1.0, [1.0, 1.0, 0.2]) == 0.75
    assert stats.rank_p_value(1.0, []) == 1
    assert stats.rank_p_value(1.0, [0.2] * 19) == 0.05


LEVELS = np.array([0.002, 0.01, 0.05, 0.2])


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.4])
def test_papers_test_level(rate):
    samples = 1500
    hits = np.arange(samples + 1)
    pmf = binom.pmf(hits, samples, rate)
    p = np.array([stats.fewer_than_expected_p(int(h), samples, rate) for h in hits[: int(3 * samples * rate) + 30]])
    p = np.append(p, np.ones(samples + 1 - len(p)))
    assert np.all((p[:, None] <= LEVELS).T @ pmf <= LEVELS)
    strict = p - pmf  # P(fewer than the hits seen) instead of at most as many.
    assert np.any((strict[:, None] <= LEVELS).T @ pmf > LEVELS)


def test_leak_level_with_an_estimated_false_positive_rate():
    """Exact, over all pairs of counts: samples whose only detections are false ones."""
    samples, trials, beta = 30, 40, 1e-3
    p = np.array([[stats.leak_p(h, samples, f, trials, beta=beta) for h in range(31)] for f in range(41)])
    plug_in = np.array([binom.sf(np.arange(31) - 1, samples, f / trials) for f in range(41)])
    assert p.min() == beta
    assert p.max() == 1
    worst = np.zeros(len(LEVELS))
    for rate in (0.003, 0.02, 0.1, 0.3, 0.7):
        joint = np.outer(binom.pmf(np.arange(41), trials, rate), binom.pmf(np.arange(31), samples, rate))
        worst = np.maximum(worst, [np.sum(joint * (plug_in <= level)) for level in LEVELS])
        assert all(np.sum(joint * (p <= level)) <= level for level in LEVELS)
    assert np.all(worst > LEVELS)  # The estimate in place of its limit breaks every level.


def test_leak_p_without_a_false_detection_has_a_closed_form():
    for beta in (1e-3, 1e-2):
        limit = 1 - beta ** (1 / 600_000)
        expected = binom.sf(2, 50_000, limit) + beta
        assert stats.leak_p(3, 50_000, 0, 600_000, beta=beta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("critical", "sensitivity"), [(1, 1.0), (7, 0.8)])
def test_detectable_rate_has_the_power_it_says(critical, sensitivity):
    rate = stats.detectable_rate(400, critical, sensitivity=sensitivity)
    assert binom.sf(critical - 1, 400, rate * sensitivity) == pytest.approx(0.8, abs=1e-9)
    for factor in (2 / 3, 3 / 2):
        assert binom.sf(critical - 1, 400, factor * rate * sensitivity) != pytest.approx(0.8, abs=0.05)


def test_detectable_rate_says_when_nothing_is():
    assert stats.detectable_rate(3, 4) == math.inf  # More hits than samples.
    assert stats.detectable_rate(150_000, 3, sensitivity=1e-5) == math.inf
    rates = [stats.detectable_rate(n, 3) for n in (15_000, 150_000, 1_500_000)]
    assert rates == sorted(rates, reverse=True)


# Members among controls: ranks of counts


HEADS = {  # Expected false hits of heads whose places were drawn at random.
    "clean": lambda rng, shape: np.full(shape, 0.02),
    "equal": lambda rng, shape: np.full(shape, 3.0),
    "gamma": lambda rng, shape: rng.gamma(0.2, 10, shape),
    "5 % bad": lambda rng, shape: np.where(rng.random(shape) < 0.05, 60.0, 0.02),
}


def too_often(rejected, level):
    """Whether a share of rejections is above the level by 4.5 standard errors, or more."""
    return np.mean(rejected) > level + Z * math.sqrt(level * (1 - level) / len(rejected))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("members", [1, 4])
def test_permutation_level_with_heads_of_unequal_rates(members, heads):
    rng, runs = np.random.default_rng(members), 1500
    counts = rng.poisson(HEADS[heads](rng, (runs, members + 19)))
    p = np.array([stats.permutation_p(c[:members], c[members:], seed=i, draws=999) for i, c in enumerate(counts)])
    for level in (0.01, 0.05, 0.2):
        assert not too_often(p <= level, level)
    # Noise that settles ties shows that the level is used up, not kept by rejecting nothing.
    untied = counts + rng.random(counts.shape)
    p = np.array([stats.permutation_p(c[:members], c[members:], seed=i, draws=999) for i, c in enumerate(untied)])
    assert abs(np.mean(p <= 0.2) - 0.2) < Z * math.sqrt(0.2 * 0.8 / runs)


def test_wrong_permutation_tests_break_the_level():
    """Ties that favour the members do, and so does pooling heads of unequal rates."""
    rng, runs = np.random.default_rng(6), 600
    counts = rng.poisson(0.5, (runs, 23)) * 1.0
    favoured = counts + 0.1 * (np.arange(23) < 4)
    p = np.array([stats.permutation_p(c[:4], c[4:], seed=i, draws=999) for i, c in enumerate(favoured)])
    assert too_often(p <= 0.05, 0.05)
    hits = rng.binomial(2048, np.where(rng.random((runs, 20)) < 0.05, 0.03, 0.0))
    pooled = np.array([stats.leak_p(c[0], 2048, c[1:].sum(), 19 * 2048) for c in hits])
    assert too_often(pooled <= 0.01, 0.01)
    assert not too_often(np.array([stats.permutation_p(c[:1], c[1:], seed=0) for c in hits]) <= 0.01, 0.01)


@pytest.mark.parametrize(
    ("members", "controls"),
    [([5, 1], [0, 1, 2, 3, 1]), ([2, 2, 2], [2, 2]), ([0, 9, 4], [0, 0, 0, 4, 7, 1]), ([9, 8], [0] * 19)],
)
def test_permutation_p_is_the_share_of_all_choices(members, controls):
    values = np.array(members + controls)
    # Doubled mid-ranks by their definition: how many values are below, how many at most as large.
    ranks = np.array([(values < v).sum() + (values <= v).sum() + 1 for v in values])
    sums = np.array([sum(choice) for choice in itertools.combinations(ranks, len(members))])
    exact = np.mean(sums >= ranks[: len(members)].sum())
    p = stats.permutation_p(members, controls, seed=1)
    assert abs(p - exact) < Z * math.sqrt(exact * (1 - exact) / 9999) + 1e-4
    more = np.mean(sums > ranks[: len(members)].sum())  # Ties of the sum that do not count.
    assert abs(p - more) > Z * math.sqrt(exact * (1 - exact) / 9999) + 1e-4


def test_permutation_p_of_one_member_is_its_rank_and_needs_controls():
    rng = np.random.default_rng(2)
    for _ in range(50):
        member, controls = float(rng.integers(5)), rng.integers(0, 5, 19)
        assert stats.permutation_p([member], controls, seed=0) == stats.rank_p_value(member, controls)
    assert stats.permutation_p([3.0, 4.0], [], seed=0) == stats.permutation_p([3.0], [], seed=0) == 1
    assert stats.permutation_p([math.inf, 2.0], [-math.inf] * 19, seed=0) < 0.01
    assert stats.permutation_p([2, 1], [0, 1, 1], seed=3) == stats.permutation_p([2, 1], [0, 1, 1], seed=3)


@pytest.mark.parametrize(("members", "controls"), [(5, 100), (50, 50)])
def test_permutation_p_is_quick(members, controls):
    values = np.random.default_rng(0).normal(size=members + controls)
    started = time.process_time()
    stats.permutation_p(values[:members], values[members:], seed=0)
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("controls", [[0] * 98 + [5], [0, 0, 1, 1, 1, 2, 4, 9, 9, 30, 3], [7] * 30])
def test_critical_count_is_the_smallest_that_rejects(members, controls):
    for level in (0.01, 0.03, 0.1):
        passing = [m for m in range(40) if stats.permutation_p([m] * members, controls, seed=0) <= level]
        found = stats.critical_count(controls, num_members=members, level=level, seed=0)
        assert found == min(passing, default=None)
    assert stats.critical_count([], num_members=members, level=0.5, seed=0) is None
    assert stats.critical_count([0] * 19, num_members=1, level=0.01, seed=0) is None


def test_counting_has_the_power_that_is_promised():
    """2,048 samples, 99 controls, level 0.01, a rate of 1/500; heads that err once in 100,000 images, or never."""
    rng, runs = np.random.default_rng(9), 4000
    never = stats.critical_count([0] * 99, num_members=1, level=0.01, seed=0)
    assert binom.sf(never - 1, 2048, 1 / 500) > 0.98
    controls = rng.binomial(2048, 1e-5, (runs, 99))
    members = rng.binomial(2048, 1 / 500 + 1e-5, runs)
    p = np.array([stats.permutation_p([m], c, seed=0) for m, c in zip(members, controls, strict=True)])
    assert np.mean(p <= 0.01) > 0.9
    # Without a member the same heads reject as rarely as the level says.
    none = rng.binomial(2048, 1e-5, runs)
    assert not too_often([stats.rank_p_value(m, c) <= 0.01 for m, c in zip(none, controls, strict=True)], 0.01)


def test_holm_rejects_what_its_steps_do():
    """Step by step: the smallest at a / n, the next at a / (n - 1), until one fails."""
    rng = np.random.default_rng(3)
    for _ in range(100):
        p, level = rng.random(rng.integers(1, 8)) ** 3, rng.uniform(0.01, 0.5)
        rejected = np.zeros(p.size, bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] * (p.size - step) > level:
                break
            rejected[i] = True
        np.testing.assert_array_equal(stats.holm(p) <= level, rejected)
    assert stats.holm([]).size == 0
    assert stats.holm([0.9, 0.8]).max() == 1


def test_holm_holds_the_familys_level():
    """Five ranks against the same controls, so dependent: any error at most as often as the level."""
    rng, runs = np.random.default_rng(4), 1500
    values = rng.normal(size=(runs, 104))
    p = np.array([[stats.rank_p_value(m, v[5:]) for m in v[:5]] for v in values])
    assert not too_often([stats.holm(row).min() <= 0.05 for row in p], 0.05)
    assert too_often(p.min(axis=1) <= 0.05, 0.05)


def test_gamma_poisson_p_finds_the_distribution_that_made_the_controls():
    rng = np.random.default_rng(5)
    for shape, mean in ((0.5, 2.0), (3.0, 4.0)):
        controls = rng.poisson(rng.gamma(shape, mean / shape, 5000))
        for member in (1, 5, 12):
            exact = nbinom.sf(member - 1, shape, shape / (shape + mean))
            assert stats.gamma_poisson_p(member, controls) == pytest.approx(exact, rel=0.2)
        assert poisson.sf(11, mean) < exact / 2
    shapes = np.geomspace(0.02, 1e4, 2000)[:, None]  # Few controls: the likeliest of many shapes.
    for controls in ([0, 0, 0, 0], [0, 0, 7, 0, 1], [3, 3, 2, 3], *rng.poisson(rng.gamma(0.3, 5, (20, 9)))):
        mean = (sum(controls) + 0.5) / len(controls)
        best = shapes[nbinom.logpmf(controls, shapes, shapes / (shapes + mean)).sum(axis=1).argmax(), 0]
        expected = nbinom.sf(8, best, best / (best + mean))
        assert stats.gamma_poisson_p(9, controls) == pytest.approx(expected, rel=0.02)
    assert stats.gamma_poisson_p(7, rng.poisson(3, 5000)) == pytest.approx(poisson.sf(6, 3), rel=0.2)
    assert stats.gamma_poisson_p(4, []) == stats.gamma_poisson_p(0, [0, 0]) == 1
    falling = [stats.gamma_poisson_p(m, [0, 1, 0, 3]) for m in range(9)]
    assert falling == sorted(falling, reverse=True)


# Sensitivity


def test_mended_papers_test_holds_its_level_where_detectors_miss():
    """Exact, over all pairs of counts: 50,000 samples at 1/1000, sensitivity 0.9 from 200 copies."""
    samples, rate, sensitivity, copies, level, beta_spent = 50_000, 1 / 1000, 0.9, 200, 0.05, 0.01
    hits = np.arange(150)
    pmf = binom.pmf(hits, samples, rate * sensitivity)
    old = np.array([stats.fewer_than_expected_p(int(h), samples, rate) for h in hits])
    assert pmf[old <= level].sum() == pytest.approx(0.166, abs=5e-4)
    seen = np.arange(copies + 1)
    limits = stats.clopper_pearson(seen, np.full(copies + 1, copies), confidence=1 - beta_spent, side="lower").lower
    chance, rejected = binom.pmf(seen, copies, sensitivity), 0.0
    for limit, weight in zip(limits, chance, strict=True):
        if weight > 1e-9:
            p = [stats.fewer_than_expected_p(int(h), samples, rate, sensitivity=limit, beta=beta_spent) for h in hits]
            rejected += weight * pmf[np.array(p) <= level].sum()
    assert 0 < rejected <= level
    assert stats.fewer_than_expected_p(3, 100, 0.01, sensitivity=0.0) == 1  # A limit of 0 rejects nothing.


def test_equal_counts_p_is_that_of_all_ways_to_fall():
    # Six hits on two heads: 6 and 0 either way, 2 of 64 ways; 5 and 1 or more extreme, 14 of 64.
    for counts, exact in (([6, 0], 2 / 64), ([5, 1], 14 / 64), ([3, 3], 1.0)):
        p = stats.equal_counts_p(counts, seed=0)
        assert abs(p - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 9999) + 1e-4
    assert stats.equal_counts_p([0, 0, 0], seed=0) == stats.equal_counts_p([7], seed=0) == 1.0
    with pytest.raises(RequestError, match="counts"):
        stats.equal_counts_p([0.5, 1.0], seed=0)
