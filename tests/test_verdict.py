"""The verdict on evidence made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom

from fpjax import stats
from fpjax.audit.verdict import (
    BELOW,
    BETA,
    INCONCLUSIVE,
    LEAK,
    MEMORISED,
    REPRODUCED,
    AuditSettings,
    Evidence,
    SelfTest,
    audit_members,
    count_decided,
    decide,
)
from fpjax.core.errors import RequestError
from fpjax.studies.count import CountSettings

SETTINGS = AuditSettings()


def make_evidence(members=(0,), controls=(0,) * 99, *, n=2048, num_train=24, t50=None, t50_controls=24, **changes):
    """Of one look, with every t50 alike unless given."""
    counts = np.asarray([[*members, *controls]])
    parts = {
        "num_train": num_train,
        "num_members": len(members),
        "looks": [n],
        "planned_looks": [n],
        "counts": counts,
        "any_control": sum(controls),
        "t50": [0.1] * (len(members) + t50_controls) if t50 is None else t50,
        "sensitivity": 0.9,
        "sure_sensitivity": 0.85,
    }
    return Evidence(**parts | changes)


def judge(evidence, settings=SETTINGS, **options):
    model, tests = audit_members(evidence, settings)
    return model, tests, decide(model, tests, settings, sensitivity=evidence.sensitivity, **options)


# Verdicts and their reasons


def test_counts_above_all_controls_are_a_leak():
    model, (test,), answer = judge(make_evidence((5,), (0,) * 97 + (1, 4)))
    assert (answer.verdict, answer.kinds, answer.to_settle) == (LEAK, [REPRODUCED], [])
    assert answer.reasons == [
        "5 of 2,048 plain samples are the member; the 99 held-out targets, which were never trained on, have 0 to 4 "
        "(rank test: p = 0.01, level 0.01)"
    ]
    assert model.reproduced
    assert not model.memorised
    assert (test.count_p, test.above_all) == (pytest.approx(0.01), True)
    tied = judge(make_evidence((4,), (0,) * 97 + (1, 4)))
    assert tied[2].verdict == BELOW  # its limit is far below 1/24
    assert tied[1][0].count_p == pytest.approx(0.02)


def test_t50_above_all_controls_is_a_leak():
    model, (test,), answer = judge(make_evidence(t50=[0.4] + [0.3] * 24))
    assert (answer.verdict, answer.kinds) == (LEAK, [MEMORISED])
    assert model.t50_p == test.t50_p == pytest.approx(0.04)
    assert answer.reasons == [
        "the member comes back from more noise than the 24 held-out targets: t50 ranks above theirs (p = 0.04, "
        "level 0.04)"
    ]
    assert judge(make_evidence(t50=[0.4] + [0.3] * 23, t50_controls=23))[2].verdict == BELOW  # 1/24 is above 0.04
    assert judge(make_evidence(t50=[0.3] * 25))[2].verdict == BELOW


def test_both_kinds_of_leak_are_named():
    answer = judge(make_evidence((9,), t50=[0.4] + [0.3] * 24))[2]
    assert answer.kinds == [REPRODUCED, MEMORISED]
    assert len(answer.reasons) == 2


def test_fourteen_hits_without_a_false_one_are_never_certified():
    """N = 24: a rate below 1/N that the former leak test, with p = 0.012, let pass for none."""
    for controls, expected in ((99, LEAK), (19, INCONCLUSIVE), (1, INCONCLUSIVE)):
        model, (test,), answer = judge(make_evidence((14,), (0,) * controls))
        assert test.leak_p == pytest.approx(0.0123, rel=0.01)
        assert model.bound < model.tolerance
        assert answer.verdict == expected
    assert "counted more often than every held-out target (14 of 2,048)" in answer.reasons[0]
    assert "p = 0.5" in answer.reasons[0]
    assert "K = 1 among 2 cannot give a p below 0.5" in answer.to_settle[0]


@pytest.mark.parametrize("controls", [0, 1, 5, 19, 99])
@pytest.mark.parametrize("members", [(1,), (0, 1), (0, 0, 0, 3)])
def test_a_member_above_all_controls_is_never_below_tolerance(members, controls):
    settings = AuditSettings(tolerance=0.5)
    answer = judge(make_evidence(members, (0,) * controls), settings)[2]
    assert answer.verdict != BELOW
    if controls:
        as_control = judge(make_evidence(members, (0,) * (controls - 1) + (max(members),)), settings)[2]
        assert as_control.verdict == BELOW


def test_below_tolerance_says_its_bound():
    model, (test,), answer = judge(make_evidence((3,), (0,) * 98 + (3,)))
    assert answer.verdict == BELOW
    limit = float(stats.clopper_pearson(3, 2048).upper) / 0.9
    assert (model.bound, test.rate.upper) == (pytest.approx(limit), pytest.approx(limit))
    assert answer.reasons[0] == (
        "at most 3 of 2,048 plain samples are the member, no more than of some held-out target; a rate of up to 0.0047 (95% limit "
        "over a sensitivity of 0.90) is left, below the tolerance of 0.042"
    )
    assert answer.reasons[1] == "t50 is not shown to rank above the held-out targets'"
    few = judge(make_evidence(t50_controls=19))[2]
    assert few.reasons[1].endswith("(with 19 held-out targets it cannot be)")


def test_the_tolerance_is_1_over_n_unless_given():
    evidence = make_evidence((3,), (0,) * 98 + (3,))
    assert judge(evidence)[0].tolerance == 1 / 24
    limit = judge(evidence)[0].bound
    for tolerance, expected in ((limit * 1.001, BELOW), (limit * 0.999, INCONCLUSIVE)):
        model, _, answer = judge(evidence, AuditSettings(tolerance=tolerance))
        assert (model.tolerance, answer.verdict) == (tolerance, expected)
    assert answer.reasons == [
        f"a rate of up to 0.0047 (95% limit over a sensitivity of 0.90) is not excluded; the tolerance is "
        f"{limit * 0.999:.2g}"
    ]


def test_the_advised_number_of_samples_settles_it():
    evidence = make_evidence((1,), (0,) * 98 + (1,), n=512, num_train=300)
    answer = judge(evidence)[2]
    assert answer.verdict == INCONCLUSIVE
    assert answer.to_settle == ["raise count.num_samples from 512 to about 16,384 in a new run"]
    assert judge(make_evidence((32,), (0,) * 98 + (32,), n=16_384, num_train=300))[2].verdict == BELOW
    assert judge(make_evidence((16,), (0,) * 98 + (16,), n=8192, num_train=300))[2].verdict == INCONCLUSIVE
    never = judge(make_evidence((20,), (0,) * 98 + (20,), num_train=300))[2]
    assert "a rate of 0.0098, which no number of samples brings below it" in never.to_settle[0]


def test_poor_detectors_bound_nothing():
    for sensitivity, expected in ((0.05, BELOW), (0.04, INCONCLUSIVE), (0.0, INCONCLUSIVE)):
        changes = {"sensitivity": sensitivity, "sure_sensitivity": 0.0}
        model, (test,), answer = judge(make_evidence(**changes))
        assert answer.verdict == expected
        assert test.fewer_p == pytest.approx(1.0)
    assert model.bound == 1.0


def test_without_controls_nothing_is_shown_but_the_bound():
    model, (test,), answer = judge(make_evidence((0,), (), t50=[0.4]))
    assert answer.verdict == BELOW
    assert "with 0 held-out targets it cannot be" in answer.reasons[1]
    assert (model.looks[0].p, model.t50_p, test.leak_p, test.gamma_poisson_p) == (1, 1, 1, 1)
    assert (model.smallest_count_p, model.smallest_t50_p, model.detectable_rate) == (1, 1, math.inf)
    answer = judge(make_evidence((2048,), (), t50=[0.4]))[2]
    assert answer.verdict == INCONCLUSIVE
    assert "K = 1 among 1 cannot give a p below 1" in answer.to_settle[0]


def test_two_members_reject_together_where_neither_does_alone():
    model, tests, answer = judge(make_evidence((3, 2), (0,) * 19, t50_controls=19))
    assert (answer.verdict, answer.kinds) == (LEAK, [REPRODUCED])
    assert "3 and 2 of 2,048 plain samples are the 2 members" in answer.reasons[0]
    assert "permutation test of the members' ranks" in answer.reasons[0]
    assert model.looks[0].p == model.smallest_count_p == pytest.approx(1 / math.comb(21, 2), rel=0.35)
    assert [test.count_p for test in tests] == pytest.approx([0.05, 0.05])
    assert [test.count_holm for test in tests] == pytest.approx([0.1, 0.1])
    assert (model.prevalence.hits, model.prevalence.trials) == (2, 2)
    alone = judge(make_evidence((3, 0), (0,) * 19, t50_controls=19))
    assert alone[2].verdict == INCONCLUSIVE
    assert alone[0].prevalence.hits == 1
    t50 = judge(make_evidence((0, 0), (0,) * 19, t50=[0.4, 0.5] + [0.3] * 19))
    assert t50[2].kinds == [MEMORISED]
    assert "the 2 members come back" in t50[2].reasons[0]
    assert [test.t50_holm for test in t50[1]] == pytest.approx([0.1, 0.1])


def test_the_worst_member_sets_the_bound():
    model, tests, _ = judge(make_evidence((1, 3), (0,) * 18 + (3,)))
    assert [test.row for test in tests] == [0, 1]
    assert model.bound == tests[1].rate.upper > tests[0].rate.upper


def test_what_stands_beside_the_verdict_decides_nothing():
    """Of 40 hits against one head with 41, both model-based p-values speak for a leak and the rank does not."""
    _, (test,), answer = judge(make_evidence((40,), (0,) * 98 + (41,), any_control=0))
    assert test.leak_p < 0.01
    assert test.count_p == pytest.approx(0.02)
    assert answer.verdict == BELOW
    _, (test,), answer = judge(make_evidence((4,), (0,) * 19))
    assert test.gamma_poisson_p < 0.002
    assert answer.verdict == INCONCLUSIVE
    # The paper's test, with sensitivity in it.
    assert test.fewer_p == pytest.approx(binom.cdf(4, 2048, 0.85 / 24) + BETA)
    assert test.expected == pytest.approx(2048 / 24)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_detectable_rate_is_seen_with_a_power_of_80_percent(k):
    model, _, _ = judge(make_evidence((0,) * k, (0,) * 98 + (2,)))
    critical = stats.critical_count([0] * 98 + [2], num_members=k, level=0.01, seed=0)
    assert binom.sf(critical - 1, 2048, model.detectable_rate * 0.9) ** k == pytest.approx(0.8)
    assert judge(make_evidence((0,), (0,) * 19))[0].detectable_rate == math.inf


# The audit of the auditor


@pytest.mark.parametrize("evidence", [make_evidence((9,)), make_evidence(), make_evidence((1,), (0,) * 19)])
def test_a_perfect_memoriser_that_is_not_found_leaves_everything_open(evidence):
    failed = SelfTest("memoriser", True, False, True, "0 of 30 are seen")
    as_it_is = judge(evidence)[2]
    answer = judge(evidence, self_tests=[failed], advice="train longer")[2]
    assert (answer.verdict, answer.kinds) == (INCONCLUSIVE, [])
    assert answer.reasons[0] == "the audit of the auditor failed (memoriser): 0 of 30 are seen"
    assert answer.to_settle == ["train longer until the audit of the auditor passes"]
    lost = [f"without that it would have been a leak: {reason}" for reason in as_it_is.reasons]
    assert answer.reasons[1:] == (lost if as_it_is.verdict == LEAK else [])
    # Neither what cannot be told nor what only informs is a failure.
    for change in ({"possible": False}, {"vetoes": False}, {"passed": True}):
        assert judge(evidence, self_tests=[dataclasses.replace(failed, **change)])[2] == as_it_is


# Looks


def with_looks(members, controls, *, planned, **changes):
    """Counts of each look that was taken; `members` and `controls` hold a row for each."""
    counts = np.asarray([[*m, *c] for m, c in zip(members, controls, strict=True)])
    return make_evidence(
        members[-1], controls[-1], n=planned[len(counts) - 1], counts=counts, looks=planned[: len(counts)],
        planned_looks=planned, **changes,
    )  # fmt: skip


def test_looks_share_the_level_and_the_first_that_rejects_counts():
    planned = [500, 1000, 2000, 4000]
    none = [[0] * 99] * 2
    model, _, answer = judge(with_looks([[3], [5]], none, planned=planned[:2]))
    assert [look.level for look in model.looks] == [0.005] * 2
    assert answer.verdict == INCONCLUSIVE  # 1/100 is above the share
    many = [[0] * 399] * 2
    model, (test,), answer = judge(with_looks([[0], [5]], many, planned=planned))
    assert [(look.num_samples, look.members, look.level) for look in model.looks] == [
        (500, [0], 0.0025),
        (1000, [5], 0.0025),
    ]
    assert model.planned_looks == planned
    assert (answer.verdict, answer.kinds) == (LEAK, [REPRODUCED])
    assert "5 of 1,000 plain samples" in answer.reasons[0]
    assert "level 0.0025" in answer.reasons[0]
    assert (test.rate.hits, test.rate.trials) == (5, 1000)
    # One that rejected is not undone by later ones.
    lost = [[0] * 399, [0] * 398 + [9]]
    _, _, answer = judge(with_looks([[3], [5]], lost, planned=planned))
    assert (answer.verdict, len(answer.reasons)) == (LEAK, 1)
    assert "3 of 500 plain samples" in answer.reasons[0]


def test_counting_stops_at_the_look_that_rejects():
    counting = CountSettings(num_samples=2000, looks=(500, 1000, 1500, 2000))
    for controls, decided in ((398, False), (399, True)):
        counts = np.asarray([1] + [0] * controls)
        assert count_decided(1, counting, SETTINGS, counts) == decided
        evidence = with_looks([[0], [1]], [[0] * controls] * 2, planned=list(counting.ends))
        assert judge(evidence)[0].reproduced == decided


# Bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"count_level": 0.02}, r"count_level \+ audit.t50_level: got 0.02 \+ 0.04, expected audit.level = 0.05"),
        ({"level": 0.1}, "expected audit.level = 0.1"),
        ({"t50_level": 0.0}, "audit.t50_level"),
        ({"count_level": -0.01, "t50_level": 0.06}, "audit.count_level"),
        ({"level": 1.0}, "audit.level"),
        ({"confidence": 1.0}, "audit.confidence"),
        ({"confidence": 95}, "audit.confidence"),
        ({"tolerance": 1.0}, "audit.tolerance"),
        ({"tolerance": -0.001}, "audit.tolerance"),
        ({"tolerance": math.nan}, "audit.tolerance"),
        ({"canary_score": "best"}, "audit.canary_score"),
        ({"canary_delta": 0.0}, "audit.canary_delta"),
    ],
)
def test_bad_settings_are_refused(fields, says):
    with pytest.raises(RequestError, match=says):
        AuditSettings(**fields)


def test_levels_that_add_up_are_taken():
    assert AuditSettings(level=0.1, count_level=0.07, t50_level=0.03).tolerance == 0
    assert AuditSettings(level=0.03, count_level=0.02, t50_level=0.01, tolerance=0.999).level == 0.03


@pytest.mark.parametrize("looks", [(500, 400, 2048), (500, 500, 2048), (500, 600), (0, 2048), (-5, 2048), (4096,)])
def test_looks_that_do_not_increase_to_all_samples_are_refused(looks):
    with pytest.raises(RequestError, match="count.looks"):
        CountSettings(num_samples=2048, looks=looks)


def test_without_looks_all_samples_are_one():
    assert CountSettings(num_samples=2048).ends == (2048,)
    assert CountSettings(num_samples=2048, looks=(500, 2048)).ends == (500, 2048)
