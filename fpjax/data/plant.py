"""Plants the targets: who is stamped, where, who of them is trained on, and what else is.

In two steps: `plant` stamps the candidates, and `assign` draws who of them is a member, once their detectors were
looked at.
"""

import collections
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from ..core.errors import check
from .files import SPLITS
from .fingerprint import FINGERPRINT_BYTE, check_disc, disc_mask, disc_radius, stamp
from .results import DataResult, Identity, Membership, TargetOrigin
from .source import DataSettings, Splits, image_digests

# One random stream a purpose: more training images, say, must not move the targets. Never renumber.
_TARGETS, _CENTER, _MEMBERS, _TRAIN = range(4)
_CONTROLS = 5  # 4 draws the splits
_COINS = 6
_MAX_DISCS = 1000  # tried on an image until it is a new one: all there are on up to 43x43 pixels


class Target(NamedTuple):
    """One planted image.

    index, split: the row of its original in that split of the source.
    row, col, radius: centre and radius of its disc, in pixels; 0 without one.
    contrast: mean absolute difference of the disc from what it covers, in grey levels, rounded down; 0 without one.
    member: whether it is trained on; None until that is drawn.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    split: str
    row: int
    col: int
    radius: int
    contrast: int
    member: bool | None


class Candidates(NamedTuple):
    """What is known before membership, and all that detectors may learn from and be judged by; all uint8.

    targets, originals: stamped and clean, in the order of `record`.
    rest: images of the train split that are none of these nor of their groups, in the order in which they are trained
      on. The data's own duplicates stay.
    val, test: these splits, without the originals, their copies and their groups.
    passed_over: images drawn as targets on which no place had the contrast or gave a new image.
    """

    targets: UInt8[np.ndarray, "candidates h w c"]
    originals: UInt8[np.ndarray, "candidates h w c"]
    rest: UInt8[np.ndarray, "rest h w c"]
    val: UInt8[np.ndarray, "val h w c"]
    test: UInt8[np.ndarray, "test h w c"]
    record: tuple[Target, ...]
    passed_over: int


class Planted(NamedTuple):
    """What the stages work on, all uint8.

    train: what the score model trains on, the K stamped members as rows 0..K-1.
    targets, originals: stamped and clean, in the order of `record`: members, search controls, other count controls.
    reserve: what is not trained on of `Candidates.rest`, free for the detectors. `train[K:]` and this are `rest`,
      whoever is a member.
    val, test: as in `Candidates`.
    rows: the row of each target in the candidates.
    num_members, num_controls: K, and how many of the others have chains.
    """

    train: UInt8[np.ndarray, "train h w c"]
    targets: UInt8[np.ndarray, "targets h w c"]
    originals: UInt8[np.ndarray, "targets h w c"]
    reserve: UInt8[np.ndarray, "reserve h w c"]
    val: UInt8[np.ndarray, "val h w c"]
    test: UInt8[np.ndarray, "test h w c"]
    record: tuple[Target, ...]
    rows: Int[np.ndarray, " targets"]
    num_members: int
    num_controls: int


def plant(splits: Splits, settings: DataSettings) -> Candidates:
    """Stamps images that are unique in all splits, drawn from the alike ones pooled, one a group (paper section 3.3).

    Each gets its disc at a place where that differs from what it covers by `settings.min_contrast`, so that it can be
    seen. Nothing here knows who is a member, so the held-out targets are exchangeable controls. A larger number adds
    candidates to those of a smaller one. With `stamp` False see `_choose`.

    Raises:
      RequestError: the disc does not fit, more targets or training images are asked for than there are, or all
        canaries land on one side.
    """
    images = _Index.of(splits)
    if not settings.stamp:
        return _choose(splits, settings, images)
    if settings.canaries:
        _coins(settings)
    height, width = splits.train.shape[1:3]
    radius = disc_radius(min(height, width))
    check_disc(height, width, radius)

    number = (settings.canaries or settings.num_members + settings.num_count_controls) + settings.num_spares
    record, stamped, used, taken, passed_over = [], [], set(), set(images.counts), 0
    for split, index in images.draw(splits.alike, _stream(settings.seed, _TARGETS), used):
        if len(record) == number:
            break
        places = _stream(settings.seed, _CENTER, SPLITS.index(split), index)
        found = _stamp(getattr(splits, split)[index], radius, settings.min_contrast, places, taken)
        if found is None:
            passed_over += 1
            continue
        (row, col, contrast), image = found
        record.append(Target(index, split, row, col, radius, contrast, member=None))
        stamped.append(image)
        used.add(images.groups[split][index])
    check(
        len(record) == number,
        f"data.{'canaries' if settings.canaries else 'num_members + data.num_count_controls'} + data.num_spares",
        got=number,
        expected=f"at most {len(record)}, the {', '.join(splits.alike)} images that have no pixel-identical copy"
        f"{', are of different groups' if splits.groups else ''} and take a disc with a contrast of "
        f"{settings.min_contrast} grey levels; {passed_over} have no place for it",
        fix="plant fewer targets, lower data.min_contrast or use more data",
    )

    left = images.left(used)
    order = _stream(settings.seed, _TRAIN).permutation(len(splits.train))
    rest = splits.train[order[left["train"][order]]]
    # With canaries, whatever the coins: at most all of them are members, at least none.
    least, most = settings.canaries or settings.num_members, settings.num_members + len(rest)
    check(
        settings.num_train == 0 or least <= settings.num_train <= most,
        "data.num_train",
        got=settings.num_train,
        expected=f"{least} to {most}, what remains of {len(splits.train)} images beside the targets",
        fix="lower it or set it to 0 for all that remain",
    )
    return Candidates(
        targets=np.stack(stamped),
        originals=np.stack([getattr(splits, target.split)[target.index] for target in record]),
        rest=rest,
        val=splits.val[left["val"]],
        test=splits.test[left["test"]],
        record=tuple(record),
        passed_over=passed_over,
    )


def _choose(splits: Splits, settings: DataSettings, images: "_Index") -> Candidates:
    """Targets as they are, for a model that was trained on all train images: K of these, and H held-out images.

    Targets are unique in all splits, so that no control has a copy that was trained on. Splits that were drawn from the
    train images are given back to them; what is left of the others is `test`. Images of a member's group were trained
    on too, so they stay. That train and held-out images are alike but for the training is an assumption here.
    """
    held = [split for split in ("val", "test") if split not in splits.identity.get("drawn", {})]
    own = [split for split in SPLITS if split not in held]
    used, chosen = set(), []
    for member, names, stream, what, where in (
        (True, own, _TARGETS, "num_members", "train"),
        (False, held, _CONTROLS, "num_count_controls", "given val and test"),
    ):
        number = getattr(settings, what)
        places = []
        for split, index in itertools.islice(images.draw(names, _stream(settings.seed, stream), used), number):
            places.append((split, index))
            used.add(images.groups[split][index])
        check(
            len(places) == number,
            f"data.{what}",
            got=number,
            expected=f"at most {len(places)}, the {where} images that have no pixel-identical copy"
            f"{' and are of different groups' if splits.groups else ''}",
            fix="ask for fewer, or give more images; those of val and test must not have been trained on",
        )
        chosen += [Target(index, split, 0, 0, 0, 0, member=member) for split, index in places]
    targets = np.stack([getattr(splits, target.split)[target.index] for target in chosen])
    train = np.concatenate([getattr(splits, split) for split in own])
    members = set(image_digests(targets[: settings.num_members]))
    trained = np.array([digest not in members for split in own for digest in images.digests[split]], bool)
    order, left = _stream(settings.seed, _TRAIN).permutation(len(train)), images.left(used)
    check(
        settings.num_train <= len(train),
        "data.num_train",
        got=settings.num_train,
        expected=f"at most {len(train)}, the train images",
        fix="lower it or set it to 0 for all",
    )
    return Candidates(
        targets=targets,
        originals=targets,
        rest=train[order[trained[order]]],
        val=splits.val[:0],
        test=np.concatenate([splits.test[:0], *(getattr(splits, split)[left[split]] for split in held)]),
        record=tuple(chosen),
        passed_over=0,
    )


def assign(candidates: Candidates, settings: DataSettings, *, dropped: Sequence[int] = ()) -> Planted:
    """Draws, from nothing but the seed, who of the candidates is a member and who a control.

    The others are no targets, and their originals are nowhere. Without discs membership is as `plant` found it.

    Args:
      candidates: as `plant` gives them.
      settings: the same as there.
      dropped: rows of candidates that are to be no targets.

    Raises:
      RequestError: too few are left, or all canaries land on one side.
    """
    number, total = settings.canaries or settings.num_members + settings.num_count_controls, len(candidates.record)
    # Without discs the record's order has the members first.
    order = _stream(settings.seed, _MEMBERS).permutation(total) if settings.stamp else np.arange(total)
    rows = order[~np.isin(order, np.asarray(dropped, int))]
    check(
        len(rows) >= number,
        "targets whose detectors see them",
        got=f"{len(rows)} of {total}",
        expected=f"at least {number}",
        fix="plant more (data.num_spares), ask for fewer targets, or train the detectors longer",
    )
    rows = rows[:number]
    members = _coins(settings) if settings.canaries else np.arange(number) < settings.num_members
    rows, num_members = np.concatenate([rows[members], rows[~members]]), int(members.sum())
    targets = candidates.targets[rows]
    num_rest = settings.num_train - num_members if settings.num_train else len(candidates.rest)
    return Planted(
        train=np.concatenate([targets[:num_members], candidates.rest[:num_rest]]),
        targets=targets,
        originals=candidates.originals[rows],
        reserve=candidates.rest[num_rest:],
        val=candidates.val,
        test=candidates.test,
        record=tuple(candidates.record[row]._replace(member=place < num_members) for place, row in enumerate(rows)),
        rows=rows,
        num_members=num_members,
        num_controls=number - num_members if settings.canaries else settings.num_controls,
    )


def held_out_rows(candidates: Candidates) -> Int[np.ndarray, " n"]:
    """Rows of `test` that equal no image which a score model or a detector may have seen, nor each other."""
    known = (candidates.targets, candidates.rest, candidates.val)
    seen = {digest for part in known for digest in image_digests(part)}
    rows = []
    for row, digest in enumerate(image_digests(candidates.test)):
        if digest not in seen:
            seen.add(digest)
            rows.append(row)
    return np.asarray(rows, int)


def describe(splits: Splits, candidates: Candidates, settings: DataSettings) -> DataResult:
    """What data.json says of the planted images."""
    counts = _Index.of(splits).counts
    arrays = {field: getattr(candidates, field) for field in ("targets", "rest", "val", "test")}
    return DataResult(
        identity=Identity.of(splits.identity),
        seed=settings.seed,
        num_images={field: len(array) for field, array in arrays.items()},
        sha256={field: hashlib.sha256(array.tobytes()).hexdigest() for field, array in arrays.items()},
        fingerprint_byte=FINGERPRINT_BYTE if settings.stamp else None,
        min_contrast=settings.min_contrast if settings.stamp else None,
        passed_over=candidates.passed_over,
        targets=[
            TargetOrigin(
                target.split,
                target.index,
                [target.row, target.col],
                target.radius,
                target.contrast,
                counts[digest] - 1,
            )
            for target, digest in zip(candidates.record, image_digests(candidates.originals), strict=True)
        ],
    )


def describe_membership(planted: Planted, settings: DataSettings) -> Membership:
    """Who is trained on, for a file of its own."""
    return Membership(
        planted.rows.tolist(),
        planted.num_members,
        planted.num_controls,
        len(planted.train),
        hashlib.sha256(planted.train.tobytes()).hexdigest(),
        settings.canaries,
    )


class _Index(NamedTuple):
    """Which images are copies of each other and which of one group, by split."""

    digests: dict[str, list[bytes]]
    groups: dict[str, list[int]]
    counts: collections.Counter[bytes]

    @classmethod
    def of(cls, splits: Splits) -> "_Index":
        """Of all images; without groups each is one of its own."""
        digests = {split: image_digests(getattr(splits, split)) for split in SPLITS}
        alone = itertools.count()
        groups = {
            split: splits.groups[split].tolist() if splits.groups else list(itertools.islice(alone, len(rows)))
            for split, rows in digests.items()
        }
        return cls(digests, groups, collections.Counter(itertools.chain(*digests.values())))

    def draw(self, names: Sequence[str], stream: np.random.RandomState, used: set[int]) -> Iterator[tuple[str, int]]:
        """Yields (split, row) of these splits' unique images in random order, but for those of groups in `used`.

        That is looked up anew for each, so the caller may add to it.
        """
        places = [(split, row) for split in names for row in range(len(self.digests[split]))]
        for place in stream.permutation(len(places)):
            split, row = places[place]
            if self.counts[self.digests[split][row]] == 1 and self.groups[split][row] not in used:
                yield split, row

    def left(self, used: set[int]) -> dict[str, Bool[np.ndarray, " n"]]:
        """Which images equal none of the groups in `used`, be it under another group."""
        gone = {
            digest
            for split, digests in self.digests.items()
            for digest, group in zip(digests, self.groups[split], strict=True)
            if group in used
        }
        return {
            split: np.array([digest not in gone for digest in digests], bool) for split, digests in self.digests.items()
        }


def _stamp(
    image: UInt8[np.ndarray, "h w c"], radius: int, min_contrast: int, places: np.random.RandomState, taken: set[bytes]
) -> tuple[tuple[int, int, int], UInt8[np.ndarray, "h w c"]] | None:
    """((row, col, contrast), stamped image) for the first place drawn that has the contrast and gives a new image.

    `taken` holds the digests of all images, so a disc that changes nothing is drawn again, and one that makes the image
    equal to another image or to an earlier target is too; the new one is added.
    """
    contrasts = _contrasts(image, radius)
    order = places.permutation(contrasts.size)
    for place in order[contrasts.ravel()[order] >= min_contrast][:_MAX_DISCS]:
        row, col = (radius + int(i) for i in np.unravel_index(place, contrasts.shape))
        stamped = np.asarray(stamp(image, disc_mask(image.shape[:2], (row, col), radius), FINGERPRINT_BYTE))
        (digest,) = image_digests(stamped[None])
        if digest not in taken:
            taken.add(digest)
            return (row, col, int(contrasts[row - radius, col - radius])), stamped
    return None


def _contrasts(image: UInt8[np.ndarray, "h w c"], radius: int) -> Int[np.ndarray, "rows cols"]:
    """Mean absolute difference, rounded down, of the disc from what it covers, at each place where it fits."""
    height, width, channels = image.shape
    differences = np.abs(image.astype(np.int64) - FINGERPRINT_BYTE).sum(-1)
    sums = np.pad(differences.cumsum(1), ((0, 0), (1, 0)))  # left of each column; a row of the disc is two of them
    total, area = np.zeros((height - 2 * radius, width - 2 * radius), np.int64), 0
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - dy**2)
        rows = sums[radius + dy : height - radius + dy]
        total += rows[:, radius + half + 1 : width - radius + half + 1] - rows[:, radius - half : width - radius - half]
        area += 2 * half + 1
    return total // (area * channels)


def _coins(settings: DataSettings) -> Bool[np.ndarray, " canaries"]:
    """Which canaries are members: a fair coin each."""
    heads = _stream(settings.seed, _COINS).randint(0, 2, settings.canaries).astype(bool)
    check(
        0 < heads.sum() < settings.canaries,
        "data.canaries",
        got=f"{settings.canaries} coins that all fall on one side",
        expected="members and others",
        fix="choose another data.seed, or plant more canaries",
    )
    return heads


def _stream(*words: int) -> np.random.RandomState:
    """Draws that belong to these numbers alone; the stream of a RandomState is frozen for good (NEP 19)."""
    return np.random.RandomState(words)  # noqa: NPY002
