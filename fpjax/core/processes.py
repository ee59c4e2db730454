"""Several processes as one: who is who, and how they hand each other what they have counted.

Each is connected with process 0, over which what one has for the others goes: on the host, so that no device waits for
another, and a process that comes hours later is waited for. All must meet equally often; one that fails says so, and
the others end where they next meet. One that dies without a word ends the others at once: its connection closes. (JAX's
own service, `jax.distributed`, does the same with an abort and a stack of its C++ code, and knows no time limit.)
"""

import contextlib
import functools
import io
import os
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from .environment import check_platform
from .errors import RequestError, StageError, check
from .progress import Stopped, stopping
from .rendezvous import host, join, keep_alive
from .terminal import say

# What a frame is, by its first byte.
_DATA, _FAILED, _BYE, _DIED = b"D", b"F", b"B", b"K"


class OtherStopped(StageError):
    """Another process has ended; its own message says why."""


class _Links:
    """This process among the others: its number, and its connections, of process 0 to each, of the others to it."""

    def __init__(self, index: int, count: int, sockets: dict[int, socket.socket]):
        self.index, self.count, self.sockets = index, count, sockets
        self.devices = [jax.local_device_count()] if count == 1 else []
        self._inbox: dict[int, queue.SimpleQueue[bytes]] = {peer: queue.SimpleQueue() for peer in sockets}
        self._locks = {peer: threading.Lock() for peer in sockets}
        self._ended: set[int] = set()
        self._closing = False
        for peer, link in sockets.items():
            keep_alive(link)
            threading.Thread(target=self._listen, args=(peer, link), daemon=True).start()

    def _listen(self, peer: int, link: socket.socket) -> None:
        """Takes in what a process sends, so that its end is seen at once; runs in a thread."""
        while True:
            frame = _read_frame(link)
            if frame is None:
                if peer not in self._ended and not self._closing:
                    self._die(peer)
                return
            if frame[:1] == _DIED:
                self._die(int(frame[1:]))
            if frame[:1] in (_BYE, _FAILED):
                self._ended.add(peer)
            if frame[:1] != _BYE:
                self._inbox[peer].put(frame)

    def _die(self, process: int) -> None:
        """Ends this process, and through process 0 all others: whatever was saved is whole at every moment."""
        for peer in self.sockets.keys() - {process} if self.index == 0 else ():
            self.send(peer, _DIED + b"%d" % process)
        say(f"stopped: process {process} has died; start all of them again, and they go on from what was saved")
        os._exit(1)

    def send(self, peer: int, frame: bytes) -> None:
        """Sends a frame; one that has gone is noticed where it is listened to."""
        with self._locks[peer], contextlib.suppress(OSError):
            self.sockets[peer].sendall(struct.pack(">Q", len(frame)) + frame)

    def receive(self, peer: int) -> bytes:
        """The next frame of a process; `Stopped` if a signal comes while waiting."""
        while True:
            try:
                return self._inbox[peer].get(timeout=1)
            except queue.Empty:
                if stopping():
                    raise Stopped("stopped while waiting for other processes") from None

    def close(self) -> None:
        """Says goodbye."""
        self._closing = True
        for peer, link in self.sockets.items():
            self.send(peer, _BYE)
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)


def _read_frame(link: socket.socket) -> bytes | None:
    """What was sent in one piece; None at the end."""

    def read(size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            part = link.recv(min(size - len(content), 2**20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    try:
        return read(*struct.unpack(">Q", read(8)))
    except (OSError, EOFError):
        return None


@functools.lru_cache(maxsize=1)
def _alone() -> _Links:
    return _Links(0, 1, {})


_joined: list[_Links] = []


def _links() -> _Links:
    return _joined[0] if _joined else _alone()


def num_processes() -> int:
    """How many processes share the work."""
    return _joined[0].count if _joined else 1


def process_index() -> int:
    """Number of this process; 0 writes the results."""
    return _joined[0].index if _joined else 0


def devices_before() -> tuple[int, int]:
    """How many devices the processes before this one have, and how many all have."""
    counts = _links().devices
    return sum(counts[: process_index()]), sum(counts)


def connect(coordinator: str, num_processes: int | None, process_id: int | None, *, timeout_s: float = 300) -> None:
    """Joins this process with the others.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" where JAX knows how to find all three (Slurm, TPU pods, Open MPI).
      num_processes: of all.
      process_id: of this one, from 0.
      timeout_s: in which all must be there.

    Raises:
      RequestError: if they cannot be joined.
    """
    what, fix = "--coordinator", "give --coordinator=HOST:PORT --num_processes=N --process_id=I to each of the N"
    check(timeout_s >= 1, "--coordinator_timeout", got=timeout_s, expected="seconds, at least 1", fix="raise it")
    if coordinator == "auto":
        coordinator, num_processes, process_id = _find_cluster(int(timeout_s))
    name, _, port = coordinator.rpartition(":")
    ok = bool(name) and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
    expected = "HOST:PORT with a port from 1 to 65535, or auto"
    check(ok, what, got=repr(coordinator)[:80], expected=expected, fix=fix)
    check(
        num_processes is not None and process_id is not None and 0 <= process_id < num_processes,
        "--num_processes, --process_id",
        got=f"{num_processes}, {process_id}",
        expected="how many there are, and which of them this is, from 0",
        fix=fix,
    )
    assert num_processes is not None
    assert process_id is not None
    if process_id:
        sockets = {0: join((name.strip("[]"), int(port)), num_processes, process_id, timeout_s=timeout_s)}
    else:
        sockets = host(int(port), num_processes, timeout_s=timeout_s)
    _joined[:] = [_Links(process_id, num_processes, sockets)]
    with _telling():
        check_platform()  # only now: which devices are this task's own was found out above
        counts = gather({"devices": np.asarray(jax.local_device_count())})
    _joined[0].devices = [int(each["devices"]) for each in counts]


def _find_cluster(timeout_s: int) -> tuple[str, int | None, int | None]:
    """What JAX finds out of the environment; of a machine with several tasks each takes its own GPU."""
    # What jax.distributed.initialize asks; it has no public name.
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout_s)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        found, reason = (None, None, None, None), " ".join(str(error).split())[:160]
    else:
        reason = "no cluster that JAX knows"
    coordinator, number, process, local = found
    if coordinator is None:
        raise RequestError(
            f"--coordinator: got auto and {reason}, expected Slurm, a TPU pod or Open MPI; fix: give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I to each of the N"
        )
    for platform in ("cuda", "rocm") if local else ():
        jax.config.update(f"jax_{platform}_visible_devices", ",".join(map(str, local or ())))
    return coordinator, number, process


def disconnect() -> None:
    """Says goodbye to the others, whose ends are not this one's any more."""
    while _joined:
        _joined.pop().close()


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return _DATA + file.getvalue()


def _unpack(frame: bytes) -> dict[str, np.ndarray]:
    if frame[:1] == _FAILED:
        raise OtherStopped(f"process {int(frame[1:])} has ended, as its own messages say")
    with np.load(io.BytesIO(frame[1:]), allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def gather(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in their order; each waits for all.

    Raises:
      OtherStopped: if another process has failed.
    """
    if num_processes() == 1:
        return [arrays]
    links, own = _joined[0], _pack(arrays)
    if links.index:
        links.send(0, own)
        return [_unpack(links.receive(0)) for _ in range(links.count)]
    frames = [own]
    for peer in range(1, links.count):
        frames.append(links.receive(peer))
        if frames[-1][:1] == _FAILED:
            _tell_failed(links, peer)
    for peer in links.sockets:
        for frame in frames:
            links.send(peer, frame)
    return [_unpack(frame) for frame in frames]


def _tell_failed(links: _Links, process: int) -> None:
    """Lets the others know that one has failed, in place of what they wait for."""
    for peer in links.sockets.keys() - {process}:
        links.send(peer, _FAILED + b"%d" % process)
    raise OtherStopped(f"process {process} has ended, as its own messages say")


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Inside, what ends this process is told to the others."""
    try:
        yield
    except OtherStopped:
        raise
    except BaseException:
        for peer in _joined[0].sockets if _joined else ():
            _joined[0].send(peer, _FAILED + b"%d" % process_index())
        raise


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, what ends this process ends the others at their next meeting, and does not leave them waiting."""
    try:
        with _telling():
            yield
    finally:
        disconnect()


def agree(parts: dict[str, Any]) -> None:
    """Refuses processes that do not belong together.

    Args:
      parts: by name, what must be the same in all: texts, or dictionaries of texts whose fields are named.

    Raises:
      RequestError: in every process, naming the first part that differs, and how.
    """
    told = {name: np.asarray(repr(value)) for name, value in _flat(parts).items()}
    first, *others = gather(told)
    for process, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            ours, theirs = (str(each.get(name, "nothing"))[:120] for each in (first, other))
            check(
                ours == theirs,
                "--coordinator",
                got=f"{name} {theirs} in process {process}",
                expected=f"{ours}, as in process 0",
                fix="start all processes with the same command, versions and data",
            )


def _flat(parts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in parts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
