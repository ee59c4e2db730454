"""Checkpoints through Orbax, each file of them with its digest."""

import contextlib
import hashlib
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import RequestError, StageError, check
from .files import open_plain, sync_directory, sync_tree
from .store import read_json, write_json
from .terminal import say


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array by its path, alike for named tuples and for the dicts that Orbax makes of them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _reserve(directory: Path, size: int) -> None:
    """Raises OSError where `size` bytes do not fit, before Orbax begins: its own failures leave tracebacks."""
    with tempfile.TemporaryFile(dir=directory) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size + size // 8 + 2**20)


def _file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its path in it."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            with open_plain(path) as file:
                digests[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _seal_path(directory: Path, step: int) -> Path:
    """Beside the checkpoints: the digest of each file of one, written once those are on the disk."""
    return directory.parent / f"{directory.name}-{step}.json"


def damage(directory: Path, step: int) -> tuple[str, str]:
    """Which file of a checkpoint is not as it was written, and what is wrong; two empty texts if all are.

    One without its seal counts as damaged: power may have failed before its files were on the disk.
    """
    seal = _seal_path(directory, step)
    if not seal.is_file():
        return "", "one that was not written to its end"
    try:
        written, found = read_json(seal), _file_digests(directory / str(step))
    except (RequestError, OSError):
        return "", "unreadable files"
    for name, digest in found.items():
        if digest != written.get(name):
            return name, "a file that is not what was written"
    missing = sorted(written.keys() - found.keys() - {"schema_version", "digest"})
    return "", f"no file {', '.join(missing[:3])}" if missing else ""


def newest_step(directory: Path) -> int | None:
    """Of the checkpoints in a directory, damaged or not; None if there are none."""
    return max((int(path.name) for path in directory.glob("*") if path.name.isdigit()), default=None)


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
        ocp, index = self._ocp, jax.process_index()
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
        self._directory, self._unsealed = directory.resolve(), set[int]()
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
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
            _reserve(self._directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            _seal_path(self._directory, step).unlink(missing_ok=True)  # of one that was deleted by hand
            self._unsealed.add(step)
            # Of several processes Orbax would have the arrays of all.
            state = jax.tree.map(np.asarray, state) if jax.process_count() > 1 else state
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

    def _seal(self) -> None:
        """Seals the checkpoints that were saved here, and removes the seals of those that are gone."""
        steps = self._manager.all_steps()
        for step in self._unsealed.intersection(steps):
            written = self._directory / str(step)
            # Orbax writes the directory's path into these, and asks only whether they are there.
            for mark in written.rglob("commit_success.txt"):
                mark.write_bytes(b"")
            sync_tree(written)
            sync_directory(self._directory)
            write_json(_seal_path(self._directory, step), _file_digests(written))
        self._unsealed.clear()
        kept = [_seal_path(self._directory, step) for step in steps]
        for left in self._directory.parent.glob(f"{self._directory.name}-*.json"):
            if left not in kept:
                left.unlink()

    def drop_damaged(self) -> None:
        """Removes the newest checkpoints that are not as they were written, down to one that is, and says so."""
        while (step := newest_step(self._directory)) is not None and any(found := damage(self._directory, step)):
            shutil.rmtree(self._directory / str(step))
            _seal_path(self._directory, step).unlink(missing_ok=True)
            self._manager.reload()
            before = newest_step(self._directory)
            goes_on = "from the beginning" if before is None else f"from step {before}"
            say(f"checkpoint at step {step}: got {' '.join(filter(None, found))}; trains on {goes_on}")

    def restore(self, template: Any, *, step: int | None = None) -> Any:
        """Restores the newest (or a given) step into the structure, shapes and placement of `template`.

        Raises:
          RequestError: if there is none, or it does not fit the template.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise RequestError("checkpoint: got none, expected a trained model; fix: run the stage that trains it")
        fix = (
            f"delete checkpoints/{self._directory.name}/{step} and its stage's .json if there is one: the same "
            "command trains on from an earlier one; or use the config it was trained with"
        )
        name, problem = damage(self._directory, step)
        what = f"checkpoint at step {step}{name and ', '}{name}"
        check(not problem, what, got=problem, expected="the files as fpjax wrote them", fix=fix)
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
