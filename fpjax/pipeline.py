"""The stages, in order: each reads the files of earlier ones and writes its own, whole or not at all.

A stage whose result file is there is skipped; a run that was interrupted goes on where it stopped. The work directory
belongs to one config. Results hold integer counts and no times, so that equal runs give equal bytes.
"""

import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from . import audit, classifier, report
from .artifacts import Checkpoints, MetricsLog, read_arrays, read_json, write_arrays, write_bytes, write_json
from .chains import Engine, evaluations_per_step, make_engine
from .checks import RequestError, check, one_of
from .classifier import DetectorData
from .config import FREE_SECTIONS, Config, describe_config, make_config
from .count import audit_oracle, count, count_work
from .data.plant import Planted, describe, plant
from .data.source import load
from .fingerprint import dequantize, to_bytes, to_model
from .likelihood import bits_per_dim, log_likelihoods
from .models.unet import UNet
from .oracle import empirical_score_fn
from .sampling import make_grid, make_sampler
from .score import dsm_loss, make_score_fn
from .sde import TimeGrid
from .search import search, search_work
from .training import TrainState, fit, init_state, jit_once
from .types import DetectFn, Key, ScoreFn

RESULTS = ("data", "score", "classifiers", "count", "search", "likelihood")
NEEDS = {
    "data": (),
    "score": ("data",),
    "classifiers": ("data",),
    "count": ("score", "classifiers"),
    "search": ("score", "classifiers"),
    "likelihood": ("score",),
    "report": RESULTS,
}


class Run:
    """One audit in one directory: settings, and what several stages share, made when first asked for."""

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir

    def path(self, stage: str) -> Path:
        """Result file of a stage."""
        return self.workdir / f"{stage}.json"

    def partial(self, stage: str) -> Path:
        """Where an interrupted stage keeps its state."""
        return self.workdir / "partial" / f"{stage}.npz"

    def key(self, stage: str) -> Key:
        """Root of a stage's draws."""
        return jax.random.fold_in(jax.random.key(self.config.seed), RESULTS.index(stage))

    def checkpoints(self, name: str) -> Checkpoints:
        """Checkpoints of one network."""
        return Checkpoints(self.workdir / "checkpoints" / name)

    def result(self, stage: str) -> dict[str, Any]:
        """Result of an earlier stage; RequestError if it is not there."""
        return read_json(self.path(stage))

    def finish(self, stage: str, content: dict[str, Any]) -> None:
        """Writes a stage's result, then drops what it kept of its way there."""
        write_json(self.path(stage), content)
        for partial in self.workdir.glob(f"partial/{stage}*.npz"):
            partial.unlink()

    @functools.cached_property
    def log(self) -> MetricsLog:
        """Metrics of every stage."""
        return MetricsLog(self.workdir / "metrics.jsonl")

    @functools.cached_property
    def data(self) -> tuple[Planted, dict[str, Any]]:
        """Planted images, and what data.json says of them; the same from the same seed on any machine."""
        splits = load(self.config.data)
        planted = plant(splits, self.config.data)
        side = planted.train.shape[1:3]
        factor = self.config.model.downsampling
        check(
            all(s % factor == 0 for s in side),
            "image side",
            got=f"{side[0]}x{side[1]}",
            expected=f"multiples of {factor} for the {len(self.config.model.channels)} levels of model.channels",
            fix="resize the images or use fewer levels",
        )
        for part, name in ((planted.val, "val"), (planted.test, "test")):
            check(len(part) > 0, f"{name} split", got="no images", expected="at least one", fix="add held-out images")
        check(
            len(planted.train) + len(planted.reserve) > self.config.data.num_members,
            "train split",
            got="no image but the targets",
            expected="others beside them",
            fix="add images or plant fewer targets",
        )
        content = json.loads(json.dumps(describe(splits, planted, self.config.data)))
        if self.path("data").is_file():
            check(
                self.result("data") == content,
                "data",
                got="other images than in data.json",
                expected="the ones this run began with",
                fix="restore the data, or use another --workdir",
            )
        return planted, content

    @property
    def planted(self) -> Planted:
        """Planted images."""
        return self.data[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.planted.train.shape[1:]

    @functools.cached_property
    def grid(self) -> TimeGrid:
        """The sampler's times."""
        return make_grid(self.config.sampler, self.config.process)

    @functools.cached_property
    def model(self) -> UNet:
        """The score network."""
        return UNet(self.config.model)

    @property
    def targets(self) -> np.ndarray:
        """Targets in model range, members first."""
        return to_model(self.planted.targets)

    def init_params(self, key: Key) -> Any:
        """Fresh parameters of the score network."""
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)))["params"]

    @functools.cached_property
    def score_params(self) -> Any:
        """EMA parameters of the trained score network."""
        self.result("score")
        state = jax.eval_shape(lambda key: init_state(self.init_params(key), self.config.score), jax.random.key(0))
        checkpoints = self.checkpoints("score")
        restored: TrainState = checkpoints.restore(_on_device(state), step=self.config.score.num_steps)
        checkpoints.close()
        return restored.ema_params

    def make_score(self, params: Any) -> ScoreFn:
        """The score network's score."""
        return make_score_fn(self.config.process, self.model, params)

    def loss(self, params: Any, images: jax.Array, key: Key) -> jax.Array:
        """Training loss of a batch of bytes."""
        key_noise, key_loss = jax.random.split(key)
        x = dequantize(key_noise, images) if self.config.data.dequantize else to_model(images)
        return dsm_loss(self.config.process, self.model, params, x, key=key_loss)

    def _engine(self, make_score: Callable[[Any], ScoreFn]) -> Engine:
        return make_engine(
            lambda params: make_sampler(self.config.sampler, self.config.process, self.grid, make_score(params)),
            self.grid,
            self.image_shape,
            self.config.engine,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        """Chains of the trained model; count and search share its one compile."""
        return self._engine(self.make_score)

    @functools.cached_property
    def oracle_engine(self) -> Engine:
        """Chains of the empirical oracle, whose parameters are the training images."""
        return self._engine(lambda images: empirical_score_fn(self.config.process, images))

    @functools.cached_property
    def classifier_models(self) -> tuple[Any, Any]:
        """Fingerprint and identity networks."""
        return classifier.make_models(self.config.resnet, len(self.planted.targets))

    @functools.cached_property
    def detect(self) -> DetectFn:
        """Scores of both trained classifiers."""
        self.result("classifiers")
        found = []
        for model, name in zip(self.classifier_models, classifier.NAMES, strict=True):
            init = functools.partial(classifier.init_fit, model, self.config.classifiers)
            shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *self.image_shape)))
            checkpoints = self.checkpoints(name)
            found.append(checkpoints.restore(_on_device(shapes)).best_variables)
            checkpoints.close()
        return classifier.make_detect_fn(self.classifier_models, *found)


def _on_device(shapes: Any) -> Any:
    """Abstract arrays placed on the first device, as Orbax restores them."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)


def _data(run: Run) -> None:
    run.finish("data", run.data[1])


def _score(run: Run) -> None:
    key_init, key_train = jax.random.split(run.key("score"))
    checkpoints = run.checkpoints("score")
    params = jit_once(run.init_params)(key_init)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = fit(
        run.loss, params, run.planted.train, run.config.score, key=key_train, checkpoints=checkpoints, log=run.log
    )
    checkpoints.close()
    run.finish("score", {"num_steps": int(state.step), "num_params": num_params, "num_train": len(run.planted.train)})


def _classifiers(run: Run) -> None:
    config, planted = run.config, run.planted
    radius = planted.record[0].radius
    others = np.concatenate([planted.train[config.data.num_members :], planted.reserve])

    def data(images: np.ndarray) -> DetectorData:
        centers = jnp.asarray([(target.row, target.col) for target in planted.record], jnp.int32)
        return DetectorData(
            *(jnp.asarray(to_model(a)) for a in (images, planted.targets, planted.originals)), centers=centers
        )

    checkpoints = run.checkpoints(classifier.NAMES[0]), run.checkpoints(classifier.NAMES[1])
    detectors = classifier.train_detectors(
        run.classifier_models,
        data(others),
        data(planted.val),
        config.classifiers,
        key=run.key("classifiers"),
        radius=radius,
        checkpoints=checkpoints,
        log=run.log,
    )
    for part in checkpoints:
        part.close()
    detect = classifier.make_detect_fn(run.classifier_models, detectors.fingerprint, detectors.identity)
    errors = classifier.measure_errors(
        detect,
        planted.test,
        planted.originals,
        key=jax.random.fold_in(run.key("classifiers"), 99),
        radius=radius,
        settings=config.classifiers,
    )
    run.finish(
        "classifiers",
        {"errors": errors._asdict(), "epochs": list(detectors.epochs), "threshold": config.classifiers.threshold},
    )


def _count(run: Run) -> None:
    config, key = run.config, run.key("count")
    common: dict[str, Any] = {
        "num_members": config.data.num_members,
        "threshold": config.classifiers.threshold,
        "log": run.log,
    }
    oracle = audit_oracle(
        run.oracle_engine,
        to_model(run.planted.train),
        run.targets,
        run.detect,
        config.count,
        key=jax.random.fold_in(key, 1),
        path=run.partial("count_oracle"),
        **common,
    )
    result = count(
        run.engine,
        run.score_params,
        run.targets,
        run.detect,
        config.count,
        key=key,
        path=run.partial("count"),
        **common,
    )
    write_arrays(
        run.workdir / "samples" / "count.npz",
        samples=to_bytes(result.samples),
        hits=to_bytes(result.hits),
        hit_target=result.hit_target,
    )
    content = {
        name: value
        for name, value in result._asdict().items()
        if name not in ("samples", "hits", "hit_target", "hit_mse", "hit_mae")
    }
    run.finish(
        "count",
        content
        | {
            "num_controls": config.data.num_controls,
            "oracle": oracle._asdict(),
            "hits": [
                {"target": t, "mse": s, "mae": a}
                for t, s, a in zip(result.hit_target, result.hit_mse, result.hit_mae, strict=True)
            ],
        },
    )


def _search(run: Run) -> None:
    config = run.config
    result = search(
        run.engine,
        run.score_params,
        run.targets,
        run.detect,
        config.search,
        num_members=config.data.num_members,
        threshold=config.classifiers.threshold,
        key=run.key("search"),
        path=run.partial("search"),
        log=run.log,
    )
    run.finish("search", {**result._asdict(), "num_members": config.data.num_members})


def _likelihood(run: Run) -> None:
    config, planted = run.config, run.planted
    members = config.data.num_members
    groups = {
        "member": planted.targets[:members],
        "clean original": planted.originals[:members],
        "held-out target": planted.targets[members:],
        "training": planted.train[members:][: config.likelihood.num_train],
        "held-out": planted.test[: config.likelihood.num_held_out],
    }
    images = np.concatenate(list(groups.values()))
    found = log_likelihoods(
        run.make_score,
        run.score_params,
        config.process,
        images,
        config.ode,
        key=run.key("likelihood"),
        dequantized=config.data.dequantize,
        batch_size=config.likelihood.batch_size,
        path=run.partial("likelihood"),
        log=run.log,
    )
    run.finish(
        "likelihood",
        {
            "group": [name for name, part in groups.items() for _ in part],
            "row": [row for part in groups.values() for row in range(len(part))],
            **found,
            "bits_per_dim": bits_per_dim(found["nats"], images[0].size),
            "t_min": config.ode.t_min,
        },
    )


def _report(run: Run) -> None:
    config = run.config
    results = {stage: run.result(stage) for stage in RESULTS}
    result = audit.make_audit(
        results,
        run.grid,
        config.process,
        config.audit,
        name=config.name,
        sampler=config.sampler.label,
        seed=config.seed,
        provenance=read_json(run.workdir / "config.json")["provenance"]
        | {
            "data": results["data"]["identity"]["name"],
            "parameters": results["score"]["num_params"],
            "training_steps": results["score"]["num_steps"],
        },
    )
    kept = read_arrays(run.workdir / "samples" / "count.npz")
    images = report.ReportImages(
        run.planted.targets,
        run.planted.originals,
        run.planted.train[: len(kept["samples"])],
        kept["samples"],
        kept["hits"],
        kept["hit_target"],
    )
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines() if line]
    steps = {line["step"]: line["loss"] for line in lines if line["stage"] == "score" and "loss" in line}
    loss = report.LossCurve(list(steps), list(steps.values()))
    show = config.report.show_members
    figures = report.draw_figures(result, images, loss, show_members=show)
    for name, png in figures.items():
        write_bytes(run.workdir / "figures" / f"{name}.png", png)
    write_bytes(run.workdir / "report.html", report.to_html(result, figures, show_members=show).encode())
    write_json(run.workdir / "report.json", report.to_json(result))
    print(report.to_text(result))
    print(f"\n{run.workdir / 'report.html'}\n{run.workdir / 'report.json'}")


STAGES: dict[str, Callable[[Run], None]] = {
    "data": _data,
    "score": _score,
    "classifiers": _classifiers,
    "count": _count,
    "search": _search,
    "likelihood": _likelihood,
    "report": _report,
}


def _provenance() -> dict[str, Any]:
    """What ran, where; no path and no user."""
    packages = ("fpjax", "jax", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy", "scipy")
    root = Path(__file__).resolve().parents[1]
    commit = (
        subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
        )
        if (root / ".git").exists()
        else None
    )
    devices = [device.device_kind for device in jax.devices()]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": commit.stdout.strip() if commit and commit.returncode == 0 else "unknown",
        "devices": f"{len(devices)} x {devices[0]}",
    }


def _claim(config: Config, workdir: Path) -> None:
    """Writes config.json, or checks that the directory belongs to this config."""
    resolved, path = describe_config(config), workdir / "config.json"
    if not path.is_file():
        check(
            not workdir.exists()
            or (workdir.is_dir() and all(path.name == ".config.json.tmp" for path in workdir.iterdir())),
            f"--workdir={workdir.name}",
            got="a file, or a directory with other things in it",
            expected="a new directory, or that of an earlier run",
            fix="choose another --workdir",
        )
        try:
            write_json(path, {"config": resolved, "provenance": _provenance()})
        except OSError as error:
            raise RequestError(
                f"--workdir: got {error.strerror}, expected a directory to write to; fix: choose another --workdir"
            ) from error
        return
    recorded = read_json(path)["config"]
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


def _show_plan(run: Run, stages: list[str]) -> None:
    """Resolved config, stages done and to do, and the work of each."""
    config, planted = run.config, run.planted
    print(json.dumps(describe_config(config), indent=1))
    shapes = jax.eval_shape(run.init_params, jax.random.key(0))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    x, t = jax.ShapeDtypeStruct((1, *run.image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    lowered = jax.jit(lambda p, x, t: run.model.apply({"params": p}, x, t)).lower(shapes, x, t)
    flops = (lowered.cost_analysis() or {}).get("flops", float("nan"))
    members, targets = config.data.num_members, len(planted.targets)
    nll = (
        min(config.likelihood.num_train, len(planted.train) - members)
        + min(config.likelihood.num_held_out, len(planted.test))
        + targets
        + members
    )
    evaluations = evaluations_per_step(run.engine, shapes)
    work = {
        "data": f"{len(planted.train)} training images of {'x'.join(map(str, run.image_shape))}, {members} member and "
        f"{config.data.num_controls} held-out targets",
        "score": f"{config.score.num_steps:,} steps x {config.score.batch_size} images",
        "classifiers": f"at most 2 x {config.classifiers.max_epochs * config.classifiers.steps_per_epoch:,} steps",
        "count": f"{evaluations * count_work(config.count, run.grid, members).num_steps:,} evaluations",
        "search": f"{evaluations * search_work(config.search, run.grid, targets, members).num_steps:,} evaluations",
        "likelihood": f"{nll} images, adaptive",
        "report": "",
    }
    print(f"parameters of the score network: {num_params:,}")
    print(f"FLOPs of one evaluation: {flops:,.0f}")
    for stage in STAGES:
        state = "done" if run.path(stage).is_file() else "to do" if stage in stages else "not asked for"
        print(f"{stage:12} {state:14} {work[stage]}")


def run(config: ConfigDict, *, workdir: str = "", stages: list[str] | None = None, dry_run: bool = False) -> None:
    """Runs the stages that are asked for and not done yet, in their order; the report is always written anew.

    Args:
      config: of a file in configs/, with overrides.
      workdir: directory of the run; empty: runs/NAME.
      stages: names in `STAGES`; empty: all.
      dry_run: print what would be done, and stop.

    Raises:
      RequestError: config, data, stages or directory are not as they must be; nothing has been computed.
      StageError: a stage met something that it must not go on with.
    """
    settings = make_config(config)
    for stage in stages or []:
        one_of("--stage", stage, STAGES)
    wanted = [stage for stage in STAGES if not stages or stage in stages]
    run = Run(settings, Path(workdir or Path("runs") / settings.name))
    search_work(settings.search, run.grid, 1, 1)
    if dry_run:
        _show_plan(run, wanted)
        return
    _ = run.data  # whatever is wrong with the data stops here, before any compute or file
    _claim(settings, run.workdir)
    for stage in wanted:
        if stage != "report" and run.path(stage).is_file():
            run.result(stage)
            print(f"{stage}: done already", file=sys.stderr)
            continue
        for before in NEEDS[stage]:
            run.result(before)
        started = time.monotonic()
        STAGES[stage](run)
        run.log.write(stage, wall_s=round(time.monotonic() - started, 2))
        print(f"{stage}: {time.monotonic() - started:.0f} s", file=sys.stderr)
