"""Files of a run: JSON and arrays written whole or not at all, metrics lines, and checkpoints through Orbax.

Every writer writes beside the file and renames, so a kill leaves the old file or the new one, never half of one.
"""

import json
import logging
import math
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from .checks import RequestError, check

SCHEMA_VERSION = 1


def _write_whole(path: Path, write: Any) -> None:
    """Writes through `write(file)` beside `path`, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with the schema version; equal contents give equal bytes."""
    body = json.dumps(_plain({"schema_version": SCHEMA_VERSION, **content}), indent=1, allow_nan=False)
    write_bytes(path, body.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads JSON that `write_json` wrote.

    Raises:
      RequestError: if the file is missing, damaged or of another schema.
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
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise RequestError(f"{path.name}: got an unreadable file, expected JSON of fpjax; fix: {fix}") from error
    check(
        version == SCHEMA_VERSION,
        path.name,
        got=f"schema version {version}",
        expected=str(SCHEMA_VERSION),
        fix="use the version of fpjax that wrote it, or another --workdir",
    )
    return content


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed `.npz`."""
    _write_whole(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an `.npz` of `write_arrays`; never unpickles.

    Raises:
      RequestError: if the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"{path.name}: got a missing or damaged file, expected arrays of an earlier stage; "
            "fix: delete it and the stage's .json, and run the same command again"
        ) from error


class MetricsLog:
    """Appends one JSON line an event to `metrics.jsonl`, with the time; results themselves hold no times."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # A killed run may have left half a line.
        if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)

    def write(self, stage: str, **values: Any) -> None:
        """Appends one event."""
        line = json.dumps(_plain({"time": round(time.time(), 3), "stage": stage, **values}), allow_nan=False)
        with open(self._path, "ab") as file:
            file.write(line.encode() + b"\n")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array by its path, alike for named tuples and for the dicts that Orbax makes of them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


class Checkpoints:
    """Orbax checkpoints of one training run, by step; the last `keep` stay."""

    def __init__(self, directory: Path, *, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.ERROR)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(
            directory.resolve(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    @property
    def latest_step(self) -> int | None:
        """Newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Saves `state` (a pytree of arrays) as of `step`; does nothing if that step is there."""
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, template: Any, *, step: int | None = None) -> Any:
        """Restores the newest (or a given) step into the structure, shapes and placement of `template`.

        Raises:
          RequestError: if there is none, or it does not fit the template.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise RequestError("checkpoint: got none, expected a trained model; fix: run the stage that trains it")
        fix = "delete its directory and the stage's .json to train again, or use the config it was trained with"
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
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except RequestError:
            raise
        except (AttributeError, ValueError, KeyError, OSError, TypeError) as error:
            raise RequestError(
                f"checkpoint at step {step}: got a damaged one, expected this config's; fix: {fix}"
            ) from error
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), restored, template)

    def close(self) -> None:
        """Waits for writes and releases the directory."""
        self._manager.close()
