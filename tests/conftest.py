import os

# Two CPU devices, so that sharding is exercised by every test; set before JAX starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
# The user's cache of compiled programs is not the tests' to fill.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# What should not happen shows where it came from.
os.environ["FPJAX_TRACEBACK"] = "1"

import fcntl
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fpjax.core.images import to_model
from fpjax.data.phantom import phantom_images

# Where it is ignored, as under nohup, tests and the processes that they start would never be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# Where MedMNIST's files are, for the tests that need them.
MEDMNIST = Path(os.environ.get("FPJAX_DATA") or ROOT.parent / "shared" / "data" / "medmnist").absolute()
RESULTS = ("data.json", "score.json", "classifiers.json", "count.json", "search.json", "likelihood.json", "bound.json")


def medmnist(name: str) -> Path:
    """A file of MedMNIST; the test that asks for one that is not there is skipped."""
    path = MEDMNIST / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {MEDMNIST}: set FPJAX_DATA to where it is (docs/troubleshooting.md)")
    return path


@pytest.fixture(scope="session")
def real_images() -> np.ndarray:
    """100 distinct images in model range: BreastMNIST where the file is there, phantoms otherwise."""
    path = MEDMNIST / "breastmnist.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            images = np.unique(file["train_images"], axis=0)[:100, :, :, None]
    else:
        images = phantom_images(100, side=28, seed=0)
    return to_model(images)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One CPU device, and one compilation cache for all the runs."""
    cache = tmp_path_factory.mktemp("cache")
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return env | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }


def command(*flags):
    default = (
        [] if any(flag.startswith("--config=") for flag in flags) else [f"--config={ROOT / 'configs' / 'smoke.py'}"]
    )
    return [sys.executable, str(ROOT / "launch.py"), *default, *flags]


def launch(environment, *flags, cwd=ROOT):
    return subprocess.run(command(*flags), env=environment, cwd=cwd, capture_output=True, text=True, timeout=570)


@pytest.fixture(scope="session")
def smoke(environment, tmp_path_factory):
    """A finished run: made by the first worker that asks for it, copied by the others."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    first, said = shared / "smoke_run", shared / "smoke_run.json"
    with (shared / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.is_file():
            done = launch(environment, f"--workdir={first}")
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    shutil.copytree(first, workdir)
    streams = [text.replace(str(first), str(workdir)) for text in json.loads(said.read_text())]
    return workdir, subprocess.CompletedProcess([], 0, *streams)
