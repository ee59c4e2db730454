"""Files that nobody has vetted are read within bounds, and files of a run are written whole or not at all.

Readers never wait for a pipe or a device, and take no more than they are told to. A writer writes beside the file,
under a fresh name, and renames: a kill leaves the old file or the new one. Nothing is written through a link.
"""

import contextlib
import errno
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MAX_JSON = 2**26  # bytes
_MAX_PIECE = 2**22  # bytes that are read of an archive at a time
_MAX_NESTED = 10**6  # arrays and objects in one JSON text: each takes many times its two bytes


def open_plain(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a plain file to read it.

    Raises:
      OSError: it is not there, cannot be read, or is a pipe, a device or a directory.
      ValueError: its name is none that the system takes.
    """

    def check_kind(status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no plain file")

    check_kind(os.stat(path))  # first: to open some devices is to change them
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_kind(os.fstat(opened))
        return os.fdopen(opened, "rb")
    except BaseException:
        os.close(opened)
        raise


def read_plain(path: str | os.PathLike[str], *, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
      OSError: as `open_plain`, or it is larger.
      ValueError: as `open_plain`.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    return content


class Bounded(io.RawIOBase):
    """A file that refuses to be read in large pieces: zipfile takes the list of members in one, be they millions."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream

    def read(self, size: int | None = -1) -> bytes:
        """Some bytes; ValueError: they would be more than a few megabytes."""
        content = self.stream.read(_MAX_PIECE + 1 if size is None or size < 0 else min(size, _MAX_PIECE + 1))
        if len(content) > _MAX_PIECE:
            raise ValueError(f"more than {_MAX_PIECE:,} bytes at once, such as a list of very many members")
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place."""
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self.stream.tell()

    def seekable(self) -> bool:
        """Always."""
        return True


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a mark of its byte order.

    Whole numbers may have thousands of digits: they are compared before they are made floats.

    Raises:
      ValueError: it is none, is nested too deeply or has too many parts, or holds NaN, or text that is no Unicode.
    """

    def constant(name: str) -> float:
        raise ValueError(f"{name}, which JSON does not have")

    if content.count(b"[") + content.count(b"{") > _MAX_NESTED:
        raise ValueError(f"more than {_MAX_NESTED:,} arrays and objects")
    text = content.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError("arrays or objects that are nested too deeply") from None
    if "\\u" in text:
        # Half of a surrogate pair is no character, and cannot be printed or be part of a name.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json_file(path: str | os.PathLike[str], *, most: int = MAX_JSON) -> Any:
    """The value of a plain JSON file.

    Raises:
      OSError: as `read_plain`.
      ValueError: as `parse_json`.
    """
    return parse_json(read_plain(path, most=most))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` once it is on the disk.

    The directory is made if it is not there. What is left beside it by a kill has a name of `is_temporary`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(
        os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether this is what `replacing` writes to."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def open_own(path: Path, flags: int) -> int:
    """Opens, or makes, a file of a run in place; OSError if it is a link, a pipe or a device."""
    opened = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "no plain file")
    return opened


def sync_directory(directory: Path) -> None:
    """Brings the names in a directory to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def sync_tree(directory: Path) -> None:
    """Brings all files below a directory to the disk, and their names; OSError if one cannot be."""
    for place, _, names in os.walk(directory):
        for name in names:
            opened = os.open(os.path.join(place, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)
        sync_directory(Path(place))
