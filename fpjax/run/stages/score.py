"""Stage score: trains the score network by denoising score matching, or takes in a model of diffusers."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ...core.compilation import jit_once
from ...core.errors import StageError
from ...core.paths import local_path
from ...core.store import tree_digest, write_arrays
from ...core.terminal import say
from ...data.results import DataResult
from ...detectors.results import ClassifiersResult
from ...diffusion.pretrained.imported import Imported
from ...diffusion.pretrained.weights import read_params
from ...diffusion.results import ScoreResult
from ...diffusion.sde import SdeSettings
from ...diffusion.training import TrainingSettings, fit, init_state, make_train_step
from ...models.unet import UNetSettings
from ...report.sections import models
from ..job import Job
from ..stage import Cost, Stage
from ..timing import Program, timed_batch


def _take_in(job: Job, imported: Imported) -> None:
    """Takes a model's weights into the run's own checkpoints, so that later stages need its directory no more."""
    params = read_params(local_path("score.path", job.config.score.path), imported.architecture)
    for line in imported.not_followed(job.config.sampler, job.sampler):
        say(f"score: not followed: {line}")
    if not imported.scheduler:
        say(f"score: scheduler: {imported.told(job.config.sde.name)}")
    checkpoints = job.checkpoints("score")
    checkpoints.save(0, params)
    checkpoints.close()
    job.finish(ScoreResult(0, _size(params), len(job.planted.train), tree_digest(params), imported))


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def run(job: Job) -> None:
    """Ends with the EMA parameters in a checkpoint, and their digest in the result."""
    if job.imported:
        return _take_in(job, job.imported)
    key_init, key_train, key_samples = jax.random.split(job.key(ScoreResult), 3)
    params = jit_once(job.init_params)(key_init)
    num_params = _size(params)

    def sample(step: int, ema_params: Any) -> None:
        try:
            samples = job.draw_grid(ema_params, key=key_samples)
        except StageError as error:
            # Pictures on the way are no reason to stop training.
            say(f"score: no samples at step {step}: {error}")
            return
        write_arrays(job.workdir / "samples" / f"score_{step}.npz", samples=samples)

    with contextlib.closing(job.checkpoints("score")) as checkpoints:
        state = fit(
            job.loss,
            params,
            job.planted.train,
            job.config.score,
            key=key_train,
            checkpoints=checkpoints,
            log=job.log,
            sample=sample,
        )
    job.finish(ScoreResult(int(state.step), num_params, len(job.planted.train), tree_digest(state.ema_params)))


def cost(job: Job) -> Cost:
    """Images that are trained on."""
    score = job.config.score
    if job.imported:
        return Cost("imported")
    text = f"{score.num_steps:,} steps x {score.batch_size} images"
    return Cost(text, {"training": score.num_steps * score.batch_size})


def evaluation_program(job: Job, whole: bool, *, batch: int = 0) -> Program:
    """The score of some images at once; by default of as many as a device has slots."""
    full = job.config.engine.slots
    batch = batch or timed_batch(full, whole=whole)

    def evaluate(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(job.make_score(params))(x, t)

    x, t = jnp.zeros((batch, *job.image_shape)), jnp.full(batch, 0.5)
    return Program(evaluate, (job.fresh_params, x, t), batch, full, unit="evaluations")


def training_program(job: Job, whole: bool) -> Program | None:
    """One step of training."""
    if job.imported:
        return None
    score, key, full = job.config.score, jax.random.key(0), job.config.score.batch_size // jax.local_device_count()
    batch = timed_batch(full, whole=whole)
    parts = 1 if jax.default_backend() == "cpu" else score.accumulate
    settings = dataclasses.replace(score, batch_size=batch, accumulate=parts)
    state, data = init_state(job.fresh_params, settings), jnp.asarray(job.planted.train)
    return Program(make_train_step(job.loss, settings), (state, data, key), batch, full)


SCORE = Stage(
    "score",
    ScoreResult,
    needs=(DataResult, ClassifiersResult),
    settings=(SdeSettings, UNetSettings, TrainingSettings),
    stream=1,
    run=run,
    cost=cost,
    section=models.TRAINING,
    weights=lambda job: ("score",),
    programs={"evaluation": evaluation_program, "training": training_program},
)
