"""Scores of canaries whose membership was a fair coin: how well they tell members, and the epsilon they show.

Each canary was put into the training set, or left out, by a fair coin of its own. One score, declared before it was
looked at, is larger for canaries that look memorised. From the two sides' scores follow the area under the ROC curve,
the true-positive rate at a small false-positive rate, and a lower bound of epsilon from this one run (Steinke, Nasr &
Jagielski 2023, arXiv:2305.08846), whose p-value the extra `privacy` computes (`jax_privacy.auditing`).
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..core.errors import check, one_of

SCORES = ("count", "t50", "nll")


@dataclasses.dataclass(frozen=True)
class CanaryResult:
    """What the canaries' scores show; rates and areas in [0, 1] with the ends of their intervals."""

    score: str  # that was declared: one of SCORES
    num_in: int
    num_out: int
    area: float  # under the ROC curve
    area_lower: float
    area_upper: float
    tpr_hits: int  # members above the threshold
    tpr_trials: int
    tpr: float
    tpr_lower: float
    tpr_upper: float
    epsilon: float | None  # lower bound; None without the extra
    epsilon_most: float | None  # what it would be with every guess right
    confidence: float
    delta: float


def audit_canaries(
    scores_in: stats.Values,
    scores_out: stats.Values,
    *,
    score: str,
    confidence: float = 0.95,
    delta: float = 1e-5,
    fpr: float = 0.01,
) -> CanaryResult:
    """Area, TPR at a small FPR, and a lower bound of epsilon, from the scores of canaries in and out.

    The TPR counts members strictly above the lowest score that at most the share `fpr` of the others exceed; with
    fewer than 1 / fpr of those, strictly above all of them. Its interval (Clopper-Pearson) takes this threshold as
    given, as the area's (`stats.roc_area`) does the number of canaries.

    For epsilon the third of all canaries with the highest scores is guessed to be in, the third with the lowest to be
    out, with those tied to them, but none on the median or beyond. The theorem (5.2 in arXiv:2305.08846) allows any
    guesses made from the scores alone, without a look at who is in, so this rule, declared here, needs no correction.
    A threshold chosen by its result does: the library's default divides the level by the corners of the ROC curve's
    hull, a number that the memberships decide, so that nothing is proven (its level held in simulations), and it
    guesses on one side only: 100 canaries in perfect order show about 2.5 that way and 3.1 this way. Half in and half
    out would need just as many in as out, which coins rarely give. Where few members are remembered, and scores have no
    ties, a third is too many and the bound is low, but a bound.

    At most, with every canary guessed right, 20 / 100 / 400 canaries show 1.8 / 3.5 / 4.9 (confidence 0.95); in perfect
    order without ties, 1.3 / 3.1 / 4.5.

    Args:
      scores_in: one for each canary that was trained on, larger for more memorised (the negative of an NLL).
      scores_out: the same of those left out.
      score: which score this is, one of `SCORES`.
      confidence: in (0, 1); two-sided for area and TPR, one-sided for epsilon.
      delta: of (epsilon, delta), in (0, 1).
      fpr: in (0, 1).

    Returns:
      `CanaryResult`; epsilons in nats, 0 where nothing is shown.

    Raises:
      RequestError: if there is no canary on one side, a score is NaN, or a number is outside its range.
    """
    one_of("score", score, SCORES)
    for name, value in (("confidence", confidence), ("delta", delta), ("fpr", fpr)):
        check(0 < value < 1, name, got=value, expected="a number strictly between 0 and 1", fix="use the default")
    sides = []
    for name, values in (("canaries in", scores_in), ("canaries out", scores_out)):
        side = np.asarray(values, dtype=float)
        ok = side.ndim == 1 and side.size > 0 and not np.isnan(side).any()
        got = f"shape {side.shape}, {np.isnan(side).sum()} NaN"
        check(ok, name, got=got, expected="one number or more, in a row", fix="use more canaries, each with a score")
        sides.append(side)
    inside, outside = sides
    everything, is_in = np.concatenate(sides), np.repeat([1, -1], [inside.size, outside.size])
    cuts = np.unique(everything)
    above = [np.sum(side > cuts[:, None], axis=1) for side in sides]
    area = stats.roc_area(*above, positives=inside.size, negatives=outside.size, confidence=confidence)
    hits = int(np.sum(inside > np.sort(outside)[-1 - math.floor(fpr * outside.size)]))
    tpr_lower, tpr_upper = stats.clopper_pearson(hits, inside.size, confidence=confidence)
    guesses = _guesses(everything)
    right, wrong = (int(np.sum(guesses * is_in == sign)) for sign in (1, -1))
    total = everything.size
    return CanaryResult(
        score=score,
        num_in=inside.size,
        num_out=outside.size,
        area=area.estimate,
        area_lower=area.lower,
        area_upper=area.upper,
        tpr_hits=hits,
        tpr_trials=inside.size,
        tpr=hits / inside.size,
        tpr_lower=float(tpr_lower),
        tpr_upper=float(tpr_upper),
        epsilon=_epsilon(right, wrong, total - right - wrong, 1 - confidence, delta),
        epsilon_most=_epsilon(total, 0, 0, 1 - confidence, delta),
        confidence=confidence,
        delta=delta,
    )


def _guesses(scores: NDArray) -> NDArray:
    """1 (in), -1 (out) or 0 (no guess) for each score, from all scores alone."""
    ordered, total = np.sort(scores), scores.size
    third = max(total // 3, 1)
    high = (scores >= ordered[total - third]) & (scores > ordered[(total - 1) // 2])
    low = (scores <= ordered[third - 1]) & (scores < ordered[total // 2])
    return high.astype(int) - low.astype(int)


def _epsilon(right: int, wrong: int, none: int, significance: float, delta: float) -> float | None:
    """Lower bound of epsilon from how many guesses were right, wrong, or not made; None without the library."""
    try:
        from jax_privacy import auditing  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    if not right:
        return 0.0
    # The library guesses "in" above a threshold and "out" never. What counts is only how many guesses there are, and
    # how many of them are right: those go in as members above it, the wrong ones as others. It wants scores on both
    # sides; one canary more, not guessed, makes the p-value a little larger.
    others = np.repeat([1.0, 0.0], [wrong, none + 1])
    auditor = auditing.CanaryScoreAuditor(np.ones(right), others)
    return float(auditor.epsilon_one_run(significance, delta, threshold_strategy=auditing.Explicit(0.5)))
