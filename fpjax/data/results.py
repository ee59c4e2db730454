"""What data.json holds, and who is a member: integers, strings and booleans, the same on every machine."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Identity:
    """What images these are, the same on every machine; counts and digests by split."""

    source: str
    name: str
    alike: list[str]  # splits from which targets are drawn
    sha256: dict[str, str]
    image_shape: list[int]
    repeat_grey: bool
    num_images: dict[str, int]
    surplus_copies: dict[str, int]
    shared_images: dict[str, int]  # by pair of splits
    drawn: dict[str, float] | None  # fraction of each split that was drawn from train, and the seed
    groups: dict[str, Any] | None  # their number by split, and the digest of who belongs together
    details: dict[str, Any]  # what the source says of itself: its checksum, its seeds

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Identity":
        """Of `Splits.identity`, in which what was not done is left out."""
        names = [field.name for field in dataclasses.fields(cls)][:-1]
        details = {name: value for name, value in said.items() if name not in names}
        return cls(**{name: said.get(name) for name in names}, details=details)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class TargetOrigin:
    """Where a target comes from and where its disc lies; see `Target`."""

    split: str
    index: int
    center: list[int]
    radius: int
    contrast: int
    copies_removed: int


@dataclasses.dataclass(frozen=True)
class DataResult:
    """The content of data.json: integers, strings and booleans, the same on every machine, and without membership."""

    identity: Identity
    seed: int
    num_images: dict[str, int]  # targets, rest, val, test
    sha256: dict[str, str]  # of the same
    fingerprint_byte: int | None  # None: nothing is stamped
    min_contrast: int | None
    passed_over: int  # images on which no disc has that contrast
    targets: list[TargetOrigin]


@dataclasses.dataclass(frozen=True)
class Membership:
    """Who is trained on: `rows` are the targets' rows in data.json, members first, then search and count controls."""

    rows: list[int]
    num_members: int
    num_controls: int
    num_train: int
    train_sha256: str
    canaries: int  # 0: members are no canaries
