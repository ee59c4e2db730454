"""Arrays and folders of images, whole and damaged."""

import io
import os
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fpjax.core import store
from fpjax.core.errors import RequestError
from fpjax.data import arrays, folder
from fpjax.data.arrays import read_arrays
from fpjax.data.files import SPLITS, check_bytes
from fpjax.data.folder import read_folder
from fpjax.data.phantom import phantom_images
from fpjax.data.source import DataSettings, load

from .data_sets import little_memory, png, refused, write_arrays, write_folder


class TestArrays:
    """Files of NumPy arrays."""

    def test_grey_and_colour_are_read_with_channels_last(self, tmp_path):
        assert read_arrays(write_arrays(tmp_path / "grey.npz")).images["val"].shape == (3, 8, 8, 1)
        colour = {f"{split}_images": np.ones((2, 8, 8, 3), np.uint8) for split in SPLITS}
        assert read_arrays(write_arrays(tmp_path / "colour.npz", **colour)).images["test"].shape == (2, 8, 8, 3)

    def test_a_list_of_very_many_members_is_not_read(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("a", b"")
        content = (tmp_path / "x.npz").read_bytes()
        member, end = content[content.index(b"PK\1\2") : -22], content[-22:]
        number = 2**22 // len(member) + 1
        end = end[:8] + b"\xff" * 4 + (number * len(member)).to_bytes(4, "little") + end[16:]
        (tmp_path / "x.npz").write_bytes(content[: content.index(b"PK\1\2")] + member * number + end)
        with refused("'x.npz': got ValueError: more than 4,194,304 bytes at once, such as a list of very many members"):
            read_arrays(tmp_path / "x.npz")
        with refused("x.npz: got a missing or damaged file"):
            store.read_arrays(tmp_path / "x.npz")

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
            ({"val_images": np.zeros((3, 8, 8), np.uint16)}, "got uint16 .*fix: map the range that matters to bytes"),
            ({"val_images": np.zeros((3, 8, 8), np.int64)}, "got int64 .*fix: map .*above 255 would wrap around"),
            ({"val_images": np.zeros((3, 8, 8), bool)}, r"got bool .*fix: .*255 \* x.astype"),
            (
                {"val_images": np.zeros((64, 64, 80), np.uint8)},
                r"fix: .*volume: move the slice axis first, .*x\[..., None\]",
            ),
            ({"train_images": np.zeros((28, 28, 3), np.uint8)}, r"fix: this looks like one image .*x\[None, ..., :3\]"),
            ({"train_images": np.zeros((28, 28, 4), np.uint8)}, r"fix: this looks like one image .*x\[None, ..., :3\]"),
            ({"train_images": np.zeros((28, 28), np.uint8)}, r"fix: save one image as x\[None\]"),
            (
                {"train_images": np.zeros((5, 3, 8, 8), np.uint8)},
                r"fix: move the channels last: x.transpose\(0, 2, 3, 1\)",
            ),
            (
                {"train_images": np.zeros((5, 1, 8, 8), np.uint8)},
                r"fix: move the channels last: x.transpose\(0, 2, 3, 1\)",
            ),
            ({"train_images": np.zeros((5, 8, 8, 4), np.uint8)}, "fix: flatten the alpha channel"),
            ({"train_images": np.zeros((5, 8, 8, 2), np.uint8)}, "fix: keep one channel or three"),
            ({"train_images": np.array([1, None, "x"], object)}, "got object .*fix: bring all"),
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
            read_arrays(write_arrays(tmp_path / "x.npz", **changes))

    @pytest.mark.parametrize(
        "shape", [(64, 64, 80, 1), (28, 28, 3, 1), (5, 8, 8), (8, 8, 8), (80, 64, 64), (5, 3, 3, 3)]
    )
    def test_arrays_that_say_what_they_are_are_read(self, tmp_path, shape):
        np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
        assert read_arrays(tmp_path / "x.npy").images["train"].shape[:3] == shape[:3]

    def test_a_pointer_of_git_lfs_is_told(self, tmp_path):
        for name in ("x.npz", "x.npy"):
            (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
            with refused(f"'{name}': got a Git LFS pointer in place of the file: run git lfs pull"):
                read_arrays(tmp_path / name)

    @pytest.mark.parametrize("kept", [0, 3, 200, 700])
    def test_damaged_files_are_refused(self, tmp_path, kept):
        path = write_arrays(tmp_path / "x.npz")
        path.write_bytes(path.read_bytes()[:kept])
        with refused("'x.npz': got .*; fix: give the right path, or replace the file"):
            read_arrays(path)

    def test_flipped_bytes_are_refused(self, tmp_path):
        path = write_arrays(tmp_path / "x.npz")
        content = bytearray(path.read_bytes())
        content[250] ^= 1
        path.write_bytes(content)
        with refused("'x.npz': got BadZipFile"):
            read_arrays(path)

    @pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy", "a\\..\\x.npy", "train_images.npy"])
    def test_paths_and_repeated_names_in_an_archive_are_refused(self, tmp_path, name):
        path = write_arrays(tmp_path / "x.npz")
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
        path = write_arrays(tmp_path / "x.npz")
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

    def test_all_files_in_the_order_of_their_paths(self, tmp_path):
        images = phantom_images(5, side=8, seed=0)
        # By bytes and part by part: "b" is before "b-a", capitals before small letters, accents after both.
        names = ["Z.PNG", "b/2.png", "b/10/0.png", "b-a/0.png", "\u00e9.png"]
        order = ["Z.PNG", "b/10/0.png", "b/2.png", "b-a/0.png", "\u00e9.png"]
        write_folder(tmp_path, images, names)
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / ".hidden.png").write_text("not an image either")
        read = read_folder(tmp_path, side=8).images
        np.testing.assert_array_equal(read["train"], images[[names.index(name) for name in order]])

    def test_sub_folders_are_the_splits_and_nothing_may_lie_beside_them(self, tmp_path):
        images = phantom_images(6, side=8, seed=0)
        for split, rows in (("train", images[:3]), ("val", images[3:4]), ("test", images[4:])):
            write_folder(tmp_path / split / "class", rows)
        read = read_folder(tmp_path, side=8).images
        assert {split: len(rows) for split, rows in read.items()} == {"train": 3, "val": 1, "test": 2}
        np.testing.assert_array_equal(read["test"], images[4:])
        (tmp_path / "val").rename(tmp_path / "Validation")
        (tmp_path / "test").rename(tmp_path / "TEST")
        assert {split: len(rows) for split, rows in read_folder(tmp_path, side=8).images.items()} == {
            split: len(rows) for split, rows in read.items()
        }
        write_folder(tmp_path / "extra", images[:1])
        with refused("data.path: got 1 of 7 images beside folders that are named as splits"):
            read_folder(tmp_path, side=8)
        with refused("data.path: got val or test, but no train"):
            read_folder(write_folder(tmp_path / "half" / "val", images[:1]).parent, side=8)

    def test_grey_is_one_channel_and_any_colour_makes_three(self, tmp_path):
        images = np.repeat(phantom_images(3, side=8, seed=0), 3, axis=-1)
        write_folder(tmp_path, images)
        np.testing.assert_array_equal(read_folder(tmp_path, side=8).images["train"], images[..., :1])
        images[1, 2, 3, 0] ^= 1
        write_folder(tmp_path, images)
        np.testing.assert_array_equal(read_folder(tmp_path, side=8).images["train"], images)

    def test_palettes_two_levels_and_opaque_alpha_become_bytes(self, tmp_path):
        grey = Image.fromarray(phantom_images(1, side=8, seed=0)[0, :, :, 0])
        bits = grey.point([0] * 61 + [255] * 195)
        modes = {"a": grey.convert("P"), "b": bits.convert("1"), "c": grey.convert("LA"), "d": grey.convert("RGBA")}
        for name, image in modes.items():
            image.save(tmp_path / f"{name}.png")
        read = read_folder(tmp_path, side=8).images["train"]
        for i, image in enumerate((grey, bits, grey, grey)):
            np.testing.assert_array_equal(read[i, ..., 0], np.asarray(image))

    def test_centre_square_of_block_means(self, tmp_path):
        # 12 x 20, cut to 12 x 12 from column 4 on, then means of 3 x 3 pixels, to within Pillow's rounding.
        image = np.random.RandomState(0).randint(0, 256, (12, 20)).astype(np.uint8)
        write_folder(tmp_path, image[None, ..., None])
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
        write_folder(tmp_path, phantom_images(1, side=8, seed=0))
        with refused("image '000.png': got 8x8 pixels, .*fix: set data.side to 8 or less"):
            read_folder(tmp_path, side=9)
        with refused("image '000.png': .*fix: set data.side to 6 or less, in steps of 3 for the network"):
            read_folder(tmp_path, side=9, multiple=3)

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
        with refused(
            f"image '{path.name}': got .*fix: {'convert it' if kind == 'gif' else 'replace or remove the file'}"
        ):
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

    write_folder(tmp_path, phantom_images(1, side=8, seed=0))
    for module in (arrays, folder):
        monkeypatch.setattr(module, "open_plain", refuse)
    with refused(f"image '000.png': got {type(error).__name__}: {error.strerror}"):
        read_folder(tmp_path, side=8)
    with refused(f"'000.png': got {type(error).__name__}: {error.strerror}"):
        read_arrays(tmp_path / "000.png")
    monkeypatch.setattr(os, "scandir", refuse)
    with refused(f"data.path: got {type(error).__name__}: {error.strerror}, expected a folder that can be listed"):
        read_folder(tmp_path, side=8)


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
