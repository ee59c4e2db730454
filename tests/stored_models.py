"""Models as diffusers stores them, written and read whole by tests and benchmarks."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import numpy as safetensors

from fpjax.diffusion.pretrained.architecture import BLOCKS, MID_BLOCK, MODEL_CLASS, read_architecture
from fpjax.diffusion.pretrained.weights import WEIGHTS, named, read_params, to_theirs
from fpjax.models.unet import UNetSettings


class Model(NamedTuple):
    """A model: its architecture, and float32 parameters of `UNet(settings)`."""

    settings: UNetSettings
    params: Any
    channels: int
    side: tuple[int, int] | None


def read_model(directory: Path) -> Model:
    """A model of a directory: `UNet(settings).apply({"params": params}, x, step)` is it."""
    architecture = read_architecture(directory)
    params = read_params(directory, architecture)
    return Model(architecture.settings, params, architecture.channels, architecture.side)


def write_model(directory: Path, settings: UNetSettings, params: Any, *, side: tuple[int, int] | None = None) -> None:
    """Writes a new directory that diffusers' `UNet2DModel.from_pretrained` loads."""
    leaves, _ = named(settings, params)
    arrays = {name: np.ascontiguousarray(to_theirs(name, np.asarray(x))) for name, x in leaves.items()}
    directory.mkdir(parents=True)
    safetensors.save_file(arrays, directory / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
    config = _config(settings, params["conv_in"]["kernel"].shape[2], side)
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def _config(settings: UNetSettings, channels: int, side: tuple[int, int] | None) -> dict[str, Any]:
    """`config.json` of a `UNet2DModel`, every field."""
    same = ("layers_per_block", "mid_block_scale_factor", "norm_num_groups", "norm_eps", "act_fn", "dropout")
    same += ("resnet_time_scale_shift", "downsample_padding", "downsample_type", "upsample_type")
    same += ("time_embedding_type", "flip_sin_to_cos", "freq_shift", "center_input_sample")
    return {
        "_class_name": MODEL_CLASS,
        "sample_size": side if side is None or side[0] != side[1] else side[0],
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": settings.channels,
        "down_block_types": [BLOCKS["down"][flag] for flag in settings.attention],
        "up_block_types": [BLOCKS["up"][flag] for flag in settings.attention_up[::-1]],
        "mid_block_type": None if settings.mid_block == "none" else MID_BLOCK,
        "add_attention": settings.mid_block != "plain",
        "attention_head_dim": settings.attention_head_dim or None,
        "attn_norm_num_groups": settings.attn_norm_num_groups or None,
    } | {name: getattr(settings, name) for name in same}
