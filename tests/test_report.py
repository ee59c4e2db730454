"""`report` on two audits written by hand: a leak with one member, and an undecided one with gaps everywhere."""

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

from fpjax import artifacts, audit, report

NAN, INF = float("nan"), float("inf")
TIMES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br"}

LEAK_TEXT = """\
VERDICT: LEAK (reproduced)
phantom: 1 member target among N = 480 training images, H = 9 held-out controls, n = 2,000 plain
samples
Why
  - 9 of 2000 plain samples are the target, more than false positives explain (leak test p = 0.001,
    level 0.01)

Search (sampler: ancestral, 200 levels, SubVP)
  t' (largest t with a return)          >= 0.6 (95 % of repeats 0.5 to >= 0.6)
  t' by the identity classifier alone   >= 0.6
  t'_alpha (returns above the floor)    0.5 (95 % of repeats 0.4 to 0.5; floor 0.0024)
  t50 (half the chains return)          0.43 (95 % interval 0.40 to 0.50)
  log-SNR at t50; at t'                 0.7; -2.0
  t50 of the held-out controls          median 0.20, range 0.15 to 0.25 (H = 9); the member's by the
                                        same chains 0.45
  rank test of t50                      p = 0.10, above the level 0.05; with H = 9 no p below 0.10
                                        is possible

Counting (sampler: ancestral, 200 levels, SubVP)
  samples with a fingerprint, c_p+      15 of 2,000
  samples with the identity, c_id+      12 of 2,000
  samples detected as the target, |q|   9 of 2,000
  rate of reproduction                  0.0045 (95 % interval 0.0021 to 0.0092)
  expected of a memoriser, E|q| = n/N   4.2 (rate 1/N = 0.0021)
  paper's test (H1: fewer than n/N)     p = 0.99
  leak test (H1: more than false hits)  p = 0.0010, at or below the level 0.01
  rate seen with a power of 80 %        0.0031 or more

Likelihood (probability-flow ODE, t_min = 1e-05)
  NLL of the member, bits/dim           3.41
  its rank among held-out targets       p = 0.059 (small: likelier than they are)

Likelihood of groups, bits/dim (probability-flow ODE, t_min = 1e-05)
  mean NLL, member                      3.41, 1 image
  mean NLL, train                       3.50 +- 0.05 (standard error), 4 images
  mean NLL, held-out                    3.62 +- 0.06 (standard error), 4 images, 1 more did not
                                        converge

Detectors
  detector                              two networks
  threshold of its scores               0.5
  accuracy, fingerprint classifier      0.9985 (95 % interval 0.9956 to 0.9997; 1,997 of 2,000)
  accuracy, identity classifier         0.992 (95 % interval 0.985 to 0.996; 1,190 of 1,200)
  joint false hits, real images         0 (95 % interval 0 to 0.0037; 0 of 1,000)
  joint false hits, generated images    5.0e-4 (95 % interval 1.3e-5 to 0.0028; 1 of 2,000)
  false-hit rate used, at most          0.0024
  sensitivity, chains from low noise    0.988 (95 % interval 0.956 to 0.998; 158 of 160)
  sensitivity, perfect memoriser        0.96 (95 % interval 0.93 to 0.98; 240 of 250)
  sensitivity, other tones and blur     0.90 (95 % interval 0.82 to 0.95; 90 of 100)
  sensitivity used, at least            0.93 (0.9 needed for "none found")
  audited memoriser, members            7 of its 4,000 samples taken for a member, 8 are
  audited memoriser, controls           0 (95 % interval 0 to 9.2e-4; 0 of 4,000)
  worst head, real images               no false hit of any of 10 heads on 1,000 images
  worst head, generated images          target 3, 0.0015 (95 % interval 3.1e-4 to 0.0044; 3 of
                                        2,000); all heads alike: p = 0.012

Audit of the auditor
  memoriser, chains                     passed: it is found
  controls, audited model               cannot tell: too few

Cost
  strategy of the search                coarse_to_fine for 0.050 of what the exhaustive search would
                                        take
  what it cannot see                    lone returns
  network evaluations, count            404,000, 99.0 % of them useful
  network evaluations, search           61,440, 97.9 % of them useful
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
    return audit.Rate(hits, trials, hits / trials if trials else NAN, lower, upper)


LEAK_TESTS = audit.MemberTests(
    row=0,
    expected=4.1666,
    rate=rate(9, 2000, 0.00206, 0.00919),
    fewer_p=0.98763,
    leak_p=0.0010004,
    rank_p=0.1,
    num_controls=9,
    detectable_rate=0.0031234,
    nll_rank_p=0.05882,
    bits_per_dim=3.4149,
)
EMPTY_TESTS = audit.MemberTests(
    row=0,
    expected=0.0125,
    rate=rate(0, 10, 0.0, 0.31),
    fewer_p=0.9876,
    leak_p=1.0,
    rank_p=1.0,
    num_controls=0,
    detectable_rate=INF,
    nll_rank_p=None,
    bits_per_dim=None,
)
RATES = [i / 32 for i in range(32, -1, -1)]


def roc(decision, condition, area, *, false=(2, 400, 6.1e-4, 0.018)):
    """A curve on which both rates fall evenly."""
    return audit.RocCurve(
        decision, condition, area, area - 0.02, min(1.0, area + 0.01),
        rate(630, 640, 0.9714, 0.9925), rate(*false), [r**0.1 for r in RATES], [r**4 for r in RATES],
    )  # fmt: skip


DETECTOR = audit.Detector(
    description="two networks",
    marks=True,
    advice="train them longer",
    fingerprint_accuracy=rate(1997, 2000, 0.99562, 0.99969),
    identity_accuracy=rate(1190, 1200, 0.98473, 0.996),
    joint_false_real=rate(0, 1000, 0.0, 0.00368),
    joint_false_generated=rate(1, 2000, 1.27e-5, 0.00278),
    sensitivity_low=rate(158, 160, 0.9556, 0.99848),
    sensitivity_oracle=rate(240, 250, 0.9276, 0.9807),
    sensitivity_poor=rate(90, 100, 0.8238, 0.9510),
    oracle_detected=7,
    oracle_reproduced=8,
    oracle_samples=4000,
    oracle_false=rate(0, 4000, 0.0, 0.00092),
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


def at(threshold, detected):
    return audit.AtThreshold(
        0, threshold, detected, 1, 2000, 0.001, rate(158, 160, 0.9556, 0.99848), 0.6, 0.4343, 0.4, 0.5
    )


LEAK = audit.AuditResult(
    name="phantom",
    verdict=audit.Verdict(
        "leak",
        ["reproduced"],
        [
            "9 of 2000 plain samples are the target, more than false positives explain (leak test p = 0.001, level 0.01)",
        ],
        [],
    ),
    targets=[MEMBER, *(control(1 + i, 0.15 + 0.0125 * i) for i in range(9))],
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
    settings=audit.AuditSettings(),
    provenance={"versions": {"jax": "0.10.2"}, "commit": "0123abc", "seeds": [1, 2]},
    self_tests=[
        audit.SelfTest("memoriser, chains", True, True, "it is found"),
        audit.SelfTest("controls, audited model", False, True, "too few"),
    ],
    thresholds=[at(0.1, 30), at(0.5, 9), at(0.9, 5)],
    hits=[audit.Likeness(0, 0.0123, 0.0456, None)],
    near_misses=[audit.Likeness(0, 0.234, 0.345, 0.21), audit.Likeness(0, 567.8, 12.3, 3e-5)],
)
UNDECIDED = dataclasses.replace(
    LEAK,
    name="<b>scans & co</b>",
    verdict=audit.Verdict("inconclusive", [], ["few samples <of> it"], ["draw more"]),
    targets=[CENSORED, NOTHING],
    tests=[EMPTY_TESTS, dataclasses.replace(EMPTY_TESTS, row=1, nll_rank_p=NAN)],
    detector=dataclasses.replace(
        DETECTOR,
        joint_false_generated=rate(0, 0, 0.0, 1.0),
        sensitivity_low=rate(2, 3, 0.09, 0.99),
        sensitivity_lower=NAN,
        marks=False,
        fingerprint_accuracy=None,
        roc=[],
        heads=[],
    ),
    self_tests=[audit.SelfTest("memoriser, chains", True, False, "it is <not> found")],
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
    provenance={"note": "a <script>alert(1)</script>"},
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


def test_text_shows_gaps_and_censored_values():
    text = report.to_text(UNDECIDED)
    flat = " ".join(text.split())
    assert text.startswith("VERDICT: INCONCLUSIVE\n")
    for expected in (
        "t' (largest t with a return) >= 0.6 (95 % of repeats 0.5 to >= 0.6)",
        "t50 (half the chains return) >= 0.60 (95 % interval 0.55 to >= 0.60)",
        "sensitivity, chains from low noise 2 of 3, too few to state a rate",
        "memoriser, chains FAILED: it is <not> found",
        "accuracy of the detector 0.992",
        "t' (largest t with a return) none (95 % of repeats none to none)",
        "0.05 (95 % interval 0 to 0.10)",
        "t'_alpha (returns above the floor) none (95 % of repeats none to 0.2; floor n/a)",
        "log-SNR at t50; at t' n/a; n/a",
        "rank test of t50 n/a (no held-out controls)",
        "NLL of the member, bits/dim n/a",
        "its rank among held-out targets n/a",
        "80 % none (too few samples or too poor detectors)",
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


@pytest.mark.parametrize("result", [LEAK, UNDECIDED, DENSITIES], ids=["leak", "undecided", "densities"])
def test_text_fits_the_terminal(result):
    text = report.to_text(dataclasses.replace(result, name="long " * 60))
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

    charts = {"search", "ranking", "likelihood", "training", "roc", "thresholds", "classifiers"}
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
        tests=[dataclasses.replace(LEAK_TESTS, bits_per_dim=3.6)],
    )
    before, after = (
        report.draw_figures(result, pictures(10, 9), TRAINED, show_members=False) for result in (LEAK, shifted)
    )
    assert [name for name in before if before[name] != after[name]] == ["search", "ranking", "likelihood"]


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
        return report._draw_all_returns(images._replace(returns=returns._replace(**changes)))

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
    secret = {name for name in figures if report._is_picture(name)}
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
    assert '<th scope="row">0.5 (used)</th><td>9 of 2,000</td><td>1 of 2,000</td><td>0.0010</td>' in text
    assert "not beneath it" not in text
    for kind in ("fingerprint_false", "control"):
        assert report.ERRORS[kind] in text
    assert report.ERRORS["missed"] not in text
    # Points of a curve and of a threshold move their figures, and no other.
    joint = dataclasses.replace(DETECTOR.roc[1], found_rates=RATES)
    for changed, name in (
        ({"detector": dataclasses.replace(DETECTOR, roc=[DETECTOR.roc[0], joint, *DETECTOR.roc[2:]])}, "roc"),
        ({"thresholds": [at(0.1, 31), *LEAK.thresholds[1:]]}, "thresholds"),
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
    """Every row of the text is in the HTML, values letter by letter."""
    page = html.unescape(page_of(case))
    values = re.findall(r"^  (?! |- ).{36}  (\S.*(?:\n {40}\S.*)*)", report.to_text(case[0]), re.MULTILINE)
    assert len(values) > 25
    for value in values:
        cell = " ".join(value.split()).replace("+-", "±").replace(">= ", "≥ ")
        assert f"<td>{cell}</td>" in page, cell


@pytest.mark.parametrize(
    ("verdict", "kinds", "answer"),
    [
        ("leak", ["reproduced"], "Yes. 9 of 2,000 images"),
        ("leak", ["memorised"], "was not shown: 9 of 2,000"),
        ("none found", [], "No reproduction was found: 9 of 2,000"),
        ("inconclusive", [], "The audit cannot say. 9 of"),
    ],
)
def test_html_answers_in_words(verdict, kinds, answer):
    answers = ("Yes. ", "was not shown: ", "No reproduction was found", "The audit cannot say")
    result = dataclasses.replace(LEAK, verdict=audit.Verdict(verdict, kinds, ["because"], []))
    text = report.to_html(result, {}, UNTRAINED, show_members=False)
    assert answer in text
    assert [a in text for a in answers].count(True) == 1
    assert "no proof of anonymity" in text
    assert "9 further images got one too" in text
    assert "{" not in text.partition("</style>")[2]  # No field was left unformatted.
    assert text.count(verdict.upper()) == 1


# JSON


def test_json_round_trip(tmp_path):
    artifacts.write_json(tmp_path / "report.json", report.to_json(UNDECIDED))
    read = artifacts.read_json(tmp_path / "report.json")
    assert len(read.pop("digest")) == 64

    def as_json(value):
        if isinstance(value, dict):
            return {key: as_json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [as_json(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert read == as_json({"schema_version": artifacts.SCHEMA_VERSION} | dataclasses.asdict(UNDECIDED))
    assert read["floor"] is None
    assert read["targets"][0]["t50"] == 0.6
