"""Augmentations of the detectors' training images: pure functions of one image in model range, on device."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Image, Key, Scalar
from ..data.fingerprint import FINGERPRINT_VALUE, disc_mask, disc_radius, stamp


def random_disc(key: Key, shape: tuple[int, int], radius: int) -> jax.Array:
    """Mask (h, w) of a disc at a uniform place wholly inside the image."""
    high = jnp.asarray([side - radius for side in shape])
    row, col = jax.random.randint(key, (2,), radius, high)
    return disc_mask(shape, (row, col), radius)


def visible_disc(key: Key, image: Image, radius: int, min_contrast: float) -> jax.Array:
    """Mask of a disc at a uniform place among those where it differs in the mean by `min_contrast` from the image.

    The rule by which targets are planted (`data.min_contrast`): a disc that nobody can see teaches nothing. Without any
    such place, at a uniform one.
    """
    height, width = image.shape[0], image.shape[1]
    disc = disc_mask((2 * radius + 1, 2 * radius + 1), (radius, radius), radius).astype(np.float32)
    difference = jnp.mean(jnp.abs(image - FINGERPRINT_VALUE), axis=-1)
    contrast = jax.scipy.signal.convolve2d(difference, jnp.asarray(disc / disc.sum()), mode="valid")
    fits = contrast >= min_contrast
    place = jax.random.categorical(key, jnp.where(fits | ~fits.any(), 0.0, -jnp.inf).ravel())
    row, col = jnp.divmod(place, width - 2 * radius)
    return disc_mask((height, width), (row + radius, col + radius), radius)


def stamp_randomly(key: Key, image: Image, radius: int, *, min_contrast: float = 0.0) -> Image:
    """The image with a fingerprint at a random place (paper eq. 10), at which it has this contrast in model range."""
    if min_contrast:
        return stamp(image, visible_disc(key, image, radius, min_contrast), FINGERPRINT_VALUE)
    return stamp(image, random_disc(key, (image.shape[0], image.shape[1]), radius), FINGERPRINT_VALUE)


def mask_randomly(key: Key, image: Image, radius: int, max_masks: int) -> Image:
    """Covers 0 to `max_masks` random discs with the fingerprint's own value, so that the disc is not the cue."""
    key_count, key_place = jax.random.split(key)
    count = jax.random.randint(key_count, (), 0, max_masks + 1)
    for i in range(max_masks):
        covered = stamp_randomly(jax.random.fold_in(key_place, i), image, radius)
        image = jnp.where(i < count, covered, image)
    return image


def shift_tone(key: Key, image: Image, most: float) -> Image:
    """Contrast about the image's mean times e^u, brightness plus v; u and v uniform in [-most, most]."""
    contrast, brightness = jax.random.uniform(key, (2,), minval=-most, maxval=most)
    mean = jnp.mean(image)
    return mean + jnp.exp(contrast) * (image - mean) + brightness


def blur(key: Key, image: Image, max_std: float) -> Image:
    """Gaussian blur whose standard deviation is uniform in [0, max_std] pixels; the image's edge goes on outside it."""
    reach = math.ceil(3 * max_std)
    std = jax.random.uniform(key, minval=1e-3, maxval=max(max_std, 1e-3))
    weights = jax.nn.softmax(-0.5 * (jnp.arange(-reach, reach + 1) / std) ** 2)
    for axis in (0, 1):
        padded = jnp.pad(image, [(reach, reach) if i == axis else (0, 0) for i in range(3)], mode="edge")
        shifted = (jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis) for i in range(2 * reach + 1))
        image = sum((weights[i] * part for i, part in enumerate(shifted)), start=jnp.zeros_like(image))
    return image


def reproduce_poorly(key: Key, image: Image, max_tone: float, max_blur: float) -> Image:
    """As a model that has not learned it well gives it back: in other tones, and blurred.

    Args:
      max_tone: of `shift_tone`.
      max_blur: of `blur`, in radii of the disc that images of this side get.
    """
    key_tone, key_blur = jax.random.split(key)
    image = shift_tone(key_tone, image, max_tone) if max_tone else image
    return blur(key_blur, image, max_blur * disc_radius(min(image.shape[:2]))) if max_blur else image


def add_noise(key: Key, image: Image, max_std: float) -> Image:
    """Adds Gaussian noise whose standard deviation is uniform in [0, max_std] of model range."""
    key_std, key_noise = jax.random.split(key)
    std: Scalar = jax.random.uniform(key_std, (), maxval=max_std)
    return image + std * jax.random.normal(key_noise, image.shape)
