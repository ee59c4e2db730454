"""What the search and the count say, against loops over every chain of a small engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fpjax.core.images import to_bytes
from fpjax.core.metrics import MetricsLog
from fpjax.detectors.base import Detector, detect_all
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sampling import SAMPLERS, Sampler, SamplerState
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import EngineSettings, make_engine
from fpjax.engine.work import NO_TARGET
from fpjax.studies.count import CountSettings, count, count_work, sensitivity_level
from fpjax.studies.search import SearchSettings, count_returns, rank_work, search, search_work, shown_chains
from fpjax.studies.tally import KEPT_MISSES

from .gaussian import gaussian_score_fn


def brightness_detect(images):
    """A detector whose answers are known: above 0.5 if the first pixel is above 0.3, head h if the second is."""
    first, second = images[:, 0, 0, 0], images[:, 0, 1, 0]
    heads = jnp.stack([second - 0.3, second - 0.6, second - 5.0], axis=1)
    return jnp.clip(first + 0.2, 0, 1), jnp.clip(0.5 + heads, 0, 1)


AT = (0.25, 0.75)  # other thresholds, as far from 0.5 as the pixel is from its bound


jit_detect = jax.jit(brightness_detect)


def test_detect_all_pads_and_keeps_order():
    images = np.random.default_rng(0).normal(0.3, 0.3, (23, 2, 2, 1)).astype(np.float32)
    rows = np.array([5, 0, 22, 7, 7])
    found = detect_all(jit_detect, jnp.asarray(images), rows, batch_size=2)
    np.testing.assert_allclose(found[0], np.clip(images[rows, 0, 0, 0] + 0.2, 0, 1), atol=1e-6)
    np.testing.assert_allclose(found[1][:, 1], np.clip(images[rows, 0, 1, 0] - 0.1, 0, 1), atol=1e-6)
    empty = detect_all(jit_detect, jnp.asarray(images), rows[:0])
    assert (empty[0].shape, empty[1].shape) == ((0,), (0, 3))


def test_images_of_all_devices_meet_weights_that_lie_on_one():
    """As the engine's blocks meet the classifiers' checkpoints on a machine with several devices."""
    devices = jax.local_devices()
    assert len(devices) > 1
    images = np.random.default_rng(0).uniform(-1, 1, (8 * len(devices), 2, 2, 1)).astype(np.float32)
    spread = NamedSharding(Mesh(np.asarray(devices), ("d",)), PartitionSpec("d"))
    weights = jax.device_put(jnp.ones(1), devices[0])
    judge = jax.jit(lambda weights, images: (images[:, 0, 0, 0] * weights, images[:, 0, 0] * weights))
    detector = Detector(weights, judge, "pixel", marks=True, advice="")
    rows = np.array([3, len(images) - 1])
    fingerprint, identity = detect_all(detector.detect_fn, jax.device_put(images, spread), rows)
    np.testing.assert_array_equal(fingerprint, images[rows, 0, 0, 0])
    np.testing.assert_array_equal(identity, images[rows, 0, 0])


SDE, GRID = SubVP(), time_grid(SubVP(), 12)
TARGETS = np.stack([np.full((2, 2, 1), v, np.float32) for v in (0.8, 0.5, 0.1)])


@pytest.fixture(scope="module")
def engine():
    score_fn = gaussian_score_fn(SDE, 0.2, 0.4)
    return make_engine(lambda _: SAMPLERS["ancestral"](SDE, GRID, score_fn), GRID, (2, 2, 1), EngineSettings(32, 5))


def everything(engine, work, key):
    from .test_chains import ends

    return ends(engine, work, TARGETS, key=key)[0]


def test_search_counts_what_a_loop_over_all_chains_counts(engine, tmp_path):
    settings = SearchSettings(member_levels=12, member_chains=6, rank_levels=4, rank_chains=5, rank_max_t=0.7)
    result, shown = search(
        engine,
        None,
        TARGETS,
        jit_detect,
        settings,
        num_members=1,
        threshold=0.5,
        thresholds=AT,
        key=jax.random.key(5),
        path=tmp_path / "s.npz",
        log=MetricsLog(tmp_path / "m.jsonl"),
    )
    work = search_work(settings, GRID, 3, 1)
    images = everything(engine, work, 5)
    expected = {}
    for (target, level, chain), image in images.items():
        row = expected.setdefault((target, int(chain >= 5), level), [0] * 6)
        first, second = image[0, 0, 0] - 0.3, image[0, 1, 0] - (0.3, 0.6, 5.0)[target]
        values = (True, first > 0, second > 0, *(min(first, second) > bound for bound in (0, -0.25, 0.25)))
        for i, value in enumerate(values):
            row[i] += int(value)
    columns = zip(
        result.target,
        result.phase,
        result.level,
        result.num_chains,
        result.num_fingerprint,
        result.num_identity,
        result.num_detected,
        *result.num_detected_at.T,
        strict=True,
    )
    assert {tuple(map(int, c[:3])): list(map(int, c[3:])) for c in columns} == expected
    few, some, many = (sum(row[i] for row in expected.values()) for i in (5, 3, 4))
    assert 0 < few < some < many
    assert result.evaluations == work.num_steps
    # Pictures are of the member's ranking chain 0 at every ranking level.
    assert shown.target.tolist() == [0] * 4
    assert shown.level.tolist() == sorted({level for _, phase, level in expected if phase == 0})
    ends = np.stack([images[0, level, 0] for level in shown.level])
    np.testing.assert_array_equal(shown.end, to_bytes(ends))
    np.testing.assert_array_equal(shown.detected, (ends[:, 0, :2, 0] > 0.3).all(axis=1))
    assert 0 < shown.detected.sum()


def test_a_shown_query_image_is_where_its_chain_starts():
    """A sampler that moves nothing ends every chain where it started."""
    engine = make_engine(
        lambda _: Sampler(SamplerState, lambda state, level, key: state), GRID, (2, 2, 1), EngineSettings(32, 5)
    )
    shown = [(2, 12), (0, 1), (0, 7)]
    work = rank_work(SearchSettings(rank_levels=12, rank_chains=2), GRID, 3)
    _, found = count_returns(engine, None, TARGETS, jit_detect, work, threshold=0.5, shown=shown, key=jax.random.key(3))
    assert [*zip(found.target.tolist(), found.level.tolist(), strict=True)] == shown
    # Compiled together with other code, the last bit may be rounded otherwise.
    assert np.abs(found.start.astype(int) - found.end).max() <= 1
    assert np.abs(found.start[1] - to_bytes(TARGETS[0]).astype(int)).max() <= 2  # level 1 is next to no noise
    assert np.ptp(found.start[0]) > 20


def test_few_chains_are_shown():
    settings, grid = SearchSettings(member_levels=10, rank_levels=55, rank_max_t=0.55), time_grid(SDE, 100)
    chains = shown_chains(settings, grid, 6)
    assert [*dict.fromkeys(target for target, _ in chains)] == [0, 1, 2, 3]
    levels = [level for target, level in chains if target == 3]
    assert len(levels) == 20
    assert levels[-1] == 55
    assert set(np.diff(levels)) == {2, 3}
    assert shown_chains(SearchSettings(rank_levels=3), grid, 1) == [(0, 33), (0, 67), (0, 100)]


def test_search_work_gives_members_and_controls_the_same_ranking_chains():
    settings = SearchSettings(member_levels=10, member_chains=2, rank_levels=4, rank_chains=3, rank_max_t=0.5)
    work = search_work(settings, time_grid(SDE, 100), 4, 1)
    target, level, chain = work.items(np.arange(work.num_chains))
    rank = chain < 3
    sets = [
        {*zip(level[rank & (target == t)].tolist(), chain[rank & (target == t)].tolist(), strict=True)}
        for t in range(4)
    ]
    assert sets[0] == sets[1] == sets[2] == sets[3]
    assert {level for level, _ in sets[0]} == {12, 25, 38, 50}
    assert set(target[~rank]) == {0}
    assert work.num_chains == 4 * 4 * 3 + 10 * 2
    assert (np.diff(level) <= 0).all()  # longest first


def test_count_counts_what_a_loop_over_all_samples_counts(engine, tmp_path):
    settings = CountSettings(num_samples=150, sensitivity_chains=9)
    result, pictures = count(
        engine,
        None,
        TARGETS,
        jit_detect,
        settings,
        num_members=2,
        threshold=0.5,
        thresholds=AT,
        key=jax.random.key(6),
        path=tmp_path / "c.npz",
        log=MetricsLog(tmp_path / "m.jsonl"),
    )
    images = everything(engine, count_work(settings, GRID, 3), 6)
    plain = {chain: image for (target, _, chain), image in images.items() if target == NO_TARGET}
    assert sorted(plain) == list(range(150))
    pixels = np.array([plain[c][0, :, 0] for c in range(150)])
    first, heads = pixels[:, 0] > 0.3, pixels[:, 1:] > [0.3, 0.6, 5.0]
    assert result.num_fingerprint == first.sum() > 0
    np.testing.assert_array_equal(result.num_identity, heads.sum(axis=0))
    np.testing.assert_array_equal(result.num_detected, (heads & first[:, None]).sum(axis=0))
    joint = np.minimum(pixels[:, :1] - 0.3, pixels[:, 1:] - [0.3, 0.6, 5.0])
    for i, bound in enumerate((-0.25, 0.25)):
        np.testing.assert_array_equal(result.num_detected_at[:, i], (joint > bound).sum(axis=0))
    np.testing.assert_array_equal(result.control_hit_samples_at, result.num_detected_at[2])
    assert result.control_hit_samples == 0
    assert result.sensitivity_chains == 9
    expected = [
        sum(image[0, 0, 0] > 0.3 and image[0, 1, 0] > b for (t, _, _), image in images.items() if t == row)
        for row, b in enumerate((0.3, 0.6, 5.0))
    ]
    np.testing.assert_array_equal(result.sensitivity_detected, expected)
    low = [image for (target, _, _), image in images.items() if target != NO_TARGET]
    assert len(low) == 27
    hits = np.flatnonzero(first & heads[:, :2].any(axis=1))[:8]
    np.testing.assert_array_equal(pictures.hits, np.stack([plain[c] for c in hits]))  # lowest numbers, in order
    np.testing.assert_array_equal(pictures.samples, np.stack([plain[c] for c in range(16)]))
    np.testing.assert_allclose(
        result.hits[0].mse, np.mean((plain[hits[0]] - TARGETS[result.hits[0].target]) ** 2), rtol=1e-5
    )


def test_looks_count_the_same_samples_and_the_one_that_decides_is_the_last(engine, tmp_path):
    common = {"num_members": 2, "threshold": 0.5, "key": jax.random.key(6)}
    whole, pictures = count(
        engine, None, TARGETS, jit_detect, CountSettings(num_samples=150, sensitivity_chains=9), **common
    )
    looks = CountSettings(num_samples=150, looks=(40, 90, 150), sensitivity_chains=9)
    found, kept = count(engine, None, TARGETS, jit_detect, looks, path=tmp_path / "c.npz", **common)
    for name in ("num_detected", "sensitivity_detected", "hits", "near_misses"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    np.testing.assert_equal(kept._asdict(), pictures._asdict())
    assert found.looks == [40, 90, 150]
    np.testing.assert_array_equal(found.looks_detected[-1], whole.num_detected)
    asked = []

    def decided(counts):
        asked.append(counts.tolist())
        return len(asked) == 2

    early, hits = count(engine, None, TARGETS, jit_detect, looks, decided=decided, path=tmp_path / "d.npz", **common)
    assert early.num_samples == 90
    assert asked == found.looks_detected[:2].tolist()
    few, same = count(engine, None, TARGETS, jit_detect, CountSettings(num_samples=90, sensitivity_chains=9), **common)
    np.testing.assert_array_equal(early.num_detected, few.num_detected)
    np.testing.assert_array_equal(hits.hits, same.hits)
    assert early.hits == few.hits
    # What an interrupted count had seen is not counted twice.
    again, _ = count(engine, None, TARGETS, jit_detect, looks, path=tmp_path / "c.npz", **common)
    np.testing.assert_array_equal(again.looks_detected, found.looks_detected)


def test_only_searched_targets_have_chains(engine):
    settings = CountSettings(num_samples=20, sensitivity_chains=9)
    found, _ = count(
        engine, None, TARGETS, jit_detect, settings, num_members=1, num_searched=2, threshold=0.5, key=jax.random.key(6)
    )  # fmt: skip
    assert found.sensitivity_detected.shape == (2,)
    assert found.num_detected.shape == (3,)


def test_the_nearest_misses_are_those_of_a_loop_over_all_samples(engine):
    settings = CountSettings(num_samples=150, sensitivity_chains=9)
    result, pictures = count(
        engine, None, TARGETS, jit_detect, settings, num_members=2, threshold=0.5, key=jax.random.key(6)
    )  # fmt: skip
    images = everything(engine, count_work(settings, GRID, 2), 6)
    misses = []
    for (target, _, chain), image in images.items():
        scores = [np.clip(image[0, 0, 0] + 0.2, 0, 1), *np.clip(0.5 + image[0, 1, 0] - np.array([0.3, 0.6]), 0, 1)]
        if target == NO_TARGET and min(scores[0], max(scores[1:])) <= 0.5:
            squares = [np.mean((image.astype(float) - member) ** 2) for member in TARGETS[:2]]
            row = int(np.argmin(squares))
            misses.append((squares[row], chain, row, min(scores[0], scores[1 + row]), image))
    misses = sorted(misses, key=lambda miss: miss[:2])[:KEPT_MISSES]
    np.testing.assert_array_equal(pictures.near_misses, [miss[-1] for miss in misses])
    near = result.near_misses
    assert [one.target for one in near] == [miss[2] for miss in misses]
    np.testing.assert_allclose([one.mse for one in near], [miss[0] for miss in misses], rtol=1e-12)
    np.testing.assert_allclose([one.score for one in near], [miss[3] for miss in misses], rtol=1e-6)
    mae = [np.mean(np.abs(miss[-1] - TARGETS[miss[2]])) for miss in misses]
    np.testing.assert_allclose([one.mae for one in near], mae, rtol=1e-6)
    assert near[0].mse < near[-1].mse


def test_equally_near_misses_are_kept_by_chain_number_in_any_order_of_arrival():
    """A sampler that ends everywhere at 0: only numbers tell the misses apart, and fewer than are kept are kept."""
    found = []
    for slots in (3, 16):
        dead = Sampler(SamplerState, lambda state, level, key: SamplerState(0 * state.x))
        still = make_engine(lambda _, dead=dead: dead, GRID, (2, 2, 1), EngineSettings(slots, 5))
        for num_samples in (40, 5):
            settings = CountSettings(num_samples=num_samples, sensitivity_chains=1)
            result, pictures = count(
                still, None, TARGETS[::-1], jit_detect, settings, num_members=3, threshold=0.5, key=jax.random.key(0)
            )  # fmt: skip
            found.append(result)
            assert len(result.near_misses) == len(pictures.near_misses) == min(num_samples, KEPT_MISSES)
            for miss in result.near_misses:
                assert (miss.target, miss.mse, miss.mae) == (0, pytest.approx(0.01), pytest.approx(0.1))
    assert len(found[0].hits) == 0
    assert found[0].near_misses == found[2].near_misses


def test_sensitivity_level_is_below_one_grey_level():
    for num_levels in (10, 100, 1000):
        grid = time_grid(SDE, num_levels)
        level = sensitivity_level(grid)
        assert level == 1 or grid.std[level] <= 1 / 128
        assert grid.std[level + 1] > 1 / 128
