"""Binomial rates against published numbers and their own promises; see `coverage` for how they are judged."""

import numpy as np
import pytest
from scipy.stats import beta as beta_distribution
from scipy.stats import binom

from fpjax import stats

from .coverage import enough, shrunk

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
    values, truth = np.random.default_rng(6).beta(*shape, size=(1500, 30)), float(beta_distribution.mean(*shape))
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
