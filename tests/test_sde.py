import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fpjax.core.errors import RequestError
from fpjax.diffusion.flow import prior_logp
from fpjax.diffusion.grid import EVEN_SPACINGS, log_snr, time_at_log_snr, time_grid
from fpjax.diffusion.preconditioning import steps_or_continuous
from fpjax.diffusion.sde import VE, VP, DiscreteVP, SdeSettings, SubVP, make_process

from .gaussian import ALL_PROCESSES

each_process = pytest.mark.parametrize("sde", ALL_PROCESSES.values(), ids=ALL_PROCESSES)


@each_process
def test_marginal_solves_its_moment_equations(sde):
    t, h = np.linspace(0.0103, 0.9904, 50), 1e-6  # between the steps of the discrete process
    (scale, std), (f, g) = sde.marginal(t), sde.coefficients(t)
    upper, lower = sde.marginal(t + h), sde.marginal(t - h)
    np.testing.assert_allclose((upper.scale - lower.scale) / (2 * h), f * scale, rtol=1e-6, atol=1e-9)
    slope = (upper.std**2 - lower.std**2) / (2 * h)
    np.testing.assert_allclose(slope, 2 * f * std**2 + g**2, rtol=1e-5, atol=1e-8)
    # A wrong diffusion is noticed.
    assert not np.allclose(slope, 2 * f * std**2 + (1.5 * g) ** 2, rtol=1e-2)


@each_process
def test_marginal_starts_at_the_image_and_ends_at_the_prior(sde):
    scale, std = sde.marginal(np.array([0.0, 1.0]))
    np.testing.assert_allclose((scale[0], std[0]), (1, 0), atol=1e-12)
    assert std[1] == pytest.approx(sde.prior_std, rel=1e-4)
    assert scale[1] / std[1] < 0.021  # what is left of the image is far below the noise


@each_process
def test_float32_matches_float64_down_to_small_times(sde):
    t = np.geomspace(1e-5, 1, 40)
    for exact, found in zip(
        (*sde.marginal(t), *sde.coefficients(t)),
        (*sde.marginal(jnp.asarray(t, jnp.float32)), *sde.coefficients(jnp.asarray(t, jnp.float32))),
        strict=True,
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-5)
        assert found.dtype == jnp.float32


def test_sub_vp_has_the_published_values():
    # field.md 1.6: values at chosen times.
    np.testing.assert_allclose(SubVP().marginal(np.array([0.1, 0.3, 0.5])).scale, [0.9467, 0.630, 0.281], rtol=2e-3)
    np.testing.assert_allclose(SubVP().marginal(np.array([0.1, 0.3, 0.5])).std, [0.104, 0.604, 0.921], rtol=5e-3)
    np.testing.assert_allclose(VP().marginal(np.array([0.1, 0.3, 0.5])).std, [0.322, 0.777, 0.960], rtol=5e-3)
    np.testing.assert_allclose(np.exp(log_snr(SubVP(), 0.1)), 83, rtol=2e-2)


def test_discrete_process_is_its_table():
    """At the steps' times: alpha_bar of the product, the network's time k, and beta near N beta_k."""
    betas = np.linspace(1e-4, 0.02, 1000)
    sde, t = DiscreteVP(tuple(betas.tolist())), np.arange(1, 1001) / 1000
    bars = np.cumprod(1 - betas)
    np.testing.assert_allclose(sde.marginal(t).scale ** 2, bars, rtol=1e-12)
    np.testing.assert_allclose(sde.marginal(jnp.asarray(t, jnp.float32)).scale ** 2, bars, rtol=3e-6)
    np.testing.assert_allclose(steps_or_continuous(sde, jnp.asarray(t, jnp.float32)), np.arange(1000), atol=1e-4)
    np.testing.assert_allclose(sde.beta(t[1:-1]) / (1000 * betas[1:-1]), 1, atol=0.1)
    assert float(steps_or_continuous(sde, np.float64(1e-5))) == 0.0
    grid = time_grid(sde, 1000, t_min=1e-3)
    np.testing.assert_allclose(grid.scale[1:] ** 2, bars, rtol=1e-6)
    # DDPM's own posterior (Ho et al. 2020, eq. 7).
    np.testing.assert_allclose(
        grid.posterior_std[2:] ** 2, betas[1:] * (1 - bars[:-1]) / (1 - bars[1:]), rtol=1e-4, atol=1e-12
    )
    # Few levels stop at steps alone, whatever the spacing.
    for spacing in EVEN_SPACINGS:
        steps = time_grid(sde, 50, spacing=spacing).t.astype(np.float64) * 1000
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    with pytest.raises(RequestError, match="no more than the process has steps"):
        time_grid(sde, 1001)


@each_process
@pytest.mark.parametrize("spacing", EVEN_SPACINGS)
@pytest.mark.parametrize("num_levels", [2, 37, 1000])
def test_grid(sde, num_levels, spacing):
    grid = time_grid(sde, num_levels, spacing=spacing)
    assert grid.num_levels == num_levels
    np.testing.assert_array_equal(grid.t[[0, 1, -1]], np.float32([0, 1e-3, 1]))
    assert np.all(np.diff(grid.t) > 0)
    assert np.all(np.diff(grid.std) >= 0)
    assert np.all(np.diff(grid.std / grid.scale) > 0)
    assert grid.std[0] == 0
    np.testing.assert_allclose(np.sum(grid.dt), 1, rtol=1e-5)
    assert (grid.posterior_std[1], grid.keep_x[1], grid.keep_x0[1]) == (0, 0, 1)
    # x_i ~ marginal, then x_{i-1} ~ posterior given x_0 has the marginal of level i-1, for every i.
    c, x0 = {name: np.asarray(getattr(grid, name), np.float64) for name in grid._fields}, 0.7
    mean = c["keep_x"][1:] * c["scale"][1:] * x0 + c["keep_x0"][1:] * x0
    variance = c["keep_x"][1:] ** 2 * c["std"][1:] ** 2 + c["posterior_std"][1:] ** 2
    np.testing.assert_allclose(mean, c["scale"][:-1] * x0, atol=2e-6)
    np.testing.assert_allclose(np.sqrt(variance), c["std"][:-1], rtol=1e-5, atol=2e-6)


def test_spacings_are_even_in_what_they_say():
    t = {spacing: time_grid(SubVP(), 30, spacing=spacing).t[1:].astype(np.float64) for spacing in EVEN_SPACINGS}
    for spacing, of in (("time", lambda t: t), ("quadratic", np.sqrt), ("log_snr", lambda t: log_snr(SubVP(), t))):
        np.testing.assert_allclose(np.diff(of(t[spacing])), np.diff(of(t[spacing])).mean(), rtol=2e-3)
        assert not any(np.ptp(np.diff(of(t[other]))) < 1e-2 for other in EVEN_SPACINGS if other != spacing)


def test_level_at_is_the_highest_at_or_below():
    grid = time_grid(SubVP(), 10)
    assert [grid.level_at(float(t)) for t in grid.t[1:]] == list(range(1, 11))
    assert [grid.level_at(t) for t in (0.0, 0.05, 0.111, 0.113, 0.9999)] == [1, 1, 1, 2, 9]


@each_process
def test_log_snr_is_inverted(sde):
    t = np.array([1e-5, 1e-3, 0.0123, 0.4, 0.987, 1.0])
    np.testing.assert_allclose(time_at_log_snr(sde, log_snr(sde, t)), t, rtol=1e-9)


@each_process
def test_prior_logp(sde):
    x = 3 * jax.random.normal(jax.random.key(0), (2, 3, 1))
    expected = norm.logpdf(np.asarray(x, np.float64), 0, sde.prior_std).sum()
    np.testing.assert_allclose(prior_logp(sde, x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "extreme",
    [
        SubVP(0.1, 159.0),
        VP(0.1, 159.0),
        SubVP(1e-30, 20.0),
        VP(80.0, 80.0),
        VE(1e-5, 1e5),
        VE(1.0, 2.0),
        DiscreteVP((0.5, 0.5, 0.9)),
        DiscreteVP((1e-4,) * 999 + (0.999,)),
    ],
)
def test_what_is_accepted_stays_finite_in_float32(extreme):
    t = jnp.concatenate([jnp.geomspace(1e-5, 1, 50), jnp.asarray([1e-3, 1.0])])
    (scale, std), (f, g) = extreme.marginal(t), extreme.coefficients(t)
    assert all(bool(jnp.all(jnp.isfinite(values))) for values in (scale, std, f, g, 1 / scale**2, 1 / std**2))
    assert float(std.min()) > 0
    grid = time_grid(extreme, 3)
    assert all(np.isfinite(column).all() for column in grid)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SubVP(beta_min=0.0),
        lambda: SubVP(beta_max=0.05),
        lambda: SubVP(beta_max=1e30),
        lambda: VP(beta_max=float("inf")),
        lambda: VP(beta_max=float("nan")),
        lambda: VP(0.1, 0.2),
        lambda: VE(sigma_max=float("inf")),
        lambda: VE(sigma_min=0.0),
        lambda: VE(sigma_max=1.0),
        lambda: DiscreteVP(()),
        lambda: DiscreteVP((0.1, 1.0)),
        lambda: DiscreteVP((0.1, float("nan"))),
        lambda: DiscreteVP((1e-4, 1e-4)),
        lambda: DiscreteVP((0.999,) * 20),
        lambda: SdeSettings("ddpm"),
        lambda: SdeSettings(beta_max=1e30),
        lambda: SdeSettings("ve", sigma_max=1e30),
        lambda: time_grid(SubVP(), 1),
        lambda: time_grid(SubVP(), 10, t_min=0.7),
        lambda: time_grid(SubVP(), 10, spacing="cosine"),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="got .*expected .*fix") as error:
        wrong()
    assert "\n" not in str(error.value)


def test_settings_make_the_process_that_they_name():
    numbers = {"beta_min": 0.2, "beta_max": 15.0, "sigma_min": 0.02, "sigma_max": 40.0}
    assert make_process(SdeSettings("subvp", **numbers)) == SubVP(0.2, 15.0)
    assert make_process(SdeSettings("vp", **numbers)) == VP(0.2, 15.0)
    assert make_process(SdeSettings("ve", **numbers)) == VE(0.02, 40.0)
    assert make_process(SdeSettings()) == SubVP()
