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
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fpjax.core.errors import RequestError
from fpjax.core.records import from_content, to_content
from fpjax.data import plant as plant_module
from fpjax.data import remote
from fpjax.data.files import SPLITS, check_bytes, read_arrays, read_folder
from fpjax.data.fingerprint import FINGERPRINT_BYTE, disc_mask
from fpjax.data.phantom import phantom_images
from fpjax.data.plant import DataResult, Membership, assign, describe, describe_membership, held_out_rows, plant
from fpjax.data.remote import MEDMNIST
from fpjax.data.source import LOADERS, DataSettings, Splits, draw_splits, image_digests, load

ROOT = Path(__file__).parents[1]
REAL = ROOT / "../shared/data/medmnist"
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
# Changed bytes are a break for every stored run: change these only with a line in the README's "Changes".
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
        clean.alike,
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
            ({"num_train": 9, "canaries": 10} | COINS, "data.num_train: got 9, expected at least data.canaries = 10"),
            ({"num_count_controls": 23}, "data.num_count_controls: got 23, expected at least data.num_controls = 24"),
            ({"num_count_controls": -1}, "data.num_count_controls: got -1, expected an integer from 0"),
            ({"num_spares": -1}, "data.num_spares: got -1"),
            ({"min_contrast": -1}, "data.min_contrast: got -1, expected an integer from 0 to 127"),
            ({"min_contrast": 128}, "data.min_contrast: got 128"),
            ({"min_contrast": 0.5}, "data.min_contrast: got 0.5"),
            ({"canaries": -1}, "data.canaries: got -1"),
            ({"canaries": 9} | COINS, "data.canaries: got 9, expected 0 or at least 10"),
            (
                {"canaries": 20},
                "data.canaries: got 20 with data.num_members = 1, data.num_controls = 24, data.num_count_controls = 99, "
                "expected canaries or a fixed number of members and held-out targets: a coin decides how many are which; "
                "fix: set data.num_members, data.num_controls, data.num_count_controls to 0, or data.canaries to 0",
            ),
            (
                {"canaries": 20, "num_members": 4, "num_controls": 0, "num_count_controls": 0},
                "got 20 with data.num_mem",
            ),
            ({"canaries": 20, "stamp": False} | COINS, "data.canaries: got 20 with data.stamp=False"),
            ({"num_spares": 2, "stamp": False}, "data.num_spares: got 2 with data.stamp=False"),
            (COINS, "data.num_members: got 0, expected an integer from 1"),
            ({"group": "patient"}, "data.group: got 'patient' with data.source=medmnist, expected nothing"),
            ({"group": "patient", "source": "tfds"}, "data.group: got 'patient' with data.source=tfds"),
            ({"group": "(", "source": "folder"}, "data.group: got '(': missing )"),
            ({"group": "a\nb", "source": "npz"}, r"data.group: got 'a\nb', expected at most 1000 printable"),
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
            "alike": ["train", "val", "test"],
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
        assert read_arrays(self.write(tmp_path / "grey.npz")).images["val"].shape == (3, 8, 8, 1)
        colour = {f"{split}_images": np.ones((2, 8, 8, 3), np.uint8) for split in SPLITS}
        assert read_arrays(self.write(tmp_path / "colour.npz", **colour)).images["test"].shape == (2, 8, 8, 3)

    def test_one_array_is_read_from_npz_and_npy_in_any_memory_order(self, tmp_path):
        images = phantom_images(5, side=8, seed=0)
        np.savez_compressed(tmp_path / "x.npz", images=images, labels=np.array(["Jane", "Joe"]))
        np.save(tmp_path / "x.npy", np.asfortranarray(images[..., 0]))
        for file in ("x.npz", "x.npy"):
            read = read_arrays(tmp_path / file).images
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
        read = read_folder(tmp_path, side=8).images
        np.testing.assert_array_equal(read["train"], images[[names.index(name) for name in order]])

    def test_links_are_not_followed(self, tmp_path):
        images = phantom_images(3, side=8, seed=0)
        self.write(tmp_path / "outside", images)
        self.write(tmp_path / "inside", images[:1])
        (tmp_path / "inside/link.png").symlink_to(tmp_path / "outside/001.png")
        (tmp_path / "inside/folder").symlink_to(tmp_path / "outside")
        (tmp_path / "inside/loop").symlink_to(tmp_path / "inside")
        assert len(read_folder(tmp_path / "inside", side=8).images["train"]) == 1

    def test_sub_folders_are_the_splits_and_nothing_may_lie_beside_them(self, tmp_path):
        images = phantom_images(6, side=8, seed=0)
        for split, rows in (("train", images[:3]), ("val", images[3:4]), ("test", images[4:])):
            self.write(tmp_path / split / "class", rows)
        read = read_folder(tmp_path, side=8).images
        assert {split: len(rows) for split, rows in read.items()} == {"train": 3, "val": 1, "test": 2}
        np.testing.assert_array_equal(read["test"], images[4:])
        (tmp_path / "val").rename(tmp_path / "Validation")
        (tmp_path / "test").rename(tmp_path / "TEST")
        assert {split: len(rows) for split, rows in read_folder(tmp_path, side=8).images.items()} == {
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
        np.testing.assert_array_equal(read_folder(tmp_path, side=8).images["train"], images[..., :1])
        images[1, 2, 3, 0] ^= 1
        self.write(tmp_path, images)
        np.testing.assert_array_equal(read_folder(tmp_path, side=8).images["train"], images)

    def test_palettes_two_levels_and_opaque_alpha_become_bytes(self, tmp_path):
        grey = Image.fromarray(phantom_images(1, side=8, seed=0)[0, :, :, 0])
        bits = grey.point(lambda value: 255 * (value > 60))
        modes = {"a": grey.convert("P"), "b": bits.convert("1"), "c": grey.convert("LA"), "d": grey.convert("RGBA")}
        for name, image in modes.items():
            image.save(tmp_path / f"{name}.png")
        read = read_folder(tmp_path, side=8).images["train"]
        for i, image in enumerate((grey, bits, grey, grey)):
            np.testing.assert_array_equal(read[i, ..., 0], np.asarray(image))

    def test_centre_square_of_block_means(self, tmp_path):
        # 12 x 20, cut to 12 x 12 from column 4 on, then means of 3 x 3 pixels, to within Pillow's rounding.
        image = np.random.RandomState(0).randint(0, 256, (12, 20)).astype(np.uint8)
        self.write(tmp_path, image[None, ..., None])
        expected = image[:, 4:16].reshape(4, 3, 4, 3).mean((1, 3))
        np.testing.assert_allclose(read_folder(tmp_path, side=4).images["train"][0, ..., 0], expected, atol=1)

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png"])
    def test_exif_orientation_is_applied(self, tmp_path, suffix):
        image = np.zeros((16, 16), np.uint8)
        image[:8] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera's right-hand side is up: to be turned by 90 degrees clockwise
        Image.fromarray(image).save(tmp_path / f"x.{suffix}", exif=exif)
        read = read_folder(tmp_path, side=16).images["train"][0, ..., 0]
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
        assert len(read_folder(tmp_path, side=8).images["train"]) == 1
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
            loaded.append((digest(*splits[:3]), digest(*drawn(splits, settings)[:6]), identity))
        assert all(each == loaded[0] for each in loaded)
        identity = loaded[0][2]
        assert identity["drawn"] == {"val": 0.1, "test": 0.1, "seed": 3}
        assert identity["alike"] == ["train", "val", "test"]
        assert identity["num_images"] == {"train": 50, "val": 6, "test": 6}
        assert identity["shared_images"] == {"train_val": 0, "train_test": 0, "val_test": 0}
        assert identity["sha256"]["val"] == digest(splits.val)

    def test_given_splits_stay_and_missing_ones_come_from_train(self, tmp_path, images):
        np.savez(tmp_path / "x.npz", train_images=images[:40], test_images=images[40:])
        splits = load(change(source="npz", path=str(tmp_path / "x.npz"), val_fraction=0.25))
        assert splits.identity["drawn"] == {"val": 0.25, "seed": 0}
        assert splits.alike == ("train", "val")  # whether the given test images are like these nobody knows
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
        for min_contrast in (0, 1):
            with refused(
                "got 1, expected at most 0, the train images that have no pixel-identical copy and take a disc with a "
                f"contrast of {min_contrast} grey levels; 1 have no place for it; fix: plant fewer targets, lower "
                "data.min_contrast or use more data"
            ):
                plant(splits_of(train), targets(1, 0, min_contrast=min_contrast))


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
            names = np.array(["Ana", "Wu"])
            (np.savez if kind == "npz" else np.savez_compressed)(stream, images=images, who=names)
        path.write_bytes(self.damaged(stream.getvalue(), damage))
        self.check(lambda: read_arrays(path, group="" if kind == "npy" else "who").images)

    @QUICK
    @given(damage=DAMAGE, kind=st.sampled_from(["PNG", "P", "JPEG", "EXIF"]))
    def test_images(self, tmp_path, damage, kind):
        image, stream, exif = Image.fromarray(phantom_images(1, side=12, seed=0)[0, ..., 0]), io.BytesIO(), Image.Exif()
        exif[0x0112] = 3
        image = image.convert("P") if kind == "P" else image
        image.save(stream, format="PNG" if kind in ("PNG", "P") else "JPEG", exif=exif if kind == "EXIF" else b"")
        (tmp_path / "x.png").write_bytes(self.damaged(stream.getvalue(), damage))
        self.check(lambda: read_folder(tmp_path, side=8).images)


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
        settings = real("pneumoniamnist", num_members=5)
        splits = load(settings)
        assert splits.identity["surplus_copies"]["train"] == 18
        assert splits.identity["shared_images"]["train_val"] == 8
        candidates = plant(splits, settings)
        planted = assign(candidates, settings)
        originals = set(image_digests(planted.originals))
        assert len(planted.train) == 5 + 4708 - sum(target.split == "train" for target in planted.record)
        assert len(planted.val) == 524 - sum(target.split == "val" for target in planted.record)
        assert not originals & {d for array in planted[:1] + planted[3:6] for d in image_digests(array)}
        assert all(target.copies_removed == 0 for target in describe(splits, candidates, settings).targets)
        assert min(target.contrast for target in planted.record) >= 16

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
        settings = change(seed=seed, num_train=num_train, num_spares=3)
        before = digest(*small[:3])
        candidates = plant(small, settings)
        planted = assign(candidates, settings)
        assert digest(*small[:3]) == before

        train = image_digests(planted.train)
        everything = train + [d for array in planted[3:6] for d in image_digests(array)]
        stamped = image_digests(planted.targets)
        assert len(set(stamped)) == 6
        assert stamped[:2] == train[:2]
        assert [everything.count(d) for d in stamped] == [1, 1, 0, 0, 0, 0]

        natural = [d for array in small[:3] for d in image_digests(array)]
        num_rest = 43 - sum(target.split == "train" for target in candidates.record)
        assert len(planted.train) == (num_train or 2 + num_rest)
        assert len(planted.train) + len(planted.reserve) == 2 + num_rest
        # Everything that is neither stamped nor an original, spares included, is there as often as the data has it.
        originals = image_digests(candidates.originals)
        assert sorted(everything + originals) == sorted(natural + stamped[:2])
        np.testing.assert_array_equal(np.concatenate([planted.train[2:], planted.reserve]), candidates.rest)

        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        assert (planted.num_members, planted.num_controls) == (2, 3)
        assert {target.member for target in candidates.record} == {None}
        for i, row in enumerate(planted.rows):
            assert planted.record[i]._replace(member=None) == candidates.record[row]
            np.testing.assert_array_equal(planted.targets[i], candidates.targets[row])
            np.testing.assert_array_equal(planted.originals[i], candidates.originals[row])
        for target, image, original in zip(candidates.record, candidates.targets, candidates.originals, strict=True):
            np.testing.assert_array_equal(original, getattr(small, target.split)[target.index])
            assert natural.count(image_digests(original[None])[0]) == 1
            assert target.radius == 1
            assert target.radius <= min(target.row, target.col)
            assert max(target.row, target.col) <= 7 - target.radius
            mask = disc_mask((8, 8), (target.row, target.col), target.radius)
            assert (image[mask] == FINGERPRINT_BYTE).all()
            np.testing.assert_array_equal(image[~mask], original[~mask])
            assert target.contrast == int(np.abs(original[mask].astype(float) - FINGERPRINT_BYTE).mean())
            assert target.contrast >= 16

    def test_targets_do_not_depend_on_sizes_and_smaller_runs_are_nested(self, small):
        base, members = plant(small, change(num_train=10)), drawn(small, change(num_train=10))
        larger = drawn(small, change(num_train=30))
        assert larger.record == members.record
        np.testing.assert_array_equal(larger.train[:10], members.train)
        other = change(num_train=10, num_members=4, num_controls=1, num_count_controls=2)
        assert plant(small, other).record == base.record
        np.testing.assert_array_equal(drawn(small, other).targets, members.targets)
        for more in (change(num_count_controls=10), change(num_spares=6), change(canaries=12, **COINS)):
            assert plant(small, more).record[:6] == base.record
        assert plant(small, change(seed=1)).record != base.record

    def test_draws_are_uniform_over_seeds(self):
        # Membership over the drawn targets, targets over the images, centres over the places.
        splits = splits_of(load(change(num_pool=12)).train)
        membership, in_order, chosen, places = np.zeros(6), np.zeros(6), np.zeros(12), np.zeros((6, 6))
        for seed in range(250):
            settings = targets(1, 5, seed=seed, min_contrast=0)
            planted = drawn(splits, settings)
            in_order[planted.rows[0]] += 1
            membership[sorted(target.index for target in planted.record).index(planted.record[0].index)] += 1
            for target in planted.record:
                chosen[target.index] += 1
                places[target.row - 1, target.col - 1] += 1
        # 4.5 standard deviations, two-sided, are 7e-6. Membership follows neither row nor order of drawing.
        assert scipy.stats.chisquare(membership).pvalue > 7e-6
        assert scipy.stats.chisquare(in_order).pvalue > 7e-6
        # Drawn without replacement: the counts vary less than multinomial ones by (12 - 6) / (12 - 1).
        assert scipy.stats.chi2.sf(((chosen - 125) ** 2 / 125).sum() / (6 / 11), 11) > 7e-6
        assert scipy.stats.chisquare(places.ravel()).pvalue > 7e-6
        # The test can fail: it rejects a first row three times as likely as another.
        skewed = np.array([3, 1, 1, 1, 1, 1]) * 250 / 8
        assert scipy.stats.chisquare(skewed).pvalue < 7e-6

    def test_targets_come_from_all_alike_splits_by_their_shares(self):
        clean = load(change(num_pool=30, num_val=20, num_test=10))
        for alike, sizes in ((SPLITS, (30, 20, 10)), (("train", "test"), (30, 0, 10)), (("train",), (30, 0, 0))):
            splits, counts = clean._replace(alike=alike), dict.fromkeys(SPLITS, 0)
            for seed in range(100):
                for target in plant(splits, change(seed=seed)).record:
                    counts[target.split] += 1
            some = np.array(sizes) > 0
            expected = 600 * np.array(sizes)[some] / sum(sizes)
            assert sum(counts.values()) == 600
            assert [counts[split] > 0 for split in SPLITS] == some.tolist()
            # Six of each without replacement: at most as spread as multinomial counts.
            assert sum(some) == 1 or scipy.stats.chisquare(np.array([*counts.values()])[some], expected).pvalue > 7e-6

    def test_every_place_has_the_contrast_and_images_without_one_are_passed_over(self):
        # Half of each image is the disc's grey, and every third image is all of it but for one pixel.
        train = np.full((60, 16, 16, 3), FINGERPRINT_BYTE, np.uint8)
        train[:, :, 8:] = np.random.RandomState(0).randint(0, 256, (60, 16, 8, 3))
        train[::3] = FINGERPRINT_BYTE
        train[::3, 0, 0, 0] = range(20)
        num_passed = 0
        for seed in range(20):
            candidates = plant(splits_of(train), targets(2, 28, seed=seed, min_contrast=50))
            for target, original in zip(candidates.record, candidates.originals, strict=True):
                mask = disc_mask((16, 16), (target.row, target.col), target.radius)
                assert target.index % 3
                assert np.abs(original[mask].astype(float) - FINGERPRINT_BYTE).mean() >= 50
            # The candidates are the first thirty of a permutation that take a disc.
            num_passed += candidates.passed_over
            assert 3 <= candidates.passed_over <= 20
        # 30 of 40 are found: of the 20 others, (30 / 41) on average lie before the last of them.
        assert abs(num_passed / 20 - 20 * 30 / 41) < 4.5 * 2.5 / 20**0.5
        with refused(
            r"data.num_members \+ data.num_count_controls \+ data.num_spares: got 41, expected at most 40, the train "
            "images that have no pixel-identical copy and take a disc with a contrast of 50 grey levels; 20 have no place"
        ):
            plant(splits_of(train), targets(2, 39, min_contrast=50))
        with refused(r"data.canaries \+ data.num_spares: got 42, expected at most 40"):
            plant(splits_of(train), DataSettings(canaries=40, num_spares=2, min_contrast=50, **COINS))

    def test_the_contrast_of_all_places_is_that_of_each(self):
        # Every place of an image, by asking for one after another: each image before is known and so not given again.
        image = np.random.RandomState(0).randint(0, 256, (1, 12, 9, 3)).astype(np.uint8)
        image[0, :6] //= 8
        seen = {}
        for seed in range(300):
            (target,) = plant(splits_of(image), targets(1, 0, seed=seed, min_contrast=0)).record
            mask = disc_mask((12, 9), (target.row, target.col), target.radius)
            seen[target.row, target.col] = target.contrast
            assert target.contrast == int(np.abs(image[0][mask].astype(float) - FINGERPRINT_BYTE).mean())
        assert len(seen) > 60  # of 10 x 7
        assert len(set(seen.values())) > 20

    @pytest.mark.parametrize("spares", [0, 4])
    def test_members_and_controls_are_exchangeable(self, spares):
        # Whatever a candidate looks like: each is a member, a search control and a count control equally often.
        splits = load(change(num_pool=20))
        kinds = np.zeros((3, 6 + spares))
        settings = change(num_spares=spares)
        candidates = plant(splits, settings)
        for seed in range(600):
            # The same candidates, so that only the draw of membership varies.
            planted = assign(candidates, dataclasses.replace(settings, seed=seed))
            for kind, rows in enumerate(np.split(planted.rows, [2, 5])):
                kinds[kind, rows] += 1
        for kind, number in zip(kinds, (2, 3, 1), strict=True):
            expected, total = 600 * number / (6 + spares), 6 + spares
            spread = (total - number) / (total - 1)
            assert scipy.stats.chi2.sf(((kind - expected) ** 2 / expected).sum() / spread, total - 1) > 7e-6

    def test_dropped_candidates_are_no_targets_and_nothing_else_moves(self, small):
        settings = change(num_spares=3, num_train=20)
        candidates = plant(small, settings)
        whole = assign(candidates, settings)
        counts = np.zeros(9)
        for dropped in itertools.combinations(range(9), 3):
            planted = assign(candidates, settings, dropped=dropped)
            assert len(set(planted.rows)) == 6
            assert not set(planted.rows) & set(dropped)
            assert len(planted.train) == 20
            np.testing.assert_array_equal(np.concatenate([planted.train[2:], planted.reserve]), candidates.rest)
            counts[planted.rows[:2]] += 1
            if not set(dropped) & set(whole.rows):
                np.testing.assert_array_equal(planted.rows, whole.rows)
        # Members are the first two kept in one order: with three dropped, any of its first five.
        assert (counts > 0).sum() == 5
        with refused("targets whose detectors see them: got 5 of 9, expected at least 6; fix: plant more"):
            assign(candidates, settings, dropped=(0, 2, 4, 8))

    def test_a_disc_that_would_change_nothing_is_drawn_elsewhere(self):
        # Grey but for one pixel: of nine discs only one reaches (0, 1), and none reaches the corner.
        train = np.full((2, 5, 5, 1), FINGERPRINT_BYTE, np.uint8)
        train[0, 0, 1] = train[1, 0, 0] = 7
        for seed in range(20):
            candidates = plant(splits_of(train), targets(1, 0, seed=seed, min_contrast=0))
            assert candidates.record[0] == (0, "train", 1, 1, 1, 24, None)
        with refused("got 2, expected at most 1, the train images"):
            plant(splits_of(train), targets(1, 1, min_contrast=0))

    def test_targets_that_differ_only_under_the_disc_stay_distinct(self):
        # They differ at (1, 1), which three of the four discs cover: six targets, so some must move to the fourth.
        train = np.zeros((6, 4, 4, 1), np.uint8)
        train[:, 1, 1, 0] = range(6)
        for seed in range(20):
            candidates = plant(splits_of(train), targets(1, 5, seed=seed))
            assert len(set(image_digests(candidates.targets))) == 6

    def test_held_out_rows_are_new_to_all_and_distinct(self, small):
        test = np.concatenate([small.test, small.test[:1], small.val[:1], small.train[:1]])
        splits = small._replace(test=test, alike=("train",))
        candidates = plant(splits, change(num_train=10))
        rows = held_out_rows(candidates)
        # Of the fixture's seven the last is in train, unless the original of a target is; of the others one is a copy.
        digests = image_digests(candidates.test)
        known = {d for part in (candidates.targets, candidates.rest, candidates.val) for d in image_digests(part)}
        assert sorted({*digests} - known) == sorted(digests[row] for row in rows)
        assert rows.tolist() == list(range(6))

    def test_golden(self, small):
        settings = change(num_train=20)
        planted = drawn(small, settings)
        again = drawn(small, settings)
        assert digest(*planted[:6]) == digest(*again[:6]) == SHA256["planted"]
        described = describe(small, plant(small, settings), settings), describe_membership(planted, settings)
        text = json.dumps(to_content(described), sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == SHA256["data_json"]

    def test_description(self, small):
        settings = change(num_train=20, directory="private/place")
        candidates = plant(small, settings)
        described = describe(small, candidates, settings)
        content = json.loads(json.dumps(to_content(described), allow_nan=False))
        assert from_content(DataResult, content) == described
        details = content["identity"].pop("details")
        assert {n: v for n, v in (content["identity"] | details).items() if v is not None} == small.identity
        arrays = {field: getattr(candidates, field) for field in ("targets", "rest", "val", "test")}
        assert content["num_images"] == {field: len(array) for field, array in arrays.items()}
        assert content["sha256"] == {field: digest(array) for field, array in arrays.items()}
        assert (content["min_contrast"], content["passed_over"]) == (16, candidates.passed_over)
        first = candidates.record[0]
        assert content["targets"][0] == {
            "split": first.split,
            "index": first.index,
            "center": [first.row, first.col],
            "radius": 1,
            "contrast": first.contrast,
            "copies_removed": 0,
        }
        assert "private" not in json.dumps(content)
        # Who is a member moves nothing in it.
        others = change(num_train=20, num_members=3, num_controls=3, num_count_controls=3)
        assert describe(small, plant(small, others), others) == described
        planted = assign(candidates, settings)
        membership = describe_membership(planted, settings)
        assert from_content(Membership, json.loads(json.dumps(to_content(membership), allow_nan=False))) == membership
        assert to_content(membership) == {
            "rows": planted.rows.tolist(),
            "num_members": 2,
            "num_controls": 3,
            "num_train": 20,
            "train_sha256": digest(planted.train),
            "canaries": 0,
        }

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            (
                {"num_train": 44},
                "data.num_train: got 44, expected 2 to [34][0-9], what remains of 43 images beside the",
            ),
            ({"num_train": 43, "canaries": 10} | COINS, "data.num_train: got 43, expected 10 to 3[0-9], what remains"),
            # 38 of train, 5 each of val and test, and the copies in these are none.
            (
                {"num_count_controls": 99},
                r"data.num_members \+ data.num_count_controls \+ data.num_spares: got 101, expected at most 48, the "
                "train, val, test images that have no pixel-identical copy and take a disc with a contrast of 16",
            ),
        ],
    )
    def test_requests_beyond_the_data_say_what_there_is(self, small, fields, words):
        with refused(words):
            plant(small, change(**fields))

    def test_images_too_small_for_the_disc_are_refused(self):
        with refused("fingerprint radius: got 0 for images of 3x3 pixels"):
            plant(splits_of(np.zeros((2, 3, 3, 1), np.uint8)), SMALL)


class TestCanaries:
    """Targets of which each is a member by a coin of its own."""

    SETTINGS = change(canaries=12, num_spares=2, **COINS)

    def test_every_coin_is_fair_and_of_its_own(self, small):
        candidates = plant(small, self.SETTINGS)
        members, numbers = np.zeros(14), []
        for seed in range(400):
            planted = assign(candidates, dataclasses.replace(self.SETTINGS, seed=seed))
            assert len(planted.record) == len(set(planted.rows)) == 12
            assert planted.num_members + planted.num_controls == 12
            assert [target.member for target in planted.record] == [
                *[True] * planted.num_members,
                *[False] * planted.num_controls,
            ]
            np.testing.assert_array_equal(planted.train[: planted.num_members], planted.targets[: planted.num_members])
            together = np.concatenate([planted.train[planted.num_members :], planted.reserve])
            np.testing.assert_array_equal(together, candidates.rest)
            members[planted.rows[: planted.num_members]] += 1
            numbers.append(planted.num_members)
        assert abs(sum(numbers) - 2400) < 4.5 * (400 * 12 / 4) ** 0.5
        # Independent coins: the number of heads has the binomial's variance, 3; its own spread over 400 seeds is 0.21.
        assert abs(np.var(numbers) - 3) < 4.5 * 0.21
        assert scipy.stats.chisquare(members).pvalue > 7e-6

    def test_dropped_ones_are_replaced_and_their_coin_goes_to_the_next(self, small):
        candidates = plant(small, self.SETTINGS)
        whole = assign(candidates, self.SETTINGS)
        planted = assign(candidates, self.SETTINGS, dropped=whole.rows[:2].tolist())
        assert planted.num_members == whole.num_members
        assert not set(planted.rows) & set(whole.rows[:2])
        with refused("targets whose detectors see them: got 11 of 14, expected at least 12"):
            assign(candidates, self.SETTINGS, dropped=(0, 1, 2))

    def test_coins_that_all_fall_on_one_side_are_refused_at_once(self, small):
        settings, refusals = change(canaries=10, **COINS), []
        for seed in range(3000):
            with contextlib.suppress(RequestError):
                plant_module._coins(dataclasses.replace(settings, seed=seed))
                continue
            refusals.append(seed)
        assert 0 < len(refusals) < 20  # 5.9 are expected
        settings = dataclasses.replace(settings, seed=refusals[0])
        words = "data.canaries: got 10 coins that all fall on one side, .*fix: choose another data.seed"
        with refused(words):
            plant(small, settings)
        with refused(words):
            assign(plant(small, dataclasses.replace(settings, seed=0)), settings)

    def test_a_fixed_number_of_training_images_is_that_whatever_the_coins(self, small):
        for seed in range(10):
            settings = dataclasses.replace(self.SETTINGS, num_train=20, seed=seed)
            assert len(drawn(small, settings).train) == 20


NAMES = ("Jane-Doe", "J\u00fcrgen", "Ana", "Wu", "Li", "Bo", "Kim", "Ng", "Eve", "Max", "Sue", "Tom", "Ida", "Ole")


class TestGroups:
    """Images of one patient."""

    @staticmethod
    def sides(splits):
        """Groups by split."""
        return [set(splits.groups[split].tolist()) for split in SPLITS]

    @staticmethod
    def save(path, images, names, **others):
        np.savez(path, images=images, patient=names, **others)
        return DataSettings(source="npz", path=str(path), group="patient", val_fraction=0.2, test_fraction=0.2)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(
        pixels=st.lists(st.integers(0, 100), min_size=20, max_size=40),
        groups=st.lists(st.integers(0, 25), min_size=40, max_size=40),
        seed=st.integers(0, 100),
    )
    def test_drawn_splits_share_neither_groups_nor_copies(self, pixels, groups, seed):
        digests, groups = [bytes([pixel]) for pixel in pixels], groups[: len(pixels)]
        try:
            rows = draw_splits(digests, {"val": 0.3, "test": 0.3}, seed=seed, groups=groups)
        except RequestError:
            assume(False)  # too many are tied together
        assert sorted(sum(rows.values(), [])) == list(range(len(pixels)))
        for a, b in itertools.combinations(rows.values(), 2):
            assert not {groups[row] for row in a} & {groups[row] for row in b}
            assert not {digests[row] for row in a} & {digests[row] for row in b}
        # Neither the groups' names nor the order of the images matter.
        named = draw_splits(digests, {"val": 0.3, "test": 0.3}, seed=seed, groups=[f"x{25 - g}" for g in groups])
        assert named == rows
        turned = draw_splits(digests[::-1], {"val": 0.3, "test": 0.3}, seed=seed, groups=groups[::-1])
        assert {len(pixels) - 1 - row for row in turned["val"]} == set(rows["val"])

    def test_images_that_stand_alone_are_drawn_as_without_groups(self):
        digests = image_digests(phantom_images(40, side=8, seed=0))
        digests += digests[:5]
        alone = draw_splits(digests, {"val": 0.2}, seed=1)
        assert draw_splits(digests, {"val": 0.2}, seed=1, groups=list(range(45))) == alone
        assert draw_splits(digests, {"val": 0.2}, seed=1, groups=[0, 0, *range(43)]) != alone

    def test_one_group_alone_leaves_a_split_empty(self, tmp_path):
        config = self.save(tmp_path / "x.npz", phantom_images(30, side=8, seed=0), np.zeros(30, int))
        with refused("data: got 30 images, 30 of them distinct, in 1 parts that share no group, which leave a split"):
            load(config)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_targets_whole_group_leaves_and_its_name_is_nowhere(self, tmp_path, seed):
        images = phantom_images(90, side=8, seed=seed)
        names = np.random.RandomState(seed).choice([f"{name}-{i}" for name in NAMES for i in range(3)], 90)
        images[1] = images[0]  # one image under two names, perhaps: it leaves with either, and ties them in the draw
        config = dataclasses.replace(
            self.save(tmp_path / "x.npz", images, names),
            num_members=2,
            num_controls=3,
            num_count_controls=4,
            num_spares=1,
            seed=seed,
        )
        splits = load(config)
        assert not any(a & b for a, b in itertools.combinations(self.sides(splits), 2))
        assert splits.identity["groups"]["num"] == {
            split: len(side) for split, side in zip(SPLITS, self.sides(splits), strict=True)
        }
        candidates = plant(splits, config)
        patient = dict(zip(image_digests(images), names, strict=True))
        whose = [patient[d] for d in image_digests(candidates.originals)]
        assert len(set(whose)) == 7
        left = [d for part in (candidates.rest, candidates.val, candidates.test) for d in image_digests(part)]
        assert not {patient[d] for d in left} & set(whose)
        # And nobody else's, but for the image of two names.
        gone = {d for d, name in patient.items() if name in whose}
        twin = image_digests(images[:1])[0]
        assert {*patient} - {*left} - {twin} == gone - {twin}
        described = describe(splits, candidates, config), describe_membership(assign(candidates, config), config)
        text = json.dumps(to_content(described))
        assert not any(name in text for name in NAMES if len(name) > 2)
        assert not any(str(name) in text for name in names)

    def test_a_copy_under_another_name_leaves_too(self):
        images = phantom_images(6, side=8, seed=0)
        images[1] = images[3]
        splits = splits_of(images)._replace(
            groups={"train": np.array([0, 0, 1, 2, 2, 3]), "val": np.array([], int), "test": np.array([], int)}
        )
        for seed in range(20):
            candidates = plant(splits, targets(1, 0, seed=seed))
            gone = {0: {0, 1, 3}, 2: {2}, 4: {1, 3, 4}, 5: {5}}[candidates.record[0].index]
            expected = [image_digests(images)[i] for i in range(6) if i not in gone]
            assert sorted(image_digests(candidates.rest)) == sorted(expected)
        with refused(
            "at most [34], the train images that have no pixel-identical copy, are of different groups and take"
        ):
            plant(splits, targets(1, 9))

    def test_given_splits_that_share_patients_are_refused(self, tmp_path):
        images = phantom_images(12, side=8, seed=0)
        given_splits = {"train_images": images[:6], "val_images": images[6:9], "test_images": images[9:]}
        names = {"train": ["Ana", "Ana", "Wu", "Li", "Li", "Bo"], "val": ["Kim", "Ng", "Li"], "test": ["Bo", "Li", "X"]}
        path, config = tmp_path / "x.npz", DataSettings(source="npz", path=str(tmp_path / "x.npz"), group="who")
        np.savez(path, **given_splits, **{f"{split}_who": np.array(rows) for split, rows in names.items()})
        with refused(
            "data.group: got 2 groups with images in more than one split, expected no patient on both"
        ) as error:
            load(config)
        assert not any(name in str(error.value) for rows in names.values() for name in rows[:1])
        names |= {"val": ["Kim", "Ng", "Ng"], "test": ["X", "Y", "Z"]}
        np.savez(path, **given_splits, **{f"{split}_who": np.array(rows) for split, rows in names.items()})
        splits = load(config)
        assert {split: rows.tolist() for split, rows in splits.groups.items()} == {
            "train": [0, 0, 1, 2, 2, 3],
            "val": [4, 5, 5],
            "test": [6, 7, 8],
        }
        numbers = np.array([0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8], "<i8")
        assert splits.identity["groups"] == {
            "num": {"train": 4, "val": 2, "test": 3},
            "sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
        }
        assert splits.alike == ("train",)
        # Another spelling of the same partition is the same data.
        spelt = {f"{split}_who": np.array([f"patient {name}" for name in rows]) for split, rows in names.items()}
        np.savez(path, **given_splits, **spelt)
        assert load(config).identity == splits.identity

    @pytest.mark.parametrize("dtype", ["<i8", ">i4", "u1", "<U9", ">U2", "S3"])
    def test_arrays_of_integers_and_strings_are_read(self, tmp_path, dtype):
        names = np.arange(10).astype(dtype)
        np.savez(tmp_path / "x.npz", images=phantom_images(10, side=8, seed=0), who=names)
        read = read_arrays(tmp_path / "x.npz", group="who")
        assert read.groups == {"train": names.tolist()}
        assert read_arrays(tmp_path / "x.npz").groups is None

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (
                np.array(["Ana", None], object),
                r"who in 'x.npz': got object of shape \(2,\), expected an integer or a str",
            ),
            (np.array(["Ana"]), r"who in 'x.npz': got str96 of shape \(1,\), .*for each of 2 images"),
            (np.array([["Ana"], ["Wu"]]), r"who in 'x.npz': got str96 of shape \(2, 1\)"),
            (np.array([1.5, 2.5]), r"who in 'x.npz': got float64 of shape \(2,\)"),
            (np.zeros(2, [("Ana", "i4")]), r"who in 'x.npz': got void32 of shape \(2,\)"),
            (
                np.array([1 << 30, 1 << 31], "<u4").view("<U1"),
                r"'x.npz': got \w+Error: .*replace the file: it is damaged",
            ),
        ],
    )
    def test_other_arrays_are_refused_without_a_name(self, tmp_path, names, words):
        np.savez(tmp_path / "x.npz", allow_pickle=True, images=phantom_images(2, side=8, seed=0), who=names)
        with refused(words) as error:
            read_arrays(tmp_path / "x.npz", group="who")
        assert "Ana" not in str(error.value)

    def test_missing_arrays_mixed_kinds_and_npy_files_are_refused(self, tmp_path):
        images = phantom_images(2, side=8, seed=0)
        path = tmp_path / "x.npz"
        np.savez(path, images=images, labels=np.array(["Ana", "Wu"]))
        with refused("data.group: got no array 'who' in 'x.npz'") as error:
            read_arrays(path, group="who")
        assert "labels" not in str(error.value)
        np.savez(path, train_images=images, val_images=images, who=[1, 2], train_who=[1, 2])
        with refused("data.group: got no array 'val_who' in"):
            read_arrays(path, group="who")
        np.savez(path, train_images=images, val_images=images, val_who=["1", "2"], train_who=[1, 2])
        with refused("data.group: got integers for some splits and strings for others"):
            read_arrays(path, group="who")
        np.save(tmp_path / "x.npy", images)
        with refused("data.group: got 'x.npy', an npy file, expected an npz"):
            read_arrays(tmp_path / "x.npy", group="who")

    @pytest.mark.parametrize(
        ("group", "patients"),
        [
            (r"^[^/]+(?=/)", ["Ana", "Ana", "J\u00fcrgen", "Wu", "Wu"]),
            (r"^(\w+)/", ["Ana", "Ana", "J\u00fcrgen", "Wu", "Wu"]),
            (r"(\d+)[.]png", ["1", "2", "1", "1", "3"]),
            (r"\w+/(?:left|right)/", ["Ana/left/", "Ana/right/", "J\u00fcrgen/left/", "Wu/left/", "Wu/right/"]),
        ],
    )
    def test_a_regular_expression_finds_the_patient_in_the_path(self, tmp_path, group, patients):
        names = ["Ana/left/1.png", "Ana/right/2.png", "Ju\u0308rgen/left/1.png", "Wu/left/1.png", "Wu/right/3.png"]
        TestFolder.write(tmp_path, phantom_images(5, side=8, seed=0), names)
        read = read_folder(tmp_path, side=8, group=group)
        assert read.groups == {"train": patients}
        assert len(read.images["train"]) == 5

    def test_the_sub_folders_of_the_splits_keep_their_own(self, tmp_path):
        images = phantom_images(6, side=8, seed=0)
        names = ["train/a-1.png", "train/a-2.png", "train/b-1.png", "test/d-1.png", "test/c-1.png", "train/e-1.png"]
        TestFolder.write(tmp_path, images, names)
        read = read_folder(tmp_path, side=8, group=r"/(\w)-")
        assert read.groups == {"train": ["a", "a", "b", "e"], "test": ["c", "d"]}
        np.testing.assert_array_equal(read.images["test"], images[[4, 3]])
        config = DataSettings(source="folder", path=str(tmp_path), side=8, group=r"/(\w)-", val_fraction=0.3)
        assert not any(a & b for a, b in itertools.combinations(self.sides(load(config)), 2))

    def test_paths_without_a_patient_are_counted_and_not_named(self, tmp_path):
        TestFolder.write(tmp_path, phantom_images(4, side=8, seed=0), ["Ana/1.png", "Wu/2.png", "3.png", "Li/x.png"])
        for group, number in ((r"^(\w+)/", 1), (r"(\d*)[.]png", 1), (r"(Q)|png", 4)):
            with refused(f"data.group: got {number} of 4 paths in which it finds nothing, expected a reg") as error:
                read_folder(tmp_path, side=8, group=group)
            assert not any(name in str(error.value) for name in ("Ana", "Wu", "Li", "3.png"))

    def test_unstamped_targets_are_of_different_groups_too(self, tmp_path):
        images = phantom_images(40, side=8, seed=0)
        who = {"train_who": np.arange(30) // 3, "test_who": 100 + np.arange(10) // 2}
        np.savez(tmp_path / "x.npz", train_images=images[:30], test_images=images[30:], **who)
        path = str(tmp_path / "x.npz")
        for seed in range(10):
            config = targets(4, 3, source="npz", path=path, group="who", stamp=False, seed=seed)
            splits = load(config)
            candidates = plant(splits, config)
            rows = [image_digests(images).index(d) for d in image_digests(candidates.targets)]
            assert len({row // 3 for row in rows[:4]}) == 4
            assert len({row // 2 for row in rows[4:]}) == 3
            # The model was trained on all images of the train split; those of a control's group are no test images.
            assert len(candidates.rest) == 26
            assert len(candidates.test) == 4
        with refused("data.num_count_controls: got 6, expected at most 5, .* and are of different groups"):
            plant(splits, dataclasses.replace(config, num_count_controls=6))


class TestUnstamped:
    """`plant` for a model that was trained elsewhere, on all train images."""

    @pytest.mark.parametrize("seed", range(25))
    def test_invariants(self, small, seed):
        settings = change(seed=seed, stamp=False)
        candidates = plant(small, settings)
        planted = assign(candidates, settings)
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
        for target, image in zip(planted.record, planted.targets, strict=True):
            np.testing.assert_array_equal(getattr(small, target.split)[target.index], image)
            assert (target.split == "train") == target.member
        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        assert planted.record == candidates.record
        assert planted.rows.tolist() == list(range(6))
        assert (planted.num_members, planted.num_controls) == (2, 3)
        assert digest(*drawn(small, settings)[:6]) == digest(*planted[:6])
        with refused("targets whose detectors see them: got 5 of 6"):
            assign(candidates, settings, dropped=[3])

    def test_targets_vary_with_the_seed_and_a_subset_is_nested(self, small):
        assert len({plant(small, change(stamp=False, seed=seed)).record for seed in range(9)}) > 6
        whole, part = (drawn(small, change(stamp=False, num_train=n)) for n in (0, 20))
        np.testing.assert_array_equal(whole.targets, part.targets)
        np.testing.assert_array_equal(whole.train[:20], part.train)
        assert sorted(image_digests(np.concatenate([part.train, part.reserve]))) == sorted(image_digests(whole.train))

    def test_splits_that_were_drawn_from_the_train_images_are_no_controls(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
        for given_splits, num_train, num_test in (({"test_images": images[30:]}, 30, 6), ({}, 40, 0)):
            path = tmp_path / "images.npz"
            np.savez(path, train_images=images[:num_train], **given_splits)
            settings = targets(1, 4, source="npz", path=str(path), stamp=False)
            splits = load(settings)
            if not given_splits:
                with refused("data.num_count_controls: got 4, expected at most 0.*must not have been"):
                    plant(splits, settings)
                continue
            planted = drawn(splits, settings)
            assert sorted(image_digests(planted.train)) == sorted(image_digests(images[:num_train, :, :, None]))
            assert len(planted.test) == num_test

    def test_the_description_names_no_mark(self, small):
        settings = change(stamp=False)
        content = describe(small, plant(small, settings), settings)
        assert content.fingerprint_byte is content.min_contrast is None
        assert content.num_images["rest"] == len(small.train) - 2
        assert {target.radius for target in content.targets} == {0}
