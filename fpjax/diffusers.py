"""Models of Hugging Face diffusers: read and written as files, without diffusers or torch.

A directory holds `config.json` and `diffusion_pytorch_model.safetensors` (or shards with an index), or it is a
pipeline, with the model in `unet/` and its noise schedule in `scheduler/scheduler_config.json`. What these files ask
for and `models.unet` does not have is refused by name before weights are read; pickles are never opened.
"""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from .artifacts import write_bytes
from .checks import RequestError, check
from .models.unet import ACTIVATIONS, RESAMPLING, TIME_EMBEDDINGS, TIME_SCALE_SHIFTS, UNet, UNetSettings

MODEL_CLASS = "UNet2DModel"
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
WEIGHTS = "diffusion_pytorch_model"
VARIANTS = ("", ".fp16", ".bf16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = ("F32", "F16", "BF16", "F64")

_MID_BLOCK = "UNetMidBlock2D"
_BLOCKS = {"down": ("DownBlock2D", "AttnDownBlock2D"), "up": ("UpBlock2D", "AttnUpBlock2D")}
_FIX = "audit a model without it"


class Architecture(NamedTuple):
    """What a model directory says before its weights are read; `side` (height, width) is None where it is silent."""

    settings: UNetSettings
    channels: int
    side: tuple[int, int] | None


class Model(NamedTuple):
    """A model: its architecture, and float32 parameters of `UNet(settings)`."""

    settings: UNetSettings
    params: Any
    channels: int
    side: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """The noise schedule that a model was trained with (Ho et al. 2020, arXiv:2006.11239, section 2).

    Attributes:
      name: class in diffusers.
      betas: variances of the N steps, each in (0, 1).
      prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
      ignored: one line for each setting that changes diffusers' samples and is not followed here.
    """

    name: str
    betas: tuple[float, ...]
    prediction_type: str
    ignored: tuple[str, ...]

    def beta_array(self) -> np.ndarray:
        """`betas` as float64, shape (N,)."""
        return np.asarray(self.betas, np.float64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_json(path: Path) -> dict[str, Any]:
    fix = "copy the whole directory again, as diffusers' save_pretrained wrote it"
    check(path.is_file(), str(path), got="no such file", expected="a JSON file", fix=fix)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        raise RequestError(f"{path}: got an unreadable file, expected JSON; fix: {fix}") from None
    check(isinstance(content, dict), str(path), got=_short(content), expected="a JSON object", fix=fix)
    return content


class _Fields:
    """Values of one JSON file; each is taken out once, so that what is left is unknown."""

    def __init__(self, path: Path):
        self.path, self.values = path, _read_json(path)

    def take(self, name: str, default: Any, ok: Callable[[Any], bool], expected: str, *, fix: str = _FIX) -> Any:
        value = self.values.pop(name, default)
        check(ok(value), f"{self.path}: {name}", got=_short(value), expected=expected, fix=fix)
        return value

    def choice(self, name: str, default: Any, options: Iterable[Any]) -> Any:
        options = tuple(options)
        return self.take(name, default, lambda v: v in options, f"one of {', '.join(map(str, options))}")

    def flag(self, name: str, default: bool) -> bool:
        return self.take(name, default, lambda v: isinstance(v, bool), "true or false")

    def integer(self, name: str, default: int | None, low: int, high: int, *, null: int | None = None) -> int:
        """A whole number; `null` is what null stands for, if it is allowed."""
        value = self.take(
            name,
            default,
            lambda v: _is_integer(v, low, high) or (v is None and null is not None),
            f"a whole number in [{low}, {high}]",
        )
        return null if value is None else value  # pyright: ignore[reportReturnType]

    def number(self, name: str, default: float, low: float, high: float) -> float:
        return float(
            self.take(name, default, lambda v: _is_number(v) and low <= v <= high, f"a number in [{low:g}, {high:g}]")
        )

    def items(self, name: str, default: list[Any], ok: Callable[[Any], bool], expected: str) -> list[Any]:
        return self.take(
            name, default, lambda v: isinstance(v, list) and 1 <= len(v) <= 16 and all(map(ok, v)), expected
        )


def _is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _file(directory: Path, part: str, name: str) -> Path:
    """`name` in a pipeline's `part`, or in the directory itself."""
    check(
        directory.is_dir(),
        str(directory),
        got="no such directory",
        expected="a model saved by diffusers",
        fix="give a local directory; download a model of a hub first",
    )
    inside = directory / part / name
    return inside if inside.is_file() else directory / name


def _check_pipeline(directory: Path) -> None:
    """Refuses pipelines whose network does not see pixels, or sees more than the noised image and the time."""
    path = directory / "model_index.json"
    if not path.is_file():
        return
    parts = {name: kind for name, kind in _read_json(path).items() if not name.startswith("_") and kind is not None}
    kind = parts.get("unet")
    check(
        kind == ["diffusers", MODEL_CLASS],
        f"{path}: unet",
        got=_short(kind),
        expected=f"diffusers' {MODEL_CLASS}",
        fix="audit an unconditional model of pixels",
    )
    extra = parts.keys() - {"unet", "scheduler"}
    check(
        not extra,
        f"{path}",
        got=f"a pipeline with {_listing(extra)}",
        expected="one of unet and scheduler alone",
        fix="audit an unconditional model of pixels",
    )


def read_architecture(directory: Path) -> Architecture:
    """Reads `config.json` of a model or of a pipeline's `unet/`; no weights.

    Raises:
      RequestError: the file is missing or damaged, or asks for what `UNet` does not have.
    """
    _check_pipeline(directory)
    fields = _Fields(_file(directory, "unet", "config.json"))
    fields.choice("_class_name", None, [MODEL_CLASS])
    for name in ("class_embed_type", "num_class_embeds"):
        fields.take(name, None, lambda v: v is None, "null: a model without classes")
    channels = fields.integer("in_channels", 3, 1, 1024)
    fields.take(
        "out_channels",
        3,
        lambda v: _is_integer(v, channels, channels),
        f"{channels}, as in_channels: a score has the image's shape (others hold learned variances or conditions)",
    )
    side = fields.take("sample_size", None, _is_side, "null, a number of pixels or two, each up to 65536")
    side = None if side is None else (side, side) if isinstance(side, int) else (side[0], side[1])

    widths = fields.items(
        "block_out_channels", [224, 448, 672, 896], lambda v: _is_integer(v, 1, 65536), "up to 16 whole numbers"
    )
    kinds = {}
    for way, default in (("down", [0, 1, 1, 1]), ("up", [1, 1, 1, 0])):
        options = _BLOCKS[way]
        names = fields.items(
            f"{way}_block_types",
            [options[i] for i in default],
            lambda v, options=options: isinstance(v, str) and v.removeprefix("UNetRes") in options,
            f"a list of {' and '.join(options)}",
        )
        kinds[way] = tuple(name.removeprefix("UNetRes") == options[1] for name in names)
    attention, up_attention = kinds["down"], kinds["up"][::-1]

    mid_block = fields.choice("mid_block_type", _MID_BLOCK, [_MID_BLOCK, None])
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
    unknown = {name for name, value in fields.values.items() if not name.startswith("_") and value is not None}
    check(not unknown, str(fields.path), got=f"unknown {_listing(unknown)}", expected=f"{MODEL_CLASS}'s", fix=_FIX)
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
        return len(value) == 2 and all(_is_integer(v, 1, 65536) for v in value)
    return value is None or _is_integer(value, 1, 65536)


def _their_name(path: tuple[str, ...], levels: int) -> str:
    """Name in diffusers of one of our parameters: the one table for both directions."""
    module, *inner = path
    if module == "time_frequencies":
        return "time_proj.weight"
    leaf = "bias" if inner[-1] == "bias" else "weight"
    inner = [{"to_out": "to_out.0"}.get(name, name) for name in inner[:-1]]
    if block := re.fullmatch(r"(down|mid|up)(\d*)_(res|attn|sample)(\d*)", module):
        way, level, kind, index = block.groups()
        if kind == "sample":
            module = f"{way}samplers.0" + ("" if inner else ".conv")
        else:
            module = f"{'resnets' if kind == 'res' else 'attentions'}.{index or 0}"
        # diffusers counts the way up from the innermost level.
        prefix = "mid_block" if way == "mid" else f"{way}_blocks.{level if way == 'down' else levels - 1 - int(level)}"
        module = f"{prefix}.{module}"
    elif dense := re.fullmatch(r"time_dense(\d)", module):
        module = f"time_embedding.linear_{dense[1]}"
    elif module == "norm_out":
        module = "conv_norm_out"
    return ".".join([module, *inner, leaf])


# Axes of our arrays in diffusers' order: (h, w, in, out) to (out, in, h, w) for convolutions, (in, out) to (out, in).
_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def _to_theirs(name: str, array: np.ndarray) -> np.ndarray:
    """One of our weights as diffusers lays it out; our 1x1 convolutions are matrices."""
    array = array.transpose(_AXES[array.ndim])
    return array[:, :, None, None] if name.endswith("conv_shortcut.weight") else array


def _to_ours(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `_to_theirs`."""
    array = array[:, :, 0, 0] if name.endswith("conv_shortcut.weight") else array
    return array.transpose(np.argsort(_AXES[array.ndim]))


_OLD_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def _named(settings: UNetSettings, params: Any) -> tuple[dict[str, Any], Any]:
    """Parameters (or their shapes) by diffusers' names, in the order of the tree, and the tree's structure."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    levels = len(settings.channels)
    return {_their_name(tuple(key.key for key in path), levels): leaf for path, leaf in leaves}, tree


@functools.lru_cache(maxsize=8)
def _expected(settings: UNetSettings, channels: int) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Shapes in diffusers' order by diffusers' names, and our tree."""
    side = settings.downsampling
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    times = jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes, tree = _named(settings, jax.eval_shape(UNet(settings).init, jax.random.key(0), images, times)["params"])
    # Broadcast from one number, an array has a shape and no size.
    return {name: _to_theirs(name, np.broadcast_to(0.0, leaf.shape)).shape for name, leaf in shapes.items()}, tree


def _check_names(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    found, expected = set(found), set(expected)
    fix = "check that config.json and weights belong together"
    missing, extra = expected - found, found - expected
    check(not missing, what, got=f"no {_listing(missing)}", expected="every weight of config.json's model", fix=fix)
    check(not extra, what, got=f"also {_listing(extra)}", expected="the weights of config.json's model alone", fix=fix)


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model's weights, whole or in shards."""
    for variant in VARIANTS:
        whole = directory / f"{WEIGHTS}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        index = directory / f"{WEIGHTS}.safetensors.index{variant}.json"
        if index.is_file():
            files = _read_json(index).get("weight_map")
            files = list(files.values()) if isinstance(files, dict) else []
            check(
                len(files) > 0 and all(isinstance(name, str) and Path(name).name == name for name in files),
                f"{index}: weight_map",
                got=_short(files),
                expected="a file of this directory for each weight",
                fix="copy the directory again",
            )
            return [directory / name for name in sorted(set(files))]
    pickles = [path.name for path in directory.iterdir() if path.suffix in PICKLES]
    check(
        not pickles,
        str(directory),
        got=f"a pickle, {_listing(pickles)}",
        expected=f"{WEIGHTS}.safetensors (a pickle can run code when it is opened)",
        fix="convert it where you trust it: UNet2DModel.from_pretrained(DIR).save_pretrained(NEW) in diffusers",
    )
    raise RequestError(
        f"{directory}: got no weights, expected {WEIGHTS}.safetensors; fix: copy the whole directory again"
    )


def model_files(directory: Path) -> list[Path]:
    """The files that a model is read from: its config, its weights, and the schedule if there is one.

    Raises:
      RequestError: there are no weights that may be opened.
    """
    config, schedule = _file(directory, "unet", "config.json"), _file(directory, "scheduler", "scheduler_config.json")
    return [config, *_weight_files(config.parent), *([schedule] if schedule.is_file() else [])]


def find_weights(directory: Path, architecture: Architecture) -> dict[str, tuple[Path, str]]:
    """File and name there of each weight of an architecture; reads no more than the files' headers.

    Raises:
      RequestError: weights are missing, unknown, of another shape or type, damaged or pickled.
    """
    directory = _file(directory, "unet", "config.json").parent
    expected, _ = _expected(architecture.settings, architecture.channels)
    stored: dict[str, tuple[Path, str]] = {}
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    ours = name
                    for old, new in _OLD_NAMES if ".attentions." in name else ():
                        ours = ours.replace(old, new)
                    stored[ours] = (path, name)
                    part = file.get_slice(name)
                    if ours in expected:
                        _check_weight(f"{path}: {name}", part.get_shape(), part.get_dtype(), expected[ours])
        except (SafetensorError, OSError) as error:
            raise RequestError(
                f"{path}: got a missing or damaged file ({_short(str(error))}), expected safetensors; "
                "fix: copy it again"
            ) from None
    _check_names(str(directory), stored, expected)
    return stored


def read_params(directory: Path, architecture: Architecture) -> Any:
    """Reads the weights of an architecture, as float32 parameters of `UNet(architecture.settings)`.

    Raises:
      RequestError: as `find_weights`, or weights are not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, (path, theirs) in find_weights(directory, architecture).items():
        with safe_open(path, framework="numpy") as file, np.errstate(over="ignore"):
            arrays[name] = np.asarray(file.get_tensor(theirs)).astype(np.float32)
        check(
            bool(np.isfinite(arrays[name]).all()),
            f"{path}: {theirs}",
            got="values that are not finite",
            expected="finite float32 values",
            fix="save the model again, in float32",
        )
    expected, tree = _expected(architecture.settings, architecture.channels)
    return jax.tree_util.tree_unflatten(tree, [jnp.asarray(_to_ours(name, arrays[name])) for name in expected])


def _check_weight(what: str, shape: Iterable[int], dtype: str, expected: tuple[int, ...]) -> None:
    check(
        tuple(shape) == expected,
        what,
        got=tuple(shape),
        expected=f"{expected} of config.json's model",
        fix="check that config.json and weights belong together",
    )
    check(dtype in DTYPES, what, got=dtype, expected=f"one of {', '.join(DTYPES)}", fix="save the model in float32")


def read_model(directory: Path) -> Model:
    """Reads a model that diffusers (or `write_model`) saved: `UNet(settings).apply({"params": params}, x, t)` is it.

    Args:
      directory: of a `UNet2DModel`, or of a pipeline with one in `unet/`.

    Returns:
      `Model`; its times are the scheduler's step numbers, 0 to N - 1. Compute type and remat are the defaults.

    Raises:
      RequestError: the model is not there, damaged, or not one that `UNet` can be.
    """
    architecture = read_architecture(directory)
    params = read_params(directory, architecture)
    return Model(architecture.settings, params, architecture.channels, architecture.side)


def write_model(directory: Path, settings: UNetSettings, params: Any, *, side: tuple[int, int] | None = None) -> None:
    """Writes a directory that diffusers' `UNet2DModel.from_pretrained` loads, whole or not at all.

    Args:
      directory: must not exist, or be empty.
      params: of `UNet(settings)`, float32.
      side: height and width of the images, for the config's `sample_size`.

    Raises:
      RequestError: the directory holds something, or the parameters are not of these settings.
    """
    check(
        not directory.exists() or (directory.is_dir() and not any(directory.iterdir())),
        str(directory),
        got="something that is there already",
        expected="a new directory",
        fix="give another name, or delete it",
    )
    leaves, _ = _named(settings, params)
    channels = params["conv_in"]["kernel"].shape[2]
    expected, _ = _expected(settings, channels)
    _check_names("params", leaves, expected)
    arrays = {name: np.ascontiguousarray(_to_theirs(name, np.asarray(x))) for name, x in leaves.items()}
    for name, array in arrays.items():
        _check_weight(f"params: {name}", array.shape, "F32", expected[name])
    config = _config(settings, channels, side)
    beside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    write_bytes(beside / f"{WEIGHTS}.safetensors", safetensors.save(arrays, metadata={"format": "pt"}))
    write_bytes(beside / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    os.replace(beside, directory)


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
        "down_block_types": [_BLOCKS["down"][flag] for flag in settings.attention],
        "up_block_types": [_BLOCKS["up"][flag] for flag in settings.attention_up[::-1]],
        "mid_block_type": None if settings.mid_block == "none" else _MID_BLOCK,
        "add_attention": settings.mid_block != "plain",
        "attention_head_dim": settings.attention_head_dim or None,
        "attn_norm_num_groups": settings.attn_norm_num_groups or None,
    } | {name: getattr(settings, name) for name in same}


def _betas(schedule: str, start: float, end: float, num_steps: int) -> np.ndarray:
    """Variances of the steps, float64: linear (Ho et al. 2020), linear in the root, or cosine (Nichol & Dhariwal 2021).

    >>> _betas("scaled_linear", 0.01, 0.09, 3).round(4).tolist()
    [0.01, 0.04, 0.09]
    """
    if schedule == "linear":
        return np.linspace(start, end, num_steps)
    if schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, num_steps) ** 2
    # arXiv:2102.09672, eq. 17, with s = 0.008 and betas cut at 0.999.
    level = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


def read_scheduler(directory: Path) -> Scheduler:
    """Reads `scheduler_config.json`, of a directory or of a pipeline's `scheduler/`.

    Options of shortened sampling (timestep spacing, offsets) do not matter here: chains follow the training grid.

    Raises:
      RequestError: the file is missing or damaged, or its process is not a DDPM's.
    """
    fields = _Fields(_file(directory, "scheduler", "scheduler_config.json"))
    name = fields.choice("_class_name", None, SCHEDULERS)
    num_steps = fields.integer("num_train_timesteps", 1000, 2, 100_000)
    fields.take("rescale_betas_zero_snr", False, lambda v: v is False, "false: at a zero SNR epsilon says nothing")
    fields.take("predict_epsilon", True, lambda v: v is True, "true, or prediction_type in its place")
    prediction_type = fields.choice("prediction_type", "epsilon", PREDICTION_TYPES)
    start, end = fields.number("beta_start", 1e-4, 0.0, 1.0), fields.number("beta_end", 0.02, 0.0, 1.0)
    schedule = fields.choice("beta_schedule", "linear", BETA_SCHEDULES)
    trained = fields.take(
        "trained_betas",
        None,
        lambda v: v is None or (isinstance(v, list) and len(v) == num_steps and all(map(_is_number, v))),
        f"null, or {num_steps} numbers",
    )
    betas = _betas(schedule, start, end, num_steps) if trained is None else np.asarray(trained, np.float64)
    check(
        bool(np.all((betas > 0) & (betas < 1))),
        f"{fields.path}: betas",
        got=f"{betas.min():g} to {betas.max():g}",
        expected="variances inside (0, 1)",
        fix="correct beta_start and beta_end, or trained_betas",
    )
    variances = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    variance = fields.choice("variance_type", "fixed_small", variances)
    ignored = []
    if fields.flag("clip_sample", True):
        ignored.append("clip_sample: predicted images are not clipped during sampling")
    if fields.flag("thresholding", False):
        ignored.append("thresholding: predicted images are not thresholded during sampling")
    if variance.startswith("fixed_large"):
        ignored.append(f"variance_type {variance}: the sampler takes its own variances")
    return Scheduler(name, tuple(betas.tolist()), prediction_type, tuple(ignored))
