import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.checks import RequestError
from fpjax.models.layers import timestep_embedding
from fpjax.models.resnet import STAGES, ResNet, ResNetSettings
from fpjax.models.unet import UNet, UNetSettings
from fpjax.score import make_score_fn
from fpjax.sde import SubVP
from fpjax.training import jit_once

TINY = UNetSettings(channels=(8, 16), attention=(False, True), layers_per_block=1, norm_num_groups=4, dropout=0.0)


def num_params(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def unet_shapes(settings, shape):
    return jax.eval_shape(UNet(settings).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[:1]))["params"]


@pytest.mark.parametrize(("attention", "expected"), [((False, True, False), 17_587_715), ((False,) * 3, 17_256_195)])
def test_unet_has_the_parameters_of_diffusers_unet2dmodel(attention, expected):
    assert num_params(unet_shapes(UNetSettings(attention=attention), (1, 28, 28, 3))) == expected


def test_resnet50_has_25557032_parameters():
    model = ResNet(ResNetSettings(stages=STAGES[50], stem="imagenet"), num_heads=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert num_params(shapes["params"]) == 25_557_032


def test_unet_attends_where_it_is_told_and_drops_out_only_in_training():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([10.0, 500.0])
    settings = UNetSettings(
        channels=(8, 16), attention=(True, False), layers_per_block=1, norm_num_groups=4, dropout=0.5
    )
    model = UNet(settings)
    params = jit_once(model.init)(jax.random.key(1), x, t)["params"]
    names = {name for name in params if "attn" in name}
    assert names == {"down0_attn0", "mid_attn", "up0_attn0", "up0_attn1"}
    apply = jit_once(model.apply)
    once, again = (apply({"params": params}, x, t) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    run = jit_once(lambda key: model.apply({"params": params}, x, t, train=True, rngs={"dropout": key}))
    dropped = [run(jax.random.key(i)) for i in (0, 1)]
    assert not np.allclose(dropped[0], dropped[1])
    assert (once.shape, once.dtype) == (x.shape, jnp.float32)


def test_unet_rows_do_not_mix_and_time_matters():
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([10.0, 500.0, 10.0])
    model = UNet(TINY)
    params = jit_once(model.init)(jax.random.key(1), x, t)["params"]
    out = model.apply({"params": params}, x, t)
    np.testing.assert_allclose(out[1], model.apply({"params": params}, x[1:2], t[1:2])[0], atol=1e-5)
    assert not np.allclose(out[1], model.apply({"params": params}, x[1:2], t[:1])[0], atol=1e-3)


def test_bfloat16_network_stays_near_float32_with_float32_parameters():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([10.0, 500.0])
    half = UNet(dataclasses.replace(TINY, dtype="bfloat16"))
    params = jit_once(half.init)(jax.random.key(1), x, t)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact, rough = UNet(TINY).apply({"params": params}, x, t), half.apply({"params": params}, x, t)
    error = float(jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact))
    assert 1e-5 < error < 3e-2


def test_score_is_minus_the_prediction_over_the_std():
    x, t = jax.random.normal(jax.random.key(0), (8, 8, 1)), jnp.asarray(0.3)
    model = UNet(TINY)
    params = jit_once(model.init)(jax.random.key(1), x[None], t[None])["params"]
    net = model.apply({"params": params}, x[None], 999.0 * t[None])[0]
    np.testing.assert_allclose(make_score_fn(SubVP(), model, params)(x, t), -net / SubVP().marginal(t).std, rtol=1e-5)


def test_timestep_embedding():
    found = np.asarray(timestep_embedding(jnp.array([0.0, 3.0]), 8))
    exponents = np.exp(-np.log(10_000) * np.arange(4) / 4)
    np.testing.assert_allclose(found[1], np.concatenate([np.cos(3 * exponents), np.sin(3 * exponents)]), rtol=1e-5)
    np.testing.assert_allclose(found[0], [1] * 4 + [0] * 4)


def test_resnet_heads_stems_and_batch_statistics():
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3)) * 3 + 1
    for stem in ("small", "imagenet"):
        model = ResNet(ResNetSettings(stages=(1, 2), width=4, stem=stem), num_heads=5)
        variables = jit_once(model.init)(jax.random.key(1), x)
        assert model.apply(variables, x).shape == (4, 5)
        _, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
        before, after = (jax.tree.leaves(v["batch_stats"])[0] for v in (variables, updated))
        assert not np.allclose(before, after)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: UNetSettings(channels=(8, 12), attention=(False, False)), "model.channels"),
        (lambda: UNetSettings(attention=(True,)), "model.attention"),
        (lambda: UNetSettings(dtype="float16"), "model.dtype"),
        (lambda: UNetSettings(dropout=1.0), "model.dropout"),
        (lambda: ResNetSettings(stages=(0,)), "resnet.stages"),
        (lambda: ResNetSettings(stem="big"), "resnet.stem"),
        (lambda: unet_shapes(TINY, (1, 7, 8, 1)), "image side"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(RequestError, match=message):
        wrong()
