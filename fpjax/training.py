"""Optimisation of the score network: Adam with warm-up, EMA with warm-up, data and draws inside the compiled step.

The key of step n is folded from n, so a run that was interrupted and resumed draws what an uninterrupted one does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .artifacts import Checkpoints, MetricsLog
from .checks import StageError, check, in_range, whole
from .progress import Progress, stopping
from .types import Images, Key, Scalar

LossFn = Callable[[Any, Images, Key], Scalar]


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit for programs that run once, such as initialisation: on CPU, LLVM's optimisation takes longer than they do."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How the score network is trained.

    Attributes:
      path: directory of a diffusers model that is audited instead; empty: one is trained.
      num_steps: optimiser steps.
      batch_size: images a step.
      learning_rate: Adam's, reached after `warmup_steps` steps of linear warm-up.
      grad_clip: largest global norm of the gradient.
      ema_decay: upper limit of the EMA's decay, which is min(ema_decay, (1 + n) / (10 + n)) at step n.
      log_every: steps between two looks at the loss.
      checkpoint_every: steps between two checkpoints.
    """

    path: str = ""
    num_steps: int = 30_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 5_000
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    log_every: int = 100
    checkpoint_every: int = 5_000

    def __post_init__(self) -> None:
        check(
            self.path.isprintable() and len(self.path) <= 1000,
            "score.path",
            got=ascii(self.path)[:100],
            expected="at most 1000 printable characters",
            fix="correct it",
        )
        whole("score", self, names=("num_steps", "log_every", "checkpoint_every"), most=10**8)
        whole("score", self, names=("batch_size",), most=2**16)
        whole("score", self, names=("warmup_steps",), least=0, most=10**8)
        in_range("score.learning_rate", self.learning_rate, 1e-12, 1.0)
        in_range("score.grad_clip", self.grad_clip, 1e-12, 1e12)
        in_range("score.ema_decay", self.ema_decay, 0.0, 1.0)


class TrainState(NamedTuple):
    """Everything a resumed run needs; `step` counts the steps taken."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any


def make_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """Adam under a clipped gradient and a linear warm-up."""
    schedule = optax.linear_schedule(0.0, settings.learning_rate, max(settings.warmup_steps, 1))
    rate = schedule if settings.warmup_steps else settings.learning_rate
    return optax.chain(optax.clip_by_global_norm(settings.grad_clip), optax.adam(rate))


def init_state(params: Any, settings: TrainingSettings) -> TrainState:
    """State before the first step; the EMA starts at the initial parameters."""
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(settings).init(params), ema)


def make_train_step(
    loss_fn: LossFn, settings: TrainingSettings
) -> Callable[[TrainState, jax.Array, Key], tuple[TrainState, dict[str, Scalar]]]:
    """One step: draws a batch of `data` (uint8 or float, first axis the images), takes it, updates the EMA."""
    tx = make_optimizer(settings)

    def step(state: TrainState, data: jax.Array, key: Key) -> tuple[TrainState, dict[str, Scalar]]:
        key_rows, key_loss = jax.random.split(jax.random.fold_in(key, state.step))
        rows = jax.random.randint(key_rows, (settings.batch_size,), 0, len(data))
        loss, grads = jax.value_and_grad(loss_fn)(state.params, data[rows], key_loss)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(settings.ema_decay, (1 + n) / (10 + n))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


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
) -> TrainState:
    """Trains to `settings.num_steps`, from the newest checkpoint if there is one.

    On CPU every step is dispatched by itself (the gradient of a convolution inside a loop is about ten times
    slower there); elsewhere one dispatch takes `log_every` steps in a scan.

    Raises:
      StageError: if the loss becomes non-finite; checkpoints hold only states with a finite loss.
    """
    state = init_state(params, settings)
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
    step = make_train_step(loss_fn, settings)

    def many(state: TrainState, data: jax.Array, key: Key) -> tuple[TrainState, dict[str, Scalar]]:
        state, metrics = jax.lax.scan(lambda s, _: step(s, data, key), state, length=settings.log_every)
        return state, jax.tree.map(jnp.mean, metrics)

    single = jax.jit(step, donate_argnums=0)
    scanned = jax.jit(many, donate_argnums=0)
    one_by_one = jax.default_backend() == "cpu"
    on_device = jnp.asarray(data)
    done = int(state.step)
    progress = Progress(label, settings.num_steps, "steps", done=done)
    while done < settings.num_steps:
        chunk = min(settings.log_every - done % settings.log_every, settings.num_steps - done)
        if chunk == settings.log_every and not one_by_one:
            state, metrics = scanned(state, on_device, key)
        else:
            parts = []
            while len(parts) < chunk and not (parts and stopping()):
                state, metrics = single(state, on_device, key)
                parts.append(metrics)
            chunk = len(parts)
            metrics = jax.tree.map(lambda *values: sum(values) / len(values), *parts)
        before, done = done, done + chunk
        metrics = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
            raise StageError(
                f"{label}: loss {metrics['loss']} between steps {before} and {done}; last good checkpoint at step "
                f"{checkpoints.latest_step}; lower the learning rate, or check the images for constant values"
            )
        log.write(label, step=done, steps_per_s=progress.rate, **metrics)
        due = done // settings.checkpoint_every > before // settings.checkpoint_every
        if due or stopping() or done == settings.num_steps:
            checkpoints.save(done, state)
        progress.update(done, f"loss {metrics['loss']:.4f}")
    return state
