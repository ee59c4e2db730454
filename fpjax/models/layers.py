"""Layers that the networks share. Batch in, batch out; channels last."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from .kernels import LANES, fused_norm

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # that networks compute in


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
    exponent = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    # At t = 999 the last bit of a frequency is 6e-5 of a radian, so it must not depend on a compiler's exp.
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)


def fourier_embedding(t: Float[Array, " n"], frequencies: Float[Array, " m"]) -> Float[Array, "n 2*m"]:
    """Sines, then cosines, of 2 pi log(t) times each frequency (Song et al. 2021, App. C); t > 0, in float32."""
    angles = 2 * jnp.pi * jnp.log(t.astype(jnp.float32))[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def repeat(x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c"]:
    """Every pixel four times: nearest-neighbour resize to the double side."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def halve(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Mean over squares of four pixels."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018, arXiv:1803.08494) in float32, and what comes before and after it.

    The variance is that of the differences from the mean: mean squares minus squared means lose it to rounding where a
    group is nearly constant.

    Attributes:
      kernel: compute type of what follows, for one kernel that does all (`kernels.fused_norm`); None: as XLA fuses it.
    """

    num_groups: int
    epsilon: float
    kernel: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], shift: Float[Array, "n c"] | None = None, *, silu: bool = False
    ) -> Float[Array, "n h w c"]:
        """Args: x: of any float type; shift: added before the norm; silu: taken of its result, which is float32."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        if self.kernel and c // self.num_groups <= LANES:
            moved = jnp.zeros((len(x), c)) if shift is None else shift.astype(jnp.float32)
            pixels = x.reshape(len(x), -1, c)
            norm: Any = fused_norm(pixels, moved, scale, bias, self.num_groups, self.epsilon, silu, DTYPES[self.kernel])
            return norm.reshape(x.shape)
        x = (x if shift is None else x + shift[:, None, None, :]).astype(jnp.float32)

        def over_group(per_channel: Float[Array, "n c"]) -> Float[Array, "n c"]:
            groups = per_channel.reshape(-1, self.num_groups, c // self.num_groups)
            return jnp.repeat(jnp.mean(groups, axis=-1), c // self.num_groups, axis=-1)

        x = x - over_group(jnp.mean(x, axis=(1, 2)))[:, None, None, :]
        variance = over_group(jnp.mean(jnp.square(x), axis=(1, 2)))
        y = x * (jax.lax.rsqrt(variance + self.epsilon) * scale)[:, None, None, :] + bias
        return nn.silu(y) if silu else y
