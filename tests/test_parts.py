"""Images in very many parts: refused before Pillow goes through them, and nothing else is taken for such a file."""

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from fpjax.data import folder
from fpjax.data.folder import read_folder
from fpjax.data.parts import MAX_PARTS, jpeg_parts, png_parts
from fpjax.data.phantom import phantom_images

from .data_sets import refused, write_folder

MANY = MAX_PARTS + 1


def saved(kind, side=16, **options):
    file = io.BytesIO()
    Image.fromarray(phantom_images(1, side=side, seed=0)[0, ..., 0]).save(file, kind, **options)
    return file.getvalue()


def chunk(kind):
    return struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))


def before_pixels(jpeg, content):
    return jpeg[:2] + content + jpeg[2:]


def last_scan(jpeg):
    return jpeg[jpeg.rindex(b"\xff\xda") : -2]


PARTS = {
    "chunks.png": lambda: (png := saved("PNG"))[:33] + chunk(b"abCd") * MANY + png[33:],
    "pixels.png": lambda: saved("PNG")[:-12] + chunk(b"IDAT") * MANY + chunk(b"IEND"),
    "segments.jpg": lambda: before_pixels(saved("JPEG"), b"\xff\xe5\0\2" * MANY),
    "padding.jpg": lambda: before_pixels(saved("JPEG"), b"\xff" * MANY),
    "zeros.jpg": lambda: before_pixels(saved("JPEG"), b"\xff\xe5\0\2" + bytes(MANY)),
    # Of this segment Pillow does not take the length, and goes through it byte for byte.
    "unread.jpg": lambda: before_pixels(saved("JPEG"), (b"\xff\xf1\xff\xff" + bytes(65533)) * 2),
    "between scans.jpg": lambda: saved("JPEG", progressive=True)[:-2] + b"\xff\xfe\0\2" * MANY + b"\xff\xd9",
}


@pytest.mark.parametrize("name", PARTS)
def test_files_in_very_many_parts_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(PARTS[name]())
    with refused(f"image '{name}': got more than 65,536 parts, .*fix: save it again"):
        read_folder(tmp_path, side=8)


def test_scans_are_counted_where_they_are(tmp_path):
    jpeg = saved("JPEG", progressive=True)
    usual = jpeg.count(b"\xff\xda")
    assert jpeg_parts(jpeg, most_scans=100)[1] == usual
    film = jpeg + np.random.default_rng(0).bytes(10**7)  # a phone's "motion photo"
    thumbnail = before_pixels(jpeg, b"\xff\xe1" + struct.pack(">H", len(jpeg) + 8) + b"Exif\0\0" + jpeg)
    for content in (film, thumbnail):
        assert content.count(b"\xff\xda") > usual
        assert jpeg_parts(content, most_scans=100)[1] == usual
    restarts = saved("JPEG", side=2112, restart_marker_blocks=1)
    assert jpeg_parts(restarts, most_scans=100)[1] == 1
    for i, content in enumerate((jpeg, film, thumbnail, restarts)):
        (tmp_path / f"{i}.jpg").write_bytes(content)
    assert len(read_folder(tmp_path, side=8).images["train"]) == 4
    (tmp_path / "x.jpg").write_bytes(jpeg[:-2] + last_scan(jpeg) * 100 + b"\xff\xd9")
    with refused(r"'x.jpg': got a JPEG of 16x16 pixels in more than 100 scans, .*save it as a baseline JPEG"):
        read_folder(tmp_path, side=8)


@pytest.mark.parametrize("number", range(40))
def test_parts_of_any_bytes_are_counted(number):
    """What is cut, or has its bytes changed, is counted without an error."""
    random = np.random.default_rng(number)
    for kind in ("PNG", "JPEG"):
        content = bytearray(saved(kind))
        for place in random.integers(2, len(content), 5):
            content[place] = random.integers(256)
        content = bytes(content[: random.integers(len(content))])
        assert png_parts(io.BytesIO(content)) <= MANY
        assert jpeg_parts(content, most_scans=9)[0] <= MANY


def test_large_images_are_read_one_at_a_time(tmp_path, monkeypatch):
    images = phantom_images(4, side=16, seed=0)
    write_folder(tmp_path, images)
    threads = set()
    to_square = folder._to_square
    monkeypatch.setattr(
        folder, "_to_square", lambda *args: (threads.add(threading.current_thread()), to_square(*args))[1]
    )
    np.testing.assert_array_equal(read_folder(tmp_path, side=16).images["train"], images)
    assert threading.main_thread() not in threads
    for limit in (255, 10):  # of its pixels, and of its bytes
        monkeypatch.setattr(folder, "_LARGE", limit)
        threads.clear()
        np.testing.assert_array_equal(read_folder(tmp_path, side=16).images["train"], images)
        assert threads == {threading.main_thread()}
