"""Detection without classifiers: is an image nearer to the target than to its nearest other training images?

The measure of extraction attacks (Carlini et al. 2023, arXiv:2301.13188): a Euclidean distance alone would call every
plain or dark image a copy, so that to the target is taken relative to the image's nearest training images. That
absolute distance is offered too: it needs no training images, and its false hits are measured like any other's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.types import DetectFn, Images, Scores
from .base import Detector
from .settings import ClassifierSettings

# Sets of images beside those that are looked at, each with a count of its own.
Targets = Float[Array, "heads h w c"]
References = Float[Array, "references h w c"]


def distances(targets: Targets, images: Images) -> Scores:
    """Euclidean distance of each image to each target, (n, targets)."""
    return jax.lax.map(lambda target: jnp.sqrt(jnp.sum((images - target) ** 2, axis=(1, 2, 3))), targets).T


def nearest_rows(images: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` images nearest to one, nearest first, by Euclidean distance over bytes; host.

    >>> nearest_rows(np.uint8([[0], [9], [4]]), np.uint8([5]), 2).tolist()
    [2, 1]
    """
    whole = target.astype(np.int64)
    # Image by image, as the differences of all of them would need eight times their memory.
    squares = np.asarray([np.sum((image - whole) ** 2) for image in images], np.int64)
    return np.argsort(squares, kind="stable")[:count]


def nearest_ratios(references: References, targets: Targets, images: Images, *, neighbours: int) -> Scores:
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
    return distances(targets, images) / jnp.maximum(jnp.mean(jnp.sqrt(nearest), axis=1), 1e-6)[:, None]


def _scores(measure: Scores, limit: float) -> tuple[Float[Array, " n"], Scores]:
    """Scores of a `DetectFn`: identity is 1 at a copy, 1/2 at `limit`, 0 from twice that on; no mark is looked for."""
    return jnp.ones(len(measure)), jnp.clip(1.0 - 0.5 * measure / limit, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames=("neighbours", "ratio"))
def _ratio_scores(
    weights: tuple[References, Targets], images: Images, *, neighbours: int, ratio: float
) -> tuple[Float[Array, " n"], Scores]:
    """Scores by `nearest_ratios`, 1/2 at `ratio`; of the references and the targets."""
    references, targets = weights
    return _scores(nearest_ratios(references, targets, images, neighbours=neighbours), ratio)


@functools.partial(jax.jit, static_argnames="limit")
def _absolute_scores(targets: Targets, images: Images, *, limit: float) -> tuple[Float[Array, " n"], Scores]:
    """Scores by the root mean square difference of the pixels, with black 0 and white 1; 1/2 at `limit`."""
    return _scores(0.5 * distances(targets, images) / images[0].size ** 0.5, limit)


def make_nearest_detect_fn(references: np.ndarray, targets: np.ndarray, *, neighbours: int, ratio: float) -> DetectFn:
    """Scores by `nearest_ratios`; above a score of 1/2 the ratio is below `ratio`. The fingerprint's score is 1.

    Args:
      references: (n, h, w, c) in model range, at least one.
      targets: (k, h, w, c) in model range, with their discs if they have any.
      neighbours: where there are fewer references, all of them are taken.
    """
    weights, most = (jnp.asarray(references), jnp.asarray(targets)), min(neighbours, len(references))
    return lambda images: _ratio_scores(weights, images, neighbours=most, ratio=ratio)


def make_nearest_detector(references: np.ndarray, targets: np.ndarray, settings: ClassifierSettings) -> Detector:
    """Detector by the distances that `settings.distance` names; arguments as of `make_nearest_detect_fn`."""
    neighbours, stretch = min(settings.neighbours, len(references)), 2 * (1 - settings.threshold)
    weights: Any = jnp.asarray(targets)
    if settings.distance == "absolute":
        detect = functools.partial(_absolute_scores, limit=settings.max_difference)
        what, at, field = "root mean square difference to the target", settings.max_difference, "max_difference"
        unit = "of the range from black to white"
    else:
        weights = jnp.asarray(references), weights
        detect = functools.partial(_ratio_scores, neighbours=neighbours, ratio=settings.ratio)
        what, at, field = "nearest training images: distance to the target", settings.ratio, "ratio"
        unit = f"of the mean to the {neighbours} nearest others"
    text = f"{what} below {stretch * at:.3g} {unit}"
    return Detector(weights, detect, text, marks=False, advice=f"lower classifiers.{field}")
