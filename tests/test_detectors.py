"""What the detectors are shown, and what is counted of what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.data.fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from fpjax.detectors.augment import blur, mask_randomly, random_disc, reproduce_poorly, shift_tone, visible_disc
from fpjax.detectors.augmix import AugMixSettings
from fpjax.detectors.examples import DetectorData, fingerprint_example, identity_example, make_tasks, unchanged
from fpjax.detectors.settings import ClassifierSettings
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sde import SubVP
from fpjax.studies.count import CountSettings
from fpjax.studies.search import SearchSettings, search_work

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
        lambda: search_work(SearchSettings(), time_grid(SubVP(), 100), 1, 1),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="got .*expected .*fix"):
        wrong()
