"""Exact log densities under the probability-flow ODE, through diffrax.

    d log p(x(t)) / dt = -div of the flow's drift,   log p_0(x) = log p_1(x(1)) + integral of the divergence

(Song et al. 2021, arXiv:2011.13456, eq. 39; Hutchinson's estimate eq. 40.) The density belongs to the deterministic
sampler, not to the stochastic one that is searched and counted. Every image takes adaptive steps of its own.

Images need different numbers of steps, and a batch lasts as long as its slowest one. So many of them go through a fixed
number of slots: every few steps those that reached t = 1 make room for the next, on each device for itself.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .artifacts import MetricsLog, read_arrays, write_arrays
from .checks import RequestError, StageError, check, in_range, one_of, whole
from .fingerprint import dequantize, to_model
from .progress import Progress, stopping
from .sde import T_MIN_DENSITY, Process, flow_drift, prior_logp
from .types import Image, Key, Scalar, ScoreFn

SOLVERS: dict[str, Callable[..., Any]] = {
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    "heun": diffrax.Heun,
}
# Both have mean 0 and covariance 1; Rademacher's estimate has no noise from the Jacobian's diagonal.
PROBES: dict[str, Callable[..., jax.Array]] = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}
OUTCOMES = ("converged", "max steps", "non-finite")
CONVERGED, MAX_STEPS, NON_FINITE = range(3)


@dataclasses.dataclass(frozen=True)
class OdeSettings:
    """Solver of the probability-flow ODE.

    Attributes:
      solver: a key of `SOLVERS`.
      rtol: relative tolerance of the steps, as is
      atol: the absolute one.
      t_min: time at which the density is evaluated, in (0, 0.5].
      max_steps: steps after which an image is given up and reported.
      num_probes: probes of Hutchinson's trace estimate; 0 takes the exact trace, h*w*c times dearer.
      probe: their distribution, a key of `PROBES`.
      trace_batch: directions of the exact trace taken at once for each image: more need more memory.
    """

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    t_min: float = T_MIN_DENSITY
    max_steps: int = 4096
    num_probes: int = 1
    probe: str = "rademacher"
    trace_batch: int = 64

    def __post_init__(self) -> None:
        one_of("ode.solver", self.solver, SOLVERS)
        in_range("ode.rtol", self.rtol, 1e-8, 0.1)
        in_range("ode.atol", self.atol, 1e-8, 0.1)
        whole("ode", self, names=("max_steps",), most=10**6)
        whole("ode", self, names=("num_probes",), least=0, most=10**4)
        whole("ode", self, names=("trace_batch",), most=2**16)
        one_of("ode.probe", self.probe, PROBES)
        in_range("ode.t_min", self.t_min, 1e-7, 0.5)


class LogLikelihood(NamedTuple):
    """Log density of one image in model range, in nats."""

    nats: Scalar  # the sum of the next two
    prior_nats: Scalar
    delta_nats: Scalar  # integral of the divergence, the mean over the probes
    probe_error: Scalar  # its standard error over the probes: 0 with the exact trace, nan with a single probe
    num_steps: Array  # of the solver, accepted or rejected
    nfe: Array  # evaluations of the drift with its divergence
    outcome: Array  # place in `OUTCOMES`

    @property
    def converged(self) -> Array:
        """The solver reached t = 1 and the density is finite."""
        return self.outcome == CONVERGED


def divergence(
    drift: Callable[[Image], Image], x: Image, *, probes: Float[Array, "k h w c"] | None, trace_batch: int = 64
) -> tuple[Image, Float[Array, " k"]]:
    """Drift at x and its divergence: Hutchinson's estimate by each of the probes, or the exact one (k = 1) with None.

    Forward mode throughout: on CPU the transposed convolution in a loop is about ten times slower.
    """
    if probes is None:
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        value, push = jax.linearize(drift, x)
        diagonal = jax.lax.map(lambda e: jnp.sum(push(e) * e), basis, batch_size=min(trace_batch, x.size))
        return value, jnp.sum(diagonal)[None]
    value, tangents = jax.vmap(lambda e: jax.jvp(drift, (x,), (e,)), out_axes=(None, 0))(probes)
    return value, jnp.sum(probes * tangents, axis=(1, 2, 3))


class FlowState(NamedTuple):
    """One image on its way from t_min to 1."""

    x: Image
    deltas: Float[Array, " k"]  # integral of the divergence so far, by each probe
    t: Scalar
    t_next: Scalar  # where the next step tries to end
    solver: Any
    controller: Any
    num_steps: Array
    nfe: Array
    stuck: Array  # no step is small enough: the score is not finite here


class Flow(NamedTuple):
    """The ODE of one image: `init(x)`, then `step(state, probes)` while `unfinished(state)`, then `end(state)`."""

    draw_probes: Callable[[Key, Image], Any]
    init: Callable[[Image], FlowState]
    step: Callable[[FlowState, Any], FlowState]
    unfinished: Callable[[FlowState], Array]
    end: Callable[[FlowState], LogLikelihood]


def make_flow(
    sde: Process,
    score_fn: ScoreFn,
    settings: OdeSettings,
    *,
    terminal_logp: Callable[[Image], Scalar] | None = None,
) -> Flow:
    """Flow and divergence of one image, both under the tolerances; see `log_likelihood`."""
    # The inner loop over stages need not be differentiated.
    solver = SOLVERS[settings.solver](scan_kind="lax")
    controller = diffrax.PIDController(rtol=settings.rtol, atol=settings.atol)
    # A first-same-as-last solver takes its first stage from the step before.
    reuses = bool(solver.tableau.fsal)
    num_stages = solver.tableau.num_stages - reuses

    def term(probes: Any) -> diffrax.ODETerm:
        def field(t: ArrayLike, state: tuple[Image, Array], _: Any) -> tuple[Image, Array]:
            time = jnp.asarray(t, state[0].dtype)
            drift = functools.partial(_drift_at, sde, score_fn, time)
            return divergence(drift, state[0], probes=probes, trace_batch=settings.trace_batch)

        return diffrax.ODETerm(field)

    def draw_probes(key: Key, x: Image) -> Any:
        if not settings.num_probes:
            return None
        return PROBES[settings.probe](key, (settings.num_probes, *x.shape), x.dtype)

    def init(x: Image) -> FlowState:
        deltas = jnp.zeros(max(settings.num_probes, 1), x.dtype)
        t = jnp.asarray(settings.t_min, x.dtype)
        # Near t = 0 everything changes on the scale of t, the first step: to choose one would take evaluations.
        t_next, controller_state = controller.init(None, t, 1.0, (x, deltas), t, None, lambda *_: None, None)
        probes = jnp.zeros((len(deltas), *x.shape), x.dtype) if settings.num_probes else None
        solver_state = solver.init(term(probes), t, t_next, (x, deltas), None)
        solver_state, controller_state = jax.tree.map(jnp.asarray, (solver_state, controller_state))
        zero = jnp.zeros((), jnp.int32)
        return FlowState(
            x, deltas, t, jnp.asarray(t_next), solver_state, controller_state, zero, zero, jnp.zeros((), bool)
        )

    def step(state: FlowState, probes: Any) -> FlowState:
        ode, y = term(probes), (state.x, state.deltas)
        ends, error, _, solver_state, _ = solver.step(ode, state.t, state.t_next, y, None, state.solver, False)
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        order = solver.error_order(ode)
        keep, t, t_next, _, controller_state, _ = controller.adapt_step_size(
            state.t, state.t_next, y, ends, None, error, order, state.controller
        )
        (x, deltas), solver_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old), (ends, solver_state), (y, state.solver)
        )
        # The last step ends at 1, and none before it so near that rounding would make up the rest.
        t = jnp.asarray(t)
        t_next = jnp.where(t_next > 1 - 1e-6, jnp.where(keep, 1.0, t + 0.5 * (1 - t)), t_next)
        first = state.solver[0] if reuses else False
        return FlowState(
            x,
            deltas,
            t,
            t_next,
            solver_state,
            controller_state,
            state.num_steps + 1,
            state.nfe + num_stages + first,
            (t < 1) & jnp.logical_not(t_next > t),
        )

    def unfinished(state: FlowState) -> Array:
        return (state.t < 1) & (state.num_steps < settings.max_steps) & ~state.stuck

    def end(state: FlowState) -> LogLikelihood:
        prior = terminal_logp(state.x) if terminal_logp else prior_logp(sde, state.x)
        k, delta = len(state.deltas), jnp.mean(state.deltas)
        spread = jnp.std(state.deltas, ddof=1) / np.sqrt(k) if k > 1 else jnp.nan if settings.num_probes else 0.0
        nats = prior + delta
        lost = jnp.where(state.stuck | ~jnp.isfinite(nats), NON_FINITE, CONVERGED)
        outcome = jnp.where((state.t < 1) & ~state.stuck, MAX_STEPS, lost)
        return LogLikelihood(nats, prior, delta, jnp.asarray(spread, nats.dtype), state.num_steps, state.nfe, outcome)

    return Flow(draw_probes, init, step, unfinished, end)


def _drift_at(sde: Process, score_fn: ScoreFn, t: Scalar, x: Image) -> Image:
    return flow_drift(sde, score_fn, x, t)


def log_likelihood(
    sde: Process,
    score_fn: ScoreFn,
    x: Image,
    *,
    key: Key,
    settings: OdeSettings,
    terminal_logp: Callable[[Image], Scalar] | None = None,
) -> LogLikelihood:
    """Log density of `x` under the probability-flow ODE, in nats.

    Solves it from `settings.t_min` to 1 together with its divergence, both under the tolerances. For many images see
    `log_likelihoods`.

    Args:
      x: one image in model range, not dequantised here.
      key: the probes, the same ones along the whole path.
      terminal_logp: log density at t = 1, such as an oracle's own; None takes the prior, where samplers start.
    """
    flow = make_flow(sde, score_fn, settings, terminal_logp=terminal_logp)
    probes = flow.draw_probes(key, x)
    return flow.end(jax.lax.while_loop(flow.unfinished, lambda state: flow.step(state, probes), flow.init(x)))


def bits_per_dim(nats: float | np.ndarray, num_dims: int) -> float | np.ndarray:
    """Negative log density of the byte-valued image in bits per dimension.

    A byte is 1/128 wide in model range, so a density over model range becomes one over bytes by adding log2(128) = 7
    bits to each dimension. With uniform dequantisation the mean of this is at least the code length of the bytes
    themselves (Theis et al. 2016, arXiv:1511.01844), hence comparable with models of discrete pixels, and 8 for one
    that knows nothing.

    >>> round(float(bits_per_dim(0.0, 784)), 3)
    7.0
    """
    return -np.asarray(nats, np.float64) / (num_dims * np.log(2.0)) + 7.0


@dataclasses.dataclass(frozen=True)
class NllSettings:
    """Which images' densities are computed, beside all targets and the members' clean originals.

    Attributes:
      num_train: other training images, those nearest to the members apart.
      num_held_out: images of the test split.
      num_neighbours: training images nearest to each member, by Euclidean distance.
      num_generated: plain samples of the model, drawn for this.
      repeats: draws of dequantisation noise and probes for each image, whose mean is taken.
      snapshots: targets, originals and neighbours under every checkpoint of `score.keep_every` too.
      batch_size: images in flight on each device.
      block_steps: steps of the solver after which those that are done make room for others.
    """

    num_train: int = 128
    num_held_out: int = 128
    num_neighbours: int = 8
    num_generated: int = 64
    repeats: int = 1
    snapshots: bool = False
    batch_size: int = 64
    block_steps: int = 4

    def __post_init__(self) -> None:
        whole("likelihood", self, names=("num_train", "num_held_out"), most=10**6)
        whole("likelihood", self, names=("num_neighbours", "num_generated"), least=0, most=10**6)
        whole("likelihood", self, names=("repeats",), most=10**4)
        whole("likelihood", self, names=("batch_size", "block_steps"), most=2**16)


class DensityEngine(NamedTuple):
    """Compiled advance of all slots by some steps of the solver, and the shapes it was built for."""

    advance: Callable[..., tuple[FlowState, LogLikelihood, Array, Array]]
    idle: Callable[[Any, Array], FlowState]  # slots that hold nothing
    image_shape: tuple[int, int, int]
    mesh: Mesh
    num_slots: int  # on all devices
    settings: OdeSettings


def make_density_engine(
    make_score_fn: Callable[[Any], ScoreFn],
    sde: Process,
    image_shape: tuple[int, int, int],
    settings: OdeSettings,
    *,
    batch_size: int,
    block_steps: int,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> DensityEngine:
    """Builds the engine; it compiles once, for any images and parameters.

    Args:
      make_score_fn: from parameters (any pytree, an argument of the compiled function) to the score.
      image_shape: (h, w, c).
      batch_size: slots on each device.
      block_steps: steps between two looks of the host.
      devices: those to use; None takes all local ones.
    """
    devices = list(devices or jax.local_devices())
    mesh = jax.make_mesh((len(devices),), ("images",), axis_types=(AxisType.Auto,), devices=devices)

    def idle(params: Any, x: Array) -> FlowState:
        return jax.vmap(make_flow(sde, make_score_fn(params), settings).init)(x)._replace(t=jnp.ones(len(x)))

    def advance(
        params: Any, state: FlowState, x: Array, fresh: Array, keys: Key
    ) -> tuple[FlowState, LogLikelihood, Array, Array]:
        flow = make_flow(sde, make_score_fn(params), settings)

        def pick(mask: Array, new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(mask.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), new, old)

        def body(carry: tuple[FlowState, Array]) -> tuple[FlowState, Array]:
            state, count = carry
            stepped = jax.vmap(flow.step, in_axes=(0, 0 if settings.num_probes else None))(state, probes)
            return pick(jax.vmap(flow.unfinished)(state), stepped, state), count + 1

        def go_on(carry: tuple[FlowState, Array]) -> Array:
            state, count = carry
            return (count < block_steps) & jnp.any(jax.vmap(flow.unfinished)(state))

        state = pick(fresh, jax.vmap(flow.init)(x), state)
        probes = jax.vmap(flow.draw_probes)(keys, x) if settings.num_probes else None
        state, count = jax.lax.while_loop(go_on, body, (state, jnp.zeros((), jnp.int32)))
        return state, jax.vmap(flow.end)(state), ~jax.vmap(flow.unfinished)(state), count[None]

    # No collectives inside: a device whose images need fewer steps does not wait for another.
    sharded = jax.shard_map(
        advance, mesh=mesh, in_specs=(P(), *[P("images")] * 4), out_specs=P("images"), check_vma=False
    )
    placed = NamedSharding(mesh, P("images"))
    return DensityEngine(
        jax.jit(sharded), jax.jit(idle, out_shardings=placed), image_shape, mesh, batch_size * len(devices), settings
    )


def _check_images(images: np.ndarray, shape: tuple[int, int, int], limit: float) -> None:
    """Refuses what is neither bytes nor model range."""
    check(
        images.ndim == 4 and images.shape[1:] == shape,
        "images",
        got=f"shape {images.shape}",
        expected=f"(n, {', '.join(map(str, shape))})",
        fix="give the images that the model was trained on",
    )
    if images.dtype == np.uint8 or not images.size:
        return
    check(
        images.dtype == np.float32 and bool(np.all(np.abs(images) <= limit)),
        "images",
        got=f"{images.dtype} from {np.min(images):.4g} to {np.max(images):.4g}",
        expected="bytes, or finite float32 in model range [-1, 1]",
        fix="convert bytes with fingerprint.to_model",
    )


_SAVE_EVERY_S = 10.0


def _load_partial(
    path: Path, identity: str, state: FlowState, host: dict[str, np.ndarray]
) -> tuple[FlowState, dict[str, np.ndarray]]:
    """State of an interrupted run, or the fresh one given."""
    try:
        arrays = read_arrays(path)
    except RequestError:
        return state, host
    if str(arrays.get("identity")) != identity:
        return state, host
    leaves, structure = jax.tree.flatten(state)
    leaves = [jax.device_put(arrays[f"slot{i}"], leaf.sharding) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves), {name: arrays[name] for name in host}


def log_likelihoods(
    engine: DensityEngine,
    params: Any,
    images: np.ndarray,
    *,
    key: Key,
    path: Path,
    log: MetricsLog,
    dequantized: bool = False,
    repeats: int = 1,
    limit: float = 1.0,
    label: str = "likelihood",
) -> dict[str, np.ndarray]:
    """Log densities of many images, resumable: a run that was interrupted ends with the same bytes.

    Args:
      images: (n, h, w, c), uint8 or float32 in model range.
      key: root; each repeat of image i draws its dequantisation noise and probes from a fold of its own, whatever the
        slots and devices.
      path: where an interrupted run is kept; removed by the caller, once its own result is written.
      dequantized: add uniform noise to bytes; otherwise the middle of each byte's bin is taken.
      repeats: draws for each image, whose mean density is reported.
      limit: of the absolute value of float32 images; above 1 only for what a model made.
      label: stage name for progress and log.

    Returns:
      Arrays of length n by the names of `LogLikelihood`'s fields, steps and evaluations summed over the repeats; and
      `repeat_error`, the standard error of `nats` over repeats (nan with one), `converged`. An image whose ODE was not
      solved in every repeat has nan for its density.

    Raises:
      RequestError: if the images are neither bytes nor in model range.
      StageError: if no density is finite.
    """
    _check_images(images, engine.image_shape, limit)
    total, num_slots = len(images) * repeats, engine.num_slots
    placed = NamedSharding(engine.mesh, P("images"))

    @jax.jit
    def prepare(rows: Array, images: Array) -> tuple[Array, Key]:
        def one(row: Array, image: Array) -> tuple[Array, Key]:
            own = jax.random.fold_in(jax.random.fold_in(key, row // repeats), row % repeats)
            key_noise, key_probe = jax.random.split(own)
            if image.dtype == jnp.uint8:
                image = dequantize(key_noise, image) if dequantized else to_model(image)
            return image, key_probe

        return jax.vmap(one)(rows, images)

    params = jax.device_put(params, NamedSharding(engine.mesh, P()))
    parts = (engine.settings, dequantized, repeats, num_slots, engine.mesh.size, jax.random.key_data(key).tolist())
    identity = hashlib.sha256(images.tobytes() + repr((*parts, images.shape, str(images.dtype))).encode()).hexdigest()
    host = {
        "held": np.full(num_slots, -1),  # row of the work in each slot
        "taken": np.zeros((), np.int64),
        "executed": np.zeros((), np.int64),
        "done": np.zeros(total, bool),
        **{name: np.zeros(total) for name in LogLikelihood._fields},
    }
    blank = jnp.zeros((num_slots, *engine.image_shape))
    state, host = _load_partial(path, identity, engine.idle(params, jax.device_put(blank, placed)), host)
    held, done = host["held"], host["done"]
    progress, saved = Progress(label, total, "densities", done=int(done.sum())), time.monotonic()
    while not done.all():
        # Spread over the devices, so that the last images do not all lie on one.
        free = np.flatnonzero(held < 0)
        free = free[np.argsort(free % (num_slots // engine.mesh.size), kind="stable")][: total - int(host["taken"])]
        held[free] = host["taken"] + np.arange(len(free))
        host["taken"] += len(free)
        fresh = np.isin(np.arange(num_slots), free)
        rows = np.maximum(held, 0)
        x, keys = prepare(jnp.asarray(rows), jnp.asarray(images[rows // repeats]))
        with jax.default_matmul_precision("highest"):
            state, found, ended, count = engine.advance(
                params, state, *(jax.device_put(part, placed) for part in (x, jnp.asarray(fresh), keys))
            )
        found, ended, count = jax.device_get((found, ended, count))
        slots = np.flatnonzero(ended & (held >= 0))
        for name, values in found._asdict().items():
            host[name][held[slots]] = values[slots]
        done[held[slots]] = True
        host["executed"] += int(count.sum()) * (num_slots // engine.mesh.size)
        if len(slots):
            log.write(
                label,
                images=int(done.sum()),
                rows=held[slots],
                steps=found.num_steps[slots],
                nfe=int(found.nfe[slots].max()),
                not_converged=int((host["outcome"][done] != CONVERGED).sum()),
                useful_steps=int(host["num_steps"][done].sum()),
                executed_steps=int(host["executed"]),
                images_per_s=progress.rate,
            )
        held[slots] = -1
        # The end is kept too: a stage may have other densities to compute after these.
        if stopping() or time.monotonic() - saved > _SAVE_EVERY_S or done.all():
            leaves = {f"slot{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
            write_arrays(path, identity=np.asarray(identity), **host, **leaves)
            saved = time.monotonic()
        steps = host["num_steps"][done]
        progress.update(int(done.sum()), f"{steps.mean() if len(steps) else 0:.0f} steps an image")
    return _over_repeats({name: host[name].reshape(len(images), repeats) for name in LogLikelihood._fields}, label)


def _over_repeats(found: dict[str, np.ndarray], label: str) -> dict[str, np.ndarray]:
    """One row an image, from one a repeat."""
    outcome = found["outcome"].astype(int).max(axis=1)
    if outcome.size and bool(np.all(outcome == NON_FINITE)):
        raise StageError(
            f"{label}: the density of none of {len(outcome)} images is finite; the score model returns non-finite "
            "values: train it longer, lower its learning rate, or check its input range"
        )
    repeats, solved = found["nats"].shape[1], outcome == CONVERGED
    found = {name: np.where(solved[:, None], values, np.nan) for name, values in found.items()} | {
        name: found[name] for name in ("num_steps", "nfe")
    }
    spread = found["nats"].std(axis=1, ddof=1) / np.sqrt(repeats) if repeats > 1 else np.full(len(solved), np.nan)
    return {
        **{name: found[name].mean(axis=1) for name in ("nats", "prior_nats", "delta_nats")},
        "probe_error": np.sqrt((found["probe_error"] ** 2).mean(axis=1) / repeats),
        "repeat_error": spread,
        "num_steps": found["num_steps"].astype(int).sum(axis=1),
        "nfe": found["nfe"].astype(int).sum(axis=1),
        "outcome": outcome,
        "converged": solved,
    }
