"""Layers that the networks share. Batch in, batch out; channels last."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def timestep_embedding(
    t: Float[Array, " n"],
    size: int,
    *,
    max_period: float = 10_000.0,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0.0,
) -> Float[Array, "n size"]:
    """Sinusoidal embedding of times in [0, 999] (Vaswani et al. 2017, section 3.5), in float32.

    Args:
      size: even number of features.
      flip_sin_to_cos: cosines first.
      freq_shift: subtracted from the number of frequencies in the exponent's denominator.
    """
    half = size // 2
    exponent = -jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)
