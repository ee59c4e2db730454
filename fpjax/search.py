"""The search for t': chains from every target at many levels, and how many of each came back as the target.

Two phases share one run of the engine. *Rank*: members and held-out targets alike at the same coarse levels with
the same number of chains, so that a member's t50 can be ranked among theirs. *Curve*: members alone, at the levels
and with the chains asked for (paper, Alg. 1, exhaustively).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .artifacts import MetricsLog
from .chains import MAX_CHAINS, Block, Engine, Work, concatenate_work, make_work, run_saved
from .checks import check, in_range, whole
from .detection import detect_all, exceeding
from .sde import TimeGrid
from .types import DetectFn, Key


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Which chains are run.

    Attributes:
      member_levels: levels of each member's curve, evenly spaced over the grid.
      member_chains: M, chains at each of them; 0 leaves the ranking chains alone.
      rank_levels: levels at which members and held-out targets are compared, evenly spaced up to `rank_max_t`.
      rank_chains: chains at each of them.
      rank_max_t: upper end of those levels, in (0, 1]; a t50 above it is censored there.
    """

    member_levels: int = 1000
    member_chains: int = 16
    rank_levels: int = 20
    rank_chains: int = 16
    rank_max_t: float = 1.0

    def __post_init__(self) -> None:
        whole("search", self, names=("member_levels", "rank_levels"), most=10**5)
        whole("search", self, names=("rank_chains",), most=10**6)
        whole("search", self, names=("member_chains",), least=0, most=10**6)
        in_range("search.rank_max_t", self.rank_max_t, 1e-3, 1.0)


class SearchResult(NamedTuple):
    """Counts by target, phase and level: int64 rows, one for each (target, phase, level) that has chains."""

    target: np.ndarray
    phase: np.ndarray  # 0 rank, 1 curve
    level: np.ndarray
    num_chains: np.ndarray
    num_fingerprint: np.ndarray
    num_identity: np.ndarray
    num_detected: np.ndarray  # both classifiers
    num_detected_at: np.ndarray  # (rows, thresholds), at other thresholds
    evaluations: int
    executed: int


RANK, CURVE = 0, 1


def spaced_levels(top: int, count: int) -> np.ndarray:
    """At most `count` distinct levels, evenly spaced, up to `top`.

    >>> spaced_levels(100, 4).tolist()
    [25, 50, 75, 100]
    """
    return np.unique(np.round(np.linspace(top / count, top, count)).astype(int).clip(1))


def search_work(settings: SearchSettings, grid: TimeGrid, num_targets: int, num_members: int) -> Work:
    """All chains of a search; curve chains are numbered after the ranking chains, so no draw is shared."""
    num_levels = grid.num_levels
    check(
        settings.member_levels <= num_levels,
        "search.member_levels",
        got=settings.member_levels,
        expected=f"at most sampler.num_levels = {num_levels}",
        fix="lower it or raise sampler.num_levels",
    )
    check(
        settings.rank_levels <= num_levels,
        "search.rank_levels",
        got=settings.rank_levels,
        expected=f"at most sampler.num_levels = {num_levels}",
        fix="lower it or raise sampler.num_levels",
    )
    total = settings.rank_levels * settings.rank_chains * num_targets
    total += settings.member_levels * settings.member_chains * num_members
    check(
        total <= MAX_CHAINS, "search", got=f"{total:,} chains", expected=f"at most {MAX_CHAINS:,}", fix="ask for fewer"
    )

    def every(targets: int, levels: np.ndarray, chains: np.ndarray) -> Work:
        return make_work(*np.meshgrid(np.arange(targets), levels, chains, indexing="ij"))

    rank = every(
        num_targets,
        spaced_levels(grid.level_at(settings.rank_max_t), settings.rank_levels),
        np.arange(settings.rank_chains),
    )
    curve = every(
        num_members,
        spaced_levels(num_levels, settings.member_levels),
        settings.rank_chains + np.arange(settings.member_chains),
    )
    return concatenate_work([rank, curve])


def search(
    engine: Engine,
    params: Any,
    targets: np.ndarray,
    detect: DetectFn,
    settings: SearchSettings,
    *,
    num_members: int,
    threshold: float,
    thresholds: tuple[float, ...] = (),
    key: Key,
    path: Path,
    log: MetricsLog,
) -> SearchResult:
    """Runs all chains of the search and counts those that both classifiers call the target they started from.

    Args:
      targets: (k, h, w, c) float32 in model range, members first.
      detect: a jitted `DetectFn`.
      threshold: score above which a classifier says yes.
      thresholds: others, at which detections are counted too.
      path: where an interrupted run is kept.
    """
    num_levels = engine.grid.num_levels
    work = search_work(settings, engine.grid, len(targets), num_members)

    def consume(block: Block, tally: dict[str, np.ndarray]) -> None:
        fingerprint, identity = detect_all(detect, block.images, block.rows)
        identity = identity[np.arange(len(block.rows)), block.target]
        joint, phase = np.minimum(fingerprint, identity), (block.chain >= settings.rank_chains).astype(int)
        columns = np.stack(
            [np.ones(len(joint), bool), *(s > threshold for s in (fingerprint, identity, joint))], axis=-1
        )
        columns = np.concatenate([columns, exceeding(joint, thresholds)], axis=-1)
        np.add.at(tally["counts"], (block.target, phase, block.level), columns.astype(np.int64))

    tally = {"counts": np.zeros((len(targets), 2, num_levels + 1, 4 + len(thresholds)), np.int64)}
    state = run_saved(
        engine, params, targets, work, key=key, tally=tally, consume=consume, path=path, log=log, label="search"
    )
    target, phase, level = np.nonzero(tally["counts"][..., 0])
    counts = tally["counts"][target, phase, level]
    return SearchResult(
        target,
        phase,
        level,
        *counts[:, :4].T,
        num_detected_at=counts[:, 4:],
        evaluations=state.num_useful,
        executed=state.num_executed,
    )
