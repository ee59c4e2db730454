"""What the detectors are shown, and what is counted of what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.core.images import to_bytes
from fpjax.core.metrics import MetricsLog
from fpjax.data.fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from fpjax.detectors.augment import blur, mask_randomly, random_disc, reproduce_poorly, shift_tone, visible_disc
from fpjax.detectors.augmix import AugMixSettings
from fpjax.detectors.base import detect_all
from fpjax.detectors.examples import DetectorData, fingerprint_example, identity_example, make_tasks, unchanged
from fpjax.detectors.settings import ClassifierSettings
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sampling import SAMPLERS, Sampler, SamplerState
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import EngineSettings, make_engine
from fpjax.engine.work import NO_TARGET
from fpjax.studies.count import CountSettings, count, count_work, sensitivity_level
from fpjax.studies.search import SearchSettings, count_returns, rank_work, search, search_work, shown_chains
from fpjax.studies.tally import KEPT_MISSES

from .gaussian import gaussian_score_fn

SIDE, RADIUS, DRAWS = 12, 2, 3000
PLAIN = ClassifierSettings(max_noise=0.0, max_masks=0, max_tone=0.0, max_blur=0.0)


def detector_data():
    """Flat images whose grey value tells which they are: others -0.9.., originals 0.5, 0.6, 0.7."""
    others = np.linspace(-0.9, -0.2, 6).astype(np.float32)[:, None, None, None] * np.ones(
        (1, SIDE, SIDE, 1), np.float32
    )
    originals = np.array([0.5, 0.6, 0.7], np.float32)[:, None, None, None] * np.ones((1, SIDE, SIDE, 1), np.float32)
    centers = np.array([[2, 3], [5, 9], [9, 4]])
    return DetectorData(*(jnp.asarray(a) for a in (others, originals, centers)))


def own_discs(images, centers):
    """Each image with a disc at its own place."""
    masks = [disc_mask((SIDE, SIDE), tuple(center), RADIUS) for center in np.asarray(centers)]
    return np.stack(
        [stamp(np.asarray(image), mask, FINGERPRINT_VALUE) for image, mask in zip(images, masks, strict=True)]
    )


def draw(example, rate, settings=PLAIN, n=DRAWS, augment=unchanged):
    data = detector_data()
    options = {"rate": rate, "radius": RADIUS, "settings": settings, "augment": augment}
    if example is fingerprint_example:
        options["min_contrast"] = 0.0
    f = jit_once(jax.vmap(lambda key: example(key, data, **options)))
    return data, *(np.asarray(a) for a in f(jax.random.split(jax.random.key(0), n)))


def near(share, rate, n):
    return abs(share - rate) < 4.5 * np.sqrt(rate * (1 - rate) / n)


def test_fingerprint_examples():
    data, images, labels = draw(fingerprint_example, 0.3)
    has_disc = np.isclose(images, FINGERPRINT_VALUE).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(has_disc, labels[:, 0] == 1)
    assert near(labels.mean(), 0.3, DRAWS)
    assert not near(labels.mean(), 0.45, DRAWS)
    # Originals are shown too, clean and stamped.
    values = images.max(axis=(1, 2, 3))
    assert near((values > 0.4).mean(), 1 / 3, DRAWS)


def test_identity_examples_make_neither_mark_nor_place_a_cue():
    data, images, labels = draw(identity_example, 0.4)
    originals, centers = np.asarray(data.originals), np.asarray(data.centers)
    targets = own_discs(originals, centers)
    positive = labels.sum(axis=1) == 1
    assert near(positive.mean(), 0.4, DRAWS)
    heads = labels.argmax(axis=1)
    assert all(near((heads[positive] == h).mean(), 1 / 3, positive.sum()) for h in range(3))
    # Half of the positives are the target as planted (or by chance stamped there), all are of its original.
    as_planted = np.array([np.array_equal(image, targets[h]) for image, h in zip(images, heads, strict=True)])
    chance = 1 / (SIDE - 2 * RADIUS) ** 2
    assert near(as_planted[positive].mean(), 0.5 + 0.5 * chance, positive.sum())
    np.testing.assert_allclose(images[positive].max(axis=(1, 2, 3)), originals[heads[positive], 0, 0, 0], rtol=1e-6)
    # Negatives are other images: half plain, a quarter with a target's own disc, a quarter with a fresh one.
    negative = images[~positive]
    assert (negative.min(axis=(1, 2, 3)) < -0.1).all()
    discs = np.isclose(negative, FINGERPRINT_VALUE)[..., 0]
    own = np.stack([disc_mask((SIDE, SIDE), tuple(center), RADIUS) for center in centers])
    at_own = (discs[:, None] == own[None]).all(axis=(2, 3)).any(axis=1)
    assert near((~discs.any(axis=(1, 2))).mean(), 0.5, len(negative))
    assert near(at_own.mean(), 0.25 + 0.25 * 3 * chance, len(negative))


@pytest.mark.parametrize("example", [fingerprint_example, identity_example])
def test_augmentation_comes_before_the_disc_and_leaves_it_exact(example):
    """It turns photographs darker; discs keep their value, and labels, places and balance stay."""
    _, plain, labels = draw(example, 0.4, n=500)
    _, darker, same = draw(example, 0.4, n=500, augment=lambda key, image: image - 2.0)
    np.testing.assert_array_equal(labels, same)
    disc = plain == np.float32(FINGERPRINT_VALUE)
    assert 0.01 < disc.mean() < 0.2
    np.testing.assert_allclose(darker, np.where(disc, plain, plain - 2.0), atol=1e-6)


def test_views_differ_by_augmix_alone_and_validation_has_none(monkeypatch):
    monkeypatch.setattr("fpjax.detectors.examples.augmix", lambda key, image, settings: image - jax.random.uniform(key))
    data, tasks = detector_data(), {}
    for js_weight, on, shown in ((0.0, False, 1), (0.0, True, 1), (12.0, True, 3)):
        settings = dataclasses.replace(PLAIN, augmix=on, js_weight=js_weight)
        tasks = make_tasks(settings, AugMixSettings(), num_targets=3, radius=RADIUS)
        assert [len(task.views) for task in tasks] == [shown, shown]
        assert on == ("augment" in tasks[0].views[-1].keywords)
        assert not any("augment" in task.val_example.keywords for task in tasks)
    for task in tasks:
        shows = jit_once(lambda key, views=task.views: jnp.stack([view(key, data)[0] for view in views]))
        plain, *mixed = np.asarray(shows(jax.random.key(3)))
        moved = [(view - plain)[plain != np.float32(FINGERPRINT_VALUE)] for view in mixed]
        assert all(np.ptp(shift) < 1e-5 for shift in moved)  # the same image, disc and masks
        assert len({round(float(shift[0]), 4) for shift in moved} | {0.0}) == 3


def test_masks_cover_zero_to_max_discs():
    image = jnp.full((SIDE, SIDE, 1), -0.5)
    keys = jax.random.split(jax.random.key(0), 500)
    masked = np.asarray(jax.jit(jax.vmap(lambda key: mask_randomly(key, image, RADIUS, 2)))(keys))
    covered = (masked != -0.5).sum(axis=(1, 2, 3))
    area = int(disc_mask((SIDE, SIDE), (5, 5), RADIUS).sum())
    assert near((covered == 0).mean(), 1 / 3, 500)
    assert covered.max() <= 2 * area
    assert (covered > area).any()


def test_tones_shift_within_the_limit():
    image = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (SIDE, SIDE, 1)), jnp.float32)
    changed = np.asarray(jax.vmap(lambda key: shift_tone(key, image, 0.2))(jax.random.split(jax.random.key(0), 2000)))
    mean, std = changed.mean(axis=(1, 2, 3)) - float(image.mean()), changed.std(axis=(1, 2, 3)) / float(image.std())
    for shift in (mean, np.log(std)):
        assert np.abs(shift).max() <= 0.2 + 1e-6
        np.testing.assert_allclose(np.quantile(shift, [0.25, 0.5, 0.75]), [-0.1, 0.0, 0.1], atol=0.02)
    assert abs(np.corrcoef(mean, std)[0, 1]) < 0.1
    np.testing.assert_allclose(changed[7], mean[7] + image.mean() + std[7] * (image - image.mean()), atol=1e-6)


@pytest.mark.parametrize("max_std", [0.5, 1.0, 2.3])
def test_blur_is_that_of_scipy(max_std):
    rng, keys = np.random.default_rng(0), jax.random.split(jax.random.key(1), 100)
    image = rng.uniform(-1, 1, (SIDE, SIDE, 2)).astype(np.float32)
    blurred = np.asarray(jax.vmap(lambda key: blur(key, jnp.asarray(image), max_std))(keys))
    stds = np.linspace(1e-3, max_std, 2000)
    grid = np.stack([gaussian_filter(image, (std, std, 0), mode="nearest", radius=int(np.ceil(3 * max_std)))
                     for std in stds])  # fmt: skip
    nearest = [np.abs(grid - one).max(axis=(1, 2, 3)).argmin() for one in blurred]
    assert max(np.abs(grid[i] - one).max() for i, one in zip(nearest, blurred, strict=True)) < 2e-3
    # Below a quarter of a pixel nothing is seen of it.
    np.testing.assert_allclose(np.quantile(stds[nearest], [0.6, 0.8]), [0.6 * max_std, 0.8 * max_std], rtol=0.2)


def test_poor_reproductions_are_as_asked():
    image, key = jax.random.uniform(jax.random.key(0), (SIDE, SIDE, 1)), jax.random.key(1)
    np.testing.assert_array_equal(reproduce_poorly(key, image, 0.0, 0.0), image)
    blurred = reproduce_poorly(key, image, 0.0, 0.5)
    np.testing.assert_array_equal(blurred, blur(jax.random.split(key)[1], image, 0.5 * RADIUS))
    assert abs(float(blurred.mean() - image.mean())) < 0.02
    rough = jnp.abs(jnp.diff(image, axis=0)).mean()
    assert jnp.abs(jnp.diff(blurred, axis=0)).mean() < 0.9 * rough
    assert jnp.abs(jnp.diff(reproduce_poorly(key, image, 0.3, 0.0), axis=0)).mean() > 0.7 * rough


@pytest.mark.parametrize("example", [fingerprint_example, identity_example])
def test_examples_come_in_other_tones_and_blurred(example):
    """All of them, or it would tell the label; marks too: a model does not give back the value 128 either."""
    _, images, labels = draw(example, 0.5, dataclasses.replace(PLAIN, max_tone=0.3), n=600)
    values = [np.unique(image.round(4), return_counts=True) for image in images]
    assert max(len(found) for found, _ in values) <= 2  # flat images, and one disc
    for label in (True, False):
        chosen = labels.any(axis=1) == label
        assert len(np.unique(images[chosen][:, 0, 0, 0].round(3))) > 100
        discs = [
            found[pixels.argmin()]
            for (found, pixels), one in zip(values, chosen, strict=True)
            if one and len(found) > 1
        ]
        assert len(np.unique(np.round(discs, 3))) > len(discs) / 3 or not discs
        assert len(discs) > 50 or (example is fingerprint_example and not label)
    _, blurred, labels = draw(example, 0.5, dataclasses.replace(PLAIN, max_blur=0.5), n=600)
    marked = np.asarray([len(np.unique(image.round(4))) > 1 for image in blurred])
    soft = np.asarray([len(np.unique(image.round(4))) > 4 for image in blurred])
    for label in (True, False):
        chosen = marked & (labels.any(axis=1) == label)
        assert not chosen.any() or soft[chosen].mean() > 0.5


def test_random_disc_is_wholly_inside_everywhere():
    masks = np.asarray(
        jax.vmap(lambda key: random_disc(key, (SIDE, 9), RADIUS))(jax.random.split(jax.random.key(0), 900))
    )
    area = int(disc_mask((SIDE, SIDE), (5, 5), RADIUS).sum())
    assert (masks.sum(axis=(1, 2)) == area).all()
    assert len({mask.tobytes() for mask in masks}) == (SIDE - 2 * RADIUS) * (9 - 2 * RADIUS)


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
    result = count_returns(engine, None, TARGETS, jit_detect, work, threshold=0.5, shown=shown, key=jax.random.key(3))
    assert [*zip(result.shown.target.tolist(), result.shown.level.tolist(), strict=True)] == shown
    # Compiled together with other code, the last bit may be rounded otherwise.
    assert np.abs(result.shown.start.astype(int) - result.shown.end).max() <= 1
    assert np.abs(result.shown.start[1] - to_bytes(TARGETS[0]).astype(int)).max() <= 2  # level 1 is next to no noise
    assert np.ptp(result.shown.start[0]) > 20


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


def test_discs_that_teach_can_be_seen():
    """Half of the image has the disc's grey: no disc is drawn where it would hardly differ."""
    image = jnp.where(jnp.arange(SIDE)[:, None, None] < SIDE // 2, FINGERPRINT_VALUE, -0.9) * jnp.ones((SIDE, SIDE, 1))
    masks = jax.vmap(lambda key: visible_disc(key, image, RADIUS, 0.5))(jax.random.split(jax.random.key(0), 500))
    contrast = np.asarray(
        [np.abs(np.asarray(image)[..., 0] - FINGERPRINT_VALUE)[mask].mean() for mask in np.asarray(masks)]
    )
    assert contrast.min() >= 0.5
    rows = {int(np.flatnonzero(mask.any(axis=1)).mean()) for mask in np.asarray(masks)}
    assert rows == {6, 7, 8, 9}  # every row where it differs enough: from the disc's centre on
    flat = visible_disc(jax.random.key(1), jnp.full((SIDE, SIDE, 1), FINGERPRINT_VALUE), RADIUS, 0.5)
    assert int(flat.sum()) == int(disc_mask((SIDE, SIDE), (5, 5), RADIUS).sum())


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


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ClassifierSettings(threshold=1.0),
        lambda: ClassifierSettings(thresholds=(0.2, 0.0)),
        lambda: ClassifierSettings(identity_rate=1.5),
        lambda: ClassifierSettings(epochs=0),
        lambda: ClassifierSettings(max_rounds=0),
        lambda: ClassifierSettings(max_restarts=-1),
        lambda: ClassifierSettings(ema_decay=1.0),
        lambda: ClassifierSettings(sensitivity=0.4),
        lambda: ClassifierSettings(sensitivity=0.99, gate_copies=98),
        lambda: ClassifierSettings(max_masks=-1),
        lambda: ClassifierSettings(max_tone=1.5),
        lambda: ClassifierSettings(max_blur=-1.0),
        lambda: ClassifierSettings(distance="far"),
        lambda: ClassifierSettings(max_difference=0.0),
        lambda: ClassifierSettings(detector="nearest", path="runs/other"),
        lambda: ClassifierSettings(fingerprint_rate=1.0),
        lambda: ClassifierSettings(identity_rate_val=0.0),
        lambda: ClassifierSettings(num_val=299),
        lambda: ClassifierSettings(num_val=300, fingerprint_rate_val=0.91),
        lambda: ClassifierSettings(js_weight=12.0, augmix=False),
        lambda: SearchSettings(rank_chains=0),
        lambda: SearchSettings(member_chains=-1),
        lambda: SearchSettings(rank_max_t=1.5),
        lambda: CountSettings(num_samples=0),
        lambda: CountSettings(num_samples=100, looks=(100, 50)),
        lambda: CountSettings(num_samples=100, looks=(50, 50, 100)),
        lambda: CountSettings(num_samples=100, looks=(50,)),
        lambda: CountSettings(num_samples=100, looks=(0, 100)),
        lambda: search_work(SearchSettings(), time_grid(SDE, 100), 1, 1),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="got .*expected .*fix"):
        wrong()
