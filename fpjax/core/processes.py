"""Several processes as one: who is who, and how they hand each other what they have counted.

They meet at the service that `jax.distributed` connects them through, on the host: no device waits for another, and a
process that comes hours later is waited for. All must meet equally often; one that fails says so at its next meeting,
and the others then end there.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

# The service's store has no public name; the collectives that have one give up after half a minute on CPUs.
from jax._src import distributed

from .errors import RequestError, StageError, check
from .progress import Stopped, stopping

_meetings = itertools.count()
FAILED = b""
LONGEST_S = 30 * 86_400  # that a process waits for the others to end
HEARTBEAT_S = 100  # without a sign of life after which a process is taken for dead


class OtherStopped(StageError):
    """Another process has ended; its own message says why."""


def num_processes() -> int:
    """How many processes share the work."""
    return jax.process_count()


def process_index() -> int:
    """Number of this process; 0 writes the results."""
    return jax.process_index()


def connect(
    coordinator: str, num_processes: int | None, process_id: int | None, *, heartbeat_s: int = HEARTBEAT_S
) -> None:
    """Joins this process with the others; before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" where JAX finds all three by itself (Slurm, TPU pods, Open MPI).
      num_processes: of all.
      process_id: of this one, from 0.
      heartbeat_s: seconds without a sign of life after which a process is taken for dead, and JAX ends the others.

    Raises:
      RequestError: if they cannot be joined.
    """
    what, fix = "--coordinator", "give --coordinator=HOST:PORT --num_processes=N --process_id=I to each of the N"
    auto, (host, _, port) = coordinator == "auto", coordinator.rpartition(":")
    if not auto:
        ok = bool(host) and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
        expected = "HOST:PORT with a port from 1 to 65535, or auto"
        check(ok, what, got=repr(coordinator)[:80], expected=expected, fix=fix)
        check(
            num_processes is not None and process_id is not None and 0 <= process_id < num_processes,
            "--num_processes, --process_id",
            got=f"{num_processes}, {process_id}",
            expected="how many there are, and which of them this is, from 0",
            fix=fix,
        )
    try:
        jax.distributed.initialize(
            None if auto else coordinator,
            num_processes,
            process_id,
            # On clusters that JAX knows it would take one device for each process unless all is told.
            cluster_detection_method=None if auto else "deactivate",
            heartbeat_timeout_seconds=heartbeat_s,
            shutdown_timeout_seconds=LONGEST_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).split(" [type")[0][:160]
        raise RequestError(f"{what}: got {reason}, expected {num_processes or 'the'} processes; fix: {fix}") from error


def _put(meeting: int, content: bytes) -> None:
    """What this process has for the others."""
    store: Any = distributed.global_state.client
    store.key_value_set_bytes(f"fpjax/{meeting}/{process_index()}", content)


def _get(meeting: int, process: int) -> bytes:
    """What a process has put, as soon as it has; `Stopped` if a signal comes while waiting."""
    store: Any = distributed.global_state.client
    while True:
        try:
            return store.blocking_key_value_get_bytes(f"fpjax/{meeting}/{process}", 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if stopping():
            raise Stopped("stopped while waiting for other processes")


def gather(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in their order; each waits for all.

    Raises:
      OtherStopped: if another process has failed.
    """
    if num_processes() == 1:
        return [arrays]
    file, meeting = io.BytesIO(), next(_meetings)
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    _put(meeting, b"1" + file.getvalue())
    everyone = []
    for process in range(num_processes()):
        content = _get(meeting, process)
        if content == FAILED:
            raise OtherStopped(f"process {process} has ended, as its own messages say")
        with np.load(io.BytesIO(content[1:]), allow_pickle=False) as loaded:
            everyone.append({name: loaded[name] for name in loaded.files})
    return everyone


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, what ends this process ends the others at their next meeting, and does not leave them waiting."""
    try:
        yield
    except OtherStopped:
        raise
    except BaseException:
        if num_processes() > 1:
            _put(next(_meetings), FAILED)
        raise
