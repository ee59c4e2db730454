"""Images in npz and npy files that nobody has vetted: every one gives valid uint8 arrays or one `RequestError`.

What a file claims about itself (shapes, sizes) is checked before memory is taken for it. Nothing is pickled. Messages
name files, for whoever must mend them; no message has a group's name.
"""

import os
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from ..core.errors import RequestError, check
from ..core.files import Bounded, open_plain
from ..core.paths import LFS_POINTER
from .files import MAX_SIDE, SPLITS, Read, check_bytes, explain

_MAX_MEMBERS = 1000  # of an npz file


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
                with open_plain(path) as stream:
                    begin = stream.read(len(LFS_POINTER))
                    if begin == LFS_POINTER:
                        problem = "a Git LFS pointer in place of the file: run git lfs pull"
                    elif begin[:6] != b"\x93NUMPY":
                        images, groups, *_ = _read_npz(path, stream, group)
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


def _read_npz(path: Path, stream: IO[bytes], group: str) -> Read:
    """The members that hold images and groups, checked against what the archive says of them."""
    with zipfile.ZipFile(Bounded(stream)) as archive:
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
    fix = "" if count is not None else _mend(dtype, shape)
    check(
        not fix,
        what,
        got=f"{dtype} of shape {shape}"[:200],
        expected=f"uint8 of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3), n > 0, at most {MAX_SIDE} pixels each way",
        fix=fix,
    )
    check(
        num_bytes == size - stream.tell(),
        what,
        got=f"{size - stream.tell()} bytes of data",
        expected=f"{num_bytes:.16g}, as its shape {shape} says",
        fix="replace the file, it is damaged",
    )


def _mend(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """What makes images of an array x that holds none as it is; empty where it does.

    Without a channel axis (h, w, slices) and one image (h, w, 3) pass for images of another shape.
    """
    range_first = "map the range that matters to bytes yourself: values above 255 would wrap around"
    of_dtype = {
        "f": "convert the images to bytes; from floats in [0, 1]: np.round(255 * x).astype(np.uint8)",
        "b": "convert the images to bytes: 255 * x.astype(np.uint8)",
        "O": "bring all images to one size, and stack them with np.stack",
    }
    if dtype != np.uint8:
        return of_dtype.get(dtype.kind, range_first)
    if min(shape, default=0) < 1 or len(shape) not in (2, 3, 4):
        return "save at least one image, and all of them in one array of (n, h, w, 1) or (n, h, w, 3)"
    if len(shape) == 2:
        return "save one image as x[None]"
    apart = "; if it is (n, h, w) as it stands, say so by x[..., None]"
    if len(shape) == 3 and shape[-1] in (1, 3, 4):
        return f"this looks like one image with its channels: save x[None, ..., :3]{apart}"
    if len(shape) == 3 and shape[0] == shape[1] != shape[2]:
        return f"this looks like slices of a volume: move the slice axis first, np.moveaxis(x, -1, 0){apart}"
    if len(shape) == 4 and shape[-1] not in (1, 3):
        if shape[1] in (1, 3):
            return "move the channels last: x.transpose(0, 2, 3, 1)"
        if shape[-1] == 4:
            return "flatten the alpha channel on a background of your choice, or leave it out: x[..., :3]"
        return "keep one channel or three"
    return "reduce the images" if max(shape[1:3]) > MAX_SIDE else ""
