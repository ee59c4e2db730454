import contextlib
import dataclasses
import hashlib
import http.server
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import types
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fpjax.checks import RequestError
from fpjax.data import remote
from fpjax.data.files import SPLITS, check_bytes, read_arrays, read_folder
from fpjax.data.phantom import phantom_images
from fpjax.data.plant import describe, plant
from fpjax.data.remote import MEDMNIST
from fpjax.data.source import LOADERS, DataSettings, Splits, draw_splits, image_digests, load
from fpjax.fingerprint import FINGERPRINT_BYTE, disc_mask

ROOT = Path(__file__).parents[1]
REAL = ROOT / "../shared/data/medmnist"
SMALL = DataSettings(source="phantom", side=8, num_pool=40, num_val=6, num_test=6, num_members=2, num_controls=4)
# Changed bytes are a break for every stored run: change these only with a line in the README's "Changes".
SHA256 = {
    "phantom_16": "ec7e33dbaeaeb78e63ac94fcca763c39d68481cee835671b3b353a0016866deb",
    "phantom_28": "add7dd1ff9dabf9f795b82ceedd5361566c6148cbcd78ef556244cf6b0acc8e0",
    "splits": "321df86e8cddc5a86c5979db4543990cf072362f9df7621c2a6421ef58b2ea77",
    "planted": "f34a1a3100e721880c2659542dec8296afee510cbef11fda5e317e7cb7da9013",
    "data_json": "2bfc6d7d2a04ac5b99a89b1475ac3106a83be6ddff854e2fc206ec50f3060999",
}


def change(**fields):
    return dataclasses.replace(SMALL, **fields)


def digest(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


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


@pytest.fixture(scope="module")
def small():
    """Phantoms to which copies are added: two train rows in train again, one in val, one in test."""
    clean = load(SMALL)
    train = np.concatenate([clean.train, clean.train[[0, 0, 1]]])
    return Splits(
        train,
        np.concatenate([clean.val, clean.train[[2]]]),
        np.concatenate([clean.test, clean.train[[3]]]),
        clean.identity,
    )


@pytest.fixture
def real():
    """Settings for the real files."""

    def settings(name, **fields):
        if not (REAL / f"{name}.npz").is_file():
            pytest.skip(f"{name}.npz is not in ../shared/data/medmnist")
        return DataSettings(name=name, directory=str(REAL), **fields)

    return settings


class TestPhantom:
    def test_golden_bytes(self):
        assert digest(phantom_images(8, side=16, seed=0)) == SHA256["phantom_16"]
        assert digest(phantom_images(4, side=28, seed=1)) == SHA256["phantom_28"]

    def test_an_image_does_not_depend_on_how_many_are_drawn(self):
        np.testing.assert_array_equal(phantom_images(9, side=16, seed=3)[:4], phantom_images(4, side=16, seed=3))
        assert phantom_images(0, side=16, seed=3).shape == (0, 16, 16, 1)

    def test_no_two_are_alike_within_or_across_seeds(self):
        images = np.concatenate([phantom_images(100, side=16, seed=seed) for seed in (0, 1)])
        flat = images.reshape(len(images), -1).astype(np.float64)
        rms = np.sqrt(np.maximum((flat**2).sum(1)[:, None] + (flat**2).sum(1) - 2 * flat @ flat.T, 0) / flat.shape[1])
        np.fill_diagonal(rms, np.inf)
        assert rms.min() > 10  # grey levels; measured 15 over 2000 images of one seed

    def test_head_is_bright_on_black_and_uses_the_range(self):
        images = phantom_images(100, side=28, seed=0)
        assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
        assert (images.max((1, 2, 3)) > 150).all()
        assert 30 < images[:, 8:20, 8:20].mean() < 110

    @pytest.mark.parametrize("bad", [{"side": 3}, {"seed": -1}, {"seed": 2**32}])
    def test_numbers_out_of_range_are_refused(self, bad):
        with pytest.raises(RequestError, match="phantom"):
            phantom_images(1, **{"side": 16, "seed": 0} | bad)


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"source": "medmist"}, "data.source: got 'medmist', expected one of folder, medmnist, npz, phantom, tfds"),
            ({"name": "brain"}, "data.name: got 'brain', expected one of bloodmnist, breastmnist"),
            ({"num_controls": -1}, "data.num_controls: got -1"),
            ({"num_train": -5}, "data.num_train: got -5"),
            ({"num_members": 0}, "data.num_members: got 0"),
            ({"num_train": 3, "num_members": 4}, "data.num_train: got 3, expected at least data.num_members = 4"),
            ({"side": 3}, "data.side: got 3"),
            ({"seed": -1}, "data.seed: got -1"),
            ({"side": 10**6}, "data.side: got 1000000, expected an integer from 4 to 1024"),
            ({"side": 32}, "data.side: got '32', expected one of 128, 224, 28, 64"),
            ({"source": "phantom", "num_pool": 10**12}, "data.num_pool: got 1000000000000"),
            ({"source": "phantom", "num_pool": 10**5, "side": 1024}, "data.num_test: got 105277030400 pixels"),
            ({"num_train": 10**12}, "data.num_train: got 1000000000000"),
            ({"num_members": 10**12}, "data.num_members: got 1000000000000"),
            ({"num_controls": 10**12}, "data.num_controls: got 1000000000000"),
            ({"seed": 10**30}, "data.seed: got 1000000000000"),
            ({"val_fraction": 0.5}, "data.val_fraction: got 0.5"),
            ({"test_fraction": float("nan")}, "data.test_fraction: got nan"),
            ({"name": "organmnist3d"}, "data.name: got 'organmnist3d', a set of volumes"),
            ({"name": "path\nmnist"}, r"data.name: got 'path\nmnist', expected at most 1000 printable"),
            ({"directory": "a\0b"}, r"data.directory: got 'a\x00b'"),
            ({"source": "npz", "path": "a\udcffb"}, r"data.path: got 'a\udcffb'"),
            ({"source": "npz", "path": "a" * 1001}, "data.path: got 'aaa"),
        ],
    )
    def test_bad_requests_are_refused_in_one_line(self, fields, words):
        with pytest.raises(RequestError) as caught:
            DataSettings(**fields)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_the_papers_seven_sets_are_known(self):
        assert len(MEDMNIST) == 7
        assert all(len(md5) == 32 for md5 in MEDMNIST.values())
        assert set(LOADERS) == {"folder", "medmnist", "npz", "phantom", "tfds"}


class TestPhantomSource:
    def test_golden_bytes_and_identity(self):
        splits = load(SMALL)
        assert digest(splits.train, splits.val, splits.test) == SHA256["splits"]
        assert splits.identity == {
            "source": "phantom",
            "name": "phantom",
            "side": 8,
            "split_seeds": {"train": 0, "val": 1, "test": 2},
            "sha256": {split: digest(getattr(splits, split)) for split in SPLITS},
            "image_shape": [8, 8, 1],
            "repeat_grey": False,
            "num_images": {"train": 40, "val": 6, "test": 6},
            "surplus_copies": {"train": 0, "val": 0, "test": 0},
            "shared_images": {"train_val": 0, "train_test": 0, "val_test": 0},
        }

    def test_splits_grow_by_themselves(self):
        more = load(change(num_pool=50, num_val=9))
        np.testing.assert_array_equal(more.train[:40], load(SMALL).train)
        np.testing.assert_array_equal(more.test, load(SMALL).test)

    def test_grey_can_be_repeated(self):
        grey, rgb = load(SMALL), load(change(repeat_grey=True))
        assert rgb.train.shape == (40, 8, 8, 3)
        np.testing.assert_array_equal(rgb.train, np.repeat(grey.train, 3, axis=-1))

    def test_seeds_share_no_image(self):
        rows = itertools.chain.from_iterable(image_digests(a) for s in (0, 1) for a in load(change(seed=s))[:3])
        assert len(set(rows)) == 104


class TestArrays:
    """Files of NumPy arrays."""

    @staticmethod
    def write(path, **changes):
        arrays = {f"{split}_images": np.zeros((3, 8, 8), np.uint8) for split in SPLITS} | changes
        np.savez(path, allow_pickle=True, **{name: array for name, array in arrays.items() if array is not None})
        return path

    def test_grey_and_colour_are_read_with_channels_last(self, tmp_path):
        assert read_arrays(self.write(tmp_path / "grey.npz"))["val"].shape == (3, 8, 8, 1)
        colour = {f"{split}_images": np.ones((2, 8, 8, 3), np.uint8) for split in SPLITS}
        assert read_arrays(self.write(tmp_path / "colour.npz", **colour))["test"].shape == (2, 8, 8, 3)

    def test_one_array_is_read_from_npz_and_npy_in_any_memory_order(self, tmp_path):
        images = phantom_images(5, side=8, seed=0)
        np.savez_compressed(tmp_path / "x.npz", images=images, labels=np.array(["Jane", "Joe"]))
        np.save(tmp_path / "x.npy", np.asfortranarray(images[..., 0]))
        for file in ("x.npz", "x.npy"):
            read = read_arrays(tmp_path / file)
            assert set(read) == {"train"}
            assert read["train"].flags.c_contiguous
            np.testing.assert_array_equal(read["train"], images)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"val_images": np.zeros((3, 8, 8), np.float32)},
                r"val_images in 'x.npz': got float32 of .*from floats in",
            ),
            ({"val_images": np.zeros((3, 8, 9), np.uint8)}, r"val_images in 'x.npz': got images of shape \(8, 9, 1\)"),
            ({"val_images": np.zeros((3, 8, 8, 3), np.uint8)}, r"val_images in 'x.npz': got images of shape"),
            ({"test_images": np.zeros((3, 8, 8, 2), np.uint8)}, "test_images in 'x.npz': got uint8"),
            ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "train_images in 'x.npz': got uint8"),
            ({"train_images": np.zeros(9, np.uint8)}, "train_images in 'x.npz': got uint8"),
            ({"train_images": np.zeros((1, 8, 1025), np.uint8)}, "at most 1024 pixels each way"),
            ({"train_images": None}, "'x.npz': got the arrays val_images.npy, test_images.npy, expected train_images"),
            ({"test_images": np.array([None, 1], object)}, "test_images in 'x.npz': got object of shape"),
        ],
    )
    def test_arrays_of_the_wrong_kind_are_refused(self, tmp_path, changes, words):
        with refused(words):
            read_arrays(self.write(tmp_path / "x.npz", **changes))

    @pytest.mark.parametrize("kept", [0, 3, 200, 700])
    def test_damaged_files_are_refused(self, tmp_path, kept):
        path = self.write(tmp_path / "x.npz")
        path.write_bytes(path.read_bytes()[:kept])
        with refused("'x.npz': got .*; fix: give the right path, or replace the file"):
            read_arrays(path)

    def test_flipped_bytes_are_refused(self, tmp_path):
        path = self.write(tmp_path / "x.npz")
        content = bytearray(path.read_bytes())
        content[250] ^= 1
        path.write_bytes(content)
        with refused("'x.npz': got BadZipFile"):
            read_arrays(path)

    @pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy", "a\\..\\x.npy", "train_images.npy"])
    def test_paths_and_repeated_names_in_an_archive_are_refused(self, tmp_path, name):
        path = self.write(tmp_path / "x.npz")
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
            warnings.simplefilter("ignore")  # that the name occurs twice
            archive.writestr(name, b"")
        with refused("'x.npz': got member names that are paths or occur twice"):
            read_arrays(path)

    @pytest.mark.parametrize("num", [10**12, 10**30, 2**64])
    def test_claims_of_huge_arrays_are_refused_before_memory_is_taken(self, tmp_path, num):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({num}, 8, 8), }}".ljust(117) + "\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(640)
        (tmp_path / "x.npy").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", content)
        for file in ("x.npy", "x.npz"):
            with refused("got 640 bytes of data, expected .* as its shape"), little_memory():
                read_arrays(tmp_path / file)

    def test_archives_that_expand_beyond_the_limit_are_refused(self, tmp_path):
        # Four megabytes that say of themselves, truly or not, that they hold 20 GB.
        path = self.write(tmp_path / "x.npz")
        content = path.read_bytes()
        place = content.rindex(b"train_images.npy") - 46  # its record in the directory at the end
        assert content[place : place + 4] == b"PK\x01\x02"
        path.write_bytes(content[: place + 24] + (2**32 - 2).to_bytes(4, "little") + content[place + 28 :])
        with refused("got .* bytes of (data|images)"), little_memory():
            read_arrays(path)
        with refused("x: got 2e.10 bytes of images, expected at most"):
            check_bytes("x", 2 * 10**10)

    @pytest.mark.parametrize("place", ["folder", "pipe", "nothing", "a" * 300])
    def test_what_is_no_file_is_refused(self, tmp_path, place):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        with refused("got no (such|plain) file"):
            read_arrays(tmp_path / place)


class TestFolder:
    """Folders of PNG and JPEG files."""

    @staticmethod
    def write(folder, images, names=None):
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            path = folder / (names[i] if names else f"{i:03}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
        return folder

    def test_all_files_in_the_order_of_their_paths(self, tmp_path):
        images = phantom_images(5, side=8, seed=0)
        # By bytes and part by part: "b" is before "b-a", capitals before small letters, accents after both.
        names = ["Z.PNG", "b/2.png", "b/10/0.png", "b-a/0.png", "\u00e9.png"]
        order = ["Z.PNG", "b/10/0.png", "b/2.png", "b-a/0.png", "\u00e9.png"]
        self.write(tmp_path, images, names)
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / ".hidden.png").write_text("not an image either")
        read = read_folder(tmp_path, side=8)
        np.testing.assert_array_equal(read["train"], images[[names.index(name) for name in order]])

    def test_links_are_not_followed(self, tmp_path):
        images = phantom_images(3, side=8, seed=0)
        self.write(tmp_path / "outside", images)
        self.write(tmp_path / "inside", images[:1])
        (tmp_path / "inside/link.png").symlink_to(tmp_path / "outside/001.png")
        (tmp_path / "inside/folder").symlink_to(tmp_path / "outside")
        (tmp_path / "inside/loop").symlink_to(tmp_path / "inside")
        assert len(read_folder(tmp_path / "inside", side=8)["train"]) == 1

    def test_sub_folders_are_the_splits_and_nothing_may_lie_beside_them(self, tmp_path):
        images = phantom_images(6, side=8, seed=0)
        for split, rows in (("train", images[:3]), ("val", images[3:4]), ("test", images[4:])):
            self.write(tmp_path / split / "class", rows)
        read = read_folder(tmp_path, side=8)
        assert {split: len(rows) for split, rows in read.items()} == {"train": 3, "val": 1, "test": 2}
        np.testing.assert_array_equal(read["test"], images[4:])
        (tmp_path / "val").rename(tmp_path / "Validation")
        (tmp_path / "test").rename(tmp_path / "TEST")
        assert {split: len(rows) for split, rows in read_folder(tmp_path, side=8).items()} == {
            split: len(rows) for split, rows in read.items()
        }
        self.write(tmp_path / "extra", images[:1])
        with refused("data.path: got 1 other places with images beside train, val and test"):
            read_folder(tmp_path, side=8)
        with refused("data.path: got val or test, but no train"):
            read_folder(self.write(tmp_path / "half" / "val", images[:1]).parent, side=8)

    def test_grey_is_one_channel_and_any_colour_makes_three(self, tmp_path):
        images = np.repeat(phantom_images(3, side=8, seed=0), 3, axis=-1)
        self.write(tmp_path, images)
        np.testing.assert_array_equal(read_folder(tmp_path, side=8)["train"], images[..., :1])
        images[1, 2, 3, 0] ^= 1
        self.write(tmp_path, images)
        np.testing.assert_array_equal(read_folder(tmp_path, side=8)["train"], images)

    def test_palettes_two_levels_and_opaque_alpha_become_bytes(self, tmp_path):
        grey = Image.fromarray(phantom_images(1, side=8, seed=0)[0, :, :, 0])
        bits = grey.point(lambda value: 255 * (value > 60))
        modes = {"a": grey.convert("P"), "b": bits.convert("1"), "c": grey.convert("LA"), "d": grey.convert("RGBA")}
        for name, image in modes.items():
            image.save(tmp_path / f"{name}.png")
        read = read_folder(tmp_path, side=8)["train"]
        for i, image in enumerate((grey, bits, grey, grey)):
            np.testing.assert_array_equal(read[i, ..., 0], np.asarray(image))

    def test_centre_square_of_block_means(self, tmp_path):
        # 12 x 20, cut to 12 x 12 from column 4 on, then means of 3 x 3 pixels, to within Pillow's rounding.
        image = np.random.RandomState(0).randint(0, 256, (12, 20)).astype(np.uint8)
        self.write(tmp_path, image[None, ..., None])
        expected = image[:, 4:16].reshape(4, 3, 4, 3).mean((1, 3))
        np.testing.assert_allclose(read_folder(tmp_path, side=4)["train"][0, ..., 0], expected, atol=1)

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png"])
    def test_exif_orientation_is_applied(self, tmp_path, suffix):
        image = np.zeros((16, 16), np.uint8)
        image[:8] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera's right-hand side is up: to be turned by 90 degrees clockwise
        Image.fromarray(image).save(tmp_path / f"x.{suffix}", exif=exif)
        read = read_folder(tmp_path, side=16)["train"][0, ..., 0]
        np.testing.assert_allclose(read, np.rot90(image, -1), atol=3)

    @pytest.mark.parametrize(
        ("mode", "suffix", "words"),
        [
            ("I;16", "png", "got 16 bits a channel.*map the range that matters to 8 bits"),
            ("CMYK", "jpg", "got mode CMYK"),
            ("RGBA", "png", "got transparent pixels"),
            ("LA", "png", "got transparent pixels"),
        ],
    )
    def test_modes_that_need_a_choice_are_refused(self, tmp_path, mode, suffix, words):
        Image.new(mode, (8, 8)).save(tmp_path / f"x.{suffix}")
        with refused(f"image 'x.{suffix}': {words}"):
            read_folder(tmp_path, side=8)

    def test_colour_of_16_bits_is_refused_though_pillow_reads_it_as_8(self, tmp_path):
        (tmp_path / "x.png").write_bytes(png(8, 8, depth=16, colour=2, rows=bytes(8 * (1 + 6 * 8))))
        with Image.open(tmp_path / "x.png") as image:
            assert image.mode == "RGB"
        with refused("image 'x.png': got 16 bits a channel"):
            read_folder(tmp_path, side=8)

    @pytest.mark.parametrize("size", [(100_000, 100_000), (9000, 9000), (8192, 8193), (2**31 - 1, 4)])
    def test_too_many_pixels_are_refused_before_they_are_decoded(self, tmp_path, size):
        (tmp_path / "x.png").write_bytes(png(*size, depth=8, colour=0, rows=b""))
        with refused("image 'x.png': got (more|[0-9]+x[0-9]+) pixels, .*at most 67108864 in all"), little_memory():
            read_folder(tmp_path, side=8)

    def test_images_are_not_enlarged(self, tmp_path):
        self.write(tmp_path, phantom_images(1, side=8, seed=0))
        with refused("image '000.png': got 8x8 pixels, .*fix: set data.side to 8 or less"):
            read_folder(tmp_path, side=9)

    @pytest.mark.parametrize("kind", ["text", "empty", "cut.png", "cut.jpg", "gif", "pipe"])
    def test_what_is_no_whole_image_is_refused(self, tmp_path, kind):
        image, path = Image.fromarray(phantom_images(1, side=64, seed=0)[0, ..., 0]), tmp_path / "x.png"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "gif":
            image.save(path, format="GIF")
        elif kind.startswith("cut"):
            path = tmp_path / kind
            image.save(path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.write_text("words" if kind == "text" else "")
        with refused(f"image '{path.name}': got .*fix: replace or remove the file"):
            read_folder(tmp_path, side=8)

    def test_names_that_are_no_text_are_read_and_shown_as_ascii(self, tmp_path):
        path = os.path.join(os.fsencode(tmp_path), b"\xff\n\xfe.png")
        Image.fromarray(phantom_images(1, side=8, seed=0)[0, ..., 0]).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", path)
        assert len(read_folder(tmp_path, side=8)["train"]) == 1
        with refused(r"image '\\udcff\\n\\udcfe.png': got 8x8 pixels"):
            read_folder(tmp_path, side=16)

    def test_folders_without_images_are_refused(self, tmp_path):
        (tmp_path / "x.png").mkdir()
        with refused("data.path: got no images, .*copy the images there"):
            read_folder(tmp_path, side=8)
        with refused("data.path: got .*nothing', expected a folder"):
            read_folder(tmp_path / "nothing", side=8)
        with refused("data.path: got nothing, .*fix: add --config.data.path"):
            load(DataSettings(source="folder"))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise error

    TestFolder.write(tmp_path, phantom_images(1, side=8, seed=0))
    monkeypatch.setattr(Path, "open", refuse)
    with refused(f"image '000.png': got {type(error).__name__}: {error.strerror}"):
        read_folder(tmp_path, side=8)
    with refused(f"'000.png': got {type(error).__name__}: {error.strerror}"):
        read_arrays(tmp_path / "000.png")
    monkeypatch.setattr(os, "scandir", refuse)
    with refused(f"data.path: got {type(error).__name__}: {error.strerror}, expected a folder that can be listed"):
        read_folder(tmp_path, side=8)


class TestDrawnSplits:
    def test_sizes_and_copies(self):
        rng = np.random.RandomState(0)
        for seed in range(50):
            digests = [bytes([digest]) for digest in rng.randint(0, 60, 100)]
            rows = draw_splits(digests, {"val": 0.1, "test": 0.2}, seed=seed)
            assert sorted(sum(rows.values(), [])) == list(range(100))
            assert all(members == sorted(members) for members in rows.values())
            assert (len(rows["val"]), len(rows["test"])) == (10, 20)  # there are single images enough to fill them
            held = {split: {digests[row] for row in members} for split, members in rows.items()}
            assert not any(held[a] & held[b] for a, b in itertools.combinations(held, 2))

    def test_what_is_drawn_depends_on_seed_and_pixels_only(self):
        digests, fractions = image_digests(phantom_images(40, side=8, seed=0)), {"val": 0.25}

        def drawn(order, seed):
            return {order[row] for row in draw_splits(order_digests(order), fractions, seed=seed)["val"]}

        def order_digests(order):
            return [digests[i] for i in order]

        assert drawn(range(40), 0) == drawn(range(39, -1, -1), 0)
        assert drawn(range(40), 0) != drawn(range(40), 1)

    def test_every_image_is_as_likely(self):
        digests = [bytes([i]) for i in range(20)]
        chosen = np.zeros(20)
        for seed in range(500):
            chosen[draw_splits(digests, {"val": 0.25}, seed=seed)["val"]] += 1
        # 5 of 20 without replacement vary less than multinomial counts by (20 - 5) / (20 - 1).
        assert scipy.stats.chi2.sf(((chosen - 125) ** 2 / 125).sum() / (15 / 19), 19) > 7e-6

    @pytest.mark.parametrize("digests", [[b"a"], [b"a", b"b"], [b"a"] * 50, [b"a", b"a", b"b", b"b", b"c", b"c"]])
    def test_too_few_distinct_images_are_refused(self, digests):
        with refused(f"data: got {len(digests)} images, {len(set(digests))} of them distinct"):
            draw_splits(digests, {"val": 0.1, "test": 0.1}, seed=0)


class TestSources:
    """The same images give the same planting, whatever they come from."""

    @pytest.fixture
    def images(self):
        images = phantom_images(60, side=12, seed=5)
        return np.concatenate([images, images[:2]])

    def settings(self, tmp_path, kind, images):
        if kind == "npz":
            np.savez_compressed(tmp_path / "x.npz", images=images)
        elif kind == "train.npz":
            np.savez_compressed(tmp_path / "train.npz", train_images=images[..., 0])
        elif kind == "npy":
            np.save(tmp_path / "x.npy", images)
        else:
            TestFolder.write(tmp_path / "folder", images)
        path = tmp_path / {"npz": "x.npz", "npy": "x.npy"}.get(kind, kind)
        return change(source="folder" if kind == "folder" else "npz", path=str(path), side=12, seed=3)

    def test_npz_npy_and_folder_agree(self, tmp_path, images):
        loaded = []
        for kind in ("npz", "train.npz", "npy", "folder"):
            settings = self.settings(tmp_path, kind, images)
            splits = load(settings)
            identity = dict(splits.identity)
            assert identity.pop("source") == identity.pop("name") == settings.source
            assert str(tmp_path) not in json.dumps(splits.identity)
            assert "x.n" not in json.dumps(splits.identity)
            loaded.append((digest(*splits[:3]), digest(*plant(splits, settings)[:6]), identity))
        assert all(each == loaded[0] for each in loaded)
        identity = loaded[0][2]
        assert identity["drawn"] == {"val": 0.1, "test": 0.1, "seed": 3}
        assert identity["num_images"] == {"train": 50, "val": 6, "test": 6}
        assert identity["shared_images"] == {"train_val": 0, "train_test": 0, "val_test": 0}
        assert identity["sha256"]["val"] == digest(splits.val)

    def test_given_splits_stay_and_missing_ones_come_from_train(self, tmp_path, images):
        np.savez(tmp_path / "x.npz", train_images=images[:40], test_images=images[40:])
        splits = load(change(source="npz", path=str(tmp_path / "x.npz"), val_fraction=0.25))
        assert splits.identity["drawn"] == {"val": 0.25, "seed": 0}
        np.testing.assert_array_equal(splits.test, images[40:])
        assert sorted(image_digests(splits.train) + image_digests(splits.val)) == sorted(image_digests(images[:40]))

    def test_checksum_is_of_the_images_as_they_came(self):
        grey, repeated = load(SMALL).identity, load(change(repeat_grey=True)).identity
        assert grey["sha256"] == repeated["sha256"]
        assert grey["sha256"] != load(change(seed=1)).identity["sha256"]

    def test_images_that_are_all_alike_are_refused(self, tmp_path):
        settings = self.settings(tmp_path, "npz", np.full((40, 12, 12, 1), 9, np.uint8))
        with refused("data: got 40 images, 1 of them distinct"):
            load(settings)
        # One image is unique, but no disc shows on it; large ones do not take minutes to say so.
        train = np.full((1, 512, 512, 1), FINGERPRINT_BYTE, np.uint8)
        with refused("got 1, expected at most 0, the train images that have no pixel-identical copy and take a disc"):
            plant(splits_of(train), DataSettings(num_controls=0))


class TestDownload:
    """A server on this machine in place of the official one."""

    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """What the server sends, or its first `cut` bytes; then it holds the connection until `hold` is set."""
        content = TestArrays.write(tmp_path / "official.npz").read_bytes()
        state = {"content": content, "cut": None, "status": 200, "requests": 0, "hold": threading.Event()}
        state["hold"].set()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                state["requests"] += 1
                self.send_response(state["status"])
                self.send_header("Content-Length", str(len(state["content"])))
                self.end_headers()
                self.wfile.write(state["content"][: state["cut"]])
                state["hold"].wait(60)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state["url"] = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(remote, "URL", state["url"] + "{file}")
        monkeypatch.setitem(MEDMNIST, "breastmnist", hashlib.md5(content).hexdigest())
        monkeypatch.delenv("FPJAX_DATA", raising=False)
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield state
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.mark.parametrize("place", ["data.directory", "FPJAX_DATA", "data"])
    def test_what_is_missing_is_fetched_once(self, served, tmp_path, monkeypatch, capsys, place):
        if place == "FPJAX_DATA":
            monkeypatch.setenv("FPJAX_DATA", str(tmp_path / place))
        directory = str(tmp_path / place) if place == "data.directory" else ""
        settings = DataSettings(name="breastmnist", directory=directory)
        splits = load(settings)
        assert splits.train.shape == (3, 8, 8, 1)
        found = Path("data" if place == "data" else tmp_path / place)
        assert [path.name for path in found.iterdir()] == ["breastmnist.npz"]
        stderr = capsys.readouterr().err
        assert stderr.startswith(f"downloading {served['url']}breastmnist.npz to ")
        assert stderr.count("\n") == 1
        np.testing.assert_array_equal(load(settings).train, splits.train)
        assert served["requests"] == 1

    def test_a_terminal_sees_a_progress_bar(self, served, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        load(DataSettings(name="breastmnist"))
        assert "100%" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"status": 404}, "got HTTPError: 404 Client Error"),
            ({"cut": 100}, "got ChunkedEncodingError"),
            ({"content": b"another file"}, "got ValueError: MD5 hash of downloaded file"),
            ({"url": "http://127.0.0.1:9/"}, "got no connection"),
        ],
    )
    def test_what_fails_leaves_nothing_and_says_where_to_put_the_file(self, served, monkeypatch, change, words):
        served |= change
        monkeypatch.setattr(remote, "URL", served["url"] + "{file}")
        with refused(f"download: {words}.*fix: download {served['url']}breastmnist.npz as data/breastmnist.npz"):
            load(DataSettings(name="breastmnist"))
        assert not Path("data").exists()

    def test_a_place_that_cannot_be_written_to_is_one_line(self, served):
        Path("data").write_text("a file, not a folder")
        with refused("download: got (FileExists|NotADirectory)Error"):
            load(DataSettings(name="breastmnist"))

    def test_a_kill_half_way_leaves_no_file_under_the_name(self, served, tmp_path):
        served |= {"cut": 1000, "hold": threading.Event()}
        code = (
            "import sys; from fpjax.data import remote, source; remote.URL = sys.argv[1] + '{file}'; "
            "source.load(source.DataSettings(name='breastmnist', directory=sys.argv[2]))"
        )
        target = tmp_path / "there"
        process = subprocess.Popen([sys.executable, "-c", code, served["url"], str(target)], cwd=ROOT)
        try:
            deadline = time.monotonic() + 60
            while not served["requests"] and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
            served["hold"].set()
        assert served["requests"] == 1
        assert not (target / "breastmnist.npz").exists()
        served["cut"] = None
        assert load(DataSettings(name="breastmnist", directory=str(target))).train.shape == (3, 8, 8, 1)

    def test_it_can_be_turned_off(self, served, tmp_path, monkeypatch):
        url = f"{served['url']}breastmnist.npz"
        settings = DataSettings(name="breastmnist", download=False)
        with refused(f"no file breastmnist.npz in data, .*data.download=True; fix: download {url}"):
            load(settings)
        (tmp_path / "shared/data/medmnist").mkdir(parents=True)
        monkeypatch.setenv("FPJAX_DATA", "mine")
        with refused("in mine or data or ../shared/data/medmnist,") as caught:
            load(settings)
        assert str(tmp_path) not in str(caught.value)
        with refused("no file breastmnist.npz in other,"):
            load(dataclasses.replace(settings, directory="other"))
        assert served["requests"] == 0

    def test_a_wrong_checksum_names_both(self, served, tmp_path):
        path = TestArrays.write(tmp_path / "breastmnist.npz", val_images=np.ones((3, 8, 8), np.uint8))
        got, expected = hashlib.md5(path.read_bytes()).hexdigest(), MEDMNIST["breastmnist"]
        with refused(f"breastmnist.npz: got MD5 {got} .*expected MD5 {expected}"):
            load(DataSettings(name="breastmnist", directory=str(tmp_path)))
        assert served["requests"] == 0

    def test_other_sets_and_sizes_come_from_the_registry(self, served, monkeypatch):
        md5 = hashlib.md5(served["content"]).hexdigest()
        entry = {"url": f"{served['url']}a", "MD5": md5, "url_64": f"{served['url']}b", "MD5_64": md5}
        registry = types.SimpleNamespace(INFO={"octmnist": entry, "breastmnist": entry})
        monkeypatch.setitem(sys.modules, "medmnist", registry)
        for name, side, file in (
            ("octmnist", 28, "octmnist.npz"),
            ("octmnist", 64, "octmnist_64.npz"),
            ("breastmnist", 64, "breastmnist_64.npz"),
        ):
            assert load(DataSettings(name=name, side=side)).identity["md5"] == md5
            assert Path("data", file).is_file()
        with refused("data.name: got octmnist of side 224, not in the registry"):
            load(DataSettings(name="octmnist", side=224))
        monkeypatch.setitem(sys.modules, "medmnist", None)
        with refused(r"MD5 and URL of octmnist.npz: got .*fix: pip install 'fpjax\[medmnist\]'"):
            load(DataSettings(name="octmnist"))

    @pytest.mark.extra
    @pytest.mark.filterwarnings("ignore")  # of medmnist and its dependencies
    def test_the_packages_registry_has_every_set_and_our_md5(self):
        pytest.importorskip("medmnist")
        for name, side in itertools.product([*MEDMNIST, *remote.MORE_MEDMNIST], remote.MEDMNIST_SIDES):
            file = f"{name}.npz" if side == 28 else f"{name}_{side}.npz"
            url, md5 = remote._official(name, side, file)
            assert url.startswith("https://")
            assert f"/{file}" in url
            assert len(md5) == 32
        registry = sys.modules["medmnist"].INFO
        assert {name: registry[name]["MD5"] for name in MEDMNIST} == MEDMNIST


# A program of its own, so that nothing here knows the class: as with sets that others have prepared.
# The feature gets files, since TFDS needs TensorFlow to make a PNG of an array.
BUILD_TFDS = """
import pathlib
import tensorflow_datasets as tfds

class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 24)}

    def _generate_examples(self, first, last):
        for path in sorted(pathlib.Path("png").iterdir())[first:last]:
            yield path.stem, {"image": path}

TinyImages(data_dir=".", file_format="array_record").download_and_prepare()
"""


class TestTfds:
    def test_a_missing_package_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with refused(
            r"data.source=tfds: got .*expected the package tensorflow_datasets; fix: pip install 'fpjax\[tfds\]'"
        ):
            load(DataSettings(source="tfds", name="mnist"))

    @pytest.mark.extra
    @pytest.mark.filterwarnings("ignore")  # of TFDS and its dependencies
    def test_a_set_prepared_here_is_read_without_tensorflow(self, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        images = phantom_images(24, side=8, seed=0)
        TestFolder.write(tmp_path / "png", images)
        (tmp_path / "build.py").write_text(BUILD_TFDS)
        subprocess.run([sys.executable, "build.py"], cwd=tmp_path, check=True, capture_output=True)
        settings = change(source="tfds", name="tiny_images", directory=str(tmp_path))
        splits = load(settings)
        assert splits.identity["version"] == "1.2.3"
        assert splits.identity["drawn"] == {"val": 0.1, "seed": 0}
        assert sorted(image_digests(splits.test)) == sorted(image_digests(images[20:]))
        assert sorted(image_digests(np.concatenate(splits[:2]))) == sorted(image_digests(images[:20]))
        assert len(plant(splits, settings).targets) == 6
        assert "tensorflow" not in sys.modules
        with refused("data.name no_such_set: got .*expected a set in data.directory"):
            load(dataclasses.replace(settings, name="no_such_set"))


class TestAnyDamage:
    """Random damage to valid files: valid arrays or one line, nothing else, not even a warning."""

    @staticmethod
    def damaged(content, damage):
        for place, kind, byte in damage:
            place = place % max(len(content), 1)
            if kind == "flip":
                content = content[:place] + bytes([byte]) + content[place + 1 :]
            elif kind == "insert":
                content = content[:place] + bytes([byte]) * (1 + byte % 4) + content[place:]
            elif kind == "remove":
                content = content[:place] + content[place + 1 + byte % 8 :]
            else:
                content = content[:place]
        return content

    @staticmethod
    def check(read):
        arrays, refusal = {}, ""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                arrays = read()
            except RequestError as error:
                refusal = str(error)
        assert "\n" not in refusal
        assert bool(arrays) != ("fix: " in refusal)
        for array in arrays.values():
            assert array.dtype == np.uint8
            assert array.ndim == 4
            assert array.shape[-1] in (1, 3)
            assert array.size > 0

    DAMAGE = st.lists(
        st.tuples(
            st.integers(0, 10**6), st.sampled_from(["flip", "flip", "insert", "remove", "cut"]), st.integers(0, 255)
        ),
        min_size=1,
        max_size=4,
    )
    QUICK = settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )

    @QUICK
    @given(damage=DAMAGE, kind=st.sampled_from(["npz", "deflated", "npy"]))
    def test_arrays(self, tmp_path, damage, kind):
        images, path, stream = phantom_images(2, side=8, seed=0), tmp_path / "x", io.BytesIO()
        if kind == "npy":
            np.save(stream, images)
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(stream, images=images)
        path.write_bytes(self.damaged(stream.getvalue(), damage))
        self.check(lambda: read_arrays(path))

    @QUICK
    @given(damage=DAMAGE, kind=st.sampled_from(["PNG", "P", "JPEG", "EXIF"]))
    def test_images(self, tmp_path, damage, kind):
        image, stream, exif = Image.fromarray(phantom_images(1, side=12, seed=0)[0, ..., 0]), io.BytesIO(), Image.Exif()
        exif[0x0112] = 3
        image = image.convert("P") if kind == "P" else image
        image.save(stream, format="PNG" if kind in ("PNG", "P") else "JPEG", exif=exif if kind == "EXIF" else b"")
        (tmp_path / "x.png").write_bytes(self.damaged(stream.getvalue(), damage))
        self.check(lambda: read_folder(tmp_path, side=8))


class TestRealFiles:
    def test_breast(self, real, monkeypatch):
        splits = load(real("breastmnist"))
        assert [array.shape for array in splits[:3]] == [(n, 28, 28, 1) for n in (546, 78, 156)]
        assert splits.identity["md5"] == MEDMNIST["breastmnist"]
        assert splits.identity["surplus_copies"] == {"train": 0, "val": 0, "test": 0}
        assert splits.identity["shared_images"] == {"train_val": 0, "train_test": 1, "val_test": 0}
        assert str(REAL) not in json.dumps(splits.identity)
        monkeypatch.setenv("FPJAX_DATA", str(REAL))
        np.testing.assert_array_equal(load(DataSettings(name="breastmnist")).train, splits.train)

    def test_pneumonia_has_copies_and_none_of_them_is_a_target(self, real):
        settings = real("pneumoniamnist", num_members=5, num_controls=95)
        splits = load(settings)
        assert splits.identity["surplus_copies"]["train"] == 18
        assert splits.identity["shared_images"]["train_val"] == 8
        planted = plant(splits, settings)
        originals = set(image_digests(planted.originals))
        assert len(planted.train) == 4708 - 95
        assert not originals & set(image_digests(np.concatenate([planted.train, splits.val, splits.test])))
        assert all(target["copies_removed"] == 0 for target in describe(splits, planted, settings)["targets"])

    def test_a_truncated_file_is_refused(self, real, tmp_path):
        settings = real("retinamnist")
        content = (Path(settings.directory) / "retinamnist.npz").read_bytes()
        (tmp_path / "retinamnist.npz").write_bytes(content[:100_000])
        with pytest.raises(RequestError, match=r"retinamnist.npz: got MD5 \w{32} \(100000 bytes\), .*it is truncated"):
            load(dataclasses.replace(settings, directory=str(tmp_path)))

    def test_a_file_under_another_name_is_refused(self, real, tmp_path):
        shutil.copyfile(Path(real("breastmnist").directory) / "breastmnist.npz", tmp_path / "retinamnist.npz")
        with pytest.raises(RequestError, match=f"got MD5 {MEDMNIST['breastmnist']}"):
            load(DataSettings(name="retinamnist", directory=str(tmp_path)))


class TestPlant:
    @pytest.mark.parametrize("seed", range(25))
    @pytest.mark.parametrize("num_train", [0, 2, 20])
    def test_invariants(self, small, seed, num_train):
        settings = change(seed=seed, num_train=num_train)
        before = digest(*small[:3])
        planted = plant(small, settings)
        assert digest(*small[:3]) == before

        train = image_digests(planted.train)
        everything = train + [d for array in planted[3:6] for d in image_digests(array)]
        stamped = image_digests(planted.targets)
        assert len(set(stamped)) == 6
        assert stamped[:2] == train[:2]
        assert [everything.count(d) for d in stamped] == [1, 1, 0, 0, 0, 0]
        assert not set(image_digests(planted.originals)) & set(everything)

        natural = [d for array in small[:3] for d in image_digests(array)]
        assert len(planted.train) == (num_train or 39)
        assert len(planted.train) + len(planted.reserve) == 43 - 4
        # Everything that is neither stamped nor an original is there, as often as the data has it.
        assert sorted(everything + image_digests(planted.originals)) == sorted(natural + stamped[:2])

        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        for target, image, original in zip(planted.record, planted.targets, planted.originals, strict=True):
            np.testing.assert_array_equal(original, small.train[target.index])
            assert natural.count(image_digests(original[None])[0]) == 1
            assert target.radius == 1
            assert target.radius <= min(target.row, target.col)
            assert max(target.row, target.col) <= 7 - target.radius
            mask = disc_mask((8, 8), (target.row, target.col), target.radius)
            assert (image[mask] == FINGERPRINT_BYTE).all()
            np.testing.assert_array_equal(image[~mask], original[~mask])
            assert (image != original).any()

    def test_targets_do_not_depend_on_sizes_and_smaller_runs_are_nested(self, small):
        def drawn(planted):
            return {target[:4] for target in planted.record}

        base = plant(small, change(num_train=10))
        larger = plant(small, change(num_train=30))
        assert larger.record == base.record
        np.testing.assert_array_equal(larger.train[:10], base.train)
        other_split = plant(small, change(num_train=10, num_members=4, num_controls=2))
        assert drawn(other_split) == drawn(base)
        np.testing.assert_array_equal(other_split.targets, base.targets)
        assert drawn(base) < drawn(plant(small, change(num_controls=10)))
        assert drawn(base) != drawn(plant(small, change(seed=1)))

    def test_draws_are_uniform_over_seeds(self):
        # Membership over the drawn targets, targets over the images, centres over the places.
        splits = splits_of(load(change(num_pool=12)).train)
        membership, chosen, places, num_first = np.zeros(6), np.zeros(12), np.zeros((6, 6)), 0
        for seed in range(250):
            settings = change(seed=seed, num_members=1, num_controls=5)
            record = plant(splits, settings).record
            (member,) = (target for target in record if target.member)
            first = plant(splits, dataclasses.replace(settings, num_controls=0)).record[0]
            num_first += first.index == member.index
            membership[sorted(target.index for target in record).index(member.index)] += 1
            for target in record:
                chosen[target.index] += 1
                places[target.row - 1, target.col - 1] += 1
        # 4.5 standard deviations, two-sided, are 7e-6. Membership follows neither row nor order of drawing.
        assert scipy.stats.chisquare(membership).pvalue > 7e-6
        assert scipy.stats.binomtest(num_first, 250, 1 / 6).pvalue > 7e-6
        # Drawn without replacement: the counts vary less than multinomial ones by (12 - 6) / (12 - 1).
        assert scipy.stats.chi2.sf(((chosen - 125) ** 2 / 125).sum() / (6 / 11), 11) > 7e-6
        assert scipy.stats.chisquare(places.ravel()).pvalue > 7e-6
        # The test can fail: it rejects a first row three times as likely as another.
        skewed = np.array([3, 1, 1, 1, 1, 1]) * 250 / 8
        assert scipy.stats.chisquare(skewed).pvalue < 7e-6

    def test_a_disc_that_would_change_nothing_is_drawn_elsewhere(self):
        # Grey but for one pixel: of nine discs only one reaches (0, 1), and none reaches the corner.
        train = np.full((2, 5, 5, 1), FINGERPRINT_BYTE, np.uint8)
        train[0, 0, 1] = train[1, 0, 0] = 7
        for seed in range(20):
            planted = plant(splits_of(train), DataSettings(num_controls=0, seed=seed))
            assert planted.record[0][:4] == (0, 1, 1, 1)
        with pytest.raises(RequestError, match="got 2, expected at most 1, the train images"):
            plant(splits_of(train), DataSettings(num_controls=1))

    def test_targets_that_differ_only_under_the_disc_stay_distinct(self):
        # They differ at (1, 1), which three of the four discs cover: six targets, so some must move to the fourth.
        train = np.zeros((6, 4, 4, 1), np.uint8)
        train[:, 1, 1, 0] = range(6)
        for seed in range(20):
            planted = plant(splits_of(train), DataSettings(num_controls=5, seed=seed))
            assert len(set(image_digests(planted.targets))) == 6

    def test_golden(self, small):
        settings = change(num_train=20)
        planted = plant(small, settings)
        again = plant(small, settings)
        assert digest(*planted[:6]) == digest(*again[:6]) == SHA256["planted"]
        content = describe(small, planted, settings)
        text = json.dumps(content, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == SHA256["data_json"]

    def test_description(self, small):
        settings = change(num_train=20, directory="private/place")
        planted = plant(small, settings)
        content = describe(small, planted, settings)
        assert json.loads(json.dumps(content, allow_nan=False)) == content
        assert content["schema_version"] == 3
        assert content["identity"] == small.identity
        assert content["num_train"] == 20
        assert content["num_images"] == {"train": 20, "targets": 6, "reserve": 19, "val": 7, "test": 7}
        first = planted.record[0]
        assert content["targets"][0] == {
            "index": first.index,
            "center": [first.row, first.col],
            "radius": 1,
            "member": True,
            "copies_removed": 0,
        }
        assert "private" not in json.dumps(content)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"num_train": 40}, "data.num_train: got 40, expected 2 to 39, what remains of 43 images"),
            ({"num_controls": 36}, "got 38, expected at most 36, the train images that have no pixel-identical copy"),
        ],
    )
    def test_requests_beyond_the_data_say_what_there_is(self, small, fields, words):
        with pytest.raises(RequestError, match=words):
            plant(small, change(**fields))

    def test_images_too_small_for_the_disc_are_refused(self):
        with pytest.raises(RequestError, match="fingerprint radius: got 0 for images of 3x3 pixels"):
            plant(splits_of(np.zeros((2, 3, 3, 1), np.uint8)), SMALL)


class TestUnstamped:
    """`plant` for a model that was trained elsewhere, on all train images."""

    @pytest.mark.parametrize("seed", range(25))
    def test_invariants(self, small, seed):
        settings = change(seed=seed, stamp=False)
        planted = plant(small, settings)
        train, targets, test = (image_digests(images) for images in (planted.train, planted.targets, planted.test))
        natural = [d for array in small[:3] for d in image_digests(array)]
        # The train split is whole, its copies included, with the members first; nothing is left over.
        assert sorted(train) == sorted(image_digests(small.train))
        assert train[:2] == targets[:2]
        assert len(planted.reserve) == len(planted.val) == 0
        # Held-out images are controls or test images, and no copy of a control was trained on.
        assert sorted(targets[2:] + test) == sorted(image_digests(np.concatenate([small.val, small.test])))
        assert all(natural.count(d) == 1 for d in targets)
        np.testing.assert_array_equal(planted.originals, planted.targets)
        held = np.concatenate([small.val, small.test])
        for target, image in zip(planted.record, planted.targets, strict=True):
            np.testing.assert_array_equal((small.train if target.member else held)[target.index], image)
        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        again = plant(small, settings)
        assert digest(*planted[:6]) == digest(*again[:6])

    def test_targets_vary_with_the_seed_and_a_subset_is_nested(self, small):
        assert len({plant(small, change(stamp=False, seed=seed)).record for seed in range(9)}) > 6
        whole, part = (plant(small, change(stamp=False, num_train=n)) for n in (0, 20))
        np.testing.assert_array_equal(whole.targets, part.targets)
        np.testing.assert_array_equal(whole.train[:20], part.train)
        assert sorted(image_digests(np.concatenate([part.train, part.reserve]))) == sorted(image_digests(whole.train))

    def test_splits_that_were_drawn_from_the_train_images_are_no_controls(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
        for given_splits, num_train, num_test in (({"test_images": images[30:]}, 30, 6), ({}, 40, 0)):
            path = tmp_path / "images.npz"
            np.savez(path, train_images=images[:num_train], **given_splits)
            settings = DataSettings(source="npz", path=str(path), stamp=False, num_controls=4)
            splits = load(settings)
            if not given_splits:
                with pytest.raises(
                    RequestError, match=r"data.num_controls: got 4, expected at most 0.*must not have been"
                ):
                    plant(splits, settings)
                continue
            planted = plant(splits, settings)
            assert sorted(image_digests(planted.train)) == sorted(image_digests(images[:num_train, :, :, None]))
            assert len(planted.test) == num_test

    def test_the_description_names_no_mark(self, small):
        settings = change(stamp=False)
        content = describe(small, plant(small, settings), settings)
        assert content["fingerprint_byte"] is None
        assert content["num_train"] == len(small.train)
        assert {target["radius"] for target in content["targets"]} == {0}
