"""The command line as a user types it: one real run of every stage, and what goes wrong around it."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fpjax import cli
from fpjax.core.errors import RequestError
from fpjax.data.phantom import phantom_images

from .conftest import RESULTS, ROOT, launch, medmnist
from .data_sets import write_folder


def test_all_stages_run_and_end_with_the_verdict(smoke):
    workdir, done = smoke
    assert done.stdout.startswith("VERDICT: ")
    for text in ("t'", "t50", "c_p+", "c_id+", "|q|", "Tests of the model", "tolerance", "bits/dim", "sensitivity"):
        assert text in done.stdout, text
    assert {path.name for path in workdir.iterdir()} >= {
        *RESULTS, "config.json", "report.json", "report.html", "metrics.jsonl", "figures", "samples", "checkpoints",
    }  # fmt: skip
    assert not list((workdir / "partial").glob("*.npz"))
    report = json.loads((workdir / "report.json").read_text())
    assert [test["row"] for test in report["tests"]] == [0, 1]  # two members, each with tests of its own
    assert [target["member"] for target in report["targets"]] == [True, True, False, False]
    assert len(report["model"]["looks"][0]["controls"]) == 3
    assert [path.name for path in workdir.glob("samples/score_*")] == ["score_40.npz"]
    assert (workdir / "figures" / "on_the_way.png").is_file()
    assert not list(workdir.rglob(".*.tmp"))
    html = (workdir / "report.html").read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("data:image/png;base64,") >= 5


def test_files_of_flags_are_read_as_the_command_line_is(environment, tmp_path):
    flags, outer = tmp_path / "flags", tmp_path / "outer"
    os.mkfifo(tmp_path / "pipe.py")
    outer.write_text(f"# these\n\n  --flagfile={flags}\n// and\n--dry_run\n")
    for config in ("/dev/zero", str(tmp_path / "pipe.py")):
        flags.write_text(f"--config={config}\n")
        for given in ([f"--flagfile={outer}"], ["--flagfile", str(outer)]):
            with pytest.raises(RequestError, match=f"--config={config}: got no plain file, expected a file of at most"):
                cli._with_paths(cli._with_flagfiles(["launch.py", *given]))
    flags.write_text("--config=smoke\n")
    command = [sys.executable, str(ROOT / "launch.py"), "--flagfile=~/outer", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "to do" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.nonsense=1"], "--config.nonsense: got a field that this config does not have"),
        (["--config=smoke", "--config.data.sied=3"], "--config.data.sied: got a field .*; fix: one like it is side"),
        (
            ["--config=configs/phantm.py"],
            "--config=configs/phantm.py: got No such file or directory, expected a file of at most 1 MiB, or one of .*phantom",
        ),
        (["--config=/nowhere/mine.py"], "--config=/nowhere/mine.py: got No such file or directory"),
        (["--config=phantm"], "--config=phantm: got a name that is not known here, .*phantom"),
    ],
)
def test_a_mistyped_config_or_field_is_one_plain_line(environment, flags, words):
    done = launch(environment, *flags, "--dry_run")
    assert done.returncode == 2
    assert re.fullmatch(f"error: {words}.*\n", done.stderr)
    assert not set(done.stderr) & set("\\\x1b")


@pytest.mark.parametrize(("side", "fix"), [(17, "set data.side to 16, or"), (31, "set data.side to 30, or")])
def test_the_side_that_a_message_names_fits_the_network(environment, tmp_path, side, fix):
    flags = [f"--config={ROOT / 'configs' / 'phantom.py'}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    done = launch(environment, *flags, f"--config.data.side={side}")
    assert done.returncode == 2
    assert f"image side: got {side}x{side}, expected multiples of" in done.stderr
    assert fix in done.stderr
    fits = f"--config.data.side={fix.split()[3].rstrip(',')}"
    assert launch(environment, *flags, fits).returncode == 0


def test_a_name_without_a_config_flag_reads_the_default_config(environment):
    """Where `launch` gives no config, as a user who only types fields."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--config.nonsense=1"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config.nonsense: got a field")


def test_what_is_drawn_is_printed(environment, tmp_path):
    write_folder(tmp_path / "images", phantom_images(60, side=28, seed=0))
    (tmp_path / "images" / "059.png").rename(tmp_path / "images" / "059.webp")
    flags = [
        f"--config={ROOT / 'configs' / 'folder.py'}",
        f"--config.data.path={tmp_path / 'images'}",
        "--stage=data",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = launch(environment, *flags)
    assert done.returncode == 0, done.stderr
    assert (
        "data: no val and no test given: 6 val and 6 test images drawn at random from the 59 given as train"
        in done.stderr
    )
    assert "data: images in formats that are not read: 1 png" in done.stderr
    assert json.loads((tmp_path / "run" / "data.json").read_text())["identity"]["details"]["skipped"] == {"png": 1}


def test_results_are_plain_counts_without_times_paths_or_users(smoke):
    workdir, _ = smoke
    for name in (*RESULTS, "config.json", "report.json"):
        text = (workdir / name).read_text()
        content = json.loads(text)
        assert content["schema_version"] == 4
        assert "wall_s" not in text
        assert "directory" not in content.get("config", {}).get("data", {})
    # No file names a path outside the run, a machine or a user; images lie in samples/, figures/ and report.html alone.
    strangers = [str(workdir), str(ROOT), str(Path.home()), getpass.getuser() + "@"]
    # A short one would stand in any text.
    strangers += [socket.gethostname()] * (len(socket.gethostname()) > 5)
    for path in workdir.rglob("*"):
        for stranger in strangers if path.is_file() else ():
            assert stranger.encode() not in path.read_bytes(), (path, stranger)
    search = json.loads((workdir / "search.json").read_text())
    assert all(isinstance(n, int) for n in search["num_detected"])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} >= {"data", "score", "count", "search", "likelihood", "report"}


def test_a_second_call_computes_nothing_and_reports_the_same(smoke, environment):
    workdir, first = smoke
    before = {name: (workdir / name).stat().st_mtime_ns for name in RESULTS}
    report = (workdir / "report.json").read_bytes()
    again = launch(environment, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done already") == len(RESULTS)
    assert {name: (workdir / name).stat().st_mtime_ns for name in RESULTS} == before
    assert (workdir / "report.json").read_bytes() == report
    # The log, whose digest is in the manifest, has a line more.
    assert again.stdout.rpartition(", SHA-256 ")[0] == first.stdout.rpartition(", SHA-256 ")[0] != ""


def test_report_without_member_images(smoke, environment, tmp_path):
    shutil.copytree(smoke[0], tmp_path / "run")
    full = (tmp_path / "run" / "report.html").stat().st_size
    done = launch(environment, f"--workdir={tmp_path / 'run'}", "--stage=report", "--config.report.show_members=False")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "run" / "report.html").read_text()
    assert len(html) < full
    assert 'alt="Targets' not in html
    # What is left are curves: no figure of the run holds an image of a member, nor a sample that could be one.
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert not figures & {"targets.png", "samples.png", "hits.png", "on_the_way.png"}


def test_dry_run_shows_the_plan_and_writes_nothing(environment, tmp_path):
    done = launch(environment, f"--workdir={tmp_path / 'run'}", "--dry_run", "--stage=data,score")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    assert '"num_steps": 60' in done.stdout
    assert "parameters of the score network" in done.stdout
    assert "FLOPs of one evaluation" in done.stdout
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    assert "to do" in lines["score"]
    assert "not asked for" in lines["search"]
    # 48 samples of 10 steps and 4 x 16 chains from level 1.
    assert "544 evaluations" in lines["count"]


@pytest.mark.slow
def test_canaries_are_audited_as_members_and_held_out_targets(environment, tmp_path):
    none = [f"--config.data.{name}=0" for name in ("num_members", "num_controls", "num_count_controls")]
    flags = [*none, "--config.data.canaries=10", "--config.data.num_train=12", "--config.audit.canary_score=t50"]
    done = launch(environment, f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["canaries"]["score"] == "t50"
    assert report["canaries"]["num_in"] + report["canaries"]["num_out"] == 10 == len(report["targets"])
    assert report["canaries"]["num_in"] == len(report["tests"])
    assert "AUROC" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stge=data"], "stge"),
        (["--config.audit.count_level=0.02"], "audit.count_level + audit.t50_level: got 0.02 + 0.04"),
        (["--config.count.looks=(48, 24)"], "count.looks: got (48, 24)"),
        (["--config.data.num_count_controls=900"], "got 903, expected at most"),
        (["--config.data.canaries=12"], "canaries or a fixed number of members"),
        (
            ["--stage=data,train"],
            "--stage: got 'train', expected one of benchmark, bound, check, classifiers, count, data",
        ),
        (["word"], "argument 'word'"),
        (["--config=configs/no_such.py"], "no_such.py"),
        (["--config=no_such"], "--config=no_such: got a name that is not known here, expected a path"),
        (
            ["--config=configs/retinamnist.py"],
            "one of configs/medmnist.py now, expected its name; fix: --config=retina",
        ),
        (["--config=medmnist:octopus"], "--config=medmnist:NAME: got 'octopus', expected one of bloodmnist"),
        (["--config.typo=1"], "typo"),
        (["--config.score.num_stpes=1"], "num_stpes"),
        (["--config.score.num_steps=-3"], "score.num_steps: got -3"),
        (["--config.score.num_steps=many"], "many"),
        (["--config.search.member_levels=11"], "search.member_levels: got 11"),
        (["--config.data.side=4", "--config.data.num_members=40"], "data.num_members"),
        (["--config.data.num_pool=3"], "expected"),
        (["--config.data.source=medmnist", "--config.data.name=octopus"], "data.name: got 'octopus'"),
        (
            ["--config.data.source=medmnist", "--config.data.side=28", "--config.data.download=False"]
            + ["--config.data.directory=/nonexistent"],
            "pathmnist.npz",
        ),
        (
            ["--config.model.channels=(8, 8)", "--config.model.attention=(False, False)", "--config.data.side=9"],
            "image side",
        ),
        (["--stage=search"], "got no such file"),
    ],
)
def test_bad_requests_are_one_line_and_exit_status_2(environment, tmp_path, flags, message):
    done = launch(environment, f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--config.typo=1", "--config.score.num_stpes=1", "--config.score.num_steps.x=1"])
def test_a_mistyped_field_of_the_default_config_is_refused_too(environment, tmp_path, flag):
    """As a user types it, without naming a config."""
    line = [sys.executable, str(ROOT / "launch.py"), f"--workdir={tmp_path / 'run'}", flag]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert flag.split("=")[0].rsplit(".", 1)[1] in lines[0]
    assert not (tmp_path / "run").exists()


def test_workdir_of_another_config_or_of_something_else_is_refused(smoke, environment, tmp_path):
    done = launch(environment, f"--workdir={smoke[0]}", "--config.score.num_steps=61")
    assert done.returncode == 2
    assert "score.num_steps = 60" in done.stderr
    (tmp_path / "thesis.tex").write_text("mine")
    done = launch(environment, f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "other things in it" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_damaged_files_of_a_run_are_named(smoke, environment, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(smoke[0], workdir)
    good = (workdir / "search.json").read_bytes()
    for content, message in (
        (good[:50], "search.json: got an unreadable file"),
        (good.replace(b'"schema_version": 4', b'"schema_version": 99'), "schema version 99"),
    ):
        (workdir / "search.json").write_bytes(content)
        done = launch(environment, f"--workdir={workdir}")
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
    # Deleting it, as advised, computes it again, to the same bytes.
    (workdir / "search.json").unlink()
    assert launch(environment, f"--workdir={workdir}").returncode == 0
    assert (workdir / "search.json").read_bytes() == good


@pytest.mark.slow
def test_a_real_file_is_audited_by_checksum(environment, tmp_path):
    source = medmnist("breastmnist")
    flags = [
        "--config.data.source=medmnist",
        "--config.data.side=28",
        "--config.data.download=False",
        "--config.data.name=breastmnist",
        f"--config.data.directory={tmp_path}",
        "--stage=data",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = launch(environment, *flags)
    assert done.returncode == 2
    shutil.copy(source, tmp_path / "breastmnist.npz")
    assert launch(environment, *flags).returncode == 0
    identity = json.loads((tmp_path / "run" / "data.json").read_text())["identity"]
    assert identity["details"]["md5"] == "750601b1f35ba3300ea97c75c52ff8f6"
    broken = bytearray(source.read_bytes())
    broken[1000] ^= 1
    (tmp_path / "breastmnist.npz").write_bytes(broken)
    done = launch(environment, *flags)
    assert done.returncode == 2
    assert "MD5" in done.stderr or "md5" in done.stderr
