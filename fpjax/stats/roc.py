"""Receiver operating characteristics: the area under a curve that was counted at some thresholds, with its interval."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from ..core.errors import check
from .binomial import Counts, check_inside


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
    check_inside("confidence", confidence)
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
