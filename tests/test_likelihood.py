import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fpjax.artifacts import MetricsLog
from fpjax.checks import RequestError
from fpjax.likelihood import NllSettings, OdeSettings, bits_per_dim, divergence, log_likelihood, log_likelihoods
from fpjax.sde import SubVP

from .gaussian import gaussian_score_fn

SDE, MEAN, STD = SubVP(), 0.2, 0.3


def nats(x, settings, *, wrong=1.0, key=0):
    score_fn = gaussian_score_fn(SDE, MEAN, STD, wrong=wrong)
    return jax.jit(lambda x: log_likelihood(SDE, score_fn, x, key=jax.random.key(key), settings=settings))(x)


@pytest.mark.parametrize("solver", ["dopri5", "tsit5", "dopri8"])
@pytest.mark.parametrize("num_probes", [0, 1])
def test_gaussian(solver, num_probes):
    """A linear score has a constant divergence on the diagonal, so one Rademacher probe is exact too."""
    x = jnp.asarray(np.random.default_rng(0).normal(MEAN, STD, (3, 2, 1)), jnp.float32)
    found = nats(x, OdeSettings(solver=solver, num_probes=num_probes))
    expected = norm.logpdf(np.asarray(x, np.float64), MEAN, STD).sum()
    # The true marginal at t = 1 is not quite the prior: its mean is off by 0.0066 MEAN.
    assert abs(float(found.nats) - expected) < 4e-4 * x.size
    np.testing.assert_allclose(found.nats, found.prior_nats + found.delta_nats, rtol=1e-6)
    assert bool(found.converged)
    assert 20 < int(found.nfe) < 2000
    assert abs(float(nats(x, OdeSettings(solver=solver), wrong=2 / 3).nats) - expected) > 0.1


def test_error_falls_with_the_tolerance():
    x = jnp.full((2, 2, 1), 0.5)
    solved = [float(nats(x, OdeSettings(rtol=tol, atol=tol, solver="heun")).nats) for tol in (1e-1, 1e-2, 1e-3, 1e-6)]
    errors = np.abs(np.subtract(solved[:3], solved[3]))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_hutchinson_is_unbiased_for_the_exact_trace():
    matrix = 0.3 * jax.random.normal(jax.random.key(0), (12, 12)) + jnp.eye(12)

    def drift(x):
        return (jnp.tanh(matrix @ x.ravel())).reshape(x.shape)

    x = jax.random.normal(jax.random.key(1), (3, 4, 1)) * 0.3
    value, exact = divergence(drift, x, probes=None)
    np.testing.assert_allclose(exact, jnp.trace(jax.jacfwd(drift)(x).reshape(12, 12)), rtol=1e-5)
    probes = jax.random.rademacher(jax.random.key(2), (4000, 1, *x.shape), jnp.float32)
    values, estimates = jax.vmap(lambda p: divergence(drift, x, probes=p))(probes)
    np.testing.assert_allclose(values[0], value, rtol=1e-6)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - exact) < 4.5 * error
    assert abs(estimates.mean() - 1.5 * exact) > 4.5 * error


def test_bits_per_dim_is_the_discrete_code_length():
    """A density uniform over a byte's bin of width 1/128 has 0 bits; over the whole range [-1, 1], 8."""
    assert bits_per_dim(10 * np.log(128.0), 10) == pytest.approx(0.0)
    assert bits_per_dim(10 * np.log(0.5), 10) == pytest.approx(8.0)


def test_images_that_do_not_converge_are_reported_not_averaged(tmp_path):
    def make(_):
        return gaussian_score_fn(SDE, MEAN, STD)

    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
    common = {"key": jax.random.key(0), "dequantized": True, "log": MetricsLog(tmp_path / "m.jsonl")}
    few = log_likelihoods(
        make, None, SDE, images, OdeSettings(max_steps=3), batch_size=2, path=tmp_path / "a.npz", **common
    )
    assert not few["converged"].any()
    whole = log_likelihoods(make, None, SDE, images, OdeSettings(), batch_size=5, path=tmp_path / "b.npz", **common)
    parts = log_likelihoods(make, None, SDE, images, OdeSettings(), batch_size=2, path=tmp_path / "c.npz", **common)
    assert whole["converged"].all()
    assert len(parts["nats"]) == 5
    np.testing.assert_allclose(whole["nats"], parts["nats"], rtol=1e-4)  # whatever the batch
    # A run that finds its own file goes on from it, and ends with the same.
    with np.load(tmp_path / "c.npz") as file:
        kept = {name: file[name] if name == "identity" else file[name][:2] for name in file.files}
    np.savez(tmp_path / "c.npz", **kept)
    again = log_likelihoods(make, None, SDE, images, OdeSettings(), batch_size=2, path=tmp_path / "c.npz", **common)
    np.testing.assert_array_equal(again["nats"], parts["nats"])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: OdeSettings(solver="rk9"),
        lambda: OdeSettings(rtol=0.0),
        lambda: OdeSettings(atol=-1e-5),
        lambda: OdeSettings(t_min=0.0),
        lambda: OdeSettings(max_steps=0),
        lambda: OdeSettings(num_probes=-1),
        lambda: NllSettings(batch_size=0),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="got .*expected .*fix"):
        wrong()
