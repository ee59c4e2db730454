"""The two detectors: the fingerprint classifier (is there a disc?) and the identity classifier (which target?).

One output for each target, members and held-out alike. Neither the mark nor its position is a cue for identity:
positives include the target's clean original under a fresh disc, negatives include other images with the target's
own disc, and random discs cover both (paper, section 5.2 and appendix A). All come noisy, blurred and in other tones,
as a model gives back what it has not learned well.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from .artifacts import Checkpoints, MetricsLog
from .augment import add_noise, mask_randomly, reproduce_poorly, stamp_randomly
from .augmix import AugMixSettings, augmix, jensen_shannon
from .calibration import Calibration, Sight, calibrate, gate_images, look_for_marks, look_for_targets
from .checks import StageError, check, in_range, one_of, whole
from .compilation import jit_once
from .detection import Detector
from .devices import batch_mesh
from .fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from .models.resnet import ResNet, ResNetSettings
from .progress import Progress, stopping
from .types import DetectFn, Image, Images, Key

DETECTORS = ("classifiers", "identity", "nearest")
DISTANCES = ("ratio", "absolute")
MIN_PER_CLASS = 30  # of validation: the 95 % limit of a rate of which none was seen is 1 - 0.05^(1/30) = 0.095


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
      learning_rate: Adam's, at its height: in every round it rises over the first twentieth and falls as a cosine to 0.
      batch_size: images a step.
      steps_per_epoch: optimiser steps between two looks at the validation loss.
      epochs: of a round. The weights at its end are judged, no epoch is chosen.
      max_rounds: after which training starts again from other weights, where the gate (`calibration`) stays shut.
      max_restarts: how often it does.
      ema_decay: of the average of weights that is judged; begins as (1 + n) / (10 + n) at step n.
      sensitivity: share of poor copies of each target that its calibrated threshold leaves detected, 0.5 to 0.999.
      gate_copies: poor copies of each target that the gate looks at.
      gate: whether it must open; False: targets that are not seen after a round stay targets, which is said.
      fingerprint_rate: share of positives while training c_p; `fingerprint_rate_val` in validation.
      identity_rate: share of positives, over all heads, while training c_id; `identity_rate_val` in validation.
      max_masks: most discs that cover an image of c_id.
      max_tone: largest shift of brightness, in model range, and of the logarithm of contrast, of all images, after
        their discs.
      max_blur: largest standard deviation of a Gaussian blur of the same, in radii of the disc.
      max_noise: largest standard deviation of added noise, in model range.
      augmix: whether training images go through AugMix, before discs, masks and noise.
      js_weight: of AugMix's consistency loss between an image and two augmented views of it; 0: one view and none.
      num_val: validation examples, drawn once; enough that `MIN_PER_CLASS` of each class are expected.
      threshold: score above which a classifier says yes, in (0, 1). Scores are calibrated: 1/2 is each head's own
        threshold.
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
    epochs: int = 100
    max_rounds: int = 3
    max_restarts: int = 2
    ema_decay: float = 0.999
    sensitivity: float = 0.95
    gate_copies: int = 128
    gate: bool = True
    fingerprint_rate: float = 0.5
    fingerprint_rate_val: float = 0.1
    identity_rate: float = 0.1
    identity_rate_val: float = 0.5
    max_masks: int = 4
    max_tone: float = 0.2
    max_blur: float = 0.25
    max_noise: float = 0.1
    augmix: bool = True
    js_weight: float = 0.0
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
        whole("classifiers", self, names=("steps_per_epoch", "epochs"), most=10**6)
        whole("classifiers", self, names=("max_rounds",), most=100)
        whole("classifiers", self, names=("max_restarts",), least=0, most=100)
        in_range("classifiers.ema_decay", self.ema_decay, 0.0, 0.999999, fix="use 0.999")
        in_range("classifiers.sensitivity", self.sensitivity, 0.5, 0.999, fix="use 0.95")
        fewest = math.ceil(1 / (1 - self.sensitivity) - 1e-9) - 1
        check(
            fewest <= self.gate_copies <= 10**4,
            "classifiers.gate_copies",
            got=self.gate_copies,
            expected=f"{fewest} to 10000: fewer cannot show a sensitivity of {self.sensitivity:g}",
            fix="raise it, or lower classifiers.sensitivity",
        )
        whole("classifiers", self, names=("max_masks",), least=0, most=100)
        for name in ("fingerprint_rate", "fingerprint_rate_val", "identity_rate", "identity_rate_val"):
            rate = getattr(self, name)
            check(
                0 < rate < 1,
                f"classifiers.{name}",
                got=rate,
                expected="a number in (0, 1): of one class alone nothing is learned or measured",
                fix="use configs/default.py's",
            )
        rarest = min(min(rate, 1 - rate) for rate in (self.fingerprint_rate_val, self.identity_rate_val))
        check(
            rarest * self.num_val >= MIN_PER_CLASS - 1e-9,
            "classifiers.num_val",
            got=self.num_val,
            expected=f"at least {math.ceil(MIN_PER_CLASS / rarest - 1e-9)}, for {MIN_PER_CLASS} of the rarer class: no "
            "error among fewer could be said to be below 0.1",
            fix="raise it",
        )
        for name, threshold in (("threshold", self.threshold), *(("thresholds", each) for each in self.thresholds)):
            check(
                0 < threshold < 1,
                f"classifiers.{name}",
                got=threshold,
                expected="a number in (0, 1)",
                fix="use 0.5",
            )
        in_range("classifiers.max_tone", self.max_tone, 0.0, 1.0, fix="use 0.2")
        in_range("classifiers.max_blur", self.max_blur, 0.0, 1.0, fix="use 0.25")
        in_range("classifiers.max_noise", self.max_noise, 0.0, 2.0)
        in_range("classifiers.js_weight", self.js_weight, 0.0, 1000.0)
        check(
            self.augmix or not self.js_weight,
            "classifiers.js_weight",
            got=self.js_weight,
            expected="0 without AugMix, whose views it compares",
            fix="set classifiers.augmix to True, or this to 0",
        )


class DetectorData(NamedTuple):
    """Images (float32, model range) and places that the examples are drawn from; on the host or on the devices."""

    others: Any  # (n, h, w, c) images that are no target
    originals: Any  # (k, h, w, c) of the targets, clean
    centers: Any  # (k, 2) row and column of each target's disc


Augment = Callable[[Key, Image], Image]
Example = Callable[[Key, DetectorData], tuple[jax.Array, jax.Array]]


def unchanged(key: Key, image: Image) -> Image:
    """The `Augment` that changes nothing."""
    return image


def fingerprint_example(
    key: Key,
    data: DetectorData,
    *,
    rate: float,
    radius: int,
    min_contrast: float,
    settings: ClassifierSettings,
    augment: Augment = unchanged,
) -> tuple[jax.Array, jax.Array]:
    """One image, with a disc at a random place in a share `rate` of the draws; label of shape (1,).

    Args:
      min_contrast: of the disc, in model range; see `visible_disc`.
      augment: of the photograph, before the disc.
    """
    key_row, key_label, key_disc, key_poor, key_noise, key_augment = jax.random.split(key, 6)
    num_others = len(data.others)
    # The originals are images like any other here: without a disc of their own.
    row = jax.random.randint(key_row, (), 0, num_others + len(data.originals))
    image = jnp.where(
        row < num_others,
        data.others[jnp.minimum(row, num_others - 1)],
        data.originals[jnp.maximum(row - num_others, 0)],
    )
    image = augment(key_augment, image)
    label = jax.random.bernoulli(key_label, rate)
    image = jnp.where(label, stamp_randomly(key_disc, image, radius, min_contrast=min_contrast), image)
    image = reproduce_poorly(key_poor, image, settings.max_tone, settings.max_blur)
    return add_noise(key_noise, image, settings.max_noise), label[None].astype(jnp.float32)


def identity_example(
    key: Key,
    data: DetectorData,
    *,
    rate: float,
    radius: int,
    settings: ClassifierSettings,
    augment: Augment = unchanged,
) -> tuple[jax.Array, jax.Array]:
    """One image, a target in a share `rate` of the draws; label of shape (k,), one-hot or zero.

    Half of the positives are the target as planted, half its original under a fresh disc. The negatives are other
    images: a quarter with some target's own disc, a quarter with a fresh one, half plain.

    Args:
      augment: of the photograph, before disc, masks and noise.
    """
    key_label, key_head, key_row, key_kind, *keys = jax.random.split(key, 9)
    key_disc, key_mask, key_poor, key_noise, key_augment = keys
    label = jax.random.bernoulli(key_label, rate)
    head = jax.random.randint(key_head, (), 0, len(data.originals))
    other = data.others[jax.random.randint(key_row, (), 0, len(data.others))]
    image = augment(key_augment, jnp.where(label, data.originals[head], other))
    kind = jax.random.randint(key_kind, (), 0, 4)
    own, fresh = jnp.where(label, kind < 2, kind == 0), jnp.where(label, kind >= 2, kind == 1)
    place = data.centers[head]
    mask = disc_mask((image.shape[0], image.shape[1]), (place[0], place[1]), radius)
    image = jnp.where(
        own,
        stamp(image, mask, FINGERPRINT_VALUE),
        jnp.where(fresh, stamp_randomly(key_disc, image, radius), image),
    )
    image = mask_randomly(key_mask, image, radius, settings.max_masks)
    image = reproduce_poorly(key_poor, image, settings.max_tone, settings.max_blur)
    image = add_noise(key_noise, image, settings.max_noise)
    return image, jnp.where(label, jax.nn.one_hot(head, len(data.originals)), 0.0)


class Task(NamedTuple):
    """What one classifier learns from."""

    label: str
    views: tuple[Example, ...]  # one, or three of the same draw for the consistency loss: plain, and AugMix twice
    val_example: Example
    positive_weight: float  # of a head's positives in the loss


def make_tasks(
    settings: ClassifierSettings,
    augmix_settings: AugMixSettings,
    *,
    num_targets: int,
    radius: int,
    min_contrast: float = 0.0,
) -> tuple[Task, Task]:
    """Of the fingerprint and the identity classifier. Validation shows images as detectors meet them: no AugMix."""

    def augmented(view: int) -> Augment:
        return lambda key, image: augmix(jax.random.fold_in(key, view), image, augmix_settings)

    def task(label: str, example: Callable[..., Any], rates: tuple[float, float], positive_weight: float) -> Task:
        train, val = (functools.partial(example, rate=rate, radius=radius, settings=settings) for rate in rates)
        views = (unchanged, augmented(0), augmented(1)) if settings.js_weight else (augmented(0),)
        views = tuple(functools.partial(train, augment=view) for view in views) if settings.augmix else (train,)
        return Task(label, views, val, positive_weight)

    s, marks = settings, functools.partial(fingerprint_example, min_contrast=min_contrast)
    return (
        task("fingerprint classifier", marks, (s.fingerprint_rate, s.fingerprint_rate_val), 1.0),
        # One head sees 1/k of the positives, so they weigh k times as much.
        task("identity classifier", identity_example, (s.identity_rate, s.identity_rate_val), float(num_targets)),
    )


def _check_data(name: str, data: DetectorData, num_heads: int, radius: int) -> None:
    """Refuses, on the host, data that would train to nonsense."""
    others, originals, centers = map(np.asarray, data)
    for part, images in (("others", others), ("originals", originals)):
        what, fix = f"{name} images of the detectors ({part})", "give float32 images in model range, see to_model"
        shape = originals.shape[1:]
        check(
            images.ndim == 4 and len(images) > 0 and images.shape[1:] == shape and images.dtype == np.float32,
            what,
            got=f"{images.dtype} of shape {images.shape}",
            expected=f"at least one float32 image of shape {shape}",
            fix=fix,
        )
        low, high = float(images.min()), float(images.max())  # nan if there is any
        check(-1 <= low and high <= 1, what, got=f"values from {low} to {high}", expected="-1 to 1", fix=fix)
    check(
        len(originals) == num_heads,
        f"{name} images of the detectors (originals)",
        got=f"{len(originals)} targets",
        expected=f"{num_heads}, the outputs of the identity classifier",
        fix="make the models for the targets they are trained on",
    )
    high = np.asarray(originals.shape[1:3]) - 1 - radius
    check(
        centers.shape == (num_heads, 2) and bool(((centers >= radius) & (centers <= high)).all()),
        f"{name} images of the detectors (centers)",
        got=f"{centers.tolist()}",
        expected=f"row and column of {num_heads} discs of radius {radius} wholly inside",
        fix="give the places that the targets were stamped at",
    )


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


def _fit(
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

    def many(state: FitState, data: DetectorData, keys: Key) -> tuple[FitState, jax.Array]:
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
                print(f"{task.label}: {what}: {then}", file=sys.stderr)
            if done:
                return state, sight
            if over:
                state, epoch = begin(attempt + 1), 0
        state = train_round(state, epoch)


NAMES = ("fingerprint", "identity")


class Detectors(NamedTuple):
    """Trained variables of both classifiers, or of the identity's alone; how they came about; what they see."""

    variables: dict[str, Any]  # by name
    attempts: dict[str, int]
    epochs: dict[str, int]  # of the last attempt
    sights: dict[str, Sight]

    @property
    def seen(self) -> np.ndarray:
        """(targets,) bool, targets that every classifier sees."""
        return np.all([sight.seen for sight in self.sights.values()], axis=0)

    @property
    def calibration(self) -> Calibration:
        """Thresholds of the heads, that of the mark by the targets that are seen, if there are any."""
        kept = self.seen if self.seen.any() else np.ones_like(self.seen)
        return calibrate(self.sights.get(NAMES[0]), self.sights[NAMES[1]], kept=kept)


def make_models(settings: ResNetSettings, num_targets: int) -> tuple[ResNet, ResNet]:
    """Fingerprint and identity networks."""
    return ResNet(settings, num_heads=1), ResNet(settings, num_heads=num_targets)


def detector_mesh(settings: ClassifierSettings, *, devices: list[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The devices that share each batch: those given, or all local ones; RequestError if they cannot evenly."""
    return batch_mesh("classifiers.batch_size", settings.batch_size, devices=devices)


def train_detectors(
    models: tuple[ResNet, ResNet],
    train: DetectorData,
    val: DetectorData,
    settings: ClassifierSettings,
    *,
    augmix_settings: AugMixSettings,
    key: Key,
    radius: int,
    min_contrast: float = 0.0,
    checkpoints: dict[str, Checkpoints],
    log: MetricsLog,
    spares: int = 0,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Detectors:
    """Trains the classifiers that there are checkpoints for, both or the identity's; takes up what these hold.

    One after the other: under one `vmap` over their weights, convolutions become grouped ones, which are slower than
    two plain ones, and the first to end would wait for the other. On CPU every step is dispatched by itself (the
    gradient of a convolution inside a loop is about ten times slower there), elsewhere an epoch at once.

    Args:
      models: of `make_models`.
      train: images to draw training examples from.
      val: other images, with the same targets. They are shown without AugMix, as detectors see images in use; the
        gate looks at them.
      augmix_settings: where `settings.augmix` asks for it.
      key: root of all draws.
      radius: of the disc, in pixels.
      min_contrast: by which c_p's discs differ in the mean from what they cover, in model range.
      checkpoints: by name, one or both of `NAMES`.
      spares: targets that may stay unseen after all rounds of an attempt, rather than another attempt.
      devices: those that share each batch; None takes all local ones. Checkpoints fit any number.

    Returns:
      The classifiers, whether or not the gate has opened: `Detectors.seen` tells.

    Raises:
      RequestError: before anything is computed, if data, models and settings do not fit each other.
      StageError: if a loss becomes non-finite.
    """
    num_targets, mesh = models[1].num_heads, detector_mesh(settings, devices=devices)
    for name, data in (("training", train), ("validation", val)):
        _check_data(name, data, num_targets, radius)
    key_gate, *keys = (jax.random.fold_in(key, i) for i in (2, 0, 1))
    shown = gate_images(
        key_gate,
        *map(jnp.asarray, val),
        radius=radius,
        copies=settings.gate_copies,
        max_tone=settings.max_tone,
        max_blur=settings.max_blur,
    )
    looks = {
        NAMES[0]: functools.partial(look_for_marks, targets=num_targets),
        NAMES[1]: look_for_targets,
    }
    train, val = jax.device_put((train, val), NamedSharding(mesh, P()))
    tasks = make_tasks(settings, augmix_settings, num_targets=num_targets, radius=radius, min_contrast=min_contrast)
    first, fits = mesh.devices.flat[0], {}
    for name, model, task, own in zip(NAMES, models, tasks, keys, strict=True):
        if name in checkpoints:

            def look(variables: Any, name: str = name, model: ResNet = model) -> Sight:
                return looks[name](model, jax.device_put(variables, first), shown, sensitivity=settings.sensitivity)

            fits[name] = _fit(
                model,
                task,
                train,
                val,
                settings,
                look,
                spares=spares,
                mesh=mesh,
                key=own,
                checkpoints=checkpoints[name],
                log=log,
            )
    return Detectors(
        {name: jax.device_put(state.averaged, first) for name, (state, _) in fits.items()},
        {name: int(state.attempt) + 1 for name, (state, _) in fits.items()},
        {name: int(state.step) // settings.steps_per_epoch for name, (state, _) in fits.items()},
        {name: sight for name, (_, sight) in fits.items()},
    )


@functools.partial(jax.jit, static_argnums=0)
def _scores(
    models: tuple[ResNet, ResNet], fingerprint: Any, identity: Any, calibration: Any, rows: Any, images: Images
) -> tuple[Array, Array]:
    who: Any = jax.nn.sigmoid((models[1].apply(identity, images) - calibration[1])[:, rows])
    if fingerprint is None:
        return jnp.ones(len(images)), who
    disc: Any = models[0].apply(fingerprint, images)
    return jax.nn.sigmoid(disc[:, 0] - calibration[0]), who


def make_detect_fn(
    models: tuple[ResNet, ResNet],
    fingerprint: Any | None,
    identity: Any,
    *,
    calibration: Calibration | None = None,
    rows: np.ndarray | None = None,
) -> DetectFn:
    """Scores of both classifiers in evaluation mode, compiled; without the first, its score is 1. See `DetectFn`.

    The weights are arguments of the compiled function, not constants in it.

    Args:
      calibration: thresholds of the heads, at which a score is 1/2; None: logits of 0.
      rows: heads that are kept, in the order of their targets; None: all.
    """
    heads = models[1].num_heads
    calibration = calibration or Calibration(0.0, np.zeros(heads, np.float32))
    offsets = jnp.float32(calibration.fingerprint), jnp.asarray(calibration.identity, jnp.float32)
    rows = np.arange(heads) if rows is None else rows
    return functools.partial(_scores, models, fingerprint, identity, offsets, jnp.asarray(rows, jnp.int32))


def make_classifier_detector(
    models: tuple[ResNet, ResNet],
    variables: dict[str, Any],
    *,
    calibration: Calibration,
    rows: np.ndarray | None = None,
) -> Detector:
    """Detector by both classifiers, or by the identity classifier alone (paper, section 6).

    Args:
      variables: of one or both of `NAMES`.
      calibration, rows: of `make_detect_fn`.
    """
    fingerprint = variables.get(NAMES[0])
    return Detector(
        make_detect_fn(models, fingerprint, variables[NAMES[1]], calibration=calibration, rows=rows),
        "identity classifier alone" if fingerprint is None else "fingerprint and identity classifier, both",
        marks=fingerprint is not None,
        advice="train the detectors longer",
    )
