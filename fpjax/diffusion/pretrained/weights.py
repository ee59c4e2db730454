"""Weights of a diffusers UNet2DModel, by its names and axes, as ours; safetensors alone, never pickle."""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ...core.errors import RequestError, check
from ...core.files import open_plain
from ...core.paths import LFS_POINTER
from ...core.terminal import printable
from ...models.unet import UNet, UNetSettings
from .architecture import Architecture
from .fields import listing, part_file, read_fields, short

WEIGHTS = "diffusion_pytorch_model"
VARIANTS = ("", ".fp16", ".bf16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAX_WEIGHTS = 20_000  # the largest UNet has a few thousand
MAX_HEADER = 2**23  # bytes of a safetensors header, of which a weight takes about a hundred
MAX_SHARDS = 1000
MAX_NUMBERS = 2**30  # in all weights, 4 GiB; the largest UNets of pixels have half as many
_CHUNK = 2**22  # numbers that are looked at at a time
_MAPPED = 2**26  # numbers that are read before a file is opened anew
DTYPES = ("F32", "F16", "BF16", "F64")


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


def to_theirs(name: str, array: np.ndarray) -> np.ndarray:
    """One of our weights as diffusers lays it out; our 1x1 convolutions are matrices."""
    array = array.transpose(_AXES[array.ndim])
    return array[:, :, None, None] if name.endswith("conv_shortcut.weight") else array


def _to_ours(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_theirs`."""
    array = array[:, :, 0, 0] if name.endswith("conv_shortcut.weight") else array
    return array.transpose(np.argsort(_AXES[array.ndim]))


_OLD_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def _new_name(name: str) -> str:
    """The name that diffusers gives a weight today."""
    for old, new in _OLD_NAMES if ".attentions." in name else ():
        name = name.replace(old, new)
    return name


def _common_prefix(names: Iterable[str], expected: Iterable[str]) -> str:
    """What stands before all names, where without it they begin as they should."""
    known, names = {name.partition(".")[0] for name in expected}, list(names)
    for word in [f"{word}." for word in names[0].split(".")[:-1]] if names else []:
        prefix = names[0][: names[0].index(word) + len(word)]
        if all(name.startswith(prefix) and name[len(prefix) :].partition(".")[0] in known for name in names):
            return prefix
        if word.removesuffix(".") in known:
            break
    return ""


def _check_header(path: Path) -> None:
    """Refuses what Git LFS leaves in place of a file, and headers that take minutes to read; OSError: no plain file."""
    with open_plain(path) as stream:
        begin = stream.read(len(LFS_POINTER))
    check(
        begin != LFS_POINTER,
        str(path),
        got="a Git LFS pointer in place of the file",
        expected="safetensors",
        fix="run git lfs pull where it was cloned",
    )
    length = int.from_bytes(begin[:8], "little")
    check(
        length <= MAX_HEADER or length > path.stat().st_size,  # the file is cut, which is found at once
        str(path),
        got=f"a header of {length:,} bytes",
        expected=f"safetensors with a header of at most {MAX_HEADER:,}, enough for {MAX_WEIGHTS:,} weights",
        fix="copy the file again",
    )


def named(settings: UNetSettings, params: Any) -> tuple[dict[str, Any], Any]:
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
    shapes, tree = named(settings, jax.eval_shape(UNet(settings).init, jax.random.key(0), images, times)["params"])
    # Broadcast from one number, an array has a shape and no size.
    return {name: to_theirs(name, np.broadcast_to(0.0, leaf.shape)).shape for name, leaf in shapes.items()}, tree


def _check_names(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    found, expected = set(found), set(expected)
    fix = "check that config.json and weights belong together"
    missing, extra = expected - found, found - expected
    check(not missing, what, got=f"no {listing(missing)}", expected="every weight of config.json's model", fix=fix)
    check(not extra, what, got=f"also {listing(extra)}", expected="the weights of config.json's model alone", fix=fix)


def _is_name(name: Any) -> bool:
    """Whether it names a file of this directory."""
    return isinstance(name, str) and Path(name).name == name and printable(name)


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model's weights, whole or in shards."""
    for variant in VARIANTS:
        whole = directory / f"{WEIGHTS}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        index = directory / f"{WEIGHTS}.safetensors.index{variant}.json"
        if index.is_file():
            files = read_fields(index).get("weight_map")
            files = list(files.values()) if isinstance(files, dict) else []
            check(
                len(files) > 0 and all(map(_is_name, files)) and len(set(files)) <= MAX_SHARDS,
                f"{index}: weight_map",
                got=short(files),
                expected=f"a file of this directory for each weight, at most {MAX_SHARDS:,} of them",
                fix="copy the directory again",
            )
            return [directory / name for name in sorted(set(files))]
    pickles = [path.name for path in directory.iterdir() if path.suffix in PICKLES]
    check(
        not pickles,
        str(directory),
        got=f"a pickle, {listing(pickles)}",
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
    config, schedule = (
        part_file(directory, "unet", "config.json"),
        part_file(directory, "scheduler", "scheduler_config.json"),
    )
    return [config, *_weight_files(config.parent), *([schedule] if schedule.is_file() else [])]


def find_weights(directory: Path, architecture: Architecture) -> dict[str, tuple[Path, str]]:
    """File and name there of each weight of an architecture; reads no more than the files' headers.

    A prefix that all names have, such as "module." or "_orig_mod." of a wrapped model, is left out.

    Raises:
      RequestError: weights are missing, unknown, of another shape or type, damaged or pickled.
    """
    directory = part_file(directory, "unet", "config.json").parent
    expected, _ = _expected(architecture.settings, architecture.channels)
    numbers = sum(map(math.prod, expected.values()))
    check(
        numbers <= MAX_NUMBERS,
        f"{directory / 'config.json'}",
        got=f"a model of {numbers:,} weights",
        expected=f"at most {MAX_NUMBERS:,}",
        fix="audit a smaller model",
    )
    stored: dict[str, tuple[Path, str]] = {}
    parts: dict[str, tuple[Any, str]] = {}
    for path in _weight_files(directory):
        try:
            _check_header(path)
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                check(
                    len(names) + len(stored) <= MAX_WEIGHTS,
                    str(path),
                    got=f"{len(names) + len(stored):,} weights",
                    expected=f"at most {MAX_WEIGHTS:,}",
                    fix="check that config.json and weights belong together",
                )
                for name in names:
                    part = file.get_slice(name)
                    stored[name], parts[name] = (path, name), (part.get_shape(), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise RequestError(
                f"{path}: got a missing or damaged file ({short(str(error))}), expected safetensors; fix: copy it again"
            ) from None
    prefix = _common_prefix(stored, expected)
    stored = {_new_name(name.removeprefix(prefix)): place for name, place in stored.items()}
    for name, (path, theirs) in stored.items():
        if name in expected:
            _check_weight(f"{path}: {theirs}", *parts[theirs], expected[name])
    _check_names(str(directory), stored, expected)
    return stored


def read_params(directory: Path, architecture: Architecture) -> Any:
    """Reads the weights of an architecture, as float32 parameters of `UNet(architecture.settings)`.

    Raises:
      RequestError: as `find_weights`, or weights are not finite.
    """
    expected, tree = _expected(architecture.settings, architecture.channels)
    arrays = {name: np.empty(shape, np.float32) for name, shape in expected.items()}
    for name, rows, part in _finite_parts(find_weights(directory, architecture), expected):
        arrays[name][rows] = part
    return jax.tree_util.tree_unflatten(tree, [jnp.asarray(_to_ours(name, arrays.pop(name))) for name in expected])


def check_params(directory: Path, architecture: Architecture) -> None:
    """Refuses what `read_params` would, and keeps no more than a part of a weight in memory."""
    expected, _ = _expected(architecture.settings, architecture.channels)
    for _ in _finite_parts(find_weights(directory, architecture), expected):
        pass


def _finite_parts(
    found: dict[str, tuple[Path, str]], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, slice, np.ndarray]]:
    """Weights in float32, some rows of each at a time, and refused if they are not finite."""
    parts, begin = [], 0  # and how many numbers come before each
    for name, (path, theirs) in sorted(found.items(), key=lambda item: item[1]):
        rows, row = shapes[name][0], math.prod(shapes[name][1:])
        for first in range(0, rows, step := max(1, _CHUNK // row)):
            parts.append((path, begin, name, theirs, slice(first, min(first + step, rows))))
            begin += step * row
    # What is read of a file stays in memory until it is closed.
    for (path, _), some in itertools.groupby(parts, lambda part: (part[0], part[1] // _MAPPED)):
        with safe_open(path, framework="numpy") as file, np.errstate(over="ignore"):
            for _, _, name, theirs, rows in some:
                numbers = np.asarray(file.get_slice(theirs)[rows]).astype(np.float32, copy=False)
                check(
                    bool(np.isfinite(numbers).all()),
                    f"{path}: {theirs}",
                    got="values that are not finite",
                    expected="finite float32 values",
                    fix="save the model again, in float32",
                )
                yield name, rows, numbers


def _check_weight(what: str, shape: Iterable[int], dtype: str, expected: tuple[int, ...]) -> None:
    check(
        tuple(shape) == expected,
        what,
        got=tuple(shape),
        expected=f"{expected} of config.json's model",
        fix="check that config.json and weights belong together",
    )
    check(dtype in DTYPES, what, got=dtype, expected=f"one of {', '.join(DTYPES)}", fix="save the model in float32")
