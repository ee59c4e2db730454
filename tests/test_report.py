"""`report` on audits written by hand: a leak of one member, two members, and an undecided one with gaps everywhere."""

import base64
import dataclasses
import html
import html.parser
import io
import math
import re

import matplotlib.image
import numpy as np
import pytest

from fpjax import audit, report
from fpjax.audit import verdict
from fpjax.audit.canaries import CanaryResult
from fpjax.core import store
from fpjax.report import figures as drawing
from fpjax.report import html as html_module
from fpjax.report import rows as rows_module
from fpjax.report.images import is_picture
from fpjax.studies import tally

NAN, INF = float("nan"), float("inf")
TIMES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br"}

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


def curve(detected, chains=16):
    """Counts that do not rise, with made-up intervals."""
    rates = [hits / chains for hits in detected]
    return audit.Curve(
        level=[20 * (i + 1) for i in range(len(TIMES))],
        t=TIMES,
        num_chains=[chains] * len(TIMES),
        num_detected=list(detected),
        num_identity=list(detected),
        lower=[max(0.0, rate - 0.2) for rate in rates],
        upper=[min(1.0, rate + 0.2) for rate in rates],
        isotonic=rates,
    )


MEMBER = audit.TargetResult(
    row=0,
    member=True,
    curve=curve([64, 64, 60, 44, 9, 1], 64),
    t_prime=0.6,
    t_prime_lower=0.5,
    t_prime_upper=0.6,
    t_prime_identity=0.6,
    t_prime_alpha=0.5,
    t_prime_alpha_lower=0.4,
    t_prime_alpha_upper=0.5,
    t50=0.4342857,
    t50_lower=0.4,
    t50_upper=0.5,
    t50_rank=0.45,
    log_snr_t50=0.6543,
    log_snr_t_prime=-1.987,
    num_identity=12,
    num_detected=9,
)
NOTHING = dataclasses.replace(
    MEMBER,
    row=1,
    curve=curve([0] * 6),
    t_prime=0.0,
    t_prime_lower=0.0,
    t_prime_upper=0.0,
    t_prime_identity=0.0,
    t_prime_alpha=0.0,
    t_prime_alpha_lower=0.0,
    t_prime_alpha_upper=0.2,
    t50=0.05,
    t50_lower=0.0,
    t50_upper=0.1,
    t50_rank=0.05,
    log_snr_t50=NAN,
    log_snr_t_prime=INF,
    num_identity=0,
    num_detected=0,
)
CENSORED = dataclasses.replace(
    MEMBER, curve=curve([16] * 6), t50=0.6, t50_lower=0.55, t50_upper=0.6, t50_rank=0.6, num_identity=1
)


def control(row, crossing):
    return dataclasses.replace(MEMBER, row=row, member=False, curve=curve([16, 12, 4, 1, 0, 0]), t50_rank=crossing)


def rate(hits, trials, lower, upper):
    return verdict.Rate(hits, trials, hits / trials if trials else NAN, lower, upper)


LEAK_TESTS = verdict.MemberTests(
    row=0,
    expected=4.1666,
    rate=rate(9, 2000, 0.00206, 0.00919),
    count_p=0.01,
    count_holm=0.01,
    t50_p=0.1,
    t50_holm=0.1,
    above_all=True,
    fewer_p=0.98763,
    leak_p=0.0010004,
    gamma_poisson_p=4.6e-7,
)
EMPTY_TESTS = verdict.MemberTests(
    row=0,
    expected=0.0125,
    rate=rate(0, 10, 0.0, 0.31),
    count_p=1.0,
    count_holm=1.0,
    t50_p=1.0,
    t50_holm=1.0,
    above_all=False,
    fewer_p=0.9876,
    leak_p=1.0,
    gamma_poisson_p=1.0,
)
CONTROLS = [0] * 90 + [1] * 8 + [3]
LEAK_MODEL = verdict.ModelTests(
    looks=[verdict.LookTest(2000, [9], CONTROLS, 0.01, 0.01)],
    planned_looks=[2000],
    t50_p=0.1,
    t50_level=0.04,
    num_controls=9,
    num_count_controls=99,
    prevalence=rate(1, 1, 0.025, 1.0),
    tolerance=1 / 480,
    bound=0.00919,
    detectable_rate=0.0031234,
    smallest_count_p=0.01,
    smallest_t50_p=0.1,
)
EMPTY_MODEL = verdict.ModelTests(
    looks=[verdict.LookTest(10, [0, 0], [], 1.0, 0.01)],
    planned_looks=[10],
    t50_p=1.0,
    t50_level=0.04,
    num_controls=0,
    num_count_controls=0,
    prevalence=rate(0, 2, 0.0, 0.842),
    tolerance=0.001,
    bound=0.31,
    detectable_rate=INF,
    smallest_count_p=1.0,
    smallest_t50_p=1.0,
)
RATES = [i / 32 for i in range(32, -1, -1)]


def roc(decision, condition, area, *, false=(2, 400, 6.1e-4, 0.018)):
    """A curve on which both rates fall evenly."""
    return audit.RocCurve(
        decision, condition, area, area - 0.02, min(1.0, area + 0.01),
        rate(630, 640, 0.9714, 0.9925), rate(*false), [r**0.1 for r in RATES], [r**4 for r in RATES],
    )  # fmt: skip


DETECTOR = audit.DetectorErrors(
    description="two networks",
    marks=True,
    advice="train them longer",
    fingerprint_accuracy=rate(1997, 2000, 0.99562, 0.99969),
    identity_accuracy=rate(1190, 1200, 0.98473, 0.996),
    joint_false_real=rate(0, 1000, 0.0, 0.00368),
    joint_false_generated=rate(1, 2000, 1.27e-5, 0.00278),
    gate=audit.Gate({"fingerprint": 1, "identity": 2}, {"fingerprint": 12, "identity": 40}, 1, 0, 100, 100),
    sensitivity_poor=audit.Sensitivity(100, 16, 0.9712, 0.9521, 0.94, 0.75, 42),
    sensitivity_returns=audit.Sensitivity(9, 64, 0.9653, 0.93328, 0.9, 0.9375, 3),
    oracle_detected=7,
    oracle_reproduced=8,
    oracle_samples=4000,
    sensitivity_lower=0.93328,
    false_rate_upper=0.00237,
    threshold=0.5,
    roc=[
        roc("fingerprint", "plain", 0.998),
        roc("joint", "plain", 0.99),
        roc("joint", "noise", 0.95, false=(1, 3, 0.008, 0.906)),
        dataclasses.replace(roc("joint", "residue", NAN, false=(0, 0, 0.0, 1.0)), false_rates=[]),
    ],
    heads=[
        audit.Heads("real", 1000, [0] * 10, 0, rate(0, 1000, 0.0, 0.00368), 1.0),
        audit.Heads("generated", 2000, [0, 0, 3, 0], 3, rate(3, 2000, 3.09e-4, 0.00438), 0.0123),
    ],
)


def at(threshold, detected, most=3, row=0):
    controls = [0] * 98 + [most]
    return audit.AtThreshold(
        row, threshold, detected, controls, 0.01, rate(158, 160, 0.9556, 0.99848), 0.6, 0.4343, 0.4, 0.5
    )


LEAK = audit.AuditResult(
    name="phantom",
    verdict=verdict.Verdict(
        "leak",
        ["reproduced"],
        [
            "9 of 2,000 plain samples are the member; the 99 held-out targets, which were never trained on, have 0 to 3 "
            "(rank test: p = 0.01, level 0.01)",
        ],
        [],
    ),
    targets=[MEMBER, *(control(1 + i, 0.15 + 0.0125 * i) for i in range(9))],
    model=LEAK_MODEL,
    tests=[LEAK_TESTS],
    detector=DETECTOR,
    nll=[
        audit.NllGroup("member", [3.4149], 3.4149, NAN, 0),
        audit.NllGroup("train", [3.4, 3.45, 3.52, 3.61], 3.495, 0.0459, 0),
        audit.NllGroup("held-out", [3.47, 3.58, 3.66, 3.75], 3.615, 0.0594, 1),
    ],
    num_train=480,
    num_samples=2000,
    num_fingerprint=15,
    floor=0.00237,
    sampler="ancestral",
    sde="SubVP",
    num_levels=200,
    t_min_likelihood=1e-5,
    evaluations={"count": {"useful": 400_000, "executed": 404_000}, "search": {"useful": 60_123, "executed": 61_440}},
    strategy="coarse_to_fine",
    strategy_misses="lone returns",
    exhaustive_evaluations=1_202_460,
    settings=verdict.AuditSettings(),
    provenance={"versions": {"jax": "0.10.2"}, "commit": "0123abc", "seeds": [1, 2]},
    self_tests=[
        verdict.SelfTest("memoriser", True, True, True, "it is found"),
        verdict.SelfTest("held-out targets", True, False, False, "one fires often"),
    ],
    thresholds=[at(0.1, 30), at(0.5, 9), at(0.9, 5)],
    hits=[tally.Likeness(0, 0.0123, 0.0456, None)],
    near_misses=[tally.Likeness(0, 0.234, 0.345, 0.21), tally.Likeness(0, 567.8, 12.3, 3e-5)],
    nll_members=[audit.MemberNll(0, 3.4149, 0.05882)],
)
UNDECIDED = dataclasses.replace(
    LEAK,
    name="<b>scans & co</b>",
    verdict=verdict.Verdict("inconclusive", [], ["few samples <of> it"], ["draw more"]),
    targets=[CENSORED, NOTHING],
    model=EMPTY_MODEL,
    tests=[EMPTY_TESTS, dataclasses.replace(EMPTY_TESTS, row=1)],
    settings=verdict.AuditSettings(tolerance=0.001),
    detector=dataclasses.replace(
        DETECTOR,
        joint_false_generated=rate(0, 0, 0.0, 1.0),
        gate=audit.Gate({}, {}, 0, 0, 2, 2),
        sensitivity_poor=audit.Sensitivity(0, 4, NAN, 0.0, 0.0, NAN, 0),
        sensitivity_lower=NAN,
        marks=False,
        fingerprint_accuracy=None,
        roc=[],
        heads=[],
    ),
    self_tests=[verdict.SelfTest("memoriser", True, False, True, "it is <not> found")],
    thresholds=[],
    nll=[audit.NllGroup("held-out", [], NAN, NAN, 3)],
    num_samples=10,
    num_fingerprint=2,
    floor=NAN,
    sampler="euler <i>",
    evaluations={"count": {"useful": 0, "executed": 0}, "search": {"useful": 1, "executed": 1}},
    strategy="exhaustive",
    exhaustive_evaluations=1,
    hits=[],
    near_misses=[],
    nll_members=[audit.MemberNll(0, None, None), audit.MemberNll(1, NAN, NAN)],
    provenance={"note": "a <script>alert(1)</script>"},
)
SECOND = dataclasses.replace(
    MEMBER, row=1, t50=0.3312, t50_lower=0.29, t50_upper=0.37, t50_rank=0.33, num_identity=2, num_detected=0
)
CANARIES = CanaryResult("t50", 11, 9, 0.812, 0.6, 0.95, 4, 11, 0.364, 0.109, 0.692, 1.279, 1.81, 0.95, 1e-5)
# Of three declared looks the second rejects; no likelihood.
TWO = dataclasses.replace(
    LEAK,
    targets=[MEMBER, SECOND, *(control(2 + i, 0.15 + 0.0125 * i) for i in range(9))],
    model=dataclasses.replace(
        LEAK_MODEL,
        looks=[
            verdict.LookTest(1000, [4, 0], CONTROLS, 0.08, 0.0033333),
            verdict.LookTest(2000, [9, 0], CONTROLS, 0.0031, 0.0033333),
        ],
        planned_looks=[1000, 2000, 4000],
        prevalence=rate(1, 2, 0.013, 0.987),
        smallest_count_p=1e-4,
        smallest_t50_p=0.018,
    ),
    tests=[
        dataclasses.replace(LEAK_TESTS, count_holm=0.02, t50_holm=0.2),
        dataclasses.replace(
            LEAK_TESTS,
            row=1,
            rate=rate(0, 2000, 0.0, 0.00199),
            count_p=0.92,
            count_holm=0.92,
            above_all=False,
            leak_p=1.0,
        ),
    ],
    nll=[],
    t_min_likelihood=NAN,
    nll_members=[],
    thresholds=[at(threshold, hits, row=row) for row in (0, 1) for threshold, hits in ((0.1, 30), (0.5, 9), (0.9, 5))],
    canaries=CANARIES,
)
BELOW = dataclasses.replace(
    LEAK,
    verdict=verdict.Verdict("below tolerance", [], ["a bound is left"], []),
    model=dataclasses.replace(
        LEAK_MODEL,
        looks=[verdict.LookTest(2000, [0], CONTROLS, 1.0, 0.01)],
        prevalence=rate(0, 1, 0.0, 0.975),
        bound=0.00198,
    ),
    tests=[dataclasses.replace(LEAK_TESTS, rate=rate(0, 2000, 0.0, 0.00198), count_p=1.0, above_all=False)],
)


def pictures(num_targets, num_hits, channels=1):
    """Random images, so that none equals another; where there are hits, near misses and returns of target 0 too."""

    def draw(count, seed):
        return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, channels), np.uint8)

    images = report.ReportImages(
        draw(num_targets, 0),
        draw(num_targets, 1),
        draw(5, 2),
        draw(9, 3),
        draw(num_hits, 4),
        np.zeros(num_hits, int),
        errors={
            "fingerprint_false": (draw(3, 5), None),
            "control": (draw(1, 6), np.array([1])),
            "missed": (draw(0, 7), np.zeros(0, int)),
        }
        if num_hits
        else {},
        examples={"identity": (draw(4, 8), np.array([True, False, True, False]))} if num_hits else {},
    )
    if not num_hits:
        return images
    t = np.linspace(0.08, 1, 6)
    returns = report.Returns(np.zeros(6, int), t, np.arange(6) < 3, draw(6, 6), draw(6, 7))
    return images._replace(near_misses=(draw(2, 8), np.zeros(2, int)), returns=returns)


TRAINED = report.Training(
    step=[10, 20, 30],
    loss=[1.0, 0.3, 0.2],
    grad_norm=[2.0, None, 0.5],
    loss_by_t=[0.9, None, *[0.25] * 8],
    images_per_s=1234.5,
    tflop_per_s=0.0123,
    samples=np.random.default_rng(5).integers(0, 256, (3, 16, 16, 1), np.uint8),
    samples_step=20,
    classifiers={"identity": ([1, 2, 3], [0.7, 0.3, 0.1], [0.6, 0.4, 0.5])},
)
UNTRAINED = report.Training()
DIAGNOSED = audit.NllDiagnostics({"converged": 4, "max steps": 1, "non-finite": 0}, -1.42, 3.05, 0.0213, 182.0, 260)
CELLS = [
    audit.BoundCell(0.0, 0.25, 0.1, 1701.3, 1698.2, 2.4, 8),
    audit.BoundCell(0.25, 0.6, 0.3, 812.0, 811.1, 1.0, 8),
]
DENSITIES = dataclasses.replace(
    LEAK,
    nll=[dataclasses.replace(group, diagnostics=DIAGNOSED) for group in LEAK.nll],
    snapshots=[audit.NllSnapshot(step, LEAK.nll, [4.0 - step / 1000], [0.2]) for step in (500, 1000)],
    bound=[
        audit.Bound(
            row=0,
            t_prime=0.6,
            log_sum=1698.2,
            t_prime_alpha=0.0,
            log_sum_alpha=-INF,
            cells=CELLS,
            t=[0.0, 0.1, 0.25, 0.3, 0.6],
            log_mean=[1690.0, 1701.3, 811.0, 812.0, NAN],
            effective=[1.0, 2.4, 1.3, 1.0, NAN],
            not_converged=3,
            num_densities=33,
            trace_error=4.0,
            t_min=1e-5,
        )
    ],
)
CASES = {
    "leak": (LEAK, pictures(10, 9), TRAINED),
    "undecided": (UNDECIDED, pictures(2, 0, 3), UNTRAINED),
    "densities": (DENSITIES, pictures(10, 9), TRAINED),
    "two": (TWO, pictures(11, 9), TRAINED),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A result with its figures."""
    result, images, training = CASES[request.param]
    return result, report.draw_figures(result, images, training, show_members=True), training


class Page(html.parser.HTMLParser):
    """What the tests ask of a page; notes tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.faults, self.images, self.ids, self.links, self.attributes = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += attrs
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.images += [attrs] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def page_of(case, *, show_members=True):
    return report.to_html(*case, show_members=show_members)


# Terminal


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
    assert set(report.draw_figures(many, pictures(17, 9), UNTRAINED, show_members=False)) == {
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


# Figures


def test_figures_are_pngs_and_equal_twice(case):
    result, figures, _ = case
    again = report.draw_figures(*next(c for c in CASES.values() if c[0] is result), show_members=True)
    assert again == figures
    for name, content in figures.items():
        assert content.startswith(PNG), name
        pixels = matplotlib.image.imread(io.BytesIO(content))
        assert pixels.ndim == 3, name
        assert pixels.std() > 0.01, name


def test_figures_show_what_there_is():
    def drawn(name, *, show_members):
        return set(report.draw_figures(*CASES[name], show_members=show_members))

    charts = {"search", "ranking", "counts", "likelihood", "training", "roc", "thresholds", "classifiers"}
    errors = {"error_fingerprint_false", "error_control", "examples_identity"}
    assert drawn("leak", show_members=True) == charts | errors | {
        "targets", "returns_0", "hits", "near_misses", "samples", "train", "on_the_way",
    }  # fmt: skip
    assert drawn("leak", show_members=False) == charts
    assert drawn("undecided", show_members=True) == {"search", "targets", "samples", "train"}
    assert drawn("densities", show_members=False) == charts | {"snapshots", "bound"}


def test_figures_follow_the_result():
    shifted = dataclasses.replace(
        LEAK,
        targets=[dataclasses.replace(MEMBER, t50=0.2, t50_rank=0.5), *LEAK.targets[1:]],
        model=dataclasses.replace(LEAK_MODEL, looks=[verdict.LookTest(2000, [7], CONTROLS, 0.01, 0.01)]),
        nll_members=[audit.MemberNll(0, 3.6, 0.05882)],
    )
    before, after = (
        report.draw_figures(result, pictures(10, 9), TRAINED, show_members=False) for result in (LEAK, shifted)
    )
    assert [name for name in before if before[name] != after[name]] == ["search", "ranking", "counts", "likelihood"]


def test_a_hit_lies_beneath_its_target():
    images = pictures(3, 2)._replace(hit_target=np.array([2, 0]))
    content = report.draw_figures(LEAK, images, TRAINED, show_members=True)["hits"]
    pixels = np.round(255 * matplotlib.image.imread(io.BytesIO(content))[..., 0])
    tile, scale = 72, 4
    for i, row in enumerate([2, 0]):
        shown = [pixels[4 + tile * j : 68 + tile * j : scale, 4 + tile * i : 68 + tile * i : scale] for j in (0, 1)]
        np.testing.assert_array_equal(shown, [images.targets[row, ..., 0], images.hits[i, ..., 0]])


def test_what_a_member_comes_back_as_is_drawn_with_what_is_detected():
    images = pictures(10, 9)
    returns = images.returns
    assert returns is not None

    def drawn(**changes):
        return drawing._draw_all_returns(images._replace(returns=returns._replace(**changes)))

    def colour(content, hexadecimal):
        pixels = np.round(255 * matplotlib.image.imread(io.BytesIO(content))[..., :3])
        return (pixels == [int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum()

    few, more, none = (drawn(detected=np.arange(6) < n)["returns_0"] for n in (2, 4, 0))
    assert colour(none, "#0072b2") == 0
    assert 1.8 < colour(more, "#0072b2") / colour(few, "#0072b2") < 2.2
    for changes in ({"end": returns.end[::-1]}, {"start": returns.start[::-1]}, {"t": returns.t / 2}):
        assert drawn(**changes)["returns_0"] != few
    assert set(drawn(target=np.repeat([0, 2], 3))) == {"returns_0", "returns_2"}


# HTML


def test_html_is_well_formed_and_alone(case):
    text = page_of(case)
    page = Page(text)
    assert (page.faults, page.open) == ([], [])
    assert Page(text.replace("</section>", "", 1)).faults  # The parser does see a missing tag.
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} == set(page.ids) - {"verdict"}


def test_html_embeds_every_figure_with_an_alt_text(case):
    page, figures = Page(page_of(case)), case[1]
    assert all(len(image.get("alt", "")) > 20 for image in page.images)
    embedded = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.images]
    assert sorted(embedded) == sorted(figures.values())


def test_html_leaves_pictures_out(case):
    figures = case[1]
    secret = {name for name in figures if is_picture(name)}
    assert secret >= {"targets", "samples", "train"}
    shown, hidden = (page_of(case, show_members=show) for show in (True, False))
    assert secret
    for name in secret:
        encoded = base64.b64encode(figures[name]).decode()
        assert encoded in shown
        assert encoded not in hidden
    assert len(Page(hidden).images) == len(figures) - len(secret)
    assert "Pictures were left out" in hidden
    assert "Pictures were left out" not in shown


def test_html_lists_how_near_samples_are():
    text = report.to_html(LEAK, {}, UNTRAINED, show_members=False)
    for row in (
        '<th scope="row">detected 1</th><td>0</td><td>0.012</td><td>0.046</td><td>above 0.5</td>',
        '<th scope="row">near miss 2</th><td>0</td><td>568</td><td>12</td><td>3.0e-5</td>',
    ):
        assert row in text, row
    assert "Distance in pixels" not in report.to_html(UNDECIDED, {}, UNTRAINED, show_members=False)


def test_html_shows_the_training():
    result, images, training = CASES["leak"]
    figures = report.draw_figures(result, images, training, show_members=True)
    text = report.to_html(result, figures, training, show_members=True)
    assert "in the median 1,200 images/s, 0.012 TFLOP/s on the machine" in text
    assert '<th scope="row">0.0 to 0.1</th><td>0.9</td>' in text
    assert f'<th scope="row">0.1 to 0.2</th><td>{report.MISSING}</td>' in text
    assert "after 20 training steps" in text
    # Another machine's rates change words alone; what the loss was changes the curve.
    slower = report.draw_figures(result, images, training._replace(images_per_s=1.0), show_members=True)
    assert slower == figures
    higher = report.draw_figures(result, images, training._replace(grad_norm=[2.0, 1.0, 0.5]), show_members=True)
    assert [name for name in figures if higher[name] != figures[name]] == ["training"]
    assert "No loss was logged" in report.to_html(result, {}, UNTRAINED, show_members=True)


def test_html_shows_what_the_detectors_err():
    result, images, training = CASES["leak"]
    figures = report.draw_figures(result, images, training, show_members=True)
    text = report.to_html(result, figures, training, show_members=True)
    row = '<th scope="row">joint, plain</th><td>0.990 (0.970 to 1.000)</td><td>0.984 (95 % interval'
    assert row in text
    assert "<td>1 of 3, too few to state a rate</td>" in text
    assert '<th scope="row">joint, residue</th><td>n/a</td>' in text
    assert '<th scope="row">0.5 (used)</th><td>9 of 2,000</td><td>3 of 2,000</td><td>0.010</td>' in text
    assert "3 thresholds were looked at. Only the one in use is tested" in text
    assert "not beneath it" not in text
    for kind in ("fingerprint_false", "control"):
        assert report.ERRORS[kind] in text
    assert report.ERRORS["missed"] not in text
    # Points of a curve and of a threshold move their figures, and no other.
    joint = dataclasses.replace(DETECTOR.roc[1], found_rates=RATES)
    for changed, name in (
        ({"detector": dataclasses.replace(DETECTOR, roc=[DETECTOR.roc[0], joint, *DETECTOR.roc[2:]])}, "roc"),
        ({"thresholds": [at(0.1, 31), *LEAK.thresholds[1:]]}, "thresholds"),
        ({"thresholds": [at(0.1, 30, most=7), *LEAK.thresholds[1:]]}, "thresholds"),
    ):
        other = report.draw_figures(dataclasses.replace(result, **changed), images, training, show_members=True)
        assert [key for key in figures if other[key] != figures[key]] == [name]
    silent = report.draw_figures(result, images._replace(errors={}, examples={}), training, show_members=True)
    assert "<h3>Errors of the detectors</h3>\n<p>None.</p>" in report.to_html(
        result, silent, training, show_members=True
    )


def test_html_escapes_values():
    text = report.to_html(UNDECIDED, {}, UNTRAINED, show_members=False)
    assert "&lt;b&gt;scans &amp; co&lt;/b&gt;" in text
    assert "few samples &lt;of&gt; it" in text
    assert "euler &lt;i&gt;" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>" not in text
    assert "euler <i>" not in text


def test_html_says_the_same_as_the_text(case):
    """Every row of the text is in the HTML, values letter by letter; a line for several members has each one's."""
    page = html.unescape(page_of(case))
    text = re.sub(r"^Members .*?in their order\.$", "", report.to_text(case[0]), flags=re.DOTALL | re.MULTILINE)
    values = re.findall(r"^  (?! |- ).{36}  (\S.*(?:\n {40}\S.*)*)", text, re.MULTILINE)
    assert len(values) > 25
    for value in values:
        for part in " ".join(value.split()).split(" | "):
            cell = part.replace("+-", "±").replace(">= ", "≥ ")
            # Of the members' own cells a shared one of the text is the beginning.
            assert re.search(rf"<td>{re.escape(cell)}(; the member's| of [\d,]+)?[^<]*</td>", page), cell


@pytest.mark.parametrize("name", CASES)
def test_labels_can_be_reworded_and_nothing_is_lost(name, monkeypatch):
    result, images, training = CASES[name]
    figures, row, tables = report.draw_figures(result, images, training, show_members=True), report.Row, []
    before = report.to_html(result, figures, training, show_members=True)
    text = report.to_text(result)

    def cells(page):
        return re.findall("<td>.*?</td>", page)

    shown = html_module._shown
    monkeypatch.setattr(html_module, "_shown", lambda rows: tables.append([row.id for row in rows]) or shown(rows))
    monkeypatch.setattr(rows_module, "Row", lambda id, label, values: row(id, f"reworded {id}", values))
    after = report.to_html(result, figures, training, show_members=True)
    glossary = len(html_module._glossary(result))
    assert cells(after) == cells(before)
    assert (
        before.count("<tr>")
        == after.count("<tr>")
        == after.count('<th scope="row">reworded') + glossary + len(re.findall("<thead>", after))
    )
    assert len(re.findall("<img", after)) == len(re.findall("<img", before)) == len(figures)
    assert "counts of the held-out targets" in before
    assert "counts of the held-out targets" not in after
    for table in tables:
        assert len(set(table)) == len(table), table
    # The text wraps elsewhere; of several members it has a head and a note besides.
    rows = len(re.findall("^  (?! |- )", text, re.MULTILINE))
    reworded = len(re.findall("^  reworded", report.to_text(result), re.MULTILINE))
    assert reworded == rows if len(result.tests) == 1 else rows - 3 <= reworded < rows


@pytest.mark.parametrize(
    ("result", "word", "kinds", "answer"),
    [
        (
            LEAK,
            "leak",
            ["reproduced"],
            "Yes. 9 of 2,000 images drawn from it (ancestral) were recognised as the marked image,",
        ),
        (LEAK, "leak", ["memorised"], "reproduces it was not shown: 9 of 2,000"),
        (LEAK, "leak", ["reproduced", "memorised"], "reproduces it is at most 0.0092"),
        (
            TWO,
            "leak",
            ["reproduced"],
            "Yes. 9 and 0 of 2,000 images drawn from it (ancestral) were recognised as the marked",
        ),
        (TWO, "leak", ["reproduced"], "1 of the 2 was recognised more often than all of those"),
        (TWO, "leak", ["memorised"], "they come back from more noise than equal images never trained on"),
        (BELOW, "below tolerance", [], "at most 0.0020, about one sample in 510, by 95 % limits: that is below the"),
        (
            BELOW,
            "below tolerance",
            [],
            "below the tolerance of 0.0021, about one sample in 480. This is a bound, and no",
        ),
        (LEAK, "inconclusive", [], "The audit cannot say. 9 of"),
        (LEAK, "inconclusive", [], "Not excluded is a rate of up to 0.0092, about one sample in 110"),
        (TWO, "inconclusive", [], "A rate of 0.0031 or more of every one of them would have been noticed"),
    ],
)
def test_html_answers_in_words(result, word, kinds, answer):
    answers = ("Yes. ", "was not shown: ", "No leak was found", "The audit cannot say")
    result = dataclasses.replace(result, verdict=verdict.Verdict(word, kinds, ["because"], []))
    text = report.to_html(result, {}, UNTRAINED, show_members=False)
    assert answer in text
    assert [a in text for a in answers].count(True) == 1
    assert "is no proof of anonymity" in text
    assert "99 further images got one too" in text
    assert "{" not in text.partition("</style>")[2]  # No field was left unformatted.
    assert text.count(word.upper()) == 1


# JSON


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
