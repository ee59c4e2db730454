"""What hostile or unlucky people hand in: each case writes its files into a directory of its own and gives the flags.

A case is a function of that directory, made by a table wherever many differ in one thing only. The answer is one line
and exit status 2 unless the case says otherwise.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

ESCAPES = "\x1b]0;owned\x07\x1b[31m\u202etxt\x00\r\x9b2J"


@dataclasses.dataclass(frozen=True)
class Bases:
    """Sound inputs that cases spoil copies of."""

    model: Path
    images: Path  # an npz that fits the model
    run: Path  # a finished smoke run


@dataclasses.dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
      name: its kind and what it is.
      flags: of its directory and the bases.
      statuses: exit statuses that are right.
      lines: of standard error at most; what a run says before it stops.
    """

    name: str
    flags: Callable[[Path, Bases], list[str]]
    statuses: tuple[int, ...] = (2,)
    lines: int = 1


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def sparse(path: Path, size: int, *, begin: bytes = b"") -> Path:
    written(path, begin)
    os.truncate(path, size)
    return path
