"""Area under the curve of scores, and the coverage of its interval."""

import numpy as np
import pytest
from scipy.stats import norm

from fpjax import stats
from fpjax.core.errors import RequestError


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
