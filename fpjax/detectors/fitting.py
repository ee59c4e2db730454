"""Training of one classifier: rounds of cosine decay, an average of weights that is judged, resumable."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.checkpoints import Checkpoints
from ..core.compilation import jit_once
from ..core.devices import batch_mesh
from ..core.errors import StageError
from ..core.metrics import MetricsLog
from ..core.progress import Progress, stopping
from ..core.terminal import say
from ..core.types import Key, Keys
from .augmix import jensen_shannon
from .calibration import Sight
from .examples import DetectorData, Task
from .settings import ClassifierSettings


class FitState(NamedTuple):
    """Everything a resumed training needs."""

    attempt: jax.Array  # trainings from other weights before this one
    step: jax.Array  # of this attempt
    variables: Any
    opt_state: Any
    averaged: Any  # exponential moving average of the variables, batch statistics among them: what is judged


def _optimizer(settings: ClassifierSettings) -> optax.GradientTransformation:
    """Adam, whose rate rises and falls once a round."""
    length = settings.epochs * settings.steps_per_epoch

    def rate(count: Any) -> jax.Array:
        place = (count % length + 1) / length
        return settings.learning_rate * jnp.minimum(20 * place, 1) * 0.5 * (1 + jnp.cos(jnp.pi * place))

    return optax.adam(rate)


def init_fit(model: nn.Module, settings: ClassifierSettings, key: Key, image: jax.Array) -> FitState:
    """State of one classifier before its first step, for images shaped as the (1, h, w, c) `image`."""
    variables = model.init(key, image)
    opt_state, zero = _optimizer(settings).init(variables["params"]), jnp.zeros((), jnp.int32)
    return FitState(zero, zero, variables, opt_state, jax.tree.map(jnp.copy, variables))


def make_fit_step(
    model: nn.Module, task: Task, settings: ClassifierSettings, *, mesh: Mesh | None = None
) -> Callable[[FitState, DetectorData, Key], tuple[FitState, jax.Array]]:
    """One step: draws a batch, each image from a key of its own, and takes it.

    Args:
      mesh: of `batch_mesh`, over which examples are drawn and seen; None: one device. Batch statistics are those of
        the whole batch, whatever the devices.

    Returns:
      From a state, data and the step's key to the next state and the loss.
    """
    tx = _optimizer(settings)

    def draw(key: Key, data: DetectorData) -> tuple[jax.Array, jax.Array]:
        images, labels = zip(*(view(key, data) for view in task.views), strict=True)
        return jnp.stack(images), labels[0]

    def step(state: FitState, data: DetectorData, key: Key) -> tuple[FitState, jax.Array]:
        keys = jax.random.split(key, settings.batch_size)
        if mesh is not None:
            keys = jax.lax.with_sharding_constraint(keys, NamedSharding(mesh, P("batch")))
        images, labels = jax.vmap(draw, in_axes=(0, None))(keys, data)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            rows = images.reshape(-1, *images.shape[2:])  # all views of a batch have one mean and variance
            variables = {**state.variables, "params": params}
            logits, updated = model.apply(variables, rows, train=True, mutable=["batch_stats"])
            seen = jnp.moveaxis(jnp.reshape(logits, (len(labels), len(task.views), -1)), 1, 0)
            loss = jnp.mean(_losses(seen[0], labels, task.positive_weight))
            if settings.js_weight:
                loss += settings.js_weight * jensen_shannon(*seen)
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.variables["params"])
        updates, opt_state = tx.update(grads, state.opt_state)
        variables = {"params": optax.apply_updates(state.variables["params"], updates), **updated}
        decay = jnp.minimum(settings.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        averaged = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.averaged, variables)
        return FitState(state.attempt, state.step + 1, variables, opt_state, averaged), loss

    return step


def _losses(logits: jax.Array, labels: jax.Array, positive_weight: float) -> jax.Array:
    """Binary cross-entropy of each example, (n,), the mean over its heads."""
    weights = jnp.where(labels > 0, positive_weight, 1.0)
    return jnp.mean(weights * optax.sigmoid_binary_cross_entropy(logits, labels), axis=1)


def fit_detector(
    model: nn.Module,
    task: Task,
    train: DetectorData,
    val: DetectorData,
    settings: ClassifierSettings,
    look: Callable[[Any], Sight],
    *,
    spares: int,
    mesh: Mesh,
    key: Key,
    checkpoints: Checkpoints,
    log: MetricsLog,
) -> tuple[FitState, Sight]:
    """Trains one classifier, round after round, until the gate opens or no attempt is left.

    Args:
      look: what a network of these variables sees at the gate.
      spares: targets that may stay unseen rather than start again.

    Returns:
      The last state, and what its average sees.
    """
    key_val, key_init, key_train = jax.random.split(key, 3)
    everywhere, split_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "batch"))
    step = make_fit_step(model, task, settings, mesh=mesh)

    def many(state: FitState, data: DetectorData, keys: Keys) -> tuple[FitState, jax.Array]:
        return jax.lax.scan(lambda state, key: step(state, data, key), state, keys)

    single, scanned = (jax.jit(function, out_shardings=everywhere) for function in (step, many))
    one_by_one = jax.default_backend() == "cpu"

    # Whole batches: examples that fill up the last one do not count.
    shape = (-(-settings.num_val // settings.batch_size), settings.batch_size)
    counted = jnp.arange(math.prod(shape)).reshape(shape) < settings.num_val
    draw_val = jit_once(jax.vmap(jax.vmap(task.val_example, in_axes=(0, None)), in_axes=(0, None)))
    val_batches = jax.device_put((*draw_val(jax.random.split(key_val, shape), val), counted), split_rows)

    # Images are arguments, as constants they would lie in the compilation cache, outside the run's directory.
    @jax.jit
    def validate(variables: Any, *batches: jax.Array) -> tuple[jax.Array, jax.Array]:
        def look(batch: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            images, labels, counted = batch
            logits: Any = model.apply(variables, images)
            right = jnp.all((logits > 0) == (labels > 0), axis=1)
            return jnp.sum(counted * _losses(logits, labels, task.positive_weight)), jnp.sum(counted & right)

        losses, right = jax.lax.map(look, batches)
        return jnp.sum(losses) / settings.num_val, jnp.sum(right) / settings.num_val

    start = jit_once(functools.partial(init_fit, model, settings))

    def begin(attempt: int) -> FitState:
        state = start(jax.random.fold_in(key_init, attempt), train.others[:1])
        return jax.device_put(state._replace(attempt=jnp.asarray(attempt, jnp.int32)), everywhere)

    def train_round(state: FitState, first: int) -> FitState:
        """To the end of the round that an attempt is in at epoch `first`."""
        attempt, end = int(state.attempt), (first // settings.epochs + 1) * settings.epochs
        progress = Progress(task.label, end, "epochs", done=first)
        for epoch in range(first, end):
            key_epoch = jax.random.fold_in(jax.random.fold_in(key_train, attempt), epoch)
            begun, keys, losses = state, jax.random.split(key_epoch, settings.steps_per_epoch), []
            if one_by_one:
                for key_step in keys:
                    state, loss = single(state, train, key_step)
                    losses.append(loss)
                    if stopping():
                        # The epoch is drawn again from its own key.
                        checkpoints.save(attempt * last + epoch, begun)
                        progress.update(epoch)
            else:
                state, losses = scanned(state, train, keys)
            looks = jax.device_get((losses, *validate(state.averaged, *val_batches)))
            train_loss, loss, accuracy = (float(np.mean(look)) for look in looks)
            if not np.isfinite(train_loss + loss):
                raise StageError(
                    f"{task.label}: loss {train_loss} in training, {loss} in validation at epoch {epoch + 1}; "
                    "lower classifiers.learning_rate"
                )
            done = {"attempt": attempt, "epoch": attempt * last + epoch + 1}
            log.write(task.label, **done, loss=train_loss, val_loss=loss, val_accuracy=accuracy)
            if stopping() or (epoch + 1) % 5 == 0 or epoch + 1 == end:
                checkpoints.save(attempt * last + epoch + 1, state)
            progress.update(epoch + 1, f"validation loss {loss:.4f}")
        return state

    last = settings.max_rounds * settings.epochs  # epochs of an attempt
    state = begin(0)
    checkpoints.drop_damaged()
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
    while True:
        attempt, epoch = int(state.attempt), int(state.step) // settings.steps_per_epoch
        if epoch and epoch % settings.epochs == 0:
            sight = look(state.averaged)
            unseen, over = int((~sight.seen).sum()), epoch >= last
            done = not (unseen and settings.gate) or (over and (unseen <= spares or attempt >= settings.max_restarts))
            if unseen:
                end = "enough training" if settings.gate else "they stay (classifiers.gate)"
                then = end if done else "starts again from other weights" if over else "trains on"
                what = f"{unseen} of {len(sight.seen)} targets not seen after {epoch} epochs, attempt {attempt + 1}"
                say(f"{task.label}: {what}: {then}")
            if done:
                return state, sight
            if over:
                state, epoch = begin(attempt + 1), 0
        state = train_round(state, epoch)


def detector_mesh(settings: ClassifierSettings, *, devices: list[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The devices that share each batch: those given, or all local ones; RequestError if they cannot evenly."""
    return batch_mesh("classifiers.batch_size", settings.batch_size, devices=devices)
