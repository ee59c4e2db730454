"""ResNets of 18 to 152 layers, or fewer (He et al. 2016, arXiv:1512.03385; bottlenecks stride in the 3x3).

Images in, one logit for each head out. Batch statistics are a Flax collection, `batch_stats`: means over the batch,
hence over all devices where `jit` spreads it over a mesh.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..core.errors import check, one_of, whole
from .layers import DTYPES

EXPANSION = {"bottleneck": 4, "basic": 1}  # channels that a block gives out, in multiples of its width
STEMS = ("imagenet", "small")


@dataclasses.dataclass(frozen=True)
class ResNetSettings:
    """The default is ResNet50; `SIZES` has the others.

    Attributes:
      stages: blocks in each stage; sides halve from one stage to the next.
      block: "bottleneck" (1x1 down, 3x3, 1x1 up to four times the width) or "basic" (two 3x3), each with a residual
        connection.
      width: of the first stage's blocks; doubles from stage to stage.
      stem: "imagenet" (7x7, stride 2, max pooling) or "small" (3x3, stride 1) for images of about 28 pixels.
      dtype: compute type of the convolutions; parameters, statistics and logits stay float32.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    width: int = 64
    stem: str = "imagenet"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check(
            0 < len(self.stages) <= 8 and all(1 <= blocks <= 100 for blocks in self.stages),
            "resnet.stages",
            got=self.stages,
            expected="1 to 100 blocks for each of at most 8 stages",
            fix="use (3, 4, 6, 3), which is ResNet50",
        )
        one_of("resnet.block", self.block, EXPANSION)
        whole("resnet", self, names=("width",), most=1024)
        one_of("resnet.stem", self.stem, STEMS)
        one_of("resnet.dtype", self.dtype, DTYPES)


SIZES = {
    18: ResNetSettings((2, 2, 2, 2), block="basic"),
    34: ResNetSettings((3, 4, 6, 3), block="basic"),
    50: ResNetSettings((3, 4, 6, 3)),
    101: ResNetSettings((3, 4, 23, 3)),
    152: ResNetSettings((3, 8, 36, 3)),
}


def _layers(settings: ResNetSettings, train: bool) -> tuple[Any, Any]:
    """Convolution without bias, and batch norm with PyTorch's constants."""
    dtype = DTYPES[settings.dtype]
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
    return partial(nn.Conv, use_bias=False, dtype=dtype), norm


class _Block(nn.Module):
    """Residual block; the shortcut is a 1x1 convolution where the shape changes."""

    settings: ResNetSettings
    width: int
    strides: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j d"]:
        conv, norm = _layers(self.settings, train)
        out = EXPANSION[self.settings.block] * self.width
        if self.settings.block == "bottleneck":
            kernels = ((self.width, 1, 1), (self.width, 3, self.strides), (out, 1, 1))
        else:
            kernels = ((self.width, 3, self.strides), (out, 3, 1))
        h = x
        for i, (width, size, strides) in enumerate(kernels, 1):
            h = conv(width, (size, size), strides=strides, padding=size // 2, name=f"conv{i}")(h)
            h = norm(name=f"bn{i}")(h)
            h = nn.relu(h) if i < len(kernels) else h
        if x.shape != h.shape:
            x = conv(out, (1, 1), strides=self.strides, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return nn.relu(x + h)


class ResNet(nn.Module):
    """Logits of `num_heads` binary (or softmax) outputs, float32."""

    settings: ResNetSettings
    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n heads"]:
        """Args: x: images in model range; train: batch statistics of this batch, and update the running ones."""
        s = self.settings
        conv, norm = _layers(s, train)
        if s.stem == "imagenet":
            x = conv(s.width, (7, 7), strides=2, padding=3, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        else:
            x = conv(s.width, (3, 3), padding=1, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x))
        for i, blocks in enumerate(s.stages):
            for j in range(blocks):
                strides = 2 if i > 0 and j == 0 else 1
                x = _Block(s, s.width * 2**i, strides, name=f"stage{i}_block{j}")(x, train)
        return nn.Dense(self.num_heads, name="fc")(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
