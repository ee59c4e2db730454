import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.core.images import to_bytes, to_model
from fpjax.data.phantom import phantom_images
from fpjax.detectors import augmix as module
from fpjax.detectors.augmix import (
    OPERATIONS,
    AugMixPlan,
    AugMixSettings,
    apply_operation,
    apply_plan,
    augmix,
    draw_plan,
    jensen_shannon,
    magnitudes,
)

from . import pillow_augmix
from .conftest import medmnist

NUM, SIDE = 24, 28
# No shear among these puts a source coordinate on the very border, where the last bit decides between grey and black.
MAGNITUDES = {
    "identity": (0,),
    "autocontrast": (0,),
    "equalize": (0,),
    "posterize": (1, 2, 3, 4, 8),
    "solarize": (0, 1, 77, 230, 256),
    "rotate": (0, 1, -8, 17, -29),
    "shear_x": (0, 0.003, -0.0871, 0.3, -0.3),
    "shear_y": (0, 0.003, -0.0871, 0.3, -0.3),
    "translate_x": (0, 1, -2, 9, -28),
    "translate_y": (0, 1, -2, 9, -28),
}
# Largest share of pixels one level off, where rounding in Pillow's doubles or in floats crosses a whole number: most
# often after the shear of 0.3, which puts many values on one. All the rest is the same to the byte.
MOST_ONE_OFF = {"autocontrast": 0.05, "rotate": 0.001, "shear_x": 0.04, "shear_y": 0.04}


@functools.cache
def levels_of(source):
    """Bytes (NUM, SIDE, SIDE, c): every source has a constant, a nearly constant and a two-level image."""
    if source.startswith("phantom"):
        channels = int(source[-1])
        images = phantom_images(NUM * channels, side=SIDE, seed=1)
        images = images.reshape(channels, NUM, SIDE, SIDE).transpose(1, 2, 3, 0).copy()
    else:
        with np.load(medmnist(source), allow_pickle=False) as file:
            images = file["train_images"][:NUM].reshape(NUM, SIDE, SIDE, -1).copy()
    images[0] = 7
    images[1] = 200
    images[1, 3, 4] = 199
    images[2, :14], images[2, 14:] = 50, 90
    return images


@pytest.fixture(params=["phantom_1", "phantom_3", "breastmnist", "retinamnist"])
def levels(request):
    return levels_of(request.param)


@functools.cache
def by_name(name):
    """The operation of a batch, by its own function."""
    own = getattr(module, name, lambda image: image)
    takes_magnitude = len(MAGNITUDES[name]) > 1
    return jit_once(jax.vmap(own if takes_magnitude else lambda image, _: own(image), in_axes=(0, None)))


# By the index of the operation, for all of them one program.
by_index = jit_once(jax.vmap(apply_operation, in_axes=(0, None, None)))


@functools.cache
def mixtures(settings):
    """Images in model range and keys to plans and their mixtures."""

    @jit_once
    def of(keys, images):
        plans = jax.vmap(lambda key: draw_plan(key, images.shape[1:3], settings))(keys)
        return plans, jax.vmap(apply_plan)(images, plans)

    return of


@functools.cache
def many_plans(settings, num=4000):
    keys = jax.random.split(jax.random.key(5), num)
    return jax.device_get(jit_once(jax.vmap(lambda key: draw_plan(key, (SIDE, SIDE), settings)))(keys))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name, levels):
    images, index = jnp.asarray(levels, jnp.float32), jnp.int32(OPERATIONS.index(name))
    changed = []
    for magnitude in map(np.float32, MAGNITUDES[name]):
        expected = np.stack([pillow_augmix.apply(image, name, float(magnitude)) for image in levels])
        for found in (by_name(name)(images, magnitude), by_index(images, index, magnitude)):
            gap = np.abs(found - expected.astype(np.float32))
            assert gap.max() <= (1 if name in MOST_ONE_OFF else 0)
            assert np.mean(gap > 0) <= MOST_ONE_OFF.get(name, 0)
        changed.append(not np.array_equal(expected, levels))
    # The operation does something, and nothing where its magnitude says so.
    assert any(changed) == (name != "identity")
    if len(changed) > 1:
        assert not changed[MAGNITUDES[name].index({"posterize": 8, "solarize": 256}.get(name, 0))]


@pytest.mark.parametrize("level", [0, 7, 255])
def test_constant_images_stay_and_give_no_nan(level):
    image = np.full((SIDE, SIDE, 1), level, np.uint8)
    for name in ("autocontrast", "equalize"):
        assert (pillow_augmix.apply(image, name, 0) == level).all()
        np.testing.assert_array_equal(getattr(module, name)(jnp.asarray(image, jnp.float32)), image)
    keys = jax.random.split(jax.random.key(level), NUM)
    _, mixed = mixtures(AugMixSettings(10))(keys, jnp.stack([to_model(image)] * NUM))
    assert np.isfinite(mixed).all()


@pytest.mark.parametrize("severity", [3, 10])
def test_mixtures_are_pillows(severity, levels):
    images = to_model(levels)
    plans, mixed = jax.device_get(mixtures(AugMixSettings(severity))(jax.random.split(jax.random.key(1), NUM), images))
    each = [AugMixPlan(*fields) for fields in zip(*plans, strict=True)]
    expected = [pillow_augmix.mix(image, plan) for image, plan in zip(images, each, strict=True)]
    gap = 128 * np.abs(mixed - np.stack(expected))
    # A level lost in a step may cross a later solarize's threshold, and equalize spreads levels: 4 pixels in a million
    # were off by more than one, at most by 1.11; the mean gap was 0.005.
    assert np.mean(gap > 1) < 0.001
    assert gap.mean() < 0.02
    assert np.abs(mixed - images).mean() > 0.01


def test_magnitudes_are_the_papers_at_32_pixels_and_scale_with_the_side():
    levels = np.linspace(0.1, 9.99, 50, dtype=np.float32)
    found = magnitudes(jnp.asarray(levels), (64, 32))
    for name, values in zip(OPERATIONS, found, strict=True):
        expected = [pillow_augmix.MAGNITUDES[name](level, 64, 32) for level in levels.tolist()]
        np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=name)
    assert float(found[OPERATIONS.index("translate_x")][-1]) == 10
    assert float(found[OPERATIONS.index("translate_y")][-1]) == 21


@pytest.mark.parametrize(("width", "alpha"), [(3, 1.0), (4, 0.5)])
def test_weights_have_the_moments_of_dirichlet_and_beta(width, alpha):
    plans = many_plans(AugMixSettings(width=width, alpha=alpha))
    num = len(plans.keep)
    np.testing.assert_allclose(plans.weights.sum(1), 1, atol=1e-6)
    for values, law in (
        (plans.weights.T, stats.beta(alpha, alpha * (width - 1))),
        (plans.keep[None], stats.beta(alpha, alpha)),
    ):
        fourth = (
            law.moment(4) - 4 * law.mean() * law.moment(3) + 6 * law.mean() ** 2 * law.moment(2) - 3 * law.mean() ** 4
        )
        for row in values:
            assert abs(row.mean() - law.mean()) < 4.5 * law.std() / np.sqrt(num)
            assert abs(row.var() - law.var()) < 4.5 * np.sqrt((fourth - law.var() ** 2) / num)
    covariance = np.cov(plans.weights.T)[0, 1]
    assert covariance == pytest.approx(-1 / (width**2 * (width * alpha + 1)), rel=0.15)
    assert abs(np.corrcoef(plans.weights[:, 0], plans.keep)[0, 1]) < 4.5 / np.sqrt(num)


def test_operations_depths_and_signs_are_uniform():
    plans = many_plans(AugMixSettings())
    depths = np.sum(plans.operations > 0, axis=-1)
    # Chains end: what follows an identity is one.
    assert ((plans.operations > 0) == (np.arange(3) < depths[..., None])).all()
    counts = np.bincount(plans.operations[plans.operations > 0], minlength=len(OPERATIONS))[1:]
    assert stats.chisquare(counts).pvalue > 1e-5
    assert stats.chisquare(np.bincount(depths.ravel(), minlength=4)[1:]).pvalue > 1e-5
    shears = plans.magnitudes[plans.operations == OPERATIONS.index("shear_x")]
    assert stats.kstest(np.abs(shears), stats.uniform(0.003, 0.087).cdf).pvalue > 1e-5
    assert stats.binomtest(int((shears > 0).sum()), len(shears)).pvalue > 1e-5
    assert (plans.magnitudes[plans.operations == OPERATIONS.index("solarize")] > 256 - 77).all()
    fixed = many_plans(AugMixSettings(severity=1, width=2, depth=5), num=50)
    assert fixed.operations.shape == (50, 2, 5)
    assert (fixed.operations > 0).all()


def test_weights_of_zero_and_one_single_out_the_original_and_each_chain():
    image = to_model(levels_of("phantom_1")[5])
    noisy = jnp.asarray(image) + np.random.default_rng(0).uniform(-0.9, 0.9, image.shape).astype(np.float32) / 256
    rotate, identity, equalize = map(OPERATIONS.index, ("rotate", "identity", "equalize"))
    plan = AugMixPlan(
        jnp.asarray([[identity, identity], [identity, rotate], [equalize, identity]]),
        jnp.asarray([[0.0, 0.0], [0.0, 12.0], [0.0, 0.0]]),
        jnp.zeros(3),
        jnp.asarray(0.0),
    )
    apply = jit_once(apply_plan)
    np.testing.assert_array_equal(apply(noisy, plan._replace(keep=jnp.asarray(1.0))), noisy)
    # Pixels that are no bytes enter the chains as the nearest ones.
    np.testing.assert_array_equal(apply(noisy, plan._replace(weights=jnp.asarray([1.0, 0, 0]))), image)
    for chain, (name, magnitude) in enumerate((("rotate", 12.0), ("equalize", 0)), start=1):
        mixed = apply(noisy, plan._replace(weights=jnp.eye(3)[chain]))
        expected = pillow_augmix.apply(to_bytes(image), name, magnitude).astype(int)
        assert np.abs(np.asarray(to_bytes(mixed)).astype(int) - expected).max() <= 1
    half = apply(noisy, plan._replace(weights=jnp.asarray([1.0, 0, 0]), keep=jnp.asarray(0.5)))
    np.testing.assert_allclose(half, (noisy + image) / 2, atol=1e-6)


def test_one_trace_serves_all_images_and_a_key_decides():
    traces = []

    @jit_once
    def batch(keys, images):
        traces.append(1)  # as often as the function is traced
        return jax.vmap(lambda key, image: augmix(key, image, AugMixSettings()))(keys, images)

    images = to_model(levels_of("phantom_3"))
    keys = jax.random.split(jax.random.key(3), NUM)
    first = np.asarray(batch(keys, images))
    assert (first.shape, first.dtype) == (images.shape, np.float32)
    assert first.min() >= -1
    assert first.max() <= 1
    np.testing.assert_array_equal(batch(keys, images), first)
    np.testing.assert_array_equal(batch(keys[::-1], images[::-1]), first[::-1])
    assert np.abs(np.asarray(batch(jax.random.split(jax.random.key(4), NUM), images)) - first).mean() > 0.01
    assert len(traces) == 1
    # Alone as in a batch.
    alone = jit_once(functools.partial(augmix, settings=AugMixSettings()))(keys[7], images[7])
    np.testing.assert_allclose(alone, first[7], atol=1e-6)


def test_more_severity_changes_more():
    images = to_model(levels_of("phantom_1"))
    keys = [jax.random.split(jax.random.key(seed), NUM) for seed in range(8)]
    changes = [
        np.mean([(mixtures(AugMixSettings(severity))(key, images)[1] - images) ** 2 for key in keys])
        for severity in (1, 3, 10)
    ]
    assert changes == sorted(changes)
    assert changes[-1] > 1.5 * changes[0]


divergence = jax.jit(jensen_shannon)
pulls = jax.jit(jax.grad(jensen_shannon, argnums=(0, 1, 2)))


def entropy(p):
    return stats.entropy([p, 1 - p])


@pytest.mark.parametrize("views", [2, 3, 5])
def test_jensen_shannon_is_entropy_of_the_mean_less_mean_entropy(views):
    logits = np.random.default_rng(0).normal(0, 3, (views, 6, 4)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(float)))
    expected = np.mean(entropy(p.mean(0)) - entropy(p).mean(0))
    assert expected > 0.01
    assert float(divergence(*logits)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(*logits[::-1])) == pytest.approx(expected, rel=1e-5)
    for scale in (1.0, 30.0, 1e4):
        assert float(divergence(*[jnp.asarray(scale * logits[0])] * views)) == 0


def test_jensen_shannon_is_bounded_and_finite_at_any_logit():
    far = jnp.full((1, 2), 1e4)
    assert float(divergence(far, -far)) == pytest.approx(np.log(2), rel=1e-6)
    assert float(divergence(far, -far, -far)) == pytest.approx(entropy(1 / 3), rel=1e-6)
    wild = np.random.default_rng(1).normal(0, 100, (3, 500, 2)).astype(np.float32)
    assert 0 < float(divergence(*wild)) < np.log(2)
    for gradient in pulls(far, -far, jnp.zeros((1, 2))):
        assert np.isfinite(gradient).all()
    # Steps against the gradient bring views together.
    pull = pulls(jnp.full((1, 2), 2.0), jnp.full((1, 2), -1.0), jnp.full((1, 2), 0.5))
    assert (pull[0] > 0).all()
    assert (pull[1] < 0).all()


@pytest.mark.parametrize("views", [[np.zeros(3)], [np.zeros(3), np.zeros(2)], []])
def test_views_that_cannot_be_compared_are_refused(views):
    with pytest.raises(RequestError, match="views of jensen_shannon"):
        jensen_shannon(*map(jnp.asarray, views))


@pytest.mark.parametrize(
    "field",
    [{"severity": 0}, {"severity": 11}, {"severity": 2.5}, {"width": 0}, {"depth": 0}, {"depth": -2}, {"depth": 1.5}, {"alpha": 0}, {"alpha": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field):
    (name,) = field
    with pytest.raises(RequestError, match=rf"augmix\.{name}"):
        AugMixSettings(**field)
