"""How often plain sampling reproduces a target: |q| of n (paper, Tab. 1 and 2), and how far the detectors go wrong.

The n samples may be drawn in *looks* that were declared beforehand: after each the counts are kept and tested, and the
next is drawn only where that has not decided. Beside them run, on the same engine, chains from the lowest levels, which
come back as the target whatever the model learned and so measure the detectors' sensitivity to denoising residue; and
the same detectors on the empirical oracle, the perfect memoriser, which must be found. Of the samples that are not
detected as a member it keeps those that are nearest to one in pixels: a copy that the detectors are blind to would be
among them.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import check, whole
from ..core.metrics import MetricsLog
from ..core.types import DetectFn, Key
from ..detectors.base import check_detect
from ..diffusion.grid import TimeGrid
from ..engine.chains import Block, Engine
from ..engine.resume import block_scores, run_saved
from ..engine.work import MAX_CHAINS, NO_TARGET, Work, concatenate_work, make_work
from .tally import CountPictures, CountResult, CountTally, Judgement


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
) -> tuple[CountResult, CountPictures]:
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
    by = Judgement(
        targets,
        num_members,
        len(targets) if num_searched is None else num_searched,
        threshold,
        thresholds,
        settings.sensitivity_chains,
    )
    check_detect(detect, engine.image_shape, len(targets))

    def consume(tally: CountTally, block: Block, _: dict[str, np.ndarray]) -> None:
        tally.add(block, *block_scores(detect, block), by)

    total, looks, useful, executed = CountTally.zeros(by), [], 0, 0
    for look in range(len(settings.ends)):
        tally = CountTally.zeros(by)
        state = run_saved(
            engine,
            params,
            targets,
            count_work(settings, engine.grid, by.num_searched, look=look),
            key=key,
            tally=tally.arrays,
            consume=functools.partial(consume, tally),
            merge=lambda parts, tally=tally: CountTally.merge([tally.like(part) for part in parts]).arrays,
            path=path and path.with_name(f"{path.stem}{f'-{look}' if look else ''}{path.suffix}"),
            log=log,
            label="count",
            counted=(threshold, thresholds, num_members),
            keep=len(settings.ends) > 1,
        )
        total = CountTally.merge([total, tally])
        useful, executed = useful + state.num_useful, executed + state.num_executed
        looks.append(total.detected.copy())
        if decided and decided(looks[-1]):
            break
    level = sensitivity_level(engine.grid)
    return total.result(looks, settings.ends, by, level=level, evaluations=useful, executed=executed)
