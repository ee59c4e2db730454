"""Images in a folder of PNG and JPEG files that nobody has vetted, and what was left out of it.

Messages name files, for whoever must mend them; results do not, since names can be patients'. No message has a group's
name.
"""

import collections
import concurrent.futures
import contextlib
import io
import os
import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from ..core.errors import RequestError, check
from ..core.files import open_plain, read_plain
from ..core.paths import LFS_POINTER
from .files import SPLITS, Read, check_bytes, explain
from .parts import MAX_PARTS, jpeg_parts, png_parts

MAX_PIXELS = 2**26  # of a PNG or JPEG before it is resized, 8192 x 8192
_MAX_BYTES = 4 * MAX_PIXELS  # of its file
_MAX_SCANS = 100  # of a JPEG; progressive ones have about ten
_MAX_DECODED = 2**30  # scans times pixels: each scan passes over all pixels, be it ten bytes long
_LARGE = 2**23  # bytes or pixels of a file from which on one is read at a time: the largest take some 500 MB
_MAX_DEPTH = 64  # of folders within folders
_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
# As people name them: nobody's test images are to be trained on for a capital letter.
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What may have been meant as a split: "train2", "test-set", "val_001", "kidney_train"; not "testis" or "valve".
_MEANT = re.compile(
    r"(?P<begin>train|val|test)(ing|id|idation)?(sets?|data|split|images?|imgs?|files?)?([^a-z].*)?"
    r"|.*[-_. ](?P<end>train)(ing)?"
)
# First bytes of what is an image, or stands where one should be.
_KINDS = (
    (0, b"\x89PNG", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF8", "gif"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (8, b"WEBP", "webp"),
    (4, b"ftypheic", "heic"),
    (4, b"ftypavif", "avif"),
    (0, b"\0\0\0\x0cjP  ", "jpeg2000"),
    (128, b"DICM", "dicom"),
    (344, b"n+1", "nifti"),
    (0, LFS_POINTER, "git-lfs pointer"),
)
_IMAGE_SUFFIXES = {
    **{f".{kind}": kind for kind in ("gif", "bmp", "tiff", "webp", "heic", "avif", "dicom")},
    **{".tif": "tiff", ".dcm": "dicom", ".nii": "nifti", ".jp2": "jpeg2000", ".svs": "tiff", ".mha": "metaimage"},
}


class Problem(NamedTuple):
    """Why a file is not read, and what to do about it."""

    got: str
    fix: str = "replace or remove the file"


class Found(NamedTuple):
    """What lies in a folder.

    images: files that are read, sorted by their paths.
    skipped: files that are images too, or should be, and are not read, by kind.
    others: files and folders that are none, by kind.
    """

    images: list[Path]
    skipped: dict[str, int]
    others: dict[str, int]


def read_folder(root: Path, *, side: int, group: str = "", multiple: int = 1) -> Read:
    """The PNG and JPEG files of a folder and its sub-folders, sorted by their path within it.

    Folders on their paths that are named train, val or test, in one of the usual spellings, are the splits; if there
    are none, all is "train". Links are followed, to each folder once. Hidden files and folders are left out, and so are
    other files; of those, images are counted by their kind. Each image is turned as its EXIF orientation says, cut to
    the largest square about its centre, and reduced to `side` pixels by averaging areas (Pillow's BOX). If every image
    is grey there is one channel, else three.

    Args:
      root: the folder.
      side: pixels each way.
      group: if not empty, a valid regular expression that is searched in each file's path within the folder (with
        slashes, accents composed): what its first group finds, or all of it if it has none, names the image's group.
      multiple: of which a side must be for the network, for the message's sake.

    Raises:
      RequestError: no folder or no images in it; a name that begins like that of a split and is none; a file that is
        damaged, no plain file, above `MAX_PIXELS`, smaller than `side`, transparent, CMYK or of 16 bits a channel: what
        these should look like in 8 bits is the owner's choice, so nothing is guessed; a path in which `group` finds
        nothing.
    """
    check(
        os.path.isdir(root), "data.path", got=ascii(str(root)), expected="a folder of images", fix="give the right path"
    )
    try:
        found = find_images(root)
    except OSError as error:
        raise RequestError(
            f"data.path: got {explain(error)}, expected a folder that can be listed; fix: change its permissions"
        ) from None
    files = found.images
    check(
        bool(files),
        "data.path",
        got=f"no images{f' that are read, but {counted(found.skipped)}' if found.skipped else ''}",
        expected=f"PNG or JPEG files with the endings {', '.join(_SUFFIXES)}; hidden ones are left out",
        fix="convert them" if found.skipped else "give the right folder, or copy the images there",
    )
    splits = _splits([path.relative_to(root) for path in files])
    names = _path_groups([path.relative_to(root).as_posix() for path in files], group) if group else None
    check_bytes("data.path", 3 * len(files) * side**2)

    images, grey, bad = np.empty((len(files), side, side, 3), np.uint8), True, []
    workers = min(8, os.cpu_count() or 1)
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of damage that it mends
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, image in enumerate(pool.map(lambda path: _read_image(path, side, multiple), files)):
            if image is None:
                image = _read_image(files[i], side, multiple, large=True)
            if isinstance(image, Problem):
                bad.append((str(files[i].relative_to(root)), image))
            elif image is not None:
                images[i], grey = image, grey and bool((image == image[..., :1]).all())
    _refuse_bad(bad, len(files), side)
    images = images[..., :1] if grey else images
    rows = {split: [row for row, where in enumerate(splits) if where == split] for split in SPLITS if split in splits}
    return Read(
        {split: np.ascontiguousarray(images[members]) for split, members in rows.items()},
        {split: [names[row] for row in members] for split, members in rows.items()} if names else None,
        found.skipped,
        found.others,
    )


def counted(kinds: dict[str, int]) -> str:
    """Kinds with their numbers, in words.

    >>> counted({"webp": 2, "dicom": 1})
    '2 webp, 1 dicom'
    """
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def find_images(root: Path) -> Found:
    """Looks through a folder, along links too, but into no folder twice."""
    images, skipped, others = [], collections.Counter(), collections.Counter()
    for path, what in _walk(root, {os.path.realpath(root)}, 0):
        if what == "image":
            images.append(path)
        elif what:
            others[what] += 1
        else:
            try:
                begin = _begin(path) if path.is_file() else b""
            except OSError:
                begin = b""
            kind = _kind(path.name, begin)
            (skipped if kind else others)[kind or "other files"] += 1
    images.sort(key=lambda path: _sort_key(path.relative_to(root)))
    return Found(images, dict(sorted(skipped.items())), dict(sorted(others.items())))


def _walk(folder: Path, seen: set[str], depth: int) -> Iterator[tuple[Path, str]]:
    """Each file with "image" for what is named as one that is read, "" for others, and what else it is not to be."""
    check(
        depth <= _MAX_DEPTH,
        "data.path",
        got=f"folders within folders, more than {_MAX_DEPTH} of them",
        expected=f"at most {_MAX_DEPTH}",
        fix="move the images up",
    )
    # In one order on all systems: of two ways to a folder the first counts.
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries), key=os.fsencode)
    for name in names:
        path = folder / name
        if name.startswith("."):
            yield path, "hidden files and folders"
        elif path.is_dir():
            real = os.path.realpath(path)
            if real in seen:
                yield path, "links to folders that are here already"
            else:
                seen.add(real)
                yield from _walk(path, seen, depth + 1)
        else:
            # A link to nowhere is named as an image, and refused as a file that cannot be read.
            yield path, "image" if name.lower().endswith(_SUFFIXES) else ""


def _kind(name: str, begin: bytes) -> str:
    """What kind of image a file is that is not read, by its first bytes or else its ending; empty: none."""
    found = next((kind for start, bytes_, kind in _KINDS if begin[start : start + len(bytes_)] == bytes_), "")
    ending = name.lower().removesuffix(".gz")
    return found or next((kind for suffix, kind in _IMAGE_SUFFIXES.items() if ending.endswith(suffix)), "")


def _begin(path: Path) -> bytes:
    with open_plain(path) as stream:
        return stream.read(512)


def _splits(paths: Sequence[Path]) -> list[str]:
    """The split of each path within the folder; all are "train" where no folder is named as one.

    Raises:
      RequestError: images beside the splits, or in two of them, no train, or a name that may have been meant as one.
    """
    found = [{_SPLIT_NAMES[part.lower()] for part in path.parts[:-1] if part.lower() in _SPLIT_NAMES} for path in paths]
    splits = [next(iter(names)) if len(names) == 1 else "" for names in found]
    if any(found):
        twice, others = sum(len(names) > 1 for names in found), sum(not names for names in found)
        got = f"{twice} images in folders of two splits" if twice else ""
        if others and not got:
            got = f"{others} of {len(paths)} images beside folders that are named as splits"
        got = got or ("val or test, but no train" if "train" not in splits else "")
        check(
            not got,
            "data.path",
            got=got,
            expected="images in train, and perhaps val and test, alone; or none of these",
            fix="move the other images, or rename the sub-folders",
        )
    for path, split in zip(paths, splits, strict=True):
        folders = [part for part in path.parts[:-1] if part.lower() not in _SPLIT_NAMES]
        for part in (*folders, path.stem):
            like = _MEANT.fullmatch(part.lower())
            check(
                not like or (like["begin"] or like["end"]) == split,
                "data.path",
                got=f"{ascii(part)} in a path, which is named like a split and is none",
                expected=f"folders named {', '.join(SPLITS)} for given splits, and no other names like them",
                fix="rename it: nothing is guessed about who was trained on",
            )
    return splits if any(found) else ["train"] * len(paths)


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


def _sort_key(path: Path) -> tuple[list[bytes], list[bytes]]:
    """Orders paths alike on all systems: by bytes, part by part, with accents composed, which some systems do not."""
    composed = [unicodedata.normalize("NFC", part).encode("utf-8", "surrogateescape") for part in path.parts]
    return composed, [os.fsencode(part) for part in path.parts]


def _read_image(
    path: Path, side: int, multiple: int, *, large: bool = False
) -> UInt8[np.ndarray, "side side _"] | Problem | None:
    """One PNG or JPEG as grey or RGB bytes; see `read_folder` for what is done to it.

    None: it is large, and is to be read with `large`.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return Problem("a link to nothing" if path.is_symlink() and not path.exists() else "no plain file")
        begin, size = _begin(path), path.stat().st_size
        if size > _MAX_BYTES:
            return Problem(f"{size:,} bytes", f"reduce it to at most {_MAX_BYTES:,}")
        if not begin.startswith((b"\x89PNG", b"\xff\xd8\xff")):
            return _not_an_image(path.name, begin)
        if size > _LARGE and not large:
            return None
        scans = _num_scans(path, begin)
        if isinstance(scans, Problem):
            return scans
        try:
            with open_plain(path) as stream:
                return _pixels(stream, begin, side, multiple, scans=scans, large=large)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise
        except Exception:
            # Of a PNG, text and metadata may be damaged where the pixels are not.
            if not begin.startswith(b"\x89PNG"):
                raise
        # Only here, where the error does not keep the image that it is of.
        png = _critical_chunks(read_plain(path, most=_MAX_BYTES))
        return _pixels(io.BytesIO(png), begin, side, multiple, scans=1, large=large)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Problem("more pixels", "reduce it")
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        return Problem(explain(error))


def _num_scans(path: Path, begin: bytes) -> int | Problem:
    """Passes over the pixels that decoding takes, unless the file has too many parts to be read at all."""
    if begin.startswith(b"\x89PNG"):
        with open_plain(path) as stream:
            parts, scans = png_parts(stream), 1
    else:
        parts, scans = jpeg_parts(read_plain(path, most=_MAX_BYTES), most_scans=_MAX_SCANS)
    return Problem(f"more than {MAX_PARTS:,} parts", "save it again") if parts > MAX_PARTS else scans


def _not_an_image(name: str, begin: bytes) -> Problem:
    """What a file is that is named as a PNG or JPEG and does not begin as one."""
    kind = _kind(name, begin)
    if begin.startswith(LFS_POINTER):
        return Problem("a Git LFS pointer in place of the file", "run git lfs pull")
    if begin.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return Problem("an HTML page", "download the image itself")
    return Problem(f"a {kind} image", "convert it") if kind else Problem("no PNG or JPEG")


def _critical_chunks(png: bytes) -> bytes:
    """A PNG without what says nothing of its pixels."""
    kept, place = [png[:8]], 8
    while place + 12 <= len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(png[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def _pixels(
    stream: IO[bytes] | io.BytesIO, begin: bytes, side: int, multiple: int, *, scans: int, large: bool
) -> UInt8[np.ndarray, "side side _"] | Problem | None:
    image = Image.open(stream, formats=("PNG", "JPEG"))
    width, height = image.size
    if width * height > MAX_PIXELS:
        return Problem(f"{width}x{height} pixels", "reduce it")
    if scans > _MAX_SCANS or scans * width * height > _MAX_DECODED:
        more = "more than " if scans > _MAX_SCANS else ""
        return Problem(
            f"a JPEG of {width}x{height} pixels in {more}{min(scans, _MAX_SCANS)} scans", "save it as a baseline JPEG"
        )
    if min(width, height) < side:
        most = min(width, height) // multiple * multiple
        fix = f"set data.side to {most} or less" if most else "leave it out"
        fix += f", in steps of {multiple} for the network" if most and multiple > 1 else ""
        return Problem(f"{width}x{height} pixels", fix)
    # Byte 24 of a PNG is its depth, which Pillow hides in colour images.
    if image.format == "PNG" and begin[24] > 8:
        return Problem("16 bits a channel", "map the range that matters to 8 bits")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return Problem(f"mode {image.mode}", "convert it to RGB")
    if width * height > _LARGE and not large:
        return None
    image.load()
    # Damaged metadata says nothing of a turn.
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = _as(image, "RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            return Problem("transparent pixels", "flatten it on a background of your choice")
    image = _as(image, "L" if image.mode in ("1", "L") else "RGB")
    return np.asarray(_to_square(image, side)).reshape(side, side, -1)


def _as(image: Image.Image, mode: str) -> Image.Image:
    """In another mode; in its own it is not copied."""
    return image if image.mode == mode else image.convert(mode)


def _refuse_bad(bad: Sequence[tuple[str, Problem]], total: int, side: int) -> None:
    """One line for all the files that cannot be read: how many, and the first three."""
    if not bad:
        return
    expected = f"PNG or JPEG, 8-bit grey or RGB, at least {side} pixels each way and at most {MAX_PIXELS} in all"
    if len(bad) == 1:
        ((name, problem),) = bad
        raise RequestError(f"image {ascii(name)}: got {problem.got}, expected a {expected}; fix: {problem.fix}")
    first = "; ".join(f"{ascii(name)}: {problem.got}" for name, problem in bad[:3])
    fixes = ", or ".join(dict.fromkeys(problem.fix for _, problem in bad))
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    got = f"{len(bad)} of {total} images that are not read ({first}{more})"
    raise RequestError(f"data.path: got {got}, expected {expected}; fix: {fixes}")


def _to_square(image: Image.Image, side: int) -> Image.Image:
    """The largest square about the centre, reduced to `side` by averaging areas; of that size it stays as it is."""
    cut = min(image.size)
    left, top = (image.width - cut) // 2, (image.height - cut) // 2
    if image.width != image.height:
        image = image.crop((left, top, left + cut, top + cut))
    return image if cut == side else image.resize((side, side), Image.Resampling.BOX)
