"""The gate that detectors pass before any chain is run, and the threshold of each of their heads.

A head must see its target as planted and poor copies of it (in other tones, blurred), and none of the real held-out
images, at one threshold. What it must find lies above `found`, the logit that all but a share 1 - s of the poor copies
exceed; what it must not lies below `silent`, the highest logit on held-out images. Where `found` is the larger the
target is *seen*; else the gate is shut. Both are conformal (Vovk et al. 2005): of m copies `found` is the k-th lowest
score with k = floor((1 - s)(m + 1)), so that a further copy, drawn alike, exceeds it with probability at least s. The
threshold is taken a quarter of the way from `silent`: models reproduce more poorly still, and held-out targets show
how often a head fires in vain. Calibration looks at images of the split val, whose errors are not reported; those of
`errors` are measured on others.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from ..core.compilation import jit_once
from ..core.types import Images, Key
from ..data.fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from .augment import reproduce_poorly, stamp_randomly
from .base import BATCH_SIZE

WAY = 0.25  # from `silent` to `found`


class GateImages(NamedTuple):
    """What the gate shows, float32 in model range."""

    targets: Images  # (targets x (1 + copies), h, w, c) each as planted, then its poor copies
    clean: Images  # (n, h, w, c) held-out images without a disc
    marked: Images  # (2 n, h, w, c) the same under fresh discs, and under the disc of some target


@dataclasses.dataclass(frozen=True)
class Sight:
    """Logits of one network at the gate, one of each target: what must be found, and what must not, lies beyond."""

    found: Float[np.ndarray, " targets"]
    silent: Float[np.ndarray, " targets"]

    @property
    def seen(self) -> np.ndarray:
        """(targets,) bool, whether some threshold separates the two."""
        return self.found > self.silent


def gate_images(
    key: Key,
    others: jax.Array,
    originals: jax.Array,
    centers: jax.Array,
    *,
    radius: int,
    copies: int,
    max_tone: float,
    max_blur: float,
) -> GateImages:
    """Draws them.

    Args:
      others: (n, h, w, c) held-out images in model range, of the split val.
      originals: (targets, h, w, c) clean.
      centers: (targets, 2) row and column of each disc.
      radius: of the discs, in pixels.
      copies: poor ones of each target.
      max_tone, max_blur: of `reproduce_poorly`.
    """
    key_copies, key_fresh, key_place = jax.random.split(key, 3)
    shape = (originals.shape[1], originals.shape[2])

    def planted(image: jax.Array, center: jax.Array) -> jax.Array:
        return stamp(image, disc_mask(shape, (center[0], center[1]), radius), FINGERPRINT_VALUE)

    poor = functools.partial(reproduce_poorly, max_tone=max_tone, max_blur=max_blur)
    fresh = functools.partial(stamp_randomly, radius=radius)

    @jit_once
    def draw(others: jax.Array, originals: jax.Array, centers: jax.Array) -> GateImages:
        targets = jax.vmap(planted)(originals, centers)
        keys = jax.random.split(key_copies, (len(targets), copies))
        poorly = jax.vmap(jax.vmap(poor, in_axes=(0, None)))(keys, targets)
        place = centers[jax.random.randint(key_place, (len(others),), 0, len(targets))]
        marked = [jax.vmap(fresh)(jax.random.split(key_fresh, len(others)), others), jax.vmap(planted)(others, place)]
        shown = jnp.concatenate([targets[:, None], poorly], axis=1)
        return GateImages(shown.reshape(-1, *shown.shape[2:]), others, jnp.concatenate(marked))

    return draw(others, originals, centers)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    return model.apply(variables, images)  # pyright: ignore[reportReturnType]


def _all_logits(model: nn.Module, variables: Any, images: jax.Array) -> np.ndarray:
    """(n, heads), in batches of one shape."""
    rows = np.arange(-(-len(images) // BATCH_SIZE) * BATCH_SIZE) % len(images)
    parts = [np.asarray(_logits(model, variables, images[part])) for part in rows.reshape(-1, BATCH_SIZE)]
    return np.concatenate(parts)[: len(images)]


def lowest_found(logits: np.ndarray, sensitivity: float) -> np.ndarray:
    """`found` of (..., 1 + copies) logits, the first of which is that of the target as planted.

    >>> float(lowest_found(np.arange(20.0)[None], 0.9)[0])
    0.0
    >>> float(lowest_found(np.append(50.0, np.arange(19.0))[None], 0.9)[0])
    1.0
    """
    planted, copies = logits[..., 0], np.sort(logits[..., 1:], axis=-1)
    place = math.floor((1 - sensitivity) * (copies.shape[-1] + 1) + 1e-9)
    return np.asarray(np.minimum(planted, copies[..., max(place - 1, 0)]))


def look_for_targets(model: nn.Module, variables: Any, images: GateImages, *, sensitivity: float) -> Sight:
    """What the identity classifier sees: each target by its own head, among real images under discs."""
    heads = model.num_heads  # pyright: ignore[reportAttributeAccessIssue]
    logits = _all_logits(model, variables, images.targets).reshape(heads, -1, heads)
    own = logits[np.arange(heads), :, np.arange(heads)]
    return Sight(lowest_found(own, sensitivity), _all_logits(model, variables, images.marked).max(axis=0))


def look_for_marks(model: nn.Module, variables: Any, images: GateImages, *, targets: int, sensitivity: float) -> Sight:
    """What the fingerprint classifier sees: the mark of each target, among real images without one.

    It alone takes nothing for a target, so of the images without a mark it may take a share 1 - s for marked.
    """
    own = _all_logits(model, variables, images.targets).reshape(targets, -1)
    clean = -_all_logits(model, variables, images.clean)[:, 0]
    silent = -lowest_found(np.append(np.inf, clean), sensitivity)
    return Sight(lowest_found(own, sensitivity), np.full(targets, silent, np.float32))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Thresholds as logits: a score is 1/2 there."""

    fingerprint: float
    identity: Float[np.ndarray, " targets"]


def calibrate(marks: Sight | None, targets: Sight, *, kept: np.ndarray) -> Calibration:
    """A quarter of the way from what must not be found; the mark has one threshold for all targets.

    Args:
      marks: None: no fingerprint classifier.
      kept: (targets,) bool, those that stay targets.
    """
    mark = 0.0 if marks is None else _between(float(marks.silent[0]), float(marks.found[kept].min()))
    return Calibration(mark, np.asarray(_between(targets.silent, targets.found), np.float32))


def _between(silent: Any, found: Any) -> Any:
    return silent + WAY * (found - silent)
