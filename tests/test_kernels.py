"""The kernels, interpreted, against the same mathematics in plain JAX."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.compilation import jit_once
from fpjax.diffusion.sampling import make_sampler
from fpjax.engine.chains import make_engine, run_chains
from fpjax.engine.work import make_work
from fpjax.models.kernels import fused_attention, fused_norm
from fpjax.models.layers import GroupNorm
from fpjax.models.unet import UNet
from fpjax.run import pipeline
from fpjax.run.config import make_config
from fpjax.run.stages import open_job
from fpjax.stats.binomial import clopper_pearson

from .test_config import config_of
from .test_models import TINY


def rows(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def close(found, expected, tolerance):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * float(jnp.abs(other).max()))


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("channels", "groups", "side"), [(128, 32, 7), (384, 32, 4), (8, 4, 9), (64, 1, 3), (24, 2, 2)]
)
def test_norm_and_its_gradients_are_those_of_plain_jax(channels, groups, side, silu):
    x, shift, scale, bias, grad = rows(
        0, (2, side**2, channels), (2, channels), (channels,), (channels,), (2, side**2, channels)
    )
    x = 3 * x + 5

    def plain(x, shift, scale, bias):
        image = (x + shift[:, None]).reshape(2, side, side, channels)
        y = GroupNorm(groups, 1e-5).apply({"params": {"scale": scale, "bias": bias}}, image).reshape(x.shape)
        return jax.nn.silu(y) if silu else y

    def fused(x, shift, scale, bias):
        return fused_norm(x, shift, scale, bias, groups, 1e-5, silu, jnp.float32)

    close(fused(x, shift, scale, bias), plain(x, shift, scale, bias), 1e-5)
    expected = jax.vjp(plain, x, shift, scale, bias)[1](grad)
    # The shift's own gradient nearly cancels within groups, so it's held against the input's size.
    found = jax.vjp(fused, x, shift, scale, bias)[1](grad)
    close((found[0], found[2:]), (expected[0], expected[2:]), 1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


@pytest.mark.parametrize(("tokens", "heads", "size"), [(49, 2, 8), (16, 1, 16), (196, 2, 8), (5, 3, 4), (33, 1, 24)])
def test_attention_and_its_gradients_are_those_of_plain_jax(tokens, heads, size):
    q, k, v, grad = rows(1, *[(2, tokens, heads, size)] * 4)
    with jax.default_matmul_precision("highest"):
        close(fused_attention(q, k, v), jax.nn.dot_product_attention(q, k, v), 1e-5)
        expected = jax.vjp(jax.nn.dot_product_attention, q, k, v)[1](grad)
        close(jax.vjp(fused_attention, q, k, v)[1](grad), expected, 1e-5)


def test_a_constant_group_is_its_bias_and_nothing_is_lost_to_rounding():
    x = jnp.full((1, 49, 8), 1000.0)
    y = fused_norm(x, jnp.zeros((1, 8)), jnp.ones(8), jnp.full(8, 0.5), 2, 1e-5, False, jnp.float32)
    np.testing.assert_allclose(y, 0.5, atol=1e-6)


def test_each_image_is_by_itself_under_vmap():
    x, shift = rows(2, (3, 16, 8), (3, 8))
    one, zero = jnp.ones(8), jnp.zeros(8)

    def norm(x, shift):
        return fused_norm(x, shift, one, zero, 2, 1e-5, True, jnp.float32)

    alone = jax.vmap(lambda x, shift: norm(x[None], shift[None]))(x, shift)[:, 0]
    np.testing.assert_allclose(alone, norm(x, shift), atol=1e-6)
    q, k, v = rows(3, *[(3, 9, 2, 4)] * 3)

    def mix(q, k, v):
        mixed: Any = fused_attention(q[None], k[None], v[None])
        return mixed[0]

    alone = jax.vmap(mix)(q, k, v)
    np.testing.assert_allclose(alone, fused_attention(q, k, v), atol=1e-6)


class TestKernels:
    """The whole network by kernels, interpreted, is the one by plain XLA, and so are its gradients."""

    @pytest.mark.parametrize("changes", [{}, {"act_fn": "mish", "resnet_time_scale_shift": "scale_shift"}])
    def test_network_and_gradients(self, changes):
        x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([10.0, 500.0])
        plain = UNet(dataclasses.replace(TINY, dropout=0.0, **changes))
        fused = UNet(dataclasses.replace(plain.settings, kernels="pallas"))
        params = jit_once(plain.init)(jax.random.key(1), x, t)["params"]

        def loss(model, params):
            return jnp.mean((model.apply({"params": params}, x, t, train=True) - 1) ** 2)

        expected, found = (jit_once(jax.value_and_grad(partial(loss, model)))(params) for model in (plain, fused))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)

    def test_bfloat16_kernels_stay_near_float32(self):
        x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([10.0, 500.0])
        half = UNet(dataclasses.replace(TINY, dtype="bfloat16", kernels="pallas"))
        params = jit_once(UNet(TINY).init)(jax.random.key(1), x, t)["params"]
        exact, rough = (jit_once(model.apply)({"params": params}, x, t) for model in (UNet(TINY), half))
        assert 1e-5 < float(jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact)) < 3e-2


def test_bfloat16_and_float32_return_alike_on_a_trained_model(smoke):
    """q_M(t) of a member, by one distance: with the same keys each lies in the other's interval."""
    job, levels, chains = open_job(make_config(config_of("smoke")), smoke[0]), [2, 5, 8], 128
    work = make_work(0, levels, chains)

    def distances(dtype):
        """From the member, by level: rms of each chain's end."""

        def sampler(params):
            return make_sampler(job.sampler, job.process, job.grid, job.make_score(params, dtype=dtype))

        engine = make_engine(sampler, job.grid, job.image_shape, job.config.engine)
        found = np.zeros((job.grid.num_levels + 1, chains))
        for block in run_chains(engine, job.score_params, job.targets, work, key=jax.random.key(3)):
            ends = np.asarray(block.images)[block.rows]
            found[block.level, block.chain] = np.sqrt(np.mean((ends - job.targets[0]) ** 2, axis=(1, 2, 3)))
        return found[levels]

    exact, rough = distances("float32"), distances("bfloat16")
    assert 0 < np.abs(exact - rough).max() < 0.1
    near = np.median(exact)
    hits = [(found < near).sum(axis=1) for found in (exact, rough)]
    assert len({*hits[0].tolist()}) > 1  # it falls with t
    for one, other in (hits, hits[::-1]):
        low, high = clopper_pearson(one, np.full(len(levels), chains))
        assert np.all((low <= other / chains) & (other / chains <= high))


@pytest.mark.slow
def test_the_whole_audit_by_kernels_is_that_by_xla(tmp_path):
    """Interpreted, with attention: exit status, what is written down, losses and networks to rounding, finite densities."""
    losses, outputs = {}, {}
    for kernels in ("xla", "pallas"):
        raw, workdir = config_of("smoke"), tmp_path / kernels
        raw.model.update({"attention": (True,), "kernels": kernels})
        assert pipeline.main(raw, workdir=str(workdir)) == 0
        job = open_job(make_config(raw), workdir)
        assert json.loads((workdir / "config.json").read_text())["config"]["model"]["kernels"] == kernels
        bits = json.loads((workdir / "likelihood.json").read_text())["densities"]["bits_per_dim"]
        assert np.isfinite(bits).all()
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses[kernels] = [line["loss"] for line in lines if "loss_by_t" in line]
        x, t = jnp.asarray(job.targets), jnp.linspace(1.0, 900.0, len(job.targets))
        outputs[kernels] = job.model.apply({"params": job.score_params}, x, t)
    assert len(losses["xla"]) == 3
    np.testing.assert_allclose(losses["pallas"], losses["xla"], rtol=1e-3)
    # Not the weights: a bias of keys changes nothing, so that its steps are those of rounding alone.
    np.testing.assert_allclose(outputs["pallas"], outputs["xla"], atol=1e-4)
