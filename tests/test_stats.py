"""`stats` against published numbers, naive loops, and its own promises: coverage of intervals, level of tests.

Where the sample space is small, coverage and level are summed over it, so no tolerance is needed; the rest is
simulated with fixed seeds and a threshold of 4.5 standard errors (false alarm 3e-6 a check). Every such check is also
run on a deliberately wrong version, which must fail it.
"""

import itertools
import math
import time

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import beta as beta_distribution
from scipy.stats import binom, nbinom, norm, poisson

from fpjax import stats
from fpjax.core.errors import RequestError

Z = 4.5


def shrunk(interval, factor=2 / 3):
    """The same interval, narrower about its middle: too sure of itself."""
    low, high = interval
    return stats.Interval(*((low + high) / 2 + sign * factor * (high - low) / 2 for sign in (-1, 1)))


# Published numbers


@pytest.mark.parametrize(
    ("hits", "samples", "num_images", "p"),
    [
        (151, 150_000, 1000, 0.55),
        (0, 150_000, 5000, 9e-14),
        (0, 150_000, 10_000, 3e-7),
        (0, 150_000, 20_000, 5.5e-4),
        (0, 150_000, 50_000, 0.0498),
        (52, 50_000, 1080, 0.82),
        (0, 50_000, 11_959, 0.015),
        (0, 50_000, 78_468, 0.53),
        (2, 50_000, 4708, 0.0017),
        (57, 50_000, 546, 7e-5),
        (0, 50_000, 13_940, 0.028),
    ],
)
def test_p_values_of_the_papers_tables(hits, samples, num_images, p):
    got = stats.fewer_than_expected_p(hits, samples, 1 / num_images)
    assert got == pytest.approx(p, rel=0.07, abs=0)  # The tables give one or two digits.
    wrong = stats.fewer_than_expected_p(hits, samples, 1.5 / num_images)
    assert wrong != pytest.approx(p, rel=0.07, abs=0)


@pytest.mark.parametrize(
    ("num_images", "samples"),
    [(1000, 2995), (5000, 14_978), (10_000, 29_956), (20_000, 59_914), (50_000, 149_786), (78_468, 235_068)],
)
def test_samples_needed(num_images, samples):
    rate = 1 / num_images
    assert stats.samples_needed(rate) == samples
    assert stats.fewer_than_expected_p(0, samples, rate) <= 0.05 < stats.fewer_than_expected_p(0, samples - 1, rate)


@pytest.mark.parametrize(
    ("chains", "upper", "digits"), [(16, 0.171, 3), (64, 0.046, 3), (256, 0.012, 3), (150_000, 2.0e-5, 6)]
)
def test_upper_limits_without_a_hit(chains, upper, digits):
    interval = stats.clopper_pearson(0, chains, side="upper")
    assert interval.lower == 0
    assert round(float(interval.upper), digits) == upper
    assert float(interval.upper) == pytest.approx(1 - 0.05 ** (1 / chains), rel=1e-9)


# Exact intervals


def test_clopper_pearson_solves_its_definition():
    hits, chains = np.meshgrid(np.arange(41), np.array([41, 64]))
    low, high = stats.clopper_pearson(hits, chains, confidence=0.9)
    assert np.shape(low) == np.shape(high) == hits.shape
    np.testing.assert_allclose(binom.sf(hits - 1, chains, low)[hits > 0], 0.05, rtol=1e-9)
    np.testing.assert_allclose(binom.cdf(hits, chains, high), 0.05, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(low)[hits == 0], 0)
    np.testing.assert_allclose(stats.clopper_pearson(chains - hits, chains, confidence=0.9).lower, 1 - high)


def test_one_sided_limits_spend_the_whole_error_on_one_end():
    low, high = stats.clopper_pearson([0, 5, 16], [16, 16, 16], confidence=0.9)
    lower = stats.clopper_pearson([0, 5, 16], [16, 16, 16], confidence=0.95, side="lower")
    upper = stats.clopper_pearson([0, 5, 16], [16, 16, 16], confidence=0.95, side="upper")
    np.testing.assert_allclose(lower.lower, low)
    np.testing.assert_allclose(upper.upper, high)
    assert np.all(lower.upper == 1)
    assert np.all(upper.lower == 0)


def exact_coverage(interval, chains, rates):
    """P(low <= rate <= high) for each rate, summed over all counts; interval = arrays over counts 0..chains."""
    pmf = binom.pmf(np.arange(chains + 1), chains, rates[:, None])
    return np.sum(pmf * ((interval.lower <= rates[:, None]) & (rates[:, None] <= interval.upper)), axis=1)


@pytest.mark.parametrize("side", ["both", "lower", "upper"])
@pytest.mark.parametrize("chains", [1, 16, 64])
def test_clopper_pearson_covers(chains, side):
    hits, rates = np.arange(chains + 1), np.linspace(0, 1, 1001)
    interval = stats.clopper_pearson(hits, np.full(chains + 1, chains), side=side)
    assert exact_coverage(interval, chains, rates).min() >= 0.95
    assert exact_coverage(shrunk(interval), chains, rates).min() < 0.95


def test_reproduction_interval_covers():
    samples, seen, rates = 60, 50, np.linspace(0, 1, 401)
    for sensitivity in (0.9, 0.6):
        sensitivity_lower = float(stats.clopper_pearson(int(seen * sensitivity), seen, side="lower").lower)
        every = [stats.reproduction_interval(h, samples, sensitivity_lower=sensitivity_lower) for h in range(61)]
        interval = stats.Interval(*np.array(every).T)
        detected = binom.pmf(np.arange(61), samples, sensitivity * rates[:, None])
        inside = (interval.lower <= rates[:, None]) & (rates[:, None] <= interval.upper)
        assert np.sum(detected * inside, axis=1).min() >= 0.95
        # Without the sensitivity the upper end is too low.
        plain = stats.clopper_pearson(np.arange(61), np.full(61, samples))
        inside = (plain.lower <= rates[:, None]) & (rates[:, None] <= plain.upper)
        assert np.sum(detected * inside, axis=1).min() < 0.9
    assert stats.reproduction_interval(60, 60, sensitivity_lower=0.5).upper == 1


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


CURVES = {  # Rate of detection as a function of t.
    "collapse": lambda t: expit((0.37 - t) / 0.03),
    "plateau": lambda t: np.where(t < 0.4, 0.6, 0.6 * np.exp((0.4 - t) / 0.1)),
    "late": lambda t: 1 - 0.52 * t**3,
    "steep": lambda t: 1 - 0.99 * np.clip(t / 0.05, 0, 1) ** 2,
}


def simulate_t50(name, levels, num_chains, runs):
    """Intervals of simulated searches, and the time at which the curve itself crosses 1/2."""
    times, chains = np.arange(1, levels + 1) / levels, np.full(levels, num_chains)
    fine = np.linspace(0, 1, 100_001)
    rng = np.random.default_rng(levels)
    searches = rng.binomial(chains, CURVES[name](times), size=(runs, levels))
    intervals = [stats.t50_interval(times, hits, chains, seed=i, resamples=100) for i, hits in enumerate(searches)]
    estimates = np.array([stats.t50(times, hits, chains) for hits in searches])
    return stats.Interval(*np.array(intervals).T), estimates, fine[np.argmax(CURVES[name](fine) < 0.5)]


def enough(covered, nominal=0.95):
    """Whether a count of covered simulations is within 4.5 standard errors of the nominal one, or above."""
    return covered.mean() - nominal >= -Z * math.sqrt(nominal * (1 - nominal) / len(covered))


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


@pytest.mark.parametrize("n", [1, 3, 8, 19, 50])
def test_mean_lower_limit_covers_two_point_values_exactly(n):
    """Summed over all counts of the larger value, with the mean just below each limit, where errors are likeliest."""
    k = np.arange(n + 1)
    worst = []
    for low, high in ((0, 1), (0.5, 1), (0.9, 1), (0, 0.5), (0, 0.95), (0.3, 0.7), (0.02, 0.98)):
        limits = np.array([stats.mean_lower_limit([high] * j + [low] * (n - j)) for j in k])
        means = limits[(limits > low) & (limits < high)] - 1e-9
        share = (means - low) / (high - low)
        errors = (binom.pmf(k, n, share[:, None]) * (limits > means[:, None])).sum(axis=1)
        worst.append(errors.max(initial=0.0))
    assert max(worst) <= 0.05 + 1e-6
    assert worst[0] == pytest.approx(0.05, abs=1e-6)  # Hits and misses: Clopper and Pearson's.


@pytest.mark.parametrize("shape", [(0.1, 0.01), (0.5, 0.5), (2, 1), (9, 1), (0.3, 0.05)])
def test_mean_lower_limit_covers_beta_values(shape):
    values, truth = np.random.default_rng(6).beta(*shape, size=(1500, 30)), beta_distribution.mean(*shape)
    covered = np.array([stats.mean_lower_limit(v) <= truth for v in values])
    assert enough(covered)
    # The estimate itself is no limit, and all of 30 seen says no more than it does for hits.
    assert not enough(values.mean(axis=1) <= truth)
    exact = float(stats.clopper_pearson(30, 30, side="lower").lower)
    assert stats.mean_lower_limit([1.0] * 30) == pytest.approx(exact, rel=1e-12)
    assert stats.mean_lower_limit([0.7] * 30) < 0.7


def test_copies_of_one_target_are_no_independent_looks():
    """Targets that are seen in all eight copies or in none: the copies' own limit is wrong far too often."""
    seen = np.random.default_rng(7).binomial(1, 0.9, (800, 20))
    assert enough(np.array([stats.mean_lower_limit(s) <= 0.9 for s in seen]))
    assert not enough(np.array([stats.clopper_pearson(8 * s.sum(), 160, side="lower").lower <= 0.9 for s in seen]))


# Speed and refusals


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


T, H, C = [0.2, 0.4], [3, 1], [4, 4]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.clopper_pearson([1, 2, 3], [4, 4]), "one shape"),
        (lambda: stats.clopper_pearson([1, 5], C), "5 of 4 at index (1,)"),
        (lambda: stats.clopper_pearson([1, -1], C), "-1 of 4"),
        (lambda: stats.clopper_pearson([0, 0], [4, 0]), "0 of 0"),
        (lambda: stats.clopper_pearson(np.array([0.5, 0.2]), C), "integers"),
        (lambda: stats.clopper_pearson(H, C, confidence=1.0), "confidence"),
        (lambda: stats.isotonic_rate(1, 4), "one row"),
        (lambda: stats.t50([0.2, 0.4, 0.6], H, C), "one shape"),
        (lambda: stats.t50([0.4, 0.2], H, C), "increasing"),
        (lambda: stats.t50([0.0, 0.2], H, C), "increasing"),
        (lambda: stats.t50([0.2, 1.2], H, C), "last 1.2"),
        (lambda: stats.t50([0.2, math.nan], H, C), "increasing"),
        (lambda: stats.t50_interval(T, H, C, seed=0, resamples=10), "resamples"),
        (lambda: stats.t50_interval(T, H, C, seed=0, confidence=95.0), "confidence"),
        (lambda: stats.t_prime(T, [1, -1]), "-1 of"),
        (lambda: stats.t_prime(T, [1, 1, 1]), "one shape"),
        (lambda: stats.t_prime_alpha(T, H, C, floor=1.0), "floor"),
        (lambda: stats.t_prime_alpha(T, H, C, floor=-0.1), "floor"),
        (lambda: stats.t_prime_alpha(T, H, C, floor=0.1, alpha=0.0), "alpha"),
        (lambda: stats.rank_p_value(math.nan, [0.1]), "nan"),
        (lambda: stats.fewer_than_expected_p(5, 4, 0.1), "5 of 4"),
        (lambda: stats.fewer_than_expected_p(1, 4, 1.5), "rate"),
        (lambda: stats.leak_p(1, 4, 0, 0), "0 of 0"),
        (lambda: stats.leak_p(1, 4, 0, 4, beta=0.0), "beta"),
        (lambda: stats.fewer_than_expected_p(1, 4, 0.5, sensitivity=1.1), "sensitivity"),
        (lambda: stats.fewer_than_expected_p(1, 4, 0.5, beta=1.0), "beta"),
        (lambda: stats.permutation_p([], [1.0], seed=0), "members []"),
        (lambda: stats.permutation_p([math.nan], [1.0], seed=0), "nan"),
        (lambda: stats.permutation_p([1.0, 2.0], [1.0, math.nan], seed=0), "1 NaN"),
        (lambda: stats.permutation_p([1.0], [[1.0]], seed=0), "one row"),
        (lambda: stats.permutation_p([1.0], [1.0], seed=0, draws=998), "draws"),
        (lambda: stats.critical_count([-1], num_members=1, level=0.05, seed=0), "-1 of"),
        (lambda: stats.critical_count([1], num_members=0, level=0.05, seed=0), "num_members"),
        (lambda: stats.critical_count([1], num_members=1, level=0.0, seed=0), "level"),
        (lambda: stats.holm([0.1, 1.1]), "[0, 1]"),
        (lambda: stats.holm([math.nan]), "nan"),
        (lambda: stats.gamma_poisson_p(-1, [0]), "-1 of"),
        (lambda: stats.gamma_poisson_p(1, [0.5]), "integers"),
        (lambda: stats.mean_lower_limit([0.5, 1.5]), "1.5"),
        (lambda: stats.mean_lower_limit([math.nan]), "nan"),
        (lambda: stats.mean_lower_limit([0.5], confidence=95), "confidence"),
        (lambda: stats.detectable_rate(100, 0), "critical"),
        (lambda: stats.detectable_rate(100, 1, power=1.0), "power"),
        (lambda: stats.detectable_rate(100, 1, sensitivity=0.0), "sensitivity"),
        (lambda: stats.reproduction_interval(1, 4, sensitivity_lower=0.0), "sensitivity_lower"),
        (lambda: stats.samples_needed(0.0), "rate"),
    ],
)
def test_bad_requests_are_refused_with_a_fix(call, says):
    with pytest.raises(RequestError) as error:
        call()
    message = str(error.value)
    assert says in message
    assert all(part in message for part in ("got ", "expected ", "fix: "))


CURVES |= {"chance": lambda t: np.maximum(expit((0.4 - t) / 0.02), 0.002), "wide": lambda t: expit((0.5 - t) / 0.12)}


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


# Detectors


def scores_above(positives, negatives, thresholds):
    return [[int((scores > c).sum()) for c in thresholds] for scores in (positives, negatives)]


def test_roc_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(3)
    positives, negatives = rng.integers(0, 9, 40) + 0.5, rng.integers(0, 7, 60) - 0.5
    area = stats.roc_area(*scores_above(positives, negatives, np.arange(-1, 10)), positives=40, negatives=60)
    pairs = positives[:, None] - negatives[None]
    assert area.estimate == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert 0 < area.lower < area.estimate < area.upper < 1
    # Twenty images that three heads judged each say less than sixty, more images more.
    few = stats.roc_area(*scores_above(positives, negatives, np.arange(-1, 10)), positives=40, negatives=60, units=20)
    assert few.lower < area.lower
    assert few.upper > area.upper


def test_roc_area_of_scores_in_order_has_an_honest_interval():
    area = stats.roc_area([30] * 3, [0] * 3, positives=30, negatives=50)
    assert (area.estimate, area.upper) == (1.0, 1.0)
    assert 0.8 < area.lower < 0.99
    worst = stats.roc_area([0] * 3, [50] * 3, positives=30, negatives=50)
    assert (worst.estimate, worst.lower) == (0.0, 0.0)
    assert worst.upper == pytest.approx(1 - area.lower, abs=1e-6)
    with pytest.raises(RequestError, match="positives: got 3"):
        stats.roc_area([1, 2], [0, 0], positives=3, negatives=3)
    with pytest.raises(RequestError, match="negatives"):
        stats.roc_area([1], [0], positives=3, negatives=0)


@pytest.mark.parametrize(("m", "n", "true", "spread"), [(20, 20, 0.95, 1.0), (64, 256, 0.99, 3.0), (40, 100, 0.8, 0.3)])
def test_roc_area_intervals_cover(m, n, true, spread):
    """Normal scores; 300 runs tell a coverage of 0.9 from 0.95."""
    rng, thresholds = np.random.default_rng(4), np.linspace(-6, 9, 61)
    mean, covered = norm.ppf(true) * np.sqrt(1 + spread**2), 0
    for _ in range(300):
        counts = scores_above(rng.normal(mean, spread, m), rng.normal(0, 1, n), thresholds)
        area = stats.roc_area(*counts, positives=m, negatives=n)
        covered += area.lower <= true <= area.upper
    assert covered >= 0.9 * 300


def test_equal_counts_p_is_that_of_all_ways_to_fall():
    # Six hits on two heads: 6 and 0 either way, 2 of 64 ways; 5 and 1 or more extreme, 14 of 64.
    for counts, exact in (([6, 0], 2 / 64), ([5, 1], 14 / 64), ([3, 3], 1.0)):
        p = stats.equal_counts_p(counts, seed=0)
        assert abs(p - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 9999) + 1e-4
    assert stats.equal_counts_p([0, 0, 0], seed=0) == stats.equal_counts_p([7], seed=0) == 1.0
    with pytest.raises(RequestError, match="counts"):
        stats.equal_counts_p([0.5, 1.0], seed=0)
