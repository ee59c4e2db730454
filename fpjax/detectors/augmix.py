"""AugMix on device (Hendrycks et al. 2020, arXiv:1912.02781), and its consistency loss for sigmoid heads.

The operations take and give one image of whole grey levels 0..255, kept as float32, in Pillow's arithmetic: levels in
integers, coordinates of pixel centres, bilinear values cut to whole levels, black where the source is outside. Each
either maps levels or warps: a step of a chain computes the four maps, which are cheap, and one warp with the matrix
that was drawn, while under `vmap` a `lax.switch` would run all five warps.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ..core.errors import check, in_range, whole
from ..core.images import to_bytes, to_model
from ..core.types import Image, Key, Scalar

# In the order of the indices in a plan; the maps of levels come before the warps.
OPERATIONS = (
    "identity",
    "autocontrast", "equalize", "posterize", "solarize",
    "rotate", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_NUM_MAPS = 4

Operation = Int[Array, ""]
Matrix = Float[Array, "6"]


@dataclasses.dataclass(frozen=True)
class AugMixSettings:
    """How far and how often an image is changed; the defaults are the paper's.

    Attributes:
      severity: 1 to 10; each operation draws its own level uniformly from [0.1, severity).
      width: chains that are mixed.
      depth: operations in a chain; -1 draws 1, 2 or 3 for each chain.
      alpha: of the Dirichlet distribution over the chains and the Beta distribution of the original's weight.
    """

    severity: int = 3
    width: int = 3
    depth: int = -1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        whole("augmix", self, names=("severity",), most=10)
        whole("augmix", self, names=("width",), most=100)
        if self.depth != -1:
            fix = "choose one in the range, or -1 for 1 to 3 at random"
            check(isinstance(self.depth, int), "augmix.depth", got=self.depth, expected="an integer", fix=fix)
            in_range("augmix.depth", self.depth, 1, 100, fix=fix)
        in_range("augmix.alpha", self.alpha, 0.01, 100.0)


class AugMixPlan(NamedTuple):
    """All that is random in one call; `apply_plan` is a function of the image and this."""

    operations: Int[Array, "width depth"]  # indices into OPERATIONS
    magnitudes: Float[Array, "width depth"]  # degrees, pixels and so on, as the operation takes it
    weights: Float[Array, " width"]  # of the chains, sum 1
    keep: Scalar  # weight of the original, in [0, 1]


def augmix(key: Key, image: Image, settings: AugMixSettings) -> Image:
    """x_augmix = m x + (1 - m) sum_i w_i chain_i(x), with m ~ Beta(alpha, alpha), w ~ Dirichlet(alpha) (Algorithm 1).

    A mixture of images in model range stays in it. The chains see the nearest bytes of `image` (`to_bytes`), so the
    noise that makes pixels no bytes comes after AugMix; x itself enters the sum as it is, and through it alone go
    gradients. A constant image gives no NaN: autocontrast and equalize leave it alone.

    Args:
      key: one for each image and view.
      image: model range, 1 or 3 channels.
      settings: static; a change retraces.

    Returns:
      A new image in model range, of the same shape.
    """
    height, width, _ = image.shape
    return apply_plan(image, draw_plan(key, (height, width), settings))


def draw_plan(key: Key, shape: tuple[int, int], settings: AugMixSettings) -> AugMixPlan:
    """Draws what `augmix` does to an image of `shape` (h, w)."""
    key_uniform, key_gamma = jr.split(key)
    width, depth = settings.width, 3 if settings.depth == -1 else settings.depth
    # One draw for all: on a CPU each call of the generator takes about as long to compile as all the operations.
    uniform = jr.uniform(key_uniform, (width, 3 * depth + 3), minval=jnp.finfo(jnp.float32).tiny)
    which, levels, signs = jnp.split(uniform[:, :-3], 3, axis=1)
    operations = 1 + (which * (len(OPERATIONS) - 1)).astype(jnp.int32)
    if settings.depth == -1:
        operations = jnp.where(jnp.arange(3) < 1 + jnp.floor(3 * uniform[:, -3:-2]), operations, 0)
    every = jnp.stack(magnitudes(0.1 + levels * (settings.severity - 0.1), shape), axis=-1)
    chosen = jnp.take_along_axis(every, operations[..., None], axis=-1)[..., 0]
    chosen = jnp.where((operations > _NUM_MAPS) & (signs < 0.5), -chosen, chosen)
    # Gamma variates over their sum are Dirichlet, and two of them Beta; at alpha = 1, exponential and uniform.
    if settings.alpha == 1:
        return AugMixPlan(operations, chosen, jax.nn.softmax(jnp.log(-jnp.log(uniform[:, -2]))), uniform[0, -1])
    log_gammas = jr.loggamma(key_gamma, settings.alpha, (width + 2,))
    return AugMixPlan(operations, chosen, jax.nn.softmax(log_gammas[2:]), jax.nn.softmax(log_gammas[:2])[0])


def magnitudes(levels: Float[Array, "*n"], shape: tuple[int, int]) -> tuple[Float[Array, "*n"], ...]:
    """What each of `OPERATIONS` takes at these levels, without sign, by the formulas of the paper's code.

    There images have 32 pixels a side and shift by up to a third of it; here a third of `shape` (h, w).
    """
    height, width = shape
    nothing = jnp.zeros_like(levels)
    return (
        nothing,
        nothing,
        nothing,
        jnp.maximum(4 - jnp.floor(levels * 4 / 10), 1),  # bits kept
        256 - jnp.floor(levels * 256 / 10),  # threshold
        jnp.floor(levels * 30 / 10),  # degrees
        levels * 0.3 / 10,  # pixels aside for each pixel down
        levels * 0.3 / 10,
        jnp.floor(levels * (width / 3) / 10),  # pixels
        jnp.floor(levels * (height / 3) / 10),
    )


def apply_plan(image: Image, plan: AugMixPlan) -> Image:
    """The mixture that `plan` describes, of an image in model range."""

    def step(grey: Image, drawn: tuple[Operation, Scalar]) -> tuple[Image, None]:
        return apply_operation(grey, *drawn), None

    def chain(operations: Int[Array, " depth"], magnitudes: Float[Array, " depth"]) -> Image:
        grey, _ = jax.lax.scan(step, to_bytes(image).astype(jnp.float32), (operations, magnitudes))
        return to_model(grey.astype(jnp.uint8))

    chains = jax.vmap(chain)(plan.operations, plan.magnitudes)
    # A sum, since a dot product may be cut to TF32.
    mixed = jnp.sum(plan.weights[:, None, None, None] * chains, axis=0)
    return plan.keep * image + (1 - plan.keep) * mixed


def apply_operation(image: Image, operation: Operation, magnitude: Scalar) -> Image:
    """The operation of this index in `OPERATIONS`; both numbers may be traced."""
    maps = (autocontrast(image), equalize(image), posterize(image, magnitude), solarize(image, magnitude))
    image = jax.lax.select_n(jnp.where(operation <= len(maps), operation, 0), image, *maps)
    matrices = (
        _rotation(image, magnitude),
        _matrix(b=magnitude),
        _matrix(d=magnitude),
        _matrix(c=magnitude),
        _matrix(f=magnitude),
    )
    which = jnp.maximum(operation - len(maps), 0)
    return _warp(image, jax.lax.select_n(which, _matrix(), *matrices))


def autocontrast(image: Image) -> Image:
    """Stretches each channel to 0..255; a constant channel stays.

    The division is exact. Pillow multiplies by a rounded 255/(high - low) and falls one level short in places.
    """
    levels = image.astype(jnp.int32)
    low, high = levels.min((0, 1)), levels.max((0, 1))
    stretched = _divide(255 * (levels - low), jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched.astype(image.dtype), image)


def equalize(image: Image) -> Image:
    """Flattens the histogram of each channel; stays if fewer than 255 pixels are below the channel's highest level."""
    height, width, num_channels = image.shape
    levels, channels = image.astype(jnp.int32), jnp.arange(num_channels)
    counts = jnp.zeros((256, num_channels), jnp.int32).at[levels, channels].add(1)
    below = (jnp.cumsum(counts, axis=0) - counts)[levels, channels]
    step = (height * width - jnp.sum(levels == levels.max((0, 1)), axis=(0, 1), dtype=jnp.int32)) // 255
    flat = _divide(step // 2 + below, jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(flat, 255).astype(image.dtype), image)


def posterize(image: Image, bits: Scalar) -> Image:
    """Keeps the highest 1 to 8 bits of every level."""
    cut = (8 - bits).astype(jnp.int32)
    return (image.astype(jnp.int32) >> cut << cut).astype(image.dtype)


def solarize(image: Image, threshold: Scalar) -> Image:
    """Inverts the levels at or above a threshold of 0 to 256."""
    return jnp.where(image < threshold, image, 255 - image)


def rotate(image: Image, degrees: Scalar) -> Image:
    """Turns counter-clockwise around the middle of the image."""
    return _warp(image, _rotation(image, degrees))


def shear_x(image: Image, factor: Scalar) -> Image:
    """Takes row y from `factor` (y + 1/2) pixels further right."""
    return _warp(image, _matrix(b=factor))


def shear_y(image: Image, factor: Scalar) -> Image:
    """Takes column x from `factor` (x + 1/2) pixels further down."""
    return _warp(image, _matrix(d=factor))


def translate_x(image: Image, pixels: Scalar) -> Image:
    """Takes every pixel from `pixels` further right."""
    return _warp(image, _matrix(c=pixels))


def translate_y(image: Image, pixels: Scalar) -> Image:
    """Takes every pixel from `pixels` further down."""
    return _warp(image, _matrix(f=pixels))


def jensen_shannon(*logits: Float[Array, "..."]) -> Scalar:
    """Consistency of views: the Jensen-Shannon divergence JS(p_1; ...; p_K) of their predictions, in nats.

    The paper takes it of the softmax over classes; here each head is a Bernoulli variable with p = sigmoid(logit),
    1/K sum_k KL(p_k || M) with M = 1/K sum_k p_k, averaged over heads and examples. It is 0 for equal logits
    and at most ln 2 (0.6365 for three views). Logarithms throughout, so that no logit is too large.

    Args:
      logits: one array for each view, all of one shape: the clean image and two of its mixtures in the paper.

    Raises:
      RequestError: fewer than two views, or of several shapes.
    """
    shapes = {view.shape for view in logits}
    check(
        len(logits) >= 2 and len(shapes) == 1,
        "views of jensen_shannon",
        got=f"{len(logits)} of shapes {sorted(shapes)}",
        expected="two or more of one shape",
        fix="pass the logits of the same heads for every view",
    )
    views = jnp.stack(logits).astype(jnp.float32)
    divergence = jnp.zeros(views.shape[1:])
    for outcome in (views, -views):
        log_p = jax.nn.log_sigmoid(outcome)
        top = jax.lax.stop_gradient(log_p.max(0))
        log_mean = top + jnp.log(jnp.mean(jnp.exp(log_p - top), axis=0))
        divergence += jnp.mean(jnp.exp(log_p) * (log_p - log_mean), axis=0)
    return jnp.mean(divergence)


def _divide(levels: Int[Array, "h w c"], by: Int[Array, " c"]) -> Int[Array, "h w c"]:
    """Whole quotients of numbers above zero: `//` would also mind the signs, pixel by pixel."""
    return jax.lax.div(levels, jnp.broadcast_to(by, levels.shape))


def _matrix(
    *, a: float | Scalar = 1, b: float | Scalar = 0, c: float | Scalar = 0,
    d: float | Scalar = 0, e: float | Scalar = 1, f: float | Scalar = 0,
) -> Matrix:  # fmt: skip
    """A pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return jnp.stack([jnp.asarray(entry, jnp.float32) for entry in (a, b, c, d, e, f)])


def _rotation(image: Image, degrees: Scalar) -> Matrix:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y, x = image.shape[0] / 2, image.shape[1] / 2
    return _matrix(a=cos, b=-sin, c=x - (cos * x - sin * y), d=sin, e=cos, f=y - (sin * x + cos * y))


def _warp(image: Image, matrix: Matrix) -> Image:
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    rows, columns = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None, :] + 0.5
    # No dot product, which may be cut to TF32: an error of 1e-3 pixels.
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[..., None]
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_share, lower_share = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]

    # Four bytes fit in a word, so that each pixel is gathered once: the corners between which it lies. The frame is
    # for those half a pixel from the border.
    framed = jnp.pad(image.astype(jnp.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    words = framed[:-1, :-1] | framed[:-1, 1:] << 8 | framed[1:, :-1] << 16 | framed[1:, 1:] << 24
    row = (top.astype(jnp.int32) + 1).clip(0, height)
    column = (left.astype(jnp.int32) + 1).clip(0, width)
    word = words.at[row, column].get(mode="promise_in_bounds")
    corners = [((word >> shift) & 255).astype(jnp.float32) for shift in (0, 8, 16, 24)]
    upper = corners[0] + (corners[1] - corners[0]) * right_share
    lower = corners[2] + (corners[3] - corners[2]) * right_share
    return jnp.floor(jnp.where(inside, upper + (lower - upper) * lower_share, 0.0))
