"""UNet with the topology of diffusers' `UNet2DModel`, as one Flax Linen module.

A level is `layers_per_block` residual blocks, each followed by self-attention where the level asks for it, then a
step to half the side (to the double side on the way up, where a level has one residual block more).
Images in, images of the same shape out; it knows no SDE, loss or config.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..core.errors import check, in_range, one_of, positive, whole
from .convolution import training_convolution
from .kernels import attends, fused_attention
from .layers import DTYPES, GroupNorm, fourier_embedding, halve, repeat, timestep_embedding

ACTIVATIONS = {"silu": nn.silu, "mish": jax.nn.mish, "gelu": partial(nn.gelu, approximate=False), "relu": nn.relu}
KERNELS = ("xla", "pallas")
MID_BLOCKS = ("attention", "plain", "none")
RESAMPLING = ("conv", "resnet")
TIME_EMBEDDINGS = ("positional", "fourier")
TIME_SCALE_SHIFTS = ("default", "scale_shift")


@dataclasses.dataclass(frozen=True)
class UNetSettings:
    """The default is the paper's model size: 17,587,715 parameters at 3 channels.

    Attributes:
      channels: width of each level, outermost first; each divisible by `norm_num_groups`.
      layers_per_block: residual blocks a level on the way down (one more on the way up).
      attention: for each level, outermost first, whether its blocks attend.
      up_attention: the same for the way up; empty: as on the way down.
      attention_head_dim: channels of one attention head; 0: one head of all channels.
      mid_block: "attention" (residual block, attention, residual block), "plain" (without attention) or "none".
      mid_block_scale_factor: divides the sums that leave the middle's blocks.
      norm_num_groups: groups of every group norm.
      attn_norm_num_groups: groups of the norm before the middle's attention; 0: `norm_num_groups`, and no norm there
        with "scale_shift".
      norm_eps: epsilon of every norm.
      act_fn: "silu", "mish", "gelu" or "relu" in the residual blocks; time embedding and output have SiLU.
      resnet_time_scale_shift: time is added before the second norm ("default"), or scales and shifts after it.
      downsample_padding: of the strided convolutions, 1 on all sides, or 0: one pixel right and below.
      downsample_type: a level that attends steps down by a strided convolution ("conv"), or by a residual block with
        average pooling ("resnet"); other levels convolve.
      upsample_type: the same for the way up, where pixels are repeated.
      time_embedding_type: "positional" (sinusoids of t), or "fourier" (fixed random frequencies of log t, t > 0, and
        the output divided by t: Song et al. 2021, arXiv:2011.13456, App. C and H).
      flip_sin_to_cos: positional: cosines first.
      freq_shift: positional: subtracted from the number of frequencies in the exponent's denominator.
      center_input_sample: images enter as 2 x - 1.
      dropout: rate inside residual blocks while training, in [0, 1).
      dtype: compute type of convolutions and matrix products; parameters and norm statistics stay float32.
      kernels: "xla", or "pallas": attention and norms as kernels for NVIDIA GPUs (`kernels`), interpreted elsewhere;
        what these do not take stays plain XLA. Such a network has reverse derivatives alone.
      remat: recompute residual blocks in the backward pass instead of storing what is inside them.
    """

    channels: tuple[int, ...] = (128, 128, 256)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, False)
    up_attention: tuple[bool, ...] = ()
    attention_head_dim: int = 8
    mid_block: str = "attention"
    mid_block_scale_factor: float = 1.0
    norm_num_groups: int = 32
    attn_norm_num_groups: int = 0
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    resnet_time_scale_shift: str = "default"
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    time_embedding_type: str = "positional"
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    center_input_sample: bool = False
    dropout: float = 0.1
    dtype: str = "float32"
    kernels: str = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        check(
            len(self.channels) >= 1,
            "model.channels",
            got=self.channels,
            expected="at least one level",
            fix="use (128, 128, 256)",
        )
        for name, flags in (("attention", self.attention), ("up_attention", self.attention_up)):
            check(
                len(flags) == len(self.channels),
                f"model.{name}",
                got=flags,
                expected=f"one flag for each of the {len(self.channels)} levels",
                fix="give as many as model.channels",
            )
        whole("model", self, names=("norm_num_groups",), most=4096)
        whole("model", self, names=("layers_per_block",), most=16)
        check(
            len(list(self.channels)) <= 8 and all(width <= 4096 for width in self.channels),
            "model.channels",
            got=self.channels,
            expected="at most 8 levels of at most 4096 channels",
            fix="use (128, 128, 256)",
        )
        for name in ("mid_block_scale_factor", "norm_eps"):
            positive(f"model.{name}", getattr(self, name))
        for name in ("attention_head_dim", "attn_norm_num_groups"):
            value = getattr(self, name)
            check(value >= 0, f"model.{name}", got=value, expected="0 or a positive number", fix="use 0")
        middle = self.mid_block == "attention"
        for i, width in enumerate(self.channels):
            attends = self.attention[i] or self.attention_up[i] or (middle and i == len(self.channels) - 1)
            self._divides("norm_num_groups", self.norm_num_groups, width)
            self._divides("attention_head_dim", self.attention_head_dim if attends else 0, width)
        self._divides("attn_norm_num_groups", self.attn_norm_num_groups if middle else 0, self.channels[-1])
        check(
            self.channels[0] % 2 == 0 and 0 <= self.freq_shift < self.channels[0] // 2,
            "model.channels, model.freq_shift",
            got=f"{self.channels[0]} channels at the outermost level, shift {self.freq_shift:g}",
            expected="an even number of channels, half of which exceeds the shift",
            fix="use more channels, or 0 or 1 as shift",
        )
        check(self.downsample_padding in (0, 1), "model.downsample_padding", got=self.downsample_padding,
              expected="0 or 1", fix="use 1")  # fmt: skip
        in_range("model.dropout", self.dropout, 0.0, 0.99)
        one_of("model.mid_block", self.mid_block, MID_BLOCKS)
        one_of("model.act_fn", self.act_fn, ACTIVATIONS)
        one_of("model.resnet_time_scale_shift", self.resnet_time_scale_shift, TIME_SCALE_SHIFTS)
        one_of("model.downsample_type", self.downsample_type, RESAMPLING)
        one_of("model.upsample_type", self.upsample_type, RESAMPLING)
        one_of("model.time_embedding_type", self.time_embedding_type, TIME_EMBEDDINGS)
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.kernels", self.kernels, KERNELS)

    def _divides(self, name: str, divisor: int, width: int) -> None:
        check(
            width > 0 and (divisor == 0 or width % divisor == 0),
            "model.channels",
            got=self.channels,
            expected=f"positive multiples of model.{name} = {divisor}",
            fix=f"change the widths or model.{name}",
        )

    @property
    def attention_up(self) -> tuple[bool, ...]:
        """`up_attention`, or `attention` where that is empty."""
        return self.up_attention or self.attention

    @property
    def norm_kernel(self) -> str | None:
        """Type that norms' kernels give out; None: there are none."""
        return self.dtype if self.kernels == "pallas" else None

    @property
    def downsampling(self) -> int:
        """Factor between the outermost and the innermost side; the image side must be its multiple."""
        return 2 ** (len(self.channels) - 1)


def _convolution(train: bool) -> Any:
    """What layers convolve by; the faster gradient on CPUs has reverse derivatives alone, so densities do without."""
    return training_convolution if train else jax.lax.conv_general_dilated


class _ResBlock(nn.Module):
    """Norm, activation and convolution twice, the time embedding between, and a skip (1x1 where widths differ)."""

    settings: UNetSettings
    width: int
    scale: float = 1.0
    resample: str = ""  # "down" or "up" before the first convolution

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], emb: Float[Array, "n e"], train: bool) -> Float[Array, "n i j d"]:
        s, act, dtype = self.settings, ACTIVATIONS[self.settings.act_fn], DTYPES[self.settings.dtype]
        norm = partial(GroupNorm, s.norm_num_groups, s.norm_eps, s.norm_kernel)
        conv = partial(nn.Conv, self.width, (3, 3), padding=1, dtype=dtype, conv_general_dilated=_convolution(train))
        silu = s.act_fn == "silu"
        h = norm(name="norm1")(x, silu=silu)
        h = h if silu else act(h)
        if self.resample:
            x, h = (halve(a) if self.resample == "down" else repeat(a) for a in (x, h))
        h = conv(name="conv1")(h)
        if s.resnet_time_scale_shift == "default":
            time = nn.Dense(self.width, dtype=dtype, name="time_emb_proj")(act(emb))
            h = norm(name="norm2")(h, time, silu=silu)
            h = h if silu else act(h)
        else:
            time = nn.Dense(2 * self.width, dtype=dtype, name="time_emb_proj")(act(emb))[:, None, None, :]
            factor, shift = jnp.split(time, 2, axis=-1)
            h = act(norm(name="norm2")(h) * (1 + factor) + shift)
        h = nn.Dropout(s.dropout, deterministic=not train)(h)
        h = conv(name="conv2")(h)
        if x.shape[-1] != self.width:
            # A 1x1 convolution; as a matrix product its gradient is four times faster on a CPU.
            x = nn.Dense(self.width, dtype=dtype, name="conv_shortcut")(x)
        return (x + h) / self.scale


class _Attention(nn.Module):
    """Multi-head self-attention over the image's positions, with a residual; softmax in float32."""

    settings: UNetSettings
    groups: int  # 0: no norm
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        s, dtype = self.settings, DTYPES[self.settings.dtype]
        n, h, w, c = x.shape
        size = s.attention_head_dim or c
        tokens = GroupNorm(self.groups, s.norm_eps, s.norm_kernel, name="group_norm")(x) if self.groups else x
        tokens = tokens.reshape(n, h * w, c)
        q, k, v = (
            nn.Dense(c, dtype=dtype, name=name)(tokens).reshape(n, h * w, c // size, size)
            for name in ("to_q", "to_k", "to_v")
        )
        if s.kernels == "pallas" and attends(h * w, size):
            mixed = fused_attention(q, k, v)
        else:
            mixed = self._mix(*(part.swapaxes(1, 2) for part in (q, k, v))).swapaxes(1, 2)
        mixed = mixed.reshape(n, h * w, c)
        return (x + nn.Dense(c, dtype=dtype, name="to_out")(mixed).reshape(n, h, w, c)) / self.scale

    def _mix(
        self, q: Float[Array, "n m t d"], k: Float[Array, "n m t d"], v: Float[Array, "n m t d"]
    ) -> Float[Array, "n m t d"]:
        """Values by their weights, within each of m heads."""
        size, dtype = q.shape[-1], q.dtype
        logits = jnp.einsum("nhqd,nhkd->nhqk", q * size**-0.5, k, preferred_element_type=jnp.float32)
        # Normalised after mixing, which is the same and halves the time of the gradient on a CPU.
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return jnp.einsum("nhqk,nhkd->nhqd", weights.astype(dtype), v, preferred_element_type=jnp.float32) / total


class UNet(nn.Module):
    """Network of a score: images and times in, an image of the input's shape and dtype float32 out."""

    settings: UNetSettings

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], t: Float[Array, " n"], *, train: bool = False
    ) -> Float[Array, "n h w c"]:
        """Args: x: images in model range; t: times in [0, 999]; train: dropout on (needs the rng `dropout`)."""
        s, dtype = self.settings, DTYPES[self.settings.dtype]
        out_channels, levels = x.shape[-1], len(s.channels)
        check(
            x.shape[1] % s.downsampling == 0 and x.shape[2] % s.downsampling == 0,
            "image side",
            got=x.shape[1:3],
            expected=f"multiples of {s.downsampling} for {levels} levels of model.channels",
            fix="pad or resize the images, or take fewer levels",
        )
        block = partial(nn.remat(_ResBlock, static_argnums=(3,)) if s.remat else _ResBlock, s)
        attend = partial(_Attention, s, s.norm_num_groups)
        conv = partial(nn.Conv, kernel_size=(3, 3), padding=1, dtype=dtype, conv_general_dilated=_convolution(train))

        if s.time_embedding_type == "fourier":
            # Fixed, yet a parameter: the frequencies belong to the weights.
            init = nn.initializers.normal(16.0)
            frequencies = jax.lax.stop_gradient(self.param("time_frequencies", init, (s.channels[0],)))
            emb = fourier_embedding(t, frequencies)
        else:
            emb = timestep_embedding(t, s.channels[0], flip_sin_to_cos=s.flip_sin_to_cos, freq_shift=s.freq_shift)
        emb = nn.Dense(4 * s.channels[0], name="time_dense1")(emb)
        emb = nn.Dense(4 * s.channels[0], name="time_dense2")(nn.silu(emb))

        h = conv(s.channels[0], name="conv_in")((2 * x - 1 if s.center_input_sample else x).astype(dtype))
        skips = [h]
        for i, width in enumerate(s.channels):
            for j in range(s.layers_per_block):
                h = block(width, name=f"down{i}_res{j}")(h, emb, train)
                if s.attention[i]:
                    h = attend(name=f"down{i}_attn{j}")(h)
                skips.append(h)
            if i < levels - 1:
                if s.attention[i] and s.downsample_type == "resnet":
                    h = block(width, resample="down", name=f"down{i}_sample")(h, emb, train)
                else:
                    padding = 1 if s.downsample_padding else ((0, 1), (0, 1))
                    h = conv(width, strides=2, padding=padding, name=f"down{i}_sample")(h)
                skips.append(h)

        scale = s.mid_block_scale_factor
        if s.mid_block != "none":
            h = block(s.channels[-1], scale, name="mid_res0")(h, emb, train)
            if s.mid_block == "attention":
                default = s.norm_num_groups if s.resnet_time_scale_shift == "default" else 0
                h = _Attention(s, s.attn_norm_num_groups or default, scale, name="mid_attn")(h)
            h = block(s.channels[-1], scale, name="mid_res1")(h, emb, train)

        for i, width in reversed(list(enumerate(s.channels))):
            for j in range(s.layers_per_block + 1):
                h = block(width, name=f"up{i}_res{j}")(jnp.concatenate([h, skips.pop()], -1), emb, train)
                if s.attention_up[i]:
                    h = attend(name=f"up{i}_attn{j}")(h)
            if i > 0:
                if s.attention_up[i] and s.upsample_type == "resnet":
                    h = block(width, resample="up", name=f"up{i}_sample")(h, emb, train)
                else:
                    h = conv(width, name=f"up{i}_sample")(repeat(h))

        h = GroupNorm(s.norm_num_groups, s.norm_eps, s.norm_kernel, name="norm_out")(h, silu=True)
        out = conv(out_channels, dtype=jnp.float32, name="conv_out")(h)
        return out / t[:, None, None, None] if s.time_embedding_type == "fourier" else out
