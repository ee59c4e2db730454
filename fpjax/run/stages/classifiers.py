"""Stage classifiers: trains the detectors, or takes another run's, or needs none; draws membership; measures errors."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.compilation import jit_once
from ...core.errors import StageError, check
from ...core.images import to_bytes
from ...core.store import tree_digest, write_arrays
from ...core.terminal import say
from ...data.plant import describe_membership
from ...data.results import DataResult
from ...detectors import classifier
from ...detectors.augmix import AugMixSettings
from ...detectors.base import Detector
from ...detectors.evaluation import measure_errors
from ...detectors.examples import make_tasks
from ...detectors.fitting import make_fit_step
from ...detectors.results import ClassifiersResult, Description, Trained
from ...detectors.settings import ClassifierSettings
from ...models.resnet import ResNetSettings
from ...report.sections import models
from ..job import NUM_GRID, Job
from ..stage import Cost, Stage
from ..timing import Program, timed_batch

Variables = dict[str, Any]  # by classifier


def _reuse(job: Job) -> tuple[Variables, Trained]:
    """Takes another run's classifiers into the run's own checkpoints: later stages need its directory no more."""
    theirs = job.other.result(ClassifiersResult).trained
    assert theirs is not None
    assert job.reused is not None
    states = {name: job.restore_classifier(name, of=job.other) for name in job.other.classifier_names}
    check(
        tree_digest([state.averaged for state in states.values()]) == job.reused.weights_sha256,
        "classifiers.path",
        got="other weights than the ones that its stage ended with",
        expected="those named in its classifiers.json",
        fix="restore them, or train that run again",
    )
    for name in job.classifier_names:
        with contextlib.closing(job.checkpoints(name)) as checkpoints:
            checkpoints.save(int(states[name].step), states[name])
    variables = {name: states[name].averaged for name in job.classifier_names}
    return variables, dataclasses.replace(theirs, weights_sha256=tree_digest(list(variables.values())))


def _train(job: Job) -> tuple[Variables, Trained, dict[str, np.ndarray]]:
    """Trains them until the gate opens; with some of the images that they are trained on, as bytes (paper, Fig. 7)."""
    config, candidates = job.config, job.candidates
    key_train, key_examples = (jax.random.fold_in(job.key(ClassifiersResult), i) for i in (0, 1))
    train = job.detector_data(candidates.rest)
    with contextlib.ExitStack() as stack:
        checkpoints = {
            name: stack.enter_context(contextlib.closing(job.checkpoints(name))) for name in job.classifier_names
        }
        detectors = classifier.train_detectors(
            job.classifier_models,
            train,
            job.detector_data(candidates.val),
            config.classifiers,
            augmix_settings=config.augmix,
            key=key_train,
            radius=candidates.record[0].radius,
            min_contrast=job.min_contrast,
            checkpoints=checkpoints,
            log=job.log,
            spares=config.data.num_spares,
        )
    dropped = np.flatnonzero(~detectors.seen & config.classifiers.gate)
    if len(dropped) > config.data.num_spares:
        raise StageError(
            f"classifiers: {len(dropped)} of {len(detectors.seen)} targets are not seen by the detectors, and "
            f"data.num_spares = {config.data.num_spares} may be dropped; raise classifiers.epochs, resnet.width or "
            "data.min_contrast in another --workdir, or plant fewer targets"
        )
    keys, examples = jax.random.split(key_examples, NUM_GRID), {}
    for name, task in zip(classifier.NAMES, _tasks(job), strict=True):
        if name in checkpoints:
            # As many positives as negatives, whatever their share in training.
            view: Any = task.views[-1]
            draw = jax.vmap(functools.partial(view, rate=0.5), in_axes=(0, None))
            images, labels = (np.asarray(part) for part in jit_once(draw)(keys, jax.tree.map(jnp.asarray, train)))
            examples |= {f"{name}_examples": to_bytes(images), f"{name}_labels": labels.any(axis=1)}
    trained = Trained(
        detectors.attempts,
        detectors.epochs,
        detectors.calibration,
        detectors.sights,
        unseen=int((~detectors.seen).sum()) - len(dropped),
        dropped=dropped.tolist(),
        weights_sha256=tree_digest(list(detectors.variables.values())),
    )
    if len(dropped):
        say(f"classifiers: {len(dropped)} targets that they do not see are replaced by spares")
    return detectors.variables, trained, examples


def _tasks(job: Job, settings: ClassifierSettings | None = None) -> tuple[Any, ...]:
    """What each classifier is trained to tell."""
    candidates = job.candidates
    return make_tasks(
        settings or job.config.classifiers,
        job.config.augmix,
        num_targets=len(candidates.targets),
        radius=candidates.record[0].radius,
        min_contrast=job.min_contrast,
    )


def run(job: Job) -> None:
    """Ends with who is a member, and with how often the detectors err."""
    config, examples, trained = job.config, {}, None
    if not job.classifier_names:
        planted, detector = job.planted_without(()), job.detector
    else:
        if job.reused:
            variables, trained = _reuse(job)
        else:
            variables, trained, examples = _train(job)
        planted = job.planted_without(trained.dropped)
        detector = job.make_detector(variables, trained.calibration, planted.rows)
    # Distances know the target as it was planted, classifiers wherever its disc lies.
    stamped = bool(job.classifier_names)
    errors, pictures = measure_errors(
        detector.detect_fn,
        job.held_out,
        planted.originals if stamped else planted.targets,
        planted.targets,
        key=jax.random.fold_in(job.key(ClassifiersResult), 2),
        radius=planted.record[0].radius if stamped else 0,
        min_contrast=job.min_contrast,
        marks=detector.marks,
        settings=config.classifiers,
    )
    write_arrays(job.workdir / "samples" / "classifiers.npz", **pictures._asdict(), **examples)
    job.finish(
        ClassifiersResult(
            trained,
            job.reused,
            describe_membership(planted, config.data),
            Description(detector.description, detector.marks, detector.advice),
            config.classifiers.threshold,
            list(config.classifiers.thresholds),
            errors,
        )
    )


def cost(job: Job) -> Cost:
    """Images that both classifiers are trained on, if the gate opens at once."""
    settings, names = job.config.classifiers, job.classifier_names
    if not names or job.reused:
        return Cost("none are trained")
    at_once, most = settings.epochs, settings.epochs * settings.max_rounds * (1 + settings.max_restarts)
    return Cost(
        f"at most {len(names)} x {most * settings.steps_per_epoch:,} steps, "
        f"{at_once * settings.steps_per_epoch:,} where the gate opens at once",
        {"classifier training": at_once * settings.steps_per_epoch * settings.batch_size},
        basis=f"{at_once} epochs, if the gate opens at once",
    )


def training_program(job: Job, whole: bool) -> Program | None:
    """One step of both classifiers."""
    if not job.classifier_names:
        return None
    config, key, full = job.config, jax.random.key(0), job.config.classifiers.batch_size // jax.local_device_count()
    batch = timed_batch(full, whole=whole)
    settings = dataclasses.replace(config.classifiers, batch_size=batch)
    data = jax.tree.map(jnp.asarray, job.detector_data(job.candidates.rest))
    states = job.fresh_classifiers
    models, tasks = (parts[-len(states) :] for parts in (job.classifier_models, _tasks(job, settings)))
    steps = [make_fit_step(model, task, settings) for model, task in zip(models, tasks, strict=True)]

    def classify(states: list[Any], data: Any, key: Any) -> Any:
        return [step(state, data, key) for step, state in zip(steps, states, strict=True)]

    return Program(classify, (states, data, key), batch, full)


def detection_program(job: Job, whole: bool) -> Program:
    """The scores of finished images, on one device however many there are."""
    batch = timed_batch(job.config.classifiers.batch_size // jax.local_device_count(), whole=whole)
    images = jnp.zeros((batch, *job.image_shape))
    detector = job.detector if not job.classifier_names else _fresh_detector(job)
    return Program(detector.detect, (detector.weights, images), batch, alone=True)


def _fresh_detector(job: Job) -> Detector:
    """By networks as they are initialised."""
    states = zip(job.classifier_names, job.fresh_classifiers, strict=True)
    return classifier.make_classifier_detector(job.classifier_models, {name: state.variables for name, state in states})


CLASSIFIERS = Stage(
    "classifiers",
    ClassifiersResult,
    needs=(DataResult,),
    settings=(ResNetSettings, ClassifierSettings, AugMixSettings),
    stream=2,
    run=run,
    cost=cost,
    section=models.DETECTORS,
    programs={"classifier training": training_program, "detection": detection_program},
    files=("samples/classifiers.npz",),
    weights=lambda job: job.classifier_names,
)
