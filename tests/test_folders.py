"""Folders as people have them: links, other formats, names of splits, damaged and mistaken files."""

import contextlib
import functools
import os

import numpy as np
import pytest
from PIL import Image

from fpjax.data.folder import read_folder
from fpjax.data.phantom import phantom_images
from fpjax.data.source import DataSettings, load

from .data_sets import little_memory, refused, write_folder


def test_links_are_followed_to_each_folder_once(tmp_path):
    images = phantom_images(5, side=8, seed=0)
    write_folder(tmp_path / "outside", images[:3])
    write_folder(tmp_path / "elsewhere", images[3:4])
    write_folder(tmp_path / "inside", images[4:])
    (tmp_path / "inside/link.png").symlink_to(tmp_path / "elsewhere/000.png")
    (tmp_path / "inside/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "inside/loop").symlink_to(tmp_path / "inside")
    (tmp_path / "outside/again").symlink_to(tmp_path / "inside")
    read = read_folder(tmp_path / "inside", side=8)
    np.testing.assert_array_equal(read.images["train"], images[[4, 0, 1, 2, 3]])
    assert (read.skipped, read.others) == ({}, {"links to folders that are here already": 2})
    (tmp_path / "elsewhere/000.png").unlink()
    with refused("image 'link.png': got a link to nothing"):
        read_folder(tmp_path / "inside", side=8)


def test_of_two_ways_to_a_folder_the_first_name_counts_on_every_system(tmp_path, monkeypatch):
    images = phantom_images(3, side=8, seed=0)
    write_folder(tmp_path / "z", images[:2])
    write_folder(tmp_path / "m", images[2:])
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    scandir = os.scandir

    @contextlib.contextmanager
    def ordered(path, reverse):
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=reverse)

    for reverse in (False, True):
        monkeypatch.setattr(os, "scandir", functools.partial(ordered, reverse=reverse))
        read = read_folder(tmp_path, side=8)
        np.testing.assert_array_equal(read.images["train"], images)
        assert read.others == {"links to folders that are here already": 1, "other files": 1}


def test_a_damaged_file_of_any_size_is_not_read_in_whole(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + bytes(500))
        file.truncate(2**36)
    with refused("image 'x.png': got (?!MemoryError)"), little_memory():
        read_folder(tmp_path, side=8)


def test_images_of_other_formats_are_counted_and_not_passed_over_in_silence(tmp_path):
    images = phantom_images(20, side=8, seed=0)
    write_folder(tmp_path, images)
    (tmp_path / "003.png").unlink()
    image = Image.fromarray(images[3, ..., 0])
    image.save(tmp_path / "a.jfif", format="JPEG")
    for name, kind in (("b.webp", "WEBP"), ("c.tif", "TIFF"), ("d.BMP", "BMP"), ("e.gif", "GIF"), ("f", "PNG")):
        image.save(tmp_path / name, format=kind)
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (tmp_path / "scan.nii.gz").write_bytes(b"\x1f\x8b" + bytes(20))
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write_folder(tmp_path / ".ipynb_checkpoints", images[:2])
    read = read_folder(tmp_path, side=8)
    assert len(read.images["train"]) == 20  # .jfif is a JPEG's ending too
    kinds = ("bmp", "dicom", "gif", "nifti", "png", "tiff", "webp")
    assert read.skipped == dict.fromkeys(kinds, 1)
    assert read.others == {"hidden files and folders": 1, "other files": 1}
    settings = {"source": "folder", "path": str(tmp_path), "side": 8, "num_controls": 2, "num_count_controls": 3}
    splits = load(DataSettings(**settings))
    assert splits.identity["skipped"] == read.skipped
    assert splits.notes[0] == "images in formats that are not read: " + ", ".join(f"1 {kind}" for kind in kinds)
    with refused("data.path: got images that are not read: 1 bmp, .*data.stamp=False"):
        load(DataSettings(**settings, stamp=False))


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "test"), ("TRAIN", "Val"), ("training", "dev")])
@pytest.mark.parametrize("place", ["{}/class/{}", "class/{}/{}", "a/b/{}/c/{}"])
def test_splits_are_known_by_the_usual_names_at_any_depth(tmp_path, names, place):
    images = phantom_images(5, side=8, seed=0)
    write_folder(tmp_path, images, [place.format(names[i > 2], f"{i}.png") for i in range(5)])
    found = {split: len(rows) for split, rows in read_folder(tmp_path, side=8).images.items()}
    assert found == {"train": 3, "val" if names[1].lower() in ("val", "dev") else "test": 2}


@pytest.mark.parametrize(
    ("names", "got"),
    [
        (["train2/a.png", "test2/b.png"], "'t[a-z]+2' in a path, which is named like a split"),
        (["x/TrainSet/a.png", "x/b.png"], "'TrainSet' in a path"),
        (["test_images/a.png", "b.png"], "'test_images' in a path"),
        (["test-1/a.png"], "'test-1' in a path"),
        (["val_001.png", "x.png"], "'val_001' in a path"),
        (["kidney_train/a.png", "kidney_x/b.png"], "'kidney_train' in a path"),
        (["train/test_1/a.png"], "'test_1' in a path"),
        (["train/a.png", "train/test/b.png"], "1 images in folders of two splits"),
        (["train/a.png", "other/b.png", "c.png"], "2 of 3 images beside folders that are named as splits"),
    ],
)
def test_what_may_have_been_meant_as_a_split_is_refused(tmp_path, names, got):
    write_folder(tmp_path, phantom_images(len(names), side=8, seed=0), names)
    with refused(f"data.path: got {got}"):
        read_folder(tmp_path, side=8)


def test_words_that_begin_like_splits_are_no_splits(tmp_path):
    names = ["testis/trainer.png", "valve/1.png", "testosterone/valentine.png", "stress-test/1.png"]
    write_folder(tmp_path, phantom_images(4, side=8, seed=0), names)
    assert len(read_folder(tmp_path, side=8).images["train"]) == 4
    inside = write_folder(tmp_path / "in", phantom_images(2, side=8, seed=0), ["train/train_1.png", "test/test_1.png"])
    assert set(read_folder(inside, side=8).images) == {"train", "test"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer.*fix: run git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "an HTML page, .*fix: download the image itself"),
        (b"\n<html><body>Not found", "an HTML page"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "a webp image, .*fix: convert it"),
        (bytes(128) + b"DICM", "a dicom image"),
    ],
)
def test_what_is_named_as_an_image_and_is_another_thing_is_named(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with refused(f"image 'x.png': got {words}"):
        read_folder(tmp_path, side=8)


def test_many_bad_files_are_one_line_with_the_first_three(tmp_path):
    write_folder(tmp_path, phantom_images(9, side=8, seed=0))
    for i in (1, 3, 4, 7):
        (tmp_path / f"00{i}.png").write_bytes(b"<html>" if i % 2 else b"")
    expected = (
        r"data.path: got 4 of 9 images that are not read \('001.png': an HTML page; '003.png': an HTML page; "
        r"'004.png': no PNG or JPEG and 1 more\), .*fix: download the image itself, or replace or remove the file"
    )
    with refused(expected):
        read_folder(tmp_path, side=8)


def test_damaged_text_and_metadata_do_not_hide_the_pixels(tmp_path):
    images = phantom_images(3, side=8, seed=0)
    write_folder(tmp_path, images)
    for i, chunk in enumerate((b"tEXt", b"eXIf", b"zTXt")):
        # Between the header and the pixels, with a wrong checksum.
        damaged = (9).to_bytes(4, "big") + chunk + b"broken\0\0\0" + b"\0\0\0\0"
        content = (tmp_path / f"00{i}.png").read_bytes()
        (tmp_path / f"00{i}.png").write_bytes(content[:33] + damaged + content[33:])
    np.testing.assert_array_equal(read_folder(tmp_path, side=8).images["train"], images)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20)
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "x.jpg", quality=100, exif=exif)
    read = read_folder(tmp_path, side=8).images["train"][3]
    np.testing.assert_allclose(read.astype(int), images[0], atol=8)


def test_spaces_of_any_kind_in_a_path_are_no_control_characters(tmp_path):
    folder = tmp_path / "Scans\u00a02024" / "\u3000x"
    write_folder(folder, phantom_images(20, side=8, seed=0))
    settings = DataSettings(source="folder", path=str(folder), side=8, num_controls=2, num_count_controls=3)
    assert len(load(settings).train) == 16
    with refused("data.path: got .*expected at most 1000 printable characters"):
        DataSettings(source="folder", path="a\nb")
