"""Optimisation of the score network: Adam with warm-up, EMA with warm-up, data and draws inside the compiled step.

The key of step n is folded from n, and each image of a batch has its own: a run that was interrupted and resumed draws
what an uninterrupted one does, and so does one on more devices or in smaller parts.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.checkpoints import Checkpoints
from ..core.devices import batch_mesh
from ..core.errors import StageError, check, in_range, one_of, whole
from ..core.metrics import MetricsLog
from ..core.progress import Progress, stopping
from ..core.terminal import printable
from ..core.types import Images, Key, Keys, Scalar
from .preconditioning import PREDICTIONS
from .score import WEIGHTINGS

# From parameters, a batch and one key for each image: the time and the loss of each image, both of shape (n,).
LossFn = Callable[[Any, Images, Keys], tuple[jax.Array, jax.Array]]
NUM_BINS = 10  # of t in [0, 1], in which the loss is logged


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How the score network is trained.

    Attributes:
      path: directory of a diffusers model that is audited instead; empty: one is trained.
      without_scheduler: that model has no scheduler, or one that is not to be read: it predicts epsilon of `sde` and is
        told 999 t.
      num_steps: optimiser steps.
      batch_size: images a step, over all devices.
      accumulate: parts that a device takes its share of the batch in, one after the other: less memory, the same step.
      learning_rate: Adam's, reached after `warmup_steps` steps of linear warm-up.
      grad_clip: largest global norm of the gradient.
      prediction: what the network predicts, one of `preconditioning.PREDICTIONS`.
      weighting: of the loss over t, one of `score.WEIGHTINGS`; see `dsm_losses`.
      ema_decay: upper limit of the EMA's decay, which is min(ema_decay, (1 + n) / (10 + n)) at step n; these weights
        are the model that is audited.
      ema_extra: the same of further EMAs, which are kept in the checkpoints.
      log_every: steps between two looks at the loss.
      checkpoint_every: steps between two checkpoints.
      keep_last: newest checkpoints that stay.
      keep_every: steps between two checkpoints that stay for good, a multiple of `checkpoint_every`; 0: none.
      sample_every: steps between two grids of samples drawn from the EMA; 0: none.
    """

    path: str = ""
    without_scheduler: bool = False
    num_steps: int = 30_000
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 2e-4
    warmup_steps: int = 5_000
    grad_clip: float = 1.0
    prediction: str = PREDICTIONS[0]
    weighting: str = WEIGHTINGS[0]
    ema_decay: float = 0.9999
    ema_extra: tuple[float, ...] = ()
    log_every: int = 100
    checkpoint_every: int = 5_000
    keep_last: int = 2
    keep_every: int = 0
    sample_every: int = 0

    def __post_init__(self) -> None:
        check(
            printable(self.path) and len(self.path) <= 1000,
            "score.path",
            got=ascii(self.path)[:100],
            expected="at most 1000 printable characters",
            fix="correct it",
        )
        whole("score", self, names=("num_steps", "log_every", "checkpoint_every"), most=10**8)
        whole("score", self, names=("batch_size", "accumulate"), most=2**16)
        whole("score", self, names=("keep_last",), most=10**4)
        whole("score", self, names=("warmup_steps", "keep_every", "sample_every"), least=0, most=10**8)
        in_range("score.learning_rate", self.learning_rate, 1e-12, 1.0)
        in_range("score.grad_clip", self.grad_clip, 1e-12, 1e12)
        in_range("score.ema_decay", self.ema_decay, 0.0, 1.0)
        for decay in self.ema_extra:
            in_range("score.ema_extra", decay, 0.0, 1.0)
        one_of("score.prediction", self.prediction, PREDICTIONS)
        one_of("score.weighting", self.weighting, WEIGHTINGS)
        check(
            self.batch_size % self.accumulate == 0,
            "score.accumulate",
            got=self.accumulate,
            expected=f"a divisor of score.batch_size, {self.batch_size}",
            fix="change one of them",
        )
        check(
            self.keep_every % self.checkpoint_every == 0,
            "score.keep_every",
            got=self.keep_every,
            expected=f"0, or a multiple of score.checkpoint_every, {self.checkpoint_every}",
            fix="change one of them",
        )


class TrainState(NamedTuple):
    """Everything a resumed run needs; `step` counts the steps taken."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any
    ema_extra: tuple[Any, ...]  # one for each decay of `TrainingSettings.ema_extra`


def make_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """Adam under a clipped gradient and a linear warm-up."""
    schedule = optax.linear_schedule(0.0, settings.learning_rate, max(settings.warmup_steps, 1))
    rate = schedule if settings.warmup_steps else settings.learning_rate
    return optax.chain(optax.clip_by_global_norm(settings.grad_clip), optax.adam(rate))


def init_state(params: Any, settings: TrainingSettings) -> TrainState:
    """State before the first step; every EMA starts at the initial parameters."""
    ema, *extra = (jax.tree.map(jnp.copy, params) for _ in (settings.ema_decay, *settings.ema_extra))
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(settings).init(params), ema, tuple(extra))


def training_mesh(settings: TrainingSettings, *, devices: list[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The devices that share each batch: those given, or all local ones.

    Raises:
      RequestError: if they cannot share it evenly.
    """
    return batch_mesh("score.batch_size", settings.batch_size, parts=settings.accumulate, devices=devices)


def _by_time(t: jax.Array, losses: jax.Array) -> dict[str, jax.Array]:
    """Number of images and sum of their losses in each bin of t."""
    hot = jax.nn.one_hot(jnp.clip(NUM_BINS * t, 0, NUM_BINS - 1).astype(jnp.int32), NUM_BINS)
    return {"bin_count": jnp.sum(hot, axis=0), "bin_sum": jnp.sum(hot * losses[:, None], axis=0)}


def make_train_step(
    loss_fn: LossFn, settings: TrainingSettings, *, mesh: Mesh | None = None
) -> Callable[[TrainState, jax.Array, Key], tuple[TrainState, dict[str, jax.Array]]]:
    """One step: draws a batch of `data` (uint8 or float, first axis the images), takes it, updates the EMAs.

    Args:
      mesh: of `training_mesh`, over which the images of a batch are spread; None: one device.

    Returns:
      From state, data and the key of all steps to the next state and `loss`, `grad_norm` (before clipping),
      `bin_count` and `bin_sum` (both of shape (NUM_BINS,), over t).
    """
    tx = make_optimizer(settings)
    shape = (settings.accumulate, settings.batch_size // settings.accumulate)
    # On CPU the gradient of a convolution is about ten times slower inside a loop, even an unrolled `scan`; elsewhere a
    # loop bounds the memory.
    unroll = settings.accumulate == 1 or jax.default_backend() == "cpu"

    def mean_loss(params: Any, images: jax.Array, keys: Keys) -> tuple[Scalar, tuple[jax.Array, jax.Array]]:
        t, losses = loss_fn(params, images, keys)
        return jnp.mean(losses), (t, losses)

    def step(state: TrainState, data: jax.Array, key: Key) -> tuple[TrainState, dict[str, jax.Array]]:
        key_rows, key_loss = jax.random.split(jax.random.fold_in(key, state.step))
        rows = jax.random.randint(key_rows, (settings.batch_size,), 0, len(data))
        keys = jax.random.split(key_loss, settings.batch_size)

        def part(total: Any, drawn: tuple[jax.Array, Keys]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            images = data[drawn[0]]
            if mesh is not None:
                images = jax.lax.with_sharding_constraint(images, NamedSharding(mesh, P("batch")))
            grads, losses = jax.grad(mean_loss, has_aux=True)(state.params, images, drawn[1])
            return jax.tree.map(jnp.add, total, grads), losses

        zeros, parts = jax.tree.map(jnp.zeros_like, state.params), (rows.reshape(shape), keys.reshape(shape))
        if unroll:
            total, taken = zeros, []
            for i in range(settings.accumulate):
                total, one = part(total, (parts[0][i], parts[1][i]))
                taken.append(one)
            t, losses = jax.tree.map(lambda *rows: jnp.stack(rows), *taken)
        else:
            total, (t, losses) = jax.lax.scan(part, zeros, parts)
        grads = jax.tree.map(lambda leaf: leaf / settings.accumulate, total)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)

        def average(ema: Any, limit: float) -> Any:
            decay = jnp.minimum(limit, (1 + n) / (10 + n))
            return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)

        metrics = {"loss": jnp.mean(losses), "grad_norm": optax.global_norm(grads)} | _by_time(
            t.ravel(), losses.ravel()
        )
        ema = average(state.ema_params, settings.ema_decay)
        extra = tuple(average(*track) for track in zip(state.ema_extra, settings.ema_extra, strict=True))
        return TrainState(state.step + 1, params, opt_state, ema, extra), metrics

    return step


def _step_flops(loss_fn: LossFn, settings: TrainingSettings, state: TrainState, data: jax.Array, key: Key) -> float:
    """FLOPs of one step over all devices, as the compiler counts them; nan where it does not."""
    # Of a loop it counts one pass, hence one part of the batch.
    part = dataclasses.replace(settings, batch_size=settings.batch_size // settings.accumulate, accumulate=1)
    costs = jax.jit(make_train_step(loss_fn, part)).lower(state, data, key).cost_analysis() or {}
    return settings.accumulate * float(costs.get("flops", np.nan))


def fit(
    loss_fn: LossFn,
    params: Any,
    data: np.ndarray,
    settings: TrainingSettings,
    *,
    key: Key,
    checkpoints: Checkpoints,
    log: MetricsLog,
    label: str = "score",
    sample: Callable[[int, Any], None] | None = None,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> TrainState:
    """Trains to `settings.num_steps`, from the newest checkpoint if there is one.

    On CPU every step is dispatched by itself (the gradient of a convolution inside a loop is about ten times
    slower there); elsewhere one dispatch takes `log_every` steps in a scan. The host waits for the devices only to log.

    Args:
      params: before the first step; their buffers are used up.
      sample: called with the steps taken and the EMA's parameters every `settings.sample_every` steps.
      devices: those that share each batch; None takes all local ones. Checkpoints fit any number.

    Raises:
      RequestError: if the devices cannot share a batch evenly, or a checkpoint does not fit.
      StageError: if the loss becomes non-finite; checkpoints hold only states with a finite loss.
    """
    mesh = training_mesh(settings, devices=devices)
    everywhere = NamedSharding(mesh, P())
    state, on_device, key = jax.device_put((init_state(params, settings), jnp.asarray(data), key), everywhere)
    checkpoints.drop_damaged()
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
    step = make_train_step(loss_fn, settings, mesh=mesh)

    def many(state: TrainState, data: jax.Array, key: Key) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(lambda s, _: step(s, data, key), state, length=settings.log_every)

    single = jax.jit(step, donate_argnums=0, out_shardings=everywhere)
    scanned = jax.jit(many, donate_argnums=0, out_shardings=everywhere)
    one_by_one = jax.default_backend() == "cpu"
    stops = (settings.log_every, settings.checkpoint_every, settings.sample_every or settings.num_steps)
    done = int(state.step)
    flops = _step_flops(loss_fn, settings, state, on_device, key) if done < settings.num_steps else np.nan
    progress, looked = Progress(label, settings.num_steps, "steps", done=done), time.monotonic()
    while done < settings.num_steps:
        chunk = min(settings.num_steps - done, *(every - done % every for every in stops))
        if chunk == settings.log_every and not one_by_one:
            state, metrics = scanned(state, on_device, key)
            metrics = jax.device_get(metrics)
        else:
            parts = []
            while len(parts) < chunk and not (parts and stopping()):
                state, metrics = single(state, on_device, key)
                parts.append(metrics)
            metrics = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(parts))
        finite = np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])
        if not finite.all():
            bad = int(np.argmin(finite))
            checkpoints.wait()
            raise StageError(
                f"{label}: loss {metrics['loss'][bad]}, gradient of norm {metrics['grad_norm'][bad]} at step "
                f"{done + bad + 1}; last good checkpoint at step {checkpoints.latest_step}; lower the learning rate, "
                "or check the images for constant values"
            )
        taken = len(finite)
        done, rate = done + taken, taken / max(time.monotonic() - looked, 1e-9)
        loss, counts = float(metrics["loss"].mean()), metrics["bin_count"].sum(axis=0)
        log.write(
            label,
            step=done,
            loss=loss,
            grad_norm=float(metrics["grad_norm"].mean()),
            loss_by_t=np.where(counts > 0, metrics["bin_sum"].sum(axis=0) / np.maximum(counts, 1), np.nan),
            steps_per_s=rate,
            images_per_s=rate * settings.batch_size,
            tflop_per_s=rate * flops / 1e12,
        )
        if done % settings.checkpoint_every == 0 or stopping() or done == settings.num_steps:
            checkpoints.save(done, state)
        if sample and settings.sample_every and done % settings.sample_every == 0 and not stopping():
            sample(done, state.ema_params)
        if stopping():
            checkpoints.wait()
        progress.update(done, f"loss {loss:.4f}")
        looked = time.monotonic()
    return state
