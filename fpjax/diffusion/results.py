"""What score.json holds: how the score network came about."""

import dataclasses

from .pretrained.imported import Imported


@dataclasses.dataclass(frozen=True)
class ScoreResult:
    """Result of the stage score."""

    num_steps: int  # 0: imported
    num_params: int
    num_train: int
    weights_sha256: str  # of the EMA parameters
    imported: Imported | None = None  # None: trained here
