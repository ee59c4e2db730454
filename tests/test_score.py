"""What the network is told, what its output means, and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fpjax.core.errors import RequestError
from fpjax.diffusion.grid import log_snr, time_grid
from fpjax.diffusion.preconditioning import PRECONDITIONINGS, PREDICTIONS, affine_in_log_sigma
from fpjax.diffusion.sampling import SAMPLERS
from fpjax.diffusion.score import draw_times, dsm_losses, make_score_fn
from fpjax.diffusion.sde import T_MIN_DENSITY, SubVP

from .gaussian import ALL_PROCESSES, gaussian_score_fn

MEAN, STD = 0.2, 0.3
each_process = pytest.mark.parametrize("sde", ALL_PROCESSES.values(), ids=ALL_PROCESSES)


class Best:
    """The best prediction for Gaussian data, written in terms of what a network gets: its scaled image and its time."""

    def __init__(self, sde, prediction="epsilon", wrong=1.0):
        self.sde, self.prediction, self.wrong = sde, prediction, wrong

    def apply(self, variables, x, t, *, train=False, rngs=None):
        steps = len(getattr(self.sde, "betas", ()))
        if self.prediction == "edm":  # told the noise level: find its time
            levels = np.linspace(1.0, T_MIN_DENSITY, 20_001)
            told = affine_in_log_sigma(self.sde, levels)
            t = jnp.interp(t, jnp.asarray(told[::-1]), jnp.asarray(levels[::-1]))[:, None, None, None]
        else:
            t = ((t + 1) / steps if steps else t / 999.0)[:, None, None, None]
        (scale, std), factor = self.sde.marginal(t), PRECONDITIONINGS[self.prediction].scale_in(self.sde, t)
        x = x / factor
        score = gaussian_score_fn(self.sde, MEAN, STD)(x, t)
        noise, x0 = -std * score, (x + std**2 * score) / scale
        v = scale * noise - std * x0
        # EDM's network in its own terms: D = c_skip y + c_out F of y = x / scale (Karras et al. 2022, table 1).
        sigma, y = std / scale, x / scale
        size = jnp.sqrt(sigma**2 + 0.5**2)
        edm = (x0 - 0.5**2 / size**2 * y) / (sigma * 0.5 / size)
        return self.wrong * {"epsilon": noise, "sample": x0, "v_prediction": v, "edm": edm}[self.prediction]


@each_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_score_from_every_prediction(sde, prediction):
    """E[v | x] and E[x_0 | x] of Gaussian data lead to the same score, in closed form."""
    for t in (0.05, 0.4, 0.95):
        scale, std = sde.marginal(np.float64(t))
        x = jnp.asarray(scale * MEAN + std * np.random.default_rng(0).standard_normal((2, 2, 1)), jnp.float32)
        expected = gaussian_score_fn(sde, MEAN, STD)(x, jnp.asarray(t))
        found = make_score_fn(sde, Best(sde, prediction), None, prediction=prediction)(x, jnp.asarray(t))
        size = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=(2e-3 if prediction != "edm" else 1e-2) * size)
        if t == 0.4:  # read as another prediction it is another score
            for other in set(PREDICTIONS) - {prediction}:
                wrong = make_score_fn(sde, Best(sde, prediction), None, prediction=other)(x, jnp.asarray(t))
                assert float(jnp.abs(wrong - expected).max()) > 0.02 * size
    with pytest.raises(RequestError, match="prediction: got 'score'"):
        make_score_fn(sde, Best(sde), None, prediction="score")


@each_process
def test_networks_see_images_of_ordinary_size_and_times_up_to_999(sde):
    t = jnp.linspace(1e-3, 1, 50)
    scale, std = sde.marginal(t)
    for how in PRECONDITIONINGS.values():
        spread = how.scale_in(sde, t) * jnp.sqrt(scale**2 * 0.5**2 + std**2)
        assert 0.25 < float(spread.min()) <= float(spread.max()) < 1.01
        told = how.time(sde, t)
        assert float(told[-1]) == pytest.approx(999, abs=1e-3)
        assert np.all(np.diff(told) > 0)
    np.testing.assert_allclose(PRECONDITIONINGS["edm"].scale_in(sde, t) ** 2 * (scale**2 * 0.25 + std**2), 1, rtol=1e-5)


@each_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_trained_is_what_is_read(sde, prediction):
    """skip x_t + out (data x_0 + part noise) is the noise, for any image and noise."""
    how, rng = PRECONDITIONINGS[prediction], np.random.default_rng(0)
    x0, noise = rng.uniform(-1, 1, 100), rng.standard_normal(100)
    for t in (1e-3, 0.3, 1.0):
        at = sde.marginal(np.float64(t))
        net = how.data(at) * x0 + how.noise_part(at) * noise
        found = how.skip(at) * (at.scale * x0 + at.std * noise) + how.out(at) * net
        np.testing.assert_allclose(found, noise, rtol=1e-6, atol=1e-6)


class Affine(nn.Module):
    """a(t) x + b(t) with a and b from a few features of the time: the best network for Gaussian data, in any terms."""

    @nn.compact
    def __call__(self, x, t, train=False):
        place = t[:, None] / 999.0
        features = jnp.concatenate([place, jnp.exp(-4 * place), jnp.exp(-8 * place), jnp.exp(-16 * place)], axis=1)
        features = nn.tanh(nn.Dense(32)(3 * features - 1.5))
        a, b = jnp.split(nn.Dense(2)(nn.tanh(nn.Dense(32)(features))), 2, axis=1)
        return a[..., None, None] * x + b[..., None, None]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_trained_in_these_terms_samples_its_data(prediction):
    """Trained by denoising score matching alone, then sampled with the score that its output means."""
    sde, model = SubVP(), Affine()
    images = MEAN + STD * jax.random.normal(jax.random.key(0), (512, 1, 1, 1))
    params = model.init(jax.random.key(1), images[:2], jnp.ones(2))["params"]
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))

    def loss(params, key):
        return jnp.mean(dsm_losses(sde, model, params, images, key=key, t_min=0.03, prediction=prediction).per_image)

    @jax.jit
    def train(params, keys):
        def step(carry, key):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]

    params = train(params, jax.random.split(jax.random.key(2), 1500))
    grid = time_grid(sde, 100, t_min=0.03)
    sampler = SAMPLERS["ancestral"](sde, grid, make_score_fn(sde, model, params, prediction=prediction))

    @jax.jit
    def draw(key):
        key_start, key = jax.random.split(key)
        state = sampler.init(jax.random.normal(key_start, (1, 1, 1)) * grid.prior_std)
        return jax.lax.fori_loop(
            0, 100, lambda i, state: sampler.step(state, 100 - i, jax.random.fold_in(key, i)), state
        ).x

    found = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(3), 4000)))
    assert found.mean() == pytest.approx(float(images.mean()), abs=0.05)
    assert found.std() == pytest.approx(float(images.std()), rel=0.3)


def test_likelihood_weighting_by_importance_is_the_weighted_loss_with_less_variance():
    """E_t uniform of (g^2 / std^2) / mean(g^2 / std^2) |net - noise|^2, for a network that is wrong."""
    sde, t_min, n = SubVP(), 1e-3, 20_000
    model, images = Best(sde, wrong=0.7), MEAN + STD * jax.random.normal(jax.random.key(9), (n, 2, 2, 1))

    def weight(t):
        return sde.coefficients(t)[1] ** 2 / sde.marginal(t).std ** 2

    # The integral of g^2 / std^2 = -d log-SNR / dt.
    mean_weight = float(log_snr(sde, t_min) - log_snr(sde, 1.0)) / (1 - t_min)
    grid = np.linspace(t_min, 1, 200_001)
    assert np.trapezoid(weight(grid), grid) / (1 - t_min) == pytest.approx(mean_weight, rel=1e-3)
    t, per_image = dsm_losses(sde, model, None, images, key=jax.random.key(0), t_min=t_min)
    uniform = np.asarray(weight(t) / mean_weight * per_image, np.float64)
    key = jax.random.key(1)
    drawn, losses = dsm_losses(sde, model, None, images, key=key, t_min=t_min, weighting="likelihood")
    losses = np.asarray(losses, np.float64)
    error = np.sqrt((uniform.var() + losses.var()) / n)
    assert abs(uniform.mean() - losses.mean()) < 4.5 * error
    assert abs(np.mean(per_image) - losses.mean()) > 4.5 * error  # without weights it is another loss
    assert losses.var() < uniform.var() / 2
    loss = jnp.mean(dsm_losses(sde, model, None, images, key=key, t_min=t_min, weighting="likelihood").per_image)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    assert t_min <= float(drawn.min()) < float(drawn.max()) <= 1
    with pytest.raises(RequestError, match="weighting: got 'elbo'"):
        jnp.mean(dsm_losses(sde, model, None, images, key=key, weighting="elbo").per_image)


@each_process
def test_importance_times_are_uniform_in_log_snr(sde):
    t = np.asarray(draw_times(sde, 4000, key=jax.random.key(0), t_min=1e-4, weighting="likelihood"), np.float64)
    low, high = log_snr(sde, 1.0), log_snr(sde, 1e-4)
    u = np.sort((log_snr(sde, t) - low) / (high - low))
    # Kolmogorov-Smirnov's distance, with a false alarm of about 1e-6.
    assert np.abs(u - np.arange(4000) / 4000).max() < 2.7 / np.sqrt(4000)
