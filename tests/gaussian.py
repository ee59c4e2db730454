"""The analytic oracle: data N(mean, std^2) in every dimension, for which everything downstream is a closed form."""

import numpy as np

from fpjax.sde import SubVP, TimeGrid
from fpjax.types import Image, ScoreFn, Time


def gaussian_score_fn(sde: SubVP, mean: float, std: float, *, wrong: float = 1.0) -> ScoreFn:
    """Exact score; `wrong` multiplies it, for tests that must fail."""

    def score_fn(x: Image, t: Time) -> Image:
        scale, noise = sde.marginal(t)
        return -wrong * (x - scale * mean) / (scale**2 * std**2 + noise**2)

    return score_fn


def chain_end(sde: SubVP, grid: TimeGrid, sampler: str, mean: float, std: float, level: int, x: float) -> tuple:
    """Mean and standard deviation of the discretised chain's end, started from target `x` noised to `level`.

    A linear score makes every step linear with Gaussian noise, so both follow an exact recursion (float64).
    """
    t = np.asarray(grid.t, np.float64)
    scale, noise = sde.marginal(t)
    m, v = scale[level] * x, noise[level] ** 2
    for i in range(level, 0, -1):
        variance = scale[i] ** 2 * std**2 + noise[i] ** 2
        if sampler == "euler_maruyama":
            f, g = sde.coefficients(t[i])
            dt = t[i] - t[i - 1]
            # x - (f x + g^2 (x - scale mean) / variance) dt + g sqrt(dt) z
            a = 1 - f * dt - g**2 * dt / variance
            b = g**2 * dt / variance * scale[i] * mean
            c = g * np.sqrt(dt) if i > 1 else 0.0
        else:
            # x0 = (x - noise^2 (x - scale mean) / variance) / scale
            shrink = noise[i] ** 2 / variance
            keep_x, keep_x0, c = (float(column[i]) for column in (grid.keep_x, grid.keep_x0, grid.posterior_std))
            a = keep_x + keep_x0 * (1 - shrink) / scale[i]
            b = keep_x0 * shrink * mean
        m, v = a * m + b, a**2 * v + c**2
    return m, np.sqrt(v)
