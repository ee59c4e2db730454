"""The analytic oracle: data N(mean, std^2) in every dimension, for which everything downstream is a closed form."""

import numpy as np

from fpjax.core.types import Image, ScoreFn, Time
from fpjax.diffusion.grid import TimeGrid
from fpjax.diffusion.sde import VE, VP, DiscreteVP, Process, SubVP

ALL_PROCESSES: dict[str, Process] = {
    "subvp": SubVP(),
    "vp": VP(),
    "ve": VE(),
    "discrete": DiscreteVP(tuple(np.linspace(1e-4, 0.02, 1000).tolist())),  # DDPM's
}


def gaussian_score_fn(sde: Process, mean: float, std: float, *, wrong: float = 1.0) -> ScoreFn:
    """Exact score; `wrong` multiplies it, for tests that must fail."""

    def score_fn(x: Image, t: Time) -> Image:
        scale, noise = sde.marginal(t)
        return -wrong * (x - scale * mean) / (scale**2 * std**2 + noise**2)

    return score_fn


def chain_end(sde: Process, grid: TimeGrid, sampler: str, mean: float, std: float, level: int, x: float) -> tuple:
    """Mean and standard deviation of the discretised chain's end, started from target `x` noised to `level`.

    A linear score makes every step linear with Gaussian noise, so both follow an exact recursion (float64).
    """
    scale, noise = sde.marginal(np.asarray(grid.t, np.float64))
    start, spread = scale[level] * x, noise[level]
    if sampler in FLOWS:
        end = FLOWS[sampler]
        low, high = end(sde, grid, mean, std, level, np.array([start, start + spread]))
        return low, abs(high - low)
    return affine_end(sde, grid, sampler, mean, std, level, start, spread**2)


def affine_end(sde, grid, sampler, mean, std, level, m, v):
    """The recursion of the stochastic samplers, from mean `m` and variance `v` at `level`."""
    t = np.asarray(grid.t, np.float64)
    scale, noise = sde.marginal(t)
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


def denoised(sde, mean, std, t, x):
    """Mean of x_0 given x at time t."""
    scale, noise = sde.marginal(t)
    return mean + scale * std**2 / (scale**2 * std**2 + noise**2) * (x - scale * mean)


def heun_end(sde, grid, mean, std, level, x):
    """End of Heun's method on the flow from x at `level`."""

    def velocity(x, t):
        (scale, noise), (f, g) = sde.marginal(t), sde.coefficients(t)
        return f * x + 0.5 * g**2 * (x - scale * mean) / (scale**2 * std**2 + noise**2)

    t = np.asarray(grid.t, np.float64)
    for i in range(level, 1, -1):
        h = t[i - 1] - t[i]
        first = velocity(x, t[i])
        x = x + 0.5 * h * (first + velocity(x + h * first, t[i - 1]))
    return denoised(sde, mean, std, t[1], x)


def dpm_end(sde, grid, mean, std, level, x, most=np.inf):
    """End of DPM-Solver++(2M), as its paper's Algorithm 2 writes it, from x at `level`."""
    t = np.asarray(grid.t, np.float64)
    alpha, sigma = sde.marginal(t)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    before = None
    for i in range(level, 1, -1):
        data, h = denoised(sde, mean, std, t[i], x), lam[i - 1] - lam[i]
        direction = data
        if before is not None:
            r = (lam[i] - lam[i + 1]) / h
            weight = min(1 / (2 * r), most)
            direction = (1 + weight) * data - weight * before
        x, before = sigma[i - 1] / sigma[i] * x - alpha[i - 1] * (np.exp(-h) - 1) * direction, data
    return denoised(sde, mean, std, t[1], x)


def ddim_end(sde, grid, mean, std, level, x):
    """End of DDIM without noise, arXiv:2010.02502 eq. 12, from x at `level`."""
    t = np.asarray(grid.t, np.float64)
    alpha, sigma = sde.marginal(t)
    for i in range(level, 0, -1):
        data = denoised(sde, mean, std, t[i], x)
        x = alpha[i - 1] * data + sigma[i - 1] * (x - alpha[i] * data) / sigma[i]
    return x


def flow_end(sde, grid, mean, std, level, x):
    """Exact flow from x at `level` to level 1, and the denoised mean from there."""
    t = np.asarray(grid.t, np.float64)[[level, 1]]
    (a, b), (u, v) = sde.marginal(t)
    spread = np.sqrt(np.array([a, b]) ** 2 * std**2 + np.array([u, v]) ** 2)
    return denoised(sde, mean, std, t[1], b * mean + spread[1] / spread[0] * (x - a * mean))


FLOWS = {"probability_flow": heun_end, "dpm_solver": dpm_end, "ddim": ddim_end}
