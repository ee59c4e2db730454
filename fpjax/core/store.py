"""Files of a run: JSON and arrays, written whole or not at all, and the lock of its directory.

JSON carries the digest of its own content, so that a file that was damaged, or changed by mistake, is not taken for a
result. Whoever edits a file can write the digest anew: against people there is the signed manifest.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import RequestError, check
from .files import Bounded, is_temporary, open_own, open_plain, read_json_file, replacing, write_bytes

SCHEMA_VERSION = 4
LOCK = ".lock"


def to_plain(value: Any) -> Any:
    """NumPy values as JSON has them; non-finite numbers as null, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, np.generic):
        return to_plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content_digest(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object's canonical text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with the schema version and its own digest; equal contents give equal bytes."""
    plain = to_plain({"schema_version": SCHEMA_VERSION, **content})
    body = json.dumps({**plain, "digest": content_digest(plain)}, indent=1, allow_nan=False)
    write_bytes(path, body.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads JSON that `write_json` wrote, with its digest under `digest`.

    Raises:
      RequestError: if the file is missing, damaged, edited or of another schema.
    """
    fix = "delete it and run the same command again" if path.name != "config.json" else "use another --workdir"
    check(
        path.is_file(),
        path.name,
        got="no such file",
        expected="the result of an earlier stage",
        fix="run that stage first, or leave out --stage",
    )
    try:
        content = read_json_file(path)
        version = content["schema_version"]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise RequestError(f"{path.name}: got an unreadable file, expected JSON of fpjax; fix: {fix}") from error
    check(
        version == SCHEMA_VERSION,
        path.name,
        got=f"schema version {str(version)[:20]}",
        expected=str(SCHEMA_VERSION),
        fix="use the version of fpjax that wrote it, or another --workdir",
    )
    digest = content.pop("digest", None)
    check(
        digest == content_digest(content),
        path.name,
        got="content that is not what was written",
        expected="the file as fpjax wrote it",
        fix=fix,
    )
    return {**content, "digest": digest}


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed `.npz`."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an `.npz` of `write_arrays`; never unpickles.

    Raises:
      RequestError: if the file is missing or damaged.
    """
    try:
        with open_plain(path) as stream, np.load(Bounded(stream), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # NumPy, zipfile and zlib raise a dozen unrelated types on damaged files.
    except Exception as error:
        raise RequestError(
            f"{path.name}: got a missing or damaged file, expected arrays of an earlier stage; "
            "fix: delete it and the stage's .json, and run the same command again"
        ) from error


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Holds `directory` against other processes; the system lets go of it when the process dies.

    Nobody but its owner may read it from then on; what killed writers left is removed.

    Raises:
      RequestError: if another process holds it, it cannot be written to, or files in it are links.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_links(directory)
        opened = open_own(directory / LOCK, os.O_RDWR)
        with contextlib.suppress(PermissionError):  # of another owner, who lets us write
            directory.chmod(0o700)
    except OSError as error:
        raise RequestError(
            f"--workdir: got {error.strerror}, expected a directory to write to; fix: choose another --workdir"
        ) from error
    with open(opened, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RequestError(
                f"--workdir={directory.name}: got a directory that process {file.read(20).strip() or '?'} works in, "
                "expected a free one; fix: wait for it or stop it, or choose another --workdir"
            ) from error
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for left in filter(is_temporary, directory.rglob(".*.tmp")):
            left.unlink(missing_ok=True)
        yield


def _refuse_links(directory: Path) -> None:
    """Refuses a directory in which a link leads elsewhere: what is written here stays here."""
    for place, folders, names in os.walk(directory):
        for name in (*folders, *names):
            path = Path(place, name)
            check(
                not path.is_symlink(),
                f"--workdir={directory.name}",
                got=f"a link among its files, {path.relative_to(directory)}",
                expected="files of fpjax alone",
                fix="remove it, or choose another --workdir",
            )


def tree_digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of a pytree's arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
