"""Power that fails, and kills of one of two processes: what was not on the disk is not counted, and nothing is lost."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.checkpoints import Checkpoints
from fpjax.core.errors import RequestError

from .conftest import RESULTS, launch
from .test_interruptions import start
from .test_processes import free_port


@pytest.mark.slow
def test_one_of_two_processes_killed_again_and_again_they_end_with_the_same_counts(smoke, environment, tmp_path):
    """kill -9 of either, at random moments of the stages that both share; the other ends by itself each time."""
    rng, kills = random.Random(2), 0
    while kills < 12:
        if not (tmp_path / "run").exists() or (tmp_path / "run" / "bound.json").exists():
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(smoke[0], tmp_path / "run")
            for name in ("count", "search", "bound"):
                (tmp_path / "run" / f"{name}.json").unlink()
        both = start_two(environment, tmp_path / "run")
        time.sleep(rng.uniform(0, 6))
        victim = rng.randrange(2)
        both[victim].kill()
        messages = [process.communicate(timeout=120)[1] for process in both]
        killed = both[victim].returncode == -signal.SIGKILL
        kills += killed
        other = both[1 - victim].returncode
        assert other in ((1, 2, 0) if killed else (0,)), messages
        assert "Traceback" not in messages[1 - victim]
    both = start_two(environment, tmp_path / "run")
    messages = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    for name in ("count.json", "search.json", "bound.json"):
        found, expected = (json.loads((directory / name).read_text()) for directory in (tmp_path / "run", smoke[0]))
        for content in (found, expected, found.get("oracle", {}), expected.get("oracle", {})):
            for part in ("executed", "digest", "inputs"):  # what idle slots cost, and what that changes
                content.pop(part, None)
        assert found == expected
    assert not list((tmp_path / "run" / "partial").glob("*"))


def start_two(environment, workdir):
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--coordinator_timeout=8"]
    return [start(environment, workdir, *flags, f"--process_id={i}") for i in range(2)]


@pytest.mark.slow
def test_power_that_fails_costs_no_more_than_what_was_not_sealed(smoke, environment, tmp_path):
    """After a kill in training, any one file that was not brought to the disk is cut: the same command goes on."""
    killed = tmp_path / "killed"
    shutil.copytree(smoke[0], killed)
    for name in RESULTS[RESULTS.index("score.json") :]:
        (killed / name).unlink(missing_ok=True) if name != "classifiers.json" else None
    newest = next(killed.glob("checkpoints/score-*/60"))
    newest.parent.with_name(f"{newest.parent.name}-60.json").unlink()
    files = sorted((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for file in (files[0], files[len(files) // 2], files[-1], killed / "metrics.jsonl"):
        workdir = tmp_path / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(killed, workdir)
        os.truncate(workdir / file.relative_to(killed), file.stat().st_size // 2)
        done = launch(environment, f"--workdir={workdir}", "--stage=data,classifiers,score")
        assert done.returncode == 0, done.stderr
        assert "checkpoint at step 60: got one that was not written to its end; trains on from " in done.stderr
        assert (workdir / "score.json").read_bytes() == (smoke[0] / "score.json").read_bytes()


def test_a_checkpoint_counts_once_it_is_sealed_and_whole(tmp_path, capsys):
    """Any file of the newest cut, gone or changed, or its seal: the one before is taken, and that is said."""
    state = {"a": jnp.arange(300.0), "b": jnp.zeros(3)}
    with contextlib.closing(Checkpoints(tmp_path / "whole" / "score")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {name: value + step for name, value in state.items()})
    whole = tmp_path / "whole"
    files = [path for path in [*(whole / "score" / "2").rglob("*"), whole / "score-2.json"] if path.is_file()]
    assert len(files) > 5
    for file in files:
        for spoil in (lambda p: os.truncate(p, p.stat().st_size // 2), os.unlink, lambda p: p.write_bytes(b"other")):
            if not file.stat().st_size and spoil is not os.unlink:
                continue
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(whole, tmp_path / "copy")
            spoil(tmp_path / "copy" / file.relative_to(whole))
            with contextlib.closing(Checkpoints(tmp_path / "copy" / "score")) as checkpoints:
                with pytest.raises(RequestError, match="checkpoint at step 2"):
                    checkpoints.restore(state)
                checkpoints.drop_damaged()
                assert "trains on from step 1" in capsys.readouterr().err
                assert checkpoints.latest_step == 1
                np.testing.assert_array_equal(checkpoints.restore(state)["a"], state["a"] + 1)
                checkpoints.save(2, state)
                assert checkpoints.latest_step == 2
