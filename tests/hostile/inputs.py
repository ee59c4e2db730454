"""What hostile or unlucky people hand in: each case writes its files into a directory of its own and gives the flags.

A case is a function of that directory, made by a table wherever many differ in one thing only. The flags `BASE` come
before; the answer is one line and exit status 2 unless the case says otherwise.
"""

import dataclasses
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fpjax.core.store import read_json, write_json

ESCAPES = "\x1b]0;owned\x07\x1b[31m\u202etxt\x00\r\x9b2J"


@dataclasses.dataclass(frozen=True)
class Bases:
    """Sound inputs that cases spoil copies of."""

    model: Path
    images: Path  # an npz that fits the model
    run: Path  # a finished smoke run


@dataclasses.dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
      name: its kind and what it is.
      flags: of its directory and the bases.
      statuses: exit statuses that are right.
      lines: of standard error at most; what a run says before it stops.
    """

    name: str
    flags: Callable[[Path, Bases], list[str]]
    statuses: tuple[int, ...] = (2,)
    lines: int = 1


def _written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def _fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def _sparse(path: Path, size: int, *, begin: bytes = b"") -> Path:
    _written(path, begin)
    os.truncate(path, size)
    return path


# Configs, which are programs: what they do on purpose nobody can stop, but they must not hang or hide what is wrong.
_CONFIGS: dict[str, bytes | str] = {
    "no python": "this is not python",
    "raises": "raise RuntimeError('no')",
    "raises with escapes": f"raise ValueError({ESCAPES!r})",
    "no get_config": "x = 1",
    "no config": "def get_config():\n    return 3\n",
    "exits": "import sys\nsys.exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "recursion": "def get_config():\n    return get_config()\n",
    "memory": "x = [0] * 10**14",
    "nul": "x = '\x00'",
    "not utf-8": b"x = '\xff'",
    "never ends": "while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "empty": "",
    "two megabytes": "#" * 2**21,
}


def _configs() -> Iterator[Case]:
    for name, content in _CONFIGS.items():
        yield Case(f"config: {name}", lambda d, _, c=content: [f"--config={_written(d / 'c.py', c)}"])
    yield Case("config: two of them", lambda d, _: ["--config=smoke", f"--config={_written(d / 'c.py', 'x = 1')}"])
    yield Case("config: a pipe", lambda d, _: [f"--config={_fifo(d / 'c.py')}"])
    yield Case("config: a directory", lambda d, _: [f"--config={d}/"])
    yield Case("config: 10 GB", lambda d, _: [f"--config={_sparse(d / 'c.py', 10**10)}"])
    yield Case("config: /dev/zero", lambda d, _: ["--config=/dev/zero"])
    yield Case("config: a name with escapes", lambda d, _: [f"--config={ESCAPES.replace(chr(0), '')}"])
    yield Case("flagfile: /dev/zero", lambda d, _: ["--flagfile=/dev/zero"])
    yield Case("flagfile: a pipe", lambda d, _: ["--flagfile", str(_fifo(d / "flags"))])
    yield Case("flagfile: itself", lambda d, _: [f"--flagfile={_written(d / 'flags', f'--flagfile={d}/flags')}"])
    yield Case("flagfile: escapes", lambda d, _: [f"--flagfile={_written(d / 'flags', '--' + ESCAPES)}"])


_FLAGS: dict[str, list[str]] = {
    "unknown, with escapes": ["--bad" + ESCAPES.replace("\x00", "") + "=1"],
    "bytes that are no text": ["--bad\udcff=1"],
    "a bare word": ["word\x1b[2J"],
    "a port above 65535": ["--coordinator=127.0.0.1:70000", "--num_processes=2", "--process_id=0"],
    "a port of 40 digits": ["--coordinator=127.0.0.1:" + "9" * 40, "--num_processes=2", "--process_id=0"],
    "no host": ["--coordinator=:123", "--num_processes=2", "--process_id=0"],
    "a process of none": ["--coordinator=127.0.0.1:123", "--num_processes=0", "--process_id=0"],
    "a number of 5,000 digits": ["--config.data.side=" + "9" * 5000],
    "nan": ["--config.audit.level=nan"],
    "a long name": ["--workdir=" + "x" * 300],
    "a deep name": ["--workdir=" + "d/" * 2500],
    "a stage with escapes": ["--stage=" + ESCAPES.replace("\x00", "")],
    "a field with escapes": ["--config.data.name=" + ESCAPES.replace("\x00", "")],
    "a group that never ends": ["--config.data.source=folder", "--config.data.path=/", "--config.data.group=(" * 200],
    "the file system as a folder": ["--config.data.source=npz", "--config.data.path=/"],
    "a device as images": ["--config.data.source=npz", "--config.data.path=/dev/zero"],
    "the terminal as images": ["--config.data.source=npz", "--config.data.path=/dev/stdin"],
    "a device as a work directory": ["--workdir=/dev/null"],
    "a device as a key": ["--sign=/dev/zero"],
    "nothing to verify": ["--key=/dev/zero"],
    "a device as a signed run": ["--verify=/dev/zero", "--key=/dev/zero"],
    "another user's home": ["--workdir=~nobody_of_this_name/run"],
}


def _flags() -> Iterator[Case]:
    for name, flags in _FLAGS.items():
        yield Case(f"flags: {name}", lambda d, _, f=flags: f)


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


def _replaced(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _models() -> Iterator[Case]:
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
    yield _model_case("weights in a pipe", lambda m: _replaced(m / weights, _fifo))
    yield _model_case("weights of 100 GB", lambda m: os.truncate(m / weights, 10**11))
    yield _model_case("config in a pipe", lambda m: _replaced(m / "config.json", _fifo))
    yield _model_case("config of 1 GB", lambda m: os.truncate(m / "config.json", 10**9))
    yield _model_case(
        "a link to /dev/zero", lambda m: _replaced(m / "config.json", lambda p: p.symlink_to("/dev/zero"))
    )
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
    yield _model_case("a shard in a pipe", lambda m: (_shards(m, {"conv_in.bias": "p"}), _fifo(m / "p")))
    yield _model_case("a hundred thousand shards", lambda m: _shards(m, {f"w{i}": f"{i}.st" for i in range(10**5)}))
    yield _model_case("a name of the class with escapes", lambda m: _field(m / "config.json", ESCAPES, "1"))


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def _archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _npy(shape: str, *, data: bytes = b"", descr: str = "|u1") -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + data


_ARRAYS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "a pickle": lambda: b"\x80\x04\x95",
    "objects": lambda: _npz(train_images=np.array([None, {}], object)),
    "a shape of 10^18": lambda: _npy("(1000000000, 30000, 30000)"),
    "a negative shape": lambda: _npy("(-1, 8, 8)"),
    "a shape that is code": lambda: _npy("__import__('os').system('true')"),
    "a bomb of 4 GB": lambda: _archive({"train_images.npy": _npy("(65536, 256, 256)", data=bytes(2**22))}),
    "members out of the directory": lambda: _archive({"../train_images.npy": b""}),
    "a thousand members too many": lambda: _archive({f"a{i}.npy": b"" for i in range(2000)}),
    "names with escapes": lambda: _archive({ESCAPES: b""}),
    "floats": lambda: _npz(train_images=np.zeros((4, 8, 8), np.float32)),
    "half a file": lambda: _npz(train_images=np.zeros((40, 8, 8), np.uint8))[:200],
}


def _arrays() -> Iterator[Case]:
    source = ["--config.data.source=npz", "--stage=data"]
    for name, make in _ARRAYS.items():
        yield Case(f"npz: {name}", lambda d, _, m=make: [*source, f"--config.data.path={_written(d / 'x.npz', m())}"])
    yield Case("npz: a pipe", lambda d, _: [*source, f"--config.data.path={_fifo(d / 'x.npz')}"])
    sparse = b"\x93NUMPY\x01\x00"
    yield Case("npz: 100 GB", lambda d, _: [*source, f"--config.data.path={_sparse(d / 'x', 10**11, begin=sparse)}"])


def _png(width: int, height: int, *, chunks: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _text_bomb() -> bytes:
    content = b"a\0\0" + zlib.compress(bytes(2**28))
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


def _scans(side: int, number: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * number + b"\xff\xd9"


def _deep(directory: Path) -> None:
    """1,500 folders within folders, deeper than a path may be long."""
    here = os.open(directory, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


_IMAGES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda f: f.mkdir(),
    "a pipe": lambda f: _fifo(f / "x.png"),
    "a link to /dev/zero": lambda f: (f.mkdir(), (f / "x.png").symlink_to("/dev/zero")),
    "a link to the root": lambda f: (f.mkdir(), (f / "x").symlink_to(f), _written(f / "x.png", b"")),
    "an empty file": lambda f: _written(f / "x.png", b""),
    "a PNG of 60000x60000": lambda f: _written(f / "x.png", _png(60_000, 60_000)),
    "a PNG of 2^31 pixels a side": lambda f: _written(f / "x.png", _png(2**31 - 1, 2**31 - 1)),
    "a PNG that is cut": lambda f: _written(f / "x.png", _png(64, 64)[:60]),
    "a PNG with a text bomb": lambda f: _written(f / "x.png", _png(8000, 8000, chunks=_text_bomb())),
    "a PNG of 100 GB": lambda f: _sparse(f / "x.png", 10**11, begin=_png(8, 8)),
    "a JPEG in 60,000 scans": lambda f: _written(f / "x.jpg", _scans(2000, 60_000)),
    "a JPEG in 90 scans of 64 megapixels": lambda f: _written(f / "x.jpg", _scans(8000, 90)),
    "HTML": lambda f: _written(f / "x.png", b"<html>"),
    "folders 1,500 deep": lambda f: (f.mkdir(), _deep(f)),
    "names with escapes": lambda f: _written(f / (ESCAPES.replace("\x00", "").replace("/", "") + ".png"), b"x"),
    "a name that is no text": lambda f: _written(f / os.fsdecode(b"\xff\xfe.png"), b"x"),
    "an SVG": lambda f: _written(f / "x.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
}


def _images() -> Iterator[Case]:
    for name, make in _IMAGES.items():

        def flags(directory: Path, _: Bases, make: Callable[[Path], Any] = make) -> list[str]:
            make(directory / "images")
            return ["--config.data.source=folder", f"--config.data.path={directory / 'images'}", "--stage=data"]

        yield Case(f"images: {name}", flags)


def _tfds() -> Iterator[Case]:
    for name, content in {
        "a module of its own": {"pythonClassName": "evil.Feature"},
        "a module beneath": {"featuresDict": {"features": {"image": {"pythonClassName": "os.path.Feature"}}}},
        "the old form": {"type": "evil.Feature", "content": {}},
        "another spelling": {"python_class_name": "tensorflow_datasets.core.features.x.y;evil"},
    }.items():

        def flags(directory: Path, _: Bases, content: Any = content) -> list[str]:
            _written(directory / "tfds/mine/1.0.0/features.json", json.dumps(content))
            _written(directory / "evil.py", f"open({str(directory / 'owned')!r}, 'w')")
            return ["--config.data.source=tfds", "--config.data.name=mine", f"--config.data.directory={directory}/tfds"]

        yield Case(f"tfds: {name}", flags)
    source = ["--config.data.source=tfds", "--stage=data"]
    yield Case("tfds: a namespace", lambda d, _: [*source, "--config.data.name=kaggle:mine"])
    yield Case("tfds: a path", lambda d, _: [*source, f"--config.data.name={d}/x"])


def _run_case(
    name: str, spoil: Callable[[Path], Any], *, statuses: tuple[int, ...] = (2,), stage: str = "report"
) -> Case:
    """A finished run that is sound but for what `spoil` does to its directory."""

    def flags(directory: Path, bases: Bases) -> list[str]:
        shutil.copytree(bases.run, directory / "run", symlinks=True)
        spoil(directory / "run")
        return [f"--stage={stage}"] if stage else []

    return Case(f"run: {name}", flags, statuses, lines=6)


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a result, and writes its digest anew as whoever edits one can."""
    content = {name: value for name, value in read_json(path).items() if name not in ("digest", "schema_version")}
    change(content)
    write_json(path, content)


def _linked(path: Path, to: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(to)


_OTHER_FILES = (".lock", "config.json", "metrics.jsonl", "report.json", "samples/count.npz", ".config.json.tmp")
_ODD_LINES = b"\n".join(
    (
        b'{"stage": "score", "step": [], "loss": {}}',
        b'{"stage": "score", "step": 1' + b"0" * 400 + b', "loss": 1}',
        b'{"stage": "identity classifier", "epoch": "x", "loss": null}',
        b'{"stage": "score", "step": 3, "loss": 1, "loss_by_t": 4, "grad_norm": "x"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
    )
)


def _runs() -> Iterator[Case]:
    for name in _OTHER_FILES:
        yield _run_case(f"{name} is a link out", lambda r, n=name: _linked(r / n, r.parent / "outside" / "kept"))
    yield _run_case(
        "figures/ is a link out", lambda r: (shutil.rmtree(r / "figures"), _linked(r / "figures", r.parent))
    )
    yield _run_case(
        "partial/ is a link out", lambda r: (shutil.rmtree(r / "partial"), _linked(r / "partial", r.parent))
    )
    yield _run_case("config.json is a pipe", lambda r: _replaced(r / "config.json", _fifo))
    yield _run_case("metrics.jsonl is a pipe", lambda r: _replaced(r / "metrics.jsonl", _fifo), statuses=(1, 2))
    yield _run_case(
        "metrics.jsonl with odd lines", lambda r: (r / "metrics.jsonl").write_bytes(_ODD_LINES), statuses=(0,)
    )
    yield _run_case("samples with odd names", lambda r: _written(r / "samples/score_x.npz", b""), statuses=(0,))
    yield _run_case("pictures are damaged", lambda r: (r / "samples/count.npz").write_bytes(b"x"), statuses=(0,))
    for name in ("config", "data", "classifiers", "score", "count", "search", "likelihood", "bound"):
        path = f"{name}.json"
        yield _run_case(f"{path} with 100,000 brackets", lambda r, p=path: (r / p).write_bytes(b"[" * 100_000))
        yield _run_case(
            f"{path} without its keys, with a right digest",
            lambda r, p=path: (r / p).unlink() or write_json(r / p, {"inputs": {}}),
        )
    yield _run_case("count.json of 2 GB", lambda r: os.truncate(r / "count.json", 2**31))
    yield _run_case("versions with escapes", lambda r: _edit(r / "config.json", _foreign), statuses=(0,))
    yield _run_case(
        "counts of another length, with a right digest",
        lambda r: _edit(r / "search.json", lambda c: c.update(num_detected=[], num_chains=[])),
        statuses=(1, 2),
    )


def _foreign(content: dict[str, Any]) -> None:
    content["provenance"][ESCAPES] = ESCAPES
    content["provenance"]["jax"] = ESCAPES


CASES = (*_configs(), *_flags(), *_models(), *_arrays(), *_images(), *_tfds(), *_runs())
