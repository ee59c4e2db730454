"""What a report draws beside the audit's numbers: images, and the course of training."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Returns(NamedTuple):
    """Chains that start at members, and what they ended as (paper, Fig. 4); a member's by increasing time."""

    target: np.ndarray  # (n,) int, row in the targets
    t: np.ndarray  # (n,) that the member was noised to
    detected: np.ndarray  # (n,) bool, as that member
    start: np.ndarray  # (n, h, w, c) uint8, the noised member
    end: np.ndarray  # (n, h, w, c) uint8


class ReportImages(NamedTuple):
    """Pictures of the report, uint8 of shape (n, h, w, c) with c = 1 or 3."""

    targets: np.ndarray  # members first
    originals: np.ndarray  # the targets without their fingerprints
    train: np.ndarray  # some training images
    samples: np.ndarray  # some plain samples
    hits: np.ndarray  # samples detected as a member, may be empty
    hit_target: np.ndarray  # (n_hits,) int, row in `targets`
    # Errors by kind, a key of `ERRORS`, with the row of the target of each, or None where no target is meant.
    errors: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}  # noqa: RUF012
    # By classifier, images that it was trained on (paper, Fig. 7), and whether each is a positive.
    examples: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # noqa: RUF012
    # Samples that are not detected but nearest to a member, and its row in `targets`.
    near_misses: tuple[np.ndarray, np.ndarray] | None = None
    returns: Returns | None = None


class Training(NamedTuple):
    """The score network's training; may be empty. The rates are this machine's, the rest is the same anywhere."""

    step: Sequence[int] = ()  # at which the rest was logged: means since the step before
    loss: Sequence[float] = ()
    grad_norm: Sequence[float | None] = ()
    loss_by_t: Sequence[float | None] = ()  # the last, in equal bins of t in [0, 1]; None where no image fell
    images_per_s: float = math.nan
    tflop_per_s: float = math.nan
    samples: np.ndarray | None = None  # the last that were drawn on the way, uint8 of shape (n, h, w, c)
    samples_step: int = 0
    # By classifier: epochs, loss, loss in validation.
    classifiers: dict[str, tuple[Sequence[int], Sequence[float], Sequence[float]]] = {}  # noqa: RUF012


_PICTURES = ("targets", "hits", "near_misses", "samples", "train", "on_the_way")
# Kinds of errors that are shown, what each is, and whether the target that is meant lies above it.
ERRORS = {
    "fingerprint_false": "Real images without a mark in which the fingerprint classifier sees one.",
    "identity_false": "Real images that are taken for a target, each beneath it.",
    "missed": "Targets under fresh marks and noise that are not found, each beneath the target.",
    "control": "Samples that are taken for a target that was never trained on, each beneath it.",
    "fingerprint_only": "Samples in which the fingerprint classifier alone sees a mark.",
    "identity_only": "Samples that the identity classifier alone takes for a target, each beneath it.",
    "missed_chain": "Chains from low noise whose target is not found, each beneath the target.",
}


def is_picture(name: str) -> bool:
    """Whether a figure shows images, which can be those of members."""
    return name in _PICTURES or name.startswith(("returns_", "error_", "examples_"))
