"""How processes find each other: each connects to process 0, says who it is, and is told to go on or why not.

Nothing is trusted that answers at the address: a server of another kind, one that is silent, a stranger that connects,
an identity given twice are each one line, within the time that is allowed.
"""

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

from .errors import RequestError
from .terminal import say

_HELLO = b"fpjax 1"  # with the number of the protocol
_LONGEST = 200  # bytes of a line
_ANSWER_S = 10  # in which process 0 answers a greeting
_FIX = "give --coordinator=HOST:PORT --num_processes=N --process_id=I to each of the N, and each I to one"
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}  # a machine that vanished is missed in 90 s


class _Line:
    """Bytes of one line as they come."""

    def __init__(self) -> None:
        self.content = b""

    def receive(self, link: socket.socket) -> bool:
        """Takes what there is; whether the line is whole, or too long for one, or the other end has closed."""
        try:
            part = link.recv(_LONGEST)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            part = b""
        self.content += part
        return not part or b"\n" in self.content or len(self.content) > _LONGEST


def host(port: int, num_processes: int, *, timeout_s: float) -> dict[int, socket.socket]:
    """Waits at a port for all other processes, as process 0; their connections, by number.

    Raises:
      RequestError: the port cannot be had, a process says something that does not fit, or some do not come in time.
    """
    deadline, links = time.monotonic() + timeout_s, dict[int, socket.socket]()
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=max(num_processes, 16))
    except OSError as error:
        raise RequestError(
            f"--coordinator: got {os.strerror(error.errno or 0)} at port {port}, expected one that is free on this "
            "machine; fix: choose another, the same for all processes, and give --process_id=0 to one alone"
        ) from error
    strangers = set[socket.socket]()  # that have not said yet who they are
    with server, contextlib.closing(selectors.DefaultSelector()) as selector, _closing(strangers, links):
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        while len(links) < num_processes - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = sorted(set(range(1, num_processes)) - links.keys())
                _refuse(links.values(), f"no word from process {_some(missing)} within {timeout_s:g} s", _TIME)
            for key, _ in selector.select(min(left, 1)):
                if key.fileobj is server:
                    with contextlib.suppress(OSError):
                        link, _ = server.accept()
                        strangers.add(link)
                        link.setblocking(False)
                        selector.register(link, selectors.EVENT_READ, _Line())
                    continue
                link, line = key.fileobj, key.data
                assert isinstance(link, socket.socket)
                if line.receive(link):
                    selector.unregister(link)
                    _greet(link, line.content, links, num_processes)
                    if link in links.values():
                        strangers.remove(link)
        for link in links.values():
            link.setblocking(True)
            _send(link, b"go\n")
    return links


_TIME = "start it, or raise --coordinator_timeout"


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


@contextlib.contextmanager
def _closing(strangers: set[socket.socket], links: dict[int, socket.socket]) -> Iterator[None]:
    """At the end all strangers are let go, and where it fails everybody is."""
    try:
        yield
    except BaseException:
        strangers |= set(links.values())
        raise
    finally:
        for link in strangers:
            link.close()


def _send(link: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):
        link.sendall(line)


def _refuse(links: Iterable[socket.socket], got: str, fix: str) -> NoReturn:
    """Tells all that are there why it cannot begin, and raises it."""
    message = f"--coordinator: got {got}, expected every process once; fix: {fix}"
    for link in links:
        _send(link, f"no {message}\n".encode())
    raise RequestError(message)


def _greet(link: socket.socket, line: bytes, links: dict[int, socket.socket], num_processes: int) -> None:
    """Takes in a process that says who it is; a stranger is let go."""
    said = line.strip().rpartition(_HELLO)[2].split() if line.startswith(_HELLO) else []
    if len(said) != 2 or not all(word.isdigit() and len(word) < 10 for word in said):
        return
    process, number = map(int, said)
    everyone = [*links.values(), link]
    if number != num_processes:
        _refuse(everyone, f"{number} processes from process {process} and {num_processes} from process 0", _FIX)
    if not 0 < process < num_processes:
        _refuse(everyone, f"a process {process} of {num_processes}", _FIX)
    if process in links:
        if _is_closed(links[process]):
            links.pop(process).close()  # it was started again
        else:
            _refuse(everyone, f"process {process} twice", _FIX)
    links[process] = link
    _send(link, b"ok\n")


def _is_closed(link: socket.socket) -> bool:
    """Whether the other end has gone."""
    try:
        return not link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def join(address: tuple[str, int], num_processes: int, process: int, *, timeout_s: float) -> socket.socket:
    """Connects a process to process 0; returns once all are there.

    Raises:
      RequestError: process 0 refuses, nobody answers in time, or what answers is no process of ours.
    """
    started, told, why = time.monotonic(), False, "no answer"
    place = f"{address[0]}:{address[1]}"

    def left() -> float:
        return timeout_s - (time.monotonic() - started)

    while left() > 0:
        try:
            link = socket.create_connection(address, timeout=max(min(left(), 5), 0.1))
        except OSError as error:
            why = error.strerror or str(error)
            if not told and timeout_s - left() > 3:
                say(f"waiting for process 0 at {place} ({why}), for up to {timeout_s:g} s")
                told = True
            time.sleep(min(0.2, max(left(), 0)))
            continue
        with contextlib.ExitStack() as closed:
            closed.enter_context(link)
            _send(link, b"%s %d %d\n" % (_HELLO, process, num_processes))
            answer = _read_line(link, min(left(), _ANSWER_S))
            if answer == b"ok\n":
                answer = _read_line(link, left() + 1)  # the word of process 0 comes within its own time
                if answer == b"go\n":
                    closed.pop_all()
                    link.settimeout(None)
                    return link
            if answer.startswith(b"no "):
                raise RequestError(answer[3:].decode(errors="replace").strip())
            if answer:
                _not_ours(place, repr(answer[:40]))
        why = "a connection that was closed"
        time.sleep(min(0.2, max(left(), 0)))
    raise RequestError(
        f"--coordinator: got {why} at {place} within {timeout_s:g} s, expected process 0; fix: start it there, correct "
        "the address, or raise --coordinator_timeout"
    )


def _not_ours(place: str, got: str) -> NoReturn:
    raise RequestError(
        f"--coordinator: got {got} from {place}, expected process 0 of fpjax; fix: choose a port that nobody else "
        "uses, the same for all processes"
    )


def _read_line(link: socket.socket, timeout_s: float) -> bytes:
    """A line of process 0; what came of it where it is none. Silence is refused."""
    line, deadline = _Line(), time.monotonic() + timeout_s
    while True:
        link.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            part = link.recv(1)
        except TimeoutError:
            host, port = link.getpeername()[:2]
            _not_ours(f"{host}:{port}", f"{'half an answer' if line.content else 'no answer'} in {timeout_s:.0f} s")
        except OSError:
            return line.content
        line.content += part
        if not part or part == b"\n" or len(line.content) > 5 * _LONGEST:
            return line.content


def keep_alive(link: socket.socket) -> None:
    """Lets the system notice a machine that vanished without a word."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, seconds in _KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
