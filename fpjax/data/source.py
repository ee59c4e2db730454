"""Where images come from: settings in, uint8 train/val/test splits and their identity out."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..checks import check, one_of
from .phantom import phantom_images

# The paper's seven sets at 28x28, with the MD5 of the official files (medmnist 3.0.2).
MEDMNIST = {
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "chestmnist": "02c8a6516a18b556561a56cbdd36c4a8",
    "organsmnist": "9ab87b696fb54e2a387ebe992d6ed5f1",
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
}
_URL = "https://zenodo.org/records/10519652/files/{file}?download=1"
_SPLITS = ("train", "val", "test")


class Splits(NamedTuple):
    """The images as the source has them.

    `identity` is JSON-able and the same on every machine: source, name, checksum or generator parameters, image
    shape, images a split, surplus copies (pixel-identical to an earlier image) a split, and distinct images that
    two splits share.
    """

    train: UInt8[np.ndarray, "train h w c"]
    val: UInt8[np.ndarray, "val h w c"]
    test: UInt8[np.ndarray, "test h w c"]
    identity: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how many of them are trained on, planted and held out.

    Attributes:
      source: a name in `LOADERS`.
      name: the data set within the source; the phantoms have only one and ignore it.
      directory: where the files are; empty: $FPJAX_DATA, ./data and, if it exists, ../shared/data/medmnist.
      side: pixels each way, phantoms only.
      num_val, num_test, num_pool: phantoms in the val, test and train split.
      num_train: |N_D|, images that the score model trains on, members included; 0: all that remain.
      num_members, num_controls: targets trained on (K) and held out (H).
      repeat_grey: grey images become three equal channels, the paper's way; else they keep their one.
      dequantize: training and likelihood add uniform noise below one grey level.
      seed: of the phantoms and of all choices in `plant`, 0 to 2**30.

    Raises:
      RequestError: a name or number out of its range.
    """

    source: str = "medmnist"
    name: str = "pathmnist"
    directory: str = ""
    side: int = 28
    num_val: int = 200
    num_test: int = 200
    num_pool: int = 1200
    num_train: int = 0
    num_members: int = 1
    num_controls: int = 19
    repeat_grey: bool = False
    dequantize: bool = True
    seed: int = 0

    def __post_init__(self):
        one_of("data.source", self.source, LOADERS)
        if self.source == "medmnist":
            one_of("data.name", self.name, MEDMNIST)
        least = {"side": 4, "num_val": 1, "num_test": 1, "num_pool": 1, "num_train": 0, "num_members": 1}
        for field, low in (least | {"num_controls": 0, "seed": 0}).items():
            value = getattr(self, field)
            ok = isinstance(value, int) and value >= low
            check(ok, f"data.{field}", got=value, expected=f"an integer of {low} or more", fix="raise it")
        check(
            self.num_train == 0 or self.num_train >= self.num_members,
            "data.num_train",
            got=self.num_train,
            expected=f"at least data.num_members = {self.num_members}, or 0 for all images",
            fix="train on more images or plant fewer members",
        )
        check(
            self.dequantize or not self.repeat_grey,
            "data.dequantize",
            got="False with data.repeat_grey",
            expected="True: three equal channels have no density without noise of their own",
            fix="set data.dequantize=True, or data.repeat_grey=False",
        )
        check(self.seed <= 2**30, "data.seed", got=self.seed, expected="at most 2**30", fix="choose a smaller seed")


def load(settings: DataSettings) -> Splits:
    """Reads or generates the images, bytes as the source has them.

    Raises:
      RequestError: a file is missing, unreadable, not the official one, or not three splits of uint8 images.
    """
    images, identity = LOADERS[settings.source](settings)
    if settings.repeat_grey and images["train"].shape[-1] == 1:
        images = {split: np.repeat(array, 3, axis=-1) for split, array in images.items()}
    digests = {split: image_digests(array) for split, array in images.items()}
    identity = identity | {
        "image_shape": list(images["train"].shape[1:]),
        "repeat_grey": settings.repeat_grey,
        "num_images": {split: len(array) for split, array in images.items()},
        "surplus_copies": {split: len(rows) - len(set(rows)) for split, rows in digests.items()},
        "shared_images": {
            f"{a}_{b}": len(set(digests[a]) & set(digests[b]))
            for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
        },
    }
    return Splits(**images, identity=identity)


def image_digests(images: UInt8[np.ndarray, "n h w c"]) -> list[bytes]:
    """One 16-byte digest an image; images of one shape are pixel-identical if and only if these are equal."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def read_npz(path: Path) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    """Reads {train,val,test}_images of an npz file, never pickled objects; grey images get their channel axis.

    Raises:
      RequestError: the file is no whole npz, lacks a split, or the splits are not uint8 (n, h, w[, 1 or 3]), n > 0.
    """
    images, problem = {}, ""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images = {split: np.asarray(arrays[f"{split}_images"]) for split in _SPLITS}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen unrelated types
        problem = f"{type(error).__name__}: {error}"
    check(
        not problem,
        path.name,
        got=problem,
        expected="an npz file with the arrays train_images, val_images and test_images",
        fix="replace the file, it is damaged or of another format",
    )
    for split, array in images.items():
        images[split] = array = array[..., None] if array.ndim == 3 else array
        check(
            array.dtype == np.uint8
            and array.ndim == 4
            and array.shape[-1] in (1, 3)
            and array.size > 0
            and array.shape[1:] == images["train"].shape[1:],
            f"{split}_images in {path.name}",
            got=f"{array.dtype} of shape {array.shape}",
            expected="uint8 of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3), n > 0, equal h, w and channels in all",
            fix="convert the images to bytes of one size",
        )
    return images


def _load_medmnist(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One official MedMNIST file, its MD5 checked before anything in it is read."""
    file = f"{settings.name}.npz"
    path = _find(file, settings.directory)
    try:
        with path.open("rb") as stream:
            md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            got = f"MD5 {md5} ({stream.tell()} bytes)"
    except OSError as error:
        md5, got = "", error.strerror
    expected = MEDMNIST[settings.name]
    check(
        md5 == expected,
        file,
        got=got,
        expected=f"MD5 {expected}, the official 28x28 file",
        fix=f"it is truncated, unreadable or another release; replace it by {_URL.format(file=file)}",
    )
    return read_npz(path), {"source": "medmnist", "name": settings.name, "md5": md5}


def _find(file: str, directory: str) -> Path:
    """The first of the places where the file may be; paths in messages stay as the user gave them."""
    shared = "../shared/data/medmnist"
    defaults = [os.environ.get("FPJAX_DATA", ""), "data", shared if Path(shared).is_dir() else ""]
    places = [directory] if directory else [place for place in defaults if place]
    found = [path for place in places if (path := Path(place) / file).is_file()]
    check(
        bool(found),
        "data.name",
        got=f"no file {file} in {' or '.join(places)}",
        expected="the official MedMNIST file",
        fix=f"download {_URL.format(file=file)} as {places[0]}/{file}, or set data.directory or FPJAX_DATA",
    )
    return found[0]


def _load_phantom(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Phantoms, each split from a stream of its own, so that none changes when another grows."""
    sizes = {"train": settings.num_pool, "val": settings.num_val, "test": settings.num_test}
    seeds = {split: 3 * settings.seed + i for i, split in enumerate(_SPLITS)}
    images = {split: phantom_images(sizes[split], side=settings.side, seed=seeds[split]) for split in _SPLITS}
    return images, {"source": "phantom", "name": "phantom", "side": settings.side, "split_seeds": seeds}


# A new source is one function and one line here: settings -> ({split: uint8 (n, h, w, c)}, its part of the identity).
LOADERS: dict[str, Callable[[DataSettings], tuple[dict[str, np.ndarray], dict[str, Any]]]] = {
    "medmnist": _load_medmnist,
    "phantom": _load_phantom,
}
