import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.checks import RequestError
from fpjax.sde import SubVP, log_snr, prior_logp, time_grid


def test_marginal_solves_its_moment_equations():
    sde, t, h = SubVP(), np.linspace(0.01, 0.99, 50), 1e-6
    (scale, std), (f, g) = sde.marginal(t), sde.coefficients(t)
    upper, lower = sde.marginal(t + h), sde.marginal(t - h)
    np.testing.assert_allclose((upper.scale - lower.scale) / (2 * h), f * scale, rtol=1e-6)
    slope = (upper.std**2 - lower.std**2) / (2 * h)
    np.testing.assert_allclose(slope, 2 * f * std**2 + g**2, rtol=1e-5, atol=1e-8)
    # A wrong diffusion is noticed.
    assert not np.allclose(slope, 2 * f * std**2 + (1.5 * g) ** 2, rtol=1e-2)


def test_marginal_in_float32_matches_float64_down_to_small_times():
    sde, t = SubVP(), np.geomspace(1e-5, 1, 40)
    exact, found = sde.marginal(t), sde.marginal(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(found.std, exact.std, rtol=3e-6)
    np.testing.assert_allclose(found.scale, exact.scale, rtol=3e-6)
    # field.md 1.6: values at chosen times.
    np.testing.assert_allclose(sde.marginal(np.array([0.1, 0.3, 0.5])).scale, [0.9467, 0.630, 0.281], rtol=2e-3)
    np.testing.assert_allclose(sde.marginal(np.array([0.1, 0.3, 0.5])).std, [0.104, 0.604, 0.921], rtol=5e-3)
    np.testing.assert_allclose(np.exp(log_snr(sde, 0.1)), 83, rtol=2e-2)


@pytest.mark.parametrize("num_levels", [2, 10, 100, 1000])
def test_grid(num_levels):
    sde = SubVP()
    grid = time_grid(sde, num_levels)
    assert grid.num_levels == num_levels
    np.testing.assert_array_equal(grid.t[[0, 1, -1]], np.float32([0, 1e-3, 1]))
    assert np.all(np.diff(grid.t) > 0)
    assert np.all(np.diff(grid.std) > 0)
    assert grid.std[0] == 0
    assert grid.std[-1] < 1
    np.testing.assert_allclose(np.sum(grid.dt), 1, rtol=1e-5)
    assert (grid.posterior_std[1], grid.keep_x[1], grid.keep_x0[1]) == (0, 0, 1)


def test_posterior_reproduces_the_marginal_of_the_level_below():
    """x_i ~ marginal, then x_{i-1} ~ posterior given x_0 must have the marginal of level i-1, for every i."""
    grid, x0 = time_grid(SubVP(), 37), 0.7
    c = {name: np.asarray(getattr(grid, name), np.float64) for name in grid._fields}
    mean = c["keep_x"][1:] * c["scale"][1:] * x0 + c["keep_x0"][1:] * x0
    variance = c["keep_x"][1:] ** 2 * c["std"][1:] ** 2 + c["posterior_std"][1:] ** 2
    np.testing.assert_allclose(mean, c["scale"][:-1] * x0, atol=2e-6)
    np.testing.assert_allclose(np.sqrt(variance), c["std"][:-1], atol=2e-6)


def test_prior_logp():
    x = jax.random.normal(jax.random.key(0), (2, 3, 1))
    expected = -0.5 * np.sum(np.asarray(x) ** 2) - 3 * np.log(2 * np.pi)
    np.testing.assert_allclose(prior_logp(x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SubVP(beta_min=0.0),
        lambda: SubVP(beta_max=0.05),
        lambda: time_grid(SubVP(), 1),
        lambda: time_grid(SubVP(), 10, t_min=0.7),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="got .*expected .*fix"):
        wrong()
