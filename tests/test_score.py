"""What the network is told, what its output means, and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.errors import RequestError
from fpjax.diffusion.grid import log_snr
from fpjax.diffusion.score import PREDICTIONS, draw_times, dsm_losses, make_score_fn
from fpjax.diffusion.sde import SubVP

from .gaussian import ALL_PROCESSES, gaussian_score_fn

MEAN, STD = 0.2, 0.3
each_process = pytest.mark.parametrize("sde", ALL_PROCESSES.values(), ids=ALL_PROCESSES)


class Best:
    """The best prediction for Gaussian data, written in terms of what a network gets: its scaled image and its time."""

    def __init__(self, sde, prediction="epsilon", wrong=1.0):
        self.sde, self.prediction, self.wrong = sde, prediction, wrong

    def apply(self, variables, x, t, *, train=False, rngs=None):
        steps = len(getattr(self.sde, "betas", ()))
        t = ((t + 1) / steps if steps else t / 999.0)[:, None, None, None]
        x, (scale, std) = x / self.sde.network_scale(t), self.sde.marginal(t)
        score = gaussian_score_fn(self.sde, MEAN, STD)(x, t)
        noise, x0 = -std * score, (x + std**2 * score) / scale
        v = scale * noise - std * x0
        return self.wrong * {"epsilon": noise, "sample": x0, "v_prediction": v}[self.prediction]


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
        np.testing.assert_allclose(found, expected, atol=2e-3 * size)
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
    spread = sde.network_scale(t) * jnp.sqrt(scale**2 * 0.5**2 + std**2)
    assert 0.25 < float(spread.min()) <= float(spread.max()) < 1.01
    told = sde.network_time(t)
    assert float(told[-1]) == pytest.approx(999, abs=1e-3)
    assert np.all(np.diff(told) > 0)


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
