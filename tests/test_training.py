import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.artifacts import Checkpoints, MetricsLog
from fpjax.checks import RequestError, StageError
from fpjax.models.unet import UNet, UNetSettings
from fpjax.score import dsm_loss
from fpjax.sde import SubVP
from fpjax.training import TrainingSettings, fit, init_state, jit_once, make_train_step

SETTINGS = TrainingSettings(
    num_steps=30, batch_size=8, learning_rate=0.05, warmup_steps=5, log_every=4, checkpoint_every=8
)
DATA = np.random.default_rng(0).normal(2.0, 1.0, (64, 3)).astype(np.float32)


def loss_fn(params, rows, key):
    return jnp.mean((params["w"] - rows) ** 2) + 0.01 * jnp.sum(params["w"] * jax.random.normal(key, (3,)))


def train(path, settings=SETTINGS, loss=loss_fn):
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
        )
    finally:
        checkpoints.close()


@pytest.mark.parametrize("stop", [8, 23])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    whole = train(tmp_path / "whole")
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
            SETTINGS,
            key=jax.random.key(1),
            checkpoints=checkpoints,
            log=Dying(tmp_path / "part" / "metrics.jsonl"),
        )
    assert checkpoints.latest_step == stop // 8 * 8
    checkpoints.close()
    resumed = train(tmp_path / "part")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(resumed.step) == 30
    assert np.all(np.asarray(resumed.params["w"]) > 0.3)  # it learned


def test_scanned_steps_are_the_single_ones(tmp_path, monkeypatch):
    """Accelerators take many steps in one dispatch; the draws and the result are the same."""
    single = train(tmp_path / "single")
    monkeypatch.setattr("fpjax.training.jax.default_backend", lambda: "gpu")
    scanned = train(tmp_path / "scanned")
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_ema_warms_up_as_stated():
    settings = TrainingSettings(num_steps=5, batch_size=4, learning_rate=0.1, warmup_steps=0, ema_decay=0.3)
    step = jax.jit(make_train_step(loss_fn, settings))
    state = init_state({"w": jnp.zeros(3)}, settings)
    ema = np.zeros(3)
    for n in range(6):
        state, _ = step(state, jnp.asarray(DATA), jax.random.key(0))
        decay = min(0.3, (1 + n) / (10 + n))
        ema = decay * ema + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema_params["w"], ema, rtol=1e-5)


def test_non_finite_loss_stops_with_step_and_last_good_checkpoint(tmp_path):
    def exploding(params, rows, key):
        return loss_fn(params, rows, key) / jnp.where(jnp.max(params["w"]) > 0.5, 0.0, 1.0)

    with pytest.raises(StageError, match=r"loss (inf|nan) between steps \d+ and \d+; last good checkpoint at step 8"):
        train(tmp_path, loss=exploding)


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
    step = jax.jit(make_train_step(lambda p, x, key: dsm_loss(sde, model, p, x, key=key), settings))
    state, losses = init_state(params, settings), []
    for _ in range(300):
        state, metrics = step(state, jnp.asarray(images), jax.random.key(2))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[:3]) > 0.7
    assert np.mean(losses[-50:]) < 0.35
    many = jnp.asarray(np.repeat(images, 64, 0))
    ema_loss = jit_once(lambda params: dsm_loss(sde, model, params, many, key=jax.random.key(3)))(state.ema_params)
    assert float(ema_loss) < 0.35


def test_loss_at_the_true_score_is_its_floor():
    """For one image the best prediction is exact, so the loss of a network that knows it is 0."""
    sde, image = SubVP(), jnp.full((4, 4, 1), 0.3)

    class Exact:
        def apply(self, variables, x, t, train, rngs):
            scale, std = (m[:, None, None, None] for m in sde.marginal(t / 999.0))
            return variables["params"] * (x - scale * image) / std

    images = jnp.repeat(image[None], 64, axis=0)
    assert float(dsm_loss(sde, Exact(), 1.0, images, key=jax.random.key(0), t_min=0.05)) < 1e-6
    assert float(dsm_loss(sde, Exact(), 1.5, images, key=jax.random.key(0), t_min=0.05)) == pytest.approx(0.25, rel=0.1)


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


@pytest.mark.parametrize("field", ["num_steps", "batch_size", "learning_rate", "grad_clip", "log_every"])
def test_bad_settings_are_refused(field):
    with pytest.raises(RequestError, match=f"score.{field}"):
        TrainingSettings(**{field: -1})
