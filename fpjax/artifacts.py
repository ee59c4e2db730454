"""Files of a run: JSON and arrays written whole or not at all, metrics lines, checkpoints through Orbax, and the lock.

Every writer writes beside the file and renames, so a kill leaves the old file or the new one, never half of one.
JSON carries the digest of its own content, so that a file that was damaged or edited is not taken for a result.
"""

import contextlib
import fcntl
import hashlib
import importlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .checks import RequestError, StageError, check
from .processes import num_processes, process_index

SCHEMA_VERSION = 3


def _write_whole(path: Path, write: Any) -> None:
    """Writes through `write(file)` beside `path`, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    _write_whole(path, lambda file: file.write(content))


def _plain(value: Any) -> Any:
    """NumPy values as JSON has them; non-finite numbers as null, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object's canonical text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with the schema version and its own digest; equal contents give equal bytes."""
    plain = _plain({"schema_version": SCHEMA_VERSION, **content})
    body = json.dumps({**plain, "digest": _digest(plain)}, indent=1, allow_nan=False)
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
        content = json.loads(path.read_text())
        version = content["schema_version"]
    # Deeply nested brackets exhaust the parser's stack.
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
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
        digest == _digest(content),
        path.name,
        got="content that is not what was written",
        expected="the file as fpjax wrote it",
        fix=fix,
    )
    return {**content, "digest": digest}


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed `.npz`."""
    _write_whole(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an `.npz` of `write_arrays`; never unpickles.

    Raises:
      RequestError: if the file is missing or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # NumPy, zipfile and zlib raise a dozen unrelated types on damaged files.
    except Exception as error:
        raise RequestError(
            f"{path.name}: got a missing or damaged file, expected arrays of an earlier stage; "
            "fix: delete it and the stage's .json, and run the same command again"
        ) from error


def tensorboard_writer() -> Any:
    """Class that writes TensorBoard's event files.

    Raises:
      RequestError: if the extra is not installed.
    """
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise RequestError(
            "report.tensorboard: got no package tensorboardX, expected it for event files; "
            "fix: pip install 'fpjax[tensorboard]', or leave it False"
        ) from error


class MetricsLog:
    """Appends one JSON line an event to `metrics.jsonl`, with the time; results themselves hold no times.

    Args:
      path: of the file.
      tensorboard: directory for TensorBoard's event files, which get the same numbers; None: none.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._events = tensorboard and tensorboard_writer()(str(tensorboard), flush_secs=5)
        # A killed run may have left half a line.
        if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)

    def write(self, stage: str, **values: Any) -> None:
        """Appends one event."""
        line = json.dumps(_plain({"time": round(time.time(), 3), "stage": stage, **values}), allow_nan=False)
        with open(self._path, "ab") as file:
            file.write(line.encode() + b"\n")
        if self._events:
            at = next((int(values[name]) for name in ("step", "epoch", "evaluations", "images") if name in values), 0)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{stage}/{name}", value, at)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Events of `metrics.jsonl` in order; lines that are no event are left out."""
    events = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("stage"), str):
                events.append(event)
    return events


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Holds `directory` against other processes; the system lets go of it when the process dies.

    Raises:
      RequestError: if another process holds it, or it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "a+")
    except OSError as error:
        raise RequestError(
            f"--workdir: got {error.strerror}, expected a directory to write to; fix: choose another --workdir"
        ) from error
    with file:
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
        yield


def tree_digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of a pytree's arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array by its path, alike for named tuples and for the dicts that Orbax makes of them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _reserve(directory: Path, size: int) -> None:
    """Raises OSError where `size` bytes do not fit, before Orbax begins: its own failures leave tracebacks."""
    beside = directory / ".room.tmp"
    try:
        with open(beside, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size + size // 8 + 2**20)
    finally:
        beside.unlink(missing_ok=True)


def _file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its path in it."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digests[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


class Checkpoints:
    """Orbax checkpoints of one training run, by step.

    On accelerators they are written in the background, after a copy to the host; a later call reports what went wrong.
    On CPU the "copy" would be the very buffers that the next step overwrites, so there `save` waits.

    Args:
      directory: of this run's checkpoints alone.
      keep_last: newest checkpoints that stay.
      keep_every: those at multiples of so many steps stay too; 0: none.
    """

    def __init__(self, directory: Path, *, keep_last: int = 2, keep_every: int = 0):
        # Only now: it takes a second to import, and chains need none.
        self._ocp = importlib.import_module("orbax.checkpoint")
        ocp, index = self._ocp, process_index()
        logging.getLogger("absl").setLevel(logging.ERROR)
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            enable_async_checkpointing=jax.default_backend() != "cpu",
            cleanup_tmp_directories=True,
            # Whichever process asks reads or writes alone.
            multiprocessing_options=ocp.options.MultiprocessingOptions(index, {index}, f"process{index}"),
            create=False,
        )
        directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            directory.resolve(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    @property
    def latest_step(self) -> int | None:
        """Newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Saves `state` (a pytree of arrays) as of `step`; does nothing if that step is there.

        Raises:
          StageError: if it cannot be written; earlier checkpoints stay as they are.
        """
        if step == self.latest_step:
            return
        self.wait()
        with self._writing(f"checkpoint at step {step}"):
            _reserve(Path(self._manager.directory), sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manifest(step).unlink(missing_ok=True)  # of one that was deleted by hand
            # Of several processes Orbax would have the arrays of all.
            state = jax.tree.map(np.asarray, state) if num_processes() > 1 else state
            self._manager.save(step, args=self._ocp.args.StandardSave(state), force=True)
        if jax.default_backend() == "cpu":
            self.wait()

    def wait(self) -> None:
        """Waits for what is being written in the background; StageError if that failed."""
        with self._writing("the newest checkpoint"):
            self._manager.wait_until_finished()
            self._seal()

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        # The storage layers below raise types of their own for a full or failing disk.
        except Exception as error:
            self._manager.reload()
            raise StageError(
                f"{what} could not be written ({' '.join(str(error).split())[:120]}); the last good one is at step "
                f"{self.latest_step}; free disk space and run the same command again"
            ) from error

    def _manifest(self, step: int) -> Path:
        """Beside the checkpoints: the digest of each file of one."""
        directory = Path(self._manager.directory)
        return directory.parent / f"{directory.name}-{step}.json"

    def _seal(self) -> None:
        """Writes the manifests of new checkpoints, and removes those of checkpoints that are gone."""
        steps = self._manager.all_steps()
        for step in steps:
            if not self._manifest(step).is_file():
                # Orbax writes the directory's path into these, and asks only whether they are there.
                for mark in (Path(self._manager.directory) / str(step)).rglob("commit_success.txt"):
                    mark.write_bytes(b"")
                write_json(self._manifest(step), _file_digests(Path(self._manager.directory) / str(step)))
        for left in self._manifest(0).parent.glob(f"{Path(self._manager.directory).name}-*.json"):
            if left not in map(self._manifest, steps):
                left.unlink()

    def _check_files(self, step: int, fix: str) -> None:
        """Refuses files that are not as they were written: on those Orbax fails in ways of its own."""
        if not self._manifest(step).is_file():
            return  # killed between the two
        found, written = _file_digests(Path(self._manager.directory) / str(step)), read_json(self._manifest(step))
        for name, digest in found.items():
            check(
                digest == written.get(name),
                f"checkpoint at step {step}, {name}",
                got="a file that is not what was written",
                expected="the file as fpjax wrote it",
                fix=fix,
            )
        missing = sorted(written.keys() - found.keys() - {"schema_version", "digest"})
        check(
            not missing,
            f"checkpoint at step {step}",
            got=f"no file {', '.join(missing[:3])}",
            expected="all that was written",
            fix=fix,
        )

    def restore(self, template: Any, *, step: int | None = None) -> Any:
        """Restores the newest (or a given) step into the structure, shapes and placement of `template`.

        Raises:
          RequestError: if there is none, or it does not fit the template.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise RequestError("checkpoint: got none, expected a trained model; fix: run the stage that trains it")
        fix = (
            f"delete checkpoints/{self._manager.directory.name}/{step} and its stage's .json if there is one: the same "
            "command trains on from an earlier one; or use the config it was trained with"
        )
        self._check_files(step, fix)
        try:
            # Orbax would find another architecture too, but only after it has begun to read.
            stored, wanted = _shapes(self._manager.item_metadata(step).tree), _shapes(template)
            for name in sorted(stored.keys() | wanted.keys()):
                check(
                    stored.get(name) == wanted.get(name),
                    f"checkpoint at step {step}, {name}",
                    got=stored.get(name, "nothing"),
                    expected=f"{wanted.get(name, 'nothing')} of this config's architecture",
                    fix=fix,
                )
            restored = self._manager.restore(step, args=self._ocp.args.StandardRestore(template))
        except RequestError:
            raise
        # Orbax and TensorStore raise a dozen unrelated types on damaged files.
        except Exception as error:
            raise RequestError(
                f"checkpoint at step {step}: got a damaged one, expected this config's; fix: {fix}"
            ) from error
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), restored, template)

    def close(self) -> None:
        """Waits for writes and releases the directory; StageError if one failed."""
        self.wait()
        self._manager.close()
