import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import norm

from fpjax.core.errors import RequestError, StageError
from fpjax.core.metrics import MetricsLog, read_metrics
from fpjax.core.progress import Stopped
from fpjax.diffusion.flow import (
    MAX_STEPS,
    NON_FINITE,
    SOLVERS,
    OdeSettings,
    divergence,
    flow_drift,
    log_likelihood,
    prior_logp,
)
from fpjax.diffusion.oracle import empirical_log_density, empirical_score_fn
from fpjax.diffusion.sde import SubVP
from fpjax.engine.densities import log_likelihoods, make_density_engine
from fpjax.studies.likelihood import NllSettings, bits_per_dim

from .gaussian import gaussian_score_fn

SDE, MEAN, STD = SubVP(), 0.2, 0.3
RNG = np.random.default_rng


def nats(x, settings, *, wrong=1.0, key=0):
    score_fn = gaussian_score_fn(SDE, MEAN, STD, wrong=wrong)
    return jax.jit(lambda x: log_likelihood(SDE, score_fn, x, key=jax.random.key(key), settings=settings))(x)


@pytest.mark.parametrize("solver", ["dopri5", "tsit5", "dopri8"])
@pytest.mark.parametrize("num_probes", [0, 1])
def test_gaussian(solver, num_probes):
    """A linear score has a constant divergence on the diagonal, so one Rademacher probe is exact too."""
    x = jnp.asarray(RNG(0).normal(MEAN, STD, (3, 2, 1)), jnp.float32)
    found = nats(x, OdeSettings(solver=solver, num_probes=num_probes))
    expected = norm.logpdf(np.asarray(x, np.float64), MEAN, STD).sum()
    # The true marginal at t = 1 is not quite the prior: its mean is off by 0.0066 MEAN.
    assert abs(float(found.nats) - expected) < 4e-4 * x.size
    np.testing.assert_allclose(found.nats, found.prior_nats + found.delta_nats, rtol=1e-6)
    assert bool(found.converged)
    assert 20 < int(found.nfe) < 2000
    if solver == "dopri5":
        assert abs(float(nats(x, OdeSettings(solver=solver), wrong=2 / 3).nats) - expected) > 0.1


def test_error_falls_with_the_tolerance():
    x = jnp.full((2, 2, 1), 0.5)
    solved = [float(nats(x, OdeSettings(rtol=tol, atol=tol, solver="heun")).nats) for tol in (1e-1, 1e-2, 1e-3, 1e-6)]
    errors = np.abs(np.subtract(solved[:3], solved[3]))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_those_that_were_made(solver):
    calls = []
    exact = gaussian_score_fn(SDE, MEAN, STD)

    def counted(x, t):
        jax.debug.callback(lambda _: calls.append(1), t)
        return exact(x, t)

    settings = OdeSettings(solver=solver, rtol=1e-2, atol=1e-2)
    found = log_likelihood(SDE, counted, jnp.full((2, 2, 1), 0.5), key=jax.random.key(0), settings=settings)
    jax.effects_barrier()
    assert len(calls) == int(found.nfe)
    assert int(found.num_steps) < int(found.nfe)


@pytest.fixture(scope="module")
def mixture():
    """Images, a point near one of them, and the exact score of the mixture of width 0.03 around them."""
    images, width = RNG(0).uniform(-1, 1, (12, 4, 4, 1)).astype(np.float32), 0.03
    x = (images[3] + width * RNG(1).standard_normal(images[3].shape)).astype(np.float32)
    return images, x, empirical_score_fn(SDE, jnp.asarray(images), width=width), width


def of_mixture(mixture, settings):
    images, x, score_fn, width = mixture

    def terminal_logp(x):
        scale, std = SDE.marginal(jnp.float32(1.0))
        variance = scale**2 * width**2 + std**2
        squares = jnp.sum((x - scale * images) ** 2, axis=(1, 2, 3))
        exponents = -0.5 * squares / variance - 0.5 * x.size * jnp.log(2 * jnp.pi * variance)
        return jax.scipy.special.logsumexp(exponents) - np.log(len(images))

    @jax.jit
    def solve(x):
        return log_likelihood(SDE, score_fn, x, key=jax.random.key(0), settings=settings, terminal_logp=terminal_logp)

    return solve(jnp.asarray(x))


def test_a_mixture_to_1e_4_nats_per_dimension_and_nearer_with_rtol(mixture):
    images, x, _, width = mixture
    expected = empirical_log_density(SDE, images, x, t=1e-5, width=width)
    errors = [
        abs(float(of_mixture(mixture, OdeSettings(rtol=tol, atol=tol, num_probes=0)).nats) - expected) / x.size
        for tol in (1e-2, 1e-3, 1e-5)
    ]
    assert errors[2] < 1e-4
    assert errors[0] > 3 * errors[1] > 3 * errors[2]


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_agree_with_the_exact_trace_within_their_own_error(mixture, probe):
    settings = {"rtol": 1e-4, "atol": 1e-4}
    exact = of_mixture(mixture, OdeSettings(num_probes=0, **settings))
    found = of_mixture(mixture, OdeSettings(num_probes=64, probe=probe, **settings))
    assert float(exact.probe_error) == 0
    error = float(found.probe_error)
    assert abs(float(found.nats - exact.nats)) < 4.5 * error + 1e-3
    # The Jacobian's diagonal is nearly all of it, which Rademacher probes see without noise.
    assert (0.5 < error < 10) if probe == "gaussian" else (1e-4 < error < 0.4)


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal])
def test_hutchinson_is_unbiased_for_the_exact_trace(probe):
    matrix = 0.3 * jax.random.normal(jax.random.key(0), (12, 12)) + jnp.eye(12)

    def drift(x):
        return (jnp.tanh(matrix @ x.ravel())).reshape(x.shape)

    x = jax.random.normal(jax.random.key(1), (3, 4, 1)) * 0.3
    value, exact = divergence(drift, x, probes=None)
    np.testing.assert_allclose(exact[0], jnp.trace(jax.jacfwd(drift)(x).reshape(12, 12)), rtol=1e-5)
    # In any chunks.
    np.testing.assert_allclose(divergence(drift, x, probes=None, trace_batch=5)[1], exact, rtol=1e-6)
    probed, estimates = divergence(drift, x, probes=probe(jax.random.key(2), (4000, *x.shape), jnp.float32))
    np.testing.assert_allclose(probed, value, rtol=1e-6)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - exact[0]) < 4.5 * error
    assert abs(estimates.mean() - 1.5 * exact[0]) > 4.5 * error


def test_parity_with_scipy():
    """A network of random weights; trace by a dense Jacobian, steps by SciPy's RK45: 1e-3 bits/dim."""
    rng = RNG(0)
    into, within, out = (jnp.float32(rng.standard_normal(shape) / 4) for shape in ((18, 32), (32, 32), (32, 16)))
    t_min = 1e-5

    def score_fn(x, t):
        hidden = jnp.tanh(jnp.tanh(jnp.append(x.ravel(), jnp.array([t, 1.0])) @ into) @ within)
        return -(hidden @ out).reshape(x.shape) / SDE.marginal(t).std

    x = rng.uniform(-1, 1, (4, 4, 1)).astype(np.float32)

    @jax.jit
    def field(x, t):
        def drift(flat):
            return flow_drift(SDE, score_fn, flat.reshape(4, 4, 1), t).ravel()

        return drift(x), jnp.trace(jax.jacfwd(drift)(x))

    def joint(t, y):
        return np.concatenate([np.ravel(part) for part in field(jnp.float32(y[:-1]), jnp.float32(t))])

    solved = solve_ivp(joint, (t_min, 1.0), np.append(x.ravel(), 0.0), method="RK45", rtol=1e-5, atol=1e-5)
    reference = float(prior_logp(SDE, jnp.asarray(solved.y[:-1, -1].reshape(x.shape)))) + solved.y[-1, -1]
    settings = OdeSettings(num_probes=0, trace_batch=16)
    found = jax.jit(lambda x: log_likelihood(SDE, score_fn, x, key=jax.random.key(0), settings=settings))(x)
    assert abs(bits_per_dim(float(found.nats), 16) - bits_per_dim(reference, 16)) < 1e-3
    assert abs(float(found.delta_nats)) > 1
    assert int(found.nfe) < 3 * solved.nfev


def test_bits_per_dim_is_the_discrete_code_length():
    """A density uniform over a byte's bin of width 1/128 has 0 bits; over the whole range [-1, 1], 8."""
    assert bits_per_dim(10 * np.log(128.0), 10) == pytest.approx(0.0)
    assert bits_per_dim(10 * np.log(0.5), 10) == pytest.approx(8.0)


@functools.lru_cache
def gaussian_engine(settings=None, *, batch_size=2, block_steps=4, devices=1, make=None):
    make = make or (lambda wrong: gaussian_score_fn(SDE, MEAN, STD, wrong=wrong))
    return make_density_engine(
        make,
        SDE,
        (2, 2, 1),
        settings or OdeSettings(),
        batch_size=batch_size,
        block_steps=block_steps,
        devices=jax.devices()[:devices],
    )


@pytest.fixture
def many(tmp_path):
    """Densities of images in some slots, and the log's events."""

    def solve(engine, images, *, name="a", params=1.0, **options):
        options = {"key": jax.random.key(0), "dequantized": True, **options}
        log = MetricsLog(tmp_path / f"{name}.jsonl")
        return log_likelihoods(engine, jnp.float32(params), images, path=tmp_path / f"{name}.npz", log=log, **options)

    solve.path = tmp_path
    return solve


IMAGES = RNG(0).integers(0, 256, (7, 2, 2, 1), dtype=np.uint8)


def test_densities_do_not_depend_on_slots_and_devices(many):
    whole = many(gaussian_engine(batch_size=7, block_steps=1000), IMAGES)
    assert whole["converged"].all()
    for engine in (gaussian_engine(), gaussian_engine(batch_size=3, block_steps=1, devices=2)):
        parts = many(engine, IMAGES, name=f"{engine.num_slots}")
        np.testing.assert_allclose(parts["nats"], whole["nats"], rtol=1e-4)
        np.testing.assert_allclose(parts["num_steps"], whole["num_steps"], atol=2)
    events = read_metrics(many.path / "2.jsonl")
    assert sorted(row for event in events for row in event["rows"]) == list(range(7))
    assert events[-1]["images"] == 7
    # Slots are refilled: little is executed but what is needed.
    last = events[-1]
    assert last["executed_steps"] < 1.5 * last["useful_steps"]


def test_an_interrupted_run_ends_with_the_same_bytes(many, monkeypatch):
    engine, polls = gaussian_engine(), iter([False] * 3 + [True] * 2 + [False] * 1000)
    whole = many(engine, IMAGES, name="whole")

    class Interrupted:
        def __init__(self, *_, **__):
            self.rate = 0.0

        def update(self, done, _):
            if next(stops):
                raise Stopped

    stops = iter([False] * 3 + [True] + [False] * 1000)
    with monkeypatch.context() as patch:
        patch.setattr("fpjax.engine.slots.stopping", lambda: next(polls))
        patch.setattr("fpjax.engine.densities.Progress", Interrupted)
        with pytest.raises(Stopped):
            many(engine, IMAGES, name="parts")
    with np.load(many.path / "parts.npz") as file:
        assert 0 < file["done"].sum() < len(IMAGES)
    again = many(engine, IMAGES, name="parts")
    for name, values in whole.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    # Another request does not go on from it.
    other = many(engine, IMAGES[::-1], name="parts")
    assert not np.array_equal(other["nats"], whole["nats"])


def test_repeats_are_averaged_and_their_spread_is_told(many):
    found = many(gaussian_engine(), IMAGES, repeats=8)
    single = many(gaussian_engine(), IMAGES, name="b")
    assert np.isnan(single["repeat_error"]).all()
    assert (found["repeat_error"] > 0).all()
    # Uniform noise in the bin: mean and variance of the log density in closed form, dimension by dimension.
    points = (IMAGES[..., None] + (np.arange(200) + 0.5) / 200) / 128 - 1
    logp = norm.logpdf(points, MEAN, STD)
    expected, variance = logp.mean(axis=-1).sum(axis=(1, 2, 3)), logp.var(axis=-1).sum(axis=(1, 2, 3))
    assert np.all(np.abs(found["nats"] - expected) < 4.5 * np.sqrt(variance / 8) + 4e-4 * 4)
    np.testing.assert_allclose(found["repeat_error"].mean(), np.sqrt(variance / 8).mean(), rtol=0.5)
    assert not np.array_equal(found["nats"], single["nats"])
    # What the other images are does not matter.
    alone = many(gaussian_engine(), IMAGES[:2], name="c")
    np.testing.assert_allclose(alone["nats"], single["nats"][:2], rtol=1e-5)


def test_images_that_do_not_converge_are_reported_not_averaged(many):
    few = many(gaussian_engine(OdeSettings(max_steps=3)), IMAGES)
    assert (few["outcome"] == MAX_STEPS).all()
    assert not few["converged"].any()
    assert np.isnan(few["nats"]).all()
    assert (few["num_steps"] == 3).all()

    def partly(_):
        exact = gaussian_score_fn(SDE, MEAN, STD)
        # Not a number where an image is bright on the whole.
        return lambda x, t: jnp.where((jnp.mean(x) > 0.5) & (t < 0.01), jnp.nan, 1.0) * exact(x, t)

    images = IMAGES.copy()
    images[2] = 250
    found = many(gaussian_engine(make=partly), images, name="b", repeats=2)
    assert found["outcome"].tolist() == [NON_FINITE if i == 2 else 0 for i in range(7)]
    assert np.isnan(found["nats"]).tolist() == [i == 2 for i in range(7)]
    assert found["num_steps"][2] < 100  # given up at once, not after 4096 steps
    assert np.isfinite(found["repeat_error"][0])


def test_a_score_that_is_not_a_number_stops_the_stage(many):
    with pytest.raises(StageError, match="none of 7 images is finite"):
        many(gaussian_engine(), IMAGES, params=np.nan)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "images: got float32 from .* expected bytes"),
        (np.full((1, 2, 2, 1), np.nan, np.float32), "got float32 from nan"),
        (to_float := IMAGES.astype(np.float64) / 128 - 1, "got float64"),
        (np.zeros((2, 3, 2, 1), np.uint8), r"shape \(2, 3, 2, 1\), expected \(n, 2, 2, 1\)"),
    ],
)
def test_images_outside_the_model_range_are_refused(many, images, message):
    with pytest.raises(RequestError, match=message):
        many(gaussian_engine(), images)


def test_images_in_model_range_are_taken_as_they_are(many):
    found = many(gaussian_engine(), to_float.astype(np.float32))
    np.testing.assert_allclose(found["nats"], norm.logpdf(to_float, MEAN, STD).sum(axis=(1, 2, 3)), rtol=2e-3)
    assert np.isnan(found["probe_error"]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: OdeSettings(solver="rk9"),
        lambda: OdeSettings(rtol=0.0),
        lambda: OdeSettings(atol=-1e-5),
        lambda: OdeSettings(t_min=0.0),
        lambda: OdeSettings(max_steps=0),
        lambda: OdeSettings(num_probes=-1),
        lambda: OdeSettings(probe="uniform"),
        lambda: OdeSettings(trace_batch=0),
        lambda: NllSettings(batch_size=0),
        lambda: NllSettings(block_steps=0),
        lambda: NllSettings(repeats=0),
        lambda: NllSettings(num_neighbours=-1),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="got .*expected .*fix"):
        wrong()


def test_unknown_solvers_are_answered_with_the_list():
    with pytest.raises(RequestError, match="expected one of dopri5, dopri8, heun, tsit5"):
        OdeSettings(solver="rk45")
