import dataclasses
import json
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.diffusion.pretrained.scheduler import read_scheduler
from fpjax.diffusion.score import make_score_fn
from fpjax.diffusion.sde import SubVP
from fpjax.models.layers import GroupNorm, timestep_embedding
from fpjax.models.resnet import SIZES, ResNet, ResNetSettings
from fpjax.models.unet import UNet, UNetSettings

from .stored_models import read_model, write_model

TINY = UNetSettings(channels=(8, 16), attention=(False, True), layers_per_block=1, norm_num_groups=4, dropout=0.0)


def num_params(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def unet_shapes(settings, shape):
    return jax.eval_shape(UNet(settings).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[:1]))["params"]


@pytest.mark.parametrize(("attention", "expected"), [((False, True, False), 17_587_715), ((False,) * 3, 17_256_195)])
def test_unet_has_the_parameters_of_diffusers_unet2dmodel(attention, expected):
    assert num_params(unet_shapes(UNetSettings(attention=attention), (1, 28, 28, 3))) == expected


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_resnets_have_the_parameters_that_are_known_for_1000_classes(depth, expected):
    """ResNet18's and 50's, say, are 11.7 and 25.6 M; weights of convolutions and norms, and the last layer."""
    settings = SIZES[depth]
    layers = sum(settings.stages) * (3 if settings.block == "bottleneck" else 2) + 2
    shapes = jax.eval_shape(ResNet(settings, num_heads=1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert num_params(shapes["params"]) == expected
    assert layers == depth


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
    run = jit_once(lambda params, key: model.apply({"params": params}, x, t, train=True, rngs={"dropout": key}))
    dropped = [run(params, jax.random.key(i)) for i in (0, 1)]
    assert not np.allclose(dropped[0], dropped[1])
    assert (once.shape, once.dtype) == (x.shape, jnp.float32)


def test_unet_rows_do_not_mix_and_time_matters():
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([10.0, 500.0, 10.0])
    model = UNet(TINY)
    params = jit_once(model.init)(jax.random.key(1), x, t)["params"]
    apply = jit_once(model.apply)
    out = apply({"params": params}, x, t)
    np.testing.assert_allclose(out[1], apply({"params": params}, x[1:2], t[1:2])[0], atol=1e-5)
    assert not np.allclose(out[1], apply({"params": params}, x[1:2], t[:1])[0], atol=1e-3)


def test_bfloat16_network_stays_near_float32_with_float32_parameters():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([10.0, 500.0])
    half = UNet(dataclasses.replace(TINY, dtype="bfloat16"))
    params = jit_once(half.init)(jax.random.key(1), x, t)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact, rough = (jit_once(model.apply)({"params": params}, x, t) for model in (UNet(TINY), half))
    error = float(jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact))
    assert 1e-5 < error < 3e-2


def test_score_is_minus_the_prediction_over_the_std():
    x, t = jax.random.normal(jax.random.key(0), (8, 8, 1)), jnp.asarray(0.3)
    model = UNet(TINY)
    params = jit_once(model.init)(jax.random.key(1), x[None], t[None])["params"]
    net = jit_once(model.apply)({"params": params}, x[None], 999.0 * t[None])[0]
    score = jit_once(make_score_fn(SubVP(), model, params))
    np.testing.assert_allclose(score(x, t), -net / SubVP().marginal(t).std, rtol=1e-5, atol=1e-5)


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


def test_batch_norm_subtracts_the_batchs_mean_and_remembers_a_tenth_of_it():
    """One block's first norm by hand: what the running statistics take, and that a training step uses the batch's."""
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 1)) * 2 + 3
    model = ResNet(ResNetSettings(stages=(1,), width=4, stem="small", block="basic"), num_heads=2)
    variables = jit_once(model.init)(jax.random.key(1), x)
    out, updated = jit_once(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    kernel = variables["params"]["conv1"]["kernel"]
    h = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    wanted = 0.1 * np.mean(h, axis=(0, 1, 2)), 0.9 + 0.1 * np.var(h, axis=(0, 1, 2))
    found = updated["batch_stats"]["bn1"]
    np.testing.assert_allclose(found["mean"], wanted[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], wanted[1], rtol=1e-4)
    assert not np.allclose(out, model.apply(variables, x), atol=1e-2)


def test_bfloat16_resnet_stays_near_float32_with_float32_parameters_statistics_and_logits():
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    exact = ResNet(ResNetSettings(stages=(1, 1), width=8, stem="small"), num_heads=3)
    half = ResNet(dataclasses.replace(exact.settings, dtype="bfloat16"), num_heads=3)
    variables = jit_once(half.init)(jax.random.key(1), x)
    outs = []
    for model in (exact, half):
        logits, updated = jit_once(lambda v, x, m=model: m.apply(v, x, train=True, mutable=["batch_stats"]))(
            variables, x
        )
        assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, updated))} == {jnp.dtype("float32")}
        outs.append(logits)
    error = float(jnp.linalg.norm(outs[0] - outs[1]) / jnp.linalg.norm(outs[0]))
    assert 1e-4 < error < 3e-2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: UNetSettings(channels=(8, 12), attention=(False, False)), "model.channels"),
        (lambda: UNetSettings(attention=(True,)), "model.attention"),
        (lambda: UNetSettings(dtype="float16"), "model.dtype"),
        (lambda: UNetSettings(dropout=1.0), "model.dropout"),
        (lambda: ResNetSettings(stages=(0,)), "resnet.stages"),
        (lambda: ResNetSettings(stem="big"), "resnet.stem"),
        (lambda: ResNetSettings(block="wide"), "resnet.block: got 'wide', expected one of basic, bottleneck"),
        (lambda: ResNetSettings(dtype="float16"), "resnet.dtype"),
        (lambda: unet_shapes(TINY, (1, 7, 8, 1)), "image side"),
        (lambda: UNetSettings(up_attention=(True,)), "model.up_attention"),
        (lambda: UNetSettings(attention_head_dim=48), "model.attention_head_dim = 48"),
        (lambda: UNetSettings(attn_norm_num_groups=7), "model.attn_norm_num_groups = 7"),
        (lambda: UNetSettings(channels=(3, 3, 3), norm_num_groups=3, attention_head_dim=3), "even number of channels"),
        (lambda: UNetSettings(downsample_padding=2), "model.downsample_padding"),
        (lambda: UNetSettings(mid_block="UNetMidBlock2D"), "model.mid_block"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(RequestError, match=message):
        wrong()


@pytest.mark.slow
def test_remat_changes_memory_and_no_result():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([10.0, 500.0])
    settings = dataclasses.replace(TINY, dropout=0.3)
    params = jit_once(UNet(settings).init)(jax.random.key(1), x, t)["params"]

    def gradient(settings):
        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            return jnp.mean(jnp.square(UNet(settings).apply({"params": params}, x, t, train=True, rngs=rngs)))

        return jax.grad(loss)

    plain, saving = gradient(settings), gradient(dataclasses.replace(settings, remat=True))
    for a, b in zip(*(jax.tree.leaves(jit_once(f)(params)) for f in (plain, saving)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert "remat" in str(jax.make_jaxpr(saving)(params))
    assert "remat" not in str(jax.make_jaxpr(plain)(params))


def test_group_norm_against_its_definition():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 6)) * 3 + 1
    params = {"scale": jnp.arange(1.0, 7.0), "bias": -jnp.arange(6.0)}
    groups = np.asarray(x, np.float64).reshape(2, 16, 3, 2)
    normal = groups - groups.mean((1, 3), keepdims=True)
    normal = normal / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    expected = normal.reshape(x.shape) * params["scale"] + params["bias"]
    np.testing.assert_allclose(GroupNorm(3, 1e-5).apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": (8,), "attention": (True,), "up_attention": (False,), "mid_block": "none"},
        {"resnet_time_scale_shift": "scale_shift", "mid_block": "plain", "attention_head_dim": 0, "act_fn": "mish"},
        {"time_embedding_type": "fourier", "downsample_padding": 0, "freq_shift": 1.0, "flip_sin_to_cos": False},
        {"attention": (True, False), "downsample_type": "resnet", "attn_norm_num_groups": 2, "norm_eps": 1e-6},
    ],
)
def test_models_are_written_and_read_to_the_bit(changes, tmp_path):
    settings = dataclasses.replace(TINY, **changes)
    images = jnp.zeros((1, settings.downsampling, settings.downsampling, 2))
    params = jit_once(UNet(settings).init)(jax.random.key(0), images, jnp.ones(1))["params"]
    write_model(tmp_path / "model", settings, params, side=(8, 4))
    found = read_model(tmp_path / "model")
    assert (found.settings, found.channels, found.side) == (settings, 2, (8, 4))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stored") / "model"
    params = jit_once(UNet(TINY).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))["params"]
    write_model(directory, TINY, params, side=(8, 8))
    return directory


@pytest.fixture
def copy(stored, tmp_path):
    return Path(shutil.copytree(stored, tmp_path / "model"))


def refused(function, *args):
    with pytest.raises(RequestError) as error:
        function(*args)
    message = str(error.value)
    assert "fix:" in message
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_class_name", "UNet2DConditionModel", "_class_name: got 'UNet2DConditionModel'"),
        ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"], "down_block_types: got ['SkipDownBlock2D'"),
        ("up_block_types", ["UpBlock2D"], "model.up_attention"),
        ("num_class_embeds", 10, "num_class_embeds: got 10, expected null: a model without classes"),
        ("class_embed_type", "timestep", "class_embed_type"),
        ("out_channels", 2, "learned variances"),
        ("time_embedding_type", "learned", "time_embedding_type: got 'learned', expected one of positional, fourier"),
        ("act_fn", "tanh", "act_fn: got 'tanh'"),
        ("resnet_time_scale_shift", "spatial", "resnet_time_scale_shift: got 'spatial'"),
        ("mid_block_type", "UNetMidBlock2DCrossAttn", "mid_block_type"),
        ("downsample_padding", 2, "downsample_padding: got 2"),
        ("time_embedding_dim", 7, "time_embedding_dim: got 7, expected null or 32"),
        ("cross_attention_dim", 768, "unknown cross_attention_dim"),
        ("norm_num_groups", 3, "model.norm_num_groups = 3"),
        ("attention_head_dim", 3, "config.json: attention_head_dim: got 3 for 16 channels, expected a divisor"),
        ("attention_head_dim", 32, "config.json: attention_head_dim: got 32 for 16 channels"),
        ("sample_size", 7, "sample_size"),
        ("layers_per_block", 10**400, "layers_per_block: got 1000"),
        ("block_out_channels", [10**12, 8], "block_out_channels"),
        ("block_out_channels", 8, "block_out_channels: got 8"),
        ("block_out_channels", [8, [8]], "block_out_channels"),
        ("norm_eps", float("nan"), "config.json: got an unreadable file (ValueError('NaN, which JSON"),
        ("norm_eps", 10**401, "norm_eps: got 1000"),
        ("layers_per_block", "\ud800", "config.json: got an unreadable file (UnicodeEncodeError"),
        ("dropout", True, "dropout: got True"),
        ("act_fn", {}, "act_fn: got {}"),
    ],
)
def test_what_the_unet_is_not_is_refused_by_name_before_weights_are_read(copy, name, value, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {name: value}))
    for path in copy.glob("*.safetensors"):
        path.unlink()
    assert message in refused(read_model, copy)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"null"]
)
def test_configs_that_are_not_json_objects_are_refused(copy, content):
    (copy / "config.json").write_bytes(content)
    assert "config.json: got" in refused(read_model, copy)


def edited(copy, change):
    """Rewrites the weights after `change` of the dict of arrays."""
    path = copy / "diffusion_pytorch_model.safetensors"
    arrays = safetensors.load_file(path)
    change(arrays)
    safetensors.save_file(arrays, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("conv_in.bias"), "got no conv_in.bias"),
        (lambda a: a.update({"extra.weight": np.zeros(2, np.float32)}), "got also extra.weight"),
        (lambda a: a.update({"conv_in.bias": np.zeros(9, np.float32)}), "conv_in.bias: got (9,), expected (8,)"),
        (lambda a: a.update({"conv_in.bias": np.zeros(8, np.int32)}), "conv_in.bias: got I32"),
        (lambda a: a.update({"conv_in.bias": np.full(8, np.nan, np.float32)}), "conv_in.bias: got values that are not"),
        (lambda a: a.update({"conv_in.bias": np.full(8, 1e300)}), "conv_in.bias: got values that are not"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(copy, change, message):
    edited(copy, change)
    assert message in refused(read_model, copy)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.unet."])
def test_a_prefix_of_all_names_is_left_out(copy, prefix):
    before = read_model(copy).params
    edited(copy, lambda a: [a.update({prefix + name: a.pop(name)}) for name in list(a)])
    jax.tree.map(np.testing.assert_array_equal, read_model(copy).params, before)
    # Not of all: then they are other weights.
    edited(copy, lambda a: a.update({"conv_in.bias": a.pop(prefix + "conv_in.bias")}))
    assert "got no " in refused(read_model, copy)


def test_pointers_of_git_lfs_and_marks_of_byte_order(copy):
    config = copy / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    read_model(copy)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (copy / "diffusion_pytorch_model.safetensors").write_text(pointer)
    assert "got a Git LFS pointer in place of the file" in refused(read_model, copy)
    assert "git lfs pull" in refused(read_model, copy)


def header(entries, *, size=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04pickle",
        header({}, size=2**63),
        header({"conv_in.bias": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}),
        header({"conv_in.bias": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 32]}}) + bytes(32),
        header({"conv_in.bias": {"dtype": "F32", "shape": [8], "data_offsets": [0, 2**60]}}) + bytes(32),
    ],
)
def test_damaged_and_hostile_weights_are_refused(copy, content):
    (copy / "diffusion_pytorch_model.safetensors").write_bytes(content)
    assert "diffusion_pytorch_model.safetensors: got a missing or damaged file" in refused(read_model, copy)


def test_truncated_weights_pickles_and_paths_that_lead_out_are_refused(copy):
    path = copy / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in refused(read_model, copy)
    path.rename(copy / "diffusion_pytorch_model.bin")
    assert "got a pickle, diffusion_pytorch_model.bin" in refused(read_model, copy)
    index = copy / "diffusion_pytorch_model.safetensors.index.json"
    for files in ({"conv_in.bias": "../secret.safetensors"}, {"conv_in.bias": 3}, [], {}):
        index.write_text(json.dumps({"weight_map": files}))
        assert "weight_map: got" in refused(read_model, copy)
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "gone.safetensors"}}))
    assert "gone.safetensors: got a missing" in refused(read_model, copy)
    index.unlink()
    (copy / "diffusion_pytorch_model.bin").unlink()
    assert "got no weights" in refused(read_model, copy)
    assert "no such directory" in refused(read_model, copy / "google" / "ddpm-cifar10-32")


def test_pipelines_of_more_than_pixels_and_time_are_refused(copy):
    for parts, message in (
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "UNet2DConditionModel"),
        ({"unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}, "a pipeline with vqvae"),
    ):
        (copy / "model_index.json").write_text(json.dumps({"_class_name": "X", **parts}))
        assert message in refused(read_model, copy)


SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 4, "clip_sample": False}


def scheduler(directory, **changes):
    (directory / "scheduler_config.json").write_text(json.dumps(SCHEDULER | changes))
    return directory


def test_schedules_have_the_alphas_of_their_papers(tmp_path):
    found = read_scheduler(scheduler(tmp_path, beta_start=0.1, beta_end=0.4))
    assert (found.betas, found.prediction_type, found.ignored) == (pytest.approx((0.1, 0.2, 0.3, 0.4)), "epsilon", ())
    found = read_scheduler(scheduler(tmp_path, beta_schedule="squaredcos_cap_v2", num_train_timesteps=1000))
    # Nichol & Dhariwal 2021, eq. 17: alpha_bar(t) = f(t)/f(0), but for the last step, where beta is cut.
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - found.beta_array())[:-1], (f / f[0])[1:-1], rtol=1e-10)
    assert found.betas[-1] == 0.999
    found = read_scheduler(scheduler(tmp_path, clip_sample=True, thresholding=True, variance_type="fixed_large"))
    assert [line.split()[0].strip(":") for line in found.ignored] == ["thresholding", "variance_type"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "_class_name: got 'EulerDiscreteScheduler'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: got 'sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type: got 'flow'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: got True"),
        ({"variance_type": "learned_range"}, "variance_type: got 'learned_range'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: got [0.1, 0.2], expected null, or 4 numbers"),
        ({"trained_betas": [0.1, 0.2, 0.3, 1.0]}, "betas: got 0.1 to 1"),
        ({"beta_start": 0.0}, "betas: got 0 to"),
        ({"num_train_timesteps": 10**30}, "num_train_timesteps: got 1000"),
        ({"predict_epsilon": False}, "predict_epsilon"),
    ],
)
def test_other_processes_are_refused_by_name(tmp_path, changes, message):
    assert message in refused(read_scheduler, scheduler(tmp_path, **changes))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (100.0, 0.01), (1000.0, 1.0)])
def test_group_norm_of_nearly_constant_groups(mean, std):
    """Against float64: mean squares minus squared means would be wrong by a factor of three at (100, 0.01)."""
    x = jnp.asarray(mean + std * np.random.default_rng(0).normal(size=(2, 6, 6, 8)), jnp.float32)
    groups = np.asarray(x, np.float64).reshape(2, 36, 2, 4)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    exact = (centred / np.sqrt(np.mean(centred**2, axis=(1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    norm = GroupNorm(2, 1e-5)
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    # The mean itself is rounded, by half a unit in the last place of the values.
    np.testing.assert_allclose(found, exact, atol=2e-6 + 8 * np.spacing(np.float32(mean)) / np.hypot(std, 3e-3))
