"""Built-in data: random head phantoms after Shepp and Logan (1974), the same bytes on every machine.

Only + - * / and comparisons in float64 decide a pixel, all of them correctly rounded by IEEE 754; sin, cos and exp
are not, so rotations come from the rational parametrisation of the circle.
"""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ..core.errors import check

_SUPERSAMPLING = 4  # samples a pixel and axis; 16 samples average to a whole grey level with integer sums
_MAX_LESIONS = 7
_NUM_DRAWS = 80  # uniform numbers set aside for one image, more than any takes: image i owns draws 80 i to 80 i + 79


def phantom_images(num: int, *, side: int, seed: int) -> UInt8[np.ndarray, "n h w 1"]:
    """Grey head phantoms: skull, brain and white matter under a shading, two ventricles, two to seven lesions.

    Image i depends on `seed`, `side` and i, not on `num`.

    Args:
      num: images wanted, 0 or more.
      side: pixels each way, 4 or more.
      seed: 0 to 2**32 - 1.

    Raises:
      RequestError: a number out of its range.
    """
    check(num >= 0, "phantom images", got=num, expected="0 or more", fix="ask for no fewer")
    check(side >= 4, "phantom side", got=side, expected="4 pixels or more", fix="draw larger images")
    check(0 <= seed < 2**32, "phantom seed", got=seed, expected="0 to 2**32 - 1", fix="choose a seed in that range")
    # The stream of a RandomState is frozen for good (NEP 19); that of a Generator may change with NumPy.
    draws = np.random.RandomState(seed).random_sample((num, _NUM_DRAWS))  # noqa: NPY002
    images = np.empty((num, side, side, 1), np.uint8)
    for i, row in enumerate(draws.tolist()):
        images[i, :, :, 0] = _phantom(side, iter(row))
    return images


def _phantom(side: int, draws: Iterator[float]) -> UInt8[np.ndarray, "h w"]:
    """One phantom; the image spans [-1, 1], x to the right and y down, and so about does the head."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(draws)

    def sign() -> float:
        return 1.0 if next(draws) < 0.5 else -1.0

    fine = _SUPERSAMPLING * side
    axis = (2.0 * np.arange(fine, dtype=np.float64) + 1.0) / float(fine) - 1.0
    x, y = axis[None, :] - between(-0.06, 0.06), axis[:, None] - between(-0.06, 0.06)
    ellipse = functools.partial(_ellipse, x, y, _cos_sin(between(-0.15, 0.15)))

    width, height, thickness = between(0.60, 0.80), between(0.76, 0.92), between(0.07, 0.12)
    skull = ellipse(0.0, 0.0, width, height, 0.0)
    width, height = width - thickness, height - thickness
    brain = ellipse(0.0, 0.0, width, height, 0.0)
    depth = between(0.66, 0.86)
    white = ellipse(0.0, between(-0.05, 0.05), depth * width, depth * height, 0.0)

    tissue = between(45.0, 95.0) + between(-30.0, 30.0) * x + between(-30.0, 30.0) * y
    tissue = tissue + between(-35.0, 35.0) * white
    image = np.where(brain, tissue, between(180.0, 255.0) * skull)

    fluid, lift, gap, lean = between(0.0, 35.0), between(-0.18, 0.18), between(0.14, 0.26), between(0.02, 0.22)
    for flank in (-1.0, 1.0):
        half_axes = between(0.06, 0.14), between(0.16, 0.36)
        image = np.where(brain & ellipse(flank * gap, lift, *half_axes, flank * lean), fluid, image)

    for _ in range(2 + int(next(draws) * (_MAX_LESIONS - 1))):
        center = between(-0.75, 0.75) * width, between(-0.75, 0.75) * height
        lesion = ellipse(*center, between(0.06, 0.18), between(0.06, 0.18), between(-1.0, 1.0))
        image = image + sign() * between(35.0, 110.0) * (brain & lesion)

    samples = np.clip(image, 0.0, 255.0).astype(np.int64).reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING)
    return ((samples.sum((1, 3)) + _SUPERSAMPLING**2 // 2) // _SUPERSAMPLING**2).astype(np.uint8)


def _cos_sin(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has this tangent."""
    m = half_tangent
    return (1.0 - m * m) / (1.0 + m * m), 2.0 * m / (1.0 + m * m)


def _ellipse(
    x: Float[np.ndarray, "1 w"],
    y: Float[np.ndarray, "h 1"],
    tilt: tuple[float, float],
    cx: float,
    cy: float,
    a: float,
    b: float,
    half_tangent: float,
) -> Bool[np.ndarray, "h w"]:
    """Pixels of an ellipse with half-axes (a, b) at (cx, cy), turned; all of it in axes that `tilt` turns."""
    cos, sin = _cos_sin(half_tangent)
    right, down = cos * cx + sin * cy, cos * cy - sin * cx  # the centre in the ellipse's own axes
    cos, sin = cos * tilt[0] - sin * tilt[1], cos * tilt[1] + sin * tilt[0]
    u = (cos * x - right) / a + (sin * y) / a
    v = (cos * y - down) / b - (sin * x) / b
    return u * u + v * v <= 1.0
