"""The forward process, its time grid, and the closed forms of both.

    dx = f(t) x dt + g(t) dw,    x_t | x_0 ~ N(scale(t) x_0, std(t)^2 I)

Every process here is linear and Gaussian, so the transition between two grid times and the posterior of the
earlier one given the later one and x_0 are closed forms too (Song et al. 2021, arXiv:2011.13456, App. B; Ho et
al. 2020, arXiv:2006.11239, eq. 6-7). `marginal` and `coefficients` follow their argument: JAX arrays in, JAX
arrays out; NumPy in, NumPy float64 out, which is how the grid below gets its tables without cancellation.
"""

import dataclasses
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from .checks import check, in_range, positive
from .types import Image, Scalar, ScoreFn, Time

Values = TypeVar("Values", jax.Array, np.ndarray, np.float64)

T_MIN_SAMPLING = 1e-3
T_MIN_DENSITY = 1e-5


class Marginal(NamedTuple, Generic[Values]):
    """x_t | x_0 has mean `scale * x_0` and standard deviation `std` in every dimension."""

    scale: Values
    std: Values


@dataclasses.dataclass(frozen=True)
class SubVP:
    """Sub-variance-preserving SDE with linear beta(t) (Song et al. 2021, eq. 12; kernel in App. B).

    Attributes:
      beta_min: beta(0), above 0.
      beta_max: beta(1), at least `beta_min`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        positive("sde.beta_min", self.beta_min)
        check(
            self.beta_max >= self.beta_min,
            "sde.beta_max",
            got=self.beta_max,
            expected=f"at least {self.beta_min}",
            fix="use the defaults 0.1 and 20",
        )

    def log_scale(self, t: Values) -> Values:
        """Logarithm of the factor that is left of x_0 at time t: -1/2 of beta's integral."""
        return cast(Values, -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)

    def marginal(self, t: Values) -> Marginal[Values]:
        """Scale and standard deviation of x_t | x_0 at times in [0, 1]."""
        xp: Any = jnp if isinstance(t, jax.Array) else np
        log_scale = self.log_scale(t)
        # expm1: in float32, 1 - exp(.) is already several percent off at t = 1e-5.
        return Marginal(scale=xp.exp(log_scale), std=-xp.expm1(2.0 * log_scale))

    def coefficients(self, t: Values) -> tuple[Values, Values]:
        """Drift factor f(t) and diffusion g(t)."""
        xp: Any = jnp if isinstance(t, jax.Array) else np
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        return cast(Values, -0.5 * beta), xp.sqrt(-beta * xp.expm1(4.0 * self.log_scale(t)))


def prior_logp(x: Image) -> Scalar:
    """Log density of the prior at t = 1, in nats."""
    return -0.5 * jnp.sum(x**2) - 0.5 * x.size * jnp.log(2 * jnp.pi)


def flow_drift(sde: SubVP, score_fn: ScoreFn, x: Image, t: Time) -> Image:
    """Right-hand side of the probability-flow ODE (paper eq. 5)."""
    f, g = sde.coefficients(t)
    return f * x - 0.5 * g**2 * score_fn(x, t)


def log_snr(sde: SubVP, t: float | np.ndarray) -> np.ndarray:
    """log(scale^2 / std^2), natural logarithm: the noise level in terms that compare across SDEs."""
    scale, std = sde.marginal(np.asarray(t, np.float64))
    return 2 * (np.log(scale) - np.log(std))


class TimeGrid(NamedTuple):
    """The sampler's own times and every closed form it needs, indexed by level 0..N; float32, on the host.

    t_0 = 0 < t_1 = t_min < ... < t_N = 1. A chain of level i takes exactly i reverse steps; step i goes from
    t_i to t_{i-1}. Row 0 of the step columns is never used.
    """

    t: np.ndarray  # (N+1,) diffusion time
    scale: np.ndarray  # (N+1,) of x_i | x_0
    std: np.ndarray  # (N+1,)
    dt: np.ndarray  # (N+1,) t_i - t_{i-1}
    keep_x: np.ndarray  # (N+1,) weight of x_i in the mean of x_{i-1} | x_i, x_0
    keep_x0: np.ndarray  # (N+1,) weight of x_0 in it
    posterior_std: np.ndarray  # (N+1,) standard deviation of x_{i-1} | x_i, x_0; 0 at i = 1

    @property
    def num_levels(self) -> int:
        """N, the number of levels above 0."""
        return len(self.t) - 1


def time_grid(sde: SubVP, num_levels: int, *, t_min: float = T_MIN_SAMPLING) -> TimeGrid:
    """The grid with `num_levels` evenly spaced times from `t_min` to 1, and 0 below them.

    The transition is x_i | x_{i-1} ~ N(a x_{i-1}, v) with a = scale_i / scale_{i-1} and
    v = std_i^2 - a^2 std_{i-1}^2; the posterior follows by completing the square.

    >>> [f"{t:.3f}" for t in time_grid(SubVP(), 4).t]
    ['0.000', '0.001', '0.334', '0.667', '1.000']

    Raises:
      RequestError: if there are fewer than 2 levels or `t_min` is not in (0, 0.5].
    """
    check(num_levels >= 2, "sampler.num_levels", got=num_levels, expected="an integer of at least 2", fix="use 1000")
    in_range("t_min", t_min, 1e-7, 0.5)
    t = np.concatenate([[0.0], np.linspace(t_min, 1.0, num_levels)])
    scale, std = sde.marginal(t)
    a = scale[1:] / scale[:-1]
    variance = std[1:] ** 2 - a**2 * std[:-1] ** 2
    columns = (
        np.diff(t),
        a * std[:-1] ** 2 / std[1:] ** 2,
        scale[:-1] * variance / std[1:] ** 2,
        std[:-1] * np.sqrt(variance) / std[1:],
    )
    padded = [np.concatenate([[0.0], column]) for column in columns]
    return TimeGrid(*(np.asarray(column, np.float32) for column in (t, scale, std, *padded)))
