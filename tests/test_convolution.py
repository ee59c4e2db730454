"""Gradients of convolutions by their filters, in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.models.convolution import training_convolution


@pytest.mark.parametrize(
    ("shape", "width", "size"), [((3, 28, 28, 64), 8, 3), ((2, 40, 32, 64), 4, 5), ((70, 24, 24, 64), 2, 3)]
)
def test_filter_gradients_in_parts_are_the_whole_ones(shape, width, size):
    keys, pad = jax.random.split(jax.random.key(0), 3), (size // 2, size // 2)
    x, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (size, size, shape[-1], width))
    grad = jax.random.normal(keys[2], (*shape[:3], width))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def gradients(convolve):
        return jax.vjp(lambda x, kernel: convolve(x, kernel, (1, 1), (pad, pad), **options), x, kernel)[1](grad)

    found, expected = (
        jax.jit(gradients, static_argnums=0)(training_convolution),
        gradients(jax.lax.conv_general_dilated),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))
