"""What the check says before a run: findings at their edges, and a real one."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fpjax.core import store
from fpjax.run import benchmark, preflight, timing
from fpjax.run.config import make_config
from fpjax.run.stages import open_job
from fpjax.run.stages.likelihood import num_densities

from .conftest import launch
from .test_config import config_of


def findings(tmp_path, **sections):
    config = config_of("smoke")
    for section, values in sections.items():
        config[section].update(values)
    return {finding.what: finding for finding in preflight.examine(open_job(make_config(config), tmp_path / "run"))}


def test_tests_need_enough_held_out_targets(tmp_path):
    data = {"num_pool": 160, "num_members": 1, "num_controls": 24, "num_count_controls": 99, "num_spares": 0}
    found = findings(tmp_path, data=data)
    assert [found[what].grade for what in ("count test", "t50 test")] == ["ok", "ok"]
    weak = findings(tmp_path, data=data | {"num_controls": 23, "num_count_controls": 98})
    assert [weak[what].grade for what in ("count test", "t50 test")] == ["weak", "weak"]
    assert "set data.num_controls to 24" in weak["t50 test"].text
    assert "set data.num_count_controls to 99" in weak["count test"].text
    # Four of twenty can be told apart by the sum of their ranks; two looks halve the level.
    four = data | {"num_members": 4, "num_controls": 16, "num_count_controls": 16}
    assert findings(tmp_path, data=four)["count test"].grade == "ok"
    looks = findings(tmp_path, data=data, count={"num_samples": 48, "looks": (24, 48)})
    assert looks["count test"].grade == "weak"


def test_the_number_of_samples_it_advises_is_enough(tmp_path):
    found = findings(tmp_path, count={"num_samples": 10})["counts"]
    assert found.grade == "weak"
    advised = int(found.text.rsplit(" ", 1)[1].replace(",", ""))
    assert findings(tmp_path, count={"num_samples": advised})["counts"].grade == "ok"
    assert findings(tmp_path, count={"num_samples": advised // 2})["counts"].grade == "weak"
    stated = findings(tmp_path, count={"num_samples": 10}, audit={"tolerance": 0.9})["counts"]
    assert stated.grade == "ok"


def test_search_chains_against_the_floor(tmp_path):
    many = findings(tmp_path, search={"member_chains": 16})["search"]
    assert many.grade == "ok"
    few = findings(
        tmp_path, search={"member_chains": 1}, data={"num_train": 2, "num_controls": 1, "num_count_controls": 1}
    )
    assert few["search"].grade == "weak"


def test_disc_and_data_findings(tmp_path):
    found = findings(tmp_path)
    assert "32 train, 12 val, 24 test of 8x8x1" in found["data"].text
    assert "radius 1 pixels, 7.8 % of the image" in found["disc"].text  # 5 of 64 pixels
    assert found["contrast"].grade == "ok"
    assert "0 images without such a place were passed over" in found["contrast"].text
    assert findings(tmp_path, data={"min_contrast": 100})["contrast"].grade == "note"


def test_timing_counts_what_was_asked_for():
    found = timing.time_program(timing.Program(lambda a: a @ a, (jnp.ones((64, 64)),), 64))
    assert found.flops == pytest.approx(2 * 64**3, rel=0.05)
    assert found.bytes >= 2 * 4 * 64 * 64
    assert found.per_second == pytest.approx(64 / found.seconds)


def test_memory_grows_by_what_the_batch_adds():
    found = timing.Timing(8, 1.0, 0.0, 1.0, bytes=1000, temp_bytes=800)
    assert found.bytes_for(8) == 1000
    assert found.bytes_for(16) == 1800
    assert timing.duration(float("inf")) == "never, for want of memory"


def test_predictions_scale_with_the_work(tmp_path):
    config = config_of("smoke")
    run = open_job(make_config(config), tmp_path / "run")
    timings = dict.fromkeys(
        ("evaluation", "training", "classifier training", "detection", "density"),
        timing.Timing(10, 1.0, 0.0, 1.0, 0),
    )
    before = benchmark.predict(run, timings)
    assert before["score"][0] == pytest.approx(60 * config.score.batch_size / 10 / jax.local_device_count())
    longer = dataclasses.replace(run.config.score, num_steps=120)
    run.config = dataclasses.replace(run.config, score=longer)
    after = benchmark.predict(run, timings)
    assert after["score"][0] == pytest.approx(2 * before["score"][0])
    assert after["count"] == before["count"]
    # Two members, their originals, two held-out targets; neighbours; training; held out; generated.
    assert num_densities(run) == 6 + 4 + 2 + 4 + 3


@pytest.mark.slow
def test_check_on_the_command_line(environment, tmp_path):
    done = launch(environment, f"--workdir={tmp_path / 'run'}", "--stage=check")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    grades = {line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert grades == {"ok", "note", "weak", "time"} or grades == {"ok", "weak", "time"}
    for what in (
        "data",
        "disc",
        "count test",
        "t50 test",
        "counts",
        "memory",
        "devices",
        "score",
        "likelihood",
        "bound",
        "all",
    ):
        assert f" {what} " in done.stdout, what
    assert "count test" in done.stdout.splitlines()[-1]
    strict = launch(environment, f"--workdir={tmp_path / 'run'}", "--stage=check", "--fail_on=inconclusive")
    assert strict.returncode == 3, strict.stderr


def test_fail_on_follows_the_verdict(smoke, environment):
    """The smoke run's verdict is inconclusive."""
    assert "VERDICT: INCONCLUSIVE" in smoke[1].stdout
    for fail_on, status in (("leak", 0), ("inconclusive", 3)):
        done = launch(environment, f"--workdir={smoke[0]}", "--stage=report", f"--fail_on={fail_on}")
        assert done.returncode == status, done.stderr


@pytest.mark.slow
def test_benchmark_prints_its_table_and_writes_it(environment, tmp_path):
    done = launch(environment, f"--workdir={tmp_path / 'run'}", "--stage=benchmark")
    assert done.returncode == 0, done.stderr
    found = store.read_json(tmp_path / "run" / "benchmark.json")
    names = [program["name"] for program in found["programs"]]
    assert names[:3] == ["evaluation"] * 3
    assert sorted(names[3:]) == ["classifier training", "density", "detection", "training"]
    assert [program["batch"] for program in found["programs"][:3]] == [1, 4, 16]
    for program in found["programs"]:
        assert program["per_second"] > 0
        assert program["teraflops"] > 0
        assert program["name"] in done.stdout
    assert set(found["predicted_s"]) == {"score", "classifiers", "count", "search", "likelihood", "bound"}
    # The directory belongs to the config, and the audit may go on in it.
    assert launch(environment, f"--workdir={tmp_path / 'run'}", "--stage=data").returncode == 0
