"""Canaries: areas and rates by hand, and the bound of epsilon on worlds whose epsilon is known."""

import math
import sys

import numpy as np
import pytest
from scipy.special import expit

from fpjax.audit.canaries import SCORES, audit_canaries
from fpjax.core.errors import RequestError


def test_scores_in_order_have_an_area_of_one_and_all_members_above():
    result = audit_canaries(np.arange(40) + 100.0, np.arange(30), score="t50")
    assert (result.num_in, result.num_out) == (40, 30)
    assert (result.area, result.area_upper) == (1, 1)
    assert 0.8 < result.area_lower < 1
    assert (result.tpr_hits, result.tpr_trials, result.tpr, result.tpr_upper) == (40, 40, 1, 1)
    assert result.tpr_lower == pytest.approx(0.025 ** (1 / 40))
    back = audit_canaries(np.arange(30), np.arange(40) + 100.0, score="t50")
    assert (back.area, back.tpr) == (0, 0)


def test_area_is_the_share_of_pairs_in_order_with_ties_and_infinite_scores():
    rng = np.random.default_rng(0)
    inside, outside = rng.poisson(2.0, 33) * 1.0, rng.poisson(1.0, 41) * 1.0
    inside[0], outside[0] = -math.inf, -math.inf
    above, equal = inside[:, None] > outside, inside[:, None] == outside
    result = audit_canaries(inside, outside, score="nll")
    assert result.area == pytest.approx(above.mean() + equal.mean() / 2)
    assert result.area_lower < result.area < result.area_upper


@pytest.mark.parametrize(
    ("num_out", "hits"),
    [
        (50, 2),  # None above: the highest other scores 49.
        (99, 2),
        (100, 2),  # One may be above, but that one and the next are tied.
        (200, 3),  # Two may be.
    ],
)
def test_tpr_by_hand(num_out, hits):
    outside = np.zeros(num_out)
    outside[:2] = 49
    result = audit_canaries([50, 50, 49, 0], outside, score="count")
    assert (result.tpr_hits, result.tpr) == (hits, hits / 4)
    assert result.tpr_lower < hits / 4 < result.tpr_upper


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: audit_canaries([], [1.0], score="count"), "canaries in"),
        (lambda: audit_canaries([1.0], [], score="count"), "canaries out"),
        (lambda: audit_canaries([1.0], [math.nan], score="count"), "1 NaN"),
        (lambda: audit_canaries([[1.0]], [1.0], score="count"), "in a row"),
        (lambda: audit_canaries([1.0], [0.0], score="best"), "one of count, nll, t50"),
        (lambda: audit_canaries([1.0], [0.0], score="count", confidence=95), "confidence"),
        (lambda: audit_canaries([1.0], [0.0], score="count", delta=0.0), "delta"),
        (lambda: audit_canaries([1.0], [0.0], score="count", fpr=1.0), "fpr"),
    ],
)
def test_bad_requests_are_refused_with_a_fix(call, says):
    with pytest.raises(RequestError, match="fix: ") as error:
        call()
    assert says in str(error.value)


def test_without_the_extra_there_is_no_epsilon(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)
    result = audit_canaries([1.0], [0.0], score=SCORES[0])
    assert result.epsilon is None
    assert result.epsilon_most is None


@pytest.mark.extra
@pytest.mark.parametrize(("number", "most", "in_order"), [(20, 1.8, 1.3), (100, 3.5, 3.1), (400, 4.9, 4.5)])
def test_what_so_many_canaries_can_show(number, most, in_order):
    pytest.importorskip("jax_privacy")
    half = number // 2
    result = audit_canaries(1000.0 + np.arange(half), np.arange(half), score="t50")
    # All of m guesses right have probability q^m at most, with q = e^eps / (1 + e^eps).
    for epsilon, guesses, rounded in ((result.epsilon_most, number, most), (result.epsilon, number // 3 * 2, in_order)):
        q = 0.05 ** (1 / guesses)
        assert epsilon == pytest.approx(math.log(q / (1 - q)), abs=0.03)
        assert round(epsilon, 1) == rounded
    # Two tied groups are guessed whole; a score that is the same for all guesses nothing.
    tied = audit_canaries(np.ones(half), np.zeros(half), score="count")
    assert tied.epsilon == pytest.approx(tied.epsilon_most)
    assert audit_canaries(np.ones(half), np.ones(half), score="count").epsilon == 0
    assert audit_canaries(np.zeros(half), np.ones(half), score="count").epsilon == 0


@pytest.mark.extra
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("score", ["count", "t50"])
def test_epsilon_is_above_the_truth_no_more_often_than_the_level(epsilon, score):
    """Randomised response with this epsilon: each canary shows its membership with probability e^eps / (1 + e^eps)."""
    pytest.importorskip("jax_privacy")
    rng, runs, number, level, wrong, copied = np.random.default_rng(1), 300, 60, 0.1, 0, 0
    for _ in range(runs):
        member = rng.random(number) < 0.5
        shown = np.where(rng.random(number) < expit(epsilon), member, ~member)
        scores = np.where(shown, rng.poisson(1.0, number), 0) if score == "count" else shown + 0.5 * rng.random(number)
        result = audit_canaries(scores[member], scores[~member], score=score, confidence=1 - level)
        wrong += result.epsilon > epsilon
        # Each canary six times: without coins of their own they break the level.
        copies = [np.tile(side, 6) for side in (scores[member], scores[~member])]
        copied += audit_canaries(*copies, score=score, confidence=1 - level).epsilon > epsilon
    allowed = level + 4.5 * math.sqrt(level * (1 - level) / runs)
    assert wrong / runs <= allowed < copied / runs
