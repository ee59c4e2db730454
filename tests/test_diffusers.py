"""Parity with the installed diffusers at random weights. Run with: pytest -m extra tests/test_diffusers.py."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.data.phantom import phantom_images
from fpjax.diffusion.pretrained.architecture import read_architecture
from fpjax.diffusion.pretrained.imported import read_imported
from fpjax.diffusion.pretrained.scheduler import read_scheduler
from fpjax.diffusion.sampling import SamplerSettings, make_grid, make_sampler
from fpjax.diffusion.score import make_score_fn
from fpjax.diffusion.sde import SubVP
from fpjax.models.layers import timestep_embedding
from fpjax.models.unet import UNet

from .conftest import ROOT, launch
from .stored_models import read_model, write_model

pytestmark = pytest.mark.extra
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
torch.set_num_threads(1)

D, A = "DownBlock2D", "AttnDownBlock2D"
U, B = "UpBlock2D", "AttnUpBlock2D"
BASE = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": (D, A),
    "up_block_types": (B, U),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CASES = {
    "default blocks": {},
    "three channels, 28 pixels, 32 groups": {
        "sample_size": 28,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 32, 64),
        "down_block_types": (D, A, D),
        "up_block_types": (U, B, U),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    "DDPM's own: padding 0, sines first, shift 1, one head, small eps": {
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    },
    "attention on the way up only, 8 groups, 3 layers": {
        "down_block_types": (D, D),
        "up_block_types": (B, U),
        "layers_per_block": 3,
        "norm_num_groups": 8,
    },
    "attention on the way down only, outermost": {"down_block_types": (A, D), "up_block_types": (U, U)},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "time scales and shifts, mish": {"resnet_time_scale_shift": "scale_shift", "act_fn": "mish"},
    "norm of the middle's attention": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "scaled middle, centred input, gelu": {
        "mid_block_scale_factor": 1.4142,
        "center_input_sample": True,
        "act_fn": "gelu",
    },
    "fourier": {"time_embedding_type": "fourier"},
    "steps in residual blocks": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": (A, D, D),
        "up_block_types": (U, B, U),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "one level, not square": {
        "sample_size": (5, 7),
        "block_out_channels": (8,),
        "down_block_types": (A,),
        "up_block_types": (U,),
    },
}


def randomised(model, seed=0):
    """Every parameter drawn anew, near its scale: zeros and ones would hide what is not read."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.3 * noise)
            else:
                p.copy_(noise / np.sqrt(p[0].numel()))
    return model.eval()


def theirs(**changes):
    return randomised(diffusers.UNet2DModel(**{**BASE, **changes}))


def inputs(config, n=3):
    side = config.sample_size
    shape = (n, *(side if isinstance(side, tuple | list) else (side, side)), config.in_channels)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32), np.array([1, 437, 999][:n])


def evaluate_theirs(model, x, t):
    with torch.no_grad():
        out = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t)).sample
    return out.numpy().transpose(0, 2, 3, 1)


@functools.cache
def compiled(settings):
    return jit_once(UNet(settings).apply)


def evaluate_ours(settings, params, x, t):
    with jax.default_matmul_precision("highest"):
        return np.asarray(compiled(settings)({"params": params}, x, t.astype(np.float32)))


def error(found, expected):
    """Largest relative error of an image."""
    norms = [np.linalg.norm(a.reshape(len(a), -1), axis=1) for a in (found - expected, expected)]
    return float(np.max(norms[0] / norms[1]))


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_same_in_both_directions(case, tmp_path):
    model = theirs(**CASES[case])
    model.save_pretrained(tmp_path / "theirs")
    x, t = inputs(model.config)
    expected = evaluate_theirs(model, x, t)
    found = read_model(tmp_path / "theirs")
    assert (*found.side, found.channels) == x.shape[1:]
    assert error(evaluate_ours(found.settings, found.params, x, t), expected) < 1e-5

    write_model(tmp_path / "ours", found.settings, found.params, side=found.side)
    back, report = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_array_equal(evaluate_theirs(back.eval(), x, t), expected)
    configs = [
        {k: v for k, v in json.loads((tmp_path / d / "config.json").read_text()).items() if k[0] != "_"}
        for d in ("ours", "theirs")
    ]
    assert configs[1] == configs[1] | configs[0]


def test_a_wrong_setting_would_be_seen(tmp_path):
    """What the comparison above rests on: each of these settings changes the output by far more than its limit."""
    model = theirs(**CASES["DDPM's own: padding 0, sines first, shift 1, one head, small eps"])
    model.save_pretrained(tmp_path)
    x, t = inputs(model.config)
    expected = evaluate_theirs(model, x, t)
    settings, params, *_ = read_model(tmp_path)
    for change in (
        {"downsample_padding": 1},
        {"flip_sin_to_cos": True},
        {"norm_eps": 1e-2},
    ):
        changed = dataclasses.replace(settings, **change)
        assert error(evaluate_ours(changed, params, x, t), expected) > 1e-4, change


def test_gradients_are_the_same(tmp_path):
    """Gradients, to the last parameter."""
    model = theirs(dropout=0.0)
    model.save_pretrained(tmp_path)
    settings, found, *_ = read_model(tmp_path)
    x, t = inputs(model.config)
    model.train()
    loss = (model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t)).sample ** 2).mean()
    loss.backward()

    def ours(params):
        return jnp.mean(jnp.square(UNet(settings).apply({"params": params}, *map(jnp.float32, (x, t)), train=True)))

    with jax.default_matmul_precision("highest"):
        value, grads = jit_once(jax.value_and_grad(ours))(found)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    write_model(tmp_path / "grads", settings, grads)
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "grads")
    for (name, p), gradient in zip(model.named_parameters(), back.parameters(), strict=True):
        limit = 1e-4 * float(p.grad.abs().max()) + 1e-7
        np.testing.assert_allclose(gradient.detach().numpy(), p.grad.numpy(), atol=limit, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_read_as_float32(dtype, tmp_path):
    model = theirs().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, variant={"float16": "fp16"}.get(dtype))
    found = read_model(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}
    model = model.float()
    x, t = inputs(model.config)
    assert error(evaluate_ours(found.settings, found.params, x, t), evaluate_theirs(model, x, t)) < 1e-5


def test_shards_pipelines_and_old_names_are_read(tmp_path):
    model = theirs()
    x, t = inputs(model.config)
    expected = evaluate_theirs(model, x, t)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=30)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path / "pipeline")
    assert read_scheduler(tmp_path / "pipeline").beta_array().shape == (30,)

    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "diffusion_pytorch_model.safetensors"
    names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    weights = load_file(path)
    for new, old in names:
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    save_file(weights, path)
    for directory in ("shards", "pipeline", "old"):
        found = read_model(tmp_path / directory)
        assert error(evaluate_ours(found.settings, found.params, x, t), expected) < 1e-5, directory


def test_files_of_an_early_release_are_read(tmp_path):
    """A config.json with few fields takes diffusers' defaults for the others."""
    model = theirs(attention_head_dim=None)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = ("_class_name", "sample_size", "in_channels", "out_channels", "block_out_channels", "attention_head_dim")
    kept += ("down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")
    (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in kept}))
    x, t = inputs(model.config)
    found = read_model(tmp_path)
    assert error(evaluate_ours(found.settings, found.params, x, t), evaluate_theirs(model, x, t)) < 1e-5


def test_a_model_without_a_config_value_has_diffusers_default(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    found = read_architecture(tmp_path).settings
    with torch.device("meta"):
        model = diffusers.UNet2DModel()
    shapes = jax.eval_shape(UNet(found).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100, "prediction_type": "v_prediction"},
        {"trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3, "prediction_type": "sample"},
    ],
)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_betas_are_the_schedulers(name, changes, tmp_path):
    scheduler = getattr(diffusers, name)(**changes)
    scheduler.save_pretrained(tmp_path)
    found = read_scheduler(tmp_path)
    assert (found.name, found.prediction_type) == (name, scheduler.config.prediction_type)
    assert found.beta_array().dtype == np.float64
    np.testing.assert_allclose(found.beta_array(), scheduler.betas.numpy(), rtol=3e-5, atol=1e-8)


def test_other_schedulers_are_refused_by_name(tmp_path):
    diffusers.PNDMScheduler().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="_class_name: got 'PNDMScheduler', expected one of DDPMScheduler"):
        read_scheduler(tmp_path)


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1)])
def test_time_embeddings_agree_to_the_last_bits_of_their_frequencies(flip, shift):
    from diffusers.models.embeddings import get_timestep_embedding

    t = np.array([0.0, 1.0, 437.5, 999.0], np.float32)
    expected = get_timestep_embedding(torch.from_numpy(t), 128, flip, shift).numpy()
    found = timestep_embedding(jnp.asarray(t), 128, flip_sin_to_cos=flip, freq_shift=shift)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # 6e-8 times 999
    assert np.mean(np.abs(found - expected) < 1e-6) > 0.98


def follow(pipeline, module, num_levels, path, monkeypatch, **options):
    """Holds our sampler of a saved pipeline against its scheduler: one chain, the same noise, at every step."""
    pipeline.save_pretrained(path)
    imported, found = read_imported(path), read_model(path)
    sde, model, scheduler = imported.process(SubVP()), pipeline.unet, pipeline.scheduler
    settings = imported.scheduler.sampler(SamplerSettings("scheduler", num_levels, **options))
    grid = make_grid(settings, sde)
    score_fn = make_score_fn(sde, UNet(found.settings), found.params, prediction=imported.prediction)
    chain = make_sampler(settings, sde, grid, score_fn)
    step = jit_once(chain.step)

    scheduler.set_timesteps(num_levels)
    np.testing.assert_array_equal(np.round(grid.t[:0:-1] * len(scheduler.betas)) - 1, scheduler.timesteps)
    keys = jax.random.split(jax.random.key(1), num_levels + 1)
    x = np.asarray(jax.random.normal(keys[0], (8, 8, 1)))
    state, other = chain.init(jnp.asarray(x)), torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
    for level, k in zip(range(num_levels, 0, -1), scheduler.timesteps, strict=True):
        noise = np.array(jax.random.normal(keys[level], (8, 8, 1))).transpose(2, 0, 1)[None].copy()
        monkeypatch.setattr(module, "randn_tensor", lambda *_, noise=noise, **__: torch.from_numpy(noise))
        with torch.no_grad():
            other = scheduler.step(model(other, k).sample, k, other, **options).prev_sample
        with jax.default_matmul_precision("highest"):
            state = step(state, jnp.int32(level), keys[level])
        expected = other.numpy()[0].transpose(1, 2, 0)
        # Random weights may let a chain grow.
        limit = 1e-4 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(state.x, expected, atol=limit, err_msg=f"step {int(k)}")
    return settings.name


STEPS = {"num_train_timesteps": 60, "beta_start": 1e-3, "beta_end": 0.2, "clip_sample": False}


@pytest.mark.parametrize("num_levels", [60, 17])
@pytest.mark.parametrize(
    ("case", "eta"),
    [
        ({}, 0.0),
        ({"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, 0.0),
        ({"prediction_type": "sample", "timestep_spacing": "linspace", "clip_sample": True}, 0.0),
        ({"steps_offset": 1, "set_alpha_to_one": False}, 1.0),
        ({"clip_sample": True, "clip_sample_range": 0.7, "timestep_spacing": "linspace"}, 0.5),
    ],
    ids=str,
)
def test_a_chain_is_the_ddim_pipelines_with_the_same_noise(case, eta, num_levels, tmp_path, monkeypatch):
    from diffusers.schedulers import scheduling_ddim

    num_levels //= 1 + case.get("steps_offset", 0)  # with all of them diffusers looks for a step beyond the last one
    pipeline = diffusers.DDIMPipeline(theirs(), diffusers.DDIMScheduler(**STEPS | case))
    assert follow(pipeline, scheduling_ddim, num_levels, tmp_path, monkeypatch, eta=eta) == "ddim"


@pytest.mark.parametrize(
    ("num_levels", "case"),
    [
        (60, {}),
        (60, {"prediction_type": "v_prediction"}),
        (60, {"prediction_type": "sample"}),
        (17, {"clip_sample": True, "timestep_spacing": "trailing"}),
        (20, {"clip_sample": True, "clip_sample_range": 0.5, "timestep_spacing": "linspace"}),
        (20, {"steps_offset": 1}),
    ],
)
def test_a_chain_is_the_ddpm_schedulers_with_the_same_noise(num_levels, case, tmp_path, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    scheduler = diffusers.DDPMScheduler(variance_type="fixed_small", **STEPS | case)
    pipeline = diffusers.DDPMPipeline(theirs(), scheduler)
    assert follow(pipeline, scheduling_ddpm, num_levels, tmp_path, monkeypatch) == "ancestral"


def memoriser(images, *, num_steps=800):
    """A model and scheduler of diffusers, trained as its examples do until the model knows the images by heart."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        **{**BASE, "block_out_channels": (16, 16), "down_block_types": (D, D), "up_block_types": (U, U)}
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_start=1e-3, beta_end=0.12, clip_sample=False)
    data = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        x, t = data[torch.randint(len(data), (16,))], torch.randint(100, (16,))
        noise = torch.randn_like(x)
        loss = torch.mean((model(scheduler.add_noise(x, noise, t), t).sample - noise) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), scheduler


def test_a_memorising_pipeline_is_audited_from_the_command_line(tmp_path, environment):
    images = phantom_images(72, side=8, seed=0)
    model, scheduler = memoriser(images[:8])
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path / "model")
    np.savez(tmp_path / "images.npz", train_images=images[:8], test_images=images[8:])
    done = launch(
        environment,
        f"--config={ROOT / 'configs' / 'import_diffusers.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.score.path={tmp_path / 'model'}",
        "--config.data.source=npz",
        f"--config.data.path={tmp_path / 'images.npz'}",
        "--config.count.num_samples=128",
        "--config.likelihood.num_held_out=4",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["verdict"]["verdict"] == "leak", done.stdout
    members, controls = (
        [target for target in report["targets"] if target["member"] == is_in] for is_in in (True, False)
    )
    assert (len(members), len(controls)) == (4, 16)
    assert min(target["t50_rank"] for target in members) > max(target["t50_rank"] for target in controls)
    assert max(target["num_detected"] for target in controls) == 0
