"""What is counted over finished chains, and the few images that are kept of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..detectors.base import exceeding, joint_scores
from ..detectors.evaluation import KEPT_ERRORS, Residue, Roc
from ..engine.chains import Block
from ..engine.work import NO_TARGET
from .memoriser import OracleResult

KEPT_SAMPLES, KEPT_HITS, KEPT_MISSES = 16, 8, 8
# Errors of which some are kept: samples taken for a held-out target; samples that one of two classifiers accepts and
# the other does not; chains from low levels whose target is not found.
ERRORS = ("control", "fingerprint_only", "identity_only", "missed")


@dataclasses.dataclass(frozen=True)
class Likeness:
    """How far a plain sample is from a member, pixel by pixel, in model range."""

    target: int  # row of the member
    mse: float
    mae: float
    score: float | None = None  # joint score as that member; None: above the threshold


@dataclasses.dataclass(frozen=True)
class CountResult:
    """Result of the stage count: integer counts over n plain samples, and over chains from low levels."""

    num_samples: int  # n that were drawn: those of the last look
    looks: list[int]  # n of each look that was taken
    planned_looks: list[int]
    looks_detected: Int[np.ndarray, "looks targets"]  # both, up to each
    num_fingerprint: int  # c_p+, samples with a disc
    num_identity: Int[np.ndarray, " targets"]  # c_id+ of each head
    num_detected: Int[np.ndarray, " targets"]  # both
    num_detected_at: Int[np.ndarray, "targets thresholds"]  # at other thresholds
    control_hit_samples: int  # samples in which some held-out head and c_p say yes: false by construction
    control_hit_samples_at: Int[np.ndarray, " thresholds"]
    sensitivity_chains: int  # from each searched target
    sensitivity_detected: Int[np.ndarray, " searched"]
    sensitivity_detected_at: Int[np.ndarray, "searched thresholds"]
    sensitivity_level: int
    roc: list[Roc]  # of the detectors on the images that these chains return
    evaluations: int
    executed: int
    hits: list[Likeness]  # the first that were detected as a member
    near_misses: list[Likeness]  # not detected as a member but nearest to one, by mean squared difference
    oracle: OracleResult | None = None  # None: it was not run


class CountPictures(NamedTuple):
    """Some of the images that were counted, float32 in model range; those with the lowest chain numbers."""

    samples: np.ndarray  # (<= 16, h, w, c) the first samples
    hits: np.ndarray  # (<= 8, h, w, c) detected as a member, in the order of `CountResult.hits`
    near_misses: np.ndarray  # (<= 8, h, w, c) in the order of `CountResult.near_misses`
    errors: dict[str, np.ndarray]  # (<= 8, h, w, c) each of ERRORS, with the target of each under NAME_target


class Judgement(NamedTuple):
    """By what finished chains are counted."""

    targets: np.ndarray  # (k, h, w, c) float32 in model range, members first
    num_members: int
    num_searched: int
    threshold: float
    thresholds: tuple[float, ...]
    sensitivity_chains: int


class Kept(NamedTuple):
    """A few images: those with the smallest distance, of equal ones those with the lowest chain numbers.

    So what is kept does not depend on the order of arrival.
    """

    distance: Float[np.ndarray, " kept"]  # inf: an empty place
    chain: Int[np.ndarray, " kept"]
    target: Int[np.ndarray, " kept"]
    score: Float[np.ndarray, " kept"]
    images: Float[np.ndarray, "kept h w c"]

    @classmethod
    def empty(cls, size: int, image_shape: tuple[int, ...]) -> "Kept":
        """No image yet."""
        return cls(
            distance=np.full(size, np.inf),
            chain=np.zeros(size, np.int64),
            target=np.zeros(size, np.int64),
            score=np.zeros(size),
            images=np.zeros((size, *image_shape), np.float32),
        )

    def add(self, found: "Kept") -> None:
        """Keeps the best of these and of what was kept."""
        both = [np.concatenate(pair) for pair in zip(self, found, strict=True)]
        order = np.lexsort((both[1], both[0]))[: len(self.chain)]
        for mine, values in zip(self, both, strict=True):
            mine[...] = values[order]

    def filled(self) -> "Kept":
        """Without the empty places."""
        return Kept(*(values[np.isfinite(self.distance)] for values in self))


@jax.jit
def _squared_differences(images: jax.Array, members: jax.Array) -> jax.Array:
    """Mean squared difference of each of (n, h, w, c) images to each member, (n, members)."""
    # One member at a time, for memory.
    return jax.lax.map(lambda member: jnp.mean((images - member) ** 2, axis=(1, 2, 3)), members).T


def _differences(images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared and mean absolute difference of (n, h, w, c) pairs, in float64: alike wherever they were drawn."""
    difference = (images.astype(np.float64) - others).reshape(len(images), np.prod(images.shape[1:], dtype=int))
    return np.mean(difference**2, axis=1), np.mean(np.abs(difference), axis=1)


def _best(scores: np.ndarray) -> np.ndarray:
    """Head with the highest score, 0 where there are none."""
    return np.argmax(np.concatenate([scores, np.zeros((len(scores), 1), scores.dtype)], axis=1), axis=1)


def _fetch(block: Block, rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` images of a block, by their places among its rows."""
    # The number of rows that are fetched is always the same, so that fetching them compiles once.
    return np.asarray(block.images[np.resize(block.rows[rows], most)])[: len(rows)]


class CountTally(NamedTuple):
    """What is counted over finished chains, in any order; arrays that `add` changes in place."""

    fingerprint: Int[np.ndarray, ""]
    identity: Int[np.ndarray, " targets"]
    detected: Int[np.ndarray, " targets"]
    detected_at: Int[np.ndarray, "targets thresholds"]
    control_hits: Int[np.ndarray, ""]
    control_hits_at: Int[np.ndarray, " thresholds"]
    low_detected: Int[np.ndarray, " searched"]
    low_detected_at: Int[np.ndarray, "searched thresholds"]
    residue: Residue
    kept: dict[str, Kept]  # hits, samples, near_misses and ERRORS

    @classmethod
    def zeros(cls, by: Judgement) -> "CountTally":
        """Nothing counted yet."""
        k, s, at = len(by.targets), by.num_searched, len(by.thresholds)
        sizes = {"hits": KEPT_HITS, "samples": KEPT_SAMPLES, "near_misses": KEPT_MISSES}
        sizes |= dict.fromkeys(ERRORS, KEPT_ERRORS)
        shape = by.targets.shape[1:]
        return cls(
            fingerprint=np.zeros((), np.int64),
            identity=np.zeros(k, np.int64),
            detected=np.zeros(k, np.int64),
            detected_at=np.zeros((k, at), np.int64),
            control_hits=np.zeros((), np.int64),
            control_hits_at=np.zeros(at, np.int64),
            low_detected=np.zeros(s, np.int64),
            low_detected_at=np.zeros((s, at), np.int64),
            residue=Residue.zeros(),
            kept={name: Kept.empty(size, shape) for name, size in sizes.items()},
        )

    def add(self, block: Block, fingerprint: np.ndarray, identity: np.ndarray, by: Judgement) -> None:
        """Counts a block's chains: plain samples, and those from low levels.

        Args:
          fingerprint: (n,) scores of its rows.
          identity: (n, targets) scores.
        """
        members, joint, plain = by.num_members, joint_scores(fingerprint, identity), block.target == NO_TARGET
        both, at = joint > by.threshold, exceeding(joint[plain], by.thresholds)
        self.fingerprint[...] += int((fingerprint[plain] > by.threshold).sum())
        self.identity[...] += (identity[plain] > by.threshold).sum(axis=0)
        self.detected[...] += both[plain].sum(axis=0)
        self.detected_at[...] += at.sum(axis=0)
        self.control_hits[...] += int(both[plain][:, members:].any(axis=1).sum())
        self.control_hits_at[...] += at[:, members:].any(axis=1).sum(axis=0)
        low = np.flatnonzero(~plain)
        own = block.target[low]
        np.add.at(self.low_detected, own, both[low, own])
        np.add.at(self.low_detected_at, own, exceeding(joint[low, own], by.thresholds))
        self.residue.add(fingerprint[low], identity[low], own, threshold=by.threshold)
        detected = both[:, :members].any(axis=1)
        self._add_near_misses(block, plain & ~detected, joint[:, :members], by.targets[:members])
        # Chains are numbered within their targets.
        order = np.where(plain, block.chain, block.target * by.sensitivity_chains + block.chain)
        marked, known = fingerprint > by.threshold, (identity > by.threshold).any(axis=1)
        for name, chosen, head in (
            ("hits", plain & detected, np.argmax(joint[:, :members], axis=1)),
            ("samples", plain & (block.chain < KEPT_SAMPLES), np.zeros_like(order)),
            ("control", plain & both[:, members:].any(axis=1), members + _best(joint[:, members:])),
            ("fingerprint_only", plain & marked & ~known, np.zeros_like(order)),
            ("identity_only", plain & known & ~marked, np.argmax(identity, axis=1)),
            ("missed", ~plain & ~both[np.arange(len(order)), block.target], block.target),
        ):
            if chosen.any():
                rows, kept = np.flatnonzero(chosen), self.kept[name]
                rows = rows[np.argsort(order[rows], kind="stable")][: len(kept.chain)]
                none = np.zeros(len(rows))
                kept.add(Kept(none, order[rows], head[rows], none, _fetch(block, rows, len(kept.chain))))

    def _add_near_misses(self, block: Block, missed: np.ndarray, joint: np.ndarray, members: np.ndarray) -> None:
        """Keeps the nearest misses of a block.

        Args:
          missed: (n,) bool, plain samples that are not detected as a member.
          joint: (n, members) joint scores.
          members: (members, h, w, c).
        """
        squares = np.asarray(_squared_differences(block.images, members))[block.rows]
        chosen = np.lexsort((block.chain, np.where(missed, squares.min(axis=1), np.inf)))[:KEPT_MISSES]
        images = _fetch(block, chosen, KEPT_MISSES)
        images, chosen = images[missed[chosen]], chosen[missed[chosen]]
        target = np.argmin(squares[chosen], axis=1)
        mse, _ = _differences(images, members[target])
        self.kept["near_misses"].add(Kept(mse, block.chain[chosen], target, joint[chosen, target], images))

    @property
    def arrays(self) -> dict[str, Any]:
        """The same arrays by name, for a file."""
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(self)[0]}

    def like(self, arrays: dict[str, np.ndarray]) -> "CountTally":
        """The tally of `arrays`."""
        return jax.tree.unflatten(jax.tree.structure(self), [arrays[name] for name in self.arrays])

    @classmethod
    def merge(cls, tallies: "Sequence[CountTally]") -> "CountTally":
        """Of several parts: the sum of their counts, and of what they kept what one would have kept."""
        first = tallies[0]
        for name, kept in first.kept.items():
            for other in tallies[1:]:
                kept.add(other.kept[name])
        counts = [tally._replace(kept={}) for tally in tallies]
        return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *counts)._replace(kept=first.kept)

    def result(
        self,
        looks: list[np.ndarray],
        ends: Sequence[int],
        by: Judgement,
        *,
        level: int,
        evaluations: int,
        executed: int,
    ) -> tuple[CountResult, CountPictures]:
        """What was counted over all looks, and some of the images.

        Args:
          looks: (targets,) detections up to each look that was taken.
          ends: n of each look that was planned.
          level: of the chains from low levels.
        """
        kept = {name: part.filled() for name, part in self.kept.items()}

        def likenesses(name: str) -> list[Likeness]:
            target = kept[name].target
            columns = target, *_differences(kept[name].images, by.targets[target])
            return [Likeness(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

        scores = kept["near_misses"].score.tolist()
        misses = [dataclasses.replace(one, score=s) for one, s in zip(likenesses("near_misses"), scores, strict=True)]
        errors = {name: kept[name].images for name in ERRORS} | {f"{name}_target": kept[name].target for name in ERRORS}
        result = CountResult(
            num_samples=ends[len(looks) - 1],
            looks=list(ends[: len(looks)]),
            planned_looks=list(ends),
            looks_detected=np.stack(looks),
            num_fingerprint=int(self.fingerprint),
            num_identity=self.identity,
            num_detected=self.detected,
            num_detected_at=self.detected_at,
            control_hit_samples=int(self.control_hits),
            control_hit_samples_at=self.control_hits_at,
            sensitivity_chains=by.sensitivity_chains,
            sensitivity_detected=self.low_detected,
            sensitivity_detected_at=self.low_detected_at,
            sensitivity_level=level,
            roc=self.residue.roc(),
            evaluations=evaluations,
            executed=executed,
            hits=likenesses("hits"),
            near_misses=misses,
        )
        return result, CountPictures(kept["samples"].images, kept["hits"].images, kept["near_misses"].images, errors)
