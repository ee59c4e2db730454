"""Checkpoints through Orbax, each file of them with its digest."""

import contextlib
import hashlib
import importlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import RequestError, StageError, check
from .processes import num_processes, process_index
from .store import read_json, write_json


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
