"""The contract between a process and a network: how the network is told x_t and t, and how its output is read.

With x_t = scale x_0 + std noise a network gets `scale_in * x_t` and a time; its output `net` is read, and trained, as

    noise = skip x_t + out net        net = data x_0 + noise_part noise

A new contract is one entry of `PRECONDITIONINGS`. Nothing else in the package knows what a network predicts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from ..core.errors import one_of
from .grid import log_snr
from .sde import T_MIN_DENSITY, VE, DiscreteVP, Marginal, Process, Values, numpy_of

SIGMA_DATA = 0.5  # of EDM, standard deviation of the data
Coefficient = Callable[[Marginal[Any]], Any]
In = Callable[[Process, Any], Any]
_ZERO, _ONE = 0.0, 1.0


def steps_or_continuous(sde: Process, t: Values) -> Values:
    """999 t, score_sde's convention for continuous models; the step's number k = N t - 1 where a process has steps."""
    if isinstance(sde, DiscreteVP):
        return cast(Values, numpy_of(t).maximum(t * len(sde.betas) - 1.0, 0.0))
    return cast(Values, 999.0 * t)


def affine_in_log_sigma(sde: Process, t: Values) -> Values:
    """From 0 to 999, affine in log(std / scale): EDM's c_noise, in the range that these networks are told."""
    last, first = (float(log_snr(sde, end)) for end in (1.0, T_MIN_DENSITY))
    scale, std = sde.marginal(t)
    xp = numpy_of(t)
    return cast(Values, 999.0 * xp.clip((first - 2 * (xp.log(scale) - xp.log(std))) / (first - last), 0.0, 1.0))


def ordinary_size(sde: Process, t: Values) -> Values:
    """1, or 1 / sqrt(1 + std^2) for VE: its network sees the variance-preserving image of the same noise level.

    VE's time, 999 t, is already affine in log sigma, which is what score_sde's networks for VE are told.
    """
    if isinstance(sde, VE):
        return cast(Values, 1.0 / numpy_of(t).sqrt(1.0 + sde.marginal(t).std ** 2))
    return cast(Values, numpy_of(t).ones_like(t))


def _edm_norm(m: Marginal[Any]) -> Any:
    """sqrt(sigma^2 + SIGMA_DATA^2) times the scale, sigma = std / scale."""
    return (m.std**2 + (SIGMA_DATA * m.scale) ** 2) ** 0.5


def unit_variance(sde: Process, t: Values) -> Values:
    """EDM's c_in on x_t: what the network sees has variance 1 if the data have `SIGMA_DATA`^2."""
    return cast(Values, 1.0 / _edm_norm(sde.marginal(t)))


@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """One way to tell a network an image and to read its answer; coefficients are functions of x_t's `Marginal`.

    Attributes:
      scale_in: factor on x_t before the network sees it, of the process and t.
      time: that the network is told, in [0, 999], of the process and t.
      skip, out: noise = skip x_t + out net.
      data, noise_part: net = data x_0 + noise_part noise, what it is trained on.
    """

    scale_in: In
    time: In
    skip: Coefficient
    out: Coefficient
    data: Coefficient
    noise_part: Coefficient


def combine(a: Any, x: Any, b: Any, y: Any) -> Any:
    """The sum a x + b y; a coefficient that is the constant 0 or 1 leaves no operation behind."""
    terms = [value if c is _ONE else c * value for c, value in ((a, x), (b, y)) if c is not _ZERO]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


PRECONDITIONINGS = {
    # The noise itself (Ho et al. 2020, arXiv:2006.11239).
    "epsilon": Preconditioning(
        ordinary_size,
        steps_or_continuous,
        skip=lambda m: _ZERO,
        out=lambda m: _ONE,
        data=lambda m: _ZERO,
        noise_part=lambda m: _ONE,
    ),
    # v = scale noise - std x_0 (Salimans & Ho 2022, arXiv:2202.00512).
    "v_prediction": Preconditioning(
        ordinary_size,
        steps_or_continuous,
        skip=lambda m: m.std / (m.scale**2 + m.std**2),
        out=lambda m: m.scale / (m.scale**2 + m.std**2),
        data=lambda m: -m.std,
        noise_part=lambda m: m.scale,
    ),
    # x_0.
    "sample": Preconditioning(
        ordinary_size,
        steps_or_continuous,
        skip=lambda m: 1.0 / m.std,
        out=lambda m: -m.scale / m.std,
        data=lambda m: _ONE,
        noise_part=lambda m: _ZERO,
    ),
    # EDM's (Karras et al. 2022, arXiv:2206.00364, table 1), on x_t / scale with sigma = std / scale; its weight of the
    # loss, 1 / c_out^2, makes the loss of `net` plain.
    "edm": Preconditioning(
        unit_variance,
        affine_in_log_sigma,
        skip=lambda m: m.std / _edm_norm(m) ** 2,
        out=lambda m: -SIGMA_DATA * m.scale / _edm_norm(m),
        data=lambda m: m.std / (SIGMA_DATA * _edm_norm(m)),
        noise_part=lambda m: -SIGMA_DATA * m.scale / _edm_norm(m),
    ),
}
PREDICTIONS = tuple(PRECONDITIONINGS)


def preconditioning(name: str) -> Preconditioning:
    """The contract of this name; RequestError for an unknown one."""
    one_of("prediction", name, PREDICTIONS)
    return PRECONDITIONINGS[name]
