"""Where images come from: settings in, uint8 train/val/test splits and their identity out."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..core.errors import check, one_of
from ..core.paths import local_path
from ..core.terminal import printable
from .arrays import read_arrays
from .files import MAX_SIDE, SPLITS
from .folder import counted, read_folder
from .phantom import phantom_images
from .remote import MEDMNIST, MEDMNIST_SIDES, MORE_MEDMNIST, medmnist_file, read_tfds

_MAX_PHANTOMS = 100_000  # in a split
_MAX_PHANTOM_BYTES = 2**25  # in all splits; under a minute of one core
_MAX_COUNT = 10**6  # of anything else: ten times the largest MedMNIST set
_SPLIT_STREAM = 4  # after the purposes 0 to 3 of `plant`
_MIN_CANARIES = 10  # fewer show next to nothing, and more often land on one side


class Loaded(NamedTuple):
    """What a source gives; it may leave out val and test, which are then drawn from train.

    images: by split, of one shape.
    identity: the source's own part of `Splits.identity`.
    groups: names of each image's group, by split; None: every image stands alone.
    alike: whether all its splits are draws from one population.
    notes: what a user should know of how they were found, one line each; no part of what the images are.
    """

    images: dict[str, UInt8[np.ndarray, "n h w c"]]
    identity: dict[str, Any]
    groups: dict[str, Any] | None = None
    alike: bool = False
    notes: tuple[str, ...] = ()


class Splits(NamedTuple):
    """The images as the source has them.

    `identity` is JSON-able and the same on every machine: source, name, the source's own checksum or generator
    parameters, which splits were drawn and how, which are alike, image shape, images a split, SHA-256 of their bytes in
    order, surplus copies (pixel-identical to an earlier image) a split, distinct images that two splits share, and
    groups a split with the SHA-256 of their numbers. It has no file names, paths or names of groups: they can name
    patients.

    `alike` are the splits that are draws from one population with train: targets may be drawn from them. `groups` is
    the number of each image's group (a patient), by split, from 0 in the order of first appearance over train, val and
    test; None: every image stands alone. `notes` are those of `Loaded`.
    """

    train: UInt8[np.ndarray, "train h w c"]
    val: UInt8[np.ndarray, "val h w c"]
    test: UInt8[np.ndarray, "test h w c"]
    identity: dict[str, Any]
    alike: tuple[str, ...] = ("train",)
    groups: dict[str, Int[np.ndarray, " n"]] | None = None
    notes: tuple[str, ...] = ()


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
      group: which images are one patient's, so that no patient is on both sides of a split. Of a folder, a regular
        expression searched in each file's path within it (with slashes): its first group, or all that it finds, is the
        patient. Of npz, the name of arrays of integers or strings: `{split}_{group}` beside `{split}_images`, or
        `{group}` beside `images`. Empty: every image stands alone, as it does in all other sources.
      num_val, num_test, num_pool: phantoms in the val, test and train split.
      num_train: |N_D|, images that the score model trains on, members included; 0: all that remain.
      num_members: targets trained on (K); 0 with canaries alone.
      num_controls: held-out targets with chains of their own, the search controls.
      num_count_controls: held-out targets in all (H), the search controls among them; the others have a head or a
        distance, but no chains.
      num_spares: further targets that are planted; they replace those whose detectors are bad, before membership is
        drawn.
      canaries: targets of which each is a member by a fair coin of its own, at least 10; 0: none. They stand in place
        of `num_members`, `num_controls` and `num_count_controls`, which must be 0 then.
      min_contrast: grey levels, 0 to 127, that the disc's grey must differ from the pixels it covers, in the mean of
        the absolute differences over pixels and channels; other places get no disc.
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
    group: str = ""
    num_val: int = 200
    num_test: int = 200
    num_pool: int = 1200
    num_train: int = 0
    num_members: int = 1
    num_controls: int = 24
    num_count_controls: int = 99
    num_spares: int = 0
    canaries: int = 0
    min_contrast: int = 16
    repeat_grey: bool = False
    dequantize: bool = True
    stamp: bool = True
    seed: int = 0

    def __post_init__(self):
        one_of("data.source", self.source, LOADERS)
        for field in ("name", "directory", "path", "group"):
            value = getattr(self, field)
            check(
                isinstance(value, str) and printable(value) and len(value) <= 1000,
                f"data.{field}",
                got=ascii(value)[:100],
                expected="at most 1000 printable characters",
                fix="correct it",
            )
        ranges = {
            "side": (4, MAX_SIDE),
            **dict.fromkeys(("num_val", "num_test", "num_pool"), (1, _MAX_PHANTOMS)),
            **dict.fromkeys(
                ("num_train", "num_controls", "num_count_controls", "num_spares", "canaries"), (0, _MAX_COUNT)
            ),
            "num_members": (0 if self.canaries else 1, _MAX_COUNT),
            "min_contrast": (0, 127),
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
        self._check_targets()
        check(
            self.dequantize or not self.repeat_grey,
            "data.dequantize",
            got="False with data.repeat_grey",
            expected="True: three equal channels have no density without noise of their own",
            fix="set data.dequantize=True, or data.repeat_grey=False",
        )
        self._check_group()
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

    def _check_targets(self) -> None:
        """Refuses numbers of targets that do not go together."""
        fixed = [name for name in ("num_members", "num_controls", "num_count_controls") if getattr(self, name)]
        check(
            not self.canaries or not fixed,
            "data.canaries",
            got=f"{self.canaries} with {', '.join(f'data.{name} = {getattr(self, name)}' for name in fixed)}",
            expected="canaries or a fixed number of members and held-out targets: a coin decides how many are which",
            fix=f"set {', '.join(f'data.{name}' for name in fixed)} to 0, or data.canaries to 0",
        )
        check(
            self.canaries == 0 or self.canaries >= _MIN_CANARIES,
            "data.canaries",
            got=self.canaries,
            expected=f"0 or at least {_MIN_CANARIES}",
            fix="plant more; 100 can show an epsilon of 3.5",
        )
        check(
            self.num_count_controls >= self.num_controls,
            "data.num_count_controls",
            got=self.num_count_controls,
            expected=f"at least data.num_controls = {self.num_controls}, which are among them",
            fix="raise it, or lower data.num_controls",
        )
        most = "canaries" if self.canaries else "num_members"
        check(
            self.num_train == 0 or self.num_train >= getattr(self, most),
            "data.num_train",
            got=self.num_train,
            expected=f"at least data.{most} = {getattr(self, most)}, or 0 for all images",
            fix="train on more images or plant fewer targets",
        )
        for name in ("canaries", "num_spares"):
            check(
                self.stamp or not getattr(self, name),
                f"data.{name}",
                got=f"{getattr(self, name)} with data.stamp=False",
                expected="0: who was trained on is settled",
                fix="set it to 0",
            )

    def _check_group(self) -> None:
        """Refuses groups of sources that have none, and expressions that are not valid."""
        check(
            not self.group or self.source in ("folder", "npz"),
            "data.group",
            got=f"{ascii(self.group)[:100]} with data.source={self.source}",
            expected="nothing: only a folder or an npz says which images are one patient's",
            fix="leave it empty, or export the images as an npz",
        )
        if self.source == "folder":
            problem = ""
            try:
                re.compile(self.group)
            except (re.error, RecursionError, OverflowError) as error:
                problem = f"{ascii(self.group)[:100]}: {error}"
            check(
                not problem, "data.group", got=problem, expected="a regular expression of Python's re", fix="correct it"
            )


def load(settings: DataSettings, *, multiple: int = 1) -> Splits:
    """Reads or generates the images, bytes as the source has them, and draws the splits that it lacks.

    Args:
      multiple: of which sides must be for the network; messages name a side that fits.

    Raises:
      RequestError: a file is missing, unreadable, damaged or not the official one; what it holds is not uint8 images
        of one shape; too few images; groups that are missing, or that two given splits share.
    """
    loaded = LOADERS[settings.source](settings, multiple)
    images, identity, names = loaded.images, loaded.identity, loaded.groups
    if names:
        shared = {name for a, b in itertools.combinations(names.values(), 2) for name in {*a} & {*b}}
        check(
            not shared,
            "data.group",
            got=f"{len(shared)} groups with images in more than one split",
            expected="no patient on both sides of a split",
            fix="give each patient's images to one split, or give train images alone and let the splits be drawn",
        )
    drawn = [split for split in SPLITS if split not in images]
    if drawn:
        fractions = {split: getattr(settings, f"{split}_fraction") for split in drawn}
        digests = image_digests(images["train"])
        rows = draw_splits(digests, fractions, seed=settings.seed, groups=names["train"] if names else None)
        images |= {split: images["train"][rows[split]] for split in ("val", "test", "train") if split in rows}
        if names:
            names |= {split: [names["train"][row] for row in members] for split, members in rows.items()}
        identity = identity | {"drawn": fractions | {"seed": settings.seed}}
    alike = tuple(split for split in SPLITS if loaded.alike or split in ("train", *drawn))
    identity = identity | {
        "alike": list(alike),
        "sha256": {split: hashlib.sha256(np.ascontiguousarray(images[split]).data).hexdigest() for split in SPLITS},
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
    groups: dict[str, np.ndarray] | None = None
    if names:
        numbers = _numbers(itertools.chain.from_iterable(names[split] for split in SPLITS))
        ends = np.cumsum([len(names[split]) for split in SPLITS])
        groups = dict(zip(SPLITS, np.split(numbers, ends[:-1]), strict=True))
        identity["groups"] = {
            "num": {split: len(np.unique(members)) for split, members in groups.items()},
            "sha256": hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest(),
        }
    return Splits(**images, identity=identity, alike=alike, groups=groups, notes=loaded.notes)


def image_digests(images: UInt8[np.ndarray, "n h w c"]) -> list[bytes]:
    """One 16-byte digest an image; images of one shape are pixel-identical if and only if these are equal."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def draw_splits(
    digests: list[bytes], fractions: dict[str, float], *, seed: int, groups: Sequence[Any] | None = None
) -> dict[str, list[int]]:
    """Rows of each drawn split, and of the train split that remains, in the order of the images.

    Copies stay together, and so do images of one group and whatever else these two tie to them: they are dealt as one,
    in random order, to the first split that has room for all of them, else to train. Whether an image is drawn depends
    on the pixels, the groups and the seed, not on the images' order or the groups' names.

    >>> draw_splits([b"a", b"b", b"a", b"c"], {"val": 0.2}, seed=0)
    {'val': [1], 'train': [0, 2, 3]}

    Raises:
      RequestError: a split would be empty.
    """
    together: dict[bytes, list[int]] = {}
    for row, digest in enumerate(_first_digests(digests, groups) if groups is not None else digests):
        together.setdefault(digest, []).append(row)
    room = {split: max(1, round(fraction * len(digests))) for split, fraction in fractions.items()}
    rows: dict[str, list[int]] = {split: [] for split in (*fractions, "train")}
    names = sorted(together)
    # The stream of a RandomState is frozen for good (NEP 19).
    for i in np.random.RandomState((seed, _SPLIT_STREAM)).permutation(len(names)):  # noqa: NPY002
        members = together[names[i]]
        split = next((split for split in fractions if len(rows[split]) + len(members) <= room[split]), "train")
        rows[split] += members
    parts = f", in {len(together)} parts that share no group," if groups is not None else ","
    check(
        all(rows.values()),
        "data",
        got=f"{len(digests)} images, {len(set(digests))} of them distinct{parts} which leave a split empty",
        expected="some for each split",
        fix="add images, or remove copies",
    )
    return {split: sorted(members) for split, members in rows.items()}


def _first_digests(digests: list[bytes], groups: Sequence[Any]) -> list[bytes]:
    """For each image the least digest of all images that copies and groups, in any number of steps, tie to it."""
    rows = _numbers(digests)
    cols = _numbers(groups) + len(digests)
    edges = coo_array((np.ones(len(rows)), (rows, cols)), shape=(2 * len(rows), 2 * len(rows)))
    labels = connected_components(edges, directed=False)[1][rows].tolist()
    first: dict[int, bytes] = {}
    for label, digest in zip(labels, digests, strict=True):
        first[label] = min(digest, first.get(label, digest))
    return [first[label] for label in labels]


def _numbers(names: Iterable[Any]) -> Int[np.ndarray, " n"]:
    """Integers in place of names, from 0 in the order of their first appearance."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _load_medmnist(settings: DataSettings, _: int) -> Loaded:
    """One official MedMNIST file, its MD5 checked before anything in it is read."""
    path, md5 = medmnist_file(
        settings.name, side=settings.side, directory=settings.directory, download=settings.download
    )
    identity = {"source": "medmnist", "name": settings.name, "md5": md5}
    return Loaded(read_arrays(path).images, identity, alike=True)


def _load_npz(settings: DataSettings, _: int) -> Loaded:
    """The user's own arrays."""
    read = read_arrays(_path(settings), group=settings.group)
    return Loaded(read.images, {"source": "npz", "name": "npz"}, read.groups)


def _load_folder(settings: DataSettings, multiple: int) -> Loaded:
    """The user's own PNG and JPEG files; those of other formats are counted, and none may be left out unstamped."""
    read = read_folder(_path(settings), side=settings.side, group=settings.group, multiple=multiple)
    check(
        settings.stamp or not read.skipped,
        "data.path",
        got=f"images that are not read: {counted(read.skipped)}",
        expected="PNG or JPEG files alone with data.stamp=False: the train split must be all that was trained on",
        fix="convert them, or move them out if they were not trained on",
    )
    notes = tuple(
        f"{what}: {counted(kinds)}"
        for what, kinds in (("images in formats that are not read", read.skipped), ("left out", read.others))
        if kinds
    )
    identity = {"source": "folder", "name": "folder", "skipped": read.skipped}
    return Loaded(read.images, identity, read.groups, notes=notes)


def _path(settings: DataSettings) -> Path:
    """Where the user's images are; without a default, so configs can leave it open."""
    fix = "add --config.data.path=..."
    check(bool(settings.path), "data.path", got="nothing", expected="the user's file or folder", fix=fix)
    return local_path("data.path", settings.path)


def _load_tfds(settings: DataSettings, _: int) -> Loaded:
    """A data set that TFDS has prepared here."""
    images, identity = read_tfds(settings.name, directory=settings.directory)
    return Loaded(images, {"source": "tfds", "name": settings.name} | identity)


def _load_phantom(settings: DataSettings, _: int) -> Loaded:
    """Phantoms, each split from a stream of its own, so that none changes when another grows."""
    sizes = {"train": settings.num_pool, "val": settings.num_val, "test": settings.num_test}
    seeds = {split: 3 * settings.seed + i for i, split in enumerate(SPLITS)}
    images = {split: phantom_images(sizes[split], side=settings.side, seed=seeds[split]) for split in SPLITS}
    identity = {"source": "phantom", "name": "phantom", "side": settings.side, "split_seeds": seeds}
    return Loaded(images, identity, alike=True)


# A new source is one function and one line here.
LOADERS: dict[str, Callable[[DataSettings, int], Loaded]] = {
    "folder": _load_folder,
    "medmnist": _load_medmnist,
    "npz": _load_npz,
    "phantom": _load_phantom,
    "tfds": _load_tfds,
}
