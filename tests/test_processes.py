"""Several processes: the same tallies as one, and nobody waits for the dead."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.errors import RequestError
from fpjax.core.processes import connect, gather
from fpjax.core.store import read_arrays
from fpjax.engine.work import make_work
from fpjax.studies.count import CountSettings, count
from fpjax.studies.search import count_returns

from .conftest import command
from .test_chains import SHAPE, gaussian_engine

ROOT = Path(__file__).resolve().parents[1]
TARGETS = np.stack([np.full(SHAPE, 0.9, np.float32), np.full(SHAPE, -0.4, np.float32)])


@jax.jit
def detect(images):
    """A third of the plain samples, more of the chains from low levels."""
    near = jnp.exp(-jnp.max((images[:, None] - TARGETS) ** 2, axis=(2, 3, 4)))
    return 0.5 + images[:, 0, 0, 0], near


def tallies(directory=None):
    """Everything that search and count return, as arrays by name."""
    engine, common = gaussian_engine(slots=4, block_steps=9), {"threshold": 0.5, "key": jax.random.key(2)}
    paths = [directory and directory / f"{name}.npz" for name in ("search", "count")]
    work = make_work([[0], [1]], np.arange(1, 21), 3)
    shown = [(1, 2), (0, 20), (0, 1)]
    found, pictured = count_returns(
        engine, None, TARGETS, detect, work, thresholds=(0.8,), shown=shown, path=paths[0], **common
    )
    settings = CountSettings(num_samples=41, sensitivity_chains=5)
    counted, pictures = count(engine, None, TARGETS, detect, settings, num_members=1, path=paths[1], **common)
    leaves = jax.tree_util.tree_flatten_with_path((vars(found), dataclasses.asdict(counted), pictures, pictured))[0]
    names = (jax.tree_util.keystr(place, simple=True, separator=".") for place, _ in leaves)
    return {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}


_SCRIPT = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from fpjax.core import processes
processes.connect({given})
from tests.test_processes import *
from fpjax.engine import chains
{body}
"""
WHOLE = """
with processes.together():
    np.savez(sys.argv[2] + f"/{processes.process_index()}.npz", **tallies(Path(sys.argv[2])))
"""
FAILS = """
with processes.together():
    if processes.process_index():
        raise RuntimeError("told to fail")
    gather({})
"""


KILLED = (
    """
import os, signal
from tests import test_processes

scores = detect


def detect_until_killed(images):
    mine = "search-process1.npz" if processes.process_index() else "search.npz"
    if processes.process_index() == KILLED and list(Path(sys.argv[2]).glob(mine)):
        os.kill(os.getpid(), signal.SIGKILL)
    return scores(images)


test_processes.detect = detect_until_killed
"""
    + WHOLE
)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def slurm(process):
    """What `srun` tells the tasks of a job of two; JAX makes the port from the job's number."""
    names = ("JOB_ID", "STEP_NODELIST", "STEP_NUM_NODES", "NTASKS", "PROCID", "LOCALID")
    values = (os.getpid(), "localhost", 1, 2, process, process)
    return {f"SLURM_{name}": str(value) for name, value in zip(names, values, strict=True)}


def start(body, directory, devices, *, auto=False):
    """Starts one process for each entry of `devices`, its number of devices; `auto`: as tasks of Slurm."""
    where = ("auto", None, None) if auto else (f"127.0.0.1:{free_port()}", len(devices))
    given = ", ".join(map(repr, where)) + ("" if auto else ", int(sys.argv[1])")
    script = _SCRIPT.format(root=str(ROOT), given=given, body=body)
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(i), str(directory)],
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={number}"}
            | (slurm(i) if auto else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        for i, number in enumerate(devices)
    ]


def end(processes):
    """Exit statuses and messages."""
    messages = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], messages


@pytest.mark.parametrize("auto", [False, True], ids=["address", "slurm"])
def test_two_processes_count_what_one_counts(tmp_path, auto):
    """One process with two devices, the other with one; or as tasks of a Slurm job, with one each."""
    statuses, messages = end(start(WHOLE, tmp_path, (1, 1) if auto else (2, 1), auto=auto))
    assert statuses == [0, 0], messages
    expected = tallies()
    for process in range(2):
        found = read_arrays(tmp_path / f"{process}.npz")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if not name.endswith("executed"):  # three devices drain otherwise than two
                np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert expected["1.num_samples"] == 41
    assert 0 < expected["1.num_detected"][0] < 41
    assert len(expected["2.hits"]) > 0
    assert len(expected["2.near_misses"]) == 8
    assert expected["3.end"].any(axis=(1, 2, 3)).all()
    assert {path.name for path in tmp_path.glob("*.npz")} >= {"search-process1.npz", "count-process1.npz"}


def test_a_process_that_fails_ends_the_others():
    statuses, messages = end(start(FAILS, "", (1, 1)))
    assert statuses == [1, 1]
    assert "told to fail" in messages[1]
    assert "OtherStopped: process 1 has ended" in messages[0]


@pytest.mark.parametrize("killed", [0, 1])
def test_nobody_waits_for_a_process_that_was_killed(tmp_path, killed):
    """The other ends at once, on one line; started again, they count what one counts."""
    begun = time.monotonic()
    statuses, messages = end(start(KILLED.replace("KILLED", str(killed)), tmp_path, (1, 1)))
    assert time.monotonic() - begun < 60
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] == 1
    last = [line for line in messages[1 - killed].splitlines() if "evaluations" not in line]
    assert last == [f"stopped: process {killed} has died; start all of them again, and they go on from what was saved"]
    statuses, messages = end(start(WHOLE, tmp_path, (1, 1)))
    assert statuses == [0, 0], messages
    expected, found = tallies(), read_arrays(tmp_path / "0.npz")
    for name in ("0.num_detected", "0.num_chains", "1.num_detected", "2.hits"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_one_process_gathers_itself():
    arrays = {"a": np.arange(3)}
    assert gather(arrays) == [arrays]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", None, None), "--coordinator: got ''"),
        (("somewhere", 2, 0), "--coordinator: got 'somewhere', expected HOST:PORT with a port"),
        (("127.0.0.1:1", None, 0), "--num_processes, --process_id: got None, 0"),
        (("127.0.0.1:1", 2, 2), "--num_processes, --process_id: got 2, 2"),
        (("127.0.0.1:1", 2, -1), "--num_processes, --process_id"),
        (("auto", None, None), "--coordinator: got .*fix: give --coordinator=HOST:PORT"),
    ],
)
def test_bad_connections_are_refused(given, message):
    with pytest.raises(RequestError, match=message):
        connect(*given)


@pytest.mark.slow
def test_two_processes_share_the_chains_of_a_run(smoke, environment, tmp_path):
    """Of a finished run the counts are made again by two; all is as it was but what idle slots cost."""
    workdir = tmp_path / "run"
    shutil.copytree(smoke[0], workdir)
    pictures = ("samples/count.npz", "samples/search.npz")
    for name in ("count.json", "search.json", *pictures):
        (workdir / name).unlink()
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--workdir={workdir}"]
    processes = [
        subprocess.Popen(
            command(*flags, f"--process_id={i}"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]  # fmt: skip
    statuses, messages = end(processes)
    assert statuses == [0, 0], messages
    assert "score: done already" in messages[0]
    assert "count, process 1: " in messages[1]
    assert "VERDICT" not in messages[1]
    for name in ("count.json", "search.json"):
        found, expected = (json.loads((directory / name).read_text()) for directory in (workdir, smoke[0]))
        for content in (found, expected, found.get("oracle", {}), expected.get("oracle", {})):
            content.pop("executed", None)
            content.pop("digest", None)
        assert found == expected
    for name in pictures:
        found, expected = (read_arrays(directory / name) for directory in (workdir, smoke[0]))
        for part, values in expected.items():
            np.testing.assert_array_equal(found[part], values, err_msg=part)
    assert not list((workdir / "partial").glob("*"))
