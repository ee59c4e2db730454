"""How often plain sampling reproduces a target: |q| of n (paper, Tab. 1 and 2), and how far the detectors go wrong.

The n samples may be drawn in *looks* that were declared beforehand: after each the counts are kept and tested, and the
next is drawn only where that has not decided. Beside them run, on the same engine, chains from the lowest levels, which
come back as the target whatever the model learned and so measure the detectors' sensitivity to denoising residue; and
the same detectors on the empirical oracle, the perfect memoriser, which must be found. Of the samples that are not
detected as a member it keeps those that are nearest to one in pixels: a copy that the detectors are blind to would be
among them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import check, whole
from ..core.metrics import MetricsLog
from ..core.types import DetectFn, Key
from ..detectors.base import check_detect, exceeding, joint_scores
from ..detectors.evaluation import KEPT_ERRORS, add_residue, residue_roc, residue_tally
from ..diffusion.grid import TimeGrid
from ..diffusion.oracle import nearest_image
from ..engine.chains import Block, Engine
from ..engine.resume import add_tallies, block_scores, run_saved
from ..engine.work import MAX_CHAINS, NO_TARGET, Work, concatenate_work, make_work

KEPT_SAMPLES, KEPT_HITS, KEPT_MISSES = 16, 8, 8
NOTHING = np.iinfo(np.int64).max  # chain number of an empty place
# Errors of which some are kept: samples taken for a held-out target; samples that one of two classifiers accepts and
# the other does not; chains from low levels whose target is not found.
ERRORS = ("control", "fingerprint_only", "identity_only", "missed")


@dataclasses.dataclass(frozen=True)
class CountSettings:
    """How many chains are run.

    Attributes:
      num_samples: n, plain samples of the trained model.
      looks: samples after which the counts are tested, increasing and up to n; none: after all n alone. They share the
        level, and a look that rejects is the last.
      sensitivity_chains: chains from each searched target at the highest level whose noise is below one grey level.
      oracle_samples: plain samples of the empirical oracle.
    """

    num_samples: int = 50_000
    looks: tuple[int, ...] = ()
    sensitivity_chains: int = 256
    oracle_samples: int = 1024

    def __post_init__(self) -> None:
        whole("count", self, names=("num_samples", "sensitivity_chains", "oracle_samples"), most=MAX_CHAINS)
        check(
            not self.looks or (bool(np.all(np.diff((0, *self.looks)) > 0)) and self.looks[-1] == self.num_samples),
            "count.looks",
            got=self.looks,
            expected=f"increasing numbers of samples, the last of them count.num_samples = {self.num_samples}",
            fix="sort them and end with all samples, or leave them out",
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """Samples after which the counts are tested."""
        return self.looks or (self.num_samples,)


class CountResult(NamedTuple):
    """Integer counts over n plain samples, and over chains from low levels."""

    num_samples: int  # n that were drawn: those of the last look
    looks: np.ndarray  # (looks,) n of each look that was taken
    looks_detected: np.ndarray  # (looks, targets) both, up to each
    num_fingerprint: int  # c_p+, samples with a disc
    num_identity: np.ndarray  # (targets,) c_id+ of each head
    num_detected: np.ndarray  # (targets,) both
    num_detected_at: np.ndarray  # (targets, thresholds), at other thresholds
    control_hit_samples: int  # samples in which some held-out head and c_p say yes: false by construction
    control_hit_samples_at: np.ndarray  # (thresholds,)
    sensitivity_chains: int  # from each searched target
    sensitivity_detected: np.ndarray  # (searched,)
    sensitivity_detected_at: np.ndarray  # (searched, thresholds)
    sensitivity_level: int
    roc: list[dict[str, Any]]  # of the detectors on the images that these chains return
    evaluations: int
    executed: int
    samples: np.ndarray  # (<= 16, h, w, c) the first samples, model range
    hits: np.ndarray  # (<= 8, h, w, c) detected as a member, lowest chain numbers
    hit_target: np.ndarray  # (<= 8,) member row of each
    hit_mse: np.ndarray  # (<= 8,) mean squared difference to that member, model range
    hit_mae: np.ndarray  # (<= 8,) mean absolute difference
    near_misses: np.ndarray  # (<= 8, h, w, c) not detected as a member but nearest to one, by mean squared difference
    near_target: np.ndarray  # (<= 8,) row of that member
    near_mse: np.ndarray  # (<= 8,) increasing
    near_mae: np.ndarray  # (<= 8,)
    near_score: np.ndarray  # (<= 8,) joint score as that member
    errors: dict[str, np.ndarray]  # (<= 8, h, w, c) each, model range, with the target of each under NAME_target


def sensitivity_level(grid: TimeGrid) -> int:
    """Highest level whose noise is at most one grey level (std 1/128), at least 1."""
    return max(1, int(np.searchsorted(grid.std, 1 / 128, side="right")) - 1)


def count_work(settings: CountSettings, grid: TimeGrid, num_searched: int, *, look: int | None = None) -> Work:
    """Plain samples of a look, or of all; with the first of them the chains from low levels of the searched targets."""
    first, last = 0, settings.num_samples
    if look is not None:
        first, last = (0, *settings.ends)[look], settings.ends[look]
    plain = make_work(NO_TARGET, grid.num_levels, last - first, first=first)
    if first:
        return plain
    low = make_work(np.arange(num_searched), sensitivity_level(grid), settings.sensitivity_chains)
    return concatenate_work([plain, low])


def _best(scores: np.ndarray) -> np.ndarray:
    """Head with the highest score, 0 where there are none."""
    return np.argmax(np.concatenate([scores, np.zeros((len(scores), 1), scores.dtype)], axis=1), axis=1)


def _keep_first(
    tally: dict[str, np.ndarray], name: str, chains: np.ndarray, images: np.ndarray, target: np.ndarray
) -> None:
    """Keeps the images with the lowest chain numbers, so that what is kept does not depend on the order of arrival."""
    size = len(tally[f"{name}_chain"])
    chain = np.concatenate([tally[f"{name}_chain"], chains])
    order = np.argsort(chain, kind="stable")[:size]
    tally[f"{name}_chain"][...] = chain[order]
    tally[f"{name}_images"][...] = np.concatenate([tally[f"{name}_images"], images])[order]
    tally[f"{name}_target"][...] = np.concatenate([tally[f"{name}_target"], target])[order]


@jax.jit
def _squared_differences(images: jax.Array, members: jax.Array) -> jax.Array:
    """Mean squared difference of each of (n, h, w, c) images to each member, (n, members)."""
    # One member at a time, for memory.
    return jax.lax.map(lambda member: jnp.mean((images - member) ** 2, axis=(1, 2, 3)), members).T


def _miss_tally(image_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """No misses yet."""
    columns = {"mse": np.inf, "mae": np.inf, "score": 0.0}
    return {
        "near_chain": np.full(KEPT_MISSES, NOTHING),
        "near_target": np.zeros(KEPT_MISSES, np.int64),
        "near_images": np.zeros((KEPT_MISSES, *image_shape), np.float32),
        **{f"near_{name}": np.full(KEPT_MISSES, empty) for name, empty in columns.items()},
    }


def _keep_nearest(tally: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Keeps the misses with the smallest difference, of equal ones those with the lowest chain numbers."""
    both = {name: np.concatenate([tally[name], values]) for name, values in found.items()}
    order = np.lexsort((both["near_chain"], both["near_mse"]))[:KEPT_MISSES]
    for name, values in both.items():
        tally[name][...] = values[order]


def _fetch(block: Block, rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` images of a block, by their places among its rows."""
    # The number of rows that are fetched is always the same, so that fetching them compiles once.
    return np.asarray(block.images[np.resize(block.rows[rows], most)])[: len(rows)]


def _add_misses(
    tally: dict[str, np.ndarray], block: Block, missed: np.ndarray, joint: np.ndarray, members: np.ndarray
) -> None:
    """Adds the nearest misses of a block.

    Args:
      missed: (k,) bool, the block's plain samples that are not detected as a member.
      joint: (k, members) joint scores.
      members: (members, h, w, c).
    """
    squares = np.asarray(_squared_differences(block.images, members))[block.rows]
    chosen = np.lexsort((block.chain, np.where(missed, squares.min(axis=1), np.inf)))[:KEPT_MISSES]
    images = _fetch(block, chosen, KEPT_MISSES)
    images, chosen = images[missed[chosen]], chosen[missed[chosen]]
    target = np.argmin(squares[chosen], axis=1)
    mse, mae = _differences(images, members[target])
    columns = {"chain": block.chain[chosen], "target": target, "images": images, "mse": mse, "mae": mae}
    columns["score"] = joint[chosen, target]
    _keep_nearest(tally, {f"near_{name}": values for name, values in columns.items()})


def _differences(images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared and mean absolute difference of (n, h, w, c) pairs, in float64: alike wherever they were drawn."""
    difference = (images.astype(np.float64) - others).reshape(len(images), np.prod(images.shape[1:], dtype=int))
    return np.mean(difference**2, axis=1), np.mean(np.abs(difference), axis=1)


def _merge(tallies: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of several processes: the sum of their counts, and of what they kept what one process would have."""
    names = ("hit", "sample", *ERRORS)
    kept = {f"{name}_{part}" for name in names for part in ("chain", "images", "target")}
    kept |= {name for name in tallies[0] if name.startswith("near_")}
    merged = {name: values for name, values in tallies[0].items() if name in kept}
    for other in tallies[1:]:
        _keep_nearest(merged, {name: values for name, values in other.items() if name.startswith("near_")})
        for name in names:
            _keep_first(merged, name, *(other[f"{name}_{part}"] for part in ("chain", "images", "target")))
    counts = [{name: values for name, values in tally.items() if name not in kept} for tally in tallies]
    return add_tallies(counts) | merged


def count(
    engine: Engine,
    params: Any,
    targets: np.ndarray,
    detect: DetectFn,
    settings: CountSettings,
    *,
    num_members: int,
    num_searched: int | None = None,
    decided: Callable[[np.ndarray], bool] | None = None,
    threshold: float,
    thresholds: tuple[float, ...] = (),
    key: Key,
    path: Path | None = None,
    log: MetricsLog | None = None,
) -> CountResult:
    """Draws n samples, looks at each as it finishes, and keeps the counts.

    Args:
      targets: (k, h, w, c) float32 in model range, members first.
      detect: a jitted `DetectFn`.
      num_searched: the first so many targets have chains from low levels; None: all.
      decided: whether a look is the last, by the targets' counts up to it; None: none is but the last.
      threshold: score above which a classifier says yes.
      thresholds: others, at which detections are counted too.
      path: where an interrupted run is kept; None: nowhere.
      log: of the progress; None: none.
    """
    searched = len(targets) if num_searched is None else num_searched
    check_detect(detect, engine.image_shape, len(targets))

    def consume(block: Block, tally: dict[str, np.ndarray]) -> None:
        fingerprint, identity = block_scores(detect, block)
        joint, plain = joint_scores(fingerprint, identity), block.target == NO_TARGET
        both, at = joint > threshold, exceeding(joint[plain], thresholds)
        tally["fingerprint"] += int((fingerprint[plain] > threshold).sum())
        tally["identity"] += (identity[plain] > threshold).sum(axis=0)
        tally["detected"] += both[plain].sum(axis=0)
        tally["detected_at"] += at.sum(axis=0)
        tally["control_hits"] += int(both[plain][:, num_members:].any(axis=1).sum())
        tally["control_hits_at"] += at[:, num_members:].any(axis=1).sum(axis=0)
        low = np.flatnonzero(~plain)
        own = block.target[low]
        detected = both[:, :num_members].any(axis=1)
        _add_misses(tally, block, plain & ~detected, joint[:, :num_members], targets[:num_members])
        np.add.at(tally["low_detected"], own, both[low, own])
        np.add.at(tally["low_detected_at"], own, exceeding(joint[low, own], thresholds))
        add_residue(tally, fingerprint[low], identity[low], own, threshold=threshold)
        # Chains are numbered within their targets.
        order = np.where(plain, block.chain, block.target * settings.sensitivity_chains + block.chain)
        marked, known = fingerprint > threshold, (identity > threshold).any(axis=1)
        for name, chosen, head in (
            ("hit", plain & detected, np.argmax(joint[:, :num_members], axis=1)),
            ("sample", plain & (block.chain < KEPT_SAMPLES), np.zeros_like(order)),
            ("control", plain & both[:, num_members:].any(axis=1), num_members + _best(joint[:, num_members:])),
            ("fingerprint_only", plain & marked & ~known, np.zeros_like(order)),
            ("identity_only", plain & known & ~marked, np.argmax(identity, axis=1)),
            ("missed", ~plain & ~both[np.arange(len(order)), block.target], block.target),
        ):
            if chosen.any():
                rows, most = np.flatnonzero(chosen), len(tally[f"{name}_chain"])
                rows = rows[np.argsort(order[rows], kind="stable")][:most]
                _keep_first(tally, name, order[rows], _fetch(block, rows, most), head[rows])

    def empty() -> dict[str, np.ndarray]:
        tally = {
            "fingerprint": np.zeros((), np.int64),
            "identity": np.zeros(len(targets), np.int64),
            "detected": np.zeros(len(targets), np.int64),
            "detected_at": np.zeros((len(targets), len(thresholds)), np.int64),
            "control_hits": np.zeros((), np.int64),
            "control_hits_at": np.zeros(len(thresholds), np.int64),
            "low_detected": np.zeros(searched, np.int64),
            "low_detected_at": np.zeros((searched, len(thresholds)), np.int64),
            **residue_tally(),
        }
        for name, size in (("hit", KEPT_HITS), ("sample", KEPT_SAMPLES), *((name, KEPT_ERRORS) for name in ERRORS)):
            tally |= {
                f"{name}_chain": np.full(size, NOTHING),
                f"{name}_target": np.zeros(size, np.int64),
                f"{name}_images": np.zeros((size, *targets.shape[1:]), np.float32),
            }
        return tally | _miss_tally(targets.shape[1:])

    tally, looks, useful, executed = empty(), [], 0, 0
    for look in range(len(settings.ends)):
        new = empty()
        state = run_saved(
            engine,
            params,
            targets,
            count_work(settings, engine.grid, searched, look=look),
            key=key,
            tally=new,
            consume=consume,
            merge=_merge,
            path=path and path.with_name(f"{path.stem}{f'-{look}' if look else ''}{path.suffix}"),
            log=log,
            label="count",
            counted=(threshold, thresholds, num_members),
            keep=len(settings.ends) > 1,
        )
        tally, useful, executed = _merge([tally, new]), useful + state.num_useful, executed + state.num_executed
        looks.append(tally["detected"].copy())
        if decided and decided(looks[-1]):
            break
    kept = {n: tally[f"{n}_images"][tally[f"{n}_chain"] < NOTHING] for n in ("hit", "sample", "near", *ERRORS)}
    hits, samples, misses = kept["hit"], kept["sample"], kept["near"]
    hit_target = tally["hit_target"][: len(hits)]
    return CountResult(
        settings.ends[len(looks) - 1],
        np.asarray(settings.ends[: len(looks)]),
        np.stack(looks),
        int(tally["fingerprint"]),
        tally["identity"],
        tally["detected"],
        tally["detected_at"],
        int(tally["control_hits"]),
        tally["control_hits_at"],
        settings.sensitivity_chains,
        tally["low_detected"],
        tally["low_detected_at"],
        sensitivity_level(engine.grid),
        residue_roc(tally),
        useful,
        executed,
        samples,
        hits,
        hit_target,
        *_differences(hits, targets[hit_target]),
        misses,
        *(tally[f"near_{name}"][: len(misses)] for name in ("target", "mse", "mae", "score")),
        errors={n: kept[n] for n in ERRORS} | {f"{n}_target": tally[f"{n}_target"][: len(kept[n])] for n in ERRORS},
    )


class OracleResult(NamedTuple):
    """The detectors on the perfect memoriser: integer counts over its plain samples."""

    num_samples: int
    reproduced: np.ndarray  # (members,) plain samples that are this member, by nearest training image
    detected: np.ndarray  # (members,) of those, seen
    num_detected: np.ndarray  # (targets,) plain samples taken for each, rightly or not
    evaluations: int
    executed: int


def audit_oracle(
    engine: Engine,
    train: np.ndarray,
    targets: np.ndarray,
    detect: DetectFn,
    settings: CountSettings,
    *,
    num_members: int,
    threshold: float,
    key: Key,
    path: Path | None = None,
    log: MetricsLog | None = None,
) -> OracleResult:
    """Runs the empirical oracle under the same sampler and detectors.

    Args:
      engine: built with the oracle's score, whose parameters are the training images.
      train: (n, h, w, c) float32 in model range, members first.
      targets: (k, h, w, c) float32 in model range, members first.
    """
    nearest = jax.jit(nearest_image)
    images = jnp.asarray(train)

    def consume(block: Block, tally: dict[str, np.ndarray]) -> None:
        both = joint_scores(*block_scores(detect, block)) > threshold
        row = np.asarray(nearest(block.images, images))[block.rows]
        found = row < num_members
        np.add.at(tally["reproduced"], row[found], 1)
        np.add.at(tally["detected"], row[found], both[found, row[found]])
        tally["num_detected"] += both.sum(axis=0)

    tally = {
        "reproduced": np.zeros(num_members, np.int64),
        "detected": np.zeros(num_members, np.int64),
        "num_detected": np.zeros(len(targets), np.int64),
    }
    state = run_saved(
        engine,
        images,
        targets,
        make_work(NO_TARGET, engine.grid.num_levels, settings.oracle_samples),
        key=key,
        tally=tally,
        consume=consume,
        path=path,
        log=log,
        label="count (oracle)",
        counted=(threshold, num_members),
    )
    return OracleResult(settings.oracle_samples, **tally, evaluations=state.num_useful, executed=state.num_executed)
