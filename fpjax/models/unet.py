"""UNet with the topology of diffusers' `UNet2DModel`, as one Flax Linen module.

A level is `layers_per_block` residual blocks, each followed by self-attention where the level asks for it, then a
strided convolution down (nearest-neighbour resize and convolution on the way up, one more residual block there).
Images in, images of the same shape out; it knows no SDE, loss or config.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..checks import check, in_range, one_of, positive
from .layers import timestep_embedding

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class UNetSettings:
    """The default is the paper's model size: 17,587,715 parameters at 3 channels.

    Attributes:
      channels: width of each level, outermost first; each divisible by `norm_num_groups`.
      layers_per_block: residual blocks a level on the way down (one more on the way up).
      attention: for each level, whether its blocks attend; the middle always does.
      attention_head_dim: channels of one attention head.
      norm_num_groups: groups of every group norm.
      norm_eps: its epsilon.
      dropout: rate inside residual blocks while training, in [0, 1).
      dtype: compute type of convolutions and matrix products; parameters and norm statistics stay float32.
    """

    channels: tuple[int, ...] = (128, 128, 256)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, False)
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check(
            len(self.channels) >= 1,
            "model.channels",
            got=self.channels,
            expected="at least one level",
            fix="use (128, 128, 256)",
        )
        check(
            len(self.attention) == len(self.channels),
            "model.attention",
            got=self.attention,
            expected=f"one flag for each of the {len(self.channels)} levels",
            fix="give as many as model.channels",
        )
        positive("model.norm_num_groups", self.norm_num_groups)
        positive("model.layers_per_block", self.layers_per_block)
        positive("model.attention_head_dim", self.attention_head_dim)
        for width in self.channels:
            check(
                width > 0 and width % self.norm_num_groups == 0,
                "model.channels",
                got=self.channels,
                expected=f"positive multiples of model.norm_num_groups = {self.norm_num_groups}",
                fix="change the widths or the groups",
            )
            check(
                width % self.attention_head_dim == 0,
                "model.channels",
                got=self.channels,
                expected=f"multiples of model.attention_head_dim = {self.attention_head_dim}",
                fix="change the widths or the head size",
            )
        in_range("model.dropout", self.dropout, 0.0, 0.99)
        one_of("model.dtype", self.dtype, DTYPES)

    @property
    def downsampling(self) -> int:
        """Factor between the outermost and the innermost side; the image side must be its multiple."""
        return 2 ** (len(self.channels) - 1)


class _Norm(nn.Module):
    """Group norm with statistics in float32, optionally followed by SiLU."""

    settings: UNetSettings
    activate: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        s = self.settings
        x = nn.GroupNorm(s.norm_num_groups, epsilon=s.norm_eps, dtype=jnp.float32, name="norm")(x)
        return (nn.silu(x) if self.activate else x).astype(DTYPES[s.dtype])


class _ResBlock(nn.Module):
    """GroupNorm-SiLU-convolution twice, the time embedding added between, and a skip (1x1 where widths differ)."""

    settings: UNetSettings
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], emb: Float[Array, "n e"], train: bool) -> Float[Array, "n h w d"]:
        s, dtype = self.settings, DTYPES[self.settings.dtype]
        h = nn.Conv(self.width, (3, 3), padding=1, dtype=dtype, name="conv1")(_Norm(s, name="norm1")(x))
        h = h + nn.Dense(self.width, dtype=dtype, name="time_emb_proj")(nn.silu(emb))[:, None, None, :]
        h = nn.Dropout(s.dropout, deterministic=not train)(_Norm(s, name="norm2")(h))
        h = nn.Conv(self.width, (3, 3), padding=1, dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=dtype, name="conv_shortcut")(x)
        return x + h


class _Attention(nn.Module):
    """Multi-head self-attention over the image's positions, with a residual; softmax in float32."""

    settings: UNetSettings

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        s, dtype = self.settings, DTYPES[self.settings.dtype]
        n, h, w, c = x.shape
        tokens = _Norm(s, activate=False, name="group_norm")(x).reshape(n, h * w, c)
        heads = c // s.attention_head_dim
        q, k, v = (
            nn.Dense(c, dtype=dtype, name=name)(tokens).reshape(n, h * w, heads, s.attention_head_dim)
            for name in ("to_q", "to_k", "to_v")
        )
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * s.attention_head_dim**-0.5).astype(dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, h * w, c)
        return x + nn.Dense(c, dtype=dtype, name="to_out")(mixed).reshape(n, h, w, c)


class UNet(nn.Module):
    """Noise prediction network: images and times in, an image of the input's shape and dtype float32 out."""

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

        emb = timestep_embedding(t, s.channels[0]).astype(dtype)
        emb = nn.Dense(4 * s.channels[0], dtype=dtype, name="time_dense1")(emb)
        emb = nn.Dense(4 * s.channels[0], dtype=dtype, name="time_dense2")(nn.silu(emb))

        h = nn.Conv(s.channels[0], (3, 3), padding=1, dtype=dtype, name="conv_in")(x.astype(dtype))
        skips = [h]
        for i, width in enumerate(s.channels):
            for j in range(s.layers_per_block):
                h = _ResBlock(s, width, name=f"down{i}_res{j}")(h, emb, train)
                if s.attention[i]:
                    h = _Attention(s, name=f"down{i}_attn{j}")(h)
                skips.append(h)
            if i < levels - 1:
                h = nn.Conv(width, (3, 3), strides=2, padding=1, dtype=dtype, name=f"down{i}_sample")(h)
                skips.append(h)

        h = _ResBlock(s, s.channels[-1], name="mid_res0")(h, emb, train)
        h = _Attention(s, name="mid_attn")(h)
        h = _ResBlock(s, s.channels[-1], name="mid_res1")(h, emb, train)

        for i, width in reversed(list(enumerate(s.channels))):
            for j in range(s.layers_per_block + 1):
                h = _ResBlock(s, width, name=f"up{i}_res{j}")(jnp.concatenate([h, skips.pop()], -1), emb, train)
                if s.attention[i]:
                    h = _Attention(s, name=f"up{i}_attn{j}")(h)
            if i > 0:
                h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = nn.Conv(width, (3, 3), padding=1, dtype=dtype, name=f"up{i}_sample")(h)

        h = _Norm(s, name="norm_out")(h)
        return nn.Conv(out_channels, (3, 3), padding=1, dtype=jnp.float32, name="conv_out")(h.astype(jnp.float32))
