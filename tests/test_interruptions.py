"""Kills, signals, full and read-only disks, two processes at once: nothing is lost, nothing half-written."""

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fpjax.core import metrics, progress, store
from fpjax.core.checkpoints import Checkpoints
from fpjax.core.errors import RequestError, StageError
from fpjax.core.files import write_bytes
from fpjax.run import pipeline

from .conftest import RESULTS, ROOT, command, launch
from .test_config import config_of

STAGES = ("data", "score", "classifiers", "count", "search", "likelihood", "bound", "report")


def start(environment, workdir, *flags):
    return subprocess.Popen(
        command(f"--workdir={workdir}", *flags), env=environment, cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(process, stage):
    """Reads the process's messages until the stage before `stage` has ended; False if the process ended."""
    if stage == "data":
        return True
    before = STAGES[STAGES.index(stage) - 1]
    return any(line.startswith(f"{before}: ") and ("done" in line or line.endswith(" s\n")) for line in process.stderr)


def same_results(workdir, other):
    for name in RESULTS:
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("count", "search"):
        found, expected = (store.read_arrays(directory / "samples" / f"{name}.npz") for directory in (workdir, other))
        assert found.keys() == expected.keys()
        for part, values in expected.items():
            np.testing.assert_array_equal(found[part], values, err_msg=part)
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
    assert not list((workdir / "partial").glob("*"))


def interrupt(environment, workdir, stage, delay, number):
    """Sends the signal `delay` seconds into a stage; the exit status."""
    with start(environment, workdir) as process:
        if wait_for(process, stage):
            time.sleep(delay)
        process.send_signal(number)
        process.stderr.read()
    return process.returncode


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(smoke, environment, tmp_path):
    """kill -9 at random moments of every stage, the same command again each time."""
    wall = {}
    for event in metrics.read_metrics(smoke[0] / "metrics.jsonl"):
        wall[event["stage"]] = event.get("wall_s", wall.get(event["stage"]))
    rng, kills = random.Random(1), 0
    for stage in (*STAGES, "data"):
        for _ in range(2):
            delay = rng.uniform(0, 3 if stage == "data" else 0.8 * wall[stage])
            kills += interrupt(environment, tmp_path / "run", stage, delay, signal.SIGKILL) == -signal.SIGKILL
    # Short stages were sometimes over before the signal came; no process ends within a second and a half.
    while kills < 28:
        delay = rng.uniform(0, 1.5)
        kills += interrupt(environment, tmp_path / "run", "data", delay, signal.SIGKILL) == -signal.SIGKILL
    assert launch(environment, f"--workdir={tmp_path / 'run'}").returncode == 0
    same_results(tmp_path / "run", smoke[0])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["score", "classifiers", "count", "likelihood", "bound"])
def test_a_signal_saves_and_ends_on_one_line(smoke, environment, tmp_path, stage):
    workdir = tmp_path / "run"
    if stage != "score":
        # Everything before the stage is done.
        shutil.copytree(smoke[0], workdir)
        for name in RESULTS[RESULTS.index(f"{stage}.json") :]:
            (workdir / name).unlink()
        for name in ("fingerprint", "identity") if stage == "classifiers" else ():
            for left in workdir.glob(f"checkpoints/{name}-*/"):
                shutil.rmtree(left)
    number = signal.SIGINT if stage == "count" else signal.SIGTERM
    with start(environment, workdir) as process:
        wait_for(process, stage)
        time.sleep(0.5)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped: ")
    assert "the same command goes on from here" in said
    assert launch(environment, f"--workdir={workdir}").returncode == 0
    same_results(workdir, smoke[0])


def test_signals_ask_first_and_interrupt_then():
    assert not progress.stopping()
    with progress.stop_on_signals():
        work = progress.Progress("work", 10, "parts")
        work.update(3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert progress.stopping()
        with pytest.raises(progress.Stopped, match="SIGTERM during work, at 4 of 10 parts"):
            work.update(4)
        work.update(10)  # done is done
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert not progress.stopping()
    with contextlib.suppress(KeyboardInterrupt):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Elsewhere than in the main thread signals cannot be taken, and the loops run as they are.
    seen = []
    thread = threading.Thread(
        target=lambda: [seen.append(True) for _ in [0] if progress.stop_on_signals().__enter__() is None]
    )
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.slow
def test_two_processes_on_one_directory(environment, tmp_path):
    with start(environment, tmp_path / "run") as process:
        wait_for(process, "score")
        second = launch(environment, f"--workdir={tmp_path / 'run'}")
        process.kill()
        process.stderr.read()
    assert second.returncode == 2
    assert f"process {process.pid} works in" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    # The dead process does not hold it.
    done = launch(environment, f"--workdir={tmp_path / 'run'}", "--stage=data")
    assert done.returncode == 0, done.stderr


def test_lock_is_let_go_and_reads_well(tmp_path, monkeypatch):
    with store.lock(tmp_path / "run"), pytest.raises(RequestError, match=f"process {os.getpid()} works in"):
        with store.lock(tmp_path / "run"):
            pass
    with store.lock(tmp_path / "run"):
        pass

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with store.lock(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="expected a directory to write to"), store.lock(tmp_path / "file"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_write_that_fails_is_said_and_loses_nothing(smoke, environment, tmp_path, limit):
    """No file may grow beyond `limit` bytes: config, metrics, checkpoints fail in turn, as on a full disk."""
    program = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    limited = [sys.executable, "-c", f"{program}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
    done = subprocess.run(
        [*limited, *command(f"--workdir={tmp_path / 'run'}")[1:]],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(("stopped: ", "error: ")), done.stderr
    assert "too large" in last or "could not be written" in last
    for path in (tmp_path / "run").glob("*.json"):
        store.read_json(path)
    assert launch(environment, f"--workdir={tmp_path / 'run'}").returncode == 0
    same_results(tmp_path / "run", smoke[0])


@contextlib.contextmanager
def mounted(directory, options):
    """A memory file system; skips where the system does not let us."""
    directory.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory]).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.slow
def test_full_disk(smoke, environment, tmp_path):
    """A real one: the run stops, and goes on where there is room."""
    with mounted(tmp_path / "disk", "size=2m") as disk:
        for _ in range(2):
            done = launch(environment, f"--workdir={disk / 'run'}")
            assert done.returncode == 1, done.stderr
            assert "Traceback" not in done.stderr
            assert done.stderr.splitlines()[-1].startswith("stopped: ")
            assert "disk space" in done.stderr.splitlines()[-1]
        shutil.copytree(disk / "run", tmp_path / "run")
    assert launch(environment, f"--workdir={tmp_path / 'run'}").returncode == 0
    same_results(tmp_path / "run", smoke[0])


@pytest.mark.slow
def test_read_only_directory(smoke, environment, tmp_path):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        shutil.copytree(smoke[0], disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for workdir in (disk / "run", disk / "new"):
            done = launch(environment, f"--workdir={workdir}")
            assert done.returncode == 2
            assert done.stderr == (
                "error: --workdir: got Read-only file system, expected a directory to write to; "
                "fix: choose another --workdir\n"
            )


def test_failing_writes_leave_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    store.write_json(path, {"a": 1})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: store.write_json(path, {"a": 2}),
        lambda: store.write_arrays(path, a=np.zeros(3)),
        lambda: write_bytes(path, b"x"),
    ):
        with pytest.raises(OSError, match="No space"):
            write()
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_checkpoint_that_cannot_be_written_names_the_last_good_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "score")
    checkpoints.save(1, {"a": np.zeros(3)})

    def full(*_, **__):
        raise RuntimeError("UNKNOWN: write failed\n[os_error_code='28']")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(StageError, match="step 2 could not be written .*; the last good one is at step 1; free disk"):
        checkpoints.save(2, {"a": np.zeros(3)})
    checkpoints.close()


@pytest.mark.slow
def test_weights_that_are_gone_or_new_make_results_stale(smoke, environment, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(smoke[0], workdir)
    # Trained again with the same seed the weights are the same, and so is all that was made from them.
    (workdir / "score.json").unlink()
    shutil.rmtree(next(workdir.glob("checkpoints/score-*/")))
    again = launch(environment, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert "count: done already" in again.stderr
    # A result that names other weights is computed again; on its own it is not taken for a result.
    content = json.loads((workdir / "count.json").read_text())
    for name in ("digest", "schema_version"):
        del content[name]
    content["inputs"]["score"] = "0" * 64
    content["num_fingerprint"] += 1
    store.write_json(workdir / "count.json", content)
    report = launch(environment, f"--workdir={workdir}", "--stage=report")
    assert report.returncode == 2
    assert "count.json: got a result made from other files" in report.stderr
    again = launch(environment, f"--workdir={workdir}")
    assert "count: made from other files than are here now; again" in again.stderr
    same_results(workdir, smoke[0])
    # Weights that are not those of score.json are refused.
    score = json.loads((workdir / "score.json").read_text())
    for name in ("digest", "schema_version"):
        del score[name]
    store.write_json(workdir / "score.json", score | {"weights_sha256": "0" * 64})
    (workdir / "count.json").unlink()
    refused = launch(environment, f"--workdir={workdir}", "--stage=count")
    assert refused.returncode == 2
    assert "checkpoints of score: got other weights" in refused.stderr


def test_a_terminal_sees_a_bar_and_a_file_sees_lines(monkeypatch, capsys):
    for live in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda live=live: live, raising=False)
        work = progress.Progress("work", 10, "parts", done=2)
        for done in (4, 10):
            work.update(done, f"{done} of them")
        said = capsys.readouterr().err
        assert ("\r" in said) == live
        assert "work: " in said
        assert "10/10" in said
        assert "10 of them" in said


def test_metrics_survive_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.MetricsLog(path).write("a", value=np.float32(1))
    path.write_bytes(path.read_bytes() + b'{"half')
    metrics.MetricsLog(path).write("b", value=float("nan"))
    lines = path.read_bytes().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["value"] == 1.0
    assert json.loads(lines[1])["value"] is None
    assert time.time() - json.loads(lines[1])["time"] < 60


@pytest.mark.extra
def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "tensorboard")
    for step in (10, 20):
        log.write("score", step=step, loss=1 / step, note="text")
    log._events.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("score/loss")] == [
        (10, pytest.approx(0.1)), (20, pytest.approx(0.05)),
    ]  # fmt: skip
    assert set(events.Tags()["scalars"]) == {"score/step", "score/loss"}


def test_tensorboard_that_is_not_installed_is_said_before_anything(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = config_of("smoke")
    config.report.tensorboard = True
    assert pipeline.main(config, workdir=str(tmp_path / "run")) == 2
    assert "pip install 'fpjax[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_other_images_are_never_judged_by_weights_that_did_not_see_them(smoke, environment, tmp_path):
    """data.json deleted and the run begun again on other images: trained again, from nothing."""
    images, flags = (
        tmp_path / "a.npy",
        ["--config.data.source=npz", "--stage=data,classifiers,score", f"--workdir={tmp_path / 'run'}"],
    )
    digests = []
    for seed in (1, 2):
        np.save(images, np.random.default_rng(seed).integers(0, 256, (60, 8, 8), dtype=np.uint8))
        done = launch(environment, f"--config.data.path={images}", *flags)
        assert done.returncode == 0, done.stderr
        score = json.loads((tmp_path / "run" / "score.json").read_text())
        digests.append(score["weights_sha256"])
        (tmp_path / "run" / "data.json").unlink()
    assert "score: made from other files than are here now; again" in done.stderr
    assert digests[0] != digests[1]
