"""The forward processes, their time grid, and the closed forms of both.

    dx = f(t) x dt + g(t) dw,    x_t | x_0 ~ N(scale(t) x_0, std(t)^2 I)

Every process here is linear and Gaussian, so the transition between two grid times and the posterior of the
earlier one given the later one and x_0 are closed forms too (Song et al. 2021, arXiv:2011.13456, App. B; Ho et
al. 2020, arXiv:2006.11239, eq. 6-7). `marginal` and `coefficients` follow their argument: JAX arrays in, JAX
arrays out; NumPy in, NumPy float64 out, which is how the grid below gets its tables without cancellation.

A new process is one frozen dataclass with these two methods and one line in `make_process`.
"""

import dataclasses
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from ..core.errors import check, in_range, one_of, positive

Values = TypeVar("Values", jax.Array, np.ndarray, np.float64)

T_MIN_SAMPLING = 1e-3
T_MIN_DENSITY = 1e-5


class Marginal(NamedTuple, Generic[Values]):
    """x_t | x_0 has mean `scale * x_0` and standard deviation `std` in every dimension."""

    scale: Values
    std: Values


@runtime_checkable
class Process(Protocol):
    """A linear Gaussian diffusion on [0, 1], std(0) = 0; what is common to most is defined here."""

    def marginal(self, t: Values) -> Marginal[Values]:
        """Scale and standard deviation of x_t | x_0 at times in [0, 1]."""
        ...

    def coefficients(self, t: Values) -> tuple[Values, Values]:
        """Drift factor f(t) and diffusion g(t)."""
        ...

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior at t = 1, whose mean is 0."""
        return 1.0

    @property
    def num_steps(self) -> int | None:
        """Steps of a process that has its own, at the times 1 / num_steps, ..., 1."""
        return None

    def grid_times(self, t: np.ndarray) -> np.ndarray:
        """The nearest times that a sampler may stop at: all, unless the process has steps of its own."""
        return t


def numpy_of(t: jax.Array | np.ndarray | np.float64) -> Any:
    """The module that computes with `t`."""
    return jnp if isinstance(t, jax.Array) else np


def _check_end(
    what: str, got: Any, log_scale: float, *, fix: str = "use beta_min 0.1 and beta_max 20, or betas like theirs"
) -> None:
    """Refuses processes whose end is far from the prior, or divides by what float32 cannot hold."""
    check(
        -40.0 <= log_scale <= -1.5,
        what,
        got=got,
        expected=f"a schedule that leaves exp(-40) to exp(-1.5) of x_0 at t = 1, not exp({log_scale:.3g})",
        fix=fix,
    )


@dataclasses.dataclass(frozen=True)
class _LinearBeta(Process):
    """Processes with beta(t) linear from beta_min to beta_max."""

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
        _check_end("sde.beta_min, sde.beta_max", (self.beta_min, self.beta_max), self.log_scale(np.float64(1.0)))

    def beta(self, t: Values) -> Values:
        """Rate at time t."""
        return cast(Values, self.beta_min + t * (self.beta_max - self.beta_min))

    def log_scale(self, t: Values) -> Values:
        """Logarithm of the factor that is left of x_0 at time t: -1/2 of beta's integral."""
        return cast(Values, -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)


@dataclasses.dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance-preserving SDE with linear beta(t) (Song et al. 2021, eq. 12; kernel in App. B).

    Attributes:
      beta_min: beta(0), above 0.
      beta_max: beta(1), at least `beta_min`.
    """

    def marginal(self, t: Values) -> Marginal[Values]:
        """See `Process`."""
        log_scale, xp = self.log_scale(t), numpy_of(t)
        # expm1: in float32, 1 - exp(.) is already several percent off at t = 1e-5.
        return Marginal(scale=xp.exp(log_scale), std=-xp.expm1(2.0 * log_scale))

    def coefficients(self, t: Values) -> tuple[Values, Values]:
        """See `Process`."""
        beta, xp = self.beta(t), numpy_of(t)
        return cast(Values, -0.5 * beta), xp.sqrt(-beta * xp.expm1(4.0 * self.log_scale(t)))


class _VariancePreserving(Process, Protocol):
    """scale^2 + std^2 = 1, for any beta(t)."""

    def beta(self, t: Values) -> Values: ...

    def log_scale(self, t: Values) -> Values: ...

    def marginal(self, t: Values) -> Marginal[Values]:
        """See `Process`."""
        log_scale, xp = self.log_scale(t), numpy_of(t)
        return Marginal(scale=xp.exp(log_scale), std=xp.sqrt(abs(xp.expm1(2.0 * log_scale))))

    def coefficients(self, t: Values) -> tuple[Values, Values]:
        """See `Process`."""
        beta = self.beta(t)
        return cast(Values, -0.5 * beta), numpy_of(t).sqrt(beta)


@dataclasses.dataclass(frozen=True)
class VP(_LinearBeta, _VariancePreserving):
    """Variance-preserving SDE with linear beta(t), DDPM's limit (Song et al. 2021, eq. 11).

    Attributes:
      beta_min: beta(0), above 0.
      beta_max: beta(1), at least `beta_min`.
    """


@dataclasses.dataclass(frozen=True)
class DiscreteVP(_VariancePreserving):
    """The variance-preserving process of a DDPM scheduler: N steps, alpha_bar_k = product of (1 - beta_j), j <= k.

    Step k has time t = (k + 1) / N, where scale^2 is alpha_bar_k exactly. Between these times log alpha_bar is a
    monotone cubic, so that beta(t) is continuous and the SDE, its flow and its likelihood are defined everywhere.
    Grids stop at the steps alone.

    Attributes:
      betas: beta_k of each step, in (0, 1).
    """

    betas: tuple[float, ...] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        check(
            len(self.betas) >= 2 and all(0 < beta < 1 for beta in self.betas),
            "betas",
            got=f"{len(self.betas)} from {min(self.betas, default=0):.4g} to {max(self.betas, default=0):.4g}",
            expected="at least two numbers inside (0, 1)",
            fix="take the scheduler's own; a schedule that ends with nothing left of x_0 (beta 1) has no score there",
        )
        got = f"{len(self.betas)} from {min(self.betas):.4g} to {max(self.betas):.4g}"
        fix = (
            "audit a model whose last step is noise, or what it draws from noise is not of its data: 300 or more "
            "linear steps up to beta_end 0.02, or a larger beta_end for fewer"
        )
        _check_end("betas", got, self.log_scale(np.float64(1.0)), fix=fix)

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.betas)

    def _pieces(self, t: Values) -> tuple[Any, Any]:
        """Coefficients of log scale, lowest power first, in the interval that holds t; and t's place in it."""
        steps = np.arange(len(self.betas) + 1.0)
        values = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.asarray(self.betas, np.float64)))])
        xp, pieces = numpy_of(t), PchipInterpolator(steps, values).c[::-1].T
        place = t * len(self.betas)
        row = xp.clip(xp.floor(place), 0, len(pieces) - 1)
        return xp.asarray(pieces, row.dtype)[row.astype(int)], place - row

    def log_scale(self, t: Values) -> Values:
        """Logarithm of the factor that is left of x_0 at time t."""
        c, w = self._pieces(t)
        return c[..., 0] + w * (c[..., 1] + w * (c[..., 2] + w * c[..., 3]))

    def beta(self, t: Values) -> Values:
        """Rate at time t, -2 times the slope of log scale."""
        c, w = self._pieces(t)
        return -2.0 * len(self.betas) * (c[..., 1] + w * (2.0 * c[..., 2] + w * 3.0 * c[..., 3]))

    def grid_times(self, t: np.ndarray) -> np.ndarray:
        """The nearest steps' times, each used once."""
        place, steps = np.arange(len(t)), np.maximum(np.round(t * len(self.betas)), 1)
        upward = np.maximum.accumulate(steps - place) + place
        return np.minimum(upward, len(self.betas) - place[::-1]) / len(self.betas)


@dataclasses.dataclass(frozen=True)
class VE(Process):
    """Variance-exploding SDE, sigma(t) = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, App. C, eq. 29-30).

    The kernel is the exact one, std(t)^2 = sigma(t)^2 - sigma(0)^2, so that nothing is added at t = 0.

    Attributes:
      sigma_min: sigma(0), in [1e-5, 1].
      sigma_max: sigma(1), in [2, 1e5]; about the largest distance between two images, so that the start tells nothing.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        in_range("sde.sigma_min", self.sigma_min, 1e-5, 1.0, fix="use 0.01")
        in_range("sde.sigma_max", self.sigma_max, 2.0, 1e5, fix="use 50")

    @property
    def _log_ratio(self) -> float:
        return float(np.log(self.sigma_max / self.sigma_min))

    @property
    def prior_std(self) -> float:
        """sigma_max."""
        return self.sigma_max

    def marginal(self, t: Values) -> Marginal[Values]:
        """See `Process`."""
        xp = numpy_of(t)
        return Marginal(scale=xp.ones_like(t), std=self.sigma_min * xp.sqrt(xp.expm1(2.0 * self._log_ratio * t)))

    def coefficients(self, t: Values) -> tuple[Values, Values]:
        """See `Process`."""
        sigma = self.sigma_min * numpy_of(t).exp(self._log_ratio * t)
        return cast(Values, 0.0 * t), cast(Values, np.sqrt(2.0 * self._log_ratio).item() * sigma)


@dataclasses.dataclass(frozen=True)
class SdeSettings:
    """Which process the model learns; numbers of another one are not read.

    Attributes:
      name: subvp, vp or ve.
      beta_min: beta(0) of sub-VP and VP.
      beta_max: beta(1), is theirs too.
      sigma_min: sigma(0) of VE.
      sigma_max: sigma(1), is its too.
    """

    name: str = "subvp"
    beta_min: float = SubVP.beta_min
    beta_max: float = SubVP.beta_max
    sigma_min: float = VE.sigma_min
    sigma_max: float = VE.sigma_max

    def __post_init__(self) -> None:
        one_of("sde.name", self.name, ("subvp", "vp", "ve"))
        make_process(self)


def make_process(settings: SdeSettings) -> Process:
    """The process that the settings name.

    Raises:
      RequestError: if its numbers are out of range.
    """
    if settings.name == "ve":
        return VE(settings.sigma_min, settings.sigma_max)
    return {"subvp": SubVP, "vp": VP}[settings.name](settings.beta_min, settings.beta_max)
