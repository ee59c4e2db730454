"""How often a detector errs, measured where the truth is known: on real images that nothing was trained on.

Three decisions have a ROC curve: the mark (c_p), the identity (c_id: a target by its own head, against other images by
any), and both at once, which counts the smaller of the two scores. Each is measured on plain images, under noise of the
trained range and twice as strong, in other tones and blurred, and under random masks; `count` adds denoising residue. A
curve is kept as integer counts above fixed thresholds, the same on every machine.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ..core.compilation import jit_once
from ..core.images import to_bytes, to_model
from ..core.types import DetectFn, Image, Key
from .augment import add_noise, mask_randomly, reproduce_poorly, stamp_randomly
from .base import check_scores, detect_all, exceeding, joint_scores
from .settings import ClassifierSettings

# In steps of 3/4 up to scores that float32 still tells from 0 and 1; the middle one is a score of 1/2.
ROC_LOGITS = np.linspace(-12, 12, 33)
ROC_THRESHOLDS = 1 / (1 + np.exp(-ROC_LOGITS))
FINGERPRINT, IDENTITY, JOINT = "fingerprint", "identity", "joint"
POOR = "other tones and blur"
KEPT_ERRORS = 8


def count_above(scores: np.ndarray) -> np.ndarray:
    """How many scores lie above each of `ROC_THRESHOLDS`, int64."""
    return scores.size - np.searchsorted(np.sort(scores, axis=None), ROC_THRESHOLDS, side="right")


@dataclasses.dataclass(frozen=True)
class Roc:
    """Counts of one decision under one condition: positives that should be found, negatives that should not."""

    decision: str
    condition: str
    num_positives: int
    num_negatives: int  # scores; each image has one for every head that is not its own
    num_images: int  # that the negatives come from
    positives_above: Int[np.ndarray, " thresholds"]  # of each of ROC_THRESHOLDS
    negatives_above: Int[np.ndarray, " thresholds"]
    missed: int  # positives not above the threshold in use
    false_images: int  # images with some negative above it


def make_roc(decision: str, condition: str, positives: np.ndarray, negatives: np.ndarray, *, threshold: float) -> Roc:
    """Counts of the scores.

    Args:
      positives: (m,) scores.
      negatives: (n, heads) scores of n images.
      threshold: the one in use.
    """
    return Roc(
        decision,
        condition,
        positives.size,
        negatives.size,
        len(negatives),
        count_above(positives),
        count_above(negatives),
        int((positives <= threshold).sum()),
        int((negatives > threshold).any(axis=1).sum()),
    )


@dataclasses.dataclass(frozen=True)
class RealErrors:
    """Measured on real images that no detector and no score model was trained on; integer counts."""

    num_images: int
    heads: int
    draws_per_target: int
    roc: list[Roc]
    false_by_head: Int[np.ndarray, " heads"]  # plain images that each head and c_p take for a target
    false_images_at: Int[np.ndarray, " thresholds"]  # images that any does, by `classifiers.thresholds`
    missed_at: Int[np.ndarray, " thresholds"]  # draws of the targets under noise that both together miss
    planted_found: Int[np.ndarray, " heads"]  # 1 where the target as planted is found
    poor_found: Int[np.ndarray, " heads"]  # of `draws_per_target` poor copies of each target as planted, those found


class Pictures(NamedTuple):
    """Some of the errors at the threshold in use, uint8, those of the lowest rows, with the head that erred."""

    fingerprint_false: np.ndarray  # plain images without a mark that c_p sees one in
    identity_false: np.ndarray  # images that some head takes for its target
    identity_false_head: np.ndarray
    missed: np.ndarray  # targets that are not found
    missed_head: np.ndarray


def conditions(settings: ClassifierSettings, radius: int) -> dict[str, Callable[[Key, Image], Image]]:
    """What is done to images before they are judged; masks are discs, so there are none without a radius."""

    def more_noise(key: Key, image: Image) -> Image:
        return image + 2 * settings.max_noise * jax.random.normal(key, image.shape)

    changes: dict[str, Callable[[Key, Image], Image]] = {
        "plain": lambda key, image: image,
        "noise": functools.partial(add_noise, max_std=settings.max_noise),
        "twice the noise": more_noise,
    }
    if settings.max_tone or settings.max_blur:
        poor = functools.partial(reproduce_poorly, max_tone=settings.max_tone, max_blur=settings.max_blur)
        changes[POOR] = poor
    if radius:
        changes["masks"] = functools.partial(mask_randomly, radius=radius, max_masks=settings.max_masks)
    return changes


def measure_errors(
    detect: DetectFn,
    images: np.ndarray,
    targets: np.ndarray,
    planted: np.ndarray,
    *,
    key: Key,
    radius: int,
    min_contrast: float = 0.0,
    marks: bool,
    settings: ClassifierSettings,
    draws_per_target: int = 32,
) -> tuple[RealErrors, Pictures]:
    """Errors on held-out real images, and on the targets.

    Args:
      images: (n, h, w, c) uint8, seen by no training, none of them a target.
      targets: (k, h, w, c) uint8, in the order of the heads. With a radius their clean originals: each draw is stamped
        at a fresh place, as all images are whose identity is asked for.
      planted: (k, h, w, c) uint8, the targets as planted.
      key: of discs, tones, blur, noise and masks.
      radius: of the discs; 0: nothing is stamped.
      min_contrast: of the fresh discs, in model range, as that of the targets' own.
      marks: whether the detector looks for the mark.
      settings: tones, blur, noise, masks and thresholds.
      draws_per_target: positives of each target and condition.
    """
    heads, draws = len(targets), draws_per_target
    others, own = jnp.asarray(to_model(images)), jnp.asarray(np.repeat(to_model(targets), draws, axis=0))
    head = np.repeat(np.arange(heads), draws)
    threshold = settings.threshold
    roc: list[Roc] = []
    kept: dict[str, np.ndarray] = {}
    at: dict[str, np.ndarray] = {}

    def look(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        return check_scores(*detect_all(detect, x, np.arange(len(x))), images=len(x), targets=heads)

    poor = functools.partial(reproduce_poorly, max_tone=settings.max_tone, max_blur=settings.max_blur)
    (key, key_copies), whole = jax.random.split(key), to_model(planted)
    copies = jit_once(jax.vmap(poor))(
        jax.random.split(key_copies, len(head)), jnp.asarray(np.repeat(whole, draws, axis=0))
    )
    for name, shown, of in (("planted", jnp.asarray(whole), np.arange(heads)), ("poor", copies, head)):
        found = joint_scores(*look(shown))[np.arange(len(of)), of] > threshold
        at[f"{name}_found"] = np.bincount(of, found, minlength=heads).astype(int)
    for i, (condition, change) in enumerate(conditions(settings, radius).items()):

        @jit_once
        def prepare(key: Key, others: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            def each(function: Callable[[Key, Image], Image], place: int, batch: jax.Array) -> jax.Array:
                return jax.vmap(function)(jax.random.split(jax.random.fold_in(key, place), len(batch)), batch)

            stamp = functools.partial(stamp_randomly, radius=radius, min_contrast=min_contrast)
            others_, own_ = (each(stamp, 0, others), each(stamp, 1, own)) if radius else (others, own)
            return each(change, 2, others_), each(change, 3, own_), each(change, 4, others)  # noqa: B023

        batches = prepare(jax.random.fold_in(key, i), others, own)
        (mark, who), (own_mark, own_who) = (look(x) for x in batches[:2])
        shown, found, clean = batches
        own_who = own_who[np.arange(len(head)), head]
        both, own_both = joint_scores(mark, who), np.minimum(own_mark, own_who)
        # A mask is a disc, so under masks there is no image without a mark.
        if marks and condition != "masks":
            unmarked = look(clean)[0]
            roc.append(make_roc(FINGERPRINT, condition, mark, unmarked[:, None], threshold=threshold))
            if condition == "plain":
                rows = np.flatnonzero(unmarked > threshold)[:KEPT_ERRORS]
                kept["fingerprint_false"] = to_bytes(np.asarray(clean[rows]))
        roc.append(make_roc(IDENTITY, condition, own_who, who, threshold=threshold))
        if marks:
            roc.append(make_roc(JOINT, condition, own_both, both, threshold=threshold))
        if condition == "plain":
            at["false_by_head"] = (both > threshold).sum(axis=0)
            at["false_images_at"] = exceeding(both, settings.thresholds).any(axis=1).sum(axis=0)
            rows = np.flatnonzero((who > threshold).any(axis=1))[:KEPT_ERRORS]
            kept["identity_false"] = to_bytes(np.asarray(shown[rows]))
            kept["identity_false_head"] = np.argmax(who[rows], axis=1)
        if condition == "noise":
            at["missed_at"] = (~exceeding(own_both, settings.thresholds)).sum(axis=0)
            rows = np.flatnonzero(own_both <= threshold)[:KEPT_ERRORS]
            kept["missed"] = to_bytes(np.asarray(found[rows]))
            kept["missed_head"] = head[rows]
    kept.setdefault("fingerprint_false", np.asarray(images[:0]))
    return RealErrors(len(images), heads, draws, roc, **at), Pictures(**kept)


DECISIONS = (FINGERPRINT, IDENTITY, JOINT)


class Residue(NamedTuple):
    """How the detectors judge what comes back from low levels, decision by decision; integer arrays."""

    above: Int[np.ndarray, "decisions 2 logits"]  # positives and negatives above each of ROC_THRESHOLDS
    total: Int[np.ndarray, "decisions 2"]
    errors: Int[np.ndarray, "decisions 2"]  # positives that are missed, images with some negative above the threshold
    images: Int[np.ndarray, ""]

    @classmethod
    def zeros(cls) -> "Residue":
        """Nothing counted yet."""
        shape = len(DECISIONS), 2
        above, total, errors = (np.zeros(each, np.int64) for each in ((*shape, len(ROC_LOGITS)), shape, shape))
        return cls(above, total, errors, np.zeros((), np.int64))

    def add(self, fingerprint: np.ndarray, identity: np.ndarray, own: np.ndarray, *, threshold: float) -> None:
        """Counts chains that came back to their targets: the own head is to say yes, all others no; each has a mark.

        Args:
          fingerprint: (n,) scores.
          identity: (n, heads) scores.
          own: (n,) heads of the targets that the chains started from.
        """
        rows = np.arange(len(own))
        others = np.ones(identity.shape, bool)
        others[rows, own] = False
        joint = joint_scores(fingerprint, identity)
        pairs = [(fingerprint, identity[:, :0])]
        for scores in (identity, joint):
            pairs.append((scores[rows, own], scores[others].reshape(len(own), identity.shape[1] - 1)))
        for i, (positives, negatives) in enumerate(pairs):
            roc = make_roc(DECISIONS[i], "", positives, negatives, threshold=threshold)
            self.above[i] += [roc.positives_above, roc.negatives_above]
            self.total[i] += [roc.num_positives, roc.num_negatives]
            self.errors[i] += [roc.missed, roc.false_images]
        self.images[...] += len(own)

    def roc(self) -> list[Roc]:
        """What was counted, as on real images."""
        return [
            Roc(
                decision,
                "residue",
                num_positives=int(self.total[i, 0]),
                num_negatives=int(self.total[i, 1]),
                num_images=int(self.images),
                positives_above=self.above[i, 0],
                negatives_above=self.above[i, 1],
                missed=int(self.errors[i, 0]),
                false_images=int(self.errors[i, 1]),
            )
            for i, decision in enumerate(DECISIONS)
        ]
