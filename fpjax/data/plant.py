"""Plants the targets: who is stamped, where, who of them is trained on, and what else is."""

import collections
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from ..artifacts import SCHEMA_VERSION
from ..checks import check
from ..fingerprint import FINGERPRINT_BYTE, check_disc, disc_mask, disc_radius, stamp
from .source import DataSettings, Splits, image_digests

# One random stream a purpose: more training images, say, must not move the targets. Never renumber.
_TARGETS, _CENTER, _MEMBERS, _TRAIN = range(4)
_CONTROLS = 5  # 4 draws the splits
_MAX_DISCS = 1000  # tried on an image: all there are on up to 43x43 pixels; a blank large image should not take minutes


class Target(NamedTuple):
    """One planted image: `index` is its original's row in the train split, (row, col) the centre of its disc.

    Without a disc the radius is 0, and the index of a control is its row in the held-out splits, val before test.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    row: int
    col: int
    radius: int
    member: bool


class Planted(NamedTuple):
    """What the stages work on; K members, H controls, all uint8.

    train: what the score model trains on, the stamped members as rows 0..K-1.
    targets, originals: stamped and clean, members first, in the order of `record`.
    reserve: rows of the train split that are none of these, free for the detectors. The data's own duplicates
      stay, so an image here can equal one in `train`, but never a target or an original.
    val, test: these splits, without copies of the originals.
    """

    train: UInt8[np.ndarray, "train h w c"]
    targets: UInt8[np.ndarray, "targets h w c"]
    originals: UInt8[np.ndarray, "targets h w c"]
    reserve: UInt8[np.ndarray, "reserve h w c"]
    val: UInt8[np.ndarray, "val h w c"]
    test: UInt8[np.ndarray, "test h w c"]
    record: tuple[Target, ...]


def plant(splits: Splits, settings: DataSettings) -> Planted:
    """Stamps K+H images that are unique in all splits, then draws the K members among them (paper section 3.3).

    Membership is drawn last and from nothing but the seed, so the held-out targets are exchangeable controls.
    A larger K+H adds targets to those of a smaller one, and a larger `num_train` adds training images.
    With `stamp` False see `_choose`.

    Raises:
      RequestError: the disc does not fit, or more targets or training images are asked for than there are.
    """
    if not settings.stamp:
        return _choose(splits, settings)
    num_rows, height, width, _ = splits.train.shape
    num_members, num_targets = settings.num_members, settings.num_members + settings.num_controls
    radius = disc_radius(min(height, width))
    check_disc(height, width, radius)

    counts = _count_copies(splits)
    digests = image_digests(splits.train)
    unique = [int(i) for i in _stream(settings.seed, _TARGETS).permutation(num_rows) if counts[digests[i]] == 1]
    stamped = list(itertools.islice(_stamp_each(splits.train, unique, radius, settings.seed, set(counts)), num_targets))
    check(
        len(stamped) == num_targets,
        "data.num_members + data.num_controls",
        got=num_targets,
        expected=f"at most {len(stamped)}, the train images that have no pixel-identical copy and take a disc",
        fix="plant fewer targets or use more data",
    )
    order = _stream(settings.seed, _MEMBERS).permutation(num_targets)
    record = tuple(stamped[i][0]._replace(member=place < num_members) for place, i in enumerate(order))
    targets = np.stack([stamped[i][1] for i in order])
    originals = splits.train[[target.index for target in record]]

    # Originals are unique, so only they themselves go; should a copy exist after all, it goes too.
    gone = {digests[target.index] for target in record}
    rest = _stream(settings.seed, _TRAIN).permutation(num_rows)
    rest = rest[[digests[i] not in gone for i in rest]]
    available = num_members + len(rest)
    num_train = settings.num_train or available
    check(
        num_members <= num_train <= available,
        "data.num_train",
        got=num_train,
        expected=f"{num_members} to {available}, what remains of {num_rows} images beside the held-out targets",
        fix="lower it or set it to 0 for all that remain",
    )
    num_rest = num_train - num_members
    return Planted(
        train=np.concatenate([targets[:num_members], splits.train[rest[:num_rest]]]),
        targets=targets,
        originals=originals,
        reserve=splits.train[rest[num_rest:]],
        val=splits.val[_absent(splits.val, gone)],
        test=splits.test[_absent(splits.test, gone)],
        record=record,
    )


def _choose(splits: Splits, settings: DataSettings) -> Planted:
    """Targets as they are, for a model that was trained on all train images: K of these, and H held-out images.

    Targets are unique in all splits, so that no control has a copy that was trained on. Splits that were drawn from the
    train images are given back to them; what is left of the others is `test`. That train and held-out images are alike
    but for the training is an assumption here.
    """
    drawn = splits.identity.get("drawn", {})
    parts = {name: getattr(splits, name) for name in ("val", "test")}
    train = np.concatenate([splits.train, *(part for name, part in parts.items() if name in drawn)])
    held = np.concatenate([splits.train[:0], *(part for name, part in parts.items() if name not in drawn)])
    counts = _count_copies(splits)

    def first(images: UInt8[np.ndarray, "n h w c"], stream: int, count: int, what: str, where: str) -> np.ndarray:
        digests = image_digests(images)
        rows = [int(i) for i in _stream(settings.seed, stream).permutation(len(images)) if counts[digests[i]] == 1]
        check(
            count <= len(rows),
            what,
            got=count,
            expected=f"at most {len(rows)}, the {where} images that have no pixel-identical copy",
            fix="ask for fewer, or give more images; those of val and test must not have been trained on",
        )
        return np.asarray(rows[:count], int)

    members = first(train, _TARGETS, settings.num_members, "data.num_members", "train")
    controls = first(held, _CONTROLS, settings.num_controls, "data.num_controls", "given val and test")
    rest = _stream(settings.seed, _TRAIN).permutation(len(train))
    rest = rest[~np.isin(rest, members)]
    num_rest = settings.num_train - len(members) if settings.num_train else len(rest)
    check(
        num_rest <= len(rest),
        "data.num_train",
        got=settings.num_train,
        expected=f"at most {len(train)}, the train images",
        fix="lower it or set it to 0 for all",
    )
    targets = np.concatenate([train[members], held[controls]])
    return Planted(
        train=np.concatenate([train[members], train[rest[:num_rest]]]),
        targets=targets,
        originals=targets,
        reserve=train[rest[num_rest:]],
        val=held[:0],
        test=np.delete(held, controls, axis=0),
        record=tuple(
            Target(int(index), 0, 0, 0, member=member)
            for rows, member in ((members, True), (controls, False))
            for index in rows
        ),
    )


def held_out_rows(planted: Planted) -> Int[np.ndarray, " n"]:
    """Rows of `test` that equal no image which a score model or a detector may have seen, nor each other.

    They are the same for any `num_train`: what the model does not train on, detectors may.
    """
    seen = {digest for part in (planted.train, planted.reserve, planted.val) for digest in image_digests(part)}
    rows = []
    for row, digest in enumerate(image_digests(planted.test)):
        if digest not in seen:
            seen.add(digest)
            rows.append(row)
    return np.asarray(rows, int)


def describe(splits: Splits, planted: Planted, settings: DataSettings) -> dict[str, Any]:
    """The content of data.json: integers, strings and booleans, the same on every machine."""
    counts = _count_copies(splits)
    arrays = {field: getattr(planted, field) for field in ("train", "targets", "reserve", "val", "test")}
    return {
        "schema_version": SCHEMA_VERSION,
        "identity": splits.identity,
        "seed": settings.seed,
        "num_train": len(planted.train),
        "num_images": {field: len(array) for field, array in arrays.items()},
        "sha256": {field: hashlib.sha256(array.tobytes()).hexdigest() for field, array in arrays.items()},
        "fingerprint_byte": FINGERPRINT_BYTE if settings.stamp else None,
        "targets": [
            {
                "index": target.index,
                "center": [target.row, target.col],
                "radius": target.radius,
                "member": target.member,
                "copies_removed": counts[digest] - 1,
            }
            for target, digest in zip(planted.record, image_digests(planted.originals), strict=True)
        ],
    }


def _stamp_each(
    images: UInt8[np.ndarray, "n h w c"], rows: list[int], radius: int, seed: int, taken: set[bytes]
) -> Iterator[tuple[Target, UInt8[np.ndarray, "h w c"]]]:
    """Yields (Target, stamped image) for each row, skipping rows on which every disc tried gives an image seen before.

    `taken` holds the digests of all images, so a disc that changes nothing is drawn again, and one that makes
    the image equal to another image or to an earlier target is too.
    """
    _, height, width, _ = images.shape
    num_rows, num_cols = height - 2 * radius, width - 2 * radius
    for index in rows:
        for place in _stream(seed, _CENTER, index).permutation(num_rows * num_cols)[:_MAX_DISCS]:
            row, col = radius + int(place) // num_cols, radius + int(place) % num_cols
            mask = disc_mask((height, width), (row, col), radius)
            image = np.asarray(stamp(images[index], mask, FINGERPRINT_BYTE))
            (digest,) = image_digests(image[None])
            if digest not in taken:
                taken.add(digest)
                yield Target(index, row, col, radius, member=False), image
                break


def _count_copies(splits: Splits) -> collections.Counter[bytes]:
    """How often each image occurs in all splits together."""
    return collections.Counter(itertools.chain(*map(image_digests, (splits.train, splits.val, splits.test))))


def _absent(images: UInt8[np.ndarray, "n h w c"], gone: set[bytes]) -> Bool[np.ndarray, " n"]:
    """Which images are none of those gone."""
    return np.array([digest not in gone for digest in image_digests(images)], bool)


def _stream(*words: int) -> np.random.RandomState:
    """Draws that belong to these numbers alone; the stream of a RandomState is frozen for good (NEP 19)."""
    return np.random.RandomState(words)  # noqa: NPY002
