"""Detection without classifiers: is an image nearer to the target than to its nearest other training images?

The measure of extraction attacks (Carlini et al. 2023, arXiv:2301.13188): a Euclidean distance alone would call every
plain or dark image a copy, so that to the target is taken relative to the image's nearest training images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .augment import add_noise
from .classifier import ClassifierSettings, RealErrors
from .detection import detect_all
from .fingerprint import to_model
from .types import DetectFn, Images, Key, Scores


def nearest_rows(images: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` images nearest to one, nearest first, by Euclidean distance over bytes; host.

    >>> nearest_rows(np.uint8([[0], [9], [4]]), np.uint8([5]), 2).tolist()
    [2, 1]
    """
    whole = target.astype(np.int64)
    # Image by image, as the differences of all of them would need eight times their memory.
    squares = np.asarray([np.sum((image - whole) ** 2) for image in images], np.int64)
    return np.argsort(squares, kind="stable")[:count]


def nearest_ratios(references: Images, targets: Images, images: Images, *, neighbours: int) -> Scores:
    """Distance to each target over the mean distance to the image's nearest references, (n, targets).

    Args:
      references: training images that are no target; those nearest to each image are its neighbours.
      targets: the images that are looked for.
      images: (n, h, w, c) in model range, as are all others.
      neighbours: k, at most as many as there are references.
    """
    center = jnp.mean(references, axis=0)
    refs, rows = ((x - center).reshape(len(x), -1) for x in (references, images))
    # As a matrix product, which needs no memory for n times N differences.
    squares = jnp.sum(rows**2, axis=1)[:, None] - 2 * jnp.dot(rows, refs.T, precision="highest")
    squares = jnp.maximum(squares + jnp.sum(refs**2, axis=1), 0.0)
    nearest = -jax.lax.top_k(-squares, neighbours)[0]
    # Where an image is a copy the products cancel to their rounding: distances to the targets are taken directly.
    own = jax.lax.map(lambda target: jnp.sqrt(jnp.sum((images - target) ** 2, axis=(1, 2, 3))), targets).T
    return own / jnp.maximum(jnp.mean(jnp.sqrt(nearest), axis=1), 1e-6)[:, None]


@functools.partial(jax.jit, static_argnames=("neighbours", "ratio"))
def nearest_scores(
    references: Images, targets: Images, images: Images, *, neighbours: int, ratio: float
) -> tuple[Float[Array, " n"], Scores]:
    """Scores of a `DetectFn`: identity is 1 at a copy, 1/2 at `ratio`, 0 from twice that on; no mark is looked for."""
    ratios = nearest_ratios(references, targets, images, neighbours=neighbours)
    return jnp.ones(len(images)), jnp.clip(1.0 - 0.5 * ratios / ratio, 0.0, 1.0)


def make_nearest_detect_fn(references: np.ndarray, targets: np.ndarray, *, neighbours: int, ratio: float) -> DetectFn:
    """Detector by `nearest_ratios`; above a score of 1/2 the ratio is below `ratio`. The fingerprint's score is 1.

    Args:
      references: (n, h, w, c) in model range, at least one.
      targets: (k, h, w, c) in model range, with their discs if they have any.
      neighbours: where there are fewer references, all of them are taken.
    """
    return functools.partial(
        nearest_scores,
        jnp.asarray(references),
        jnp.asarray(targets),
        neighbours=min(neighbours, len(references)),
        ratio=ratio,
    )


def measure_errors(
    detect: DetectFn,
    images: np.ndarray,
    targets: np.ndarray,
    *,
    key: Key,
    settings: ClassifierSettings,
    draws_per_target: int = 32,
) -> RealErrors:
    """Errors on held-out real images, and on the targets under noise of at most `settings.max_noise`.

    Args:
      images: (n, h, w, c) uint8, held out and no target.
      targets: (k, h, w, c) uint8.
      key: of the noise.
    """
    repeated = jnp.asarray(np.repeat(to_model(targets), draws_per_target, axis=0))
    noisy = jax.vmap(functools.partial(add_noise, max_std=settings.max_noise))(
        jax.random.split(key, len(repeated)), repeated
    )

    def look(images: jax.Array) -> np.ndarray:
        return detect_all(detect, images, np.arange(len(images)))[1] > settings.threshold

    false, found = look(jnp.asarray(to_model(images))), look(noisy)
    own = found[np.arange(len(noisy)), np.repeat(np.arange(len(targets)), draws_per_target)]
    hits = int(false.any(axis=1).sum())
    return RealErrors(
        num_images=len(images),
        fingerprint_missed=0,
        fingerprint_false=0,
        identity_images=len(noisy),
        identity_missed=int((~own).sum()),
        identity_false_images=hits,
        joint_false_images=hits,
        heads=len(targets),
    )
