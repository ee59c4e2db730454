"""Models of Hugging Face diffusers: read and written as files, without diffusers or torch.

A directory holds `config.json` and `diffusion_pytorch_model.safetensors` (or shards with an index), or it is a
pipeline, with the model in `unet/` and its noise schedule in `scheduler/scheduler_config.json`. What these files ask
for and `models.unet` does not have is refused by name before weights are read; pickles are never opened.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ...core.errors import RequestError, check
from ...models.unet import ACTIVATIONS, RESAMPLING, TIME_EMBEDDINGS, TIME_SCALE_SHIFTS, UNetSettings
from .fields import Fields, is_integer, listing, part_file, read_fields, short

MODEL_CLASS = "UNet2DModel"

# Of the running average that diffusers' EMAModel.save_pretrained writes beside it: the weights are ordinary.
EMA_FIELDS = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
    "foreach",
)

MID_BLOCK = "UNetMidBlock2D"
BLOCKS = {"down": ("DownBlock2D", "AttnDownBlock2D"), "up": ("UpBlock2D", "AttnUpBlock2D")}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a model directory says before its weights are read; `side` (height, width) is None where it is silent."""

    settings: UNetSettings
    channels: int
    side: tuple[int, int] | None


def _check_pipeline(directory: Path) -> None:
    """Refuses pipelines whose network does not see pixels, or sees more than the noised image and the time."""
    path = directory / "model_index.json"
    if not path.is_file():
        return
    parts = {name: kind for name, kind in read_fields(path).items() if not name.startswith("_") and kind is not None}
    kind = parts.get("unet")
    check(
        kind == ["diffusers", MODEL_CLASS],
        f"{path}: unet",
        got=short(kind),
        expected=f"diffusers' {MODEL_CLASS}",
        fix="audit an unconditional model of pixels",
    )
    extra = parts.keys() - {"unet", "scheduler"}
    check(
        not extra,
        f"{path}",
        got=f"a pipeline with {listing(extra)}",
        expected="one of unet and scheduler alone",
        fix="audit an unconditional model of pixels",
    )


def read_architecture(directory: Path) -> Architecture:
    """Reads `config.json` of a model or of a pipeline's `unet/`; no weights.

    Raises:
      RequestError: the file is missing or damaged, or asks for what `UNet` does not have.
    """
    _check_pipeline(directory)
    fields = Fields(part_file(directory, "unet", "config.json"))
    fields.choice("_class_name", None, [MODEL_CLASS])
    for name in ("class_embed_type", "num_class_embeds"):
        fields.take(name, None, lambda v: v is None, "null: a model without classes")
    channels = fields.integer("in_channels", 3, 1, 1024)
    fields.take(
        "out_channels",
        3,
        lambda v: is_integer(v, channels, channels),
        f"{channels}, as in_channels: a score has the image's shape (others hold learned variances or conditions)",
    )
    side = fields.take("sample_size", None, _is_side, "null, a number of pixels or two, each up to 65536")
    side = None if side is None else (side, side) if isinstance(side, int) else (side[0], side[1])

    widths = fields.items(
        "block_out_channels", [224, 448, 672, 896], lambda v: is_integer(v, 1, 65536), "up to 16 whole numbers"
    )
    kinds = {}
    for way, default in (("down", [0, 1, 1, 1]), ("up", [1, 1, 1, 0])):
        options = BLOCKS[way]
        names = fields.items(
            f"{way}_block_types",
            [options[i] for i in default],
            lambda v, options=options: isinstance(v, str) and v.removeprefix("UNetRes") in options,
            f"a list of {' and '.join(options)}",
        )
        kinds[way] = tuple(name.removeprefix("UNetRes") == options[1] for name in names)
    attention, up_attention = kinds["down"], kinds["up"][::-1]

    mid_block = fields.choice("mid_block_type", MID_BLOCK, [MID_BLOCK, None])
    add_attention = fields.flag("add_attention", True)
    embedding_dim = 4 * widths[0]
    fields.take("time_embedding_dim", None, lambda v: v in (None, embedding_dim), f"null or {embedding_dim}")
    fields.values.pop("num_train_timesteps", None)  # of learned time embeddings alone, which are refused
    act_fn = fields.take(
        "act_fn",
        "silu",
        lambda v: isinstance(v, str) and (v.lower() == "swish" or v.lower() in ACTIVATIONS),
        f"one of swish, {', '.join(ACTIVATIONS)}",
    ).lower()
    values: dict[str, Any] = {
        "channels": tuple(widths),
        "layers_per_block": fields.integer("layers_per_block", 2, 1, 64),
        "attention": attention,
        "up_attention": () if up_attention == attention else up_attention,
        "attention_head_dim": fields.integer("attention_head_dim", 8, 1, 65536, null=0),
        "mid_block": "none" if mid_block is None else "attention" if add_attention else "plain",
        "mid_block_scale_factor": fields.number("mid_block_scale_factor", 1.0, 1e-6, 1e6),
        "norm_num_groups": fields.integer("norm_num_groups", 32, 1, 65536),
        "attn_norm_num_groups": fields.integer("attn_norm_num_groups", None, 1, 65536, null=0),
        "norm_eps": fields.number("norm_eps", 1e-5, 1e-12, 1.0),
        "act_fn": "silu" if act_fn == "swish" else act_fn,
        "resnet_time_scale_shift": fields.choice("resnet_time_scale_shift", "default", TIME_SCALE_SHIFTS),
        "downsample_padding": fields.integer("downsample_padding", 1, 0, 1),
        "downsample_type": fields.choice("downsample_type", "conv", RESAMPLING),
        "upsample_type": fields.choice("upsample_type", "conv", RESAMPLING),
        "time_embedding_type": fields.choice("time_embedding_type", "positional", TIME_EMBEDDINGS),
        "flip_sin_to_cos": fields.flag("flip_sin_to_cos", True),
        "freq_shift": fields.number("freq_shift", 0.0, 0.0, 65536.0),
        "center_input_sample": fields.flag("center_input_sample", False),
        "dropout": fields.number("dropout", 0.0, 0.0, 0.99),
    }
    head, last = values["attention_head_dim"], len(widths) - 1
    middle = last if values["mid_block"] == "attention" else -1
    attending = {i for places in (attention, up_attention) for i, here in enumerate(places) if here} | {middle}
    odd = [width for i, width in enumerate(widths) if i in attending and head and width % head]
    check(
        not odd,
        f"{fields.path}: attention_head_dim",
        got=f"{head} for {odd[0] if odd else 0} channels",
        expected="a divisor of the channels of every level with attention, or null for one head",
        fix="audit a model whose heads have all of its channels",
    )
    for name in EMA_FIELDS:
        fields.values.pop(name, None)
    fields.refuse_unknown(f"{MODEL_CLASS}'s")
    try:
        settings = UNetSettings(**values)
    except RequestError as error:
        raise RequestError(f"{fields.path}: {error}") from None
    check(
        side is None or all(s % settings.downsampling == 0 for s in side),
        f"{fields.path}: sample_size",
        got=side,
        expected=f"multiples of {settings.downsampling} for {len(widths)} levels",
        fix="correct the file",
    )
    return Architecture(settings, channels, side)


def _is_side(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(is_integer(v, 1, 65536) for v in value)
    return value is None or is_integer(value, 1, 65536)
