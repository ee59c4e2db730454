"""Convolutions whose gradient by the filter is fast on CPUs too."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

PIXELS = 1000  # that the products of one part are summed over: XLA's CPU kernels slow down over longer sums
LEAST_SIDE = 24  # of images whose convolutions gain by parts, with as many channels as this:
LEAST_CHANNELS = 64
MAX_PARTS = 64  # each is compiled by itself
_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _correlate(x: Array, kernel: Array, padding: Sequence[tuple[int, int]]) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_NUMBERS)


def _filter_gradient(x: Array, grad: Array, size: tuple[int, int], padding: Sequence[tuple[int, int]]) -> Array:
    """Gradient by a filter of `size`, as XLA has it."""
    zeros = jnp.zeros((*size, x.shape[-1], grad.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: _correlate(x, kernel, padding), zeros)[1](grad)[0]


def _filter_gradient_in_parts(
    x: Array, grad: Array, size: tuple[int, int], padding: Sequence[tuple[int, int]]
) -> Array:
    """The same sum over images and pixels, some of them at a time."""
    n, height, width, _ = grad.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    images, rows = max(1, PIXELS // (height * width)), min(height, max(1, PIXELS // width))
    while -(-n // images) * -(-height // rows) > MAX_PARTS:
        images, rows = (images, 2 * rows) if rows < height else (2 * images, rows)
    total = jnp.zeros((*size, x.shape[-1], grad.shape[-1]), x.dtype)
    for i in range(0, n, images):
        for j in range(0, height, rows):
            part = grad[i : i + images, j : j + rows]
            seen = x[i : i + images, j : j + part.shape[1] + size[0] - 1]
            total += _filter_gradient(seen, part, size, ((0, 0), (0, 0)))
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    return _correlate(x, kernel, padding)


def _forward(x: Array, kernel: Array, padding: tuple[tuple[int, int], ...]) -> tuple[Array, tuple[Array, Array]]:
    return _correlate(x, kernel, padding), (x, kernel)


def _backward(padding: tuple[tuple[int, int], ...], kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = kept
    by_input = jax.vjp(lambda x: _correlate(x, kernel, padding), x)[1](grad)[0]
    options: dict[str, Any] = {"size": kernel.shape[:2], "padding": padding}
    whole = functools.partial(_filter_gradient, **options)
    by_filter = lax.platform_dependent(
        x, grad, cpu=functools.partial(_filter_gradient_in_parts, **options), default=whole
    )
    return by_input, by_filter


_convolve.defvjp(_forward, _backward)


def training_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n k l d"]:
    """`jax.lax.conv_general_dilated` for Flax's layers, with reverse derivatives alone where it is ours."""
    gains = min(x.shape[1:3]) >= LEAST_SIDE and x.shape[-1] >= LEAST_CHANNELS and x.dtype == jnp.float32
    dilated = any(rate != 1 for name in ("lhs_dilation", "rhs_dilation") for rate in options.get(name) or ())
    if not gains or dilated or max(strides) > 1 or kernel.shape[:2] == (1, 1) or kernel.shape[2] != x.shape[-1]:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve(x, kernel, tuple(tuple(sides) for sides in padding))
