"""The audit of the auditor: the same detectors on the perfect memoriser, the empirical oracle, which must be found."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ..core.metrics import MetricsLog
from ..core.types import DetectFn, Key
from ..detectors.base import joint_scores
from ..diffusion.oracle import nearest_image
from ..engine.chains import Block, Engine
from ..engine.resume import block_scores, run_saved
from ..engine.work import NO_TARGET, make_work


@dataclasses.dataclass(frozen=True)
class OracleResult:
    """The detectors on the perfect memoriser: integer counts over its plain samples."""

    num_samples: int
    reproduced: Int[np.ndarray, " members"]  # plain samples that are this member, by nearest training image
    detected: Int[np.ndarray, " members"]  # of those, seen
    num_detected: Int[np.ndarray, " targets"]  # plain samples taken for each, rightly or not
    evaluations: int
    executed: int


def audit_oracle(
    engine: Engine,
    train: np.ndarray,
    targets: np.ndarray,
    detect: DetectFn,
    *,
    num_samples: int,
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
      detect: a jitted `DetectFn`.
      num_samples: plain samples of the oracle.
      threshold: score above which a classifier says yes.
      path: where an interrupted run is kept; None: nowhere.
      log: of the progress; None: none.
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
        make_work(NO_TARGET, engine.grid.num_levels, num_samples),
        key=key,
        tally=tally,
        consume=consume,
        path=path,
        log=log,
        label="count (oracle)",
        counted=(threshold, num_members),
    )
    return OracleResult(num_samples, **tally, evaluations=state.num_useful, executed=state.num_executed)
