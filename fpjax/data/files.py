"""What readers of files share: their limits, what they return, and errors in words."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..core.errors import check

SPLITS = ("train", "val", "test")
MAX_SIDE = 1024  # pixels each way; the networks here are for far less
MAX_BYTES = 2**34  # of all images; the largest MedMNIST set, 107,180 colour images of 224x224, has 1.6e10


class Read(NamedTuple):
    """What a reader found, by split; of a folder also the files that were left out, by kind: `skipped` are images too.

    `groups`, if they were asked for, are the names of each image's group, as many as images and all of one type. They
    can be patients' names: compare them, but write them nowhere.
    """

    images: dict[str, UInt8[np.ndarray, "n h w c"]]
    groups: dict[str, list[int] | list[str] | list[bytes]] | None
    skipped: dict[str, int] = {}
    others: dict[str, int] = {}


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


def explain(error: Exception) -> str:
    """One short line for an error that was not foreseen one by one."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200].encode('ascii', 'backslashreplace').decode()}"
