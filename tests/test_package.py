"""The wheel: what is in it, and that it works where there is no checkout."""

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import RESULTS, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the checkout, without the network."""
    pytest.importorskip("hatchling")
    where = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", where, ROOT]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = where.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Directory with the wheel's files, and a function that runs its console script from an empty one."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    line = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", site, wheel]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    def run(*flags):
        env = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
        line = [sys.executable, site / "bin" / "fpjax", *flags]
        return subprocess.run(line, cwd=empty, env=env, capture_output=True, text=True, timeout=570)

    return site, run


def test_every_file_of_the_package_and_every_config_is_in_the_wheel(wheel):
    done = subprocess.run(["git", "ls-files", "fpjax", "configs"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    files = {name if name.startswith("fpjax/") else f"fpjax/{name}" for name in done.stdout.split()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {name for name in files if (ROOT / name).is_file() or (ROOT / name.removeprefix("fpjax/")).is_file()}
    assert there <= names
    assert {name.split("/")[0] for name in names} == {"fpjax"}  # no other name at the top level


def test_metadata_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(name))
        (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "fpjax = fpjax.cli:run" in archive.read(scripts).decode()
    assert fields["Name"] == "fpjax"
    for field in ("Version", "Summary", "License-Expression", "License-File", "Author", "Keywords"):
        assert fields[field], field
    assert fields["Requires-Python"] == ">=3.11"
    assert len(fields.get_all("Classifier")) >= 5
    core = [line for line in fields.get_all("Requires-Dist") if "extra ==" not in line]
    for heavy in ("torch", "tensorflow", "medmnist", "diffusers", "pytest", "jax-privacy"):
        assert not any(line.lower().startswith(heavy) for line in core), heavy


def test_the_console_script_knows_its_configs_by_name_from_any_directory(installed, tmp_path):
    site, run = installed
    assert run("--help").stdout.splitlines()[2].startswith("fpjax ")
    done = run("--config=smoke", "--dry_run", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert '"name": "smoke"' in done.stdout
    code = "import fpjax, fpjax.configs.medmnist as m; print(fpjax.__file__, m.get_config('retinamnist').data.name)"
    env = os.environ | {"PYTHONPATH": str(site)}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert said.stdout.split() == [str(site / "fpjax" / "__init__.py"), "retinamnist"]
    own = tmp_path / "own.py"
    own.write_text(
        "from fpjax.configs import smoke\n\n\ndef get_config():\n    config = smoke.get_config()\n"
        "    config.name = 'own'\n    return config\n"
    )
    assert '"name": "own"' in run(f"--config={own}", "--dry_run", f"--workdir={tmp_path / 'own'}").stdout


@pytest.mark.slow
def test_the_smoke_config_runs_from_the_wheel(installed, tmp_path):
    _, run = installed
    done = run("--config=smoke", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VERDICT: ")
    assert all((tmp_path / "run" / name).is_file() for name in (*RESULTS, "report.html", "report.json"))
    assert Path(tmp_path / "run" / "figures" / "search.png").is_file()
