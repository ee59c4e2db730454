"""The two detectors: the fingerprint classifier (is there a disc?) and the identity classifier (which target?).

One output for each target, members and held-out alike. Neither the mark nor its position is a cue for identity:
positives include the target's clean original under a fresh disc, negatives include other images with the target's
own disc, and random discs cover both (paper, section 5.2 and appendix A). All come noisy, blurred and in other tones,
as a model gives back what it has not learned well.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ..core.checkpoints import Checkpoints
from ..core.metrics import MetricsLog
from ..core.types import Images, Key
from ..models.resnet import ResNet, ResNetSettings
from .augmix import AugMixSettings
from .base import Detector
from .calibration import Calibration, Sight, calibrate, gate_images, look_for_marks, look_for_targets
from .examples import DetectorData, check_data, make_tasks
from .fitting import detector_mesh, fit_detector
from .settings import ClassifierSettings

NAMES = ("fingerprint", "identity")


class TrainedClassifiers(NamedTuple):
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


def _num_heads(models: tuple[nn.Module, nn.Module]) -> int:
    """Of the identity classifier: one for each target."""
    return models[1].num_heads  # pyright: ignore[reportAttributeAccessIssue]


def train_detectors(
    models: tuple[nn.Module, nn.Module],
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
) -> TrainedClassifiers:
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
      The classifiers, whether or not the gate has opened: `TrainedClassifiers.seen` tells.

    Raises:
      RequestError: before anything is computed, if data, models and settings do not fit each other.
      StageError: if a loss becomes non-finite.
    """
    num_targets, mesh = _num_heads(models), detector_mesh(settings, devices=devices)
    for name, data in (("training", train), ("validation", val)):
        check_data(name, data, num_targets, radius)
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

            def look(variables: Any, name: str = name, model: nn.Module = model) -> Sight:
                return looks[name](model, jax.device_put(variables, first), shown, sensitivity=settings.sensitivity)

            fits[name] = fit_detector(
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
    return TrainedClassifiers(
        {name: jax.device_put(state.averaged, first) for name, (state, _) in fits.items()},
        {name: int(state.attempt) + 1 for name, (state, _) in fits.items()},
        {name: int(state.step) // settings.steps_per_epoch for name, (state, _) in fits.items()},
        {name: sight for name, (_, sight) in fits.items()},
    )


class Weights(NamedTuple):
    """What the classifiers' scores are made of."""

    fingerprint: Any | None  # variables; None: the score is 1
    identity: Any
    calibration: tuple[Array, Array]  # logits at which a score is 1/2: of the mark, and of each head
    rows: Array  # heads that are kept, in the order of their targets


@functools.partial(jax.jit, static_argnums=0)
def _scores(models: tuple[nn.Module, nn.Module], weights: Weights, images: Images) -> tuple[Array, Array]:
    """Scores of both classifiers in evaluation mode; see `DetectFn`."""
    logits: Any = models[1].apply(weights.identity, images)
    who = jax.nn.sigmoid((logits - weights.calibration[1])[:, weights.rows])
    if weights.fingerprint is None:
        return jnp.ones(len(images)), who
    disc: Any = models[0].apply(weights.fingerprint, images)
    return jax.nn.sigmoid(disc[:, 0] - weights.calibration[0]), who


def make_classifier_detector(
    models: tuple[nn.Module, nn.Module],
    variables: dict[str, Any],
    *,
    calibration: Calibration | None = None,
    rows: np.ndarray | None = None,
) -> Detector:
    """Detector by both classifiers, or by the identity classifier alone (paper, section 6).

    Args:
      variables: of one or both of `NAMES`.
      calibration: thresholds of the heads, at which a score is 1/2; None: logits of 0.
      rows: heads that are kept, in the order of their targets; None: all.
    """
    heads, fingerprint = _num_heads(models), variables.get(NAMES[0])
    calibration = calibration or Calibration(0.0, np.zeros(heads, np.float32))
    offsets = jnp.float32(calibration.fingerprint), jnp.asarray(calibration.identity, jnp.float32)
    kept = jnp.asarray(np.arange(heads) if rows is None else rows, jnp.int32)
    return Detector(
        Weights(fingerprint, variables[NAMES[1]], offsets, kept),
        functools.partial(_scores, models),
        "identity classifier alone" if fingerprint is None else "fingerprint and identity classifier, both",
        marks=fingerprint is not None,
        advice="train the detectors longer",
    )
