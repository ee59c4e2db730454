"""The perfect memoriser on real images: engine, closed forms and likelihood agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import chisquare

from fpjax.diffusion.flow import OdeSettings, log_likelihood
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.oracle import empirical_log_density, empirical_score_fn, nearest_image, return_probability
from fpjax.diffusion.sampling import SAMPLERS
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import EngineSettings, make_engine, run_chains
from fpjax.engine.work import NO_TARGET, concatenate_work, make_work

from .gaussian import ALL_PROCESSES

SDE = SubVP()
# From certain return across the collapse: sub-VP 0.1 to 0.55, the others where their log-SNR is about the same.
TIMES = {
    "subvp": (0.1, 0.25, 0.3, 0.35, 0.4, 0.55),
    "vp": (0.05, 0.2, 0.25, 0.3, 0.4, 0.55),
    "ve": (0.3, 0.5, 0.53, 0.56, 0.6, 0.7),
}


@pytest.fixture(scope="module")
def small(real_images):
    """Every second pixel of the 100 images: the same mixture at a quarter of the cost."""
    return np.ascontiguousarray(real_images[:, ::2, ::2])


def test_score_is_the_gradient_of_the_log_density(small):
    images, t, width = small[:10], 0.2, 0.03
    scale, std = SDE.marginal(np.float64(t))
    rng = np.random.default_rng(0)
    x = (scale * images[3] + std * rng.standard_normal(images[3].shape)).astype(np.float32)
    direction = rng.standard_normal(x.shape)
    score = np.asarray(empirical_score_fn(SDE, jnp.asarray(images), width=width)(jnp.asarray(x), jnp.asarray(t)))
    h = 1e-4
    slope = (
        empirical_log_density(SDE, images, x + h * direction, t=t, width=width)
        - empirical_log_density(SDE, images, x - h * direction, t=t, width=width)
    ) / (2 * h)
    np.testing.assert_allclose(np.sum(score * direction), slope, rtol=2e-3)


def run(sampler, process, num_levels, images, targets, work):
    """Rows where the chains started and the training images where they ended, which are all they end at."""
    sde = ALL_PROCESSES[process]
    grid = time_grid(sde, num_levels, spacing="time" if sampler in ("ancestral", "euler_maruyama") else "log_snr")
    engine = make_engine(
        lambda images: SAMPLERS[sampler](sde, grid, empirical_score_fn(sde, images)),
        grid,
        images.shape[1:],
        EngineSettings(slots=256, block_steps=100),
    )
    rows, train = [], jnp.asarray(images)
    for block in run_chains(engine, train, targets, work(grid), key=jax.random.key(0)):
        nearest = np.asarray(nearest_image(block.images, train))[block.rows]
        final = np.asarray(block.images)[block.rows]
        # Euler-Maruyama leaves 3 grey levels rms at 100 levels; all others end exactly.
        np.testing.assert_allclose(final, images[nearest], atol=0.15 if sampler == "euler_maruyama" else 1e-3)
        rows.append(np.stack([block.target, block.level, nearest], axis=1))
    return grid, np.concatenate(rows)


@pytest.mark.parametrize(
    ("sampler", "process", "num_levels"),
    [
        ("euler_maruyama", "subvp", 100),
        ("ancestral", "ve", 100),
        ("predictor_corrector", "subvp", 50),
    ],
)
def test_return_curve_and_plain_samples_follow_the_closed_forms(small, sampler, process, num_levels):
    """Chains from one image return with the mean posterior weight; plain chains end at each image alike."""
    images, row, chains, samples, times = small[:20], 7, 300, 1200, TIMES[process]

    def work(grid):
        levels = [grid.level_at(t) for t in times]
        return concatenate_work([make_work(0, levels, chains), make_work(NO_TARGET, num_levels, samples)])

    @jax.jit
    def exact(t, key):
        return return_probability(ALL_PROCESSES[process], jnp.asarray(images), row, t, key=key)

    grid, found = run(sampler, process, num_levels, images, images[row : row + 1], work)
    z, shifted = [], []
    for time in times:
        level = grid.level_at(time)
        returned = np.mean(found[(found[:, 0] == 0) & (found[:, 1] == level), 2] == row)
        for factor, scores in ((1.0, z), (1.25, shifted)):
            t = jnp.asarray(min(factor * grid.t[level], 1.0))
            q, error = exact(t, jax.random.key(level))
            spread = np.sqrt(max(float(q * (1 - q)), 0.0) / chains + float(error) ** 2) + 0.5 / chains
            scores.append((returned - float(q)) / spread)
    assert np.abs(z).max() < 4.5
    assert np.abs(shifted).max() > 4.5  # the curve of levels a little higher is told apart
    ends = np.bincount(found[found[:, 0] == NO_TARGET, 2], minlength=len(images))
    assert ends.sum() == samples
    assert chisquare(ends).pvalue > 1e-4
    assert chisquare(ends + samples // 15 * (np.arange(len(ends)) == 0)).pvalue < 1e-4


@pytest.mark.parametrize(
    ("sampler", "process"), [("probability_flow", "subvp"), ("dpm_solver", "vp"), ("dpm_solver", "ve")]
)
def test_flows_carry_the_mixture_to_itself(small, sampler, process):
    """A flow is no draw from the posterior, so only mixtures have closed forms: chains from all images alike end at all
    alike, from any level and from the prior, and from low levels each returns."""
    images, chains, samples = small[:20], 40, 1200
    low, middle, high = TIMES[process][0], *TIMES[process][-2:]

    def work(grid):
        levels = [grid.level_at(t) for t in (low, middle, high)]
        every = make_work(np.arange(len(images))[:, None], levels, chains)
        return concatenate_work([every, make_work(NO_TARGET, grid.num_levels, samples)])

    grid, found = run(sampler, process, 60, images, images, work)
    plain = found[:, 0] == NO_TARGET
    at = {t: found[~plain & (found[:, 1] == grid.level_at(t))] for t in (low, middle, high)}
    assert np.mean(at[low][:, 0] == at[low][:, 2]) > 0.95  # some images have a near neighbour
    assert 0.1 < np.mean(at[middle][:, 0] == at[middle][:, 2]) < 0.95
    for ends in (found[plain], at[middle], at[high]):
        counts = np.bincount(ends[:, 2], minlength=len(images))
        assert chisquare(counts).pvalue > 1e-4
        assert chisquare(counts + len(ends) // 10 * (np.arange(len(counts)) == 0)).pvalue < 1e-4


def test_chains_of_full_size_images_stay_finite(real_images):
    """Posterior logits reach 1e10 at level 1; compiled code may round them differently in two places."""
    images, grid = jnp.asarray(real_images[:24]), time_grid(SDE, 50)
    engine = make_engine(
        lambda images: SAMPLERS["ancestral"](SDE, grid, empirical_score_fn(SDE, images)),
        grid,
        images.shape[1:],
        EngineSettings(slots=64, block_steps=50),
        devices=jax.devices()[:1],
    )
    work = make_work(NO_TARGET, 50, 64)
    finished = [len(b.rows) for b in run_chains(engine, images, real_images[:1], work, key=jax.random.key(0))]
    assert sum(finished) == 64


@pytest.mark.parametrize("row", [0, 31])
def test_likelihood_is_the_density_of_the_mixture(small, row):
    """Component width 0.03: within 1e-4 nats per dimension at the default tolerances, with the exact trace."""
    images, width, settings = small[:40, ::2, ::2], 0.03, OdeSettings(num_probes=0)
    score_fn = empirical_score_fn(SDE, jnp.asarray(images), width=width)
    x = images[row] + width * np.random.default_rng(row).standard_normal(images[row].shape).astype(np.float32)

    def terminal_logp(x):
        # The mixture's own density at t = 1; the prior differs from it by 4e-4 nats per dimension in so few.
        scale, std = SDE.marginal(jnp.float32(1.0))
        variance = scale**2 * width**2 + std**2
        squares = jnp.sum((x - scale * images) ** 2, axis=(1, 2, 3))
        return (
            logsumexp(-0.5 * squares / variance) - 0.5 * x.size * jnp.log(2 * jnp.pi * variance) - np.log(len(images))
        )

    with jax.default_matmul_precision("highest"):
        found = jax.jit(
            lambda x: log_likelihood(
                SDE, score_fn, x, key=jax.random.key(0), settings=settings, terminal_logp=terminal_logp
            )
        )(x)
    expected = empirical_log_density(SDE, images, x, t=settings.t_min, width=width)
    assert bool(found.converged)
    assert abs(float(found.nats) - expected) / x.size < 1e-4
    wrong = empirical_log_density(SDE, images, x, t=settings.t_min, width=1.5 * width)
    assert abs(float(found.nats) - wrong) / x.size > 1e-2
