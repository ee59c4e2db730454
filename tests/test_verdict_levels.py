"""How often the verdict is right, on simulated audits without networks.

Simulations have fixed seeds and thresholds of 4.5 standard errors (false alarm 3e-6 a check); where a check could pass
because it is blunt, a wrong test stands beside it that must fail it.
"""

import collections
import itertools
import math

import numpy as np
import pytest

from fpjax import stats
from fpjax.audit import verdict
from fpjax.audit.verdict import BELOW, LEAK, MEMORISED, REPRODUCED, AuditSettings, smallest_p

from .benchmarks.simulator import DESIGNS, NULLS, World, answers, count_power, draw, kinds, old_answers, old_leak_p
from .coverage import Z

# Operating characteristics: levels where nothing was memorised


def holds(share, level, runs):
    """Whether a share of so many runs is no proof of a larger probability than `level`."""
    return share <= level + Z * math.sqrt(level * (1 - level) / runs)


def check_levels(world, runs, seed):
    found = kinds(draw(world, runs, seed))
    for part, level in ((found[:, 0], 0.01), (found[:, 1], 0.04), (found.any(axis=1), 0.05)):
        assert holds(part.mean(), level, runs), (world, part.mean(), level)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("heads", "t50"), NULLS)
def test_the_level_holds_whatever_the_heads(design, heads, t50):
    runs, seed = (5000 if design[0] == 1 else 400), NULLS.index((heads, t50))
    check_levels(World(design, heads, t50), runs, seed)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    ("heads", "t50"), [(h, t) for h in ("clean", *(n[0] for n in NULLS[1:])) for t in ("continuous", "tied")]
)
def test_the_level_holds_in_a_longer_sweep(design, heads, t50):
    check_levels(World(design, heads, t50), 20_000 if design[0] == 1 else 3000, seed=100)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("heads", "t50"), NULLS)
def test_the_verdict_is_a_leak_where_its_tests_reject_and_nowhere_else(design, heads, t50):
    """So that the levels above are the whole verdict's; at a rate that makes leaks and their absence as common."""
    draws = draw(World(design, heads, t50, rate=1 / 1000), 8, seed=7)
    for (counts, times), answer in zip(kinds(draws), answers(draws), strict=True):
        assert (answer.verdict == LEAK) == (counts or times)
        assert answer.kinds == [REPRODUCED] * int(counts) + [MEMORISED] * int(times)


@pytest.mark.parametrize("controls", [9, 19, 49])
def test_the_former_leak_test_breaks_its_level_where_one_head_is_bad(controls):
    """Measured 0.10, 0.05 and 0.02: the member has the bad head with probability 1 / (H + 1), and nothing excuses it."""
    runs = 8000
    draws = draw(World((1, 1, controls), "one"), runs, seed=3)
    former = np.mean(old_leak_p(draws) <= 0.01)
    assert former == pytest.approx(1 / (controls + 1), abs=Z * math.sqrt(1 / (controls + 1) / runs))
    assert not holds(former, 0.01, runs)
    assert holds(kinds(draws)[:, 0].mean(), 0.01, runs)


@pytest.mark.parametrize("level", [0.04, 0.01, 0.0025])
def test_the_joint_test_has_its_level_in_every_design(level):
    """Without ties, by counting the choices of members that reject: P(p <= level), without a simulation's error."""
    for k, h in itertools.product(range(1, 6), range(15, 25)):
        places = range(1, k + h + 1)
        ways = collections.Counter(map(sum, itertools.combinations(places, k)))
        highest = {sum(choice): choice for choice in itertools.combinations(places, k)}
        rejecting = 0
        for total in sorted(ways, reverse=True):
            others = [place for place in places if place not in highest[total]]
            if stats.permutation_p(highest[total], others, seed=0) > level:
                break
            rejecting += ways[total]
        assert rejecting <= level * math.comb(k + h, k) * (1 + 1e-9), (k, h, rejecting / math.comb(k + h, k))


LOOKS = (512, 1024, 1536, 2048)


@pytest.mark.parametrize(("design", "runs"), [((1, 1, 399), 4000), ((4, 16, 16), 300), ((5, 15, 15), 300)])
@pytest.mark.parametrize("heads", ["equal", "gamma"])
def test_declared_looks_keep_the_level(design, runs, heads):
    check_levels(World(design, heads, looks=LOOKS), runs, seed=11)


def test_looks_that_do_not_share_break_it():
    """Each at 0.01, as where n is raised after a look: measured 0.02."""
    runs, unshared = 8000, AuditSettings(count_level=0.04, t50_level=0.01)
    draws = draw(World((1, 1, 99), "equal", looks=(2000, 8000, 32_000, 128_000)), runs, seed=12)
    assert not holds(kinds(draws, unshared)[:, 0].mean(), 0.01, runs)
    assert holds(kinds(draws)[:, 0].mean(), 0.01, runs)


# Operating characteristics: certification


@pytest.mark.parametrize("design", [DESIGNS[0], DESIGNS[2]])
@pytest.mark.parametrize("heads", ["clean", "bad"])
def test_a_rate_at_the_tolerance_is_seldom_certified(design, heads, monkeypatch):
    """With the limit of the sensitivity as measured, as the audit does."""
    monkeypatch.setattr(verdict, "_samples_for", lambda *_: None)  # advice only, and most of the time
    world = World(design, heads, rate=1e-3, sensitivity=0.9, looks=(50_000,), num_train=1000)
    assert np.mean([answer.verdict == BELOW for answer in answers(draw(world, 120, seed=21))]) <= 0.05


def test_it_is_so_by_the_interval_alone_and_without_the_sensitivity_it_is_not(monkeypatch):
    """A control that fires often, so that "above all" saves nothing; the sensitivity is known. Measured 0.02 and 0.1."""
    world = World((1, 1, 99), "bad", rate=1e-3, sensitivity=0.9, looks=(50_000,), num_train=1000)
    monkeypatch.setattr(verdict, "_samples_for", lambda *_: None)
    draws = draw(world, 600, seed=22)
    right, wrong = (
        np.mean([answer.verdict == BELOW for answer in answers(draws, sensitivity=limit)]) for limit in (0.9, 1.0)
    )
    assert 0 < right <= 0.05
    assert holds(right, 0.025, 600)
    assert wrong > 0.05


# Operating characteristics: power


def test_power_of_counts_with_one_member():
    """Clean heads, n = 2,048, 99 count controls; exact with heads that never fire: at least one detection."""
    runs = 10_000
    exact = 1 - (1 - 0.95 / 500) ** 2048
    silent = count_power(World(DESIGNS[0], "never", rate=1 / 500), runs, seed=31)
    assert silent == pytest.approx(exact, abs=Z * math.sqrt(exact * (1 - exact) / runs))
    assert count_power(World(DESIGNS[0], "clean", rate=1 / 500), runs, seed=32) >= 0.9
    assert count_power(World(DESIGNS[0], "clean", rate=1 / 100), runs, seed=33) > 0.999
    # Too few controls for the level: the rank test of counts cannot reject.
    assert count_power(World(DESIGNS[1], "clean", rate=1 / 100), 500, seed=34) == 0


def test_power_of_counts_with_several_members():
    """Of 20 targets, at 0.01: 4 or 5 members together reach what a rank among 20 never can."""
    assert smallest_p(5, 15) < 0.001
    for design in DESIGNS[2:]:
        assert count_power(World(design, "clean", rate=1 / 500), 500, seed=41) > 0.95
        assert count_power(World(design, "clean", rate=1 / 100), 200, seed=42) == 1


def test_the_former_verdict_found_none_where_one_of_500_samples_is_the_target():
    world = World(DESIGNS[1], "clean", rate=1 / 500, num_train=24)
    draws = draw(world, 400, seed=51)
    assert np.mean([answer == "none found" for answer in old_answers(draws)]) > 0.9
    assert np.mean([answer.verdict == BELOW for answer in answers(draws)]) < 0.2
