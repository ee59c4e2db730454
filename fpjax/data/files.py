"""Images from files that nobody has vetted: every one gives valid uint8 arrays or one `RequestError`.

What a file claims about itself (shapes, sizes, pixels) is checked before memory is taken for it. Nothing is pickled.
Messages name files, for whoever must mend them; results do not, since names can be patients'. No message has a
group's name.
"""

import concurrent.futures
import os
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ..core.errors import RequestError, check

SPLITS = ("train", "val", "test")
MAX_SIDE = 1024  # pixels each way; the networks here are for far less
MAX_BYTES = 2**34  # of all images; the largest MedMNIST set, 107,180 colour images of 224x224, has 1.6e10
MAX_PIXELS = 2**26  # of a PNG or JPEG before it is resized, 8192 x 8192
_MAX_MEMBERS = 1000  # of an npz file
_SUFFIXES = (".png", ".jpg", ".jpeg")


class Read(NamedTuple):
    """What a reader found, by split.

    `groups`, if they were asked for, are the names of each image's group, as many as images and all of one type. They
    can be patients' names: compare them, but write them nowhere.
    """

    images: dict[str, UInt8[np.ndarray, "n h w c"]]
    groups: dict[str, list[int] | list[str] | list[bytes]] | None


def check_bytes(what: str, num_bytes: int) -> None:
    """Refuses images that take more than `MAX_BYTES`, or more than half of this machine's memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        memory = 2 * MAX_BYTES
    most = min(MAX_BYTES, memory // 2)
    check(
        num_bytes <= most,
        what,
        got=f"{num_bytes:.4g} bytes of images",
        expected=f"at most {most:.4g}, the limit on this machine",
        fix="use fewer or smaller images",
    )


def read_arrays(path: Path, *, group: str = "") -> Read:
    """The images in an npz or npy file; grey images get their channel axis.

    An npz holds `train_images` and, if it has them, `val_images` and `test_images`, or one array `images`; an npy is
    that one array. It is returned under "train". Members of other names are not looked at.

    Args:
      path: the file.
      group: if not empty, an npz also holds `{split}_{group}` beside each `{split}_images`, or `{group}` beside
        `images`: an integer or a string of fixed width for each image.

    Raises:
      RequestError: no such file, damaged, larger than its limits, not uint8 (n, h, w[, 1 or 3]) of one size, n > 0, or
        the groups are missing, of another kind or not as many as the images.
    """
    # os.path, not Path: it answers for names that the system refuses too.
    problem = "no such file" if not os.path.exists(path) else "no plain file" if not os.path.isfile(path) else ""
    images, groups = {}, None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of headers that it mends; here they are damage
        try:
            if not problem:
                with path.open("rb") as stream:
                    if stream.read(6) != b"\x93NUMPY":
                        images, groups = _read_npz(path, stream, group)
                    else:
                        check(
                            not group,
                            "data.group",
                            got=f"{ascii(path.name)}, an npy file",
                            expected="an npz file, which has the groups beside the images",
                            fix="save both with np.savez_compressed, or leave data.group empty",
                        )
                        images = _read_npy(path, stream)
        except RequestError:
            raise
        except Exception as error:  # numpy, zipfile, zlib and ast raise a dozen unrelated types
            problem = explain(error)
    check(
        not problem,
        ascii(path.name),
        got=problem,
        expected="an npz file with train_images or images, or an npy file",
        fix="give the right path, or replace the file: it is damaged or of another format",
    )
    images = {split: array[..., None] if array.ndim == 3 else array for split, array in images.items()}
    shape = images["train"].shape[1:]
    for split, array in images.items():
        check(
            array.shape[1:] == shape,
            f"{split}_images in {ascii(path.name)}",
            got=f"images of shape {array.shape[1:]}",
            expected=f"{shape}, as in train_images",
            fix="bring all images to one size and number of channels",
        )
    return Read(images, groups)


def read_folder(root: Path, *, side: int, group: str = "") -> Read:
    """The PNG and JPEG files of a folder and its sub-folders, sorted by their path within it.

    Sub-folders train, val and test at the top are the splits; else all is "train". Links, hidden files and other files
    are skipped. Each image is turned as its EXIF orientation says, cut to the largest square about its centre, and
    reduced to `side` pixels by averaging areas (Pillow's BOX). If every image is grey there is one channel, else three.

    Args:
      root: the folder.
      side: pixels each way.
      group: if not empty, a valid regular expression that is searched in each file's path within the folder (with
        slashes, accents composed): what its first group finds, or all of it if it has none, names the image's group.

    Raises:
      RequestError: no folder or no images in it; a file that is damaged, no plain file, above `MAX_PIXELS`, smaller
        than `side`, transparent, CMYK or of 16 bits a channel: what these should look like in 8 bits is the owner's
        choice, so nothing is guessed; a path in which `group` finds nothing.
    """
    check(
        os.path.isdir(root), "data.path", got=ascii(str(root)), expected="a folder of images", fix="give the right path"
    )
    try:
        files = sorted(_image_files(root), key=lambda path: _sort_key(path.relative_to(root)))
    except OSError as error:
        raise RequestError(
            f"data.path: got {explain(error)}, expected a folder that can be listed; fix: change its permissions"
        ) from None
    check(
        bool(files),
        "data.path",
        got="no images",
        expected=f"files with the endings {', '.join(_SUFFIXES)}; links and hidden files are not followed",
        fix="give the right folder, or copy the images there",
    )
    tops = [path.relative_to(root).parts[0] if path.parent != root else "" for path in files]
    tops = [_SPLIT_NAMES.get(top.lower(), top) for top in tops]
    if any(split in tops for split in SPLITS):
        others = sorted({top for top in tops if top not in SPLITS})
        check(
            "train" in tops and not others,
            "data.path",
            got=f"{len(others)} other places with images beside train, val and test"
            if others
            else "val or test, but no train",
            expected="images in train, and perhaps val and test, alone; or none of these",
            fix="move the other images, or rename the sub-folders",
        )
    else:
        tops = ["train"] * len(files)
    names = _path_groups([path.relative_to(root).as_posix() for path in files], group) if group else None
    check_bytes("data.path", 3 * len(files) * side**2)

    images, grey = np.empty((len(files), side, side, 3), np.uint8), True
    workers = min(8, os.cpu_count() or 1)
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of damage that it mends
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, image in enumerate(pool.map(lambda path: _read_image(path, str(path.relative_to(root)), side), files)):
            images[i], grey = image, grey and bool((image == image[..., :1]).all())
    images = images[..., :1] if grey else images
    rows = {split: [row for row, top in enumerate(tops) if top == split] for split in SPLITS if split in tops}
    return Read(
        {split: np.ascontiguousarray(images[members]) for split, members in rows.items()},
        {split: [names[row] for row in members] for split, members in rows.items()} if names else None,
    )


def explain(error: Exception) -> str:
    """One short line for an error that was not foreseen one by one."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200].encode('ascii', 'backslashreplace').decode()}"


def _path_groups(paths: list[str], group: str) -> list[str]:
    """What the expression finds in each path; an empty find is none, or all such images would be one patient's."""
    pattern = re.compile(group)
    matches = [pattern.search(unicodedata.normalize("NFC", path)) for path in paths]
    names = [match and match[1 if pattern.groups else 0] for match in matches]
    found = [name for name in names if name]
    check(
        len(found) == len(paths),
        "data.group",
        got=f"{len(paths) - len(found)} of {len(paths)} paths in which it finds nothing",
        expected="a regular expression that finds the patient in each file's path within the folder",
        fix="correct it, or rename the files",
    )
    return found


def _read_npz(path: Path, stream: IO[bytes], group: str) -> Read:
    """The members that hold images and groups, checked against what the archive says of them."""
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        plain = all(
            not set("/\\") & set(name) and ".." not in name and member.compress_type in (0, zipfile.ZIP_DEFLATED)
            for name, member in zip(names, members, strict=True)
        )
        check(
            plain and len(set(names)) == len(names) <= _MAX_MEMBERS,
            ascii(path.name),
            got="member names that are paths or occur twice, another compression than deflate, or too many members",
            expected=f"at most {_MAX_MEMBERS} arrays under plain names, as np.savez_compressed writes them",
            fix="write the file anew with np.savez_compressed",
        )
        wanted = {split: f"{split}_images.npy" for split in SPLITS if f"{split}_images.npy" in names}
        if not wanted and "images.npy" in names:
            wanted = {"train": "images.npy"}
        check(
            "train" in wanted,
            ascii(path.name),
            got=f"the arrays {ascii(', '.join(names))[1:-1][:200] or 'none'}",
            expected="train_images, with or without val_images and test_images, or images",
            fix="name the arrays so",
        )
        grouped = {split: name.removesuffix("images.npy") + f"{group}.npy" for split, name in wanted.items() if group}
        missing = [name.removesuffix(".npy") for name in grouped.values() if name not in names]
        check(
            not missing,
            "data.group",
            got=f"no array {ascii(', '.join(missing))} in {ascii(path.name)}",
            expected="groups beside each array of images",
            fix="add them, or correct the name",
        )
        check_bytes(
            ascii(path.name), sum(archive.getinfo(name).file_size for name in (*wanted.values(), *grouped.values()))
        )

        def read(name: str, count: int | None = None) -> np.ndarray:
            with archive.open(name) as member:
                what = f"{ascii(name.removesuffix('.npy'))[1:-1]} in {ascii(path.name)}"
                _check_header(what, member, archive.getinfo(name).file_size, count=count)
            with archive.open(name) as member:
                return np.ascontiguousarray(np.lib.format.read_array(member, allow_pickle=False))

        images = {split: read(name) for split, name in wanted.items()}
        groups = {split: read(name, len(images[split])).tolist() for split, name in grouped.items()}
    check(
        len({type(names[0]) for names in groups.values()}) <= 1,
        "data.group",
        got="integers for some splits and strings for others, or two kinds of strings",
        expected="one kind, or a patient on both sides is not found",
        fix="save them all as strings",
    )
    return Read(images, groups or None)


def _read_npy(path: Path, stream: IO[bytes]) -> dict[str, np.ndarray]:
    """One array, checked against the size of the file."""
    size = stream.seek(0, os.SEEK_END)
    check_bytes(ascii(path.name), size)
    stream.seek(0)
    _check_header(ascii(path.name), stream, size)
    stream.seek(0)
    return {"train": np.ascontiguousarray(np.lib.format.read_array(stream, allow_pickle=False))}


def _check_header(what: str, stream: IO[bytes] | zipfile.ZipExtFile, size: int, *, count: int | None = None) -> None:
    """Refuses an array by its npy header alone; `size` is what header and data have in bytes.

    With `count` it is one of so many groups, else of images.
    """
    version = np.lib.format.read_magic(stream)
    check(version in ((1, 0), (2, 0)), what, got=f"npy version {version}", expected="1.0 or 2.0", fix="save it anew")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    # Python integers: NumPy's product would wrap around.
    num_bytes = dtype.itemsize
    for length in shape:
        num_bytes *= length
    # The name of a dtype: its text would have those of a record's fields.
    check(
        count is None or (shape == (count,) and dtype.kind in "iuSU" and dtype.itemsize > 0),
        what,
        got=f"{dtype.name} of shape {shape}",
        expected=f"an integer or a string of fixed width for each of {count} images",
        fix="save it with np.savez_compressed, from np.array of a list of integers or strings",
    )
    check(
        count is not None
        or dtype == np.uint8
        and (len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3)))
        and all(length > 0 for length in shape)
        and max(shape[1:3]) <= MAX_SIDE,
        what,
        got=f"{dtype} of shape {shape}"[:200],
        expected=f"uint8 of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3), n > 0, at most {MAX_SIDE} pixels each way",
        fix="convert the images to bytes of one size; from floats in [0, 1]: np.round(255 * x).astype(np.uint8)",
    )
    check(
        num_bytes == size - stream.tell(),
        what,
        got=f"{size - stream.tell()} bytes of data",
        expected=f"{num_bytes:.16g}, as its shape {shape} says",
        fix="replace the file, it is damaged",
    )


# As people name them: nobody's test images are to be trained on for a capital letter.
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}


def _image_files(folder: Path) -> Iterator[Path]:
    """What is named as an image, but for hidden files and links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir():
                yield from _image_files(Path(entry.path))
            elif entry.name.lower().endswith(_SUFFIXES):
                yield Path(entry.path)


def _sort_key(path: Path) -> tuple[list[bytes], list[bytes]]:
    """Orders paths alike on all systems: by bytes, part by part, with accents composed, which some systems do not."""
    composed = [unicodedata.normalize("NFC", part).encode("utf-8", "surrogateescape") for part in path.parts]
    return composed, [os.fsencode(part) for part in path.parts]


def _read_image(path: Path, name: str, side: int) -> UInt8[np.ndarray, "side side _"]:
    """One PNG or JPEG as grey or RGB bytes; see `read_folder` for what is done to it."""
    problem, fix = "", "replace or remove the file"
    array = np.zeros((side, side, 1), np.uint8)
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("not a plain file")
        with path.open("rb") as stream:
            header = stream.read(26)
            stream.seek(0)
            with Image.open(stream, formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    problem, fix = f"{width}x{height} pixels", "reduce it"
                elif min(width, height) < side:
                    problem, fix = f"{width}x{height} pixels", f"set data.side to {min(width, height)} or less"
                # Byte 24 of a PNG is its depth, which Pillow hides in colour images.
                elif image.format == "PNG" and header[24] > 8:
                    problem, fix = "16 bits a channel", "map the range that matters to 8 bits"
                elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                    problem, fix = f"mode {image.mode}", "convert it to RGB"
                else:
                    image = ImageOps.exif_transpose(image)
                    if image.has_transparency_data:
                        image = image.convert("RGBA")
                        if image.getchannel("A").getextrema() != (255, 255):
                            problem, fix = "transparent pixels", "flatten it on a background of your choice"
                    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
                    array = np.asarray(_to_square(image, side)).reshape(side, side, -1)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        problem, fix = "more pixels", "reduce it"
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        problem = explain(error)
    check(
        not problem,
        f"image {ascii(name)}",
        got=problem,
        expected=f"a PNG or JPEG, 8-bit grey or RGB, at least {side} pixels each way and at most {MAX_PIXELS} in all",
        fix=fix,
    )
    return array


def _to_square(image: Image.Image, side: int) -> Image.Image:
    """The largest square about the centre, reduced to `side` by averaging areas; of that size it stays as it is."""
    cut = min(image.size)
    left, top = (image.width - cut) // 2, (image.height - cut) // 2
    image = image.crop((left, top, left + cut, top + cut))
    return image if cut == side else image.resize((side, side), Image.Resampling.BOX)
