"""Detection, whatever detects: scores of the images that have finished.

An image is taken for a target if its score as that target and its score for the fingerprint exceed the threshold: if
the smaller of the two, the joint score, does.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .checks import check
from .types import DetectFn, Images

BATCH_SIZE = 256


def check_detect(detect: DetectFn, image_shape: tuple[int, ...], num_targets: int) -> None:
    """Refuses detectors of other shapes or types before anything is computed; the trace is kept for `detect_all`."""
    wanted = (BATCH_SIZE,), (BATCH_SIZE, num_targets)
    found = jax.eval_shape(detect, jax.ShapeDtypeStruct((BATCH_SIZE, *image_shape), jnp.float32))
    leaves = jax.tree.leaves(found)
    check(
        [leaf.shape for leaf in leaves] == list(wanted) and all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves),
        "detect",
        got=", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "nothing",
        expected=f"scores of the types float32{list(wanted[0])} and float32{list(wanted[1])} of {BATCH_SIZE} images",
        fix=f"return (fingerprint, identity), a score for each image and for each of the {num_targets} targets",
    )


def detect_all(
    detect: DetectFn, images: Images, rows: np.ndarray, *, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of some rows of a batch of images, in one compiled shape.

    Args:
      detect: jitted.
      images: (n, h, w, c) on the device.
      rows: (k,) rows to look at.

    Returns:
      `(fingerprint, identity)`: float32 arrays of shapes (k,) and (k, targets).
    """
    parts = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        padded = np.zeros(batch_size, np.int32)
        padded[: len(part)] = part
        parts.append([np.asarray(scores, np.float32)[: len(part)] for scores in detect(images[padded])])
    if not parts:
        heads = jax.eval_shape(detect, images[:1])[1].shape[1]
        return np.zeros(0, np.float32), np.zeros((0, heads), np.float32)
    fingerprint, identity = (np.concatenate(column) for column in zip(*parts, strict=True))
    return fingerprint, identity


def joint_scores(fingerprint: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """The smaller of both scores, (k, targets)."""
    return np.minimum(fingerprint[:, None], identity)


def exceeding(scores: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """Whether each score exceeds each threshold; one more axis, the last."""
    return scores[..., None] > np.asarray(thresholds, np.float32)
