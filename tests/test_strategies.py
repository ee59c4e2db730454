"""The strategies of the search: on curves whose answers are known, then on the engine with the perfect memoriser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax import stats
from fpjax.core.metrics import MetricsLog
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.oracle import empirical_score_fn, nearest_image, return_probability
from fpjax.diffusion.sampling import SAMPLERS
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import EngineSettings, make_engine
from fpjax.studies.search import SearchSettings, search, search_work
from fpjax.studies.strategies import CONFIRM, CURVE, MISSES, STRATEGIES, Plan, Seen, most_levels, spaced_levels

N, M = 1000, 16
PLAN = Plan(N, member_levels=N, coarse_levels=20, fine_levels=20, seed=(0,))


def memoriser(center, *, width=40.0, tail=1e-3):
    """Return rate at each level: one, falling about a level, then chance."""
    return tail + (1 - tail) / (1 + np.exp((np.arange(N + 1) - center) / width))


def returns(rates, seed):
    """Uniform numbers of the chains by (member, phase, level, chain): the same chain returns in every strategy."""
    uniform = np.random.default_rng(seed).random((len(rates), 3, N + 1, M))
    return uniform < np.asarray(rates)[:, None, :, None]


def run(name, outcomes, plan=PLAN):
    """Counts by (member, phase, level), the looks, and the steps that they took."""
    strategy, looks, steps = STRATEGIES[name], [], 0
    chains = np.zeros(outcomes.shape[:3], np.int64)
    hits = np.zeros_like(chains)
    confirmed = False
    while (look := strategy(plan, Seen(chains[:, CURVE], hits[:, CURVE], confirmed))) is not None:
        assert len(looks) < N
        assert len({*zip(look.target, look.level, strict=True)}) == len(look.level) > 0
        assert look.level.min() >= 1
        assert look.level.max() <= N
        place = look.target, look.phase, look.level
        assert not chains[place].any()  # no chain is run twice
        chains[place] += M
        hits[place] += outcomes[place].sum(axis=-1)
        looks.append(look)
        steps += M * int(look.level.sum())
        confirmed = look.phase == CONFIRM
    return chains, hits, looks, steps


def summary(chains, hits, member, floor):
    """t', t50 and t'_alpha as the audit takes them, times being level / N."""
    levels = np.flatnonzero(chains[member].sum(axis=0))
    k, n = hits[member].sum(axis=0)[levels], chains[member].sum(axis=0)[levels]
    fresh = np.flatnonzero(chains[member, CONFIRM])
    fresh = (fresh, hits[member, CONFIRM][fresh], chains[member, CONFIRM][fresh]) if len(fresh) else (levels, k, n)
    return (
        stats.t_prime(levels / N, k),
        stats.t50(levels / N, k, n),
        stats.t_prime_alpha(fresh[0] / N, *fresh[1:], floor=floor),
        (levels / N, k, n),
        (fresh[0] / N, *fresh[1:]),
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_ends_and_says_what_it_misses(name):
    for rates in ([np.zeros(N + 1)], [np.ones(N + 1)], [memoriser(300), memoriser(40, width=5), np.full(N + 1, 0.5)]):
        chains, _, looks, steps = run(name, returns(rates, 0))
        assert chains.any(axis=(1, 2)).all()
        curve, confirm = most_levels(name, PLAN)
        assert steps <= len(rates) * M * (curve.sum() + confirm.sum())
        assert [look.phase for look in looks] == sorted(look.phase for look in looks)
    assert MISSES[name]


def test_exhaustive_is_one_look_at_every_level():
    chains, _, looks, steps = run("exhaustive", returns([memoriser(300)] * 2, 1))
    assert len(looks) == 1
    assert (chains[:, CURVE, 1:] == M).all()
    assert steps == 2 * M * N * (N + 1) // 2


@pytest.mark.parametrize("center", [60, 300, 700])
def test_descending_finds_the_t_prime_of_the_exhaustive_search(center):
    outcomes = returns([memoriser(center, tail=0.0), memoriser(center, tail=1e-4), np.zeros(N + 1)], center)
    _, everything, _, most = run("exhaustive", outcomes)
    chains, hits, _, steps = run("descending", outcomes)
    for member in range(3):
        assert np.flatnonzero(hits[member, CURVE]).max(initial=0) == np.flatnonzero(everything[member, CURVE]).max(
            initial=0
        )
    assert steps < most
    # And stops within one look of it.
    top = np.flatnonzero(everything[0, CURVE]).max()
    assert np.flatnonzero(chains[0, CURVE]).min() > top - PLAN.coarse_levels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("center", [100, 300, 550])
def test_coarse_to_fine_agrees_with_the_exhaustive_search_for_a_twentieth(center, seed):
    floor, outcomes = 0.002, returns([memoriser(center)], 100 * center + seed)
    chains, hits, _, most = run("exhaustive", outcomes)
    _, t50, _, curve, _ = summary(chains, hits, 0, floor)
    chains, hits, _, steps = run("coarse_to_fine", outcomes)
    _, found, _, coarse, fresh = summary(chains, hits, 0, floor)
    assert steps <= most / 20
    lower, upper = stats.t50_interval(*coarse, seed=0, confidence=0.999)
    assert lower <= t50 <= upper
    assert abs(found - center / N) < 0.05
    # Its t'_alpha and that of the exhaustive search lie where repeats of either would.
    for one, other in ((curve, fresh), (fresh, curve)):
        low, high = stats.t_prime_alpha_range(*one, floor=floor, coverage=0.999)
        mine = stats.t_prime_alpha_range(*other, floor=floor, coverage=0.999)
        assert low <= mine.upper
        assert mine.lower <= high


def test_t_prime_alpha_of_coarse_to_fine_keeps_its_level():
    """With chance at the floor from a level on, passing beyond it is as rare as alpha: its chains are fresh."""
    floor, above, trials = 0.02, 0, 400
    rates = [np.where(np.arange(N + 1) <= 300, 0.97, floor)]
    for seed in range(trials):
        chains, hits, _, _ = run("coarse_to_fine", returns(rates, seed))
        above += summary(chains, hits, 0, floor)[2] > 0.3
    assert above <= 0.05 * trials + 4.5 * np.sqrt(trials * 0.05 * 0.95)


def test_bisection_finds_t50_and_is_sent_astray_by_a_plateau():
    outcomes = returns([memoriser(300, width=15), memoriser(800, width=15)], 3)
    chains, hits, looks, steps = run("bisection", outcomes)
    assert len(looks) == N.bit_length() + 1
    assert steps < 2 * M * N * (N + 1) // 2 / 20
    for member, center in enumerate((300, 800)):
        assert abs(summary(chains, hits, member, 0.002)[1] - center / N) < 0.05
    # It says what it misses: returns far above t50.
    _, hits, _, _ = run("bisection", returns([memoriser(100, width=5, tail=0.05)], 4))
    assert np.flatnonzero(hits[0].sum(axis=0)).max(initial=0) < 900


def test_random_levels_are_drawn_once_and_thin_the_exhaustive_search():
    plan = PLAN._replace(member_levels=50)
    outcomes = returns([memoriser(300)], 5)
    chains, hits, looks, _ = run("random", outcomes, plan)
    levels = np.flatnonzero(chains[0, CURVE])
    assert len(looks) == 1
    assert len(levels) == 50
    np.testing.assert_array_equal(hits[0, CURVE, levels], outcomes[0, CURVE, levels].sum(axis=-1))
    again = np.flatnonzero(run("random", outcomes, plan._replace(seed=(1,)))[0][0, CURVE])
    assert set(levels) != set(again)


def test_spaced_levels_are_distinct_and_reach_the_top():
    np.testing.assert_array_equal(spaced_levels(10, 10), np.arange(1, 11))
    assert spaced_levels(500, 3).tolist() == [167, 333, 500]
    assert spaced_levels(1, 3).tolist() == [1]
    assert spaced_levels(8, 20, bottom=4).tolist() == [5, 6, 7, 8]


SDE, GRID = SubVP(), time_grid(SubVP(), N)
IMAGES = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 3, 3, 1)).astype(np.float32)


@jax.jit
def detect(images):
    """The nearest training image tells."""
    return jnp.ones(len(images)), jax.nn.one_hot(nearest_image(images, jnp.asarray(IMAGES)), len(IMAGES))[:, :3]


@pytest.fixture(scope="module")
def engine():
    def sampler(images):
        return SAMPLERS["ancestral"](SDE, GRID, empirical_score_fn(SDE, images))

    return make_engine(sampler, GRID, IMAGES.shape[1:], EngineSettings(256, 400))


def run_search(engine, strategy, **changes):
    fields = {"member_chains": 4, "confirm_chains": 4, "rank_levels": 5, "rank_chains": 2, "strategy": strategy}
    path, log = changes.pop("path", None), changes.pop("log", None)
    settings = SearchSettings(**fields | changes)
    key = jax.random.key(0)
    result, _ = search(
        engine,
        jnp.asarray(IMAGES),
        IMAGES[:3],
        detect,
        settings,
        num_members=2,
        threshold=0.5,
        key=key,
        path=path,
        log=log,
    )
    return settings, result


def curve(result, member, phases=(CURVE, CONFIRM)):
    rows = (result.target == member) & np.isin(result.phase, phases)
    order = np.argsort(result.level[rows], kind="stable")
    columns = [column[rows][order] for column in (result.level, result.num_detected, result.num_chains)]
    levels, start = np.unique(columns[0], return_index=True)
    return GRID.t[levels].astype(float), *(np.add.reduceat(column, start) for column in columns[1:])


@pytest.fixture(scope="module")
def everything(engine):
    return run_search(engine, "exhaustive")[1]


def test_all_strategies_agree_on_the_perfect_memoriser(engine, everything):
    exact = [
        float(return_probability(SDE, jnp.asarray(IMAGES), 0, jnp.float32(t), key=jax.random.key(1))[0])
        for t in (0.1, 0.5)
    ]
    for strategy, share in (("coarse_to_fine", 20), ("bisection", 20), ("random", 5)):
        _, result = run_search(engine, strategy, member_levels=N if strategy != "random" else 100)
        assert result.evaluations <= everything.evaluations / share
        for member in range(2):
            one, other = curve(everything, member), curve(result, member)
            assert len(one[0]) == N
            mine, theirs = (stats.t50_interval(*each, seed=0, confidence=0.999) for each in (other, one))
            assert mine.lower <= stats.t50(*one) <= mine.upper or theirs.lower <= stats.t50(*other) <= theirs.upper
    t, hits, chains = curve(everything, 0)
    for time, rate in zip((0.1, 0.5), exact, strict=True):
        near = np.abs(t - time) < 0.02
        assert abs(hits[near].sum() / chains[near].sum() - rate) < 4.5 * np.sqrt(0.25 / chains[near].sum()) + 0.01


def test_descending_stops_at_the_t_prime_of_the_exhaustive_search(engine, everything):
    settings, result = run_search(engine, "descending")
    for member in range(2):
        assert stats.t_prime(*curve(result, member)[:2]) == stats.t_prime(*curve(everything, member)[:2])
    assert result.evaluations < everything.evaluations / 2
    assert result.evaluations <= search_work(settings, GRID, 3, 2).num_steps


@pytest.mark.parametrize(("strategy", "coarse_levels"), [("coarse_to_fine", 10), ("descending", 1)])
def test_an_interrupted_search_of_several_looks_ends_the_same(engine, strategy, coarse_levels, tmp_path):
    """It goes on in the look in which it was stopped: those before are not run again."""
    changes = {"member_levels": 100, "coarse_levels": coarse_levels, "fine_levels": 8}
    _, whole = run_search(engine, strategy, **changes)

    class Stop(Exception):
        pass

    class StoppingLog(MetricsLog):
        def __init__(self, after):
            self.blocks = after

        def write(self, *_, **__):
            self.blocks -= 1
            if self.blocks == 0:
                raise Stop

    counted = StoppingLog(10**9)
    run_search(engine, strategy, log=counted, **changes)
    total = 10**9 - counted.blocks
    with pytest.raises(Stop):
        run_search(engine, strategy, path=tmp_path / "search.npz", log=StoppingLog(total), **changes)
    again = StoppingLog(10**9)
    _, resumed = run_search(engine, strategy, path=tmp_path / "search.npz", log=again, **changes)
    assert 10**9 - again.blocks < total
    np.testing.assert_equal(vars(dataclasses.replace(resumed, executed=whole.executed)), vars(whole))
