"""The perfect memoriser: exact score of the noised training set, a Gaussian mixture at the training images.

Its sampler reproduces training images only, each with probability 1/N; density and return probability are closed
forms. Every stage is checked against it, and every run audits it beside the trained model.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from ..core.types import Image, Images, Key, Scalar, ScoreFn, Time
from .sde import Process


def _log_weights(sde: Process, images: Images, x: Image, t: Time, width: float) -> jax.Array:
    """Unnormalised log posterior of the training images given x_t, without its part that depends on x alone."""
    scale, std = sde.marginal(t)
    center = jnp.mean(images, axis=0)
    flat = (images - center).reshape(len(images), -1)
    # |y - m|^2 / 2 up to |y|^2 / 2, as a matrix product: rows of differences would need memory for n images each.
    dots = jnp.dot(flat, (x - scale * center).reshape(-1), precision="highest")
    return (scale * dots - 0.5 * scale**2 * jnp.sum(flat**2, axis=1)) / (scale**2 * width**2 + std**2)


def empirical_score_fn(sde: Process, images: Images, *, width: float = 0.0) -> ScoreFn:
    """Exact score of the mixture with a component of standard deviation `width` at each image.

    Args:
      images: (n, h, w, c) in model range.
      width: 0 for the training set itself; likelihoods need about 0.02 to 0.05, or the density is singular.
    """

    def score_fn(x: Image, t: Time) -> Image:
        logits = _log_weights(sde, images, x, t, width)
        # Softmax, but safe where logits of 1e10 are rounded differently in two places of the compiled code: the
        # largest has weight 1 by decree, and none more.
        best = jnp.arange(len(images)) == jnp.argmax(logits)
        weights = jnp.where(best, 1.0, jnp.exp(jnp.minimum(logits - jnp.max(logits), 0.0)))
        weights = weights / jnp.sum(weights)
        scale, std = sde.marginal(t)
        mean = jnp.tensordot(weights, images, axes=1, precision="highest")
        return (scale * mean - x) / (scale**2 * width**2 + std**2)

    return score_fn


def empirical_log_density(sde: Process, images: np.ndarray, x: np.ndarray, *, t: float, width: float) -> float:
    """Log density of the noised mixture at time t, in nats; float64 on the host."""
    scale, std = sde.marginal(np.float64(t))
    variance = scale**2 * width**2 + std**2
    squares = np.sum((np.float64(x) - scale * np.float64(images)) ** 2, axis=tuple(range(1, images.ndim)))
    exponents = -0.5 * squares / variance - 0.5 * x.size * np.log(2 * np.pi * variance)
    return float(np.logaddexp.reduce(exponents) - np.log(len(images)))


def return_probability(
    sde: Process, images: Images, row: int, t: Time, *, key: Key, num_draws: int = 4096
) -> tuple[Scalar, Scalar]:
    """Probability that the exact reverse SDE takes image `row`, noised to t, back to itself; with standard error.

    Given x_t the reverse SDE ends at each training image with its posterior probability, so this is the mean
    posterior weight over draws of x_t.
    """
    scale, std = sde.marginal(t)

    def weight(key: Key) -> Scalar:
        x = scale * images[row] + std * jax.random.normal(key, images.shape[1:])
        logits = _log_weights(sde, images, x, t, 0.0)
        return jnp.exp(logits[row] - logsumexp(logits))

    weights = jax.lax.map(weight, jax.random.split(key, num_draws), batch_size=256)
    return jnp.mean(weights), jnp.std(weights) / jnp.sqrt(num_draws)


def nearest_image(x: Float[Array, "k h w c"], images: Images) -> Int[Array, " k"]:
    """Row of the nearest training image to each of (k, h, w, c) images, by Euclidean distance."""
    flat, rows = images.reshape(len(images), -1), x.reshape(len(x), -1)
    return jnp.argmin(jnp.sum(flat**2, axis=1) - 2 * jnp.dot(rows, flat.T, precision="highest"), axis=1)
