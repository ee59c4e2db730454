"""The report in the terminal, and as JSON."""

import dataclasses
import math
import re

import pytest

from fpjax import report
from fpjax.audit import verdict
from fpjax.core import store

from .reported import (
    BELOW,
    CANARIES,
    CASES,
    CONTROLS,
    DENSITIES,
    LEAK,
    LEAK_TESTS,
    MEMBER,
    SECOND,
    TIMES,
    TRAINED,
    TWO,
    UNDECIDED,
    UNTRAINED,
    control,
    rate,
)

LEAK_TEXT = """\
VERDICT: LEAK (reproduced)
phantom: 1 member target among N = 480 training images, 99 held-out targets (9 of them with chains),
n = 2,000 plain samples
Why
  - 9 of 2,000 plain samples are the member; the 99 held-out targets, which were never trained on,
    have 0 to 3 (rank test: p = 0.01, level 0.01)

Tests of the model
  level of the tests                    0.05 in all: counts 0.01, t50 0.04
  counts                                n = 2,000: the member 9, 99 held-out targets 0 to 3; p =
                                        0.010, at or below the level 0.01
  t50                                   p = 0.10, above the level 0.04; with K = 1 and H = 9 no p at
                                        or below the level is possible
  members above every held-out target   1 of 1
  bound of the rate of reproduction     at most 0.0092, about one sample in 110 (upper end of the 95
                                        % interval, misses of the detectors allowed for)
  tolerance                             0.0021 (1/N, as often as a perfect memoriser); the bound is
                                        not below it
  rate seen with a power of 80 %        0.0031 or more

Search (sampler: ancestral, 200 levels, SubVP)
  t' (largest t with a return)          >= 0.6 (95 % of repeats 0.5 to >= 0.6)
  t' by the identity classifier alone   >= 0.6
  t'_alpha (returns above the floor)    0.5 (95 % of repeats 0.4 to 0.5; floor 0.0024)
  t50 (half the chains return)          0.43 (95 % interval 0.40 to 0.50)
  log-SNR at t50; at t'                 0.7; -2.0
  t50 of the held-out targets           median 0.20, range 0.15 to 0.25 (H = 9); the member's by the
                                        same chains 0.45
  rank of t50                           p = 0.10, rank among 9 held-out targets

Counting (sampler: ancestral, 200 levels, SubVP)
  samples with a fingerprint, c_p+      15 of 2,000
  samples with the identity, c_id+      12 of 2,000
  samples detected as the target, |q|   9 of 2,000
  rate of reproduction                  0.0045 (95 % interval 0.0021 to 0.0092)
  expected of a memoriser, E|q| = n/N   4.2 (rate 1/N = 0.0021)
  counts of the held-out targets        median 0, range 0 to 3 (H = 99)
  rank of |q|                           p = 0.010, rank among 99 held-out targets

Model-based, decides nothing (s: the detectors' sensitivity)
  paper's test (H1: fewer than s n/N)   p = 0.99
  leak test (H1: above any false hits)  p = 0.0010
  gamma-Poisson (H1: above held-out)    p = 4.6e-7

Detectors
  detector                              two networks
  threshold of its scores               0.5
  gate: training until it opened        fingerprint 1 attempt, 12 epochs; identity 2 attempts, 40
                                        epochs
  gate: targets dropped                 1, not seen by the detectors and replaced before membership
                                        was drawn
  gate: targets found                   100 of 100 targets found as planted
  accuracy, fingerprint classifier      0.9985 (95 % interval 0.9956 to 0.9997; 1,997 of 2,000)
  accuracy, identity classifier         0.992 (95 % interval 0.985 to 0.996; 1,190 of 1,200)
  joint false hits, real images         0 (95 % interval 0 to 0.0037; 0 of 1,000)
  joint false hits, generated images    5.0e-4 (95 % interval 1.3e-5 to 0.0028; 1 of 2,000)
  false-hit rate used, at most          0.0024
  sensitivity, other tones and blur     mean 0.971, at least 0.952 (95 % limit, the target as its
                                        unit); worst target 42: 0.750; 100 targets, 16 copies of
                                        each
  sensitivity, returns from low noise   mean 0.97, at least 0.93 (95 % limit, the target as its
                                        unit); worst target 3: 0.94; 9 targets, 64 copies of each
  sensitivity used, at least            0.93 (the smaller limit of poor copies and of returns)
  audited memoriser, members            7 of its 4,000 samples taken for a member, 8 are
  worst head, real images               no false hit of any of 10 heads on 1,000 images
  worst head, generated images          target 3, 0.0015 (95 % interval 3.1e-4 to 0.0044; 3 of
                                        2,000); all heads alike: p = 0.012

Audit of the auditor
  memoriser                             passed: it is found
  held-out targets                      told: one fires often

Likelihood, descriptive, no part of the verdict (probability-flow ODE, t_min = 1e-05)
  NLL of the member, bits/dim           3.41
  its rank among held-out targets       p = 0.059 (small: likelier than they are)

Likelihood of groups, bits/dim (probability-flow ODE, t_min = 1e-05)
  mean NLL, member                      3.41, 1 image
  mean NLL, train                       3.50 +- 0.05 (standard error), 4 images
  mean NLL, held-out                    3.62 +- 0.06 (standard error), 4 images, 1 more did not
                                        converge

Cost
  strategy of the search                coarse_to_fine for 0.050 of what the exhaustive search would
                                        take
  what it cannot see                    lone returns
  network evaluations, count            404,000, 99.0 % of them useful
  network evaluations, search           61,440, 97.9 % of them useful
"""
MEMBERS_TEXT = """\
Members (sampler: ancestral, 200 levels, SubVP)
  member  |q|  rate, 95 %        p; Holm       t50, 95 %          p; Holm     t'     t'_alpha
  0       9    0.0021 to 0.0092  0.010; 0.020  0.43 [0.40, 0.50]  0.10; 0.20  >=0.6  0.5
  1       0    0 to 0.0020       0.92; 0.92    0.33 [0.29, 0.37]  0.10; 0.10  >=0.6  0.5
  p: rank among 99 held-out targets by |q|, among 9 by t50; Holm over 2 members. |q| of n = 2,000.
  Beneath, numbers between bars are the members' in their order.
  samples with a fingerprint, c_p+      15 of 2,000
  samples with the identity, c_id+      12 | 2
  expected of a memoriser, E|q| = n/N   4.2 (rate 1/N = 0.0021)
  counts of the held-out targets        median 0, range 0 to 3 (H = 99)
  t50 of the held-out targets           median 0.20, range 0.15 to 0.25 (H = 9)

"""


def test_text_of_a_leak():
    assert report.to_text(LEAK) == LEAK_TEXT


def test_text_has_a_line_for_each_of_several_members():
    text = report.to_text(TWO)
    start = text.index("Members (")
    assert text[start : text.index("Model-based")] == MEMBERS_TEXT
    for count, line in ((1, r"^  0  "), (1, r"^  1  "), (0, "^(Search|Counting)")):
        assert len(re.findall(line, text, re.MULTILINE)) == count, line
    flat = " ".join(text.split())
    for expected in (
        "samples with the identity, c_id+ 12 | 2",
        "leak test (H1: above any false hits) p = 0.0010 | p = 1.0",
        "members above every held-out target 1 of 2 (95 % interval of the share 0.0 to 1.0)",
        "(upper end of the 95 % interval, misses of the detectors allowed for; largest of any member)",
        "t50 p = 0.10, above the level 0.04 members",
    ):
        assert expected in flat, expected
    assert "ikelihood" not in text
    page = report.to_html(TWO, {}, UNTRAINED, show_members=False)
    assert "<td>p = 0.10, rank among 9 held-out targets; 0.20 by Holm over 2 members</td>" in page
    assert "No likelihoods were computed." in page
    assert "<td>not computed</td>" in page


def test_many_members_have_a_line_each_in_text_and_page():
    k = 8
    many = dataclasses.replace(
        TWO,
        targets=[*(dataclasses.replace(SECOND, row=i) for i in range(k)), *(control(k + i, 0.2) for i in range(9))],
        model=dataclasses.replace(TWO.model, looks=[verdict.LookTest(2000, [9, *[0] * 7], CONTROLS, 0.01, 0.01)]),
        tests=[dataclasses.replace(LEAK_TESTS, row=i, leak_p=i / k) for i in range(k)],
        thresholds=[],
    )
    text, page = report.to_text(many), report.to_html(many, {}, UNTRAINED, show_members=False)
    assert "the members 0 to 9, 99 held-out" in text
    assert "p = 0.62 | ..." in " ".join(text.split())
    assert page.count('<tr><th scope="row">7</th>') == 4
    assert "Member 7" not in page
    assert set(report.draw_figures(many, None, UNTRAINED)) == {
        "search", "ranking", "counts", "roc",
    }  # fmt: skip


def test_every_look_is_shown():
    text = " ".join(report.to_text(TWO).split())
    for expected in (
        "counts, look 1 of 3 n = 1,000: the members 4 and 0, 99 held-out targets 0 to 3; p = 0.080, above the level 0.00333",
        "counts, look 2 of 3 n = 2,000: the members 9 and 0, 99 held-out targets 0 to 3; p = 0.0031, at or below the level",
        "counts, look 3 of 3 n = 4,000: not needed, an earlier look rejects",
    ):
        assert expected in text, expected
    page = report.to_html(TWO, {}, UNTRAINED, show_members=False)
    assert "<td>0.01, shared by 3 looks: 0.0033 each</td>" in page
    assert "<td>n = 1,000, 2,000 and 4,000</td>" in page


@pytest.mark.parametrize(
    ("result", "shown"),
    [(LEAK, "at most 0.0092, about one sample in 110"), (BELOW, "at most 0.0020, about one sample in 510")],
)
def test_the_bound_is_shown_whatever_the_verdict(result, shown):
    for word, kinds in (("leak", ["memorised"]), ("below tolerance", []), ("inconclusive", [])):
        judged = dataclasses.replace(result, verdict=verdict.Verdict(word, kinds, ["because"], []))
        assert f"bound of the rate of reproduction {shown} (" in " ".join(report.to_text(judged).split())
        page = report.to_html(judged, {}, UNTRAINED, show_members=False)
        answer = page[page.index("<strong>Found:") : page.index("<strong>Why:")]
        assert f"{shown.removeprefix('at most ')}, by 95 % limits" in answer
        assert page.count(f"<td>{shown} (upper end") == 1


def test_canaries_are_shown_with_what_they_can_show():
    text = " ".join(report.to_text(TWO).split())
    for expected in (
        "Canaries canaries, m 20: 11 trained on, 9 left out, by fair coins",
        "score that was declared t50,",
        "AUROC of the score 0.81 (95 % interval 0.60 to 0.95)",
        "TPR at an FPR of 1 % 4 of 11, too few to state a rate",
        "epsilon from this one run epsilon >= 1.2 at confidence 95 % (delta = 1.0e-5)",
        "at most 1.8 could have been shown with 20 canaries",
    ):
        assert expected in text, expected
    many = dataclasses.replace(CANARIES, tpr_hits=40, tpr_trials=110, tpr=0.3636, tpr_lower=0.274, tpr_upper=0.461)
    without = dataclasses.replace(TWO, canaries=dataclasses.replace(many, epsilon=None, epsilon_most=None))
    text, page = " ".join(report.to_text(without).split()), report.to_html(without, {}, UNTRAINED, show_members=False)
    assert "TPR at an FPR of 1 % 0.36 (95 % interval 0.27 to 0.46; 40 of 110)" in text
    assert text.count("n/a (the extra fpjax[privacy] is not installed)") == 2
    assert page.count("<td>n/a (the extra fpjax[privacy] is not installed)</td>") == 2
    assert '<section id="canaries">' in page
    assert "anaries" not in report.to_text(LEAK)
    assert 'id="canaries"' not in report.to_html(LEAK, {}, UNTRAINED, show_members=False)


def test_a_self_test_that_informs_is_told_without_a_grade():
    for possible, passed in ((True, True), (True, False), (False, False)):
        tests = [verdict.SelfTest("held-out targets", possible, passed, False, "one fires often")]
        result = dataclasses.replace(LEAK, self_tests=tests)
        assert "held-out targets                      told: one fires often\n" in report.to_text(result)
        page = report.to_html(result, {}, UNTRAINED, show_members=False)
        assert '<th scope="row">held-out targets</th><td>told: one fires often</td>' in page
    failed = dataclasses.replace(UNDECIDED, self_tests=[dataclasses.replace(UNDECIDED.self_tests[0], possible=False)])
    assert "cannot tell: it is <not> found" in report.to_text(failed)
    assert "failed where the answer is known" in report.to_html(UNDECIDED, {}, UNTRAINED, show_members=False)
    assert "failed where the answer is known" not in report.to_html(failed, {}, UNTRAINED, show_members=False)


def test_text_shows_gaps_and_censored_values():
    text = report.to_text(UNDECIDED)
    flat = " ".join(text.split())
    assert text.startswith("VERDICT: INCONCLUSIVE\n")
    for expected in (
        "0 0 0 to 0.31 n/a >=0.60 [0.55, >=0.60] n/a >=0.6 0.5",
        "1 0 0 to 0.31 n/a 0.05 [0, 0.10] n/a none none",
        "counts n = 10: the members 0 and 0, no held-out target; n/a (no held-out targets)",
        "t50 n/a (no held-out targets with chains)",
        "members above every held-out target n/a (no held-out targets)",
        "bound of the rate of reproduction at most 0.31, about one sample in 3 (upper end",
        "tolerance 0.0010 (stated); the bound is not below it",
        "sensitivity, other tones and blur n/a (not measured)",
        "gate: targets found 2 of 2 targets found as planted",
        "memoriser FAILED: it is <not> found",
        "accuracy of the detector 0.992",
        "counts of the held-out targets n/a (no held-out targets)",
        "t50 of the held-out targets n/a (no held-out targets)",
        "NLL of the member, bits/dim n/a",
        "its rank among held-out targets n/a",
        "80 % none (too few samples or targets)",
        "joint false hits, generated images n/a (no trials)",
        "held-out n/a, 0 images, 3 more did not converge",
        "network evaluations, count 0, n/a % of them useful",
        "(sampler: euler <i>, 200 levels, SubVP)",
        "What would settle it - draw more",
    ):
        assert expected in flat, expected
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_text_of_densities():
    text = " ".join(report.to_text(DENSITIES).split())
    for expected in (
        "of train prior -1.42 + divergence 3.05 nats/dim; one image +- 0.021 bits/dim; evaluations: median 182, most 260; "
        "lost: 1 max steps",
        "after 1,000 steps member 3.00 (p = 0.20); train 3.50, held-out 3.62",
        "log of the sum up to t' 1698.2 nats (up to t = 0.60)",
        "log of the sum up to t'_alpha none: there is no such t",
        "cells; largest term 2; t = 0 to 0.25, 1698.2 nats",
        "30, 3 more did not converge; median 1.1, least 1.0",
        "+- 4.0 nats; it raises the logs, by at most 8.0 in the mean",
        "t_min, which sets its size 1e-05",
        "it bounds none",
    ):
        assert expected in text, expected
    page = report.to_html(DENSITIES, {}, TRAINED, show_members=False)
    assert "It bounds no probability" in page
    assert "log<sub>2</sub> 128 = 7 bits" in page
    assert "<td>1701.3 at t = 0.100</td><td>1698.2</td><td>2.4 of 8</td>" in page
    assert "No bound was computed" in report.to_html(LEAK, {}, TRAINED, show_members=False)


@pytest.mark.parametrize("result", [case[0] for case in CASES.values()], ids=CASES)
def test_text_fits_the_terminal(result):
    long = dataclasses.replace(result, name="long " * 60)
    wide = [dataclasses.replace(test, rate=rate(12_345, 50_000, 1.23e-5, 4.56e-5)) for test in long.tests]
    text = report.to_text(dataclasses.replace(long, tests=wide))
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ((0.30, 0.42), "0.35 (95 % interval 0.30 to 0.42)"),
        ((0.3456, 0.3589), "0.351 (95 % interval 0.346 to 0.359)"),
        ((0.0, 1.0), "0.4 (95 % interval 0 to 1.0)"),
    ],
)
def test_digits_follow_the_interval(interval, shown):
    member = dataclasses.replace(
        MEMBER,
        t50=0.3512,
        t50_lower=interval[0],
        t50_upper=interval[1],
        curve=dataclasses.replace(MEMBER.curve, t=[*TIMES[:-1], 1.0 + 1e-9]),
    )
    assert shown in report.to_text(dataclasses.replace(LEAK, targets=[member, *LEAK.targets[1:]]))


def test_json_round_trip(tmp_path):
    store.write_json(tmp_path / "report.json", report.to_json(UNDECIDED))
    read = store.read_json(tmp_path / "report.json")
    assert len(read.pop("digest")) == 64

    def as_json(value):
        if isinstance(value, dict):
            return {key: as_json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [as_json(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert read == as_json({"schema_version": store.SCHEMA_VERSION} | dataclasses.asdict(UNDECIDED))
    assert read["floor"] is None
    assert read["targets"][0]["t50"] == 0.6
