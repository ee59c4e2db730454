import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fpjax.core.checkpoints import Checkpoints
from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError, StageError
from fpjax.core.metrics import MetricsLog
from fpjax.diffusion.score import dsm_losses
from fpjax.diffusion.sde import SubVP
from fpjax.diffusion.training import TrainingSettings, fit, init_state, make_train_step, training_mesh
from fpjax.models.unet import UNet, UNetSettings

from .conftest import ROOT

SETTINGS = TrainingSettings(
    num_steps=30, batch_size=8, learning_rate=0.05, warmup_steps=5, log_every=4, checkpoint_every=8
)
DATA = np.random.default_rng(0).normal(2.0, 1.0, (64, 3)).astype(np.float32)


def loss_fn(params, rows, keys):
    t, noise = jax.vmap(jax.random.uniform)(keys), jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return t, jnp.mean((params["w"] - rows) ** 2, axis=1) + 0.01 * jnp.sum(params["w"] * noise, axis=1)


def train(path, settings=SETTINGS, loss=loss_fn, **options):
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        return fit(
            loss,
            {"w": jnp.zeros(3)},
            DATA,
            settings,
            key=jax.random.key(1),
            checkpoints=checkpoints,
            log=MetricsLog(path / "metrics.jsonl"),
            **options,
        )
    finally:
        checkpoints.close()


def looks(path):
    """What was logged."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_close(a, b, *, rtol=1e-5, atol=1e-6):
    """The same pytrees, up to rounding."""
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("stop", "settings"), [(8, SETTINGS), (23, dataclasses.replace(SETTINGS, accumulate=2, ema_extra=(0.9, 0.5)))]
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop, settings):
    whole = train(tmp_path / "whole", settings)
    calls = []

    class Killed(Exception):
        pass

    class Dying(MetricsLog):
        def write(self, stage, **values):
            calls.append(values["step"])
            if values["step"] > stop:
                raise Killed

    checkpoints = Checkpoints(tmp_path / "part" / "checkpoints")
    with pytest.raises(Killed):
        fit(
            loss_fn,
            {"w": jnp.zeros(3)},
            DATA,
            settings,
            key=jax.random.key(1),
            checkpoints=checkpoints,
            log=Dying(tmp_path / "part" / "metrics.jsonl"),
        )
    assert checkpoints.latest_step == stop // 8 * 8
    checkpoints.close()
    resumed = train(tmp_path / "part", settings)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(resumed.step) == 30
    assert np.all(np.asarray(resumed.params["w"]) > 0.3)  # it learned


@pytest.mark.parametrize("accumulate", [1, 4])
def test_scanned_steps_are_the_single_ones(tmp_path, monkeypatch, accumulate):
    """Accelerators take many steps in one dispatch and loop over parts; the draws and the result are the same."""
    settings = dataclasses.replace(SETTINGS, accumulate=accumulate, checkpoint_every=20)
    single = train(tmp_path / "single", settings)
    monkeypatch.setattr("fpjax.diffusion.training.jax.default_backend", lambda: "gpu")
    scanned = train(tmp_path / "scanned", settings)
    assert_close(single, scanned)
    for a, b in zip(looks(tmp_path / "single"), looks(tmp_path / "scanned"), strict=True):
        for name in ("loss", "grad_norm", "loss_by_t"):
            np.testing.assert_allclose(np.asarray(a[name], float), np.asarray(b[name], float), rtol=1e-4)
    # What was written in the background is what came out.
    checkpoints = Checkpoints(tmp_path / "scanned" / "checkpoints")
    assert checkpoints.latest_step == 30
    assert_close(checkpoints.restore(scanned), scanned, rtol=0, atol=0)
    checkpoints.close()


def test_devices_share_a_batch_and_each_others_checkpoints(tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_every=20)
    half, devices = dataclasses.replace(settings, num_steps=16), jax.devices()
    alone = train(tmp_path / "alone", settings, devices=devices[:1])
    for first, then in ((1, 2), (2, 1)):
        train(tmp_path / f"{first}", half, devices=devices[:first])
        shared = train(tmp_path / f"{first}", settings, devices=devices[:then])
        assert len(shared.params["w"].devices()) == then
        assert_close(alone, shared)
    assert not np.allclose(alone.params["w"], shared.ema_params["w"], atol=1e-4)


def test_each_device_does_its_share_of_the_work():
    settings = TrainingSettings(batch_size=64, warmup_steps=0)
    params, data = {"w": jnp.ones((64, 256))}, jnp.ones((8, 64))

    def matmul(params, rows, keys):
        return jnp.zeros(len(rows)), jnp.sum((rows @ params["w"]) ** 2, axis=1)

    def flops(mesh):
        step = jax.jit(make_train_step(matmul, settings, mesh=mesh))
        return step.lower(init_state(params, settings), data, jax.random.key(0)).compile().cost_analysis()["flops"]

    alone = flops(None)
    assert alone > 4 * 64 * 64 * 256
    assert flops(training_mesh(settings)) < 0.7 * alone


def test_a_batch_that_devices_cannot_share_is_refused_before_anything(tmp_path):
    for batch, accumulate, parts in ((9, 1, 2), (6, 6, 12)):
        settings = dataclasses.replace(SETTINGS, batch_size=batch, accumulate=accumulate)
        with pytest.raises(
            RequestError, match=f"score.batch_size: got {batch}, expected a multiple of {parts}, for 2 "
        ):
            train(tmp_path, settings)
    assert training_mesh(dataclasses.replace(SETTINGS, batch_size=9), devices=jax.devices()[:1]).size == 1


class Convolutions(nn.Module):
    """Two of them."""

    @nn.compact
    def __call__(self, x, t, train=False):
        return nn.Conv(1, (3, 3))(nn.silu(nn.Conv(4, (3, 3))(x) + t[:, None, None, None] / 999))


def test_parts_of_a_batch_give_its_gradient():
    """Of a network, with its own noise for each image; other draws give another."""
    sde, model = SubVP(), Convolutions()
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 4, 4, 1)), jnp.float32)
    params = model.init(jax.random.key(0), images[:1], jnp.zeros(1))["params"]

    def step(accumulate):
        settings = TrainingSettings(batch_size=8, accumulate=accumulate, warmup_steps=0)
        run = jit_once(make_train_step(lambda p, x, keys: dsm_losses(sde, model, p, x, key=keys), settings))
        return lambda key: run(init_state(params, settings), images, jax.random.key(key))

    in_one, in_parts = step(1), step(2)
    (whole, seen), (parts, seen_in_parts), (_, seen_else) = in_one(0), in_parts(0), in_one(1)
    assert_close(seen, seen_in_parts, rtol=1e-4)
    # Adam's first moment is the gradient; its step is blind to the gradient's size.
    assert_close(whole.opt_state[1][0].mu, parts.opt_state[1][0].mu, rtol=1e-3)
    assert abs(float(seen_else["grad_norm"] / seen["grad_norm"]) - 1) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("backend", "loops"), [("cpu", False), ("gpu", True)])
def test_no_gradient_stands_in_a_loop_on_cpu(monkeypatch, accumulate, backend, loops):
    """There a convolution's is ten times slower, in a scan that is unrolled too."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    settings = dataclasses.replace(SETTINGS, accumulate=accumulate)
    state = init_state({"w": jnp.zeros(3)}, settings)
    program = str(jax.make_jaxpr(make_train_step(loss_fn, settings))(state, DATA, jax.random.key(0)))
    assert ("scan[" in program) == (loops and accumulate > 1)


def test_ema_warms_up_as_stated():
    limits = (0.3, 0.15, 0.9)
    settings = TrainingSettings(
        batch_size=4, learning_rate=0.1, warmup_steps=0, ema_decay=limits[0], ema_extra=limits[1:]
    )
    step = jax.jit(make_train_step(loss_fn, settings))
    state = init_state({"w": jnp.zeros(3)}, settings)
    tracks = np.zeros((3, 3))
    for n in range(6):
        state, _ = step(state, jnp.asarray(DATA), jax.random.key(0))
        decays = np.asarray([[min(limit, (1 + n) / (10 + n))] for limit in limits])
        tracks = decays * tracks + (1 - decays) * np.asarray(state.params["w"])
    found = np.stack([track["w"] for track in (state.ema_params, *state.ema_extra)])
    np.testing.assert_allclose(found, tracks, rtol=1e-5)
    assert np.ptp(tracks, axis=0).min() > 1e-3  # three different ones


@pytest.mark.parametrize(("accumulate", "backend"), [(1, "cpu"), (4, "gpu")])
def test_non_finite_loss_stops_with_step_and_last_good_checkpoint(tmp_path, monkeypatch, accumulate, backend):
    settings = dataclasses.replace(SETTINGS, accumulate=accumulate)

    def exploding(params, rows, keys):
        t, losses = loss_fn(params, rows, keys)
        return t, losses / jnp.where(jnp.max(params["w"]) > 0.5, 0.0, 1.0)

    step, state = jax.jit(make_train_step(exploding, settings)), init_state({"w": jnp.zeros(3)}, settings)
    losses = []
    while not losses or np.isfinite(losses[-1]):
        state, metrics = step(state, jnp.asarray(DATA), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert 8 < len(losses) < 16
    monkeypatch.setattr("fpjax.diffusion.training.jax.default_backend", lambda: backend)
    text = rf"loss (inf|nan), .* at step {len(losses)}; last good checkpoint at step 8; lower the learning rate"
    with pytest.raises(StageError, match=text):
        train(tmp_path, settings, loss=exploding)
    assert np.isfinite([look["loss"] for look in looks(tmp_path)]).all()


def test_loss_is_logged_by_noise_level(tmp_path):
    """Where the loss is known in each tenth of t; a tenth without images has none."""
    settings = TrainingSettings(num_steps=6, batch_size=512, warmup_steps=0, log_every=4)

    def known(params, rows, keys):
        t = jax.vmap(jax.random.uniform)(keys)
        t = jnp.where((t > 0.3) & (t < 0.4), 0.55, t)
        return t, jnp.floor(10 * t) + 0.0 * jnp.sum(params["w"])

    train(tmp_path, settings, known)
    last = looks(tmp_path)[-1]
    assert last["step"] == 6
    assert last["loss_by_t"] == [i if i != 3 else None for i in range(10)]
    assert last["images_per_s"] == pytest.approx(512 * last["steps_per_s"])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_tflops_are_those_of_the_arithmetic(tmp_path, accumulate):
    """A matrix product and its gradient for the weights are 4 n d k FLOPs, in parts or not."""

    def matmul(params, rows, keys):
        weights = params["w"][:, None] * jnp.ones((3, 4096))
        return jnp.zeros(len(rows)), jnp.mean((rows @ weights) ** 2, axis=1)

    settings = TrainingSettings(num_steps=1, batch_size=64, accumulate=accumulate, warmup_steps=0)
    train(tmp_path, settings, matmul)
    (look,) = looks(tmp_path)
    flops = 1e12 * look["tflop_per_s"] / look["steps_per_s"]
    assert 0.9 < flops / (4 * 64 * 3 * 4096 + 3 * 64 * 4096) < 1.4


def test_samples_on_the_way_leave_the_training_as_it_is(tmp_path):
    settings = dataclasses.replace(SETTINGS, sample_every=10, checkpoint_every=30)
    seen = {}
    sampled = train(tmp_path / "sampled", settings, sample=lambda step, ema: seen.update({step: np.asarray(ema["w"])}))
    never = train(tmp_path / "never", dataclasses.replace(settings, sample_every=0))
    assert_close(sampled, never, rtol=0, atol=0)
    assert list(seen) == [10, 20, 30]
    np.testing.assert_array_equal(seen[30], never.ema_params["w"])
    assert np.abs(seen[10] - seen[30]).max() > 0.01


def test_newest_checkpoints_and_every_nth_stay(tmp_path):
    for name, keep_every, stay in (("all", 10, {10, 20, 25, 26}), ("last", 0, {25, 26})):
        settings = dataclasses.replace(SETTINGS, checkpoint_every=5, keep_every=keep_every)
        checkpoints = Checkpoints(tmp_path / name, keep_last=settings.keep_last, keep_every=settings.keep_every)
        for step in (5, 10, 15, 20, 25, 26):
            checkpoints.save(step, {"w": jnp.zeros(1)})
        checkpoints.close()
        assert {int(path.name) for path in (tmp_path / name).iterdir() if path.name.isdigit()} == stay
    with pytest.raises(RequestError, match="score.keep_every: got 7, expected 0, or a multiple of .*, 5"):
        dataclasses.replace(settings, keep_every=7)


def test_a_checkpoint_that_fails_in_the_background_is_reported(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "score")
    checkpoints.save(3, {"w": jnp.zeros(3)})

    def full():
        raise RuntimeError("write failed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(StageError, match=r"could not be written \(write failed\); the last good one is at step 3"):
            checkpoints.wait()
    checkpoints.close()


def test_warm_up_and_clipping_bound_the_first_update():
    settings = TrainingSettings(num_steps=5, batch_size=4, learning_rate=0.1, warmup_steps=10)
    step = jax.jit(make_train_step(loss_fn, settings))
    state, _ = step(init_state({"w": jnp.zeros(3)}, settings), jnp.asarray(DATA), jax.random.key(0))
    np.testing.assert_array_equal(state.params["w"], 0.0)  # the schedule starts at 0
    state, metrics = step(state, jnp.asarray(DATA), jax.random.key(0))
    assert np.abs(np.asarray(state.params["w"])).max() <= 0.0101
    assert float(metrics["grad_norm"]) > 0


def test_a_small_network_overfits_four_images():
    """The loss falls far below that of predicting no noise (1), and the EMA follows."""
    sde, model = (
        SubVP(),
        UNet(UNetSettings(channels=(8,), attention=(False,), layers_per_block=1, norm_num_groups=4, dropout=0.0)),
    )
    images = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 1)).astype(np.float32)
    params = jit_once(model.init)(jax.random.key(0), images[:1], jnp.zeros(1))["params"]
    settings = TrainingSettings(num_steps=300, batch_size=16, learning_rate=1e-2, warmup_steps=10)
    step = jax.jit(make_train_step(lambda p, x, keys: dsm_losses(sde, model, p, x, key=keys), settings))
    state, losses = init_state(params, settings), []
    for _ in range(300):
        state, metrics = step(state, jnp.asarray(images), jax.random.key(2))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[:3]) > 0.7
    assert np.mean(losses[-50:]) < 0.35
    many = jnp.asarray(np.repeat(images, 64, 0))
    ema_loss = jit_once(lambda params: jnp.mean(dsm_losses(sde, model, params, many, key=jax.random.key(3)).per_image))(
        state.ema_params
    )
    assert float(ema_loss) < 0.35


def test_loss_at_the_true_score_is_its_floor():
    """For one image the best prediction is exact, so the loss of a network that knows it is 0."""
    sde, image = SubVP(), jnp.full((4, 4, 1), 0.3)

    class Exact:
        def apply(self, variables, x, t, train, rngs):
            scale, std = (m[:, None, None, None] for m in sde.marginal(t / 999.0))
            return variables["params"] * (x - scale * image) / std

    images = jnp.repeat(image[None], 64, axis=0)
    assert float(jnp.mean(dsm_losses(sde, Exact(), 1.0, images, key=jax.random.key(0), t_min=0.05).per_image)) < 1e-6
    assert float(
        jnp.mean(dsm_losses(sde, Exact(), 1.5, images, key=jax.random.key(0), t_min=0.05).per_image)
    ) == pytest.approx(0.25, rel=0.1)


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    train(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(RequestError, match=r"ema_params/w: got \(3,\), expected \(5,\) of this config's architecture"):
        checkpoints.restore(init_state({"w": jnp.zeros(5)}, SETTINGS))
    checkpoints.close()
    empty = Checkpoints(tmp_path / "nothing")
    with pytest.raises(RequestError, match="got none"):
        empty.restore(init_state({"w": jnp.zeros(3)}, SETTINGS))
    empty.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, -1) for field in ("num_steps", "batch_size", "learning_rate", "grad_clip", "log_every")),
        *(("accumulate", 0), ("accumulate", 3), ("weighting", "elbo"), ("ema_extra", (0.9, 1.5))),
        *(("keep_last", 0), ("keep_every", 100), ("sample_every", -1)),
    ],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(RequestError, match=f"score.{field}"):
        TrainingSettings(**{field: value})


PROGRAM = """
import jax, shutil
from fpjax.core.compilation import use_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
directory = use_compilation_cache()
jax.jit(lambda x: x + 1)(1.0)
print(directory, len(list(directory.iterdir())) if directory else 0)
if directory:
    shutil.rmtree(directory)
    directory.write_text("no directory any more")
    jax.jit(lambda x: x + 2)(1.0)
"""


@pytest.mark.parametrize("case", ["fresh", "unwritable", "own"])
def test_compiled_programs_are_kept_where_they_can_be(tmp_path, case):
    (tmp_path / "file").touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    env |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / ("file" if case == "unwritable" else "cache"))}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")} if case == "own" else {}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    directory, entries = done.stdout.split()
    if case == "fresh":
        assert directory.startswith(str(tmp_path / "cache" / "fpjax"))
        assert int(entries) > 0
    else:
        assert directory == "None"
        assert (case == "own") == (tmp_path / "own").is_dir()
