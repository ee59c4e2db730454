"""The fingerprint: a grey disc wholly inside the image, on NumPy arrays and on JAX arrays, traced ones too."""

from typing import overload

import numpy as np
from jaxtyping import Array, Bool, Shaped

from ..core.errors import check
from ..core.images import AnyArray

FINGERPRINT_BYTE = 128
# The same grey in model range: to_model(128) = 1/256.
FINGERPRINT_VALUE = (FINGERPRINT_BYTE + 0.5) / 128 - 1


def disc_radius(side: int) -> int:
    """Radius in pixels of the disc for images of this side: 9/64 of it, rounded (halves to even).

    >>> disc_radius(16), disc_radius(28), disc_radius(64)
    (2, 4, 9)
    """
    return round(9 * side / 64)


def check_disc(height: int, width: int, radius: int) -> None:
    """Raises `RequestError` unless a disc of `radius` >= 1 pixels fits wholly into height x width pixels.

    >>> check_disc(28, 28, 4)
    >>> check_disc(28, 8, 4)
    Traceback (most recent call last):
    ...
    fpjax.core.errors.RequestError: fingerprint radius: got 4 for images of 28x8 pixels, expected 1 to 3; fix: use \
larger images or a smaller disc
    """
    largest = (min(height, width) - 1) // 2
    check(
        1 <= radius <= largest,
        "fingerprint radius",
        got=f"{radius} for images of {height}x{width} pixels",
        expected=f"1 to {largest}" if largest >= 1 else "images of 3x3 pixels or more",
        fix="use larger images or a smaller disc",
    )


_Place = int | np.integer | Shaped[Array, ""]


@overload
def disc_mask(
    shape: tuple[int, int], center: tuple[Shaped[Array, ""], Shaped[Array, ""]], radius: int
) -> Bool[Array, "h w"]: ...


@overload
def disc_mask(shape: tuple[int, int], center: tuple[int, int], radius: int) -> Bool[np.ndarray, "h w"]: ...


def disc_mask(
    shape: tuple[int, int],
    center: tuple[_Place, _Place],
    radius: int,
) -> Bool[np.ndarray | Array, "h w"]:
    """L_p of eq. 10: the pixels at most `radius` away from `center`.

    The disc is wholly inside if radius <= row <= h - 1 - radius, and likewise for columns; nothing here checks it.

    Args:
      shape: (h, w), static.
      center: (row, col); integers give a NumPy mask, JAX integers (traced or not) a JAX one.
      radius: in pixels.
    """
    rows = np.arange(shape[0], dtype=np.int32)[:, None] - center[0]
    cols = np.arange(shape[1], dtype=np.int32)[None, :] - center[1]
    return rows**2 + cols**2 <= radius**2


def stamp(
    image: Shaped[AnyArray, "h w c"], mask: Bool[AnyArray, "h w"], value: int | float | Array
) -> Shaped[AnyArray, "h w c"]:
    """Paper eq. 10, x_p = x_i (1 - L_p) + x_SAF L_p: `value` under the mask, `image` elsewhere, bit by bit.

    Args:
      image: bytes or model range; finite.
      mask: L_p, as `disc_mask` gives it.
      value: the grey in the image's own range: `FINGERPRINT_BYTE` for bytes, `FINGERPRINT_VALUE` for model range.

    Returns:
      A new image of the same dtype.
    """
    inside = mask[..., None].astype(image.dtype)
    return image * (1 - inside) + value * inside
