"""The stages, in order: each reads the files of earlier ones and writes its own, whole or not at all.

A stage whose result file is there is skipped, unless that was made from other files than are there now; a run that was
interrupted goes on where it stopped. The work directory belongs to one config and to one process at a time, or to
several that share the chains: the first of them does everything else and writes every result. Results hold integer
counts and no times, so that equal runs give equal bytes.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
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

from .. import audit, report
from ..audit import verdict
from ..core.compilation import jit_once, use_compilation_cache
from ..core.errors import RequestError, StageError, check, one_of, refuse
from ..core.images import to_bytes, to_model
from ..core.metrics import MetricsLog, read_metrics, tensorboard_writer
from ..core.processes import connect, gather, num_processes, process_index, together
from ..core.progress import Stopped, stop_on_signals, stopping
from ..core.store import lock, read_arrays, read_json, tree_digest, write_arrays, write_bytes, write_json
from ..data.plant import describe_membership
from ..detectors import classifier, nearest
from ..detectors.evaluation import describe_errors, measure_errors
from ..detectors.examples import make_tasks
from ..detectors.fitting import detector_mesh
from ..diffusion.flow import OUTCOMES
from ..diffusion.pretrained.imported import Imported, describe_imported
from ..diffusion.pretrained.weights import read_params
from ..diffusion.training import fit, training_mesh
from ..engine.chains import evaluations_per_step
from ..studies.bound import bound, chain_ends, top_levels
from ..studies.count import audit_oracle, count, count_work
from ..studies.likelihood import bits_per_dim, log_likelihoods
from ..studies.search import search, search_work
from .benchmark import num_bound_chains, num_densities, show_benchmark
from .config import FREE_FIELDS, FREE_SECTIONS, describe_config, make_config
from .preflight import show_check
from .workdir import NEEDS, NUM_GRID, RESULTS, Run


def _data(run: Run) -> None:
    candidates, content = run.data
    identity = content["identity"]
    images = ", ".join(f"{count:,} {split}" for split, count in identity["num_images"].items())
    drawn = (
        f"; drawn from train: {', '.join(n for n in identity['drawn'] if n != 'seed')}" if "drawn" in identity else ""
    )
    grouped = "; no group of images on both sides" if "groups" in identity else ""
    print(f"data: {identity['name']}, {images}{drawn}{grouped}", file=sys.stderr)
    if run.config.data.stamp:
        print(
            f"data: {len(candidates.record)} targets drawn from {', '.join(identity['alike'])}; "
            f"{candidates.passed_over} images passed over, on which no disc has a contrast of "
            f"{run.config.data.min_contrast} grey levels",
            file=sys.stderr,
        )
    run.finish("data", content)


def _import(run: Run, imported: Imported) -> None:
    """Takes a model's weights into the run's own checkpoints, so that later stages need its directory no more."""
    params = read_params(Path(run.config.score.path), imported.architecture)
    ignored = imported.scheduler.ignored if imported.scheduler else ()
    for line in ignored:
        print(f"score: not followed: {line}", file=sys.stderr)
    if not imported.scheduler:
        name = run.config.sde.name
        print(f"score: no scheduler: taken to predict epsilon of {name} and to be told 999 t", file=sys.stderr)
    checkpoints = run.checkpoints("score")
    checkpoints.save(0, params)
    checkpoints.close()
    run.finish(
        "score",
        {
            "num_steps": 0,
            "num_params": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "num_train": len(run.planted.train),
            "weights_sha256": tree_digest(params),
            "imported": describe_imported(imported),
        },
    )


def _score(run: Run) -> None:
    if run.imported:
        return _import(run, run.imported)
    key_init, key_train, key_samples = jax.random.split(run.key("score"), 3)
    params = jit_once(run.init_params)(key_init)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))

    def sample(step: int, ema_params: Any) -> None:
        try:
            samples = run.draw_grid(ema_params, key=key_samples)
        except StageError as error:
            # Pictures on the way are no reason to stop training.
            print(f"score: no samples at step {step}: {error}", file=sys.stderr)
            return
        write_arrays(run.workdir / "samples" / f"score_{step}.npz", samples=samples)

    with contextlib.closing(run.checkpoints("score")) as checkpoints:
        state = fit(
            run.loss,
            params,
            run.planted.train,
            run.config.score,
            key=key_train,
            checkpoints=checkpoints,
            log=run.log,
            sample=sample,
        )
    run.finish(
        "score",
        {
            "num_steps": int(state.step),
            "num_params": num_params,
            "num_train": len(run.planted.train),
            "weights_sha256": tree_digest(state.ema_params),
        },
    )


def _reuse_classifiers(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes another run's classifiers into the run's own checkpoints: later stages need its directory no more."""
    states = {name: run.restore_classifier(name, of=run.other) for name in run.other.classifier_names}
    check(
        tree_digest([state.averaged for state in states.values()]) == run.reused["weights_sha256"],  # pyright: ignore[reportOptionalSubscript]
        "classifiers.path",
        got="other weights than the ones that its stage ended with",
        expected="those named in its classifiers.json",
        fix="restore them, or train that run again",
    )
    for name in run.classifier_names:
        with contextlib.closing(run.checkpoints(name)) as checkpoints:
            checkpoints.save(int(states[name].step), states[name])
    theirs = run.other.result("classifiers")
    content = {name: theirs[name] for name in ("attempts", "epochs", "calibration", "gate", "unseen", "dropped")}
    return {name: states[name].averaged for name in run.classifier_names}, content | {"reused": run.reused}


def _train_classifiers(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Trains them until the gate opens; with some of the images that they are trained on, as bytes (paper, Fig. 7)."""
    config, candidates = run.config, run.candidates
    radius = candidates.record[0].radius
    key_train, key_examples = (jax.random.fold_in(run.key("classifiers"), i) for i in (0, 1))
    train = run.detector_data(candidates.rest)
    with contextlib.ExitStack() as stack:
        checkpoints = {
            name: stack.enter_context(contextlib.closing(run.checkpoints(name))) for name in run.classifier_names
        }
        detectors = classifier.train_detectors(
            run.classifier_models,
            train,
            run.detector_data(candidates.val),
            config.classifiers,
            augmix_settings=config.augmix,
            key=key_train,
            radius=radius,
            min_contrast=run.min_contrast,
            checkpoints=checkpoints,
            log=run.log,
            spares=config.data.num_spares,
        )
    dropped = np.flatnonzero(~detectors.seen & config.classifiers.gate)
    if len(dropped) > config.data.num_spares:
        raise StageError(
            f"classifiers: {len(dropped)} of {len(detectors.seen)} targets are not seen by the detectors, and "
            f"data.num_spares = {config.data.num_spares} may be dropped; raise classifiers.epochs, resnet.width or "
            "data.min_contrast in another --workdir, or plant fewer targets"
        )
    tasks = make_tasks(
        config.classifiers,
        config.augmix,
        num_targets=len(detectors.seen),
        radius=radius,
        min_contrast=run.min_contrast,
    )
    keys, examples = jax.random.split(key_examples, NUM_GRID), {}
    for name, task in zip(classifier.NAMES, tasks, strict=True):
        if name in checkpoints:
            # As many positives as negatives, whatever their share in training.
            view: Any = task.views[-1]
            draw = jax.vmap(functools.partial(view, rate=0.5), in_axes=(0, None))
            images, labels = (np.asarray(part) for part in jit_once(draw)(keys, jax.tree.map(jnp.asarray, train)))
            examples |= {f"{name}_examples": to_bytes(images), f"{name}_labels": labels.any(axis=1)}
    content = {
        "attempts": detectors.attempts,
        "epochs": detectors.epochs,
        "calibration": detectors.calibration._asdict(),
        "gate": {name: sight._asdict() for name, sight in detectors.sights.items()},
        "unseen": int((~detectors.seen).sum()) - len(dropped),
        "dropped": dropped,
    }
    if len(dropped):
        print(f"classifiers: {len(dropped)} targets that they do not see are replaced by spares", file=sys.stderr)
    return detectors.variables, content, examples


def _classifiers(run: Run) -> None:
    """Trains the detectors, or takes another run's, or needs none; draws membership; measures what they err."""
    config, examples = run.config, {}
    content: dict[str, Any] = {"dropped": []}
    if run.classifier_names:
        if run.reused:
            variables, content = _reuse_classifiers(run)
        else:
            variables, content, examples = _train_classifiers(run)
        content["weights_sha256"] = tree_digest(list(variables.values()))
        planted = run.planted_without([int(row) for row in content["dropped"]])
        detector = run.make_detector(variables, content["calibration"], planted.rows)
    else:
        planted, detector = run.planted_without(()), run.detector
    # Distances know the target as it was planted, classifiers wherever its disc lies.
    stamped = bool(run.classifier_names)
    errors, pictures = measure_errors(
        detector.detect,
        run.held_out,
        planted.originals if stamped else planted.targets,
        planted.targets,
        key=jax.random.fold_in(run.key("classifiers"), 2),
        radius=planted.record[0].radius if stamped else 0,
        min_contrast=run.min_contrast,
        marks=detector.marks,
        settings=config.classifiers,
    )
    write_arrays(run.workdir / "samples" / "classifiers.npz", **pictures._asdict(), **examples)
    described = {name: value for name, value in detector._asdict().items() if name != "detect"}
    run.finish(
        "classifiers",
        content
        | {
            "membership": describe_membership(planted) | {"canaries": config.data.canaries},
            "detector": described,
            "threshold": config.classifiers.threshold,
            "thresholds": config.classifiers.thresholds,
            "errors": describe_errors(errors),
        },
    )


def _chain_log(run: Run) -> MetricsLog | None:
    """Metrics of the stages that several processes share: the first one's."""
    return None if process_index() else run.log


def _count(run: Run) -> None:
    config, planted, key = run.config, run.planted, run.key("count")
    common: dict[str, Any] = {
        "num_members": planted.num_members,
        "threshold": config.classifiers.threshold,
        "log": _chain_log(run),
    }
    oracle = audit_oracle(
        run.oracle_engine,
        to_model(planted.train),
        run.targets,
        run.detector.detect,
        config.count,
        key=jax.random.fold_in(key, 1),
        path=run.partial("count", "-oracle"),
        **common,
    )
    result = count(
        run.engine,
        run.score_params,
        run.targets,
        run.detector.detect,
        config.count,
        num_searched=run.num_searched,
        decided=functools.partial(verdict.count_decided, planted.num_members, config.count, config.audit),
        thresholds=config.classifiers.thresholds,
        key=key,
        path=run.partial("count"),
        **common,
    )
    if process_index():
        return
    write_arrays(
        run.workdir / "samples" / "count.npz",
        samples=to_bytes(result.samples),
        hits=to_bytes(result.hits),
        hit_target=result.hit_target,
        **{n: values if n.endswith("_target") else to_bytes(values) for n, values in result.errors.items()},
        near_misses=to_bytes(result.near_misses),
        near_target=result.near_target,
    )
    content = {
        name: value
        for name, value in result._asdict().items()
        if name not in ("samples", "hits", "errors") and not name.startswith(("hit_", "near_"))
    }
    misses = zip(result.near_target, result.near_mse, result.near_mae, result.near_score, strict=True)
    run.finish(
        "count",
        content
        | {
            "planned_looks": config.count.ends,
            "oracle": oracle._asdict(),
            "hits": [
                {"target": t, "mse": s, "mae": a}
                for t, s, a in zip(result.hit_target, result.hit_mse, result.hit_mae, strict=True)
            ],
            "near_misses": [{"target": t, "mse": s, "mae": a, "score": score} for t, s, a, score in misses],
        },
    )


def _search(run: Run) -> None:
    config = run.config
    result = search(
        run.engine,
        run.score_params,
        run.targets,
        run.detector.detect,
        config.search,
        num_members=run.planted.num_members,
        num_searched=run.num_searched,
        threshold=config.classifiers.threshold,
        thresholds=config.classifiers.thresholds,
        key=run.key("search"),
        path=run.partial("search"),
        log=_chain_log(run),
    )
    if process_index():
        return
    content = result._asdict()
    shown = {name: content.pop(name) for name in result._fields if name.startswith("shown_")}
    write_arrays(run.workdir / "samples" / "search.npz", **shown)
    members, everything = run.planted.num_members, dataclasses.replace(config.search, strategy="exhaustive")
    most = search_work(everything, run.grid, run.num_searched, members).num_steps
    run.finish(
        "search",
        {
            **content,
            "num_members": members,
            "strategy": config.search.strategy,
            "exhaustive_evaluations": most * evaluations_per_step(run.engine, run.score_params),
        },
    )


def _study_groups(run: Run) -> dict[str, np.ndarray]:
    """Images of the likelihood study by group, bytes; those up to the neighbours are followed over snapshots."""
    planted, settings, members = run.planted, run.config.likelihood, run.planted.num_members
    others = planted.train[members:]
    # Of every member's nearest, each once.
    near = [nearest.nearest_rows(others, target, settings.num_neighbours) for target in planted.targets[:members]]
    near = list(dict.fromkeys(np.concatenate(near).tolist()))
    far = np.delete(np.arange(len(others)), near)[: settings.num_train]
    return {
        "member": planted.targets[:members],
        **({"clean original": planted.originals[:members]} if run.config.data.stamp else {}),
        "held-out target": planted.targets[members : run.num_searched],
        "nearest neighbour": others[near],
        "training": others[far],
        "held-out": planted.test[: settings.num_held_out],
        "generated": run.draw_samples(settings.num_generated, key=jax.random.fold_in(run.key("likelihood"), 1)),
    }


def _likelihood(run: Run) -> None:
    config, groups = run.config, _study_groups(run)
    images = np.concatenate(list(groups.values()))

    def study(params: Any, images: np.ndarray, part: str = "") -> dict[str, Any]:
        found = log_likelihoods(
            run.density,
            params,
            images,
            key=run.key("likelihood"),
            path=run.partial("likelihood", part),
            log=run.log,
            dequantized=config.data.dequantize,
            repeats=config.likelihood.repeats,
            label=f"likelihood{part}",
        )
        outcome = [OUTCOMES[one] for one in found["outcome"]]
        return found | {"outcome": outcome, "bits_per_dim": bits_per_dim(found["nats"], images[0].size)}

    score = config.score
    steps = range(score.keep_every, score.num_steps, score.keep_every) if config.likelihood.snapshots else ()
    names = list(groups)
    followed = sum(len(groups[name]) for name in names[: names.index("training")])
    found = study(run.score_params, images)
    run.finish(
        "likelihood",
        {
            "group": [name for name, part in groups.items() for _ in part],
            "row": [row for part in groups.values() for row in range(len(part))],
            **found,
            "num_dims": images[0].size,
            "t_min": config.ode.t_min,
            "exact_trace": config.ode.num_probes == 0,
            "repeats": config.likelihood.repeats,
            # The first rows alone, with the same noise.
            "snapshots": [{"step": step, **study(run.snapshot(step), images[:followed], f"-{step}")} for step in steps],
        },
    )


def _bound(run: Run) -> None:
    settings, tops = run.config.bound, top_levels(run.result("search"))
    t_min, (key_chains, key_density) = run.config.ode.t_min, jax.random.split(run.key("bound"))
    if not settings.num_chains:
        if not process_index():
            run.finish("bound", {"t_min": t_min, "target": []})
        return
    ends = chain_ends(
        run.engine,
        run.score_params,
        run.targets,
        tops,
        settings,
        key=key_chains,
        path=run.partial("bound", "-chains"),
        log=_chain_log(run),
    )
    if process_index():
        return
    found = bound(
        run.density, run.score_params, ends, tops, settings, key=key_density, path=run.partial("bound"), log=run.log
    )
    run.finish("bound", {"t_min": t_min, **found._asdict()})


def _training(run: Run) -> report.Training:
    """What metrics.jsonl and the grids of samples say of the score network's training; steps taken twice count once."""
    events = read_metrics(run.workdir / "metrics.jsonl")
    looks = {event["step"]: event for event in events if event["stage"] == "score" and "loss" in event}
    grids = {int(path.stem.split("_")[1]): path for path in run.workdir.glob("samples/score_*.npz")}
    rates = {
        name: [look[name] for look in looks.values() if look.get(name) is not None]
        for name in ("images_per_s", "tflop_per_s")
    }
    epochs = {
        name: {event["epoch"]: event for event in events if event["stage"] == f"{name} classifier"}
        for name in classifier.NAMES
    }
    return report.Training(
        classifiers={
            name: (list(seen), [e["loss"] for e in seen.values()], [e["val_loss"] for e in seen.values()])
            for name, seen in epochs.items()
            if seen
        },
        step=list(looks),
        loss=[look["loss"] for look in looks.values()],
        grad_norm=[look.get("grad_norm") for look in looks.values()],
        loss_by_t=looks[max(looks)].get("loss_by_t", []) if looks else [],
        samples_step=max(grids, default=0),
        samples=read_arrays(grids[max(grids)])["samples"] if grids else None,
        # The first look waits for the compiler too.
        **{name: float(np.median(values)) if values else math.nan for name, values in rates.items()},
    )


def _report(run: Run) -> None:
    config = run.config
    results = {stage: run.result(stage) for stage in RESULTS}
    result = audit.make_audit(
        results,
        run.grid,
        run.process,
        config.audit,
        name=config.name,
        sampler=config.sampler.label,
        seed=config.seed,
        provenance=read_json(run.workdir / "config.json")["provenance"]
        | {
            "data": results["data"]["identity"]["name"],
            "parameters": results["score"]["num_params"],
            **(
                {"imported": run.imported.sha256 | {"predicts": run.imported.prediction}}
                if run.imported
                else {"training_steps": results["score"]["num_steps"]}
            ),
        },
    )
    kept, judged = (read_arrays(run.workdir / "samples" / f"{stage}.npz") for stage in ("count", "classifiers"))
    errors: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"fingerprint_false": (judged["fingerprint_false"], None)}
    errors |= {kind: (judged[kind], judged[f"{kind}_head"]) for kind in ("identity_false", "missed")}
    # Without a classifier of marks, that "sees" one everywhere.
    if result.detector.marks:
        errors["fingerprint_only"] = kept["fingerprint_only"], None
    errors |= {kind: (kept[kind], kept[f"{kind}_target"]) for kind in ("control", "identity_only")}
    errors["missed_chain"] = kept["missed"], kept["missed_target"]
    shown = read_arrays(run.workdir / "samples" / "search.npz")
    images = report.ReportImages(
        run.planted.targets,
        run.planted.originals,
        run.planted.train[: len(kept["samples"])],
        kept["samples"],
        kept["hits"],
        kept["hit_target"],
        errors=errors,
        examples={
            name: (judged[f"{name}_examples"], judged[f"{name}_labels"])
            for name in classifier.NAMES
            if f"{name}_examples" in judged
        },
        near_misses=(kept["near_misses"], kept["near_target"]),
        returns=report.Returns(
            shown["shown_target"],
            run.grid.t[shown["shown_level"]],
            shown["shown_detected"],
            shown["shown_start"],
            shown["shown_end"],
        ),
    )
    training, show = _training(run), config.report.show_members
    figures = report.draw_figures(result, images, training, show_members=show)
    for name, png in figures.items():
        write_bytes(run.workdir / "figures" / f"{name}.png", png)
    # Pictures of members that an earlier report showed do not stay behind.
    for left in set(run.workdir.glob("figures/*.png")) - {run.workdir / "figures" / f"{name}.png" for name in figures}:
        left.unlink()
    write_bytes(run.workdir / "report.html", report.to_html(result, figures, training, show_members=show).encode())
    write_json(run.workdir / "report.json", report.to_json(result))
    print(report.to_text(result))
    print(f"\n{run.workdir / 'report.html'}\n{run.workdir / 'report.json'}")


STAGES: dict[str, Callable[[Run], None]] = {
    "data": _data,
    "classifiers": _classifiers,
    "score": _score,
    "count": _count,
    "search": _search,
    "likelihood": _likelihood,
    "bound": _bound,
    "report": _report,
}


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
    }


def _refuse_strangers(workdir: Path) -> None:
    """Refuses a directory that is neither new nor that of a run."""
    try:
        own = workdir.is_dir() and {path.name for path in workdir.iterdir()} <= {".config.json.tmp", ".lock"}
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
        read_json(workdir / "config.json")


def _claim(run: Run) -> None:
    """Writes config.json, or checks that the directory belongs to this config."""
    workdir, path = run.workdir, run.workdir / "config.json"
    # An imported model is what its files hold, not where they lie.
    resolved = describe_config(run.config, skip=FREE_FIELDS) | {
        "imported": run.imported and run.imported.sha256,
        "reused": run.reused and run.reused["weights_sha256"],
    }
    if not path.is_file():
        write_json(path, {"config": resolved, "provenance": _provenance()})
        return
    begun = read_json(path)
    recorded, now = begun["config"], _provenance()
    changed = [
        f"{name} {value}, now {now.get(name)}" for name, value in begun["provenance"].items() if now.get(name) != value
    ]
    if changed:
        print(f"begun with {'; '.join(changed)}", file=sys.stderr)
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
    members, searched = planted.num_members, run.num_searched
    evaluations = evaluations_per_step(run.engine, shapes)
    most_epochs = config.classifiers.epochs * config.classifiers.max_rounds * (1 + config.classifiers.max_restarts)
    work = {
        "data": f"{len(planted.train)} training images of {'x'.join(map(str, run.image_shape))}, {members} member and "
        f"{planted.num_controls} held-out targets, {len(planted.targets) - searched} more that are counted alone",
        "score": "imported" if run.imported else f"{config.score.num_steps:,} steps x {config.score.batch_size} images",
        "classifiers": "none are trained"
        if not run.classifier_names or run.reused
        else f"at most {len(run.classifier_names)} x "
        f"{most_epochs * config.classifiers.steps_per_epoch:,} steps, "
        f"{config.classifiers.epochs * config.classifiers.steps_per_epoch:,} where the gate opens at once",
        "count": f"{evaluations * count_work(config.count, run.grid, searched).num_steps:,} evaluations",
        "search": f"{evaluations * search_work(config.search, run.grid, searched, members).num_steps:,} evaluations",
        "likelihood": f"{num_densities(run)} densities, adaptive",
        "bound": f"{num_bound_chains(run)} chains and their densities, if members return from every level",
        "report": "",
    }
    print(f"parameters of the score network: {num_params:,}")
    print(f"FLOPs of one evaluation: {flops:,.0f}")
    for stage in STAGES:
        state = "not asked for" if stage not in stages else "to do" if stage == "report" else run.state(stage)
        print(f"{stage:12} {state:14} {work[stage]}")


SHARED = ("count", "search", "bound")  # what several processes do together; the first does the rest
ALONE = ("check", "benchmark")
FAIL_ON = {"": (), "leak": (verdict.LEAK,), "inconclusive": (verdict.LEAK, verdict.INCONCLUSIVE)}


def run(
    config: ConfigDict,
    *,
    workdir: str = "",
    stages: list[str] | None = None,
    dry_run: bool = False,
    fail_on: str = "",
) -> bool:
    """Runs the stages that are asked for and not done yet, in their order; the report is always written anew.

    Args:
      config: of a file in configs/, with overrides.
      workdir: directory of the run; empty: runs/NAME.
      stages: names in `STAGES`, or one of `ALONE`; empty: all of `STAGES`.
      dry_run: print what would be done, and stop.
      fail_on: a key of `FAIL_ON`.

    Returns:
      Whether `fail_on` names the verdict, or what the check says that it must be.

    Raises:
      RequestError: config, data, stages or directory are not as they must be; nothing has been computed.
      StageError: a stage met something that it must not go on with.
      Stopped: a signal asked for it, and the state is saved.
    """
    settings = make_config(config)
    one_of("--fail_on", fail_on, FAIL_ON)
    for stage in stages or []:
        one_of("--stage", stage, (*STAGES, *ALONE))
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
        num_processes() == 1 or not (dry_run or set(stages or []) & set(ALONE)),
        "--coordinator",
        got=f"{num_processes()} processes for {'--dry_run' if dry_run else '--stage=' + ','.join(stages or [])}",
        expected="stages of the audit",
        fix="leave it out: one process tells",
    )
    wanted = [stage for stage in STAGES if not stages or stage in stages]
    this = Run(settings, Path(workdir or Path("runs") / settings.name))
    members = max(settings.data.num_members, 1)
    search_work(settings.search, this.grid, members + settings.data.num_controls, members)
    count_work(settings.count, this.grid, members + settings.data.num_controls)
    if ("score" in wanted and this.state("score") != "done") or set(stages or []) & set(ALONE):
        training_mesh(settings.score)
    if "classifiers" in wanted and this.classifier_names and not settings.classifiers.path:
        detector_mesh(settings.classifiers)
    if settings.engine.compilation_cache:
        use_compilation_cache()
    if settings.report.tensorboard:
        tensorboard_writer()
    if dry_run:
        _show_plan(this, wanted)
        return False
    if stages == ["check"]:
        return show_check(this) and fail_on == "inconclusive"
    # Whatever is wrong with the data stops here, before any compute or file.
    _ = this.data
    if process_index():
        with stop_on_signals():
            for stage in wanted:
                _help(this, stage)
            return bool(gather({})[0]["named"])
    _refuse_strangers(this.workdir)
    for before in {before for stage in wanted for before in NEEDS[stage]} - set(wanted):
        this.result(before)
    with lock(this.workdir), stop_on_signals():
        _claim(this)
        if stages == ["benchmark"]:
            show_benchmark(this)
            return False
        for stage in wanted:
            _run_stage(this, stage)
        named = bool(fail_on) and read_json(this.workdir / "report.json")["verdict"]["verdict"] in FAIL_ON[fail_on]
        gather({"named": np.asarray(named)})
        return named


def _help(this: Run, stage: str) -> None:
    """What a process other than the first does in a stage: its share of the chains."""
    if stage in SHARED and gather({})[0]["begins"]:
        _perform(this, stage)


def _run_stage(this: Run, stage: str) -> None:
    """One stage, unless it is done."""
    if stage != "report" and (state := this.state(stage)) != "to do":
        if state == "done":
            print(f"{stage}: done already", file=sys.stderr)
            if stage in SHARED:
                gather({"begins": np.asarray(False)})
            return
        print(f"{stage}: made from other files than are here now; again", file=sys.stderr)
    for before in NEEDS[stage]:
        this.result(before)
        check(
            this.state(before) != "stale",
            f"{before}.json",
            got="a result made from other files than are here now",
            expected="one of this run's present data and weights",
            fix=f"run the stage {before} too, or leave out --stage",
        )
    started = time.monotonic()
    if stage in SHARED:
        gather({"begins": np.asarray(True)})
    _perform(this, stage)
    print(f"{stage}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if stopping():
        raise Stopped(f"stopped after {stage}")


def _perform(this: Run, stage: str) -> None:
    """A stage, with the failures of disk and memory in words."""
    started = time.monotonic()
    try:
        STAGES[stage](this)
        if not process_index():
            this.log.write(stage, wall_s=round(time.monotonic() - started, 2))
    except OSError as error:
        raise StageError(
            f"{stage}: {error.strerror or error}; what was done before is kept: free disk space or mend the directory, "
            "and run the same command again"
        ) from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise StageError(
            f"{stage}: out of memory; lower engine.slots, score.batch_size, classifiers.batch_size, "
            "likelihood.batch_size or ode.trace_batch, and see --stage=check"
        ) from error


def main(
    config: ConfigDict,
    *,
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> int:
    """`run` with its errors on one line: exit status 0 done, 1 stopped, 2 the request was wrong, 3 by `fail_on`.

    Args:
      config: of `run`, as are all others but these three.
      coordinator: HOST:PORT of the first of several processes, or "auto"; empty: there is only this one.
      num_processes: how many share the work directory and the chains.
      process_id: which of them this is, from 0.
    """
    try:
        if coordinator or num_processes is not None or process_id is not None:
            connect(coordinator, num_processes, process_id)
        with together():
            return 3 if run(config, **options) else 0
    except RequestError as error:
        return refuse(error)
    except StageError as error:
        print(f"stopped: {error}", file=sys.stderr)
    except BrokenPipeError:
        # Nobody reads on, as after `| head`; nor shall Python's own last flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"stopped: {error.strerror or error}; free disk space or mend the directory", file=sys.stderr)
    except Stopped as error:
        print(f"stopped: {error}; the same command goes on from here", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped: interrupted; the same command goes on from what was saved before", file=sys.stderr)
    return 1
