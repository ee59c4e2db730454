"""Every sampler on every process, against exact recursions and exact flows of the Gaussian oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sampling import PREDICTORS, SAMPLERS, SamplerSettings, langevin, make_grid, make_sampler
from fpjax.diffusion.sde import VE, DiscreteVP, SubVP
from fpjax.engine.chains import EngineSettings, Queue, evaluations_per_step, make_engine, slot_shapes

from .gaussian import ALL_PROCESSES, FLOWS, affine_end, chain_end, dpm_end, flow_end, gaussian_score_fn

MEAN, STD = 0.2, 0.3
each_process = pytest.mark.parametrize("sde", ALL_PROCESSES.values(), ids=ALL_PROCESSES)


def chains(sampler, *, mean=MEAN, std=STD, wrong=1.0):
    """Jitted ends of (n, h, w, c) starts at `level`; `sampler` is (name, sde, grid, options)."""
    name, sde, grid, options = sampler
    made = SAMPLERS[name](sde, grid, gaussian_score_fn(sde, mean, std, wrong=wrong), **options)

    def one(x, key, level):
        def body(i, state):
            return made.step(state, level - i, jax.random.fold_in(key, level - i))

        return jax.lax.fori_loop(0, level, body, made.init(x)).x

    return jit_once(jax.vmap(one, in_axes=(0, 0, None)))


def starts(sde, grid, level, x, shape, seed=0):
    scale, noise = grid.scale[level], grid.std[level]
    return np.float32(scale * x + noise * np.random.default_rng(seed).standard_normal(shape))


@each_process
@pytest.mark.parametrize("name", PREDICTORS)
def test_stochastic_chains_follow_the_exact_recursion(sde, name):
    """Mean and standard deviation of the ends, from several levels through one compiled function."""
    spacing = "log_snr" if name == "ancestral" else "time"
    grid, x, keys = time_grid(sde, 20, spacing=spacing), 0.9, jax.random.split(jax.random.key(0), 2500)
    run = chains((name, sde, grid, {}))
    for level in (1, 6, 14, 20):
        values = np.asarray(run(starts(sde, grid, level, x, (2500, 2, 2, 1)), keys, level), np.float64)
        mean, std = chain_end(sde, grid, name, MEAN, STD, level, x)
        assert abs(values.mean() - mean) < 4.5 * std / np.sqrt(values.size)
        assert abs(values.std() / std - 1) < 4.5 / np.sqrt(2 * values.size)
    values = chains((name, sde, grid, {}), wrong=2 / 3)(starts(sde, grid, 14, x, (2500, 2, 2, 1)), keys, 14)
    mean, std = chain_end(sde, grid, name, MEAN, STD, 14, x)
    # A wrong score is noticed.
    assert abs(np.asarray(values).std() / std - 1) > 10 / np.sqrt(2 * values.size)


@each_process
@pytest.mark.parametrize("name", FLOWS)
def test_deterministic_chains_are_the_exact_recursion(sde, name):
    """Image by image, from several levels; nothing is drawn."""
    grid, keys = time_grid(sde, 24, spacing="log_snr", t_min=5e-3), jax.random.split(jax.random.key(0), 6)
    run = chains((name, sde, grid, {}))
    for level in (1, 2, 3, 9, 24):
        x = starts(sde, grid, level, 0.9, (6, 2, 2, 1))
        found = np.asarray(run(x, keys, level))
        np.testing.assert_allclose(found, FLOWS[name](sde, grid, MEAN, STD, level, np.float64(x)), atol=2e-5)
        np.testing.assert_array_equal(found, run(x, jax.random.split(jax.random.key(1), 6), level))
    other = np.asarray(chains((name, sde, grid, {}), wrong=2 / 3)(x, keys, level))
    assert np.abs(other - found).max() > 0.02


@each_process
@pytest.mark.parametrize("name", SAMPLERS)
def test_all_but_euler_maruyama_are_exact_on_a_single_image(sde, name):
    """In grey levels rms at 50 levels; field.md gives 14 for Euler-Maruyama on sub-VP."""
    grid, keys = time_grid(sde, 50), jax.random.split(jax.random.key(0), 32)
    x = sde.prior_std * jax.random.normal(jax.random.key(1), (32, 4, 4, 1))
    found = chains((name, sde, grid, {}), mean=0.37, std=0.0)(x, keys, 50)
    error = 128 * float(jnp.sqrt(jnp.mean((found - 0.37) ** 2)))
    assert error < (30 if name == "euler_maruyama" else 0.01)
    assert error > 5 or name != "euler_maruyama" or sde != SubVP()


def test_the_extrapolation_of_dpm_solver_is_limited_if_that_is_asked_for():
    """Levels even in t have an interval of lambda near 0 that is several times the one before it."""
    sde, x = SubVP(), np.float64([[[[0.9]]]])
    grid, keys = time_grid(sde, 12), jax.random.split(jax.random.key(0), 1)
    ends = []
    for most in (0.0, 0.5):
        found = chains(("dpm_solver", sde, grid, {"max_extrapolation": most}))(jnp.float32(x), keys, 12)
        ends.append(dpm_end(sde, grid, MEAN, STD, 12, x, most=most or np.inf).item())
        assert found.item() == pytest.approx(ends[-1], abs=1e-4)
    assert abs(ends[0] - ends[1]) > 0.1


@each_process
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_ddim_with_all_noise_is_the_ancestral_sampler(sde, spacing):
    grid, keys = time_grid(sde, 12, spacing=spacing), jax.random.split(jax.random.key(0), 4)
    x = starts(sde, grid, 12, 0.9, (4, 3, 3, 1))
    same = chains(("ancestral", sde, grid, {}))(x, keys, 12)
    np.testing.assert_allclose(chains(("ddim", sde, grid, {"eta": 1.0}))(x, keys, 12), same, atol=2e-5)
    clipped = [chains((name, sde, grid, options | {"clip_sample": 0.3}))(x, keys, 12)
               for name, options in (("ancestral", {}), ("ddim", {"eta": 1.0}))]  # fmt: skip
    assert float(jnp.abs(clipped[0]).max()) <= 0.3 + 1e-6
    assert float(jnp.abs(same).max()) > 0.35
    assert float(jnp.abs(clipped[1]).max()) <= 0.3 + 1e-6


def test_spacings_of_a_scheduler_need_one():
    with pytest.raises(RequestError, match="sampler.spacing: got 'leading', which counts the steps of a scheduler"):
        make_grid(SamplerSettings("ddim", 10, spacing="leading"), SubVP())
    betas = DiscreteVP(tuple(np.linspace(1e-3, 0.2, 60)))
    assert list(60 * make_grid(SamplerSettings("ddim", 4, spacing="leading", steps_offset=1), betas).t) == [
        0,
        2,
        17,
        32,
        47,
    ]
    with pytest.raises(RequestError, match="sampler.num_levels: got 60 with spacing 'leading' and steps_offset 1"):
        make_grid(SamplerSettings("ddim", 60, spacing="leading", steps_offset=1), betas)
    with pytest.raises(RequestError, match="sampler.set_alpha_to_one: got False"):
        make_grid(SamplerSettings("ddim", 10, set_alpha_to_one=False), SubVP())


def slope(errors):
    """Order p of errors h^p at h = 1, 1/2, 1/4, ..."""
    return -np.polyfit(np.log2(2.0 ** np.arange(len(errors))), np.log2(errors), 1)[0]


@pytest.mark.parametrize(
    ("name", "process", "spacing", "order"),
    [(name, sde, "log_snr", 1) for name in PREDICTORS for sde in ("subvp", "vp")]
    + [("ancestral", "ve", "log_snr", 1)]
    + [("ddim", sde, "log_snr", 1) for sde in ("subvp", "vp", "ve")]
    + [(name, sde, spacing, 2) for name in ("probability_flow", "dpm_solver") for sde in ("subvp", "vp", "ve") for spacing in ("log_snr", "quadratic")]
    + [("probability_flow", sde, "time", 2) for sde in ("subvp", "vp", "ve")],
)  # fmt: skip
def test_order_of_convergence(name, process, spacing, order):
    """In float64, no noise involved: halving the steps divides the error by 2^order, and by neither more nor less."""
    sde, errors = ALL_PROCESSES[process], []
    for num_levels in (100, 200, 400, 800):
        grid = time_grid(sde, num_levels, spacing=spacing)
        if name in FLOWS:
            x = np.linspace(-1, 1, 3) * sde.prior_std
            error = FLOWS[name](sde, grid, MEAN, STD, num_levels, x) - flow_end(sde, grid, MEAN, STD, num_levels, x)
            errors.append(np.abs(error).max())
        else:
            (scale, noise), start = sde.marginal(np.float64(1.0)), MEAN
            # From the noised data themselves, so that all that is left is the error of the steps.
            variance = scale**2 * STD**2 + noise**2
            mean, std = affine_end(sde, grid, name, MEAN, STD, num_levels, scale * start, variance)
            errors.append(abs(mean - MEAN) + abs(std - STD))
    assert abs(slope(errors) - order) < 0.2
    assert errors[-1] < 1e-2 / 3**order


@pytest.mark.parametrize(("solver", "substeps", "bound"), [("heun", 1, 1e-2), ("heun", 4, 1e-3), ("bosh3", 1, 2e-3), ("tsit5", 1, 1e-4), ("tsit5", 2, 2e-5)])  # fmt: skip
def test_every_ode_solver_nears_the_exact_flow(solver, substeps, bound):
    """Twelve levels; bounds a few times above the errors found."""
    sde = SubVP()
    grid, keys = time_grid(sde, 12, spacing="quadratic", t_min=1e-2), jax.random.split(jax.random.key(0), 6)
    options = {"ode_solver": solver, "ode_substeps": substeps}
    for level in (12, 5):
        x = starts(sde, grid, level, 0.9, (6, 2, 2, 1))
        found = chains(("probability_flow", sde, grid, options))(x, keys, level)
        error = np.abs(found - flow_end(sde, grid, MEAN, STD, level, np.float64(x))).max()
        assert error < bound
        wrong = np.abs(found - flow_end(sde, grid, MEAN, 1.1 * STD, level, np.float64(x))).max()
        assert wrong > 2 * bound


@pytest.mark.parametrize("snr", [0.25, 0.5])
def test_langevin_steps_settle_at_the_marginal(snr):
    """From twice the variance to v (1 + alpha snr^2), in 400 dimensions, where norms are within percents of their means.

    With size = 2 alpha snr^2 v^2 / w at variance w, x' = x - size x / v + sqrt(2 size) z leaves w unchanged there.
    """
    v, alpha, mean = 0.7, 0.9, 0.3
    x = mean + np.sqrt(2 * v) * jax.random.normal(jax.random.key(0), (32, 20, 20, 1))

    def one(x, key):
        keys = jax.random.split(key, 120)
        return jax.lax.scan(lambda x, k: (langevin(k, -(x - mean) / v, x, alpha=alpha, snr=snr), None), x, keys)[0]

    ends = np.asarray(jax.jit(jax.vmap(one))(x, jax.random.split(jax.random.key(1), 32)), np.float64)
    error = 4.5 * np.sqrt(2 / ends.size) + 0.05 * snr**2
    assert abs(ends.var() / (v * (1 + alpha * snr**2)) - 1) < error
    assert abs(ends.var() / (v * (1 + alpha * (2 * snr) ** 2)) - 1) > error
    assert abs(ends.mean() - mean) < 4.5 * np.sqrt(v * (1 + snr**2) / ends.size)


@pytest.mark.parametrize("sde", [SubVP(), VE()])
def test_corrector_improves_few_euler_steps(sde):
    """Plain chains at 12 levels end nearer to the data's standard deviation with it; sub-VP included."""
    grid, keys = time_grid(sde, 12), jax.random.split(jax.random.key(0), 16)
    x = np.float32(sde.prior_std * np.random.default_rng(0).standard_normal((16, 20, 20, 1)))
    alone = np.asarray(chains(("euler_maruyama", sde, grid, {}))(x, keys, 12)).std() / STD
    options = {"predictor": "euler_maruyama", "corrector_steps": 4}
    corrected = np.asarray(chains(("predictor_corrector", sde, grid, options))(x, keys, 12)).std() / STD
    assert abs(corrected - 1) < 0.7 * abs(alone - 1)


def test_corrector_is_the_predictor_where_its_steps_vanish():
    sde, grid, keys = SubVP(), time_grid(SubVP(), 10), jax.random.split(jax.random.key(0), 200)
    x = starts(sde, grid, 10, 0.5, (200, 4, 4, 1))
    for predictor in PREDICTORS:
        options = {"predictor": predictor, "corrector_snr": 1e-4}
        values = np.asarray(chains(("predictor_corrector", sde, grid, options))(x, keys, 10))
        mean, std = chain_end(sde, grid, predictor, MEAN, STD, 10, 0.5)
        assert abs(values.mean() - mean) < 4.5 * std / np.sqrt(values.size)
        assert abs(values.std() / std - 1) < 4.5 / np.sqrt(2 * values.size)


VARIANTS = [
    *(SamplerSettings(name, num_levels=5) for name in SAMPLERS),
    SamplerSettings("predictor_corrector", num_levels=5, corrector_steps=3, predictor="euler_maruyama"),
    *(SamplerSettings("probability_flow", num_levels=5, ode_solver=s, ode_substeps=n) for s, n in (("heun", 3), ("bosh3", 1), ("tsit5", 2))),
]  # fmt: skip


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: s.label)
def test_evaluations_of_a_step_are_counted(settings):
    """As they are made, inside the solvers' own loops too."""
    calls, sde = [], SubVP()

    def score_fn(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return -x

    sampler = make_sampler(settings, sde, make_grid(settings, sde), score_fn)
    jit_once(sampler.step)(sampler.init(jnp.ones((1, 1, 1))), jnp.asarray(3), jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == sampler.num_evaluations
    assert max(calls) == pytest.approx(float(make_grid(settings, sde).t[3]))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_block_of_the_engine_lowers_for_accelerators(name, platform):
    settings, sde, shape = SamplerSettings(name, num_levels=8), VE(), (4, 4, 1)
    grid = make_grid(settings, sde)
    engine = make_engine(
        lambda params: make_sampler(settings, sde, grid, lambda x, t: params * x), grid, shape, EngineSettings(4, 4)
    )
    params = jnp.asarray(-1.0)
    queue = jax.ShapeDtypeStruct((engine.mesh.size * engine.window,), jnp.int32)
    lowered = export.export(engine.advance, platforms=[platform])(
        params,
        jax.random.key(0),
        jnp.zeros((1, *shape)),
        slot_shapes(engine, params),
        Queue(queue, queue, queue),
        jax.ShapeDtypeStruct((engine.mesh.size,), jnp.int32),
    )
    assert lowered.platforms == (platform,)
    assert evaluations_per_step(engine, params) == {"predictor_corrector": 2, "probability_flow": 2}.get(name, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "plms"},
        {"eta": 1.5},
        {"eta": np.nan},
        {"clip_sample": -1.0},
        {"steps_offset": -1},
        {"max_extrapolation": np.inf},
        {"num_levels": 1},
        {"num_levels": 10**9},
        {"t_min": 0.0},
        {"spacing": "cosine"},
        {"predictor": "dpm_solver"},
        {"corrector_steps": 0},
        {"corrector_steps": 10**9},
        {"corrector_snr": 1.0},
        {"ode_solver": "dopri5"},
        {"ode_substeps": -1},
        {"ode_substeps": 10**9},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="sampler.*got .*expected .*fix"):
        SamplerSettings(**wrong)


def test_the_label_names_what_the_sampler_reads():
    assert SamplerSettings("ancestral", corrector_steps=4).label == "ancestral"
    found = SamplerSettings("predictor_corrector", corrector_steps=4, spacing="log_snr").label
    assert found == "predictor_corrector (predictor ancestral, corrector_steps 4, corrector_snr 0.16, spacing log_snr)"
