"""Where images come from: settings in, uint8 train/val/test splits and their identity out."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..checks import check, one_of
from .files import MAX_SIDE, SPLITS, read_arrays, read_folder
from .phantom import phantom_images
from .remote import MEDMNIST, MEDMNIST_SIDES, MORE_MEDMNIST, medmnist_file, read_tfds

_MAX_PHANTOMS = 100_000  # in a split
_MAX_PHANTOM_BYTES = 2**25  # in all splits; under a minute of one core
_MAX_COUNT = 10**6  # of anything else: ten times the largest MedMNIST set
_SPLIT_STREAM = 4  # after the purposes 0 to 3 of `plant`


class Splits(NamedTuple):
    """The images as the source has them.

    `identity` is JSON-able and the same on every machine: source, name, the source's own checksum or generator
    parameters, which splits were drawn and how, image shape, images a split, SHA-256 of their bytes in order, surplus
    copies (pixel-identical to an earlier image) a split, and distinct images that two splits share. It has no file
    names or paths: they can name patients.
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
      name: the data set, of medmnist and tfds.
      directory: where the files of medmnist (empty: $FPJAX_DATA, ./data and, if it exists, ../shared/data/medmnist)
        and tfds (empty: TFDS's own place) are.
      path: the npz or npy file, or the folder.
      download: fetch an official MedMNIST file that is nowhere here.
      side: pixels each way of phantoms (4 to 1024), of medmnist (28, 64, 128 or 224), and to which images of a folder
        are reduced; npz and tfds have their own.
      val_fraction, test_fraction: share of the train images, above 0 and below 0.5, that becomes a val or test split
        where npz, folder or tfds has none.
      num_val, num_test, num_pool: phantoms in the val, test and train split.
      num_train: |N_D|, images that the score model trains on, members included; 0: all that remain.
      num_members, num_controls: targets trained on (K) and held out (H).
      repeat_grey: grey images become three equal channels, the paper's way; else they keep their one.
      dequantize: training and likelihood add uniform noise below one grey level.
      stamp: targets carry a disc; False leaves them as they are, with held-out targets from the held-out splits, for a
        model that was trained elsewhere.
      seed: of the phantoms, of drawn splits and of all choices in `plant`, 0 to 2**30.

    Raises:
      RequestError: a name or number out of its range.
    """

    source: str = "medmnist"
    name: str = "pathmnist"
    directory: str = ""
    path: str = ""
    download: bool = True
    side: int = 28
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    num_val: int = 200
    num_test: int = 200
    num_pool: int = 1200
    num_train: int = 0
    num_members: int = 1
    num_controls: int = 19
    repeat_grey: bool = False
    dequantize: bool = True
    stamp: bool = True
    seed: int = 0

    def __post_init__(self):
        one_of("data.source", self.source, LOADERS)
        for field in ("name", "directory", "path"):
            value = getattr(self, field)
            check(
                isinstance(value, str) and value.isprintable() and len(value) <= 1000,
                f"data.{field}",
                got=ascii(value)[:100],
                expected="at most 1000 printable characters",
                fix="correct it",
            )
        ranges = {
            "side": (4, MAX_SIDE),
            **dict.fromkeys(("num_val", "num_test", "num_pool"), (1, _MAX_PHANTOMS)),
            "num_train": (0, _MAX_COUNT),
            "num_members": (1, _MAX_COUNT),
            "num_controls": (0, _MAX_COUNT),
            "seed": (0, 2**30),
        }
        for field, (low, high) in ranges.items():
            value = getattr(self, field)
            ok = isinstance(value, int) and low <= value <= high
            check(
                ok, f"data.{field}", got=value, expected=f"an integer from {low} to {high}", fix="choose one of these"
            )
        for field in ("val_fraction", "test_fraction"):
            value = getattr(self, field)
            check(0 < value < 0.5, f"data.{field}", got=value, expected="above 0 and below 0.5", fix="use 0.1")
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
        if self.source == "medmnist":
            check(
                not self.name.endswith("3d"),
                "data.name",
                got=f"{self.name!r}, a set of volumes",
                expected="a set of images",
                fix="choose a 2-D set, or export slices and set data.source=npz",
            )
            one_of("data.name", self.name, {*MEDMNIST, *MORE_MEDMNIST})
            one_of("data.side", str(self.side), map(str, MEDMNIST_SIDES))
        if self.source == "phantom":
            num_bytes = (self.num_pool + self.num_val + self.num_test) * self.side**2
            check(
                num_bytes <= _MAX_PHANTOM_BYTES,
                "data.num_pool + data.num_val + data.num_test",
                got=f"{num_bytes} pixels of phantoms",
                expected=f"at most {_MAX_PHANTOM_BYTES}",
                fix="draw fewer or smaller ones",
            )


def load(settings: DataSettings) -> Splits:
    """Reads or generates the images, bytes as the source has them, and draws the splits that it lacks.

    Raises:
      RequestError: a file is missing, unreadable, damaged or not the official one; what it holds is not uint8 images
        of one shape; too few images.
    """
    images, identity = LOADERS[settings.source](settings)
    drawn = [split for split in SPLITS if split not in images]
    if drawn:
        fractions = {split: getattr(settings, f"{split}_fraction") for split in drawn}
        rows = draw_splits(image_digests(images["train"]), fractions, seed=settings.seed)
        images |= {split: images["train"][rows[split]] for split in ("val", "test", "train") if split in rows}
        identity = identity | {"drawn": fractions | {"seed": settings.seed}}
    identity = identity | {
        "sha256": {split: hashlib.sha256(np.ascontiguousarray(images[split]).data).hexdigest() for split in SPLITS}
    }
    if settings.repeat_grey and images["train"].shape[-1] == 1:
        images = {split: np.repeat(array, 3, axis=-1) for split, array in images.items()}
    digests = {split: image_digests(images[split]) for split in SPLITS}
    identity = identity | {
        "image_shape": list(images["train"].shape[1:]),
        "repeat_grey": settings.repeat_grey,
        "num_images": {split: len(rows) for split, rows in digests.items()},
        "surplus_copies": {split: len(rows) - len(set(rows)) for split, rows in digests.items()},
        "shared_images": {
            f"{a}_{b}": len(set(digests[a]) & set(digests[b])) for a, b in itertools.combinations(SPLITS, 2)
        },
    }
    return Splits(**images, identity=identity)


def image_digests(images: UInt8[np.ndarray, "n h w c"]) -> list[bytes]:
    """One 16-byte digest an image; images of one shape are pixel-identical if and only if these are equal."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def draw_splits(digests: list[bytes], fractions: dict[str, float], *, seed: int) -> dict[str, list[int]]:
    """Rows of each drawn split, and of the train split that remains, in the order of the images.

    Copies stay together: images of one digest are dealt as one, in random order, to the first split that has room for
    all of them, else to train. Whether an image is drawn depends on the pixels and the seed, not on the images' order.

    >>> draw_splits([b"a", b"b", b"a", b"c"], {"val": 0.2}, seed=0)
    {'val': [1], 'train': [0, 2, 3]}

    Raises:
      RequestError: a split would be empty.
    """
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        groups.setdefault(digest, []).append(row)
    room = {split: max(1, round(fraction * len(digests))) for split, fraction in fractions.items()}
    rows: dict[str, list[int]] = {split: [] for split in (*fractions, "train")}
    names = sorted(groups)
    # The stream of a RandomState is frozen for good (NEP 19).
    for i in np.random.RandomState((seed, _SPLIT_STREAM)).permutation(len(names)):  # noqa: NPY002
        group = groups[names[i]]
        split = next((split for split in fractions if len(rows[split]) + len(group) <= room[split]), "train")
        rows[split] += group
    check(
        all(rows.values()),
        "data",
        got=f"{len(digests)} images, {len(groups)} of them distinct, which leave a split empty",
        expected="some for each split",
        fix="add images, or remove copies",
    )
    return {split: sorted(members) for split, members in rows.items()}


def _load_medmnist(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One official MedMNIST file, its MD5 checked before anything in it is read."""
    path, md5 = medmnist_file(
        settings.name, side=settings.side, directory=settings.directory, download=settings.download
    )
    return read_arrays(path), {"source": "medmnist", "name": settings.name, "md5": md5}


def _load_npz(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The user's own arrays."""
    return read_arrays(_path(settings)), {"source": "npz", "name": "npz"}


def _load_folder(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The user's own PNG and JPEG files."""
    return read_folder(_path(settings), side=settings.side), {"source": "folder", "name": "folder"}


def _path(settings: DataSettings) -> Path:
    """Where the user's images are; without a default, so configs can leave it open."""
    fix = "add --config.data.path=..."
    check(bool(settings.path), "data.path", got="nothing", expected="the user's file or folder", fix=fix)
    return Path(settings.path)


def _load_tfds(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A data set that TFDS has prepared here."""
    images, identity = read_tfds(settings.name, directory=settings.directory)
    return images, {"source": "tfds", "name": settings.name} | identity


def _load_phantom(settings: DataSettings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Phantoms, each split from a stream of its own, so that none changes when another grows."""
    sizes = {"train": settings.num_pool, "val": settings.num_val, "test": settings.num_test}
    seeds = {split: 3 * settings.seed + i for i, split in enumerate(SPLITS)}
    images = {split: phantom_images(sizes[split], side=settings.side, seed=seeds[split]) for split in SPLITS}
    return images, {"source": "phantom", "name": "phantom", "side": settings.side, "split_seeds": seeds}


# A new source is one function and one line here: settings -> ({split: uint8 (n, h, w, c)}, its part of the identity).
# It may leave out val and test, which are then drawn.
LOADERS: dict[str, Callable[[DataSettings], tuple[dict[str, np.ndarray], dict[str, Any]]]] = {
    "folder": _load_folder,
    "medmnist": _load_medmnist,
    "npz": _load_npz,
    "phantom": _load_phantom,
    "tfds": _load_tfds,
}
