"""Models of diffusers that are spoilt."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .case import ESCAPES, Bases, Case, fifo


def _model_case(name: str, spoil: Callable[[Path], Any]) -> Case:
    """A model that is sound but for what `spoil` does to its directory."""

    def flags(directory: Path, bases: Bases) -> list[str]:
        shutil.copytree(bases.model, directory / "model")
        spoil(directory / "model")
        return [
            f"--config.score.path={directory / 'model'}", f"--config.data.path={bases.images}",
            "--config.data.source=npz", "--config.data.stamp=False", "--config.data.num_train=0",
            "--config.data.num_spares=0", "--config.classifiers.detector=nearest", "--stage=data",
        ]  # fmt: skip

    return Case(f"model: {name}", flags)


_VALUES: dict[str, str] = {
    "401 digits": "1" + "0" * 401,
    "5,000 digits": "1" + "0" * 5000,
    "NaN": "NaN",
    "1e999": "1e999",
    "half a surrogate": '"\\ud800"',
    "escapes": json.dumps(ESCAPES),
    "200,000 brackets": "[" * 200_000,
    "a million numbers": "[" + "1," * 999_999 + "1]",
    "a negative number": "-1",
    "null": "null",
    "a list of lists": "[[[]]]",
}
_SOUND = {("trained_betas", "null")}
_FIELDS = {
    "config.json": ("layers_per_block", "block_out_channels", "norm_eps"),
    "scheduler_config.json": ("beta_end", "trained_betas"),
}


def _field(path: Path, field: str, value: str) -> None:
    """Puts the text of a value into a JSON file, valid or not."""
    content = json.loads(path.read_text())
    content[field] = "@"
    path.write_bytes(json.dumps(content).replace('"@"', value).encode())


def _header(entries: Any, *, size: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def _many_weights(number: int) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return _header({f"w{i}": entry for i in range(number)})


def _weights(path: Path, name: str, value: float) -> None:
    from safetensors import numpy as safetensors

    arrays = safetensors.load_file(path)
    arrays[name] = np.full_like(arrays[name], value)
    safetensors.save_file(arrays, path)


def _shards(model: Path, names: Any) -> None:
    (model / "diffusion_pytorch_model.safetensors").unlink()
    path = model / "diffusion_pytorch_model.safetensors.index.json"
    path.write_bytes(json.dumps({"weight_map": names}).encode())


def replaced(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def models() -> Iterator[Case]:
    for file, fields in _FIELDS.items():
        for field in fields:
            for name, value in ((name, value) for name, value in _VALUES.items() if (field, name) not in _SOUND):
                yield _model_case(f"{field} of {name}", lambda m, f=file, n=field, v=value: _field(m / f, n, v))
    weights = "diffusion_pytorch_model.safetensors"
    contents: dict[str, bytes] = {
        "empty weights": b"",
        "a pickle": b"\x80\x04\x95cos\nsystem\n",
        "a header of 2^63 bytes": _header({}, size=2**63),
        "a header that is cut": _header({}, size=2**20),
        "weights beyond the file": _header(
            {"conv_in.bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**60]}}
        ),
        "a shape of 2^62": _header({"conv_in.bias": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        "names with escapes": _header({ESCAPES: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "50,000 weights": _many_weights(50_000),
    }
    for name, content in contents.items():
        yield _model_case(name, lambda m, c=content: (m / weights).write_bytes(c))
    header = 99 * 10**6
    yield _model_case(
        "a header of 99 MB",
        lambda m: (m / weights).write_bytes(struct.pack("<Q", header) + b'{"a":{}' + b" " * (header - 8) + b"}"),
    )
    yield _model_case("a million weights", lambda m: (m / weights).write_bytes(_many_weights(10**6)))
    yield _model_case(
        "a model of 4,096 channels",
        lambda m: _field(m / "config.json", "block_out_channels", str([4096])),
    )
    yield _model_case("weights in a pipe", lambda m: replaced(m / weights, fifo))
    yield _model_case("weights of 100 GB", lambda m: os.truncate(m / weights, 10**11))
    yield _model_case("config in a pipe", lambda m: replaced(m / "config.json", fifo))
    yield _model_case("config of 1 GB", lambda m: os.truncate(m / "config.json", 10**9))
    yield _model_case("a link to /dev/zero", lambda m: replaced(m / "config.json", lambda p: p.symlink_to("/dev/zero")))
    for name, value in {"nan": np.nan, "infinity": np.inf}.items():
        yield _model_case(f"weights of {name}", lambda m, v=value: _weights(m / weights, "conv_in.bias", v))
    for name, shard in {
        "out of the directory": "../secret.safetensors",
        "absolute": "/etc/passwd",
        "nul": "a\x00b.safetensors",
        "half a surrogate": "\ud800.safetensors",
        "escapes": ESCAPES,
        "a number": 3,
    }.items():
        yield _model_case(f"a shard, {name}", lambda m, s=shard: _shards(m, {"conv_in.bias": s}))
    yield _model_case("a shard in a pipe", lambda m: (_shards(m, {"conv_in.bias": "p"}), fifo(m / "p")))
    yield _model_case("a hundred thousand shards", lambda m: _shards(m, {f"w{i}": f"{i}.st" for i in range(10**5)}))
    yield _model_case("a name of the class with escapes", lambda m: _field(m / "config.json", ESCAPES, "1"))
