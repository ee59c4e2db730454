"""The stages, in order: each reads the files of earlier ones and writes its own, whole or not at all.

A stage whose result file is there is skipped, unless that was made from other files than are there now; a run that was
interrupted goes on where it stopped. The work directory belongs to one config and to one process at a time, or to
several that share the chains: the first of them does everything else and writes every result. Results hold integer
counts and no times, so that equal runs give equal bytes.
"""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ..audit import verdict
from ..core.compilation import compile_seconds, use_compilation_cache
from ..core.environment import check_platform, computes_bfloat16, own_settings, recorded
from ..core.errors import RequestError, StageError, check, one_of
from ..core.files import is_temporary
from ..core.metrics import tensorboard_writer
from ..core.paths import local_path
from ..core.private import private_process
from ..core.processes import agree, connect, gather, num_processes, process_index, together
from ..core.progress import Stopped, stop_on_signals, stopping
from ..core.records import load, to_content
from ..core.store import LOCK, content_digest, lock, read_json, write_json
from ..core.terminal import refuse, say, show
from ..detectors.fitting import detector_mesh
from ..detectors.results import ClassifiersResult
from ..diffusion.results import ScoreResult
from ..diffusion.training import training_mesh
from ..models.kernels import kernels_work
from ..studies.count import count_work
from ..studies.search import search_work
from .aot import show_target
from .benchmark import show_benchmark
from .config import FREE_FIELDS, FREE_SECTIONS, Config, by_device, describe_config, make_config
from .job import Job
from .manifest import MANIFEST, read_signing_key, remove_manifest, sign_manifest, write_manifest
from .plan import show_plan
from .preflight import show_check
from .stage import Stage
from .stages import STAGES, open_job
from .targets import TARGETS
from .workdir import Begun


def _provenance() -> dict[str, Any]:
    """What ran, where; no path and no user."""
    packages = ("fpjax", "jax", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy", "scipy")
    root, commit = Path(__file__).resolve().parents[2], "unknown"
    if (root / ".git").exists():
        # Without git it stays unknown.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            described = ["git", "describe", "--always", "--dirty"]
            commit = subprocess.run(described, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    devices = [device.device_kind for device in jax.devices()]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": commit,
        "devices": f"{len(devices)} x {devices[0]}",
        **recorded(),
    }


def _work_directory(given: str) -> Path:
    """The directory of the run, there or not; RequestError if it cannot be one."""
    directory = local_path("--workdir", given)
    try:
        # As long as the names of checkpoints' files, below it.
        os.stat(directory / ("x" * 200))
    except (FileNotFoundError, NotADirectoryError):
        return directory
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--workdir={given[:60]}: got {getattr(error, 'strerror', None) or error}, expected a directory to write "
            "to; fix: choose another --workdir"
        ) from error
    return directory


def _refuse_strangers(workdir: Path) -> None:
    """Refuses a directory that is neither new nor that of a run."""
    try:
        own = workdir.is_dir() and all(path.name == LOCK or is_temporary(path) for path in workdir.iterdir())
        new = not (workdir.exists() or workdir.is_symlink())
        begun = (workdir / "config.json").is_file()
    except OSError as error:
        raise RequestError(
            f"--workdir: got {error.strerror}, expected a directory to write to; fix: choose another --workdir"
        ) from error
    check(
        begun or own or new,
        f"--workdir={workdir.name}",
        got="a file, or a directory with other things in it",
        expected="a new directory, or that of an earlier run",
        fix="choose another --workdir",
    )
    if begun:
        load(Begun, workdir / "config.json")


def _resolved(job: Job) -> dict[str, Any]:
    """What a run is: an imported model is what its files hold, not where they lie."""
    return describe_config(job.config, skip=FREE_FIELDS) | {
        "imported": job.imported and job.imported.sha256,
        "reused": job.reused and job.reused.weights_sha256,
    }


def _versions() -> dict[str, str]:
    """Of all that computes; devices may differ from process to process."""
    return {name: value for name, value in _provenance().items() if name != "devices"}


def _share(job: Job, first: dict[str, np.ndarray]) -> None:
    """Refuses a work directory that is not the one of process 0."""
    path = job.workdir / "config.json"
    same = path.is_file() and read_json(path)["digest"] == str(first["config"])
    check(
        same,
        f"--workdir={job.workdir.name}",
        got="another directory than that of process 0",
        expected="one that all processes share",
        fix="give the same --workdir to all, on a file system that all of them see",
    )


def _claim(job: Job) -> None:
    """Writes config.json, or checks that the directory belongs to this config."""
    workdir, path = job.workdir, job.workdir / "config.json"
    resolved = _resolved(job)
    if not path.is_file():
        write_json(path, {"config": resolved, "provenance": _provenance()})
        return
    begun = load(Begun, path)
    recorded, now = begun.config, _provenance()
    changed = [
        f"{name} {value}, now {now.get(name)}" for name, value in begun.provenance.items() if now.get(name) != value
    ]
    if changed:
        say(f"begun with {'; '.join(changed)}")
    for section, values in resolved.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            before = recorded.get(section)
            before = before.get(name) if isinstance(values, dict) and isinstance(before, dict) else before
            check(
                section in FREE_SECTIONS or before == value,
                f"--workdir={workdir.name}",
                got=f"a run with {section}{'.' if name else ''}{name} = {before!r}",
                expected=f"one with {value!r} as asked for now",
                fix="choose another --workdir, or ask for what it was begun with",
            )


def _resolve(config: ConfigDict, workdir: str, target: str) -> tuple[Config, Path]:
    """The settings and the directory of the run.

    "auto" stands for what the run was begun with, or else for what suits the device, or the target.
    """
    settings, asked = make_config(config), by_device(config)
    name = f"{settings.name}-{target}" if target else settings.name
    directory = _work_directory(workdir) if workdir else Path("runs") / name
    if target:
        auto = {"model.dtype": "bfloat16", "resnet.dtype": "bfloat16", "model.kernels": TARGETS[target].kernels}
        return make_config(config, auto=auto), directory
    device = jax.local_devices()[0]
    native = "bfloat16" if computes_bfloat16(device) else "float32"
    auto = {"model.dtype": native, "resnet.dtype": native}
    if "model.kernels" in asked:
        auto["model.kernels"] = "pallas" if device.platform == "gpu" and kernels_work() else "xla"
    if (directory / "config.json").is_file():
        begun = load(Begun, directory / "config.json")
        for name in asked:
            before = begun.section(name.split(".")[0]).get(name.split(".")[1], auto[name])
            if before != auto[name]:
                say(f"{name}: {before}, as this run was begun; on this device auto is {auto[name]}")
            auto[name] = before
    settings = make_config(config, auto=auto)
    for section in ("model", "resnet"):
        if getattr(settings, section).dtype == "bfloat16" and native != "bfloat16":
            say(f"{section}.dtype: bfloat16 is not native on {device.device_kind}: it is emulated, and slower")
    if settings.model.kernels == "pallas" and device.platform != "gpu":
        say(f"model.kernels: pallas is interpreted on {device.device_kind}, which is slow and for tests alone")
    return settings, directory


ALONE = ("check", "benchmark")
FAIL_ON = {"": (), "leak": (verdict.LEAK,), "inconclusive": (verdict.LEAK, verdict.INCONCLUSIVE)}


def run_audit(
    config: ConfigDict,
    *,
    workdir: str = "",
    stages: list[str] | None = None,
    dry_run: bool = False,
    fail_on: str = "",
    sign: str = "",
    target: str = "",
) -> bool:
    """Runs the stages that are asked for and not done yet, in their order; the report is always written anew.

    Args:
      config: of a file in configs/, with overrides.
      workdir: directory of the run; empty: runs/NAME.
      stages: names of `STAGES`, or one of `ALONE`; empty: all of `STAGES`.
      dry_run: print what would be done, and stop.
      fail_on: a key of `FAIL_ON`.
      sign: path of the private key that signs the manifest; empty: it is not signed.
      target: a key of `TARGETS`, that benchmark compiles for rather than timing this machine.

    Returns:
      Whether `fail_on` names the verdict, or what the check says that it must be.

    Raises:
      RequestError: config, data, stages or directory are not as they must be; nothing has been computed.
      StageError: a stage met something that it must not go on with.
      Stopped: a signal asked for it, and the state is saved.
    """
    if target:
        one_of("--target", target, TARGETS)
        check(
            stages == ["benchmark"],
            "--target",
            got=f"stages {','.join(stages or ['all'])}",
            expected="--stage=benchmark",
            fix="add it, or leave --target out",
        )
        # Whether its compiler is here.
        TARGETS[target].devices()
    settings, directory = _resolve(config, workdir, target)
    one_of("--fail_on", fail_on, FAIL_ON)
    for stage in stages or []:
        one_of("--stage", stage, (*(each.name for each in STAGES), *ALONE))
    check(
        len(stages or []) <= 1 or not set(stages or []) & set(ALONE),
        "--stage",
        got=",".join(stages or []),
        expected=f"{' or '.join(ALONE)} alone, or stages of the audit",
        fix="run it first, by itself",
    )
    check(
        not fail_on or not stages or bool({"report", "check"} & set(stages)),
        "--fail_on",
        got=f"stages {','.join(stages or [])}",
        expected="report among them, where the verdict is",
        fix="add report to --stage",
    )
    check(
        not sign or (not dry_run and (not stages or "report" in stages)),
        "--sign",
        got="--dry_run" if dry_run else f"stages {','.join(stages or [])}",
        expected="a run with the report among its stages, after which the files are signed",
        fix="add report to --stage, or leave it out",
    )
    key = read_signing_key(sign) if sign else None
    check(
        num_processes() == 1 or not (dry_run or set(stages or []) & set(ALONE)),
        "--coordinator",
        got=f"{num_processes()} processes for {'--dry_run' if dry_run else '--stage=' + ','.join(stages or [])}",
        expected="stages of the audit",
        fix="leave it out: one process tells",
    )
    wanted = [stage for stage in STAGES if not stages or stage.name in stages]
    job = open_job(settings, directory)
    _check_work(job, wanted, alone=bool(set(stages or []) & set(ALONE)))
    if settings.engine.compilation_cache:
        use_compilation_cache()
    if settings.report.tensorboard:
        tensorboard_writer()
    if dry_run:
        show_plan(job, wanted)
        return False
    if stages == ["check"]:
        return show_check(job) and fail_on == "inconclusive"
    # Whatever is wrong with the data stops here, before any compute or file.
    _, data = job.data
    asked = {"--stage": ",".join(stages or []), "--fail_on": fail_on}
    agree(asked | {"config": _resolved(job), "versions": _versions(), "data": content_digest(to_content(data))})
    if process_index():
        with stop_on_signals():
            _share(job, gather({})[0])
            for stage in wanted:
                _help(job, stage)
            return bool(gather({})[0]["named"])
    _refuse_strangers(job.workdir)
    for kind in {kind for stage in wanted for kind in stage.needs} - {stage.result for stage in wanted}:
        job.result(kind)
    with lock(job.workdir), stop_on_signals():
        _claim(job)
        gather({"config": np.asarray(read_json(job.workdir / "config.json")["digest"])})
        if stages == ["benchmark"]:
            show_target(job, target, TARGETS[target]) if target else show_benchmark(job)
            return False
        if remove_manifest(job.workdir) and not key:
            say("manifest.sig removed, for the files will be others; --sign=KEY signs them again")
        for stage in wanted:
            _run_stage(job, stage)
        job.log.close()
        if any(stage.result is None for stage in wanted):
            show(f"{job.workdir / MANIFEST}, SHA-256 {write_manifest(job.workdir)}")
            if key:
                show(f"signed by {sign_manifest(job.workdir, key)}")
        named = bool(fail_on) and read_json(job.workdir / "report.json")["verdict"]["verdict"] in FAIL_ON[fail_on]
        gather({"named": np.asarray(named)})
        return named


def _check_work(job: Job, wanted: Sequence[Stage], *, alone: bool) -> None:
    """Refuses more chains than there can be, and batches that the devices cannot share.

    Args:
      alone: whether everything is timed and nothing is run.
    """
    settings = job.config
    members = max(settings.data.num_members, 1)
    search_work(settings.search, job.grid, members + settings.data.num_controls, members)
    count_work(settings.count, job.grid, members + settings.data.num_controls)
    to_do = {stage.result: job.state(stage) != "done" for stage in wanted}
    if to_do.get(ScoreResult) or alone:
        training_mesh(settings.score)
    if ClassifiersResult in to_do and job.classifier_names and not settings.classifiers.path:
        detector_mesh(settings.classifiers)


def _help(job: Job, stage: Stage) -> None:
    """What a process other than the first does in a stage: its share of the chains."""
    if stage.shared and gather({})[0]["begins"]:
        _perform(job, stage)


def _run_stage(job: Job, stage: Stage) -> None:
    """One stage, unless it is done."""
    state = job.state(stage)
    if state == "done" and not job.has_weights(stage):
        say(f"{stage.name}: its checkpoints are missing or damaged; again, from those that are left")
    elif state != "to do":
        if state == "done":
            say(f"{stage.name}: done already")
            if stage.shared:
                gather({"begins": np.asarray(False)})
            return
        say(f"{stage.name}: made from other files than are here now; again")
    for kind in stage.needs:
        job.result(kind)
        before = job.stage_of(kind)
        check(
            job.state(before) != "stale",
            f"{before.name}.json",
            got="a result made from other files than are here now",
            expected="one of this run's present data and weights",
            fix=f"run the stage {before.name} too, or leave out --stage",
        )
    started = time.monotonic()
    if stage.shared:
        gather({"begins": np.asarray(True)})
    _perform(job, stage)
    say(f"{stage.name}: {time.monotonic() - started:.0f} s")
    if stopping():
        raise Stopped(f"stopped after {stage.name}")


def _perform(job: Job, stage: Stage) -> None:
    """A stage, with the failures of disk and memory in words."""
    started, compiling = time.monotonic(), compile_seconds()
    try:
        stage.run(job)
        if not process_index():
            spent = {"wall_s": time.monotonic() - started, "compile_s": compile_seconds() - compiling}
            job.log.write(stage.name, **{name: round(seconds, 2) for name, seconds in spent.items()})
    except OSError as error:
        raise StageError(
            f"{stage.name}: {error.strerror or error}; what was done before is kept: free disk space or mend the "
            "directory, and run the same command again"
        ) from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise StageError(
            f"{stage.name}: out of memory; lower engine.slots, score.batch_size, classifiers.batch_size, "
            "likelihood.batch_size or ode.trace_batch, and see --stage=check"
        ) from error


def main(
    config: ConfigDict,
    *,
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: int = 300,
    **options: Any,
) -> int:
    """`run_audit` with its errors on one line: exit status 0 done, 1 stopped, 2 the request was wrong, 3 by `fail_on`.

    Args:
      config: of `run_audit`, as are all others but these four.
      coordinator: HOST:PORT of the first of several processes, or "auto"; empty: there is only this one.
      num_processes: how many share the work directory and the chains.
      process_id: which of them this is, from 0.
      timeout_s: in which all of them must be there.
    """
    try:
        if coordinator or num_processes is not None or process_id is not None:
            connect(coordinator, num_processes, process_id, timeout_s=timeout_s)
        check_platform()
        with private_process(), own_settings(tell=True), together():
            return 3 if run_audit(config, **options) else 0
    except RequestError as error:
        return refuse(error)
    except StageError as error:
        say(f"stopped: {error}")
    except BrokenPipeError:
        # Nobody reads on, as after `| head`; nor shall Python's own last flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        say(f"stopped: {error.strerror or error}; free disk space or mend the directory")
    except Stopped as error:
        say(f"stopped: {error}; the same command goes on from here")
    except KeyboardInterrupt:
        say("stopped: interrupted; the same command goes on from what was saved before")
    except Exception as error:
        if os.environ.get("FPJAX_TRACEBACK"):
            raise
        # A file of the run with a right digest can hold what no version wrote.
        place = traceback.extract_tb(error.__traceback__)[-1]
        say(
            f"stopped: {type(error).__name__} in line {place.lineno} of {Path(place.filename).name}, which should not "
            f"happen: {str(error)[:200]}; FPJAX_TRACEBACK=1 shows where it came from"
        )
    return 1
