"""The audit of the auditor, from results made by hand."""

import functools

import pytest

from fpjax import stats
from fpjax.audit.detection import audit_auditor
from fpjax.audit.verdict import BELOW, INCONCLUSIVE, LEAK, AuditSettings
from fpjax.core.records import from_content
from fpjax.studies.tally import CountResult

from .audited import audit, make, results


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The interval of t50 is not what is tested here, and most of the time."""
    monkeypatch.setattr(stats, "t50_interval", functools.partial(stats.t50_interval, resamples=100))


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
        count = from_content(CountResult, results(memoriser=seen)["count"])
        assert audit_auditor(count, count.oracle, AuditSettings(), members=1)[0].passed


def test_several_members_of_the_memoriser_are_tested_together():
    four = {"count_controls": 16, "controls": 16}
    assert self_tests(audit(hits=(0,) * 4, **four))["memoriser"].passed
    contents = results(hits=(0,) * 4, **four)
    contents["count"]["oracle"]["num_detected"][:4] = [30, 0, 0, 0]
    assert not self_tests(make(contents))["memoriser"].passed
