"""Weights of models: how many there may be, and that they are looked at in parts."""

import json

import jax
import numpy as np
from safetensors import numpy as safetensors

from fpjax.diffusion.pretrained import weights
from fpjax.diffusion.pretrained.architecture import read_architecture

from .stored_models import read_model
from .test_models import copy, num_params, refused, stored  # noqa: F401


def test_models_that_are_too_large_are_refused_before_their_weights_are_read(copy):  # noqa: F811
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [4096, 4096]}))
    assert "config.json: got a model of 4,597,460,993 weights" in refused(read_model, copy)


def test_shards_and_their_number(copy):  # noqa: F811
    index = copy / "diffusion_pytorch_model.safetensors.index.json"
    (copy / "diffusion_pytorch_model.safetensors").rename(copy / "0")
    for i in range(1, 1001):
        (copy / f"{i}").symlink_to("0")
    index.write_text(json.dumps({"weight_map": {str(i): str(i) for i in range(1001)}}))
    assert "at most 1,000 of them" in refused(read_model, copy)
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "0"}}))
    read_model(copy)


def test_weights_are_read_in_parts_to_the_bit(copy, monkeypatch):  # noqa: F811
    whole = read_model(copy)[1]
    opened = []
    safe_open = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda *args, **kw: (opened.append(args), safe_open(*args, **kw))[1])
    monkeypatch.setattr(weights, "_CHUNK", 50)
    monkeypatch.setattr(weights, "_MAPPED", 1000)
    parts = read_model(copy)[1]
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert num_params(whole) // 1000 < len(opened) < num_params(whole) / 1000 + 10
    architecture = read_architecture(copy)
    weights.check_params(copy, architecture)
    path = copy / "diffusion_pytorch_model.safetensors"
    arrays = safetensors.load_file(path)
    for name in (min(arrays), max(arrays)):
        bad = arrays | {name: arrays[name].copy()}
        bad[name].reshape(-1)[-1] = np.nan
        safetensors.save_file(bad, path)
        assert f"{name}: got values that are not finite" in refused(weights.check_params, copy, architecture)
