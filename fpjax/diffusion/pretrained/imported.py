"""A model of diffusers in place of one that is trained here: what a run keeps of it, so that it outlives its directory.

Its times are those of its scheduler. Only if that is asked for, one without a scheduler is taken as `make_score_fn`
takes the models trained here: it predicts epsilon of the config's `sde`, and is told 999 t.
"""

import dataclasses
import errno
import hashlib
import os
from pathlib import Path

from ...core.errors import RequestError, check
from ...core.files import open_plain
from ..preconditioning import PREDICTIONS
from ..sampling import SamplerSettings
from ..sde import DiscreteVP, Process
from .architecture import Architecture, read_architecture
from .scheduler import Scheduler, read_scheduler
from .weights import MAX_HEADER, MAX_NUMBERS, check_params, model_files

_MAX_FILE = 8 * MAX_NUMBERS + MAX_HEADER + 8  # bytes, of one with all weights in float64


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a directory says beside its weights; `sha256` of each of its files, by name."""

    architecture: Architecture
    scheduler: Scheduler | None
    sha256: dict[str, str]

    @property
    def prediction(self) -> str:
        """What the network predicts, one of `PREDICTIONS`."""
        return self.scheduler.prediction_type if self.scheduler else PREDICTIONS[0]

    def told(self, otherwise: str) -> str:
        """What says how it was trained: the scheduler, or what is taken for granted of a model without one."""
        return (
            self.scheduler.name if self.scheduler else f"none: taken to predict epsilon of {otherwise} and told 999 t"
        )

    def not_followed(self, asked: SamplerSettings, runs: SamplerSettings) -> list[str]:
        """What the scheduler does to its samples and is not done here, a line each.

        Args:
          asked: the config's.
          runs: what came of it, which may be the scheduler's own.
        """
        if not self.scheduler:
            return []
        own = self.scheduler.sampler(asked)
        return [
            *self.scheduler.ignored,
            *([] if own == runs else [f"its own sampler, {own.label}: chains are of {runs.label}"]),
        ]

    def process(self, otherwise: Process) -> Process:
        """The scheduler's diffusion, or that of a model without one."""
        return DiscreteVP(self.scheduler.betas) if self.scheduler else otherwise


def file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file that the model is made of.

    Raises:
      RequestError: one of them cannot be read.
    """
    digests = {}
    for path in model_files(directory):
        try:
            with open_plain(path) as file:
                if (size := os.fstat(file.fileno()).st_size) > _MAX_FILE:
                    raise OSError(errno.EFBIG, f"{size:,} bytes")
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RequestError(
                f"{path}: got {error.strerror}, expected a file of the model; fix: copy the whole directory again"
            ) from None
    return digests


def read_imported(directory: Path, *, without_scheduler: bool = False) -> Imported:
    """Reads a model; its weights are looked at, and not kept.

    Args:
      without_scheduler: there is none, or it is not to be read.

    Raises:
      RequestError: there is no model, one that `UNet` cannot be, weights of another one, no scheduler, or one whose
        process is not supported.
    """
    architecture = read_architecture(directory)
    files = model_files(directory)
    with_scheduler = any(path.name == "scheduler_config.json" for path in files)
    inside = (directory.resolve().parent / "model_index.json").is_file()
    check(
        with_scheduler or without_scheduler,
        "score.path",
        got="a part of a pipeline, without its scheduler" if inside else "a model without its scheduler",
        expected="one with scheduler_config.json, which says what it was trained on; a training's checkpoints lack it",
        fix="give the directory above it"
        if inside
        else "give the pipeline that was saved at the end (pipeline.save_pretrained), or, for a model of the config's "
        "sde that predicts epsilon and is told 999 t, set score.without_scheduler=True",
    )
    scheduler = None if without_scheduler else read_scheduler(directory)
    # Their sizes, and whether they are numbers, before any compute or file; they are kept when they are taken in.
    check_params(directory, architecture)
    imported = Imported(architecture, scheduler, file_digests(directory))
    if scheduler:
        check(
            architecture.settings.time_embedding_type != "fourier",
            "score.path",
            got="a Fourier embedding of log t with a scheduler whose steps begin at 0",
            expected="a positional time embedding with a scheduler",
            fix="such a network knows continuous times: if it was trained so, set score.without_scheduler=True",
        )
        DiscreteVP(scheduler.betas)
    return imported
