"""Joins a process and a network: what the network is told, what its output means, and the loss that makes it so."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.errors import one_of
from ..core.types import Image, Images, Key, Keys, Network, ScoreFn, Time
from .grid import log_snr, time_at_log_snr
from .preconditioning import PREDICTIONS, combine, preconditioning
from .sde import T_MIN_DENSITY, Marginal, Process

WEIGHTINGS = ("simple", "likelihood")


def make_score_fn(sde: Process, model: Network, params: Any, *, prediction: str = PREDICTIONS[0]) -> ScoreFn:
    """Score of one image at one time, -noise / std(t) (Song et al. 2021, App. C), by a network that predicts something.

    Args:
      prediction: one of `PREDICTIONS`; see `preconditioning`.
    """
    how = preconditioning(prediction)

    def score_fn(x: Image, t: Time) -> Image:
        net = model.apply({"params": params}, how.scale_in(sde, t) * x[None], how.time(sde, t)[None])[0]
        at = sde.marginal(t)
        return -combine(how.skip(at), x, how.out(at), net) / at.std

    return score_fn


def draw_times(sde: Process, count: int, *, key: Key, t_min: float, weighting: str) -> Float[Array, " count"]:
    """Times of a batch: uniform, or with density proportional to g^2 / std^2.

    The latter makes the plain loss the likelihood-weighted one, lambda = g^2, by importance sampling (Song et al. 2021,
    arXiv:2101.09258). As g^2 / std^2 = -d log-SNR / dt for every linear process, it is uniform in log-SNR (Kingma et
    al. 2021, arXiv:2107.00630).
    """
    if weighting == "simple":
        return jax.random.uniform(key, (count,), minval=t_min, maxval=1.0)
    # The inverse of its distribution function, on the host in float64; linear between so many points is exact enough.
    quantiles = np.linspace(log_snr(sde, t_min), log_snr(sde, 1.0), 4097)
    table = np.clip(time_at_log_snr(sde, quantiles), t_min, 1.0).astype(np.float32)
    place = jax.random.uniform(key, (count,), maxval=len(table) - 1.0)
    return jnp.interp(place, jnp.arange(len(table), dtype=place.dtype), jnp.asarray(table))


class DsmLosses(NamedTuple):
    """Loss of each image of a batch and the time it was taken at; their mean is the loss."""

    t: Float[Array, " n"]
    per_image: Float[Array, " n"]


def dsm_losses(
    sde: Process,
    model: Network,
    params: Any,
    images: Images,
    *,
    key: Key | Keys,
    t_min: float = T_MIN_DENSITY,
    weighting: str = WEIGHTINGS[0],
    prediction: str = PREDICTIONS[0],
) -> DsmLosses:
    """Denoising score matching (paper eq. 4): the mean of (net - target)^2 over each image, at a time of its own.

    The target is the noise, or what else `prediction` names.

    Args:
      images: (n, h, w, c) in model range, dequantised by the caller.
      key: one, or an array of one for each image, so that no image's time and noise depend on its batch; dropout's
        masks do.
      t_min: lower end of the times, in (0, 1).
      weighting: "simple", lambda = std^2 with t uniform; or "likelihood", lambda = g^2 divided by the mean over t of
        g^2 / std^2, so that losses and learning rates keep their size, with t drawn by importance. Of a network that
        predicts the noise; of others it weights their own loss by the noise's g^2 / std^2.
      prediction: one of `PREDICTIONS`.
    """
    one_of("weighting", weighting, WEIGHTINGS)
    keys = key if key.ndim else jax.random.split(key, len(images))
    keys_t, keys_noise, keys_dropout = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    t = jax.vmap(lambda key: draw_times(sde, 1, key=key, t_min=t_min, weighting=weighting)[0])(keys_t)
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys_noise)
    how = preconditioning(prediction)
    at, factor = sde.marginal(t), how.scale_in(sde, t)
    (scale, std), factor = (m[:, None, None, None] for m in at), factor[:, None, None, None]
    at = Marginal(scale, std)
    x = factor * (scale * images + std * noise)
    net = model.apply({"params": params}, x, how.time(sde, t), train=True, rngs={"dropout": keys_dropout[0]})
    target = combine(how.data(at), images, how.noise_part(at), noise)
    return DsmLosses(t, jnp.mean((net - target) ** 2, axis=(1, 2, 3)))
