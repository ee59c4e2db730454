"""Small data sets, and what the tests of data share."""

import contextlib
import dataclasses
import hashlib
import resource
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpjax.core.errors import RequestError
from fpjax.data.files import SPLITS
from fpjax.data.plant import assign, plant
from fpjax.data.source import DataSettings, Splits

ROOT = Path(__file__).parents[1]
SMALL = DataSettings(
    source="phantom",
    side=8,
    num_pool=40,
    num_val=6,
    num_test=6,
    num_members=2,
    num_controls=3,
    num_count_controls=4,
)
COINS = {"num_members": 0, "num_controls": 0, "num_count_controls": 0}
# Changed bytes are a break for every stored run: change these only with a line in CHANGELOG.md.
SHA256 = {
    "phantom_16": "ec7e33dbaeaeb78e63ac94fcca763c39d68481cee835671b3b353a0016866deb",
    "phantom_28": "add7dd1ff9dabf9f795b82ceedd5361566c6148cbcd78ef556244cf6b0acc8e0",
    "splits": "321df86e8cddc5a86c5979db4543990cf072362f9df7621c2a6421ef58b2ea77",
    "planted": "a462cf56d35cff4827b5ac9d785929b3a8c9804f7ded31bdeeb4c8f8e1b3cd9f",
    "data_json": "8ac36f973dd901e8346b9cfa1eb357c1e8f8fa9c3fcef3634b8ee549b955026e",
}


def change(**fields):
    return dataclasses.replace(SMALL, **fields)


def digest(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def drawn(splits, settings):
    """Targets with their membership, where nobody looks at detectors in between."""
    return assign(plant(splits, settings), settings)


def targets(members, controls, **fields):
    """Settings for so many targets; all controls have chains."""
    return DataSettings(num_members=members, num_controls=controls, num_count_controls=controls, **fields)


def splits_of(train, val=None, test=None):
    empty = train[:0]
    return Splits(train, empty if val is None else val, empty if test is None else test, {"source": "test"})


@contextlib.contextmanager
def refused(words):
    """A `RequestError` of one line that matches."""
    with pytest.raises(RequestError, match=words) as caught:
        yield caught
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def little_memory():
    """At most 200 MB more than now, so that an allocation in good faith fails."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # no Linux: without this belt
        yield
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**8, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def png(width, height, *, depth, colour, rows):
    """A PNG file, byte by byte."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header, content = chunk(b"IHDR", size + bytes([depth, colour, 0, 0, 0])), chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + content + chunk(b"IEND", b"")


def write_arrays(path, **changes):
    arrays = {f"{split}_images": np.zeros((3, 8, 8), np.uint8) for split in SPLITS} | changes
    np.savez(path, allow_pickle=True, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_folder(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        path = folder / (names[i] if names else f"{i:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
    return folder
