"""From the stages' results, made by hand, to the audit: every number and where it comes from, and the verdict."""

import functools
import math

import numpy as np
import pytest
from scipy.stats import binom

from fpjax import stats
from fpjax.audit.results import Likeness
from fpjax.audit.summary import ASSUMPTION, audit_auditor, make_audit
from fpjax.audit.verdict import BELOW, BETA, INCONCLUSIVE, LEAK, MEMORISED, REPRODUCED, AuditSettings
from fpjax.detectors.evaluation import POOR
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sde import SubVP
from fpjax.studies.strategies import CONFIRM, CURVE, RANK

GRID = time_grid(SubVP(), 20)
LEVELS = [4, 8, 12, 16]
COPIES, RETURNS = 32, 256
TAIL = 0.025  # by which each limit of a two-sided interval fails


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The interval of t50 is not what is tested here, and most of the time."""
    monkeypatch.setattr(stats, "t50_interval", functools.partial(stats.t50_interval, resamples=100))


def roc(decision, condition, positives, negatives, *, missed=0, false=0):
    """A curve of scores that all lie on one side or the other."""
    return {
        "decision": decision,
        "condition": condition,
        "num_positives": positives,
        "num_negatives": negatives,
        "num_images": min(negatives, 400),
        "positives_above": [positives - missed] * 33,
        "negatives_above": [false] * 33,
        "missed": missed,
        "false_images": false,
    }


def padded(values, size, *, by=0):
    return [*values, *[by] * (size - len(values))]


def results(
    *,
    hits=(0,),
    control_hits=(),
    num_samples=50_000,
    num_train=1000,
    controls=24,
    count_controls=99,
    member_curve=(8, 2, 0, 0),
    control_curve=(8, 2, 0, 0),
    strategy="exhaustive",
    planted_missed=0,
    poor=(),
    returns=(),
    real_false=0,
    looks=(),
    planned_looks=(),
    memoriser=None,
    memoriser_control_hits=(),
    canaries=0,
):
    """Contents of the stages' files.

    Args:
      hits, control_hits: of each member, and of the first count controls.
      controls: with chains, the first of the count controls.
      member_curve, control_curve: chains that return of 8 ranking chains at each of `LEVELS`; members have twice as
        many curve chains, of which the same share returns.
      poor: of the first targets, found copies of `COPIES`; all of the others'.
      returns: of the first searched targets, found chains of `RETURNS`; all of the others'.
      looks: rows of counts, members first, for all looks but the last.
      memoriser: how many of its samples are seen of each member; None: all.
    """
    k, n = len(hits), num_samples
    targets, searched = k + count_controls, k + controls
    curves = [member_curve] * k + [control_curve] * controls
    rows = [(t, RANK, level, 8, m) for t in range(searched) for level, m in zip(LEVELS, curves[t], strict=True)]
    rows += [(t, CURVE, level, 16, 2 * m) for t in range(k) for level, m in zip(LEVELS, member_curve, strict=True)]
    names = ("target", "phase", "level", "num_chains", "num_detected")
    search = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    search["num_identity"] = list(search["num_detected"])
    search["num_fingerprint"] = list(search["num_chains"])
    # Of two other thresholds, the lower one detects every chain, the higher one none.
    search["num_detected_at"] = [[chains, 0] for chains in search["num_chains"]]
    detected = [*hits, *padded(control_hits, count_controls)]
    reproduced = [round(30_000 / num_train)] * k
    seen = reproduced if memoriser is None else [memoriser] * k
    contents = {
        "data": {"identity": {"name": "images"}},
        "score": {"num_steps": 100, "num_params": 7},
        "classifiers": {
            "attempts": {"fingerprint": 1, "identity": 2},
            "epochs": {"fingerprint": 100, "identity": 300},
            "dropped": [3],
            "membership": {
                "rows": list(range(targets)),
                "num_members": k,
                "num_controls": controls,
                "num_train": num_train,
                "train_sha256": "0" * 64,
                "canaries": canaries,
            },
            "detector": {"description": "two nets", "marks": True, "advice": "train the detectors longer"},
            "threshold": 0.5,
            "thresholds": [0.1, 0.9],
            "errors": {
                "num_images": 400,
                "heads": targets,
                "draws_per_target": COPIES,
                "false_by_head": padded([real_false], targets),
                "false_images_at": [real_false + 5, 0],
                "missed_at": [0, 9],
                "planted_found": [1] * (targets - planted_missed) + [0] * planted_missed,
                "poor_found": padded(poor, targets, by=COPIES),
                "roc": [
                    roc("fingerprint", "plain", 400, 400, missed=1, false=2),
                    roc("identity", "plain", 640, 400 * targets, missed=3, false=4),
                    roc("joint", "plain", 640, 400 * targets, missed=4, false=real_false),
                    roc("joint", POOR, 640, 400 * targets, missed=70),
                ],
            },
        },
        "count": {
            "num_samples": n,
            "looks": [n // 2 ** (len(looks) - i) for i in range(len(looks) + 1)],
            "planned_looks": list(planned_looks) or [n // 2 ** (len(looks) - i) for i in range(len(looks) + 1)],
            "looks_detected": [*looks, detected],
            "num_fingerprint": sum(hits) + 1,
            "num_identity": [hits[0] + 2, *detected[1:]],
            "num_detected": detected,
            "num_detected_at": [[hit + 9, 0] for hit in hits] + [[1, 0]] * count_controls,
            "control_hit_samples": sum(control_hits),
            "control_hit_samples_at": [sum(control_hits) + 3, 0],
            "sensitivity_chains": RETURNS,
            "sensitivity_detected": padded(returns, searched, by=RETURNS),
            "sensitivity_detected_at": [[RETURNS, 0]] * searched,
            "sensitivity_level": 1,
            "roc": [
                roc("fingerprint", "residue", 256 * searched, 0),
                roc("joint", "residue", 256, 256 * (targets - 1)),
            ],
            "evaluations": 10,
            "executed": 11,
            "hits": [{"target": 0, "mse": 0.01, "mae": 0.08}],
            "near_misses": [{"target": 0, "mse": 0.2, "mae": 0.3, "score": 0.4}],
            "oracle": {
                "num_samples": 30_000,
                "reproduced": reproduced,
                "detected": seen,
                "num_detected": [*seen, *padded(memoriser_control_hits, count_controls)],
                "evaluations": 5,
                "executed": 6,
            },
        },
        "search": {
            **search,
            "num_members": k,
            "evaluations": 100,
            "executed": 101,
            "strategy": strategy,
            "exhaustive_evaluations": 120,
        },
    }
    return contents | ({"likelihood": likelihood(), "bound": darboux()} if k == 1 else {})


def likelihood():
    """Of one member, its original and four held-out targets, the last of which did not converge."""
    return {
        "group": ["member", "clean original"] + ["held-out target"] * 4,
        "row": [0, 0, 0, 1, 2, 3],
        "t_min": 1e-5,
        "bits_per_dim": [2.0, 3.0, 3.5, 4.5, 1.5, None],
        "converged": [True] * 5 + [False],
        "outcome": ["converged"] * 5 + ["max steps"],
        "nats": [-60.0, -90.0, -105.0, -135.0, -45.0, None],
        "prior_nats": [-20.0] * 5 + [None],
        "delta_nats": [-40.0, -70.0, -85.0, -115.0, -25.0, None],
        "probe_error": [None] * 6,
        "repeat_error": [3.0, 1.0, 1.0, 2.0, 3.0, None],
        "nfe": [100, 200, 300, 400, 500, 9000],
        "num_dims": 10,
        "snapshots": [
            {
                "step": 50,
                "nats": [-60.0] * 4,
                "prior_nats": [-20.0] * 4,
                "delta_nats": [-40.0] * 4,
                "probe_error": [0.0] * 4,
                "repeat_error": [None] * 4,
                "nfe": [100] * 4,
                "outcome": ["converged"] * 4,
                "converged": [True] * 4,
                "bits_per_dim": [3.0, 2.0, 4.0, 5.0],
            }
        ],
    }


def darboux():
    """Levels 0 to 16 by 4 in two cells."""
    return {
        "target": [0] * 5,
        "level": [0, 4, 8, 12, 16],
        "log_mean": [700.0, 710.0, 500.0, 90.0, 80.0],
        "effective": [1.0, 1.5, 2.0, 3.0, 4.0],
        "num_chains": [1, 4, 4, 4, 4],
        "not_converged": [0, 0, 0, 1, 0],
        "edges": [[0, 8, 16]],
        "trace_error": 0.5,
        "t_min": 1e-5,
    }


def make(contents, settings=None):
    return make_audit(
        contents, GRID, SubVP(), settings or AuditSettings(), name="x", sampler="ancestral", seed=0, provenance={}
    )


def audit(settings=None, **changes):
    return make(results(**changes), settings)


def add_chains(contents, rows):
    """Rows of target, phase, level, chains and hits for search.json."""
    search = contents["search"]
    for row in rows:
        for name, value in zip(("target", "phase", "level", "num_chains", "num_detected"), row, strict=True):
            search[name].append(value)
        search["num_identity"].append(row[4])
        search["num_fingerprint"].append(row[3])
        search["num_detected_at"].append([row[3], 0])
    return contents


# Verdicts


def test_reproduced():
    result = audit(hits=(52,))
    assert (result.verdict.verdict, result.verdict.kinds) == (LEAK, [REPRODUCED])
    (test,) = result.tests
    assert test.expected == 50
    assert test.fewer_p == pytest.approx(binom.cdf(52, 50_000, 1e-3 * (1e-3) ** (1 / 24)) + BETA)
    assert test.leak_p == pytest.approx(1e-3, rel=1e-6)  # its smallest value
    assert (test.count_p, result.model.looks[0].p) == (pytest.approx(0.01), pytest.approx(0.01))
    assert test.rate.lower < 52 / 50_000 < test.rate.upper
    assert result.hits == [Likeness(0, 0.01, 0.08, None)]
    assert result.near_misses == [Likeness(0, 0.2, 0.3, 0.4)]


def test_memorised_without_a_single_reproduction():
    result = audit(member_curve=(8, 8, 8, 1))
    assert (result.verdict.verdict, result.verdict.kinds) == (LEAK, [MEMORISED])
    assert result.tests[0].t50_p == result.model.t50_p == pytest.approx(0.04)


def test_below_tolerance_needs_samples_and_sensitivity():
    good = audit()
    assert good.verdict.verdict == BELOW
    limit = float(stats.clopper_pearson(0, 50_000).upper) / TAIL ** (1 / 24)
    assert good.model.bound == pytest.approx(limit)
    assert good.model.tolerance == 1e-3
    assert audit(AuditSettings(tolerance=limit * 0.99)).verdict.verdict == INCONCLUSIVE
    weak = audit(num_samples=2000)
    assert weak.verdict.verdict == INCONCLUSIVE
    assert "count.num_samples from 2,000" in weak.verdict.to_settle[0]
    blind = audit(returns=[RETURNS] + [0] * 24, num_samples=5000)
    assert blind.verdict.verdict == INCONCLUSIVE
    assert "sensitivity of 0.00" in blind.verdict.reasons[0]


def test_false_hits_of_another_head_excuse_hits():
    """The same hits are no leak where a head that was never trained on fires as often; one that fires less does not."""
    assert audit(hits=(30,)).verdict.verdict == LEAK
    assert audit(hits=(30,), control_hits=(30,)).verdict.verdict != LEAK
    assert audit(hits=(30,), control_hits=(29,)).verdict.verdict == LEAK


def test_counts_are_ranked_among_all_controls_and_t50_among_those_with_chains():
    result = audit(hits=(5,), controls=19, member_curve=(8, 8, 8, 1))
    assert (result.model.num_controls, result.model.num_count_controls) == (19, 99)
    assert [result.tests[0].count_p, result.tests[0].t50_p] == pytest.approx([0.01, 0.05])
    assert len(result.targets) == 20
    assert result.verdict.kinds == [REPRODUCED]
    assert len(result.model.looks[0].controls) == 99


def test_two_members_are_tested_together():
    result = audit(hits=(3, 2), count_controls=24, member_curve=(8, 8, 8, 1))
    assert (result.verdict.verdict, result.verdict.kinds) == (LEAK, [REPRODUCED, MEMORISED])
    assert [target.member for target in result.targets] == [True] * 2 + [False] * 24
    assert [test.row for test in result.tests] == [0, 1]
    for p in (result.model.looks[0].p, result.model.t50_p):
        assert p == pytest.approx(1 / math.comb(26, 2), rel=0.5)
    # Neither alone could.
    assert [test.count_p for test in result.tests] == pytest.approx([0.04, 0.04])
    assert [test.count_holm for test in result.tests] == pytest.approx([0.08, 0.08])
    assert (result.model.prevalence.hits, result.model.prevalence.trials) == (2, 2)
    assert [at.row for at in result.thresholds] == [0, 0, 0, 1, 1, 1]
    assert audit(hits=(3, 0), count_controls=24).verdict.verdict == INCONCLUSIVE
    assert (result.nll, result.nll_members, result.bound, result.snapshots) == ([], [], [], [])


def test_without_controls_only_the_bound_is_left():
    result = audit(AuditSettings(tolerance=0.01), controls=0, count_controls=0)
    assert result.verdict.verdict == BELOW
    assert result.detector.sensitivity_returns.targets == 0
    assert result.detector.sensitivity_lower == result.detector.sensitivity_poor.lower == pytest.approx(TAIL)
    assert [heads.images for heads in result.detector.heads] == ["real"]
    hit = audit(hits=(52,), controls=0, count_controls=0)
    assert hit.verdict.verdict == INCONCLUSIVE
    assert [test.what for test in hit.self_tests] == ["memoriser"]
    assert not hit.self_tests[0].possible


def test_looks_are_passed_on():
    first = [0] * 100
    planned = (25_000, 50_000, 100_000)
    result = audit(hits=(5,), looks=[first], planned_looks=planned)
    assert [(look.num_samples, look.members) for look in result.model.looks] == [(25_000, [0]), (50_000, [5])]
    assert result.model.looks[0].level == pytest.approx(0.01 / 3)
    assert result.model.planned_looks == list(planned)
    assert result.num_samples == 50_000
    assert result.verdict.verdict == INCONCLUSIVE  # 1/100 is above the share of the level
    early = audit(hits=(0,), count_controls=399, looks=[[5] + [0] * 399])
    assert early.verdict.kinds == [REPRODUCED]
    assert "5 of 25,000" in early.verdict.reasons[0]


def test_without_a_mark_exchangeability_is_an_assumption():
    contents = results()
    assert make(contents).stamped
    contents["data"]["fingerprint_byte"] = None
    result = make(contents)
    assert not result.stamped
    assert result.verdict.reasons[-1] == ASSUMPTION


def test_likelihood_and_bound_can_be_left_out():
    contents = results(hits=(52,))
    whole = make(contents)
    short = make({stage: content for stage, content in contents.items() if stage not in ("likelihood", "bound")})
    assert (short.verdict, short.tests, short.targets) == (whole.verdict, whole.tests, whole.targets)
    assert (short.nll, short.nll_members, short.snapshots, short.bound) == ([], [], [], [])
    assert math.isnan(short.t_min_likelihood)


# Detectors


def test_detector_rates():
    detector = audit(control_hits=(3,), real_false=2).detector
    assert (detector.joint_false_generated.hits, detector.joint_false_generated.trials) == (3, 50_000)
    assert (detector.joint_false_real.hits, detector.joint_false_real.trials) == (2, 400)
    assert (detector.fingerprint_accuracy.hits, detector.fingerprint_accuracy.trials) == (797, 800)
    assert (detector.identity_accuracy.hits, detector.identity_accuracy.trials) == (640 + 400 - 3 - 4, 1040)
    assert [(heads.images, heads.worst, heads.worst_rate.hits) for heads in detector.heads] == [
        ("real", 0, 2),
        ("generated", 1, 3),
    ]
    assert [len(heads.hits) for heads in detector.heads] == [100, 99]
    by_name = {(roc.decision, roc.condition): roc for roc in detector.roc}
    # Of both scores at two values: P(higher) + P(equal) / 2.
    plain, found, false = by_name["identity", "plain"], 637 / 640, 4 / 40_000
    assert plain.area == pytest.approx(found * (1 - false) + (found * false + (1 - found) * (1 - false)) / 2)
    assert plain.area_lower < plain.area < plain.area_upper
    assert (plain.found.hits, plain.false.hits, plain.false.trials) == (637, 4, 400)
    residue = by_name["fingerprint", "residue"]
    assert np.isnan(residue.area)
    assert (residue.found.hits, residue.false.trials) == (6400, 0)
    assert (detector.oracle_detected, detector.oracle_reproduced, detector.oracle_samples) == (30, 30, 30_000)


def test_the_gate_is_told():
    gate = audit(planted_missed=2).detector.gate
    assert (gate.targets, gate.planted_found, gate.dropped) == (100, 98, 1)
    assert (gate.attempts["identity"], gate.epochs["identity"]) == (2, 300)
    contents = results()
    for name in ("attempts", "epochs"):
        del contents["classifiers"][name]  # as where nothing was trained
    assert make(contents).detector.gate.attempts == {}


def test_the_unit_of_sensitivity_is_the_target():
    """All of 256 chains from each of 24 targets are 24 looks, not 6,144; and members' chains are none of them."""
    detector = audit(returns=[0]).detector
    assert (detector.sensitivity_returns.targets, detector.sensitivity_returns.copies) == (24, RETURNS)
    assert detector.sensitivity_returns.lower == pytest.approx(TAIL ** (1 / 24))
    assert detector.sensitivity_returns.sure == pytest.approx(BETA ** (1 / 24))
    assert (detector.sensitivity_poor.targets, detector.sensitivity_poor.copies) == (100, COPIES)
    assert detector.sensitivity_poor.lower == pytest.approx(TAIL ** (1 / 100))
    assert detector.sensitivity_lower == detector.sensitivity_returns.lower
    half = [COPIES // 2] * 100
    poor = audit(poor=half).detector
    assert poor.sensitivity_poor.mean == 0.5
    assert (
        poor.sensitivity_lower
        == poor.sensitivity_poor.lower
        == pytest.approx(stats.mean_lower_limit([0.5] * 100, confidence=1 - TAIL))
    )


def test_a_blind_head_is_named():
    detector = audit(poor=[COPIES] * 7 + [0], returns=[RETURNS] * 5 + [RETURNS // 4]).detector
    assert (detector.sensitivity_poor.worst, detector.sensitivity_poor.worst_row) == (0, 7)
    assert (detector.sensitivity_returns.worst, detector.sensitivity_returns.worst_row) == (0.25, 5)
    assert detector.sensitivity_poor.mean == pytest.approx(0.99)


def test_the_verdict_takes_the_smaller_sensitivity():
    """One of 24 controls of which no chain is seen costs more than one of 100 heads that sees no poor copy."""
    limits = [audit(**{name: [value] * 2 + [0]}).detector for name, value in (("poor", COPIES), ("returns", RETURNS))]
    assert limits[1].sensitivity_lower == pytest.approx(stats.mean_lower_limit([0.0] + [1.0] * 23, confidence=1 - TAIL))
    assert limits[1].sensitivity_lower < limits[0].sensitivity_lower
    upper = audit(returns=[RETURNS] * 2 + [0]).tests[0].rate.upper
    assert upper == pytest.approx(float(stats.clopper_pearson(0, 50_000).upper) / limits[1].sensitivity_lower)


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
    contents["likelihood"]["bits_per_dim"][0], contents["likelihood"]["converged"][0] = None, False
    (member,) = make(contents).nll_members
    assert (member.bits_per_dim, member.rank_p) == (None, None)


def test_densities_decide_nothing():
    contents = results()
    contents["likelihood"]["bits_per_dim"] = [-50.0, 3.0, 3.5, 4.5, 1.5, 2.0]
    contents["likelihood"]["converged"] = [True] * 6
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


# The audit of the auditor


def self_tests(result):
    return {test.what: test for test in result.self_tests}


def test_the_audit_of_the_auditor_passes_on_good_detectors():
    tests = self_tests(audit())
    assert set(tests) == {"memoriser", "held-out targets"}
    assert all(test.possible and test.passed for test in tests.values())
    assert [test.vetoes for test in tests.values()] == [True, False]
    assert "30 of the 30 in 30000 plain samples are seen (p = 0.01, level 0.01)" in tests["memoriser"].text


@pytest.mark.parametrize("hits", [0, 52])
@pytest.mark.parametrize("broken", [{"memoriser": 0}, {"memoriser": 30, "memoriser_control_hits": (40,)}])
def test_no_verdict_stands_where_the_memoriser_is_not_found(hits, broken):
    result = audit(hits=(hits,), **broken)
    test = self_tests(result)["memoriser"]
    assert test.possible
    assert not test.passed
    assert f"not found: {broken['memoriser']} of the 30" in test.text
    assert (result.verdict.verdict, result.verdict.kinds) == (INCONCLUSIVE, [])
    assert "audit of the auditor failed (memoriser)" in result.verdict.reasons[0]
    assert "train the detectors longer" in result.verdict.to_settle[0]
    assert ("would have been a leak: 52 of 50,000" in result.verdict.reasons[-1]) == (hits > 0)


def test_a_wild_held_out_head_is_told_and_vetoes_nothing():
    for hits, expected in ((500, LEAK), (0, BELOW)):
        result = audit(hits=(hits,), control_hits=(400,))
        test = self_tests(result)["held-out targets"]
        assert not test.passed
        assert "400 of 50000 samples" in test.text
        assert result.verdict.verdict == expected


def test_the_same_false_hits_on_every_head_are_no_failure_but_one_heads_are():
    """Twenty hits on each of 99 heads are alike; as many on one are not."""
    assert self_tests(audit(control_hits=(20,) * 99))["held-out targets"].passed
    assert not self_tests(audit(control_hits=(1980,)))["held-out targets"].passed


def test_a_detector_that_says_yes_to_everything_does_not_find_the_memoriser():
    contents = results()
    count, n = contents["count"], 50_000
    count |= {"num_detected": [n] * 100, "looks_detected": [[n] * 100], "control_hit_samples": n}
    count["oracle"] |= {"num_detected": [30_000] * 100}
    result = make(contents)
    assert result.tests[0].leak_p > 0.01
    assert result.verdict.verdict == INCONCLUSIVE
    assert [test.what for test in result.self_tests if not test.passed] == ["memoriser"]


@pytest.mark.parametrize("changes", [{"num_train": 100_000}, {"count_controls": 24}])
def test_what_so_few_samples_or_controls_cannot_tell_is_stated_and_no_failure(changes):
    """No member among the memoriser's samples, or too few controls for the level of counts."""
    result = audit(num_samples=5_000_000, memoriser=0, **changes)
    test = self_tests(result)["memoriser"]
    assert not test.possible
    assert "cannot show at level 0.01" in test.text
    assert result.verdict.verdict == BELOW
    assert "held-out targets" not in self_tests(audit(controls=1, count_controls=1))


def test_missing_a_tenth_of_the_reproductions_is_no_failure():
    for seen in (27, 1):
        count = results(memoriser=seen)["count"]
        assert audit_auditor(count, AuditSettings(), members=1)[0].passed


def test_several_members_of_the_memoriser_are_tested_together():
    four = {"count_controls": 16, "controls": 16}
    assert self_tests(audit(hits=(0,) * 4, **four))["memoriser"].passed
    contents = results(hits=(0,) * 4, **four)
    contents["count"]["oracle"]["num_detected"][:4] = [30, 0, 0, 0]
    assert not self_tests(make(contents))["memoriser"].passed


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
