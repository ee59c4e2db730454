"""The two detectors: the fingerprint classifier (is there a disc?) and the identity classifier (which target?).

One output for each target, members and held-out alike. Neither the mark nor its position is a cue for identity:
positives include the target's clean original under a fresh disc, negatives include other images with the target's
own disc, and random discs cover both (paper, section 5.2 and appendix A).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array

from .artifacts import Checkpoints, MetricsLog
from .augment import add_noise, mask_randomly, stamp_randomly
from .checks import StageError, check, in_range, one_of, whole
from .compilation import jit_once
from .detection import Detector
from .fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from .models.resnet import ResNet, ResNetSettings
from .progress import Progress, stopping
from .types import DetectFn, Images, Key

DETECTORS = ("classifiers", "identity", "nearest")
DISTANCES = ("ratio", "absolute")


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """How detection works: by classifiers, how they are trained; and when a score counts.

    Attributes:
      path: work directory of another run with the same targets, whose classifiers are used; empty: trains its own.
      detector: classifiers; or identity, c_id alone (paper, section 6); or nearest: by distances to training images,
        which trains nothing.
      distance: of nearest, ratio: relative to the image's nearest training images; or absolute.
      neighbours: k of ratio, training images whose mean distance is the unit; fewer where there are fewer.
      ratio: the distance in this unit below which an image is the target, at a threshold of 0.5.
      max_difference: the same of absolute: root mean square difference of the pixels, with black 0 and white 1.
      learning_rate: Adam's.
      batch_size: images a step.
      steps_per_epoch: optimiser steps between two looks at the validation loss.
      max_epochs: upper limit of the training.
      patience: epochs without a better validation loss before it stops.
      fingerprint_rate: share of positives while training c_p; `fingerprint_rate_val` in validation.
      identity_rate: share of positives, over all heads, while training c_id; `identity_rate_val` in validation.
      max_masks: most discs that cover an image of c_id.
      max_noise: largest standard deviation of added noise, in model range.
      num_val: validation examples, drawn once.
      threshold: score above which a classifier says yes, in (0, 1).
      thresholds: others at which detections are counted too, to see how much the answer depends on it.
    """

    path: str = ""
    detector: str = "classifiers"
    distance: str = "ratio"
    neighbours: int = 50
    ratio: float = 1 / 3
    max_difference: float = 0.1
    learning_rate: float = 1e-3
    batch_size: int = 128
    steps_per_epoch: int = 100
    max_epochs: int = 200
    patience: int = 20
    fingerprint_rate: float = 0.5
    fingerprint_rate_val: float = 0.1
    identity_rate: float = 0.1
    identity_rate_val: float = 0.5
    max_masks: int = 4
    max_noise: float = 0.1
    num_val: int = 1024
    threshold: float = 0.5
    thresholds: tuple[float, ...] = (0.05, 0.1, 0.25, 0.75, 0.9, 0.95)

    def __post_init__(self) -> None:
        one_of("classifiers.detector", self.detector, DETECTORS)
        whole("classifiers", self, names=("neighbours",), most=10**4)
        one_of("classifiers.distance", self.distance, DISTANCES)
        in_range("classifiers.ratio", self.ratio, 0.01, 1.0, fix="use 1/3")
        in_range("classifiers.max_difference", self.max_difference, 1e-3, 1.0, fix="use 0.1")
        check(
            not self.path or self.detector != "nearest",
            "classifiers.path",
            got="another run's directory, with a detector that trains nothing",
            expected="an empty path with classifiers.detector = nearest",
            fix="leave one of the two out",
        )
        in_range("classifiers.learning_rate", self.learning_rate, 1e-12, 1.0)
        whole("classifiers", self, names=("batch_size", "num_val"), most=2**16)
        whole("classifiers", self, names=("steps_per_epoch", "max_epochs", "patience"), most=10**6)
        whole("classifiers", self, names=("max_masks",), least=0, most=100)
        for name in ("fingerprint_rate", "fingerprint_rate_val", "identity_rate", "identity_rate_val"):
            in_range(f"classifiers.{name}", getattr(self, name), 0.0, 1.0)
        for name, threshold in (("threshold", self.threshold), *(("thresholds", each) for each in self.thresholds)):
            check(
                0 < threshold < 1,
                f"classifiers.{name}",
                got=threshold,
                expected="a number in (0, 1)",
                fix="use 0.5",
            )
        in_range("classifiers.max_noise", self.max_noise, 0.0, 2.0)


class DetectorData(NamedTuple):
    """Images (float32, model range) and places that the examples are drawn from."""

    others: jax.Array  # (n, h, w, c) images that are no target
    targets: jax.Array  # (k, h, w, c) stamped
    originals: jax.Array  # (k, h, w, c) clean
    centers: jax.Array  # (k, 2) row and column of each target's disc


Example = Callable[[Key, DetectorData], tuple[jax.Array, jax.Array]]


def fingerprint_example(
    key: Key, data: DetectorData, *, rate: float, radius: int, settings: ClassifierSettings
) -> tuple[jax.Array, jax.Array]:
    """One image, with a disc at a random place in a share `rate` of the draws; label of shape (1,)."""
    key_row, key_label, key_disc, key_noise = jax.random.split(key, 4)
    num_others = len(data.others)
    # The originals are images like any other here: without a disc of their own.
    row = jax.random.randint(key_row, (), 0, num_others + len(data.originals))
    image = jnp.where(
        row < num_others,
        data.others[jnp.minimum(row, num_others - 1)],
        data.originals[jnp.maximum(row - num_others, 0)],
    )
    label = jax.random.bernoulli(key_label, rate)
    image = jnp.where(label, stamp_randomly(key_disc, image, radius), image)
    return add_noise(key_noise, image, settings.max_noise), label[None].astype(jnp.float32)


def identity_example(
    key: Key, data: DetectorData, *, rate: float, radius: int, settings: ClassifierSettings
) -> tuple[jax.Array, jax.Array]:
    """One image, a target in a share `rate` of the draws; label of shape (k,), one-hot or zero.

    Half of the positives are the target as planted, half its original under a fresh disc. The negatives are other
    images: a quarter with some target's own disc, a quarter with a fresh one, half plain.
    """
    key_label, key_head, key_row, key_kind, key_disc, key_mask, key_noise = jax.random.split(key, 7)
    label = jax.random.bernoulli(key_label, rate)
    head = jax.random.randint(key_head, (), 0, len(data.targets))
    kind = jax.random.randint(key_kind, (), 0, 4)
    fresh = functools.partial(stamp_randomly, key_disc, radius=radius)
    positive_image = jnp.where(kind < 2, data.targets[head], fresh(data.originals[head]))
    other = data.others[jax.random.randint(key_row, (), 0, len(data.others))]
    center = data.centers[head]
    height, width, _ = other.shape
    same_place = stamp(other, disc_mask((height, width), (center[0], center[1]), radius), FINGERPRINT_VALUE)
    negative_image = jnp.where(kind == 0, same_place, jnp.where(kind == 1, fresh(other), other))
    image = jnp.where(label, positive_image, negative_image)
    image = mask_randomly(key_mask, image, radius, settings.max_masks)
    image = add_noise(key_noise, image, settings.max_noise)
    return image, jnp.where(label, jax.nn.one_hot(head, len(data.targets)), 0.0)


class _FitState(NamedTuple):
    """Everything a resumed training needs; `epoch` counts finished epochs."""

    epoch: jax.Array
    variables: Any
    opt_state: Any
    best_variables: Any
    best_loss: jax.Array
    best_epoch: jax.Array


def init_fit(model: nn.Module, settings: ClassifierSettings, key: Key, image: jax.Array) -> _FitState:
    """State of one classifier before its first epoch, for images shaped as the (1, h, w, c) `image`."""
    variables = model.init(key, image)
    return _FitState(
        jnp.zeros((), jnp.int32),
        variables,
        optax.adam(settings.learning_rate).init(variables["params"]),
        jax.tree.map(jnp.copy, variables),
        jnp.full((), jnp.inf),
        jnp.zeros((), jnp.int32),
    )


def _fit(
    model: nn.Module,
    train_example: Example,
    val_example: Example,
    train: DetectorData,
    val: DetectorData,
    settings: ClassifierSettings,
    *,
    positive_weight: float,
    key: Key,
    checkpoints: Checkpoints,
    log: MetricsLog,
    label: str,
) -> _FitState:
    """Trains one classifier until its validation loss has not fallen for `patience` epochs."""
    tx = optax.adam(settings.learning_rate)
    key_init, key_val, key_train = jax.random.split(key, 3)
    draw = jax.vmap(train_example, in_axes=(0, None))

    def bce(logits: jax.Array, labels: jax.Array) -> jax.Array:
        weights = jnp.where(labels > 0, positive_weight, 1.0)
        return jnp.mean(weights * optax.sigmoid_binary_cross_entropy(logits, labels))

    @jax.jit
    def step(variables: Any, opt_state: Any, data: DetectorData, key: Key) -> tuple[Any, Any, jax.Array]:
        images, labels = draw(jax.random.split(key, settings.batch_size), data)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return bce(logits, labels), updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, opt_state, loss

    val_images, val_labels = jit_once(jax.vmap(val_example, in_axes=(0, None)))(
        jax.random.split(key_val, settings.num_val), val
    )
    num_batches = -(-settings.num_val // settings.batch_size)

    # Images are arguments, as constants they would lie in the compilation cache, outside the run's directory.
    @jax.jit
    def val_loss(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        parts = [model.apply(variables, part) for part in jnp.array_split(images, num_batches)]
        return bce(jnp.concatenate(parts), labels)  # pyright: ignore[reportArgumentType]

    state = jit_once(functools.partial(init_fit, model, settings))(key_init, train.others[:1])
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
    progress = Progress(label, settings.max_epochs, "epochs", done=int(state.epoch))
    while (epoch := int(state.epoch)) < settings.max_epochs and epoch - int(state.best_epoch) < settings.patience:
        variables, opt_state, losses = state.variables, state.opt_state, []
        for key_step in jax.random.split(jax.random.fold_in(key_train, epoch), settings.steps_per_epoch):
            variables, opt_state, loss = step(variables, opt_state, train, key_step)
            losses.append(loss)
            if stopping():
                # The epoch is drawn again from its own key.
                checkpoints.save(epoch, state)
                progress.update(epoch)
        train_loss, loss = float(np.mean(jax.device_get(losses))), float(val_loss(variables, val_images, val_labels))
        if not np.isfinite(train_loss + loss):
            raise StageError(
                f"{label}: loss {train_loss} in training, {loss} in validation at epoch {epoch + 1}; "
                "lower classifiers.learning_rate"
            )
        better = loss < float(state.best_loss)
        state = _FitState(
            jnp.asarray(epoch + 1, jnp.int32),
            variables,
            opt_state,
            variables if better else state.best_variables,
            jnp.asarray(loss if better else float(state.best_loss), jnp.float32),
            jnp.asarray(epoch + 1 if better else int(state.best_epoch), jnp.int32),
        )
        log.write(label, epoch=epoch + 1, loss=train_loss, val_loss=loss)
        if stopping() or (epoch + 1) % 5 == 0:
            checkpoints.save(epoch + 1, state)
        progress.update(epoch + 1, f"validation loss {loss:.4f}, best {float(state.best_loss):.4f}")
    checkpoints.save(int(state.epoch), state)
    return state


NAMES = ("fingerprint", "identity")


class Detectors(NamedTuple):
    """Trained variables of both classifiers, or of the identity's alone, and the epochs each took."""

    fingerprint: Any | None
    identity: Any
    epochs: tuple[int, ...]


def make_models(settings: ResNetSettings, num_targets: int) -> tuple[ResNet, ResNet]:
    """Fingerprint and identity networks."""
    return ResNet(settings, num_heads=1), ResNet(settings, num_heads=num_targets)


def train_detectors(
    models: tuple[ResNet, ResNet],
    train: DetectorData,
    val: DetectorData,
    settings: ClassifierSettings,
    *,
    key: Key,
    radius: int,
    checkpoints: dict[str, Checkpoints],
    log: MetricsLog,
) -> Detectors:
    """Trains the classifiers that there are checkpoints for, both or the identity's; takes up what these hold.

    Args:
      models: of `make_models`.
      train: images to draw training examples from.
      val: other images, with the same targets.
      key: root of all draws.
      radius: of the disc, in pixels.
      checkpoints: by name, one or both of `NAMES`.
    """
    specs = (
        ("fingerprint classifier", fingerprint_example, settings.fingerprint_rate, settings.fingerprint_rate_val, 1.0),
        # One head sees 1/k of the positives, so they weigh k times as much.
        (
            "identity classifier",
            identity_example,
            settings.identity_rate,
            settings.identity_rate_val,
            float(len(train.targets)),
        ),
    )
    states = {}
    for i, (label, example, rate, rate_val, weight) in enumerate(specs):
        if NAMES[i] not in checkpoints:
            continue
        make = functools.partial(example, radius=radius, settings=settings)
        states[NAMES[i]] = _fit(
            models[i],
            functools.partial(make, rate=rate),
            functools.partial(make, rate=rate_val),
            train,
            val,
            settings,
            positive_weight=weight,
            key=jax.random.fold_in(key, i),
            checkpoints=checkpoints[NAMES[i]],
            log=log,
            label=label,
        )
    fingerprint = states[NAMES[0]].best_variables if NAMES[0] in states else None
    epochs = tuple(int(state.epoch) for state in states.values())
    return Detectors(fingerprint, states[NAMES[1]].best_variables, epochs)


@functools.partial(jax.jit, static_argnums=0)
def _scores(models: tuple[ResNet, ResNet], fingerprint: Any, identity: Any, images: Images) -> tuple[Array, Array]:
    who: Any = models[1].apply(identity, images)
    if fingerprint is None:
        return jnp.ones(len(images)), jax.nn.sigmoid(who)
    disc: Any = models[0].apply(fingerprint, images)
    return jax.nn.sigmoid(disc[:, 0]), jax.nn.sigmoid(who)


def make_detect_fn(models: tuple[ResNet, ResNet], fingerprint: Any | None, identity: Any) -> DetectFn:
    """Scores of both classifiers in evaluation mode, compiled; without the first, its score is 1. See `DetectFn`.

    The weights are arguments of the compiled function, not constants in it.
    """
    return functools.partial(_scores, models, fingerprint, identity)


def make_classifier_detector(models: tuple[ResNet, ResNet], fingerprint: Any | None, identity: Any) -> Detector:
    """Detector by both classifiers, or by the identity classifier alone (paper, section 6)."""
    return Detector(
        make_detect_fn(models, fingerprint, identity),
        "identity classifier alone" if fingerprint is None else "fingerprint and identity classifier, both",
        marks=fingerprint is not None,
        advice="train the detectors longer",
    )
