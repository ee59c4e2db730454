"""Time grids of samplers: levels 0 to N, evenly spaced in time, its square root or the log signal-to-noise ratio."""

from typing import NamedTuple

import numpy as np

from ..core.errors import RequestError, check, in_range, one_of
from .sde import T_MIN_SAMPLING, Process


def log_snr(sde: Process, t: float | np.ndarray) -> np.ndarray:
    """log(scale^2 / std^2), natural logarithm: the noise level in terms that compare across SDEs."""
    scale, std = sde.marginal(np.asarray(t, np.float64))
    return np.asarray(2 * (np.log(scale) - np.log(std)))


def time_at_log_snr(sde: Process, values: np.ndarray) -> np.ndarray:
    """Times in (0, 1] at which `log_snr` has these values, by bisection (it falls strictly); float64.

    >>> from fpjax.diffusion.sde import SubVP
    >>> f"{float(time_at_log_snr(SubVP(), log_snr(SubVP(), 0.3))):.6f}"
    '0.300000'
    """
    low, high = np.full(np.shape(values), 1e-12), np.ones(np.shape(values))
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = log_snr(sde, middle) > values
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high


# Those of diffusers' schedulers, over the process's own steps.
STEP_SPACINGS = ("leading", "linspace", "trailing")
EVEN_SPACINGS = ("time", "quadratic", "log_snr")
SPACINGS = (*EVEN_SPACINGS, *STEP_SPACINGS)


class TimeGrid(NamedTuple):
    """The sampler's own times and every closed form it needs, indexed by level 0..N; float32, on the host.

    t_0 = 0 < t_1 = t_min < ... < t_N = 1; a scheduler's own spacing may begin higher and end lower. A chain of level i
    takes exactly i reverse steps; step i goes from t_i to t_{i-1}. Row 0 of the step columns is never used.
    """

    t: np.ndarray  # (N+1,) diffusion time
    scale: np.ndarray  # (N+1,) of x_i | x_0
    std: np.ndarray  # (N+1,)
    dt: np.ndarray  # (N+1,) t_i - t_{i-1}
    keep_x: np.ndarray  # (N+1,) weight of x_i in the mean of x_{i-1} | x_i, x_0
    keep_x0: np.ndarray  # (N+1,) weight of x_0 in it
    posterior_std: np.ndarray  # (N+1,) standard deviation of x_{i-1} | x_i, x_0; 0 at i = 1
    prior_std: np.ndarray  # () of the prior, where chains without a target start

    @property
    def num_levels(self) -> int:
        """N, the number of levels above 0."""
        return len(self.t) - 1

    def level_at(self, t: float) -> int:
        """The highest level whose time is at most `t`, or 1."""
        return max(1, int(np.searchsorted(self.t, np.float32(t), side="right")) - 1)


def _scheduler_times(sde: Process, num_levels: int, spacing: str, steps_offset: int) -> np.ndarray:
    """Times of the steps that a scheduler of diffusers visits, from the lowest; its step k has time (k + 1) / T."""
    total = sde.num_steps
    if total is None:
        raise RequestError(
            f"sampler.spacing: got {spacing!r}, which counts the steps of a scheduler, expected one of "
            f"{', '.join(EVEN_SPACINGS)} for a process in continuous time; fix: set one of these"
        )
    if spacing == "leading":
        steps = np.arange(num_levels) * (total // num_levels) + steps_offset
    elif spacing == "linspace":
        steps = np.linspace(0, total - 1, num_levels).round()
    else:
        steps = np.arange(total, 0, -total / num_levels).round()[::-1] - 1
    check(
        num_levels <= total and len(steps) == num_levels and steps[-1] < total,
        "sampler.num_levels",
        got=f"{num_levels} with spacing {spacing!r} and steps_offset {steps_offset}",
        expected=f"levels at some of the scheduler's {total} steps",
        fix=f"use {max(2, total // 2)} or fewer",
    )
    return (steps + 1) / total


def time_grid(
    sde: Process,
    num_levels: int,
    *,
    t_min: float = T_MIN_SAMPLING,
    spacing: str = SPACINGS[0],
    steps_offset: int = 0,
) -> TimeGrid:
    """The grid with `num_levels` times from `t_min` to 1, and 0 below them.

    The transition is x_i | x_{i-1} ~ N(a x_{i-1}, v) with a = scale_i / scale_{i-1} and
    v = std_i^2 - a^2 std_{i-1}^2; the posterior follows by completing the square.

    >>> from fpjax.diffusion.sde import SubVP
    >>> [f"{t:.3f}" for t in time_grid(SubVP(), 4).t]
    ['0.000', '0.001', '0.334', '0.667', '1.000']

    Args:
      spacing: even in t ("time"), in sqrt(t) ("quadratic") or in log-SNR ("log_snr", what solvers of high order
        with few levels need); or as a scheduler of diffusers spaces its steps ("leading", "linspace", "trailing"),
        which have no `t_min`.
      steps_offset: of "leading", added to each step.

    Raises:
      RequestError: if there are fewer than 2 levels, `t_min` is not in (0, 0.5], or the process has fewer steps, or
        none of its own to be spaced.
    """
    check(num_levels >= 2, "sampler.num_levels", got=num_levels, expected="an integer of at least 2", fix="use 1000")
    in_range("t_min", t_min, 1e-7, 0.5)
    one_of("sampler.spacing", spacing, SPACINGS)
    if spacing in STEP_SPACINGS:
        t = _scheduler_times(sde, num_levels, spacing, steps_offset)
    elif spacing == "time":
        t = np.linspace(t_min, 1.0, num_levels)
    elif spacing == "quadratic":
        t = np.linspace(np.sqrt(t_min), 1.0, num_levels) ** 2
    else:
        t = time_at_log_snr(sde, np.linspace(log_snr(sde, t_min), log_snr(sde, 1.0), num_levels))
    if spacing not in STEP_SPACINGS:
        t[[0, -1]] = t_min, 1.0
        t = sde.grid_times(t)
    t = np.concatenate([[0.0], t])
    check(
        t[1] > 0,
        "sampler.num_levels",
        got=f"{num_levels}",
        expected="no more than the process has steps",
        fix="use fewer levels",
    )
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
    columns = (t, scale, std, *padded, np.asarray(sde.prior_std))
    return TimeGrid(*(np.asarray(column, np.float32) for column in columns))
