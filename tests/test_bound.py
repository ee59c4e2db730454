"""The Darboux sum on hand-made numbers, and on the Gaussian oracle in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fpjax.core.errors import RequestError
from fpjax.core.metrics import MetricsLog
from fpjax.diffusion.flow import OdeSettings
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.oracle import empirical_log_density, empirical_score_fn
from fpjax.diffusion.sampling import SAMPLERS
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import EngineSettings, make_engine
from fpjax.engine.densities import make_density_engine
from fpjax.studies.bound import (
    BoundSettings,
    bound,
    bound_work,
    chain_ends,
    darboux_cells,
    fine_levels,
    log_darboux_sum,
    log_mean_exp,
    top_levels,
)
from fpjax.studies.search import SearchResult

from .gaussian import chain_end, gaussian_score_fn

SDE, MEAN, STD = SubVP(), 0.2, 0.3


def run(tmp_path, make_score, targets, tops, settings, *, grid, ode=None, name="a"):
    shape = targets.shape[1:]
    engine = make_engine(
        lambda params: SAMPLERS["ancestral"](SDE, grid, make_score(params)),
        grid,
        shape,
        EngineSettings(slots=256, block_steps=10),
        devices=jax.devices()[:1],
    )
    density = make_density_engine(
        make_score,
        SDE,
        shape,
        ode or OdeSettings(rtol=1e-4, atol=1e-4),
        batch_size=256,
        block_steps=8,
        devices=jax.devices()[:1],
    )
    log, params = MetricsLog(tmp_path / "m.jsonl"), jnp.float32(1.0)
    ends = chain_ends(
        engine, params, targets, tops, settings, key=jax.random.key(0), path=tmp_path / f"{name}.npz", log=log
    )
    key, path = jax.random.key(1), tmp_path / f"{name}-density.npz"
    return bound(density, params, ends, tops, settings, key=key, path=path, log=log)


def test_the_sum_of_a_smooth_curve_nears_its_integral_from_above():
    """exp(1000) (1 + s^2) over sigma = 0..2: in log space, and first order in the cells' width."""
    levels = np.arange(1025)
    std = 2.0 * levels / 1024
    log_mean, exact = 1000 + np.log1p(std**2), 1000 + np.log(2 + 8 / 3)
    sums = []
    for cells in (4, 16, 64):
        fine, edges = fine_levels(1024, BoundSettings(num_cells=cells, levels_per_cell=4))
        sums.append(log_darboux_sum(darboux_cells(std, edges, fine, log_mean[fine], end=1024)) - exact)
    assert sums[0] > 3 * sums[1] > 9 * sums[2] > 0
    # Up to the middle, where no cell of 3 ends.
    fine, edges = fine_levels(1024, BoundSettings(num_cells=3, levels_per_cell=256))
    cells = darboux_cells(std, edges, fine, log_mean[fine], end=512)
    assert [(cell.low, cell.high, cell.at) for cell in cells] == [(0, 341, 341), (341, 512, 512)]
    assert log_darboux_sum(cells) == pytest.approx(
        1000 + np.log(std[341] * (1 + std[341] ** 2) + 2 * (1 - std[341])), abs=2e-3
    )


def test_gaps_and_nothing():
    levels, edges = np.array([0, 1, 2, 4]), np.array([0, 2, 4])
    std, log_mean = np.array([0.0, 0.1, 0.2, 0.3, 0.4]), np.array([1.0, np.nan, 5.0, np.nan])
    cells = darboux_cells(std, edges, levels, log_mean, end=4)
    assert [cell.log_sup for cell in cells] == [5.0, 5.0]  # an edge belongs to both cells
    missing = darboux_cells(std, edges, levels, np.full(4, np.nan), end=4)
    assert np.isnan(log_darboux_sum(missing))
    assert log_darboux_sum(darboux_cells(std, edges, levels, log_mean, end=0)) == -np.inf
    assert np.isnan(log_mean_exp(np.array([]))).all()
    assert log_mean_exp(np.array([0.0, -1e4]))[1] == pytest.approx(1.0)


def test_tops_are_the_highest_levels_with_a_return():
    rows = {"target": [0, 0, 1, 2, 2], "level": [3, 9, 5, 7, 8], "num_detected": [2, 0, 4, 0, 0]}
    rows |= dict.fromkeys(("phase", "num_chains", "num_fingerprint", "num_identity"), [1] * 5)
    search = SearchResult(
        **{name: np.asarray(values) for name, values in rows.items()},
        num_detected_at=np.zeros((5, 0), int),
        evaluations=0,
        executed=0,
        num_members=3,
        strategy="exhaustive",
        exhaustive_evaluations=0,
    )
    assert top_levels(search) == [3, 5, 0]
    work = bound_work(BoundSettings(2, 2, 3), top_levels(search))
    assert work.num_chains == 3 * (3 + 4)  # levels 1 to 3; 1, 2 (or 3), 4 and 5
    assert set(work.target) == {0, 1}
    assert bound_work(BoundSettings(2, 2, 3), [0]) is None
    assert bound_work(BoundSettings(2, 2, 0), [5]) is None


def test_gaussian_in_closed_form(tmp_path):
    """Ends of the discretised chains are N(m_i, v_i) exactly and p is N(MEAN, STD^2), so E[p(x')] is a normal density."""
    grid = time_grid(SDE, 20)
    target = np.full((1, 2, 1, 1), 0.5, np.float32)
    settings = BoundSettings(num_cells=3, levels_per_cell=2, num_chains=600, repeats=1)
    found = run(
        tmp_path, lambda wrong: gaussian_score_fn(SDE, MEAN, STD, wrong=wrong), target, [20], settings, grid=grid
    )
    expected = []
    for level in found.level.tolist():
        mean, spread = chain_end(SDE, grid, "ancestral", MEAN, STD, level, 0.5) if level else (0.5, 0.0)
        expected.append(2 * norm.logpdf(MEAN, mean, np.sqrt(STD**2 + spread**2)))
    expected = np.asarray(expected)
    # Rademacher probes are exact here; what is left is Monte Carlo and 4e-4 nats a dimension.
    values = [np.exp(np.asarray(n) - m) for n, m in zip(found.nats, found.log_mean, strict=True)]
    errors = np.asarray([np.std(v) / np.sqrt(len(v)) for v in values])
    assert np.all(np.abs(found.log_mean - expected) < 4.5 * errors + 5e-3)
    assert np.abs(found.log_mean - np.roll(expected, 1)).max() > 0.05
    np.testing.assert_allclose(found.effective, [len(v) / np.mean(v**2) for v in values], rtol=1e-6)
    assert found.num_chains.tolist() == [1] + [600] * (len(found.level) - 1)
    std, edges = grid.std.astype(np.float64), np.asarray(found.edges[0])
    sums = [log_darboux_sum(darboux_cells(std, edges, found.level, m, end=20)) for m in (found.log_mean, expected)]
    assert sums[0] == pytest.approx(sums[1], abs=0.05)


def test_a_memorisers_bound_is_the_density_at_its_images(tmp_path):
    """Of components of width 0.03, chains from low levels end at the target's own: log E[p] follows in closed form."""
    rng, width = np.random.default_rng(0), 0.03
    images = rng.uniform(-1, 1, (6, 3, 3, 1)).astype(np.float32)
    grid = time_grid(SDE, 20)

    def make_score(_):
        return empirical_score_fn(SDE, jnp.asarray(images), width=width)

    settings = BoundSettings(num_cells=2, levels_per_cell=1, num_chains=400, repeats=2)
    ode = OdeSettings(num_probes=0, trace_batch=9, rtol=1e-4, atol=1e-4)
    found = run(tmp_path, make_score, images[:2], [2, 1], settings, grid=grid, ode=ode)
    assert found.target.tolist() == [0, 0, 0, 1, 1]
    assert found.level.tolist() == [0, 1, 2, 0, 1]
    density = functools.partial(empirical_log_density, SDE, images, t=1e-5, width=width)
    np.testing.assert_allclose(found.log_mean[[0, 3]], [density(images[0]), density(images[1])], atol=2e-2)
    # While no other component matters, each is a Gaussian oracle at its image, whichever member's chains these are.
    for row, level in ((1, 1), (2, 2), (4, 1)):
        mean, spread = chain_end(SDE, grid, "ancestral", 0.0, width, level, 0.0)
        expected = 9 * norm.logpdf(0.0, mean, np.sqrt(width**2 + spread**2)) - np.log(len(images))
        assert found.log_mean[row] == pytest.approx(expected, abs=0.25)
    # The exact trace needs no repeat, and has no noise.
    assert found.trace_error == 0.0
    assert found.not_converged.sum() == 0


@pytest.mark.parametrize("field", ["num_cells", "levels_per_cell", "repeats", "num_chains"])
def test_bad_settings_are_refused(field):
    with pytest.raises(RequestError, match=f"bound.{field}: got -1"):
        BoundSettings(**{field: -1})
