"""Audits written by hand for the tests of the report: a leak, two members, and an undecided one with gaps everywhere."""

import dataclasses
import html
import html.parser

import numpy as np

from fpjax import audit, report
from fpjax.audit import verdict
from fpjax.audit.canaries import CanaryResult
from fpjax.studies import tally

NAN, INF = float("nan"), float("inf")
TIMES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br"}


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


def with_figures(name):
    """A case with its figures."""
    result, images, training = CASES[name]
    return result, report.draw_figures(result, images, training), training


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
