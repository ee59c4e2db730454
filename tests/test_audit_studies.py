"""What the audit says of the search, the densities and the canaries, from results made by hand."""

import functools

import numpy as np
import pytest

from fpjax import stats
from fpjax.audit.verdict import AuditSettings
from fpjax.studies.strategies import CONFIRM, CURVE

from .audited import GRID, LEVELS, add_chains, audit, make, results


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The interval of t50 is not what is tested here, and most of the time."""
    monkeypatch.setattr(stats, "t50_interval", functools.partial(stats.t50_interval, resamples=100))


# Curves


def test_floor_is_the_larger_of_chance_and_false_positives():
    assert audit(num_train=100).floor == pytest.approx(0.01)
    assert audit(num_samples=2000).floor == pytest.approx(1 - 0.05 ** (1 / 2000))
    # Of the head that fires most.
    worst = stats.clopper_pearson(90, 50_000, side="upper").upper
    assert audit(control_hits=(40, 90, 50)).floor == pytest.approx(float(worst))


def test_curve_pools_both_phases():
    member, control = audit().targets[:2]
    assert member.curve.num_chains == [24] * 4
    assert member.curve.num_detected == [24, 6, 0, 0]
    assert control.curve.num_chains == [8] * 4
    assert member.curve.isotonic == [1, 0.25, 0, 0]
    assert member.t_prime_upper >= member.t_prime >= member.t_prime_lower
    assert member.t50_lower <= member.t50 <= member.t50_upper
    np.testing.assert_allclose(member.curve.t, GRID.t[LEVELS], rtol=1e-6)


def test_the_rank_uses_only_chains_that_controls_have_too():
    """Curve chains of the member alone must not move its rank, only its t50 and t'."""
    contents = results()
    search = contents["search"]
    for i, phase in enumerate(search["phase"]):
        if phase == CURVE:
            search["num_identity"][i] = search["num_detected"][i] = 16
    result = make(contents)
    member, control = result.targets[0], result.targets[1]
    assert member.t50_rank == control.t50_rank
    assert member.t50 > control.t50
    assert member.t_prime == pytest.approx(float(GRID.t[16]))  # of the curve's chains alone
    assert control.t_prime == pytest.approx(float(GRID.t[8]))
    assert result.tests[0].t50_p == result.model.t50_p == 1.0


@pytest.mark.parametrize("strategy", ["coarse_to_fine", "bisection"])
def test_t_prime_alpha_is_of_fresh_chains_where_there_are_some(strategy):
    """Chains that chose where to look again move t' and t50, but not the test over levels."""
    contents = results(member_curve=(8, 8, 8, 8), strategy=strategy)
    rows = [(0, CURVE, 5, 16, 16), (0, CURVE, 18, 16, 2), (0, CONFIRM, 6, 16, 16), (0, CONFIRM, 10, 16, 0)]
    target = make(add_chains(contents, rows)).targets[0]
    assert target.t_prime == pytest.approx(GRID.t[18])
    assert target.t_prime_alpha == pytest.approx(GRID.t[6])
    assert target.t_prime_alpha_lower <= target.t_prime_alpha <= target.t_prime_alpha_upper <= float(GRID.t[10]) + 1e-6


@pytest.mark.parametrize("strategy", ["descending", "coarse_to_fine"])
def test_t_prime_alpha_of_chains_that_chose_their_levels_is_of_the_ranking_chains(strategy):
    """`descending` stops at the first level with a return: its own chains are seen where they came back."""
    rows = [(0, CURVE, level, 16, 16) for level in (18, 19, 20)]
    ranked = {"member_curve": (8, 8, 0, 0)}
    chosen = make(add_chains(results(strategy=strategy, **ranked), rows)).targets[0]
    alone = audit(strategy=strategy, **ranked).targets[0]
    assert chosen.t_prime == pytest.approx(GRID.t[20])
    assert chosen.t_prime_alpha == alone.t_prime_alpha == pytest.approx(GRID.t[8])
    ends = [(each.t_prime_alpha_lower, each.t_prime_alpha_upper) for each in (chosen, alone)]
    assert ends[0] == ends[1]
    # The curve's chains at ranked levels would move it, had they a part in it.
    more = make(add_chains(results(strategy=strategy, **ranked), [(0, CURVE, 12, 1000, 1000)])).targets[0]
    assert more.t_prime_alpha == alone.t_prime_alpha
    for fixed in ("exhaustive", "random"):
        pooled = make(add_chains(results(strategy=fixed, **ranked), [(0, CURVE, 12, 1000, 1000)])).targets[0]
        assert pooled.t_prime_alpha == pytest.approx(GRID.t[12])


# Densities


def test_likelihood_groups_leave_out_what_did_not_converge():
    result = audit()
    held_out = next(g for g in result.nll if g.name == "held-out target")
    assert held_out.bits_per_dim == [3.5, 4.5, 1.5]
    assert held_out.not_converged == 1
    assert held_out.mean == pytest.approx(9.5 / 3)
    # One of four is likelier than the member, and one that did not converge might be: (1 + 2) / (4 + 1).
    (member,) = result.nll_members
    assert member.rank_p == pytest.approx(0.6)
    assert (member.row, member.bits_per_dim) == (0, 2.0)


def test_a_member_without_a_density_has_no_rank():
    contents = results()
    contents["likelihood"]["densities"]["bits_per_dim"][0], contents["likelihood"]["densities"]["converged"][0] = (
        None,
        False,
    )
    (member,) = make(contents).nll_members
    assert (member.bits_per_dim, member.rank_p) == (None, None)


def test_densities_decide_nothing():
    contents = results()
    contents["likelihood"]["densities"]["bits_per_dim"] = [-50.0, 3.0, 3.5, 4.5, 1.5, 2.0]
    contents["likelihood"]["densities"]["converged"] = [True] * 6
    assert make(contents).verdict == audit().verdict


def test_likelihood_diagnostics():
    result = audit()
    found = next(g for g in result.nll if g.name == "held-out target").diagnostics
    assert found.outcomes == {"converged": 3, "max steps": 1, "non-finite": 0}
    assert (found.median_evaluations, found.most_evaluations) == (450, 9000)
    assert found.prior_nats == pytest.approx(-2.0)
    assert found.divergence_nats == pytest.approx(-7.5)
    assert found.image_error == pytest.approx(np.sqrt((1 + 4 + 9) / 3) / (10 * np.log(2)))
    snapshot, end = result.snapshots
    assert (snapshot.step, end.step) == (50, 100)
    assert end.member == [2.0]  # of the study itself, of which the snapshots follow the first rows
    assert [len(g.bits_per_dim) for g in end.groups] == [1, 1, 2]
    assert snapshot.member == [3.0]
    assert snapshot.rank_p == [pytest.approx(1 / 3)]
    assert [g.name for g in snapshot.groups] == ["member", "clean original", "held-out target"]
    assert snapshot.groups[0].diagnostics.image_error == 0.0


def test_the_bound_ends_at_both_t_prime():
    result = audit(member_curve=(8, 8, 8, 0))
    (found,) = result.bound
    target, std = result.targets[0], GRID.std.astype(np.float64)
    assert found.t_prime == target.t_prime == pytest.approx(float(GRID.t[12]))
    # The first cell's sup is at level 4; t' cuts the second, whose sup is at its lower edge.
    assert [(c.t_sup, c.log_sup, c.effective) for c in found.cells] == [
        (pytest.approx(float(GRID.t[4])), 710.0, 1.5),
        (pytest.approx(float(GRID.t[8])), 500.0, 2.0),
    ]
    assert found.cells[1].t_high == pytest.approx(float(GRID.t[12]))
    assert found.log_sum == pytest.approx(np.logaddexp(710 + np.log(std[8]), 500 + np.log(std[12] - std[8])))
    assert 0 < found.t_prime_alpha <= found.t_prime
    assert (found.not_converged, found.num_densities) == (1, 17)
    nothing = audit(member_curve=(0, 0, 0, 0)).bound[0]
    assert (nothing.log_sum, nothing.cells) == (-np.inf, [])


# Thresholds


def test_the_answer_at_every_threshold_is_that_of_its_counts():
    result = audit(hits=(52,))
    low, used, high = result.thresholds
    assert [at.threshold for at in (low, used, high)] == [0.1, 0.5, 0.9]
    member, test = result.targets[0], result.tests[0]
    assert (used.num_detected, used.count_p, used.t_prime, used.t50) == (52, test.count_p, member.t_prime, member.t50)
    assert (used.t50_lower, used.t50_upper) == (member.t50_lower, member.t50_upper)
    assert used.control_detected == [0] * 99
    assert (low.num_detected, low.control_detected, low.count_p) == (61, [1] * 99, pytest.approx(0.01))
    assert low.t_prime == low.t50 == pytest.approx(float(GRID.t[16]))
    assert (high.num_detected, high.t_prime, high.sensitivity.hits, high.count_p) == (0, 0.0, 0, 1.0)


# Canaries


def canaries(score, **changes):
    return audit(AuditSettings(canary_score=score), canaries=20, controls=9, count_controls=9, **changes).canaries


def test_canaries_are_told_apart_by_the_declared_score():
    assert audit().canaries is None
    spread = {"hits": (9, 5, 5, 0), "control_hits": (5, 1), "member_curve": (8, 8, 0, 0)}
    counts = canaries("count", **spread)
    assert (counts.score, counts.num_in, counts.num_out) == ("count", 4, 9)
    pairs = [(i > o) + (i == o) / 2 for i in (9, 5, 5, 0) for o in (5, 1, *[0] * 7)]
    assert counts.area == pytest.approx(np.mean(pairs))
    assert (counts.tpr_hits, counts.tpr_trials) == (1, 4)
    t50 = canaries("t50", **spread)
    assert (t50.score, t50.num_in, t50.num_out, t50.area) == ("t50", 4, 9, 1.0)


def test_canaries_by_density_need_one():
    """Fewer bits are a larger score; a density that was not computed is the least likely."""
    found = canaries("nll")
    assert (found.num_in, found.num_out) == (1, 4)
    assert found.area == pytest.approx(3 / 4)


def test_canaries_have_their_own_confidence_and_delta():
    settings = AuditSettings(confidence=0.8, canary_delta=1e-3)
    found = audit(settings, canaries=20, hits=(3, 2)).canaries
    assert (found.confidence, found.delta) == (0.8, 1e-3)
