import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from fpjax.core.errors import RequestError
from fpjax.core.images import dequantize, to_bytes, to_model
from fpjax.data.fingerprint import FINGERPRINT_BYTE, FINGERPRINT_VALUE, check_disc, disc_mask, disc_radius, stamp


@pytest.mark.parametrize("side", [16, 28, 64])
def test_disc_is_whole_at_every_center_and_has_the_area_of_a_brute_force_count(side):
    radius = disc_radius(side)
    offsets = range(-side, side + 1)
    area = sum(a * a + b * b <= radius * radius for a in offsets for b in offsets)
    assert area == pytest.approx(np.pi * radius**2, rel=0.1)
    inside = range(radius, side - radius)
    assert all(disc_mask((side, side), (row, col), radius).sum() == area for row in inside for col in inside)
    # One pixel further out it is cut off, so the bounds are the tightest.
    assert disc_mask((side, side), (radius - 1, radius), radius).sum() < area
    assert disc_mask((side, side), (radius, side - radius), radius).sum() < area


def test_disc_radii_of_the_paper_and_of_small_images():
    assert [disc_radius(side) for side in (16, 28, 64, 512)] == [2, 4, 9, 72]


def test_mask_traces_and_agrees_with_the_host():
    centers = np.array([[4, 5], [9, 4], [20, 11]], np.int32)
    traced = jax.jit(jax.vmap(lambda center: disc_mask((28, 16), (center[0], center[1]), 4)))(centers)
    host = np.stack([disc_mask((28, 16), tuple(center), 4) for center in centers.tolist()])
    assert isinstance(disc_mask((28, 16), (4, 5), 4), np.ndarray)
    assert isinstance(traced, jax.Array)
    np.testing.assert_array_equal(traced, host)


@pytest.mark.parametrize("channels", [1, 3])
def test_stamp_changes_the_disc_alone_and_bytes_agree_with_model_range(channels):
    image = np.random.default_rng(0).integers(0, 256, (28, 28, channels), np.uint8)
    before = image.copy()
    mask = disc_mask((28, 28), (7, 20), 4)
    stamped = stamp(image, mask, FINGERPRINT_BYTE)
    assert stamped.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert (stamped[mask] == 128).all()
    np.testing.assert_array_equal(stamped[~mask], image[~mask])
    in_range = jax.jit(stamp)(jnp.asarray(to_model(image)), jnp.asarray(mask), FINGERPRINT_VALUE)
    assert in_range.dtype == jnp.float32
    np.testing.assert_array_equal(in_range, to_model(np.asarray(stamped)))


@pytest.mark.parametrize("xp", [np, jnp])
def test_bytes_survive_the_way_to_model_range_and_back(xp):
    every = xp.arange(256, dtype=xp.uint8)
    x = to_model(every)
    assert x.dtype == np.float32
    assert float(x[0]) == 0.5 / 128 - 1
    assert float(x[255]) == 1 - 0.5 / 128
    np.testing.assert_array_equal(to_bytes(x), every)
    # Anything less than half a grey level away is the same byte; beyond the ends it is clipped.
    np.testing.assert_array_equal(to_bytes(x + 0.49 / 128), every)
    np.testing.assert_array_equal(to_bytes(x - 0.49 / 128), every)
    np.testing.assert_array_equal(to_bytes(xp.asarray([-1.5, 1.0, 7.0], xp.float32)), [0, 255, 255])


def test_dequantize_is_uniform_in_each_bin_and_differs_between_channels():
    images = np.random.default_rng(0).integers(0, 256, (2000, 3), np.uint8)
    x = np.array(dequantize(jr.key(0), images), np.float64)
    noise = (x + 1) * 128 - images
    assert x.dtype == np.float64
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert abs(noise.mean() - 0.5) < 4.5 * np.sqrt(1 / 12 / noise.size)
    assert abs(noise.var() - 1 / 12) < 4.5 * np.sqrt(1 / 180 / noise.size)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1]).item(1)) < 4.5 / np.sqrt(len(noise))
    np.testing.assert_array_equal(x, dequantize(jr.key(0), images))
    assert (x != np.asarray(dequantize(jr.key(1), images))).mean() > 0.99


@pytest.mark.parametrize(("height", "width", "radius"), [(28, 28, 0), (28, 28, 14), (28, 8, 4), (2, 2, 1)])
def test_discs_that_do_not_fit_are_refused(height, width, radius):
    with pytest.raises(RequestError, match=f"got {radius} for images of {height}x{width} pixels, expected"):
        check_disc(height, width, radius)
    check_disc(2 * radius + 1, 28 + 2 * radius, max(radius, 1)) if radius else check_disc(3, 3, 1)
