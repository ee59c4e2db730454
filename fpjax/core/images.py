"""Bytes and model range.

The maps take NumPy arrays on the host and JAX arrays, traced ones too, by the same expression; `dequantize` draws, so
it is JAX only.
"""

from typing import TypeVar

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, UInt8

from .types import Key

AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def to_model(images: UInt8[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """Bytes to float32 in model range (-1, 1), each at the middle of its bin: (u + 0.5)/128 - 1."""
    return (images.astype(np.float32) + 0.5) / 128 - 1


def to_bytes(images: Float[AnyArray, "..."]) -> UInt8[AnyArray, "..."]:
    """Model range to the nearest byte, clipped to 0..255; undoes `to_model` exactly.

    Byte u is the bin u <= 128 (x + 1) < u + 1, so a tie goes up; the cast truncates, and that is its floor.
    """
    return ((images + 1) * 128).clip(0, 255).astype(np.uint8)


def dequantize(key: Key, images: UInt8[np.ndarray | Array, "..."]) -> Float[Array, "..."]:
    """Bytes to float32 in model range [-1, 1], uniform in each bin: (u + uniform[0, 1))/128 - 1.

    Every channel gets its own noise: grey images repeated to three channels have a proper density only so.
    """
    return (jnp.asarray(images, jnp.float32) + jr.uniform(key, images.shape)) / 128 - 1
