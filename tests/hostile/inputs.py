"""Configs, flags, images and sets of TFDS that are spoilt, and all cases."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .case import ESCAPES, Bases, Case, fifo, sparse, written
from .models import models
from .runs import runs

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
        yield Case(f"config: {name}", lambda d, _, c=content: [f"--config={written(d / 'c.py', c)}"])
    yield Case("config: two of them", lambda d, _: ["--config=smoke", f"--config={written(d / 'c.py', 'x = 1')}"])
    yield Case("config: a pipe", lambda d, _: [f"--config={fifo(d / 'c.py')}"])
    yield Case("config: a directory", lambda d, _: [f"--config={d}/"])
    yield Case("config: 10 GB", lambda d, _: [f"--config={sparse(d / 'c.py', 10**10)}"])
    yield Case("config: /dev/zero", lambda d, _: ["--config=/dev/zero"])
    yield Case("config: a name with escapes", lambda d, _: [f"--config={ESCAPES.replace(chr(0), '')}"])
    yield Case("flagfile: /dev/zero", lambda d, _: ["--flagfile=/dev/zero"])
    yield Case("flagfile: a pipe", lambda d, _: ["--flagfile", str(fifo(d / "flags"))])
    yield Case("flagfile: itself", lambda d, _: [f"--flagfile={written(d / 'flags', f'--flagfile={d}/flags')}"])
    for name, make in {"/dev/zero": lambda d: "/dev/zero", "a pipe": lambda d: str(fifo(d / "c.py"))}.items():
        yield Case(
            f"flagfile: the config of {name}",
            lambda d, _, m=make: [f"--flagfile={written(d / 'flags', f'--config={m(d)}')}"],
        )
    yield Case("flagfile: escapes", lambda d, _: [f"--flagfile={written(d / 'flags', '--' + ESCAPES)}"])


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


def _members(number: int) -> bytes:
    """An archive's list of members alone, in the form that has room for their number."""
    listed = (b"PK\1\2" + bytes(24) + struct.pack("<H", 7) + bytes(16) + b"%07d" % i for i in range(number))
    content = b"".join(listed)
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, number, number, len(content), 0)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, len(content), 1)
    return content + end + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)


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
    "a million members": lambda: _members(10**6),
    "names with escapes": lambda: _archive({ESCAPES: b""}),
    "floats": lambda: _npz(train_images=np.zeros((4, 8, 8), np.float32)),
    "half a file": lambda: _npz(train_images=np.zeros((40, 8, 8), np.uint8))[:200],
}


def _arrays() -> Iterator[Case]:
    source = ["--config.data.source=npz", "--stage=data"]
    for name, make in _ARRAYS.items():
        yield Case(f"npz: {name}", lambda d, _, m=make: [*source, f"--config.data.path={written(d / 'x.npz', m())}"])
    yield Case("npz: a pipe", lambda d, _: [*source, f"--config.data.path={fifo(d / 'x.npz')}"])
    begin = b"\x93NUMPY\x01\x00"
    yield Case("npz: 100 GB", lambda d, _: [*source, f"--config.data.path={sparse(d / 'x', 10**11, begin=begin)}"])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *, chunks: bytes = b"", kind: int = 0, size: int = 1000) -> bytes:
    """A PNG of a kind of pixels, and so many bytes of them."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(bytes(size)))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + pixels + _chunk(b"IEND", b"")


def _text_bomb() -> bytes:
    return _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))


def _segments(content: bytes) -> bytes:
    """A JPEG with something before its first segment."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG")
    return file.getvalue()[:2] + content + file.getvalue()[2:]


def _many(directory: Path, png: bytes, *, number: int = 4) -> None:
    for i in range(number):
        written(directory / f"{i}.png", png)


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
    "a pipe": lambda f: fifo(f / "x.png"),
    "a link to /dev/zero": lambda f: (f.mkdir(), (f / "x.png").symlink_to("/dev/zero")),
    "a link to the root": lambda f: (f.mkdir(), (f / "x").symlink_to(f), written(f / "x.png", b"")),
    "an empty file": lambda f: written(f / "x.png", b""),
    "a PNG of 60000x60000": lambda f: written(f / "x.png", _png(60_000, 60_000)),
    "a PNG of 2^31 pixels a side": lambda f: written(f / "x.png", _png(2**31 - 1, 2**31 - 1)),
    "a PNG that is cut": lambda f: written(f / "x.png", _png(64, 64)[:60]),
    "a PNG with a text bomb": lambda f: written(f / "x.png", _png(8000, 8000, chunks=_text_bomb())),
    "a PNG of 100 GB": lambda f: sparse(f / "x.png", 10**11, begin=_png(8, 8)),
    "a JPEG in 60,000 scans": lambda f: written(f / "x.jpg", _scans(2000, 60_000)),
    "a JPEG in 90 scans of 64 megapixels": lambda f: written(f / "x.jpg", _scans(8000, 90)),
    "a JPEG in 5 million segments": lambda f: written(f / "x.jpg", _segments(b"\xff\xe5\0\2" * 5_000_000)),
    "a JPEG after 50 MB of padding": lambda f: written(f / "x.jpg", _segments(b"\xff" * 50_000_000)),
    "a PNG in 2 million chunks": lambda f: written(f / "x.png", _png(64, 64, chunks=_chunk(b"abCd", b"") * 2_000_000)),
    "PNGs of 64 megapixels with alpha": lambda f: _many(f, _png(8000, 8000, kind=6, size=8000 * 32001)),
    "HTML": lambda f: written(f / "x.png", b"<html>"),
    "folders 1,500 deep": lambda f: (f.mkdir(), _deep(f)),
    "names with escapes": lambda f: written(f / (ESCAPES.replace("\x00", "").replace("/", "") + ".png"), b"x"),
    "a name that is no text": lambda f: written(f / os.fsdecode(b"\xff\xfe.png"), b"x"),
    "an SVG": lambda f: written(f / "x.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
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
            written(directory / "tfds/mine/1.0.0/features.json", json.dumps(content))
            written(directory / "evil.py", f"open({str(directory / 'owned')!r}, 'w')")
            return ["--config.data.source=tfds", "--config.data.name=mine", f"--config.data.directory={directory}/tfds"]

        yield Case(f"tfds: {name}", flags)
    evil = {"pythonClassName": "evil.Feature"}
    sound = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    for name, features, info in (
        ("a module behind a link", evil, {}),
        ("a module in dataset_info.json", sound, {"features": evil}),
        ("JSON in JSON", sound | {"jsonFeature": {"json": json.dumps({"image": {"type": "evil.Feature"}})}}, {}),
    ):

        def linked(directory: Path, _: Bases, features: Any = features, info: Any = info) -> list[str]:
            written(directory / "elsewhere/features.json", json.dumps(features))
            written(directory / "elsewhere/dataset_info.json", json.dumps(info))
            (directory / "tfds/mine").mkdir(parents=True)
            (directory / "tfds/mine/1.0.0").symlink_to(directory / "elsewhere")
            written(directory / "evil.py", f"open({str(directory / 'owned')!r}, 'w')")
            return ["--config.data.source=tfds", "--config.data.name=mine", f"--config.data.directory={directory}/tfds"]

        yield Case(f"tfds: {name}", linked)
    source = ["--config.data.source=tfds", "--stage=data"]
    yield Case("tfds: a namespace", lambda d, _: [*source, "--config.data.name=kaggle:mine"])
    yield Case("tfds: a path", lambda d, _: [*source, f"--config.data.name={d}/x"])


CASES = (*_configs(), *_flags(), *models(), *_arrays(), *_images(), *_tfds(), *runs())
