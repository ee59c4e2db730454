"""What is set outside of the program changes nothing: JAX's variables, a notebook's Matplotlib, `~` in paths."""

import os
import shutil
import subprocess
import sys

import matplotlib
import pytest

from fpjax.core.errors import RequestError
from fpjax.core.paths import local_path
from fpjax.core.store import read_json
from fpjax.report import figures
from fpjax.run import pipeline

from .conftest import RESULTS, ROOT, command, launch
from .test_config import config_of

FOREIGN = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_DEBUG_NANS": "1",
}


@pytest.mark.slow
def test_a_run_under_foreign_settings_of_jax_is_the_same(smoke, environment, tmp_path):
    """Some made it crash after all the training, some trained other weights and said nothing."""
    done = launch(environment | FOREIGN, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    for name in RESULTS:
        assert (tmp_path / "run" / name).read_bytes() == (smoke[0] / name).read_bytes(), name
    said = [line for line in done.stderr.splitlines() if line.startswith("not followed")]
    assert len(said) == 1
    assert "jax_enable_x64=True" in said[0]
    assert "jax_numpy_dtype_promotion=strict" in said[0]


def test_flags_of_the_compiler_are_recorded_without_paths(environment, tmp_path):
    env = environment | {"XLA_FLAGS": f"--xla_cpu_enable_fast_min_max=true --xla_dump_to={tmp_path}/dump"}
    assert launch(env, f"--workdir={tmp_path / 'run'}", "--stage=data").returncode == 0
    assert (
        read_json(tmp_path / "run" / "config.json")["provenance"]["XLA_FLAGS"] == "--xla_cpu_enable_fast_min_max=true"
    )


@pytest.mark.parametrize(("platform", "package"), [("cuda", "jax[cuda12]"), ("tpu", "jax[tpu]"), ("nowhere", "unset")])
def test_a_platform_that_is_not_here_is_one_line(environment, tmp_path, platform, package):
    done = launch(environment | {"JAX_PLATFORMS": platform}, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error")] == lines[-1:]
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith(f"error: JAX_PLATFORMS={platform}: got ")
    assert package in lines[-1]
    assert not (tmp_path / "run").exists()


def test_a_notebooks_matplotlib_changes_no_figure(smoke, environment, tmp_path):
    workdir = shutil.copytree(smoke[0], tmp_path / "run")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.dpi: 30\nfigure.facecolor: red\nfont.size: 30\n")
    before = {path.name: path.read_bytes() for path in [*workdir.glob("figures/*.png"), *workdir.glob("report.*")]}
    env = environment | {"MPLBACKEND": "module://nowhere.to.be.found", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    done = launch(env, f"--workdir={workdir}", "--stage=report")
    assert done.returncode == 0, done.stderr
    assert len(before) > 6
    for path in [*workdir.glob("figures/*.png"), *workdir.glob("report.*")]:
        assert path.read_bytes() == before[path.name], path.name


def test_the_backend_that_a_notebook_named_is_still_named_afterwards():
    script = "import os, fpjax.report; assert os.environ['MPLBACKEND'] == 'module://nowhere'"
    subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"MPLBACKEND": "module://nowhere"}, check=True, cwd=ROOT
    )


def test_the_answer_is_written_before_the_pictures(smoke, tmp_path, monkeypatch):
    workdir = shutil.copytree(smoke[0], tmp_path / "run")
    (workdir / "report.json").unlink()

    def fails(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(figures.Figure, "savefig", fails)
    with pytest.raises(RuntimeError, match="no fonts"):
        pipeline.run_audit(config_of("smoke"), workdir=str(workdir), stages=["report"])
    assert read_json(workdir / "report.json")["verdict"]
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]


def test_a_tilde_in_a_flag_is_the_home_directory(environment, tmp_path):
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    (home / "mine.py").write_text(
        "from fpjax.configs import smoke\n\n\ndef get_config():\n    return smoke.get_config()\n"
    )
    env = environment | {"HOME": str(home)}
    done = launch(env, "--config=~/mine.py", "--workdir=~/runs/one", "--stage=data", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert (home / "runs" / "one" / "data.json").is_file()
    assert list(cwd.iterdir()) == []


def test_a_tilde_in_a_field_is_the_home_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FPJAX_DATA", "~/there")
    cases = [
        ("smoke", {"data.source": "folder", "data.path": "~/there"}, "got no images"),
        (
            "import_diffusers",
            {"data.source": "phantom", "score.path": "~/there"},
            f"{tmp_path}/there/config.json: got no such file",
        ),
        ("smoke", {"classifiers.path": "~/there"}, "got a directory without trained classifiers"),
        ("breastmnist_small", {"data.directory": "~/there"}, f"no file breastmnist.npz in {tmp_path}/there"),
        ("breastmnist_small", {}, f"no file breastmnist.npz in {tmp_path}/there"),
    ]
    for name, fields, message in cases:
        config = config_of(name)
        config.data.download = False
        for field, value in fields.items():
            section, key = field.split(".")
            config[section][key] = value
        monkeypatch.chdir(tmp_path)
        assert pipeline.main(config, workdir=str(tmp_path / "run"), dry_run=True) == 2
        assert message in capsys.readouterr().err


def test_the_home_of_nobody_is_refused(environment, tmp_path):
    with pytest.raises(RequestError, match=r"data.path: got '~nobody-at-all/x', expected .*; fix: write it out"):
        local_path("data.path", "~nobody-at-all/x")
    done = launch(environment, "--workdir=~nobody-at-all/x", "--dry_run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir: got '~nobody-at-all/x'")


def test_a_terminal_without_the_letters_gets_them_written_out():
    program = "from fpjax import cli; cli.app.run = lambda *_, **__: cli.show('Zürich \\x1b[2J'); cli.run()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Z\\xfcrich \\x1b[2J\n"


def test_too_little_address_space_is_one_line(environment, tmp_path):
    program = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_AS, (1500 * 2**20,) * 2)"
    limited = [sys.executable, "-c", f"{program}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
    done = subprocess.run(
        [*limited, *command(f"--workdir={tmp_path / 'run'}")[1:]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ulimit -v: got 1.5 GiB, expected at least 4 GiB")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_ignored_interrupt_stays_ignored_and_tests_run_where_it_is():
    """As in the background of a script, where SIGINT is ignored from the start."""
    ignored = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable]
    script = (
        "import os, signal; from fpjax.core import progress\n"
        "with progress.stop_on_signals(): os.kill(os.getpid(), signal.SIGINT); assert not progress.stopping()"
    )
    subprocess.run([*ignored, "-c", script], cwd=ROOT, check=True, timeout=120)
    test = "tests/test_interruptions.py::test_signals_ask_first_and_interrupt_then"
    done = subprocess.run([*ignored, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", test], cwd=ROOT, timeout=300)
    assert done.returncode == 0
