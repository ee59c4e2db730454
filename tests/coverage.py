"""How the tests of `stats` judge intervals and levels.

Where the sample space is small, coverage and level are summed over it, so no tolerance is needed; the rest is
simulated with fixed seeds and a threshold of 4.5 standard errors (false alarm 3e-6 a check). Every such check is also
run on a deliberately wrong version, which must fail it.
"""

import math

import numpy as np
from scipy.special import expit

from fpjax import stats

Z = 4.5


def shrunk(interval, factor=2 / 3):
    """The same interval, narrower about its middle: too sure of itself."""
    low, high = interval
    return stats.Interval(*((low + high) / 2 + sign * factor * (high - low) / 2 for sign in (-1, 1)))


CURVES = {  # Rate of detection as a function of t.
    "collapse": lambda t: expit((0.37 - t) / 0.03),
    "plateau": lambda t: np.where(t < 0.4, 0.6, 0.6 * np.exp((0.4 - t) / 0.1)),
    "late": lambda t: 1 - 0.52 * t**3,
    "steep": lambda t: 1 - 0.99 * np.clip(t / 0.05, 0, 1) ** 2,
    "chance": lambda t: np.maximum(expit((0.4 - t) / 0.02), 0.002),
    "wide": lambda t: expit((0.5 - t) / 0.12),
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
