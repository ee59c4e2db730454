"""Anything may stand in a config, on the command line and in a file: exit status 0, 2 or 3, one line, no traceback."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fpjax.core import metrics, store
from fpjax.core.errors import RequestError
from fpjax.run import pipeline
from fpjax.run.config import make_config
from fpjax.run.stages import open_job

from .conftest import RESULTS, ROOT, launch
from .test_config import config_of

DEFAULTS = config_of("default").to_dict()
FIELDS = [(section, name) for section, values in DEFAULTS.items() if isinstance(values, dict) for name in values]


def quick(examples):
    """The same examples each time, without a deadline."""
    unscoped = [HealthCheck.function_scoped_fixture]
    return settings(
        derandomize=True, deadline=None, database=None, max_examples=examples, suppress_health_check=unscoped
    )


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**3, 10**6, 10**9, 10**12, 10**30, -(10**12), 2**31, 2**63]),
    st.floats(allow_nan=True, allow_infinity=True),
)
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.sampled_from(["a\x00b", "a\nb", "../..", "/dev/null", "x" * 10_000, "phantom", "ancestral"]),
    st.lists(NUMBERS, max_size=4),
    st.lists(st.booleans(), max_size=4).map(tuple),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def one_line(capsys, status):
    """What a refused request has printed: nothing, and one line of what to do."""
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if status == 2:
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert len(lines[0]) < 2_000
    return err


@quick(150)
@given(changes=st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3))
def test_any_config_values_are_planned_or_refused(changes, capsys, tmp_path):
    config = config_of("smoke").to_dict()
    for (section, name), value in changes:
        config.setdefault(section, {})[name] = value
    status = pipeline.main(pipeline.ConfigDict(config), workdir=str(tmp_path / "run"), dry_run=True)
    assert status in (0, 2)
    one_line(capsys, status)
    assert not (tmp_path / "run").exists()


@quick(60)
@given(config=st.dictionaries(st.one_of(st.sampled_from(list(DEFAULTS)), st.text(max_size=5)), VALUES, max_size=4))
def test_any_sections_are_planned_or_refused(config, capsys, tmp_path):
    base = {
        "data": {"source": "phantom", "side": 8, "num_controls": 2, "num_count_controls": 2},
        "model": DEFAULTS["model"],
    }
    try:
        made = pipeline.ConfigDict(base | config)
    except (ValueError, TypeError, AttributeError, KeyError):
        return  # ml_collections itself says so, and launch.py on one line
    status = pipeline.main(made, workdir=str(tmp_path / "run"), dry_run=True)
    assert status in (0, 2)
    one_line(capsys, status)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "search.json"
    store.write_json(path, {"levels": [1, 2, 3], "rate": 0.5, "name": "phantom", "inputs": {"score": "ab"}})
    return path.read_bytes()


def refusal(function, *args):
    """Why a call is refused, or nothing; any other exception goes through."""
    try:
        function(*args)
    except RequestError as error:
        return str(error)
    return ""


DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "drop"]),
    st.integers(0, 10**6),
    st.integers(1, 255),
    st.binary(max_size=9),
)


def damaged(content, damage):
    """The content with one thing done to it."""
    kind, place, number, extra = damage
    place %= len(content)
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ number]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + extra + content[place:]
    return content[:place] + content[place + number :]


@quick(300)
@given(damage=DAMAGE)
def test_damaged_json_is_refused_or_reads_the_same(damage, result, tmp_path):
    path = tmp_path / "search.json"
    path.write_bytes(result)
    whole = store.read_json(path)
    path.write_bytes(damaged(result, damage))
    read = refusal(store.read_json, path) or store.read_json(path)
    assert read == whole or "search.json: got" in read  # where only blanks were touched it is the same


@quick(200)
@given(damage=DAMAGE)
def test_damaged_arrays_are_refused_or_read_the_same(damage, tmp_path):
    path = tmp_path / "count.npz"
    arrays = {"a": np.arange(40, dtype=np.int32), "b": np.zeros((3, 2), np.uint8)}
    store.write_arrays(path, **arrays)
    path.write_bytes(damaged(path.read_bytes(), damage))
    if refused := refusal(store.read_arrays, path):
        assert "count.npz: got" in refused
        return
    read = store.read_arrays(path)
    for name in arrays.keys() & read.keys():
        np.testing.assert_array_equal(read[name], arrays[name])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema_version": 1e999}', "null", "[]", "3", '"x"', '{"a": NaN}', ""]
)
def test_json_of_other_shapes(tmp_path, text):
    path = tmp_path / "count.json"
    path.write_text(text)
    with pytest.raises(RequestError, match="count.json: got"):
        store.read_json(path)


def test_metrics_with_garbage_are_read_around(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "score", "loss": 1}\n\xff\xfe\n[]\n{"stage": 3}\n' + b"[" * 100_000 + b"\n{}\n")
    assert metrics.read_metrics(path) == [{"stage": "score", "loss": 1}]
    assert metrics.read_metrics(tmp_path / "none") == []


CONFIGS = {
    "no python": "this is not python",
    "raises": "raise RuntimeError('no')",
    "no get_config": "x = 1",
    "no config": "def get_config():\n    return 3\n",
    "exits": "import sys\nsys.exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "recursion": "def get_config():\n    return get_config()\n",
    "memory": "x = [0] * 10**14",
    "nul": "x = '\x00'",
    "not utf-8": b"x = '\xff'",
    "never ends": "while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_no_config_is_one_line(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    # The limit is 8 s for users, and shorter here.
    program = "import sys; from fpjax import cli; cli.CONFIG_SECONDS = 1; cli._parse(sys.argv)"
    done = subprocess.run(
        [sys.executable, "-c", program, f"--config={path}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
def test_checkpoints_cut_short_or_flipped_are_named(smoke, environment, tmp_path):
    """Each file of the last checkpoint cut in the middle, and with a byte flipped in it."""
    files = sorted(
        p.relative_to(smoke[0]) for p in next(smoke[0].glob("checkpoints/score-*/60")).rglob("*") if p.is_file()
    )
    workdir = tmp_path / "run"
    for file in files:
        content = (smoke[0] / file).read_bytes()
        bad = damaged(content, ("flip", len(content) // 2, 255, b"")) if content else b"x"
        for changed in (content[: len(content) // 2], bad) if content else (bad,):
            shutil.copytree(smoke[0], workdir)
            (workdir / file).write_bytes(changed)
            run = open_job(make_config(config_of("smoke")), workdir)
            refused = refusal(lambda run: run.score_params, run)
            assert refused.startswith("checkpoint at step 60, "), file
            assert f"fix: delete {file.parents[len(file.parents) - 4]}" in refused
            shutil.rmtree(workdir)
    # One that is missing, and on the command line: the run goes on from the one before by itself, and says so.
    shutil.copytree(smoke[0], workdir)
    (workdir / files[-1]).unlink()
    next(workdir.glob("checkpoints/identity-*.json")).unlink()
    (workdir / "count.json").unlink()
    done = launch(environment, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "score: its checkpoints are missing or damaged; again, from those that are left" in done.stderr
    assert "checkpoint at step 60: got no file " in done.stderr
    assert "one that was not written to its end; trains on from " in done.stderr
    for name in RESULTS:
        assert (workdir / name).read_bytes() == (smoke[0] / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data.json", "count.json", "bound.json"])
def test_damaged_results_of_a_run_are_refused_by_every_stage(smoke, environment, tmp_path, name):
    workdir = tmp_path / "run"
    shutil.copytree(smoke[0], workdir)
    content = json.loads((workdir / name).read_text())
    content["schema_version"] = 99
    # Unreadable ones and ones without their keys, of every stage, are among the hostile inputs.
    for bad in (json.dumps(content).encode(), (workdir / name).read_bytes().replace(b"1", b"2", 1)):
        (workdir / name).write_bytes(bad)
        for stage in ("", "--stage=report"):
            done = launch(environment, f"--workdir={workdir}", *filter(None, [stage]))
            assert done.returncode == 2, (bad[:20], done.stderr)
            assert done.stderr.splitlines()[-1].startswith(f"error: {name}: got")
            assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_hostile_input_is_answered_in_one_line():
    """The program that makes them, hands each in, and looks at time, memory, answer and files (tests/hostile)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-5]) >= 150


def test_no_module_reads_the_environment_for_secrets():
    """Nothing names the user or the machine: the sources ask for neither."""
    for path in (ROOT / "fpjax").rglob("*.py"):
        text = path.read_text()
        for word in ("getpass", "gethostname", "os.getlogin", "platform.node", "uname"):
            assert word not in text, (path.name, word)
