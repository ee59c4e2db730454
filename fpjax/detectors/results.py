"""What classifiers.json holds: the detectors as they were trained, who is a member, and how often they err."""

import dataclasses

import numpy as np
from jaxtyping import Float

from ..data.results import Membership
from .calibration import Calibration, Sight
from .evaluation import ROC_LOGITS, RealErrors


@dataclasses.dataclass(frozen=True)
class Description:
    """What detects, in the detector's own words."""

    description: str
    marks: bool  # whether it looks for the mark too
    advice: str  # what makes it err less


@dataclasses.dataclass(frozen=True)
class Trained:
    """Classifiers and the gate that they passed; by name, targets by their row in data.json."""

    attempts: dict[str, int]
    epochs: dict[str, int]  # of the last attempt
    calibration: Calibration
    gate: dict[str, Sight]
    unseen: int  # targets that they do not see and that stay, where the gate need not open
    dropped: list[int]  # targets that they do not see, replaced before membership was drawn
    weights_sha256: str


@dataclasses.dataclass(frozen=True)
class Reused:
    """Another run's classifiers."""

    weights_sha256: str
    data_digest: str


@dataclasses.dataclass(frozen=True)
class ClassifiersResult:
    """Result of the stage classifiers."""

    trained: Trained | None  # None: nothing is trained, as by the nearest detector
    reused: Reused | None
    membership: Membership
    detector: Description
    threshold: float
    thresholds: list[float]
    errors: RealErrors
    roc_logits: Float[np.ndarray, " logits"] = dataclasses.field(default_factory=lambda: ROC_LOGITS)

    @property
    def dropped(self) -> list[int]:
        """Targets that were replaced."""
        return self.trained.dropped if self.trained else []
