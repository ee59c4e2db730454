"""Detection, whatever detects: what a detector is to the rest, and its scores of the images that have finished.

An image is taken for a target if its score as that target and its score for the fingerprint exceed the threshold: if
the smaller of the two, the joint score, does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import RequestError, check
from ..core.types import DetectFn, Images

BATCH_SIZE = 256


def check_detect(detect: DetectFn, image_shape: tuple[int, ...], num_targets: int) -> None:
    """Refuses detectors of other shapes or types before any chain is run, by what they say of blank images."""
    wanted = (BATCH_SIZE,), (BATCH_SIZE, num_targets)
    found = detect(jnp.zeros((BATCH_SIZE, *image_shape)))
    leaves = list(found) if isinstance(found, tuple) else [found]
    check(
        [np.shape(leaf) for leaf in leaves] == list(wanted)
        and all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves),
        "detect",
        got=", ".join(f"{jnp.result_type(leaf)}{list(np.shape(leaf))}" for leaf in leaves) or "nothing",
        expected=f"scores of the types float32{list(wanted[0])} and float32{list(wanted[1])} of {BATCH_SIZE} images",
        fix=f"return (fingerprint, identity), a score for each image and for each of the {num_targets} targets",
    )


class Detector(NamedTuple):
    """How images are judged, and what is said of it; search, count and report ask for nothing else.

    Attributes:
      weights: pytree that `detect` reads: an argument of the compiled program, not a constant in it.
      detect: a pure function of (weights, images) to scores, as of `DetectFn`.
      description: one line for the report.
      marks: whether it looks for the mark as well as for the target; its fingerprint score is 1 otherwise.
      advice: what makes it err less, for the verdict.
    """

    weights: Any
    detect: Callable[[Any, Images], Any]
    description: str
    marks: bool
    advice: str

    @property
    def detect_fn(self) -> DetectFn:
        """Scores of images by these weights."""
        return lambda images: self.detect(self.weights, images)


def check_scores(fingerprint: Any, identity: Any, *, images: int, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Both scores of a detector as float32 arrays on the host.

    Raises:
      RequestError: a shape, NaN, or a number outside [0, 1]; names the score and the first image that it is wrong at.
    """
    arrays = []
    for name, scores, shape in (("fingerprint", fingerprint, (images,)), ("identity", identity, (images, targets))):
        try:
            scores = np.asarray(scores, np.float32)
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"detector's {name} scores: got {type(scores).__name__}, expected an array of numbers; fix: return one"
            ) from error
        fix = f"return ({'n,' if name == 'fingerprint' else 'n, targets'}) scores for n images"
        check(
            scores.shape == shape,
            f"detector's {name} scores",
            got=f"shape {scores.shape}",
            expected=f"{shape}",
            fix=fix,
        )
        wrong = np.argwhere(~((scores >= 0) & (scores <= 1)))
        if len(wrong):
            at = tuple(wrong[0].tolist())
            where = f"at image {at[0]}" + (f", target {at[1]}" if len(at) > 1 else "")
            check(
                False,
                f"detector's {name} scores",
                got=f"{scores[at]} {where}",
                expected="numbers in [0, 1]",
                fix="map what it computes to [0, 1], such as by a sigmoid",
            )
        arrays.append(scores)
    return arrays[0], arrays[1]


def as_detect_fn(function: Callable[[Images], Any], *, num_targets: int) -> DetectFn:
    """A user's function as a `DetectFn` whose scores are checked at every call.

    Args:
      function: from (n, h, w, c) images in model range to `(fingerprint, identity)` scores of shapes (n,) and
        (n, targets), or to identity scores alone; any numbers in [0, 1] that NumPy can read.
      num_targets: heads that it must have.
    """

    def detect(images: Images) -> Any:
        found = function(images)
        pair = found if isinstance(found, tuple) else (np.ones(len(images), np.float32), found)
        check(
            len(pair) == 2,
            "detector",
            got=f"{len(pair)} results",
            expected="(fingerprint, identity) scores, or identity scores alone",
            fix="return a pair of arrays, or one array",
        )
        return check_scores(*pair, images=len(images), targets=num_targets)

    return detect


def detect_all(
    detect: DetectFn, images: Images, rows: np.ndarray, *, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of some rows of a batch of images, in one compiled shape.

    Args:
      detect: jitted.
      images: (n, h, w, c) on this process's devices.
      rows: (k,) rows to look at.

    Returns:
      `(fingerprint, identity)`: float32 arrays of shapes (k,) and (k, targets).
    """
    parts = []
    # Without rows too, for the number of targets: a detector that is no JAX function cannot be asked otherwise.
    for start in range(0, max(len(rows), 1), batch_size):
        part = rows[start : start + batch_size]
        padded = np.zeros(batch_size, np.int32)
        padded[: len(part)] = part
        # Where the detectors' weights are: chains finish on every device.
        batch = jax.device_put(images[padded], jax.local_devices()[0])
        parts.append([np.asarray(scores, np.float32)[: len(part)] for scores in detect(batch)])
    fingerprint, identity = (np.concatenate(column) for column in zip(*parts, strict=True))
    return fingerprint, identity


def joint_scores(fingerprint: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """The smaller of both scores, (k, targets)."""
    return np.minimum(fingerprint[:, None], identity)


def exceeding(scores: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """Whether each score exceeds each threshold; one more axis, the last."""
    return scores[..., None] > np.asarray(thresholds, np.float32)
