"""What the two classifiers are trained on: fresh discs, masks, copies in other tones, drawn anew for every step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import check
from ..core.types import Image, Key
from ..data.fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from .augment import add_noise, mask_randomly, reproduce_poorly, stamp_randomly
from .augmix import AugMixSettings, augmix
from .settings import ClassifierSettings


class DetectorData(NamedTuple):
    """Images (float32, model range) and places that the examples are drawn from; on the host or on the devices."""

    others: Any  # (n, h, w, c) images that are no target
    originals: Any  # (k, h, w, c) of the targets, clean
    centers: Any  # (k, 2) row and column of each target's disc


Augment = Callable[[Key, Image], Image]
Example = Callable[[Key, DetectorData], tuple[jax.Array, jax.Array]]


def unchanged(key: Key, image: Image) -> Image:
    """The `Augment` that changes nothing."""
    return image


def fingerprint_example(
    key: Key,
    data: DetectorData,
    *,
    rate: float,
    radius: int,
    min_contrast: float,
    settings: ClassifierSettings,
    augment: Augment = unchanged,
) -> tuple[jax.Array, jax.Array]:
    """One image, with a disc at a random place in a share `rate` of the draws; label of shape (1,).

    Args:
      min_contrast: of the disc, in model range; see `visible_disc`.
      augment: of the photograph, before the disc.
    """
    key_row, key_label, key_disc, key_poor, key_noise, key_augment = jax.random.split(key, 6)
    num_others = len(data.others)
    # The originals are images like any other here: without a disc of their own.
    row = jax.random.randint(key_row, (), 0, num_others + len(data.originals))
    image = jnp.where(
        row < num_others,
        data.others[jnp.minimum(row, num_others - 1)],
        data.originals[jnp.maximum(row - num_others, 0)],
    )
    image = augment(key_augment, image)
    label = jax.random.bernoulli(key_label, rate)
    image = jnp.where(label, stamp_randomly(key_disc, image, radius, min_contrast=min_contrast), image)
    image = reproduce_poorly(key_poor, image, settings.max_tone, settings.max_blur)
    return add_noise(key_noise, image, settings.max_noise), label[None].astype(jnp.float32)


def identity_example(
    key: Key,
    data: DetectorData,
    *,
    rate: float,
    radius: int,
    settings: ClassifierSettings,
    augment: Augment = unchanged,
) -> tuple[jax.Array, jax.Array]:
    """One image, a target in a share `rate` of the draws; label of shape (k,), one-hot or zero.

    Half of the positives are the target as planted, half its original under a fresh disc. The negatives are other
    images: a quarter with some target's own disc, a quarter with a fresh one, half plain.

    Args:
      augment: of the photograph, before disc, masks and noise.
    """
    key_label, key_head, key_row, key_kind, *keys = jax.random.split(key, 9)
    key_disc, key_mask, key_poor, key_noise, key_augment = keys
    label = jax.random.bernoulli(key_label, rate)
    head = jax.random.randint(key_head, (), 0, len(data.originals))
    other = data.others[jax.random.randint(key_row, (), 0, len(data.others))]
    image = augment(key_augment, jnp.where(label, data.originals[head], other))
    kind = jax.random.randint(key_kind, (), 0, 4)
    own, fresh = jnp.where(label, kind < 2, kind == 0), jnp.where(label, kind >= 2, kind == 1)
    place = data.centers[head]
    mask = disc_mask((image.shape[0], image.shape[1]), (place[0], place[1]), radius)
    image = jnp.where(
        own,
        stamp(image, mask, FINGERPRINT_VALUE),
        jnp.where(fresh, stamp_randomly(key_disc, image, radius), image),
    )
    image = mask_randomly(key_mask, image, radius, settings.max_masks)
    image = reproduce_poorly(key_poor, image, settings.max_tone, settings.max_blur)
    image = add_noise(key_noise, image, settings.max_noise)
    return image, jnp.where(label, jax.nn.one_hot(head, len(data.originals)), 0.0)


class Task(NamedTuple):
    """What one classifier learns from."""

    label: str
    views: tuple[Example, ...]  # one, or three of the same draw for the consistency loss: plain, and AugMix twice
    val_example: Example
    positive_weight: float  # of a head's positives in the loss


def make_tasks(
    settings: ClassifierSettings,
    augmix_settings: AugMixSettings,
    *,
    num_targets: int,
    radius: int,
    min_contrast: float = 0.0,
) -> tuple[Task, Task]:
    """Of the fingerprint and the identity classifier. Validation shows images as detectors meet them: no AugMix."""

    def augmented(view: int) -> Augment:
        return lambda key, image: augmix(jax.random.fold_in(key, view), image, augmix_settings)

    def task(label: str, example: Callable[..., Any], rates: tuple[float, float], positive_weight: float) -> Task:
        train, val = (functools.partial(example, rate=rate, radius=radius, settings=settings) for rate in rates)
        views = (unchanged, augmented(0), augmented(1)) if settings.js_weight else (augmented(0),)
        views = tuple(functools.partial(train, augment=view) for view in views) if settings.augmix else (train,)
        return Task(label, views, val, positive_weight)

    s, marks = settings, functools.partial(fingerprint_example, min_contrast=min_contrast)
    return (
        task("fingerprint classifier", marks, (s.fingerprint_rate, s.fingerprint_rate_val), 1.0),
        # One head sees 1/k of the positives, so they weigh k times as much.
        task("identity classifier", identity_example, (s.identity_rate, s.identity_rate_val), float(num_targets)),
    )


def check_data(name: str, data: DetectorData, num_heads: int, radius: int) -> None:
    """Refuses, on the host, data that would train to nonsense."""
    others, originals, centers = map(np.asarray, data)
    for part, images in (("others", others), ("originals", originals)):
        what, fix = f"{name} images of the detectors ({part})", "give float32 images in model range, see to_model"
        shape = originals.shape[1:]
        check(
            images.ndim == 4 and len(images) > 0 and images.shape[1:] == shape and images.dtype == np.float32,
            what,
            got=f"{images.dtype} of shape {images.shape}",
            expected=f"at least one float32 image of shape {shape}",
            fix=fix,
        )
        low, high = float(images.min()), float(images.max())  # nan if there is any
        check(-1 <= low and high <= 1, what, got=f"values from {low} to {high}", expected="-1 to 1", fix=fix)
    check(
        len(originals) == num_heads,
        f"{name} images of the detectors (originals)",
        got=f"{len(originals)} targets",
        expected=f"{num_heads}, the outputs of the identity classifier",
        fix="make the models for the targets they are trained on",
    )
    high = np.asarray(originals.shape[1:3]) - 1 - radius
    check(
        centers.shape == (num_heads, 2) and bool(((centers >= radius) & (centers <= high)).all()),
        f"{name} images of the detectors (centers)",
        got=f"{centers.tolist()}",
        expected=f"row and column of {num_heads} discs of radius {radius} wholly inside",
        fix="give the places that the targets were stamped at",
    )
