"""Bottleneck ResNet (He et al. 2016, arXiv:1512.03385; stride in the 3x3 convolution), sizes 50 to 152 and smaller.

Images in, one logit for each head out. Batch statistics are a Flax collection, `batch_stats`.
"""

import dataclasses
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..checks import check, one_of, whole

STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STEMS = ("imagenet", "small")


@dataclasses.dataclass(frozen=True)
class ResNetSettings:
    """The default is ResNet50.

    Attributes:
      stages: bottleneck blocks in each stage; sides halve from one stage to the next.
      width: channels of the first stage's bottlenecks; doubles from stage to stage, outputs are four times wider.
      stem: "imagenet" (7x7, stride 2, max pooling) or "small" (3x3, stride 1) for images of about 28 pixels.
    """

    stages: tuple[int, ...] = STAGES[50]
    width: int = 64
    stem: str = "imagenet"

    def __post_init__(self) -> None:
        check(
            0 < len(self.stages) <= 8 and all(1 <= blocks <= 100 for blocks in self.stages),
            "resnet.stages",
            got=self.stages,
            expected="1 to 100 blocks for each of at most 8 stages",
            fix="use (3, 4, 6, 3), which is ResNet50",
        )
        whole("resnet", self, names=("width",), most=1024)
        one_of("resnet.stem", self.stem, STEMS)


class _Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, with a residual connection."""

    width: int
    strides: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j d"]:
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        h = nn.relu(norm(name="bn1")(conv(self.width, (1, 1), name="conv1")(x)))
        h = conv(self.width, (3, 3), strides=self.strides, padding=1, name="conv2")(h)
        h = conv(4 * self.width, (1, 1), name="conv3")(nn.relu(norm(name="bn2")(h)))
        h = norm(name="bn3")(h)
        if x.shape != h.shape:
            x = conv(4 * self.width, (1, 1), strides=self.strides, name="downsample_conv")(x)
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
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        if s.stem == "imagenet":
            x = nn.Conv(s.width, (7, 7), strides=2, padding=3, use_bias=False, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        else:
            x = nn.Conv(s.width, (3, 3), padding=1, use_bias=False, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x))
        for i, blocks in enumerate(s.stages):
            for j in range(blocks):
                strides = 2 if i > 0 and j == 0 else 1
                x = _Bottleneck(s.width * 2**i, strides, name=f"stage{i}_block{j}")(x, train)
        return nn.Dense(self.num_heads, name="fc")(jnp.mean(x, axis=(1, 2)))
