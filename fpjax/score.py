"""Joins a process and a network: the network predicts the noise, the score is minus that over the std."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .sde import T_MIN_DENSITY, SubVP
from .types import Image, Images, Key, Scalar, ScoreFn, Time

TIME_SCALE = 999.0  # the network's time input at t = 1 (score_sde's convention for continuous models)


def make_score_fn(sde: SubVP, model: nn.Module, params: Any) -> ScoreFn:
    """Score of one image at one time: -net(x, 999 t) / std(t) (Song et al. 2021, App. C)."""

    def score_fn(x: Image, t: Time) -> Image:
        net = model.apply({"params": params}, x[None], TIME_SCALE * t[None])[0]
        return -net / sde.marginal(t).std

    return score_fn


def dsm_loss(
    sde: SubVP, model: nn.Module, params: Any, images: Images, *, key: Key, t_min: float = T_MIN_DENSITY
) -> Scalar:
    """Denoising score matching (paper eq. 4 with lambda = std^2): mean of (net - noise)^2, t uniform.

    Args:
      images: (n, h, w, c) in model range, dequantised by the caller.
      t_min: lower end of the times, in (0, 1).
    """
    key_t, key_noise, key_dropout = jax.random.split(key, 3)
    t = jax.random.uniform(key_t, (len(images),), minval=t_min, maxval=1.0)
    noise = jax.random.normal(key_noise, images.shape)
    scale, std = (m[:, None, None, None] for m in sde.marginal(t))
    net = model.apply(
        {"params": params}, scale * images + std * noise, TIME_SCALE * t, train=True, rngs={"dropout": key_dropout}
    )
    return jnp.mean((net - noise) ** 2)  # pyright: ignore[reportOperatorIssue]
