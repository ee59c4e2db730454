"""The search for t' in one dimension, where everything can be seen (paper, Fig. 1): docs/figures/figure1.png.

    python -m tests.figure_1d OUT.png

The "images" are single numbers from a mixture of Gaussians whose score is known; one narrow component, the memorised
training image x_p, holds little of the mass. Chains of the engine start at x_p noised to t; one is detected if it ends
within Omega of x_p. The rate q_M(t) of that has a closed form for the exact reverse SDE.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import norm

from fpjax import stats
from fpjax.core.types import Image, ScoreFn, Time
from fpjax.diffusion.sampling import SamplerSettings, make_grid, make_sampler
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import Engine, EngineSettings, make_engine, run_chains
from fpjax.engine.work import make_work

SDE = SubVP()


class Mixture(NamedTuple):
    """Weights, means and standard deviations of Gaussian components, (n,) each."""

    weight: np.ndarray
    mean: np.ndarray
    std: np.ndarray


MIXTURE = Mixture(np.array([0.60, 0.39, 0.01]), np.array([-0.45, 0.15, 0.7]), np.array([0.16, 0.12, 0.015]))
X_P, OMEGA = 0.7, 0.06


def density(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    """p(x) of (n,) numbers."""
    return norm.pdf(x[:, None], mixture.mean, mixture.std) @ mixture.weight


def mixture_score_fn(mixture: Mixture) -> ScoreFn:
    """Score of the noised mixture at an image of one pixel."""
    weight, mean, std = (jnp.asarray(column, jnp.float32) for column in mixture)

    def score_fn(x: Image, t: Time) -> Image:
        scale, noise = SDE.marginal(t)
        variance = scale**2 * std**2 + noise**2
        pull = (scale * mean - x.reshape(())) / variance
        logits = jnp.log(weight) - 0.5 * jnp.log(variance) - 0.5 * pull**2 * variance
        return jnp.dot(jax.nn.softmax(logits), pull).reshape(x.shape)

    return score_fn


def exact_rate(mixture: Mixture, t: np.ndarray, *, x_p: float = X_P, omega: float = OMEGA) -> np.ndarray:
    """P(|x_0 - x_p| < omega) where x_0 is drawn from its posterior given x_t, and x_t from its law given x_p."""
    rates, z = [], np.linspace(-8, 8, 4001)
    for time in np.asarray(t, np.float64):
        scale, noise = SDE.marginal(time)
        x_t = (scale * x_p + noise * z)[:, None]
        variance = scale**2 * mixture.std**2 + noise**2
        weight = mixture.weight * norm.pdf(x_t, scale * mixture.mean, np.sqrt(variance))
        mean = mixture.mean + scale * mixture.std**2 / variance * (x_t - scale * mixture.mean)
        std = mixture.std * noise / np.sqrt(variance)
        inside = norm.cdf((x_p + omega - mean) / std) - norm.cdf((x_p - omega - mean) / std)
        rates.append(np.trapezoid(norm.pdf(z) * np.sum(weight * inside, axis=1) / np.sum(weight, axis=1), z))
    return np.array(rates)


def one_dimensional_engine(mixture: Mixture, num_levels: int = 1000) -> Engine:
    """The audit's engine on images of one pixel, with the paper's sampler."""
    settings = SamplerSettings("euler_maruyama", num_levels)
    grid, score_fn = make_grid(settings, SDE), mixture_score_fn(mixture)
    slots = EngineSettings(slots=256, block_steps=4000)
    return make_engine(lambda _: make_sampler(settings, SDE, grid, score_fn), grid, (1, 1, 1), slots)


def chain_ends(engine: Engine, levels: np.ndarray, num_chains: int, *, seed: int, x_p: float = X_P) -> np.ndarray:
    """Where chains from x_p at each level end, (levels, chains)."""
    ends, target = np.zeros((len(levels), num_chains)), np.full((1, 1, 1, 1), x_p, np.float32)
    work = make_work(0, levels, num_chains)
    for block in run_chains(engine, None, target, work, key=jax.random.key(seed)):
        ends[np.searchsorted(levels, block.level), block.chain] = np.asarray(block.images)[block.rows, 0, 0, 0]
    return ends


def draw(mixture: Mixture, t: np.ndarray, ends: np.ndarray, path: Path) -> None:
    """The density above the chains' ends, and the rate of return beside them, on one axis of time."""
    critical, harmless, grey = "#d55e00", "#009e73", "#707070"
    num_chains, found = ends.shape[1], np.abs(ends - X_P) < OMEGA
    hits, chains, fine = found.sum(axis=1), np.full(len(t), num_chains), np.linspace(0.002, 1, 400)
    t_prime, t50 = stats.t_prime(t, hits), stats.t50(t, hits, chains)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "savefig.dpi": 200}):
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        (above, corner), (below, right) = figure.subplots(2, 2, height_ratios=(1, 2.2), width_ratios=(1.6, 1))
        for axes in (above, below, right):
            axes.spines[["top", "right"]].set_visible(False)
        x = np.linspace(-1.1, 1.1, 2201)
        inside = np.abs(x - X_P) < OMEGA
        above.fill_between(x, density(mixture, x), where=~inside, color=harmless, alpha=0.35, linewidth=0)
        above.fill_between(x, density(mixture, x), where=inside, color=critical, alpha=0.6, linewidth=0)
        above.plot(x, density(mixture, x), color="black", linewidth=1)
        for axes in (above, below):
            axes.axvline(X_P, color=grey, linewidth=1)
            axes.axvspan(X_P - OMEGA, X_P + OMEGA, color=critical, alpha=0.12, linewidth=0)
            axes.set_xlim(-1.1, 1.1)
        above.set(ylabel="density p(x)", ylim=(0, None), xticklabels=[])
        times = np.broadcast_to(t[:, None], ends.shape)
        for which, colour, size in ((~found, harmless, 5), (found, critical, 9)):
            below.scatter(ends[which], times[which], s=size, color=colour, linewidths=0)
        lower, upper = stats.clopper_pearson(hits, chains)
        rate = hits / num_chains
        right.errorbar(
            rate,
            t,
            xerr=np.maximum([rate - lower, upper - rate], 0),
            fmt=".",
            color="#0072b2",
            markersize=4,
            elinewidth=0.8,
        )
        right.plot(exact_rate(mixture, fine), fine, color="black", linewidth=1.2)
        for axes in (below, right):
            axes.set_ylim(0, 1.05)
            axes.axhline(t50, color=grey, linestyle="--", linewidth=1)
            axes.axhline(t_prime, color=grey, linestyle=":", linewidth=1.4)
        below.set(xlabel="where the chain ends, x", ylabel="time t that $x_p$ is noised to")
        right.set(xlabel=f"$q_M(t)$, M = {num_chains}", xlim=(-0.03, 1.03), yticklabels=[])
        corner.set_axis_off()
        handles = [
            Line2D([], [], color=grey, linewidth=1, label="$x_p$"),
            Patch(color=critical, alpha=0.6, label="within $\\Omega$ of $x_p$"),
            Patch(color=harmless, alpha=0.5, label="elsewhere"),
            Line2D([], [], color="#0072b2", marker=".", linewidth=0.8, label="estimate, 95 %"),
            Line2D([], [], color="black", linewidth=1.2, label="closed form"),
            Line2D([], [], color=grey, linestyle=":", linewidth=1.4, label=f"$t'$ = {t_prime:.2f}"),
            Line2D([], [], color=grey, linestyle="--", linewidth=1, label=f"$t_{{50}}$ = {t50:.2f}"),
        ]
        corner.legend(handles=handles, loc="center", frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Software": "fpjax"})


def main(path: str) -> None:
    """Draws M = 16 chains at each of 50 levels, as the paper does, and the figure."""
    engine, levels = one_dimensional_engine(MIXTURE), np.arange(20, 1001, 20)
    draw(MIXTURE, engine.grid.t[levels].astype(float), chain_ends(engine, levels, 16, seed=0), Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
