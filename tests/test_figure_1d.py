"""The figure's chains in one dimension against their closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from fpjax import stats

from .figure_1d import MIXTURE, OMEGA, SDE, X_P, Mixture, chain_ends, density, draw, exact_rate, mixture_score_fn
from .figure_1d import one_dimensional_engine as make_engine

LEVELS, CHAINS = np.array([30, 80, 110, 140, 200, 300, 600, 1000]), 600


@pytest.fixture(scope="module")
def found():
    """Times, and where the chains end."""
    engine = make_engine(MIXTURE)
    return engine.grid.t[LEVELS].astype(float), chain_ends(engine, LEVELS, CHAINS, seed=1)


def standard_errors(hits, rate):
    """How far counts are from a rate; half a count of slack where there are next to none."""
    return (np.abs(hits - CHAINS * rate) - 0.5) / np.sqrt(CHAINS * rate * (1 - rate) + 0.25)


def test_estimated_rates_agree_with_the_closed_form(found):
    t, ends = found
    hits = (np.abs(ends - X_P) < OMEGA).sum(axis=1)
    assert (standard_errors(hits, exact_rate(MIXTURE, t)) < 4.5).all()
    assert hits[0] > 0.95 * CHAINS
    assert 0.1 * CHAINS < hits[3] < 0.9 * CHAINS
    # A component twice as heavy, another Omega or times off by a seventh would be seen.
    heavier = exact_rate(MIXTURE._replace(weight=np.array([0.60, 0.38, 0.02])), t)
    for wrong in (heavier, exact_rate(MIXTURE, t, omega=OMEGA / 3), exact_rate(MIXTURE, 0.85 * t)):
        assert (standard_errors(hits, wrong) > 4.5).any()


def test_the_closed_form_is_the_mass_within_omega_at_the_end_of_time():
    # At t = 1 nothing is left of x_p, and the posterior is the mixture itself.
    mass = integrate.quad(lambda x: density(MIXTURE, np.array([x]))[0], X_P - OMEGA, X_P + OMEGA)[0]
    np.testing.assert_allclose(exact_rate(MIXTURE, np.array([1.0])), mass, rtol=0.05)
    assert exact_rate(MIXTURE, np.array([1e-3]))[0] > 0.999


def test_the_score_is_the_gradient_of_the_noised_density():
    x, t = np.float32(0.4), np.float32(0.2)
    scale, noise = SDE.marginal(np.float64(t))
    noised = Mixture(MIXTURE.weight, scale * MIXTURE.mean, np.sqrt(scale**2 * MIXTURE.std**2 + noise**2))
    low, high = np.log(density(noised, np.array([x - 1e-4, x + 1e-4], np.float64)))
    score = jax.jit(mixture_score_fn(MIXTURE))(jnp.full((1, 1, 1), x), jnp.asarray(t))
    np.testing.assert_allclose(score[0, 0, 0], (high - low) / 2e-4, rtol=1e-3)


def test_the_figure_is_drawn(found, tmp_path):
    t, ends = found
    draw(MIXTURE, t, ends[:, :16], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert stats.t50(t, (np.abs(ends - X_P) < OMEGA).sum(axis=1), np.full(len(t), CHAINS)) < 0.2
