"""Shape aliases and the few function types that the modules hand to each other.

Images are float32 in model range [-1, 1], channels last. Diffusion times lie in [0, 1].
"""

from typing import Any, Protocol, runtime_checkable

import jaxtyping
from jaxtyping import Array, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
Keys = jaxtyping.Key[Array, " n"]
Scalar = Float[Array, ""]
Time = Float[Array, ""]
Image = Float[Array, "h w c"]
Images = Float[Array, "n h w c"]
Scores = Float[Array, "n heads"]
Level = Int[Array, ""]


@runtime_checkable
class Network(Protocol):
    """What is asked of a network: a Flax module, or whatever has this method of one."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Output at `(x, t)`, images and one time each."""
        ...


@runtime_checkable
class ScoreFn(Protocol):
    """Score of the noised data density, grad_x log p_t(x), for one image and one time."""

    def __call__(self, x: Image, t: Time) -> Image:
        """Score at x, time t in (0, 1]."""
        ...


@runtime_checkable
class DetectFn(Protocol):
    """Evidence that an image is each target: scores in [0, 1], one row an image.

    Returns `(fingerprint, identity)` of shapes (n,) and (n, targets).
    """

    def __call__(self, images: Images) -> tuple[Float[Array, " n"], Scores]:
        """Scores of a batch."""
        ...
