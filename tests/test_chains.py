"""The engine and the samplers on oracles with closed forms."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fpjax.core.errors import RequestError, StageError
from fpjax.core.metrics import MetricsLog
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sampling import SAMPLERS
from fpjax.diffusion.sde import SubVP
from fpjax.engine.chains import EngineSettings, make_engine, run_chains
from fpjax.engine.resume import run_saved
from fpjax.engine.work import NO_TARGET, concatenate_work, make_work

from .gaussian import ALL_PROCESSES, chain_end, gaussian_score_fn

SDE, MEAN, STD = SubVP(), 0.2, 0.3
SHAPE = (2, 2, 1)


def gaussian_engine(sampler="ancestral", num_levels=20, *, slots=16, block_steps=7, devices=None, sde=SDE, shape=SHAPE):
    grid, score_fn = time_grid(sde, num_levels), gaussian_score_fn(sde, MEAN, STD)
    return make_engine(
        lambda _: SAMPLERS[sampler](sde, grid, score_fn),
        grid,
        shape,
        EngineSettings(slots=slots, block_steps=block_steps),
        devices=devices,
    )


def ends(engine, work, targets, key=0):
    """Final images by (target, level, chain), and the engine's last state."""
    found, state = {}, None
    for block in run_chains(engine, None, targets, work, key=jax.random.key(key)):
        images = np.asarray(block.images)[block.rows]
        for *item, image in zip(block.target, block.level, block.chain, images, strict=True):
            assert tuple(item) not in found
            found[tuple(int(i) for i in item)] = image
        state = block.state
    return found, state


def mixed_work(num_levels):
    levels = np.arange(1, num_levels + 1)
    return concatenate_work(
        [make_work(0, levels, 3), make_work(1, levels[::4], 3), make_work(NO_TARGET, num_levels, 5)]
    )


@pytest.mark.parametrize(
    ("sampler", "process"),
    [("euler_maruyama", "subvp"), ("ancestral", "ve"), ("probability_flow", "subvp"), ("dpm_solver", "ve")],
)
def test_chain_ends_follow_the_exact_recursion(sampler, process):
    """Chains from four levels and from the prior, through slots that other chains have left."""
    sde, x, chains = ALL_PROCESSES[process], 0.9, 600
    engine = gaussian_engine(sampler, slots=300, block_steps=20, sde=sde)
    work = concatenate_work([make_work(0, [1, 6, 14, 20], chains), make_work(NO_TARGET, 20, chains)])
    found, state = ends(engine, work, np.full((1, *SHAPE), x, np.float32))
    for target, level in ((0, 1), (0, 6), (0, 14), (0, 20), (NO_TARGET, 20)):
        values = np.concatenate([found[target, level, chain].ravel() for chain in range(chains)])
        start = x if target == 0 else 0.0  # where the prior and the last marginal agree to 1e-4
        mean, std = chain_end(sde, engine.grid, sampler, MEAN, STD, level, start)
        assert abs(values.mean() - mean) < 4.5 * std / np.sqrt(len(values))
        assert abs(values.std() / std - 1) < 4.5 / np.sqrt(2 * len(values))
        assert abs(values.std() / std - 1.2) > 4.5 / np.sqrt(2 * len(values))
    assert state.num_useful == work.num_steps * (2 if sampler == "probability_flow" else 1)


def test_t_prime_curve_is_the_closed_form_tail():
    """Detector `first pixel > b`: the whole curve q(t) is a normal tail, level by level."""
    num_levels, chains, x, b = 20, 400, 1.0, 0.5
    engine = gaussian_engine(num_levels=num_levels, slots=256, block_steps=20)
    work = make_work(0, np.arange(1, num_levels + 1), chains)
    found, _ = ends(engine, work, np.full((1, *SHAPE), x, np.float32))
    z = []
    for level in range(1, num_levels + 1):
        hits = sum(found[0, level, chain][0, 0, 0] > b for chain in range(chains))
        mean, std = chain_end(SDE, engine.grid, "ancestral", MEAN, STD, level, x)
        q = norm.sf(b, mean, std)
        z.append((hits - chains * q) / np.sqrt(chains * q * (1 - q) + 1e-9) if 1e-3 < q < 1 - 1e-3 else 0.0)
    assert np.abs(z).max() < 4.5
    assert np.count_nonzero(z) > 10
    # Shifted by one level the curve does not fit.
    shifted = [
        norm.sf(b, *chain_end(SDE, engine.grid, "ancestral", MEAN, STD, max(level - 2, 1), x)) for level in (6, 7)
    ]
    observed = [np.mean([found[0, level, c][0, 0, 0] > b for c in range(chains)]) for level in (6, 7)]
    assert abs(observed[0] - shifted[0]) > 4.5 * np.sqrt(shifted[0] * (1 - shifted[0]) / chains) or abs(
        observed[1] - shifted[1]
    ) > 4.5 * np.sqrt(shifted[1] * (1 - shifted[1]) / chains)


@pytest.fixture(scope="module")
def reference():
    work = mixed_work(20)
    targets = np.stack([np.full(SHAPE, 0.9, np.float32), np.full(SHAPE, -0.4, np.float32)])
    found, state = ends(gaussian_engine(devices=jax.devices()[:1]), work, targets)
    assert len(found) == work.num_chains
    assert state.num_useful == work.num_steps
    return work, targets, found


@pytest.mark.parametrize(("slots", "block_steps"), [(2, 50), (5, 3), (64, 100)])
def test_images_do_not_depend_on_slots_or_blocks(reference, slots, block_steps):
    work, targets, expected = reference
    found, state = ends(gaussian_engine(slots=slots, block_steps=block_steps), work, targets)
    assert found.keys() == expected.keys()
    for item, image in expected.items():
        np.testing.assert_array_equal(found[item], image)
    assert state.num_useful == work.num_steps <= state.num_executed


@pytest.mark.parametrize("sampler", ["predictor_corrector", "probability_flow", "dpm_solver"])
def test_other_samplers_do_not_depend_on_slots_either(sampler):
    """Those with a memory, loops of their own or norms of an image: slots are left and taken at different steps."""
    work, targets = mixed_work(8), np.stack([np.full(SHAPE, v, np.float32) for v in (0.9, -0.4)])
    expected, state = ends(gaussian_engine(sampler, 8, slots=64, devices=jax.devices()[:1]), work, targets)
    found, _ = ends(gaussian_engine(sampler, 8, slots=3, block_steps=2), work, targets)
    assert found.keys() == expected.keys()
    for item, image in expected.items():
        np.testing.assert_array_equal(found[item], image)
    assert state.num_useful == work.num_steps * {"dpm_solver": 1}.get(sampler, 2)


def test_images_depend_on_the_key(reference):
    work, targets, expected = reference
    found, _ = ends(gaussian_engine(), work, targets, key=1)
    assert not any(np.array_equal(found[item], image) for item, image in expected.items())


def test_chains_of_one_target_and_level_differ(reference):
    _, _, found = reference
    assert len({image.tobytes() for image in found.values()}) == len(found)


_EIGHT = """
import sys; sys.path.insert(0, {root!r})
import jax, numpy as np
from tests.test_chains import *
assert len(jax.devices()) == 8
work = mixed_work(20)
targets = np.stack([np.full(SHAPE, 0.9, np.float32), np.full(SHAPE, -0.4, np.float32)])
found, state = ends(gaussian_engine(slots=4, block_steps=9), work, targets)
large = concatenate_work([make_work([[0], [1]], np.arange(1, 151), 7), make_work(NO_TARGET, 150, 61)])
engine, slowest = gaussian_engine(num_levels=150, slots=8, block_steps=20), 0
before = np.zeros(8, np.int64)
for block in run_chains(engine, None, targets, large, key=jax.random.key(0)):
    slowest += (block.state.executed - before).max()
    before = block.state.executed
counts = dict(useful=block.state.useful, executed=before, slowest=slowest, steps=large.num_steps)
np.savez(sys.argv[1], items=np.asarray(list(found)), images=np.stack(list(found.values())), **counts)
"""


def test_images_do_not_depend_on_devices_which_end_together(reference, tmp_path):
    work, _, expected = reference
    root = str(Path(__file__).resolve().parents[1])
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    # conftest is not loaded there, so the device count is this one.
    subprocess.run(
        [sys.executable, "-c", _EIGHT.format(root=root), tmp_path / "out.npz"], env=env, check=True, timeout=240
    )
    with np.load(tmp_path / "out.npz") as out:
        assert len(out["items"]) == len(expected)
        for item, image in zip(out["items"], out["images"], strict=True):
            np.testing.assert_array_equal(image, expected[tuple(int(i) for i in item)])
        # Work that does not divide evenly: each device is within one percent of the mean, and so is what all wait for.
        assert out["useful"].shape == (8,)
        assert out["useful"].sum() == out["steps"]
        for share in (out["useful"], out["executed"]):
            assert np.abs(share / share.mean() - 1).max() <= 0.01
        assert out["slowest"] / out["executed"].mean() - 1 <= 0.01


@pytest.mark.parametrize("num_queues", [1, 3, 7])
def test_queues_share_out_all_items_once(num_queues):
    """Against a plain list of all items."""
    work = mixed_work(9)
    items = [
        (target, level, first + i) for target, level, first, chains in zip(*work, strict=True) for i in range(chains)
    ]
    assert [tuple(item) for item in zip(*work.items(np.arange(work.num_chains)), strict=True)] == items
    assert [level for _, level, _ in items] == sorted((level for _, level, _ in items), reverse=True)
    assert len(set(items)) == len(items) == 9 * 3 + 3 * 3 + 5
    for queue in range(num_queues):
        share, own = work.share(queue, num_queues), items[queue::num_queues]
        assert share.num_chains == len(own)
        assert share.num_steps == sum(level for _, level, _ in own)


def test_work_of_two_billion_chains_takes_no_memory():
    work = make_work(0, np.arange(1, 1001), 2_147_483)
    assert work.num_chains == 2_147_483_000
    assert [int(column[0]) for column in work.items(np.asarray([work.num_chains - 1]))] == [0, 1, 2_147_482]
    assert work.num_steps == 2_147_483 * 500_500


def test_memory_does_not_grow_with_chains():
    """Ten times the chains, the same peak within a tenth; a list of them all would be several times that peak."""
    engine, targets, peaks = gaussian_engine(num_levels=3, slots=1024, block_steps=60), np.zeros((1, *SHAPE)), []

    def consume(block, tally):
        np.add.at(tally["n"], block.level, 1)

    for chains in (2_000, 5_000, 50_000):
        tally, work = {"n": np.zeros(4, np.int64)}, make_work(0, [1, 2, 3], chains)
        tracemalloc.start()
        run_saved(
            engine, None, targets, work, key=jax.random.key(0), tally=tally, consume=consume, label="test"
        )  # fmt: skip
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert tally["n"].tolist() == [0, chains, chains, chains]
    # The first run compiles.
    assert peaks[2] < 1.1 * peaks[1]


_RESIDENT = """
import sys
sys.path.insert(0, {root!r})
from tests.test_chains import *

shape = (32, 32, 1)
engine = gaussian_engine(num_levels=2, slots=1024, block_steps=60, shape=shape)
for chains in (20_000, 20_000, 200_000):
    run_saved(
        engine, None, np.zeros((1, *shape)), make_work(0, 1, chains), key=jax.random.key(0), label="test",
        tally={{"n": np.zeros((), np.int64)}}, consume=lambda block, tally: np.add(tally["n"], len(block.rows), tally["n"]),
    )
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""  # fmt: skip


def test_the_process_does_not_grow_with_chains():
    """What the operating system counts, images and device buffers among it: those of all chains would be 820 MB.

    Its own peak: `ru_maxrss` would begin with that of the process that started it.
    """
    script = _RESIDENT.format(root=str(Path(__file__).resolve().parents[1]))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    _, few, many = map(int, found.stdout.split())  # the first run compiles
    assert many < 1.1 * few


def test_slots_are_kept_busy():
    """The paper's grid at full size: 1000 levels x 16 chains in 1024 slots, useful evaluations at least 0.98."""
    num_levels, chains = 1000, 16
    grid = time_grid(SDE, num_levels)
    engine = make_engine(
        lambda _: SAMPLERS["ancestral"](SDE, grid, lambda x, t: -x),
        grid,
        (1, 1, 1),
        EngineSettings(slots=1024, block_steps=500),
        devices=jax.devices()[:1],
    )
    work, finished, state = make_work(0, np.arange(1, num_levels + 1), chains), 0, None
    for block in run_chains(engine, None, np.zeros((1, 1, 1, 1), np.float32), work, key=jax.random.key(0)):
        finished += len(block.rows)
        state = block.state
    assert finished == num_levels * chains
    assert state.num_useful == chains * num_levels * (num_levels + 1) // 2  # counted by hand, not by the engine
    assert state.num_useful / state.num_executed >= 0.98


def test_one_compile_for_any_work():
    traces = []
    grid = time_grid(SDE, 8)

    def score_fn(x, t):
        traces.append(1)
        return -x

    engine = make_engine(lambda _: SAMPLERS["ancestral"](SDE, grid, score_fn), grid, SHAPE, EngineSettings(8, 4))
    for num_targets, work in (
        (1, make_work(0, 8, 40)),
        (3, make_work(2, np.arange(1, 9), 1)),
        (40, make_work(np.arange(40)[:, None], [2, 5], 2)),
        (1, make_work(NO_TARGET, 8, 1)),
    ):
        ends(engine, work, np.zeros((num_targets, *SHAPE), np.float32))
    assert len(traces) == 1
    assert engine.advance._cache_size() == 1


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_run_ends_with_the_same_tally(tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr("fpjax.engine.slots.SAVE_EVERY_S", -1.0)
    work, targets = mixed_work(20), np.zeros((2, *SHAPE), np.float32)
    engine, log = gaussian_engine(slots=4, block_steps=5), MetricsLog(tmp_path / "metrics.jsonl")

    class Killed(Exception):
        pass

    def go(path, stop):
        blocks = []

        def consume(block, tally):
            if len(blocks) == stop:
                raise Killed
            blocks.append(1)
            images = np.asarray(block.images)[block.rows]
            np.add.at(tally["sum"], block.level, images.sum(axis=(1, 2, 3)).astype(np.float64))
            np.add.at(tally["chains"], block.level, 1)

        tally = {"sum": np.zeros(21), "chains": np.zeros(21, np.int64)}
        state = run_saved(
            engine,
            None,
            targets,
            work,
            key=jax.random.key(3),
            tally=tally,
            consume=consume,
            path=path,
            log=log,
            label="test",
        )
        return tally, state.num_useful, len(blocks)

    expected, useful, all_blocks = go(tmp_path / "whole.npz", None)
    with pytest.raises(Killed):
        go(tmp_path / "part.npz", stop_after)
    assert (tmp_path / "part.npz").is_file()
    tally, again, blocks = go(tmp_path / "part.npz", None)
    assert blocks == all_blocks - stop_after  # it went on, it did not start over
    assert again == useful
    for name in expected:
        np.testing.assert_array_equal(tally[name], expected[name])
    assert tally["chains"].sum() == work.num_chains


def test_a_state_of_other_work_grid_or_key_is_not_taken_up(tmp_path, monkeypatch):
    """The run starts over: its tally is that of the work asked for now, all of it."""
    monkeypatch.setattr("fpjax.engine.slots.SAVE_EVERY_S", -1.0)
    targets, done = np.zeros((1, *SHAPE), np.float32), []
    small, fine = (gaussian_engine(num_levels=levels, slots=4, block_steps=5) for levels in (20, 21))
    for engine, chains, seed in ((small, 30, 0), (small, 31, 0), (small, 31, 1), (fine, 31, 1)):
        tally = {"n": np.zeros(1, np.int64)}

        def consume(block, tally):
            tally["n"] += len(block.rows)

        run_saved(
            engine,
            None,
            targets,
            make_work(0, 5, chains),
            key=jax.random.key(seed),
            tally=tally,
            consume=consume,
            path=tmp_path / "s.npz",
            label="test",
        )
        assert (tmp_path / "s.npz").is_file()
        done.append(int(tally["n"][0]))
    assert done == [30, 31, 31, 31]


def test_parameters_on_one_device_serve_all():
    """As checkpoints are restored: committed to the first device, with slots on two."""
    assert len(jax.devices()) == 2
    grid = time_grid(SDE, 8)
    engine = make_engine(
        lambda params: SAMPLERS["ancestral"](SDE, grid, lambda x, t: params * x), grid, SHAPE, EngineSettings(4, 4)
    )
    params = jax.device_put(jnp.asarray(-1.0), jax.devices()[0])
    work = make_work(NO_TARGET, 8, 20)
    blocks = run_chains(engine, params, np.zeros((1, *SHAPE), np.float32), work, key=jax.random.key(0))
    assert sum(len(block.rows) for block in blocks) == 20


def test_a_non_finite_chain_stops_and_is_named():
    grid = time_grid(SDE, 10)

    def score_fn(x, t):
        return jnp.where(t > 0.5, jnp.nan, -x)

    engine = make_engine(lambda _: SAMPLERS["ancestral"](SDE, grid, score_fn), grid, SHAPE, EngineSettings(4, 20))
    with pytest.raises(StageError, match=r"chain 0 of target 0 at level 9 became non-finite"):
        ends(engine, make_work(0, [3, 9], 1), np.zeros((1, *SHAPE), np.float32))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: make_work(0, 21, 1), r"levels: got \[21\], expected integers in 1..20; fix"),
        (lambda: make_work(0, [4, 0], 1), r"levels: got \[0\]"),
        (lambda: make_work(2, 5, 1), r"work targets: got \[2\], expected rows of the 1 targets"),
        (lambda: make_work(NO_TARGET, 5, 1), "plain samples: got a level below N"),
        (lambda: make_work(0, np.zeros(0, int), 1), "work: got no chains in 0 groups"),
        (lambda: make_work(0, [1, 2], 0), "work: got no chains in 2 groups"),
        (lambda: make_work(0, [1, 2], [3, -1]), "work: got a negative number of chains"),
        (lambda: make_work(0, [1, 2], 2**30), "work: got 2,147,483,648 chains, expected at most 2,147,483,647"),
        (lambda: make_work(0, 1, 2, first=2**31 - 2), "work: got 2,147,483,648 chains"),
        (lambda: make_work(0, np.arange(100), 2**62), "work: got 461,.* chains"),
    ],
)
def test_bad_work_is_refused(work, message):
    with pytest.raises(RequestError, match=message):
        ends(gaussian_engine(), work(), np.zeros((1, *SHAPE), np.float32))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((1, 2, 2, 3)), r"targets: got shape \(1, 2, 2, 3\), expected \(k, 2, 2, 1\)"),
        (np.zeros(SHAPE), r"targets: got shape \(2, 2, 1\)"),
        (np.zeros((0, *SHAPE)), "targets: got shape"),
        (np.full((1, *SHAPE), 128.0), r"targets: got values from 128 to 128, expected model range \[-1, 1\]"),
        (np.full((1, *SHAPE), np.nan), "targets: got values from nan"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(RequestError, match=message):
        ends(gaussian_engine(), make_work(0, 5, 1), targets)
