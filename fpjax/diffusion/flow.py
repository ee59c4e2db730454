"""The probability-flow ODE of one image and its exact log density, through diffrax.

    d log p(x(t)) / dt = -div of the flow's drift,   log p_0(x) = log p_1(x(1)) + integral of the divergence

(Song et al. 2021, arXiv:2011.13456, eq. 39; Hutchinson's estimate eq. 40.) The density belongs to the deterministic
sampler, not to the stochastic one that is searched and counted. Every image takes adaptive steps of its own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..core.errors import in_range, one_of, whole
from ..core.types import Image, Key, Scalar, ScoreFn, Time
from .sde import T_MIN_DENSITY, Process


def prior_logp(sde: Process, x: Image) -> Scalar:
    """Log density of the prior at t = 1, in nats."""
    return -0.5 * jnp.sum((x / sde.prior_std) ** 2) - 0.5 * x.size * np.log(2 * np.pi * sde.prior_std**2)


def flow_drift(sde: Process, score_fn: ScoreFn, x: Image, t: Time) -> Image:
    """Right-hand side of the probability-flow ODE (paper eq. 5)."""
    f, g = sde.coefficients(t)
    return f * x - 0.5 * g**2 * score_fn(x, t)


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
