"""Processes that look for each other: whatever answers, or does not, is one line within the time that was given."""

import contextlib
import http.server
import re
import socket
import subprocess
import threading
import time

import pytest

from fpjax.core.errors import RequestError
from fpjax.core.rendezvous import host, join

from .conftest import ROOT, command
from .test_processes import free_port


def meet(port, *, number, given, timeout_s=20):
    """Starts the process of each number given, 0 as the host: what came of each, by place in `given`."""
    results = [None] * len(given)

    def run(place, process):
        try:
            if process:
                results[place] = join(("127.0.0.1", port), number, process, timeout_s=timeout_s)
            else:
                results[place] = host(port, number, timeout_s=timeout_s)
        except RequestError as error:
            results[place] = str(error)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(given)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(2 * timeout_s)
    return results


def close(links):
    for link in links:
        link.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_they_meet_in_any_order(order):
    results = meet(free_port(), number=3, given=order)
    links = results[order.index(0)]
    assert sorted(links) == [1, 2]
    for process in (1, 2):
        links[process].sendall(b"%d" % process)
        assert results[order.index(process)].recv(10) == b"%d" % process
    close([*links.values(), *(results[order.index(i)] for i in (1, 2))])


def test_a_number_given_twice_ends_all_of_them():
    begun = time.monotonic()
    results = meet(free_port(), number=3, given=(0, 1, 1))
    assert time.monotonic() - begun < 5
    assert all(re.match("--coordinator: got process 1 twice, expected every process once; fix: ", r) for r in results)


def test_other_numbers_of_processes_end_all_of_them():
    port = free_port()
    other = threading.Thread(target=lambda: contextlib.suppress(RequestError).__enter__())
    other.start()
    said = []

    def joined():
        try:
            join(("127.0.0.1", port), 4, 1, timeout_s=10)
        except RequestError as error:
            said.append(str(error))

    thread = threading.Thread(target=joined)
    thread.start()
    with pytest.raises(RequestError, match="got 4 processes from process 1 and 3 from process 0"):
        host(port, 3, timeout_s=10)
    thread.join()
    assert "got 4 processes from process 1" in said[0]


def test_who_does_not_come_is_named_to_all():
    results = meet(free_port(), number=4, given=(0, 2), timeout_s=2)
    for said in results:
        assert said.startswith("--coordinator: got no word from process 1, 3 within 2 s, expected every process once")


def test_nobody_there_a_taken_port_and_a_name_that_is_none():
    port, begun = free_port(), time.monotonic()
    with pytest.raises(
        RequestError, match=f"got Connection refused at 127.0.0.1:{port} within 1 s, expected process 0"
    ):
        join(("127.0.0.1", port), 2, 1, timeout_s=1)
    with pytest.raises(RequestError, match="within 1 s, expected process 0"):
        join(("no-such-host.invalid", port), 2, 1, timeout_s=1)
    assert time.monotonic() - begun < 10
    with (
        socket.create_server(("", port)),
        pytest.raises(RequestError, match=f"got Address already in use at port {port}"),
    ):
        host(port, 2, timeout_s=1)


@contextlib.contextmanager
def serving(answer):
    """A server that says `answer` to whoever connects, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    link, _ = server.accept()
                    kept.append(link)
                    link.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        close(kept)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "got b'SSH-2.0-OpenSSH_9.2"),
        (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" * 200, "expected process 0 of fpjax; fix: choose a port"),
        (b"", "got no answer in 2 s from 127.0.0.1"),
        (b"ok", "got half an answer in 2 s from 127.0.0.1"),
        (b"ok\nGARBAGE\n", "got b'GARBAGE"),
    ],
)
def test_servers_of_other_kinds_are_told_apart(answer, message):
    begun = time.monotonic()
    with serving(answer) as port, pytest.raises(RequestError, match=re.escape(message)):
        join(("127.0.0.1", port), 2, 1, timeout_s=2)
    assert time.monotonic() - begun < 6


def test_a_web_server_is_no_process():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RequestError, match="expected process 0 of fpjax"):
            join(("127.0.0.1", server.server_port), 2, 1, timeout_s=5)
        server.shutdown()


def test_strangers_do_not_stop_the_host():
    """Silent ones, garbage, endless lines, and one that says half a greeting."""
    port, strangers, found = free_port(), [], []
    thread = threading.Thread(target=lambda: found.append(host(port, 2, timeout_s=30)))
    thread.start()
    time.sleep(0.3)
    for said in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 100_000,
        b"fpjax 1",
        b"fpjax 1 1 2 3\n",
        b"fpjax 1 -1 2\n",
        b"\n",
    ):
        strangers.append(socket.create_connection(("127.0.0.1", port)))
        with contextlib.suppress(OSError):
            strangers[-1].sendall(said)
    link = join(("127.0.0.1", port), 2, 1, timeout_s=20)
    thread.join(20)
    assert list(found[0]) == [1]
    close([link, *found[0].values(), *strangers])


def test_one_that_was_started_again_takes_its_place():
    port, found = free_port(), []
    thread = threading.Thread(target=lambda: found.append(host(port, 3, timeout_s=30)))
    thread.start()
    first = None
    while first is None:
        with contextlib.suppress(OSError):
            first = socket.create_connection(("127.0.0.1", port))
    first.sendall(b"fpjax 1 1 3\n")
    assert first.recv(10) == b"ok\n"
    first.close()
    results = meet(port, number=3, given=(1, 2))
    thread.join(20)
    assert sorted(found[0]) == [1, 2]
    close([*results, *found[0].values()])


def run_two(environment, *, first=(), second=(), workdir):
    """Both processes of a small run; statuses and messages."""
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--coordinator_timeout=60", "--stage=data"]
    both = [
        subprocess.Popen(
            command(*flags, f"--process_id={i}", f"--workdir={workdir}", *more),
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        for i, more in enumerate((first, second))
    ]
    messages = [process.communicate(timeout=120)[1] for process in both]
    return [process.returncode for process in both], messages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("--config.classifiers.threshold=0.8",), "got config.classifiers.threshold 0.8 in process 1, expected 0.5"),
        (("--config.count.num_samples=50",), "got config.count.num_samples 50 in process 1"),
        (("--config.data.seed=3",), "got config.data.seed 3 in process 1"),
        (("--stage=data,classifiers",), "got --stage 'data,classifiers' in process 1, expected 'data'"),
    ],
    ids=["threshold", "samples", "data", "stages"],
)
def test_processes_that_do_not_belong_together_are_refused_before_any_work(environment, tmp_path, second, message):
    statuses, messages = run_two(environment, second=second, workdir=tmp_path / "run")
    assert statuses == [2, 2], messages
    for said in messages:
        assert len(said.splitlines()) == 1, said
        assert message in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_share_one_work_directory(environment, tmp_path):
    statuses, messages = run_two(environment, second=(f"--workdir={tmp_path / 'other'}",), workdir=tmp_path / "run")
    assert statuses[1] == 2, messages
    assert "--workdir=other: got another directory than that of process 0" in messages[1]
    statuses, messages = run_two(environment, workdir=tmp_path / "run")
    assert statuses == [0, 0], messages
