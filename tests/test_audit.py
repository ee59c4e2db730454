"""From the stages' results, made by hand, to the verdict: every number and where it comes from."""

import functools
import math

import numpy as np
import pytest
from scipy.stats import binom

from fpjax import stats
from fpjax.audit.summary import ASSUMPTION
from fpjax.audit.verdict import BELOW, BETA, INCONCLUSIVE, LEAK, MEMORISED, REPRODUCED, AuditSettings
from fpjax.studies.tally import Likeness

from .audited import COPIES, RETURNS, TAIL, audit, make, results


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The interval of t50 is not what is tested here, and most of the time."""
    monkeypatch.setattr(stats, "t50_interval", functools.partial(stats.t50_interval, resamples=100))


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
    contents["classifiers"]["trained"] = None
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
