"""Counts of hits: intervals, limits, the model-based tests of counts, and what a number of samples can show."""

import math
from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import beta as beta_distribution
from scipy.stats import binom, nbinom

from ..core.errors import check, in_range, one_of

Count = int | np.integer
Counts = Count | Sequence[Count] | NDArray
Values = Sequence | NDArray
End = TypeVar("End", float, NDArray)


class Interval(NamedTuple, Generic[End]):
    """Ends of a confidence interval: numbers, or arrays of one shape."""

    lower: End
    upper: End


def check_inside(what: str, value: float) -> None:
    """Refuses numbers outside the open interval (0, 1)."""
    check(0 < value < 1, what, got=value, expected="a number strictly between 0 and 1", fix="choose one, such as 0.05")


def checked_counts(hits: Counts, chains: Counts) -> tuple[NDArray, NDArray]:
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
    hits, chains = checked_counts(hits, chains)
    check_inside("confidence", confidence)
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
    checked_counts(np.append(controls, member), np.append(np.maximum(controls, 1), max(member, 1)))
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
    checked_counts(hits, samples)
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
    check_inside("confidence", confidence)
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
    checked_counts(hits, samples)
    check_inside("beta", beta)
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
    checked_counts(0, samples)
    check(bool(critical >= 1), "critical", got=critical, expected="a count of 1 or more", fix="use critical_count")
    check_inside("power", power)
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
    check_inside("rate", rate)
    check_inside("alpha", alpha)
    return math.ceil(math.log(alpha) / math.log1p(-rate))
