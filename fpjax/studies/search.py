"""The search for t': chains from every target at many levels, and how many of each came back as the target.

Two kinds of chains share one run of the engine. *Rank*: members and held-out targets alike at the same coarse levels
with the same number of chains, so that a member's t50 can be ranked among theirs. *Curve*: members alone, at the
levels that a strategy asks for, look after look (`strategies.py`); the first look runs with the ranking chains.

Of the ranking chains number 0 of the first members is kept as pictures: what a member looks like at time t, and what it
comes back as (paper, Fig. 4).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from ..core.errors import check, in_range, one_of, whole
from ..core.images import to_bytes
from ..core.metrics import MetricsLog
from ..core.types import DetectFn, Key
from ..detectors.base import check_detect, exceeding
from ..diffusion.grid import TimeGrid
from ..engine.chains import Block, Engine, chain_key, evaluations_per_step, noised_start
from ..engine.resume import block_scores, run_saved
from ..engine.work import Work, concatenate_work, make_work
from .strategies import CONFIRM, CURVE, STRATEGIES, Look, Plan, Seen, most_levels, spaced_levels

SHOWN_MEMBERS, SHOWN_LEVELS = 4, 20


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Which chains are run.

    Attributes:
      strategy: a key of `STRATEGIES`, of the members' chains.
      member_levels: levels of each member's curve, evenly spaced over the grid: those of exhaustive, of which
        descending takes the upper ones; random draws as many.
      member_chains: M, chains at each of them; 0 leaves the ranking chains alone.
      coarse_levels: levels of the first look of coarse_to_fine, and of each look of descending.
      fine_levels: levels of the last look of coarse_to_fine and bisection.
      confirm_chains: chains at each of those.
      rank_levels: levels at which members and held-out targets are compared, evenly spaced up to `rank_max_t`.
      rank_chains: chains at each of them.
      rank_max_t: upper end of those levels, in (0, 1]; a t50 above it is censored there.
    """

    strategy: str = "exhaustive"
    member_levels: int = 1000
    member_chains: int = 16
    coarse_levels: int = 20
    fine_levels: int = 20
    confirm_chains: int = 16
    rank_levels: int = 20
    rank_chains: int = 16
    rank_max_t: float = 1.0

    def __post_init__(self) -> None:
        one_of("search.strategy", self.strategy, STRATEGIES)
        whole("search", self, names=("member_levels", "coarse_levels", "fine_levels", "rank_levels"), most=10**5)
        whole("search", self, names=("rank_chains", "confirm_chains"), most=10**6)
        whole("search", self, names=("member_chains",), least=0, most=10**6)
        in_range("search.rank_max_t", self.rank_max_t, 1e-3, 1.0)

    @property
    def chains(self) -> tuple[int, int, int]:
        """Chains at a level of phase `RANK`, `CURVE` and `CONFIRM`; they are numbered in this order."""
        return self.rank_chains, self.member_chains, self.confirm_chains


class Shown(NamedTuple):
    """Chains that are kept as pictures."""

    target: Int[np.ndarray, " shown"]
    level: Int[np.ndarray, " shown"]
    detected: Bool[np.ndarray, " shown"]  # as the target that they started from
    start: UInt8[np.ndarray, "shown h w c"]  # the target noised to the level
    end: UInt8[np.ndarray, "shown h w c"]  # what the same chain ended as


@dataclasses.dataclass(frozen=True)
class Returns:
    """Counts by target, phase and level: one row for each (target, phase, level) that has chains."""

    target: Int[np.ndarray, " rows"]
    phase: Int[np.ndarray, " rows"]  # RANK, CURVE or CONFIRM
    level: Int[np.ndarray, " rows"]
    num_chains: Int[np.ndarray, " rows"]
    num_fingerprint: Int[np.ndarray, " rows"]
    num_identity: Int[np.ndarray, " rows"]
    num_detected: Int[np.ndarray, " rows"]  # both classifiers
    num_detected_at: Int[np.ndarray, "rows thresholds"]  # at other thresholds
    evaluations: int
    executed: int


@dataclasses.dataclass(frozen=True)
class SearchResult(Returns):
    """Result of the stage search: the rows of all looks, sorted by target, phase and level."""

    num_members: int
    strategy: str
    exhaustive_evaluations: int  # of the same search with the exhaustive strategy


def make_plan(settings: SearchSettings, grid: TimeGrid, key: Key) -> Plan:
    """What the strategy is told.

    Raises:
      RequestError: if more levels are asked for than the grid has.
    """
    levels = grid.num_levels
    for name in ("member_levels", "rank_levels"):
        check(
            getattr(settings, name) <= levels,
            f"search.{name}",
            got=getattr(settings, name),
            expected=f"at most sampler.num_levels = {levels}",
            fix="lower it or raise sampler.num_levels",
        )
    seed = tuple(np.ravel(jax.random.key_data(key)).tolist())
    return Plan(levels, settings.member_levels, settings.coarse_levels, settings.fine_levels, seed)


def rank_work(settings: SearchSettings, grid: TimeGrid, num_targets: int) -> Work:
    """The chains that members and held-out targets have alike."""
    levels = spaced_levels(grid.level_at(settings.rank_max_t), settings.rank_levels)
    return make_work(np.arange(num_targets)[:, None], levels, settings.rank_chains)


def shown_chains(settings: SearchSettings, grid: TimeGrid, num_members: int) -> list[tuple[int, int]]:
    """Members and ranking levels whose chain 0 is kept as pictures: the first members, levels thinned evenly."""
    levels = spaced_levels(grid.level_at(settings.rank_max_t), settings.rank_levels)
    levels = levels[spaced_levels(len(levels), min(SHOWN_LEVELS, len(levels))) - 1]
    return [(member, level) for member in range(min(num_members, SHOWN_MEMBERS)) for level in levels.tolist()]


def start_images(grid: TimeGrid, targets: np.ndarray, target: np.ndarray, level: np.ndarray, *, key: Key) -> np.ndarray:
    """Where chain 0 from each of these targets and levels starts, the query image x_{t,p}.

    Args:
      targets: (k, h, w, c) float32 in model range.
      target, level: (n,) integers.
      key: root of every chain's key.

    Returns:
      (n, h, w, c) float32.
    """

    def start(target: jax.Array, level: jax.Array, image: jax.Array, scale: jax.Array, std: jax.Array) -> jax.Array:
        own = jax.random.fold_in(chain_key(key, target, level, jnp.zeros_like(level)), 0)
        return noised_start(own, image, jnp.array(True), scale, std, jnp.asarray(grid.prior_std))

    rows = jnp.asarray(target, jnp.int32), jnp.asarray(level, jnp.int32)
    return np.asarray(jax.vmap(start)(*rows, *map(jnp.asarray, (targets[target], grid.scale[level], grid.std[level]))))


def look_work(settings: SearchSettings, look: Look) -> Work:
    """The chains of a strategy's look, numbered after those of earlier phases, so that no draw is shared."""
    first = sum(settings.chains[: look.phase])
    return make_work(look.target, look.level, settings.chains[look.phase], first=first)


def search_work(settings: SearchSettings, grid: TimeGrid, num_targets: int, num_members: int) -> Work:
    """The chains of a search, for their number and cost; of strategies that look first, at most as many.

    Raises:
      RequestError: as `make_plan`, or for more chains than a piece of work can have.
    """
    levels = most_levels(settings.strategy, make_plan(settings, grid, jax.random.key(0)))
    parts = [rank_work(settings, grid, num_targets)]
    for phase, each in zip((CURVE, CONFIRM), levels, strict=True):
        if len(each) and settings.member_chains:
            target = np.repeat(np.arange(num_members), len(each))
            parts.append(look_work(settings, Look(phase, target, np.tile(each, num_members))))
    return concatenate_work(parts)


def count_returns(
    engine: Engine,
    params: Any,
    targets: np.ndarray,
    detect: DetectFn,
    work: Work,
    *,
    threshold: float,
    thresholds: tuple[float, ...] = (),
    chains: tuple[int, ...] = (),
    shown: Sequence[tuple[int, int]] = (),
    key: Key,
    path: Path | None = None,
    log: MetricsLog | None = None,
    keep: bool = False,
) -> tuple[Returns, Shown]:
    """Runs chains from targets and counts those that both classifiers call their own target; with the pictures.

    Args:
      targets: (k, h, w, c) float32 in model range.
      detect: a jitted `DetectFn`.
      work: each of its items names a target.
      threshold: score above which a classifier says yes.
      thresholds: others, at which detections are counted too.
      chains: how many of a level's chains are of the first phase, how many of the next; none: all are of the first.
      shown: targets and levels whose chain 0 is kept as pictures; the work must have it.
      path: where an interrupted run is kept; None: nowhere.
      log: of the progress; None: none.
      keep: also keep the state of a finished run there, of which a search of several looks takes up its earlier ones.
    """
    num_levels, firsts = engine.grid.num_levels, np.cumsum(chains[:-1])
    places = {chain: place for place, chain in enumerate(shown)}
    check_detect(detect, engine.image_shape, len(targets))
    check(
        bool(np.all(work.target >= 0)),
        "search",
        got="chains without a target",
        expected="chains that could return to one",
        fix="count plain samples with audit_count",
    )

    def consume(block: Block, tally: dict[str, np.ndarray]) -> None:
        fingerprint, identity = block_scores(detect, block)
        identity = identity[np.arange(len(block.rows)), block.target]
        joint, phase = np.minimum(fingerprint, identity), np.searchsorted(firsts, block.chain, side="right")
        columns = np.stack(
            [np.ones(len(joint), bool), *(s > threshold for s in (fingerprint, identity, joint))], axis=-1
        )
        columns = np.concatenate([columns, exceeding(joint, thresholds)], axis=-1)
        np.add.at(tally["counts"], (block.target, phase, block.level), columns.astype(np.int64))
        for row in np.flatnonzero(block.chain == 0):
            place = places.get((int(block.target[row]), int(block.level[row])))
            if place is not None:
                tally["shown_detected"][place] = joint[row] > threshold
                tally["shown_end"][place] = to_bytes(np.asarray(block.images[int(block.rows[row])]))

    # Each kept chain is one process's, and zero in the others: pictures add up as counts do.
    tally = {
        "counts": np.zeros((len(targets), len(firsts) + 1, num_levels + 1, 4 + len(thresholds)), np.int64),
        "shown_detected": np.zeros(len(shown), bool),
        "shown_end": np.zeros((len(shown), *engine.image_shape), np.uint8),
    }
    state = run_saved(
        engine,
        params,
        targets,
        work,
        key=key,
        tally=tally,
        consume=consume,
        path=path,
        log=log,
        label="search",
        counted=(threshold, thresholds, chains, shown),
        keep=keep,
    )
    target, phase, level = np.nonzero(tally["counts"][..., 0])
    counts = tally["counts"][target, phase, level]
    shown_target, shown_level = np.asarray(shown, int).reshape(-1, 2).T
    start = start_images(engine.grid, np.asarray(targets), shown_target, shown_level, key=key)
    returns = Returns(
        target,
        phase,
        level,
        *counts[:, :4].T,
        num_detected_at=counts[:, 4:],
        evaluations=state.num_useful,
        executed=state.num_executed,
    )
    return returns, Shown(shown_target, shown_level, tally["shown_detected"], to_bytes(start), tally["shown_end"])


def search(
    engine: Engine,
    params: Any,
    targets: np.ndarray,
    detect: DetectFn,
    settings: SearchSettings,
    *,
    num_members: int,
    num_searched: int | None = None,
    key: Key,
    path: Path | None = None,
    **options: Any,
) -> tuple[SearchResult, Shown]:
    """Runs the ranking chains and, look after look, those that the strategy asks for; some chains come as pictures.

    Args:
      targets: (k, h, w, c) float32 in model range, members first.
      detect: a jitted `DetectFn`.
      num_members: how many of the targets were trained on.
      num_searched: the first so many targets have chains; None: all.
      key: root of every chain's key.
      path: where an interrupted run is kept, each look in a file of its own; None: nowhere.
      **options: `threshold`, `thresholds` and `log` of `count_returns`.
    """
    plan, none = make_plan(settings, engine.grid, key), np.zeros((num_members, engine.grid.num_levels + 1), np.int64)
    seen, found, pictures = Seen(none, none.copy()), [], []
    for number in itertools.count():
        look = STRATEGIES[settings.strategy](plan, seen) if settings.member_chains else None
        parts = [rank_work(settings, engine.grid, num_searched or len(targets))] * (number == 0)
        parts += [look_work(settings, look)] if look else []
        if not parts:
            break
        result, shown = count_returns(
            engine,
            params,
            targets,
            detect,
            concatenate_work(parts),
            chains=settings.chains,
            shown=shown_chains(settings, engine.grid, num_members) if number == 0 else (),
            key=key,
            path=path and path.with_name(f"{path.stem}-{number}{path.suffix}"),
            keep=settings.strategy not in ("exhaustive", "random"),
            **options,
        )
        found.append(result)
        pictures.append(shown)
        curve = result.phase == CURVE
        place = result.target[curve], result.level[curve]
        for counts, new in ((seen.num_chains, result.num_chains), (seen.num_detected, result.num_detected)):
            counts[place] += new[curve]
        seen = seen._replace(confirmed=bool(look and look.phase == CONFIRM))
    columns = [field.name for field in dataclasses.fields(Returns) if field.name not in ("evaluations", "executed")]
    rows = {name: np.concatenate([getattr(result, name) for result in found]) for name in columns}
    order = np.lexsort((rows["level"], rows["phase"], rows["target"]))
    everything = dataclasses.replace(settings, strategy="exhaustive")
    most = search_work(everything, engine.grid, num_searched or len(targets), num_members).num_steps
    result = SearchResult(
        **{name: column[order] for name, column in rows.items()},
        evaluations=sum(result.evaluations for result in found),
        executed=sum(result.executed for result in found),
        num_members=num_members,
        strategy=settings.strategy,
        exhaustive_evaluations=most * evaluations_per_step(engine, params),
    )
    # The first look alone has pictures.
    return result, pictures[0]
