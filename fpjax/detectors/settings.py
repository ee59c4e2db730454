"""Settings of the detectors."""

import dataclasses
import math

from ..core.errors import check, in_range, one_of, whole

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
