"""Two kernels for NVIDIA GPUs, in Pallas and Triton: attention over few positions, and group norm with what follows it.

As plain XLA programs both are bound by memory: attention's float32 logits alone are most of the bytes of a forward
pass, and each norm reads its input three times. Here logits never leave the processor, and norm, time shift and SiLU
read their input from the cache. Elsewhere than on CUDA devices the kernels are interpreted, for tests.

Both differentiate in reverse alone: densities, which push tangents forward, take plain XLA.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

LANES = 64  # channels at once; a power of two, as Triton asks of every side
PIXELS = 64  # rows at once
MAX_TOKENS = 1024  # that one processor can hold
MAX_HEAD = 64
DOT_SIDE = 16  # the least that tensor cores multiply


def _call(kernel: Callable[..., None], *args: Array, warps: int, stages: int, **options: Any) -> Any:
    """The kernel where CUDA is, and its interpretation elsewhere; which of them, lowering tells."""

    def call(interpret: bool, *args: Array) -> Any:
        params = plgpu.CompilerParams(num_warps=warps, num_stages=stages)
        return pl.pallas_call(kernel, compiler_params=params, interpret=interpret, **options)(*args)

    compiled, interpreted = functools.partial(call, False), functools.partial(call, True)
    return jax.lax.platform_dependent(*args, cuda=compiled, default=interpreted)


# Group norm: a program has one image and some channels, whole groups of them.


def _lanes(channels: int, group: int) -> int:
    """Channels of one program: as many whole groups as `LANES` hold, and a divisor of all."""
    lanes = group
    while 2 * lanes <= LANES and channels % (2 * lanes) == 0:
        lanes *= 2
    return lanes


class _Part:
    """The channels of one program: loads and stores of vectors and of rows of pixels, and sums over groups."""

    def __init__(self, pixels: int, lanes: int, group: int):
        lane = jnp.arange(LANES)
        self._pixels, self._valid, self._at = pixels, lane < lanes, pl.program_id(1) * lanes + lane
        same = lane[:, None] // group == lane[None, :] // group
        self._same = (same & self._valid[:, None] & self._valid[None, :]).astype(jnp.float32)
        self.num_blocks = pl.cdiv(pixels, PIXELS)

    def over_group(self, values: Array) -> Array:
        """For each lane the sum over its group."""
        return jnp.sum(self._same * values[None, :], axis=1)

    def vector(self, ref: Any) -> Array:
        return plgpu.load(ref.at[self._at], mask=self._valid, other=0.0)

    def put_vector(self, ref: Any, values: Array) -> None:
        plgpu.store(ref.at[self._at], values, mask=self._valid)

    def _rows(self, block: Any) -> tuple[Any, Array]:
        row = block * PIXELS + jnp.arange(PIXELS)
        return (row[:, None], self._at[None, :]), (row < self._pixels)[:, None] & self._valid[None, :]

    def pixels(self, ref: Any, block: Any) -> tuple[Array, Array]:
        """Rows of pixels in float32, and which of them there are."""
        place, mask = self._rows(block)
        return plgpu.load(ref.at[place], mask=mask, other=0.0).astype(jnp.float32), mask

    def put_pixels(self, ref: Any, block: Any, values: Array) -> None:
        place, mask = self._rows(block)
        plgpu.store(ref.at[place], values.astype(ref.dtype), mask=mask)

    def loop(self, body: Callable[[Any, Any], Any], start: Any = 0) -> Any:
        return jax.lax.fori_loop(0, self.num_blocks, body, start)


def _norm_forward(x, shift, scale, bias, out, offset, inverse, *, pixels, lanes, group, epsilon, silu):
    """The result is act((x + offset) inverse scale + bias), with offset = shift - mean of x + shift over the group."""
    part, size, zero = _Part(pixels, lanes, group), pixels * group, jnp.zeros((LANES,), jnp.float32)
    moved = part.vector(shift)
    total = part.loop(lambda i, sums: sums + jnp.sum(part.pixels(x, i)[0], axis=0), zero)
    away = moved - (part.over_group(total) / size + part.over_group(moved) / group)

    def squares(i: Any, sums: Array) -> Array:
        values, mask = part.pixels(x, i)
        return sums + jnp.sum(jnp.where(mask, values + away[None, :], 0.0) ** 2, axis=0)

    inv = jax.lax.rsqrt(part.over_group(part.loop(squares, zero)) / size + epsilon)
    factor, summand = inv * part.vector(scale), part.vector(bias)

    def write(i: Any, carry: int) -> int:
        z = (part.pixels(x, i)[0] + away[None, :]) * factor[None, :] + summand[None, :]
        part.put_pixels(out, i, z * jax.nn.sigmoid(z) if silu else z)
        return carry

    part.loop(write)
    part.put_vector(offset, away)
    part.put_vector(inverse, inv)


def _norm_backward(x, grad, offset, inverse, scale, bias, dx, dscale, dbias, dshift, *, pixels, lanes, group, silu):
    """Gradients by the input, and by image those of scale, bias and shift."""
    part, size, zero = _Part(pixels, lanes, group), pixels * group, jnp.zeros((LANES,), jnp.float32)
    away, inv, factor, summand = (part.vector(ref) for ref in (offset, inverse, scale, bias))

    def pieces(i: Any) -> tuple[Array, Array]:
        values, mask = part.pixels(x, i)
        normal, g = (values + away[None, :]) * inv[None, :], part.pixels(grad, i)[0]
        if silu:
            z = normal * factor[None, :] + summand[None, :]
            gate = jax.nn.sigmoid(z)
            g = g * (gate + z * gate * (1 - gate))
        return jnp.where(mask, normal, 0.0), jnp.where(mask, g, 0.0)

    def add(i: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        normal, g = pieces(i)
        return sums[0] + jnp.sum(g, 0), sums[1] + jnp.sum(g * normal, 0), sums[2] + jnp.sum(normal, 0)

    of_bias, of_scale, normals = part.loop(add, (zero, zero, zero))
    mean, slope = part.over_group(of_bias * factor) / size, part.over_group(of_scale * factor) / size

    def write(i: Any, carry: int) -> int:
        normal, g = pieces(i)
        part.put_pixels(dx, i, inv[None, :] * (g * factor[None, :] - mean[None, :] - normal * slope[None, :]))
        return carry

    part.loop(write)
    part.put_vector(dscale, of_scale)
    part.put_vector(dbias, of_bias)
    part.put_vector(dshift, inv * (of_bias * factor - pixels * mean - normals * slope))


def _norm_call(kernel: Callable[..., None], x: Array, others: list[Array], outs: list[Any], group: int, **opts: Any):
    n, pixels, channels = x.shape
    lanes = _lanes(channels, group)
    image = pl.BlockSpec((None, pixels, channels), lambda i, j: (i, 0, 0))
    by_image = pl.BlockSpec((None, channels), lambda i, j: (i, 0))
    whole = pl.BlockSpec((channels,), lambda i, j: (0,))
    specs = {3: image, 2: by_image, 1: whole}
    return _call(
        functools.partial(kernel, pixels=pixels, lanes=lanes, group=group, **opts),
        x,
        *others,
        warps=4,
        stages=2,
        grid=(n, channels // lanes),
        in_specs=[specs[a.ndim] for a in (x, *others)],
        out_specs=[specs[len(s.shape)] for s in outs],
        out_shape=outs,
        name=kernel.__name__.strip("_"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def fused_norm(
    x: Float[Array, "n p c"],
    shift: Float[Array, "n c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
    silu: bool,
    dtype: Any,
) -> Float[Array, "n p c"]:
    """Group norm of x + shift, scaled and moved, and SiLU of it, in float32; the result in `dtype`.

    Args:
      x: p pixels of c channels, of any float type.
      shift: added to each image's channels before the norm, such as the time embedding.
      groups: at most `LANES` channels in each.
    """
    return _fused_norm_forward(x, shift, scale, bias, groups, epsilon, silu, dtype)[0]


def _fused_norm_forward(x, shift, scale, bias, groups, epsilon, silu, dtype):
    n, _, c = x.shape
    row = jax.ShapeDtypeStruct((n, c), jnp.float32)
    outs = [jax.ShapeDtypeStruct(x.shape, dtype), row, row]
    options = {"epsilon": epsilon, "silu": silu}
    y, offset, inverse = _norm_call(_norm_forward, x, [shift, scale, bias], outs, c // groups, **options)
    return y, (x, offset, inverse, scale, bias)


def _fused_norm_backward(groups, epsilon, silu, dtype, kept, grad):
    x, offset, inverse, scale, bias = kept
    n, _, c = x.shape
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype), *[jax.ShapeDtypeStruct((n, c), jnp.float32)] * 3]
    dx, dscale, dbias, dshift = _norm_call(
        _norm_backward, x, [grad, offset, inverse, scale, bias], outs, c // groups, silu=silu
    )
    return dx, dshift, jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


fused_norm.defvjp(_fused_norm_forward, _fused_norm_backward)


# Attention: a program has one head of one image, whose keys and values it holds whole.


def _rows(ref: Any, row: Array, tokens: int, size: int, width: int) -> tuple[Any, Array]:
    column = jnp.arange(width)
    return ref.at[row[:, None], column[None, :]], (row < tokens)[:, None] & (column < size)[None, :]


def _read(ref: Any, row: Array, **shape: int) -> Array:
    place, mask = _rows(ref, row, **shape)
    return plgpu.load(place, mask=mask, other=0.0)


def _write(ref: Any, row: Array, values: Array, **shape: int) -> None:
    place, mask = _rows(ref, row, **shape)
    plgpu.store(place, values.astype(ref.dtype), mask=mask)


def _attention_forward(q, k, v, out, log_sum, *, padded, block, **shape):
    """A block of queries against all keys."""
    tokens, factor = shape["tokens"], shape["size"] ** -0.5
    row, every = pl.program_id(2) * block + jnp.arange(block), jnp.arange(padded)
    values = _read(v, every, **shape)
    logits = plgpu.dot(_read(q, row, **shape), _read(k, every, **shape), trans_b=True) * factor
    logits = jnp.where((every < tokens)[None, :], logits, -1e30)
    largest = jnp.max(logits, axis=1)
    weights = jnp.exp(logits - largest[:, None])
    total = jnp.sum(weights, axis=1)
    _write(out, row, plgpu.dot(weights.astype(values.dtype), values) / total[:, None], **shape)
    plgpu.store(log_sum.at[row], largest + jnp.log(total), mask=row < tokens)


def _attention_backward(q, k, v, log_sum, grad, along, dq, dk, dv, *, padded, block, **shape):
    """All queries of a head, block by block; `along` is the inner product of output and its gradient."""
    tokens, factor, every = shape["tokens"], shape["size"] ** -0.5, jnp.arange(padded)
    keys, values = _read(k, every, **shape), _read(v, every, **shape)

    def body(i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        row = i * block + jnp.arange(block)
        queries, g = _read(q, row, **shape), _read(grad, row, **shape)
        known = row < tokens
        level = plgpu.load(log_sum.at[row], mask=known, other=0.0)
        inner = plgpu.load(along.at[row], mask=known, other=0.0)
        logits = plgpu.dot(queries, keys, trans_b=True) * factor
        there = known[:, None] & (every < tokens)[None, :]
        weights = jnp.where(there, jnp.exp(logits - level[:, None]), 0.0)
        slopes = weights * (plgpu.dot(g, values, trans_b=True) - inner[:, None]) * factor
        slopes = slopes.astype(queries.dtype)
        _write(dq, row, plgpu.dot(slopes, keys), **shape)
        return (
            sums[0] + plgpu.dot(slopes, queries, trans_a=True),
            sums[1] + plgpu.dot(weights.astype(g.dtype), g, trans_a=True),
        )

    zeros = jnp.zeros((padded, shape["width"]), jnp.float32)
    of_keys, of_values = jax.lax.fori_loop(0, pl.cdiv(tokens, block), body, (zeros, zeros))
    _write(dk, every, of_keys, **shape)
    _write(dv, every, of_values, **shape)


def _sides(q: Array) -> tuple[dict[str, int], int, int]:
    """Sizes of the kernel: tokens and features with the powers of two that hold them, and a block of queries."""
    _, tokens, _, size = q.shape
    padded = max(DOT_SIDE, pl.next_power_of_2(tokens))
    shape = {"tokens": tokens, "size": size, "width": max(DOT_SIDE, pl.next_power_of_2(size))}
    return shape, padded, min(32, padded)


def attends(tokens: int, size: int) -> bool:
    """Whether the kernel takes so many tokens, with so many features in a head."""
    return tokens <= MAX_TOKENS and size <= MAX_HEAD


@jax.custom_vjp
def fused_attention(
    q: Float[Array, "n t h d"], k: Float[Array, "n t h d"], v: Float[Array, "n t h d"]
) -> Float[Array, "n t h d"]:
    """Softmax attention within each head, with logits and softmax in float32; see `attends`."""
    return _fused_attention_forward(q, k, v)[0]


def _fused_attention_forward(q, k, v):
    n, tokens, heads, size = q.shape
    shape, padded, block = _sides(q)
    head = pl.BlockSpec((None, tokens, None, size), lambda i, h, _: (i, 0, h, 0))
    by_token = pl.BlockSpec((None, None, tokens), lambda i, h, _: (i, h, 0))
    out, log_sum = _call(
        functools.partial(_attention_forward, padded=padded, block=block, **shape),
        q,
        k,
        v,
        warps=4,
        stages=1,
        grid=(n, heads, pl.cdiv(tokens, block)),
        in_specs=[head] * 3,
        out_specs=[head, by_token],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((n, heads, tokens), jnp.float32)],
        name="attention_forward",
    )
    return out, (q, k, v, out, log_sum)


def _fused_attention_backward(kept, grad):
    q, k, v, out, log_sum = kept
    n, tokens, heads, size = q.shape
    shape, padded, block = _sides(q)
    along = jnp.einsum("nthd,nthd->nht", out.astype(jnp.float32), grad.astype(jnp.float32))
    head = pl.BlockSpec((None, tokens, None, size), lambda i, h: (i, 0, h, 0))
    by_token = pl.BlockSpec((None, None, tokens), lambda i, h: (i, h, 0))
    return tuple(
        _call(
            functools.partial(_attention_backward, padded=padded, block=block, **shape),
            *(q, k, v, log_sum, grad, along),
            warps=8,
            stages=1,
            grid=(n, heads),
            in_specs=[head, head, head, by_token, head, by_token],
            out_specs=[head] * 3,
            out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype)] * 3,
            name="attention_backward",
        )
    )


def kernels_work() -> bool:
    """Whether both kernels and their gradients run on this process's first device, and agree with plain JAX."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, (q, k, v) = jax.random.normal(keys[0], (2, 49, 64)), jax.random.normal(keys[1], (3, 2, 49, 2, 8))
    rows = jax.random.normal(keys[2], (3, 2, 64))

    def fused(x: Array, rows: Array, q: Array, k: Array, v: Array) -> Array:
        y: Any = fused_norm(x, rows[0], rows[1, 0], rows[2, 0], 16, 1e-5, True, jnp.float32)
        mixed: Any = fused_attention(q, k, v)
        return jnp.sum(y**2) + jnp.sum(mixed**2)

    def plain(x: Array, rows: Array, q: Array, k: Array, v: Array) -> Array:
        groups = (x + rows[0][:, None]).reshape(2, 49, 16, 4)
        normal = jax.nn.standardize(groups, axis=(1, 3), epsilon=1e-5).reshape(x.shape)
        y = jax.nn.silu(normal * rows[1, 0] + rows[2, 0])
        return jnp.sum(y**2) + jnp.sum(jax.nn.dot_product_attention(q, k, v) ** 2)

    try:
        found, expected = (jax.jit(jax.grad(f, argnums=range(5)))(x, rows, q, k, v) for f in (fused, plain))
    except Exception:  # of a compiler that does not take them, whatever it is
        return False
    gaps = (jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in zip(found, expected, strict=True))
    return all(float(gap) < 2e-2 for gap in gaps)  # products in TF32 have errors of 1e-3


fused_attention.defvjp(_fused_attention_forward, _fused_attention_backward)
