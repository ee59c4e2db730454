"""The verdict and its numbers, on results made by hand."""

import numpy as np
import pytest
from scipy.stats import binom

from fpjax.audit import (
    INCONCLUSIVE,
    LEAK,
    MEMORISED,
    NONE_FOUND,
    REPRODUCED,
    AuditSettings,
    Likeness,
    Rate,
    audit_auditor,
    make_audit,
)
from fpjax.checks import RequestError
from fpjax.errors import POOR
from fpjax.sde import SubVP, time_grid

GRID = time_grid(SubVP(), 20)
LEVELS = [4, 8, 12, 16]


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


def spread(hits, heads):
    """Hits of each head: as given, or as even as can be."""
    if isinstance(hits, int):
        return [hits // heads + (i < hits % heads) for i in range(heads)] if heads else []
    return [*hits, *[0] * (heads - len(hits))]


def results(
    *,
    hits=0,
    num_samples=50_000,
    num_train=1000,
    controls=19,
    member_curve=(8, 2, 0, 0),
    control_curve=(8, 2, 0, 0),
    sensitivity=256,
    false=0,
    real_false=0,
    memoriser=None,
    memoriser_chains=246,
    control_hits=(),
    oracle_control_hits=(),
):
    """Contents of the stages' files: one member, curves over `LEVELS` with 8 ranking chains each."""
    targets = 1 + controls
    curves = [member_curve] + [control_curve] * controls
    rows = [(t, 0, level, 8, 8, n, n) for t in range(targets) for level, n in zip(LEVELS, curves[t], strict=True)]
    rows += [(0, 1, level, 16, 16, 2 * n, 2 * n) for level, n in zip(LEVELS, member_curve, strict=True)]
    names = ("target", "phase", "level", "num_chains", "num_fingerprint", "num_identity", "num_detected")
    search = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    # Of two other thresholds, the lower one detects every chain, the higher one none.
    search["num_detected_at"] = [[row[3], 0] for row in rows]
    oracle_hits = round(30_000 / num_train) if memoriser is None else memoriser
    groups = ["member", "clean original"] + ["held-out target"] * 4
    return {
        "data": {"num_train": num_train},
        "score": {"num_steps": 100},
        "classifiers": {
            "threshold": 0.5,
            "thresholds": [0.1, 0.9],
            "detector": {"description": "two nets", "marks": True, "advice": "train the detectors longer"},
            "errors": {
                "num_images": 400,
                "heads": targets,
                "false_by_head": [real_false] + [0] * controls,
                "false_images_at": [real_false + 5, 0],
                "missed_at": [0, 9],
                "roc": [
                    roc("fingerprint", "plain", 400, 400, missed=1, false=2),
                    roc("identity", "plain", 640, 400 * targets, missed=3, false=4),
                    roc("joint", "plain", 640, 400 * targets, missed=4, false=real_false),
                    roc("joint", POOR, 640, 400 * targets, missed=70),
                ],
            },
        },
        "count": {
            "num_samples": num_samples,
            "num_fingerprint": hits + 1,
            "num_identity": [hits + 2] + [0] * controls,
            "num_detected": [hits] + spread(control_hits or false, controls),
            "num_detected_at": [[hits + 9, 0]] + [[1, 0]] * controls,
            "control_hit_samples": sum(control_hits) or false,
            "control_hit_samples_at": [false + 3, 0],
            "control_alone": spread(control_hits or false, controls),
            "num_controls": controls,
            "sensitivity_chains": 256,
            "sensitivity_detected": [sensitivity] + [256] * controls,
            "sensitivity_detected_at": [[256, 0]] * targets,
            "roc": [roc("fingerprint", "residue", 256 * targets, 0), roc("joint", "residue", 256, 256 * controls)],
            "evaluations": 10,
            "executed": 11,
            "hits": [{"target": 0, "mse": 0.01, "mae": 0.08}],
            "near_misses": [{"target": 0, "mse": 0.2, "mae": 0.3, "score": 0.4}],
            "oracle": {
                "num_samples": 30_000,
                "reproduced": [round(30_000 / num_train)],
                "detected": [oracle_hits],
                "num_detected": [oracle_hits] + spread(oracle_control_hits, controls),
                "control_hit_samples": sum(oracle_control_hits),
                "control_alone": spread(oracle_control_hits, controls),
                "num_chains": 256,
                "chains_control_hits": 0,
                "chains_reproduced": [246],
                "chains_detected": [memoriser_chains],
            },
        },
        "search": {
            **search,
            "num_members": 1,
            "evaluations": 100,
            "executed": 101,
            "strategy": "exhaustive",
            "exhaustive_evaluations": 100,
        },
        "likelihood": {
            "group": groups,
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
        },
        # Levels 0 to 16 by 4 in two cells.
        "bound": {
            "target": [0] * 5,
            "level": [0, 4, 8, 12, 16],
            "log_mean": [700.0, 710.0, 500.0, 90.0, 80.0],
            "effective": [1.0, 1.5, 2.0, 3.0, 4.0],
            "num_chains": [1, 4, 4, 4, 4],
            "not_converged": [0, 0, 0, 1, 0],
            "edges": [[0, 8, 16]],
            "trace_error": 0.5,
            "t_min": 1e-5,
        },
    }


def audit(**changes):
    return make_audit(
        results(**changes), GRID, SubVP(), AuditSettings(), name="x", sampler="ancestral", seed=0, provenance={}
    )


def test_reproduced():
    result = audit(hits=52)
    assert (result.verdict.verdict, result.verdict.kinds) == (LEAK, [REPRODUCED])
    test = result.tests[0]
    assert test.expected == 50
    assert test.fewer_p == pytest.approx(binom.cdf(52, 50_000, 1e-3))
    assert test.leak_p == pytest.approx(1e-3, rel=1e-6)  # its smallest value
    assert test.rate.lower < 52 / 50_000 < test.rate.upper
    assert result.hits == [Likeness(0, 0.01, 0.08, None)]
    assert result.near_misses == [Likeness(0, 0.2, 0.3, 0.4)]


def test_memorised_without_a_single_reproduction():
    result = audit(member_curve=(8, 8, 8, 1))
    assert (result.verdict.verdict, result.verdict.kinds) == (LEAK, [MEMORISED])
    assert result.tests[0].rank_p == pytest.approx(0.05)


def test_t_prime_alpha_is_of_fresh_chains_where_there_are_some():
    """Chains that chose where to look again move t' and t50, but not the test over levels."""
    contents = results(member_curve=(8, 8, 8, 8))
    more = {"target": [0] * 4, "phase": [1, 1, 2, 2], "level": [5, 18, 6, 10], "num_chains": [16] * 4}
    hits = {"num_detected": [16, 2, 16, 0], "num_identity": [16] * 4, "num_detected_at": [[16, 0]] * 4}
    search = contents["search"]
    for name, values in (more | hits).items():
        search[name] = [*search[name], *values]
    options = {"name": "x", "sampler": "ancestral", "seed": 0, "provenance": {}}
    target = make_audit(contents, GRID, SubVP(), AuditSettings(), **options).targets[0]
    assert target.t_prime == pytest.approx(GRID.t[18])
    assert target.t_prime_alpha == target.t_prime_alpha_upper == pytest.approx(GRID.t[6])


def test_the_rank_uses_only_chains_that_controls_have_too():
    """Curve chains of the member alone must not move its rank, only its t50 and t'."""
    contents = results()
    rows = [
        i
        for i, (t, p) in enumerate(zip(contents["search"]["target"], contents["search"]["phase"], strict=True))
        if t == 0 and p == 1
    ]
    for name in ("num_identity", "num_detected"):
        for i in rows:
            contents["search"][name][i] = 16
    result = make_audit(contents, GRID, SubVP(), AuditSettings(), name="x", sampler="a", seed=0, provenance={})
    member, control = result.targets[0], result.targets[1]
    assert member.t50_rank == control.t50_rank
    assert member.t50 > control.t50
    assert member.t_prime == pytest.approx(float(GRID.t[16]))  # of the curve's chains alone
    assert control.t_prime == pytest.approx(float(GRID.t[8]))
    assert result.tests[0].rank_p == 1.0


def test_none_found_needs_power_and_sensitivity():
    assert audit().verdict.verdict == NONE_FOUND
    weak = audit(num_samples=2000)
    assert weak.verdict.verdict == INCONCLUSIVE
    assert "num_samples" in weak.verdict.to_settle[0]
    confused = audit(false=600)
    assert confused.verdict.verdict == INCONCLUSIVE
    assert "600 of 50000 plain samples" in confused.verdict.to_settle[0]
    blind = audit(sensitivity=230)
    assert blind.verdict.verdict == INCONCLUSIVE
    assert "sensitivity" in blind.verdict.reasons[0]


def test_too_few_controls_cannot_be_ranked_and_it_is_said():
    result = audit(controls=9, member_curve=(8, 8, 8, 1))
    assert result.verdict.verdict == NONE_FOUND
    assert "9 held-out targets the rank test cannot reject" in result.verdict.reasons[0]
    assert result.tests[0].rank_p == pytest.approx(0.1)


def test_false_positives_excuse_hits():
    """The same hits are no leak when never-trained heads fire as often; without controls real images decide."""
    assert audit(hits=30).verdict.verdict == LEAK
    assert audit(hits=30, false=30).verdict.verdict != LEAK
    alone = audit(controls=0, hits=52, real_false=0)
    assert alone.detector.joint_false_generated.trials == 0
    assert alone.tests[0].leak_p > 0.01  # 400 real images bound the rate at 0.017 only


def test_detector_rates():
    detector = audit(false=3, real_false=2).detector
    assert (detector.joint_false_generated.hits, detector.joint_false_generated.trials) == (3, 50_000)
    assert (detector.joint_false_real.hits, detector.joint_false_real.trials) == (2, 400)
    assert (detector.fingerprint_accuracy.hits, detector.fingerprint_accuracy.trials) == (797, 800)
    assert (detector.identity_accuracy.hits, detector.identity_accuracy.trials) == (640 + 400 - 3 - 4, 1040)
    assert [(heads.images, heads.worst, heads.worst_rate.hits) for heads in detector.heads] == [
        ("real", 0, 2),
        ("generated", 1, 1),
    ]
    by_name = {(roc.decision, roc.condition): roc for roc in detector.roc}
    # Of both scores at two values: P(higher) + P(equal) / 2.
    plain, found, false = by_name["identity", "plain"], 637 / 640, 4 / 8000
    assert plain.area == pytest.approx(found * (1 - false) + (found * false + (1 - found) * (1 - false)) / 2)
    assert plain.area_lower < plain.area < plain.area_upper
    assert (plain.found.hits, plain.false.hits, plain.false.trials) == (637, 4, 400)
    residue = by_name["fingerprint", "residue"]
    assert np.isnan(residue.area)
    assert (residue.found.hits, residue.false.trials) == (5120, 0)
    assert detector.sensitivity_oracle.hits == detector.sensitivity_oracle.trials == 246
    assert (detector.sensitivity_poor.hits, detector.sensitivity_poor.trials) == (570, 640)
    # Of the first two kinds: how poor the copies are is a choice.
    assert detector.sensitivity_lower == pytest.approx(0.05 ** (1 / 246), rel=1e-6)


def test_one_blind_head_among_many_members_is_noticed():
    contents = results(controls=19)
    contents["count"]["sensitivity_detected"] = [256, 0] + [256] * 18
    contents["count"]["oracle"] |= {"reproduced": [30, 30], "num_detected": [30, 30] + [0] * 18}
    contents["count"]["oracle"] |= {"chains_reproduced": [250, 250], "chains_detected": [250, 250]}
    contents["count"]["oracle"]["control_alone"] = contents["count"]["control_alone"] = [0] * 18
    contents["search"]["num_members"] = 2
    contents["bound"] = {"target": []}
    result = make_audit(contents, GRID, SubVP(), AuditSettings(), name="x", sampler="a", seed=0, provenance={})
    assert result.detector.sensitivity_low.estimate == pytest.approx(0.5)
    assert result.detector.sensitivity_lower == 0.0
    assert result.verdict.verdict == INCONCLUSIVE


def test_floor_is_the_larger_of_chance_and_false_positives():
    assert audit(num_train=100).floor == pytest.approx(0.01)
    assert audit(num_samples=2000).floor == pytest.approx(1 - 0.05 ** (1 / 2000))


def test_curve_pools_both_phases():
    member, control = audit().targets[:2]
    assert member.curve.num_chains == [24] * 4
    assert member.curve.num_detected == [24, 6, 0, 0]
    assert control.curve.num_chains == [8] * 4
    assert member.t_prime_upper >= member.t_prime >= member.t_prime_lower
    assert member.t50_lower <= member.t50 <= member.t50_upper
    np.testing.assert_allclose(member.curve.t, GRID.t[LEVELS], rtol=1e-6)


def test_likelihood_groups_leave_out_what_did_not_converge():
    result = audit()
    held_out = next(g for g in result.nll if g.name == "held-out target")
    assert held_out.bits_per_dim == [3.5, 4.5, 1.5]
    assert held_out.not_converged == 1
    assert held_out.mean == pytest.approx(9.5 / 3)
    # One of four is likelier than the member, and one that did not converge might be: (1 + 2) / (4 + 1).
    assert result.tests[0].nll_rank_p == pytest.approx(0.6)
    assert result.tests[0].bits_per_dim == 2.0


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


@pytest.mark.parametrize("field", ["leak_level", "rank_level", "confidence", "min_sensitivity"])
def test_bad_settings_are_refused(field):
    with pytest.raises(RequestError, match=f"audit.{field}"):
        AuditSettings(**{field: 1.0})


# The audit of the auditor


def self_tests(result):
    return {test.what: test for test in result.self_tests}


def test_the_audit_of_the_auditor_passes_on_good_detectors():
    result = audit()
    assert all(test.possible and test.passed for test in result.self_tests)
    assert {what.split(",")[0] for what in self_tests(result)} == {"memoriser", "controls"}
    assert len(result.self_tests) == 4


@pytest.mark.parametrize("hits", [0, 52])
@pytest.mark.parametrize(
    ("broken", "what", "text"),
    [
        ({"memoriser": 0}, "memoriser, plain samples", "0 of the 30 in 30000 plain samples"),
        ({"memoriser_chains": 3}, "memoriser, chains", "3 of the 246 in 256 chains"),
        ({"control_hits": (0, 400)}, "controls, audited model", "400 of 50000 images"),
        ({"oracle_control_hits": (0, 0, 40)}, "controls, perfect memoriser", "40 of 30000 images"),
    ],
)
def test_no_verdict_stands_where_the_auditor_fails_its_own_audit(hits, broken, what, text):
    result = audit(hits=hits, **broken)
    test = self_tests(result)[what]
    assert test.possible
    assert not test.passed
    assert text in test.text
    assert (result.verdict.verdict, result.verdict.kinds) == (INCONCLUSIVE, [])
    assert f"audit of the auditor failed ({what})" in " ".join(result.verdict.reasons)
    assert "train the detectors longer" in result.verdict.to_settle[0]
    if hits and not broken.get("control_hits"):
        assert "would have been a leak: 52 of 50000" in result.verdict.reasons[-1]
    failed = {name for name, other in self_tests(result).items() if not other.passed}
    # One wild head excuses as many hits of the member as it has.
    assert failed - {what} == ({"memoriser, plain samples"} if "oracle_control_hits" in broken else set())


def test_the_same_false_hits_on_every_head_are_no_failure_but_one_heads_are():
    """20 hits on each of 19 heads excuse each other; 380 on one do not."""
    assert self_tests(audit(false=380))["controls, audited model"].passed
    assert not self_tests(audit(control_hits=(380,)))["controls, audited model"].passed


def test_a_detector_that_says_yes_to_everything_does_not_find_the_memoriser():
    contents = results()
    count, oracle, n = contents["count"], contents["count"]["oracle"], 50_000
    count |= {"num_detected": [n] * 20, "control_hit_samples": n, "control_alone": [0] * 19}
    oracle |= {"num_detected": [30_000] * 20, "control_hit_samples": 30_000, "control_alone": [0] * 19}
    oracle |= {"chains_control_hits": 256}
    result = make_audit(contents, GRID, SubVP(), AuditSettings(), name="x", sampler="a", seed=0, provenance={})
    assert result.tests[0].leak_p > 0.01
    assert result.verdict.verdict == INCONCLUSIVE
    assert [t.what for t in result.self_tests if not t.passed] == ["memoriser, plain samples", "memoriser, chains"]


def test_what_the_sample_size_cannot_tell_is_stated_and_no_failure():
    result = audit(num_train=50_000, num_samples=5_000_000)
    few = self_tests(result)["memoriser, plain samples"]
    assert not few.possible
    assert "too few for the leak test" in few.text
    assert self_tests(result)["memoriser, chains"].possible
    alone = audit(num_train=50_000, num_samples=5_000_000, memoriser=0)
    assert alone.verdict.verdict == result.verdict.verdict == NONE_FOUND
    lonely = self_tests(audit(controls=1))["controls, audited model"]
    assert not lonely.possible
    assert "two held-out targets" in lonely.text


def test_missing_a_tenth_of_the_reproductions_is_no_failure():
    """As "none found" allows of the sensitivity; the check must not fail by chance with such detectors."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        contents = results(memoriser_chains=int(rng.binomial(246, 0.9)))
        tests = audit_auditor(contents["count"], Rate(0, 400, 0.0, 0.0, 0.01), AuditSettings())
        assert {test.what: test for test in tests}["memoriser, chains"].passed


def test_the_answer_at_every_threshold_is_that_of_its_counts():
    result = audit(hits=52)
    low, used, high = result.thresholds
    assert [at.threshold for at in (low, used, high)] == [0.1, 0.5, 0.9]
    member, test = result.targets[0], result.tests[0]
    assert (used.num_detected, used.leak_p, used.t_prime, used.t50) == (52, test.leak_p, member.t_prime, member.t50)
    assert (used.t50_lower, used.t50_upper) == (member.t50_lower, member.t50_upper)
    assert (low.num_detected, low.false_hits, low.false_images) == (61, 3, 50_000)
    assert low.t_prime == low.t50 == pytest.approx(float(GRID.t[16]))
    assert (high.num_detected, high.t_prime, high.sensitivity.hits) == (0, 0.0, 0)
    real = audit(controls=0, real_false=2).thresholds
    assert [(at.false_hits, at.false_images) for at in real] == [(7, 400), (2, 400), (0, 400)]
