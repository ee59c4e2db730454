"""The perfect memoriser on real images: engine, closed forms and likelihood agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import chisquare

from fpjax.chains import NO_TARGET, EngineSettings, concatenate_work, make_engine, make_work, run_chains
from fpjax.likelihood import OdeSettings, log_likelihood
from fpjax.oracle import empirical_log_density, empirical_score_fn, nearest_image, return_probability
from fpjax.sampling import SAMPLERS
from fpjax.sde import SubVP, time_grid

SDE = SubVP()


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


def test_return_curve_and_plain_samples_follow_the_closed_forms(small):
    """Chains from one image return with the mean posterior weight; plain chains end at each image alike."""
    row, chains, samples, num_levels = 7, 300, 2000, 200
    grid = time_grid(SDE, num_levels)
    engine = make_engine(
        lambda images: SAMPLERS["ancestral"](SDE, grid, empirical_score_fn(SDE, images)),
        grid,
        small.shape[1:],
        EngineSettings(slots=256, block_steps=100),
    )
    levels = [20, 50, 60, 66, 72, 80, 90, 110]
    level, chain = np.meshgrid(levels, np.arange(chains), indexing="ij")
    work = concatenate_work([make_work(0, level, chain), make_work(NO_TARGET, num_levels, np.arange(samples))])
    returned, ends = dict.fromkeys(levels, 0), np.zeros(len(small), int)
    images = jnp.asarray(small)
    for block in run_chains(engine, images, small[row : row + 1], work, key=jax.random.key(0)):
        nearest = np.asarray(nearest_image(block.images, images))[block.rows]
        final = np.asarray(block.images)[block.rows]
        np.testing.assert_allclose(final, small[nearest], atol=1e-3)  # it reproduces training images only
        for target, start, end in zip(block.target, block.level, nearest, strict=True):
            if target == NO_TARGET:
                ends[end] += 1
            else:
                returned[int(start)] += int(end == row)
    z, shifted = [], []
    for level in levels:
        for offset, scores in ((0, z), (25, shifted)):
            t = jnp.asarray(grid.t[level + offset])
            q, error = return_probability(SDE, images, row, t, key=jax.random.key(level))
            spread = np.sqrt(max(float(q * (1 - q)), 0.0) / chains + float(error) ** 2) + 0.5 / chains
            scores.append((returned[level] / chains - float(q)) / spread)
    assert np.abs(z).max() < 4.5
    assert np.abs(shifted).max() > 4.5  # the curve of levels a little higher is told apart
    assert returned[20] == chains
    assert returned[110] < chains / 2  # across the collapse
    assert ends.sum() == samples
    assert chisquare(ends).pvalue > 1e-4
    assert chisquare(ends + samples // 50 * (np.arange(len(ends)) == 0)).pvalue < 1e-4


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
    work = make_work(NO_TARGET, 50, np.arange(64))
    finished = [len(b.rows) for b in run_chains(engine, images, images[:1], work, key=jax.random.key(0))]
    assert sum(finished) == 64


@pytest.mark.parametrize("row", [0, 31])
def test_likelihood_is_the_density_of_the_mixture(small, row):
    """Component width 0.03: within 1e-4 nats per dimension at the default tolerances, with the exact trace."""
    images, width, settings = small[:40, ::2, ::2], 0.03, OdeSettings(num_probes=0)
    score_fn = empirical_score_fn(SDE, jnp.asarray(images), width=width)
    x = images[row] + width * np.random.default_rng(row).standard_normal(images[row].shape).astype(np.float32)

    def terminal_logp(x):
        # The mixture's own density at t = 1; the prior differs from it by 4e-4 nats per dimension in so few.
        scale, std = SDE.marginal(1.0)
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
