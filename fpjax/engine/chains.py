"""The engine: every Monte Carlo chain of every noise level, in a fixed number of slots.

Chains start at different levels, so they need different numbers of reverse steps; padding them all to N steps
would waste half the work. Here each slot holds one chain; every iteration takes one reverse step in all slots,
each at its own level, moves finished images to an output buffer and refills their slots with the next work items,
longest first. Plain sampling, counting and the t' search are the same engine: a work item with no target starts
from the prior.

A chain's key is folded from what the chain is (target, level, chain index), never from its place, so the number
of slots, blocks, devices and processes changes the speed and not the draws. Devices have queues of their own and
never talk. The host loops over blocks of iterations and carries the slots over, and the work itself is kept as groups
of chains that differ in their number alone, so memory does not grow with the number of chains.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from ..core.errors import StageError, check, whole
from ..core.processes import devices_before
from ..core.types import Image, Key, Level, Scalar
from ..diffusion.grid import TimeGrid
from ..diffusion.sampling import Sampler
from .slots import by_slot, on_each, per_device, pick, slot_mesh
from .work import NO_TARGET, Work, describe_chain

MAX_SLOTS = 2**16
MIN_TARGET_ROWS = 64  # of the compiled program, so that it serves other numbers of targets too


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What changes the speed and not the draws.

    Attributes:
      slots: chains in flight on each device; as many as memory allows on an accelerator.
      block_steps: iterations between two looks of the host (progress, detection, state to disk).
      compilation_cache: keep compiled programs in the user's cache directory, for later runs.
    """

    slots: int = 1024
    block_steps: int = 100
    compilation_cache: bool = True

    def __post_init__(self) -> None:
        whole("engine", self, names=("slots",), most=MAX_SLOTS)
        whole("engine", self, names=("block_steps",), most=2**14)


def chain_key(key: Key, target: Level, level: Level, chain: Level) -> Key:
    """The key of one chain; its draws fold in the level they are made at (0: the noising of the target)."""
    # The target without a number (-1) folds in as 0.
    for part in (target + 1, level, chain):
        key = jax.random.fold_in(key, part)
    return key


def noised_start(
    key: Key, target: Image, has_target: Bool[Array, ""], scale: Scalar, std: Scalar, prior_std: Scalar
) -> Image:
    """x_t given the target at one level, or a draw from the prior."""
    noise = jax.random.normal(key, target.shape, target.dtype)
    return jnp.where(has_target, scale * target + std * noise, prior_std * noise)


class Slots(NamedTuple):
    """The chains in flight, one row a slot; `level` counts the steps left, 0 is idle."""

    state: Any  # the sampler's, whose field `x` is the image
    target: jax.Array
    start: jax.Array
    chain: jax.Array
    level: jax.Array


class Finished(NamedTuple):
    """Output buffer of one block; rows `[0, num_finished)` of each device's part are valid."""

    images: jax.Array
    target: jax.Array
    start: jax.Array
    chain: jax.Array
    finite: jax.Array


class Tally(NamedTuple):
    """Per device, for one block."""

    num_finished: jax.Array
    num_taken: jax.Array
    num_useful: jax.Array  # steps in slots that hold a chain; int32 holds those of a block, not its evaluations
    num_executed: jax.Array  # steps in all slots
    num_iterations: jax.Array


class EngineState(NamedTuple):
    """All that a resumed run needs: the slots, and for each device (int64) how far it is."""

    slots: Slots
    taken: np.ndarray  # chains begun: the place in its queue
    finished: np.ndarray
    useful: np.ndarray  # evaluations in slots that hold a chain
    executed: np.ndarray  # evaluations in all slots

    @property
    def num_finished(self) -> int:
        """Chains that have ended."""
        return int(self.finished.sum())

    @property
    def num_useful(self) -> int:
        """Evaluations that chains needed."""
        return int(self.useful.sum())

    @property
    def num_executed(self) -> int:
        """Evaluations that were spent."""
        return int(self.executed.sum())


class Block(NamedTuple):
    """Chains that finished in one block, still on the device, and the state after it."""

    images: jax.Array  # (capacity, h, w, c), model range; `rows` are valid
    rows: np.ndarray  # (k,) valid rows
    target: np.ndarray  # (k,)
    level: np.ndarray  # (k,) at which the chain started
    chain: np.ndarray  # (k,)
    state: EngineState


class Queue(NamedTuple):
    """The next work items of each device, int32."""

    target: Any
    level: Any
    chain: Any


class Engine(NamedTuple):
    """Compiled advance of all slots by one block, the shapes it was built for, and its devices' queues."""

    advance: Callable[..., tuple[Slots, Finished, Tally]]
    make_sampler: Callable[[Any], Sampler]
    image_shape: tuple[int, int, int]
    mesh: Mesh
    settings: EngineSettings
    grid: TimeGrid
    queues: tuple[int, ...]  # of this process's devices, among those of all processes
    num_queues: int

    @property
    def capacity(self) -> int:
        """Finished images that one device can hold in a block."""
        return 2 * self.settings.slots

    @property
    def window(self) -> int:
        """Work items that one device can take in a block: one for each slot and each finished chain."""
        return self.capacity + self.settings.slots


def _advance_device(
    params: Any,
    key: Key,
    targets: jax.Array,
    slots: Slots,
    queue: Queue,
    num_queued: jax.Array,
    *,
    make_sampler: Callable[[Any], Sampler],
    grid: TimeGrid,
    settings: EngineSettings,
) -> tuple[Slots, Finished, Tally]:
    """One block on one device."""
    sampler = make_sampler(params)
    num_slots, capacity = settings.slots, 2 * settings.slots
    scales, stds = jnp.asarray(grid.scale), jnp.asarray(grid.std)
    noise = functools.partial(noised_start, prior_std=jnp.asarray(grid.prior_std))
    keys_of = jax.vmap(functools.partial(chain_key, key))
    fold = jax.vmap(jax.random.fold_in)
    num_queued = num_queued[0]

    def refill(slots: Slots, taken: jax.Array) -> tuple[Slots, jax.Array]:
        idle = slots.level == 0
        place = taken + jnp.cumsum(idle, dtype=jnp.int32) - 1
        filled = idle & (place < num_queued)
        target, level, chain = (column[jnp.minimum(place, len(queue.level) - 1)] for column in queue)
        keys = fold(keys_of(target, level, chain), jnp.zeros_like(level))
        start = jax.vmap(noise)(keys, targets[jnp.maximum(target, 0)], target != NO_TARGET, scales[level], stds[level])
        fresh = Slots(jax.vmap(sampler.init)(start), target, level, chain, level)
        return pick(filled, fresh, slots), taken + jnp.sum(filled, dtype=jnp.int32)

    def body(carry: tuple) -> tuple:
        slots, finished, tally = carry
        slots, taken = refill(slots, tally.num_taken)
        active = slots.level > 0
        # Idle slots ride along at level 1 and keep what they hold.
        level = jnp.maximum(slots.level, 1)
        keys = fold(keys_of(slots.target, slots.start, slots.chain), level)
        state = pick(active, jax.vmap(sampler.step)(slots.state, level, keys), slots.state)
        slots = slots._replace(state=state, level=jnp.where(active, level - 1, 0))
        done = active & (slots.level == 0)
        place = jnp.where(done, tally.num_finished + jnp.cumsum(done, dtype=jnp.int32) - 1, capacity)
        finite = jnp.all(jnp.isfinite(state.x), axis=tuple(range(1, state.x.ndim)))
        rows = Finished(state.x, slots.target, slots.start, slots.chain, finite)
        finished = jax.tree.map(lambda buffer, row: buffer.at[place].set(row, mode="drop"), finished, rows)
        tally = Tally(
            num_finished=tally.num_finished + jnp.sum(done, dtype=jnp.int32),
            num_taken=taken,
            num_useful=tally.num_useful + jnp.sum(active, dtype=jnp.int32),
            num_executed=tally.num_executed + num_slots,
            num_iterations=tally.num_iterations + 1,
        )
        return slots, finished, tally

    def unfinished(carry: tuple) -> jax.Array:
        slots, _, tally = carry
        room = tally.num_finished + num_slots <= capacity
        work = jnp.any(slots.level > 0) | (tally.num_taken < num_queued)
        return (tally.num_iterations < settings.block_steps) & room & work

    shape = slots.state.x.shape[1:]
    ints = jnp.zeros(capacity, jnp.int32)
    finished = Finished(jnp.zeros((capacity, *shape)), ints, ints, ints, jnp.ones(capacity, bool))
    tally = Tally(*[jnp.zeros((), jnp.int32)] * len(Tally._fields))
    slots, finished, tally = jax.lax.while_loop(unfinished, body, (slots, finished, tally))
    return slots, finished, jax.tree.map(lambda count: count[None], tally)


def make_engine(
    make_sampler: Callable[[Any], Sampler],
    grid: TimeGrid,
    image_shape: tuple[int, int, int],
    settings: EngineSettings,
    *,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Engine:
    """Builds the engine; it compiles once, at the first block, for any number of levels and chains.

    The number of targets counts up to `MIN_TARGET_ROWS` as one, and then up to each power of two.

    Args:
      make_sampler: from parameters (any pytree, an argument of the compiled function) to a `Sampler`.
      grid: the sampler's time grid.
      image_shape: (h, w, c).
      devices: of this process, which then runs all work alone; None: its share on all that it has. Of all processes'
        devices, d of D owns the work items d, d + D, ...
    """
    before, everyone = (0, len(devices)) if devices else devices_before()
    devices = devices or jax.local_devices()
    mesh = slot_mesh(devices)
    block = functools.partial(_advance_device, make_sampler=make_sampler, grid=grid, settings=settings)
    advance = per_device(block, mesh, whole=3, rows=3)
    queues = tuple(range(before, before + len(devices)))
    return Engine(advance, make_sampler, image_shape, mesh, settings, grid, queues, everyone)


def slot_shapes(engine: Engine, params: Any) -> Slots:
    """Shapes, types and placement of the slots."""
    rows, placed = engine.mesh.size * engine.settings.slots, by_slot(engine.mesh)

    def slot(params: Any) -> Slots:
        zero = jnp.zeros((), jnp.int32)
        return Slots(engine.make_sampler(params).init(jnp.zeros(engine.image_shape)), zero, zero, zero, zero)

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=placed),
        jax.eval_shape(slot, params),
    )


def block_shapes(engine: Engine, params: Any) -> tuple[Any, ...]:
    """Arguments of `Engine.advance` as shapes, placed on the engine's devices, to compile it without running it.

    With as many targets as count as one.

    Args:
      params: of the score, or their shapes.
    """
    rows, whole = by_slot(engine.mesh), on_each(engine.mesh)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)

    devices = engine.mesh.size
    column = jax.ShapeDtypeStruct((devices * engine.window,), jnp.int32, sharding=rows)
    counts = jax.ShapeDtypeStruct((devices,), jnp.int32, sharding=rows)
    key, targets = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((MIN_TARGET_ROWS, *engine.image_shape))))
    slots = slot_shapes(engine, params)
    return *placed((params, key, targets)), slots, Queue(column, column, column), counts


def evaluations_per_step(engine: Engine, params: Any) -> int:
    """Evaluations of the score in each of the sampler's steps."""
    found = []
    jax.eval_shape(lambda params: found.append(engine.make_sampler(params).num_evaluations), params)
    return found[0]


def fresh_slots(engine: Engine, params: Any) -> Slots:
    """Idle slots."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), slot_shapes(engine, params))


def _window(engine: Engine, work: Work, taken: np.ndarray) -> tuple[Queue, np.ndarray]:
    """The next items of each device's queue (device d owns items d, d + D, ...), and how many are real."""
    places = taken[:, None] + np.arange(engine.window)
    places = np.asarray(engine.queues)[:, None] + engine.num_queues * places
    num_queued = np.asarray(np.sum(places < work.num_chains, axis=1), np.int32)
    # Rows past the end are never taken.
    columns = work.items(np.minimum(places, work.num_chains - 1).ravel())
    return Queue(*(column.astype(np.int32) for column in columns)), num_queued


def initial_state(engine: Engine, params: Any) -> EngineState:
    """No chain taken yet."""
    return EngineState(fresh_slots(engine, params), *np.zeros((4, engine.mesh.size), np.int64))


def _check_work(engine: Engine, targets: np.ndarray, work: Work) -> None:
    """Refuses work and targets that are not the engine's."""
    num_levels, shape = engine.grid.num_levels, engine.image_shape
    check(
        targets.shape[1:] == shape and len(targets) > 0,
        "targets",
        got=f"shape {targets.shape}",
        expected=f"(k, {', '.join(map(str, shape))}) with k of at least 1",
        fix="stack images of the model's size, channels last",
    )
    check(
        bool(np.all(np.abs(targets) <= 1)),
        "targets",
        got=f"values from {np.min(targets):.4g} to {np.max(targets):.4g}",
        expected="model range [-1, 1]",
        fix="pass bytes through fpjax.to_model",
    )
    check(
        bool(np.all((work.level >= 1) & (work.level <= num_levels))),
        "levels",
        got=sorted({*work.level.tolist()} - {*range(1, num_levels + 1)})[:8],
        expected=f"integers in 1..{num_levels}",
        fix="take levels of the sampler's own grid",
    )
    check(
        bool(np.all((work.target >= NO_TARGET) & (work.target < len(targets)))),
        "work targets",
        got=sorted({*work.target.tolist()} - {*range(NO_TARGET, len(targets))})[:8],
        expected=f"rows of the {len(targets)} targets",
        fix="number them from 0",
    )
    check(
        bool(np.all(work.level[work.target == NO_TARGET] == num_levels)),
        "plain samples",
        got="a level below N",
        expected=f"level {num_levels}, where the prior is",
        fix="start chains without a target at level N",
    )


def run_chains(
    engine: Engine, params: Any, targets: np.ndarray, work: Work, *, key: Key, state: EngineState | None = None
) -> Iterator[Block]:
    """Runs all work items of this process's devices, yielding the chains that finished block by block.

    Args:
      targets: (k, h, w, c) float32 in model range; at least one row, also when no item names a target.
      work: from `make_work`.
      key: root of every chain's key.
      state: of an earlier block, to go on from there.

    Raises:
      RequestError: if a level or a target is out of range, or the targets are not images of the engine's shape.
      StageError: if a chain becomes non-finite; the message names it.
    """
    targets = np.asarray(targets, np.float32)
    _check_work(engine, targets, work)
    state = state or initial_state(engine, params)
    padded = np.zeros((max(MIN_TARGET_ROWS, 1 << (len(targets) - 1).bit_length()), *engine.image_shape), np.float32)
    padded[: len(targets)] = targets
    # Once, and to all devices: parameters arrive on one of them.
    params, key, on_device = jax.device_put((params, key, padded), on_each(engine.mesh))
    capacity, evaluations = engine.capacity, evaluations_per_step(engine, params)
    total = sum(work.share(queue, engine.num_queues).num_chains for queue in engine.queues)
    while state.num_finished < total:
        queue, num_queued = _window(engine, work, state.taken)
        slots, finished, tally = engine.advance(params, key, on_device, state.slots, queue, num_queued)
        tally = jax.tree.map(np.asarray, tally)
        rows = np.concatenate([np.arange(n) + d * capacity for d, n in enumerate(tally.num_finished)])
        target, level, chain, finite = (np.asarray(c)[rows] for c in finished[1:])
        if not finite.all():
            bad = int(np.argmin(finite))
            raise StageError(
                f"{describe_chain(*(int(c[bad]) for c in (target, level, chain)))} became non-finite "
                f"({int((~finite).sum())} of {len(rows)} chains in this block); the score model returns "
                "non-finite values: train it longer, lower its learning rate, or check its input range"
            )
        state = EngineState(
            slots,
            state.taken + tally.num_taken,
            state.finished + tally.num_finished,
            state.useful + evaluations * tally.num_useful.astype(np.int64),
            state.executed + evaluations * tally.num_executed.astype(np.int64),
        )
        yield Block(finished.images, rows, target, level, chain, state)
