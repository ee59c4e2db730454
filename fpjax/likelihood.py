"""Exact log densities under the probability-flow ODE, through diffrax.

    d log p(x(t)) / dt = -div of the flow's drift,   log p_0(x) = log p_1(x(1)) + integral of the divergence

(Song et al. 2021, arXiv:2011.13456, eq. 39; Hutchinson's estimate eq. 40.) The density belongs to the deterministic
sampler, not to the stochastic one that is searched and counted. Every image takes adaptive steps of its own.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .artifacts import MetricsLog, read_arrays, write_arrays
from .checks import RequestError, in_range, one_of, whole
from .fingerprint import dequantize, to_model
from .progress import Progress
from .sde import T_MIN_DENSITY, Process, flow_drift, prior_logp
from .types import Image, Key, Scalar, ScoreFn

SOLVERS: dict[str, Callable[[], diffrax.AbstractAdaptiveSolver]] = {
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    "heun": diffrax.Heun,
}
# Evaluations of the drift a step, accepted or rejected (first-same-as-last solvers reuse one).
_STAGES = {"dopri5": 6, "tsit5": 6, "dopri8": 13, "heun": 2}


@dataclasses.dataclass(frozen=True)
class OdeSettings:
    """Solver of the probability-flow ODE.

    Attributes:
      solver: a key of `SOLVERS`.
      rtol: relative tolerance of the steps, as is
      atol: the absolute one.
      t_min: time at which the density is evaluated, in (0, 0.5].
      max_steps: steps after which an image is given up and reported.
      num_probes: Rademacher probes of Hutchinson's trace estimate; 0 takes the exact trace, h*w*c times dearer.
    """

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    t_min: float = T_MIN_DENSITY
    max_steps: int = 4096
    num_probes: int = 1

    def __post_init__(self) -> None:
        one_of("ode.solver", self.solver, SOLVERS)
        in_range("ode.rtol", self.rtol, 1e-8, 0.1)
        in_range("ode.atol", self.atol, 1e-8, 0.1)
        whole("ode", self, names=("max_steps",), most=10**6)
        whole("ode", self, names=("num_probes",), least=0, most=10**4)
        in_range("ode.t_min", self.t_min, 1e-7, 0.5)


class LogLikelihood(NamedTuple):
    """Log density of one image in model range, in nats."""

    nats: Scalar  # the sum of the next two
    prior_nats: Scalar
    delta_nats: Scalar  # integral of the divergence
    nfe: Array  # evaluations of the drift with its divergence
    converged: Array  # the solver reached t = 1 and the density is finite


def divergence(drift: Callable[[Image], Image], x: Image, *, probes: Float[Array, "k h w c"] | None) -> tuple:
    """Drift at x and its divergence: Hutchinson's with the given probes, or exact with None.

    Forward mode throughout: on CPU the transposed convolution in a loop is about ten times slower.
    """
    if probes is None:
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        value, push = jax.linearize(drift, x)
        diagonal = jax.lax.map(lambda e: jnp.sum(push(e) * e), basis, batch_size=min(64, x.size))
        return value, jnp.sum(diagonal)
    value, tangents = jax.vmap(lambda e: jax.jvp(drift, (x,), (e,)), out_axes=(None, 0))(probes)
    return value, jnp.sum(probes * tangents) / len(probes)


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

    Solves it from `settings.t_min` to 1 together with its divergence, both under the tolerances. Vmap over images.

    Args:
      x: one image in model range, not dequantised here.
      key: the probes, the same ones along the whole path.
      terminal_logp: log density at t = 1, such as an oracle's own; None takes the prior, where samplers start.
    """
    probes = None
    if settings.num_probes:
        probes = jax.random.rademacher(key, (settings.num_probes, *x.shape), x.dtype)

    def field(t: ArrayLike, state: tuple[Image, Scalar], _: Any) -> tuple[Image, Scalar]:
        time = jnp.asarray(t, x.dtype)
        return divergence(lambda y: flow_drift(sde, score_fn, y, time), state[0], probes=probes)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        SOLVERS[settings.solver](),
        t0=settings.t_min,
        t1=1.0,
        dt0=None,
        y0=(x, jnp.zeros((), x.dtype)),
        max_steps=settings.max_steps,
        throw=False,
        stepsize_controller=diffrax.PIDController(rtol=settings.rtol, atol=settings.atol),
        adjoint=diffrax.ForwardMode(),
    )
    end, delta = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    prior = terminal_logp(end) if terminal_logp else prior_logp(sde, end)
    nats = prior + delta
    converged = (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(nats)
    # Two more at the start, where the solver chooses its first step.
    nfe = solution.stats["num_steps"] * _STAGES[settings.solver] + 2
    return LogLikelihood(nats, prior, delta, nfe, converged)


def bits_per_dim(nats: float | np.ndarray, num_dims: int) -> float | np.ndarray:
    """Negative log density of the byte-valued image in bits per dimension.

    A byte is 1/128 wide in model range, so a density over model range becomes one over bytes by adding log2(128) = 7.

    >>> round(float(bits_per_dim(0.0, 784)), 3)
    7.0
    """
    return -np.asarray(nats, np.float64) / (num_dims * np.log(2.0)) + 7.0


@dataclasses.dataclass(frozen=True)
class NllSettings:
    """Which images' densities are computed, beside all targets and the members' clean originals.

    Attributes:
      num_train: other training images.
      num_held_out: images of the test split.
      batch_size: images solved together; each batch lasts as long as its slowest image.
    """

    num_train: int = 128
    num_held_out: int = 128
    batch_size: int = 64

    def __post_init__(self) -> None:
        whole("likelihood", self, names=("num_train", "num_held_out"), most=10**6)
        whole("likelihood", self, names=("batch_size",), most=2**16)


def log_likelihoods(
    make_score_fn: Callable[[Any], ScoreFn],
    params: Any,
    sde: Process,
    images: np.ndarray,
    settings: OdeSettings,
    *,
    key: Key,
    dequantized: bool,
    batch_size: int,
    path: Path,
    log: MetricsLog,
) -> dict[str, np.ndarray]:
    """Log densities of many images, batch by batch, resumable.

    Args:
      make_score_fn: from parameters to the score.
      images: (n, h, w, c) uint8.
      key: root; image i draws its dequantisation noise and probes from its own fold, whatever the batch.
      dequantized: add uniform noise to the bytes; otherwise the middle of each byte's bin is taken.
      path: where an interrupted run is kept.

    Returns:
      Arrays of length n by the names of `LogLikelihood`'s fields; an image that did not converge says so there.
    """

    @jax.jit
    def solve(params: Any, batch: jax.Array, keys: jax.Array) -> LogLikelihood:
        def one(image: jax.Array, key: Key) -> LogLikelihood:
            key_noise, key_probe = jax.random.split(key)
            x = dequantize(key_noise, image) if dequantized else to_model(image)
            return log_likelihood(sde, make_score_fn(params), x, key=key_probe, settings=settings)

        return jax.vmap(one)(batch, keys)

    identity = hashlib.sha256(images.tobytes() + repr((settings, dequantized, batch_size)).encode()).hexdigest()
    done: dict[str, np.ndarray] = {name: np.zeros(0) for name in LogLikelihood._fields}
    try:
        arrays = read_arrays(path)
        if str(arrays.pop("identity")) == identity:
            done = arrays
    except RequestError:
        pass
    start = len(done["nats"])
    progress = Progress("likelihood", len(images), "images", done=start)
    for first in range(start, len(images), batch_size):
        # The last batch is padded with its first image, for one compiled shape.
        rows = np.arange(first, first + batch_size)
        rows = np.where(rows < len(images), rows, first)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(rows))
        with jax.default_matmul_precision("highest"):
            batch = jax.tree.map(np.asarray, solve(params, jnp.asarray(images[rows]), keys))
        count = min(batch_size, len(images) - first)
        done = {name: np.concatenate([done[name], values[:count]]) for name, values in batch._asdict().items()}
        write_arrays(path, identity=np.asarray(identity), **done)
        log.write(
            "likelihood",
            images=first + count,
            nfe=int(batch.nfe[:count].max()),
            not_converged=int((~batch.converged[:count]).sum()),
        )
        progress.update(first + count, f"up to {int(batch.nfe[:count].max())} evaluations an image")
    return done
