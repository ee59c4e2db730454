"""The two detectors: the fingerprint classifier (is there a disc?) and the identity classifier (which target?).

One output for each target, members and held-out alike. Neither the mark nor its position is a cue for identity:
positives include the target's clean original under a fresh disc, negatives include other images with the target's
own disc, and random discs cover both (paper, section 5.2 and appendix A). All come noisy, blurred and in other tones,
as a model gives back what it has not learned well.
"""

import dataclasses
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
from jaxtyping import Array

from .artifacts import Checkpoints, MetricsLog
from .augment import add_noise, mask_randomly, reproduce_poorly, stamp_randomly
from .augmix import AugMixSettings, augmix, jensen_shannon
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
      learning_rate: Adam's.
      batch_size: images a step.
      steps_per_epoch: optimiser steps between two looks at the validation loss.
      max_epochs: upper limit of the training.
      patience: epochs without a better validation loss before it stops.
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
        whole("classifiers", self, names=("steps_per_epoch", "max_epochs", "patience"), most=10**6)
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
    settings: ClassifierSettings,
    augment: Augment = unchanged,
) -> tuple[jax.Array, jax.Array]:
    """One image, with a disc at a random place in a share `rate` of the draws; label of shape (1,).

    Args:
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
    image = jnp.where(label, stamp_randomly(key_disc, image, radius), image)
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
    settings: ClassifierSettings, augmix_settings: AugMixSettings, *, num_targets: int, radius: int
) -> tuple[Task, Task]:
    """Of the fingerprint and the identity classifier. Validation shows images as detectors meet them: no AugMix."""

    def augmented(view: int) -> Augment:
        return lambda key, image: augmix(jax.random.fold_in(key, view), image, augmix_settings)

    def task(label: str, example: Callable[..., Any], rates: tuple[float, float], positive_weight: float) -> Task:
        train, val = (functools.partial(example, rate=rate, radius=radius, settings=settings) for rate in rates)
        views = (unchanged, augmented(0), augmented(1)) if settings.js_weight else (augmented(0),)
        views = tuple(functools.partial(train, augment=view) for view in views) if settings.augmix else (train,)
        return Task(label, views, val, positive_weight)

    s = settings
    return (
        task("fingerprint classifier", fingerprint_example, (s.fingerprint_rate, s.fingerprint_rate_val), 1.0),
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


def make_fit_step(
    model: nn.Module, task: Task, settings: ClassifierSettings, *, mesh: Mesh | None = None
) -> Callable[[tuple[Any, Any], DetectorData, Key], tuple[tuple[Any, Any], jax.Array]]:
    """One step: draws a batch, each image from a key of its own, and takes it.

    Args:
      mesh: of `batch_mesh`, over which examples are drawn and seen; None: one device. Batch statistics are those of
        the whole batch, whatever the devices.

    Returns:
      From (variables, optimiser state), data and the step's key to the next pair and the loss.
    """
    tx = optax.adam(settings.learning_rate)

    def draw(key: Key, data: DetectorData) -> tuple[jax.Array, jax.Array]:
        images, labels = zip(*(view(key, data) for view in task.views), strict=True)
        return jnp.stack(images), labels[0]

    def step(carry: tuple[Any, Any], data: DetectorData, key: Key) -> tuple[tuple[Any, Any], jax.Array]:
        variables, opt_state = carry
        keys = jax.random.split(key, settings.batch_size)
        if mesh is not None:
            keys = jax.lax.with_sharding_constraint(keys, NamedSharding(mesh, P("batch")))
        images, labels = jax.vmap(draw, in_axes=(0, None))(keys, data)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            rows = images.reshape(-1, *images.shape[2:])  # all views of a batch have one mean and variance
            logits, updated = model.apply({**variables, "params": params}, rows, train=True, mutable=["batch_stats"])
            seen = jnp.moveaxis(jnp.reshape(logits, (len(labels), len(task.views), -1)), 1, 0)
            loss = jnp.mean(_losses(seen[0], labels, task.positive_weight))
            if settings.js_weight:
                loss += settings.js_weight * jensen_shannon(*seen)
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        return ({"params": optax.apply_updates(variables["params"], updates), **updated}, opt_state), loss

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
    *,
    mesh: Mesh,
    key: Key,
    checkpoints: Checkpoints,
    log: MetricsLog,
) -> _FitState:
    """Trains one classifier until its validation loss has not fallen for `patience` epochs."""
    key_init, key_val, key_train = jax.random.split(key, 3)
    everywhere, split_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "batch"))
    step = make_fit_step(model, task, settings, mesh=mesh)

    def many(carry: tuple[Any, Any], data: DetectorData, keys: Key) -> tuple[tuple[Any, Any], jax.Array]:
        return jax.lax.scan(lambda carry, key: step(carry, data, key), carry, keys)

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
            right = jnp.all((nn.sigmoid(logits) > settings.threshold) == (labels > 0), axis=1)
            return jnp.sum(counted * _losses(logits, labels, task.positive_weight)), jnp.sum(counted & right)

        losses, right = jax.lax.map(look, batches)
        return jnp.sum(losses) / settings.num_val, jnp.sum(right) / settings.num_val

    state = jit_once(functools.partial(init_fit, model, settings))(key_init, train.others[:1])
    state = jax.device_put(state, everywhere)
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
    progress = Progress(task.label, settings.max_epochs, "epochs", done=int(state.epoch))
    while (epoch := int(state.epoch)) < settings.max_epochs and epoch - int(state.best_epoch) < settings.patience:
        carry, losses = (state.variables, state.opt_state), []
        keys = jax.random.split(jax.random.fold_in(key_train, epoch), settings.steps_per_epoch)
        if one_by_one:
            for key_step in keys:
                carry, loss = single(carry, train, key_step)
                losses.append(loss)
                if stopping():
                    # The epoch is drawn again from its own key.
                    checkpoints.save(epoch, state)
                    progress.update(epoch)
        else:
            carry, losses = scanned(carry, train, keys)
        looks = jax.device_get((losses, *validate(carry[0], *val_batches)))
        train_loss, loss, accuracy = (float(np.mean(look)) for look in looks)
        if not np.isfinite(train_loss + loss):
            raise StageError(
                f"{task.label}: loss {train_loss} in training, {loss} in validation at epoch {epoch + 1}; "
                "lower classifiers.learning_rate"
            )
        better = loss < float(state.best_loss)
        done = jnp.asarray(epoch + 1, jnp.int32)
        state = state._replace(epoch=done, variables=carry[0], opt_state=carry[1])
        if better:
            state = state._replace(best_variables=carry[0], best_loss=jnp.asarray(loss, jnp.float32), best_epoch=done)
        log.write(task.label, epoch=epoch + 1, loss=train_loss, val_loss=loss, val_accuracy=accuracy)
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
    checkpoints: dict[str, Checkpoints],
    log: MetricsLog,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Detectors:
    """Trains the classifiers that there are checkpoints for, both or the identity's; takes up what these hold.

    One after the other: under one `vmap` over their weights, convolutions become grouped ones, which are slower than
    two plain ones, and the first to end would wait for the other. On CPU every step is dispatched by itself (the
    gradient of a convolution inside a loop is about ten times slower there), elsewhere an epoch at once.

    Args:
      models: of `make_models`.
      train: images to draw training examples from.
      val: other images, with the same targets. They are shown without AugMix, as detectors see images in use.
      augmix_settings: where `settings.augmix` asks for it.
      key: root of all draws.
      radius: of the disc, in pixels.
      checkpoints: by name, one or both of `NAMES`.
      devices: those that share each batch; None takes all local ones. Checkpoints fit any number.

    Raises:
      RequestError: before anything is computed, if data, models and settings do not fit each other.
      StageError: if a loss becomes non-finite.
    """
    num_targets, mesh = models[1].num_heads, detector_mesh(settings, devices=devices)
    for name, data in (("training", train), ("validation", val)):
        _check_data(name, data, num_targets, radius)
    train, val = jax.device_put((train, val), NamedSharding(mesh, P()))
    tasks = make_tasks(settings, augmix_settings, num_targets=num_targets, radius=radius)
    states = {
        name: _fit(
            models[i],
            task,
            train,
            val,
            settings,
            mesh=mesh,
            key=jax.random.fold_in(key, i),
            checkpoints=checkpoints[name],
            log=log,
        )
        for i, (name, task) in enumerate(zip(NAMES, tasks, strict=True))
        if name in checkpoints
    }
    epochs = tuple(int(state.epoch) for state in states.values())
    best = {name: jax.device_put(state.best_variables, mesh.devices.flat[0]) for name, state in states.items()}
    return Detectors(best.get(NAMES[0]), best[NAMES[1]], epochs)


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
