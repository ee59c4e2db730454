"""The directory of a run: the stages' results, what interrupted stages keep, checkpoints and the log."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from ..core.checkpoints import Checkpoints, damage, newest_step
from ..core.metrics import MetricsLog
from ..core.records import load, save
from ..core.store import read_json
from ..core.types import Key
from ..detectors.results import ClassifiersResult
from ..diffusion.results import ScoreResult
from .config import Config
from .stage import Stage

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Begun:
    """Content of config.json: the resolved config by section, and what it was begun with."""

    config: dict[str, Any]
    provenance: dict[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        """Fields of a section; none where it is not there."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}


class Workdir:
    """Settings and files of one audit; a stage's result names the results that it was made from."""

    def __init__(self, config: Config, workdir: Path, stages: Sequence[Stage]):
        self.config, self.workdir, self.stages = config, workdir, tuple(stages)

    def stage_of(self, kind: type) -> Stage:
        """The stage whose result this is."""
        return next(stage for stage in self.stages if stage.result is kind)

    def path(self, stage: Stage) -> Path:
        """Result file of a stage."""
        return self.workdir / f"{stage.name}.json"

    def has(self, kind: type) -> bool:
        """Whether a result is there, be it made from other files than are there now."""
        return self.path(self.stage_of(kind)).is_file()

    def result(self, kind: type[Result]) -> Result:
        """Result of an earlier stage; RequestError if it is not there."""
        return load(kind, self.path(self.stage_of(kind)))

    def digest(self, kind: type) -> str:
        """Of the file of a result; RequestError if it is not there."""
        return read_json(self.path(self.stage_of(kind)))["digest"]

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Digests of the results that a stage reads, which name those before them; RequestError if one is missing."""
        return {self.stage_of(kind).name: self.digest(kind) for kind in stage.needs}

    def made_from(self, stage: Stage) -> str:
        """Short digest of what a stage reads: in the names of its unfinished work, which serves no other data."""
        return hashlib.sha256(repr(self.inputs(stage)).encode()).hexdigest()[:12]

    def partial(self, kind: type, part: str = "") -> Path:
        """Where the stage of this result keeps its state when it is interrupted."""
        stage = self.stage_of(kind)
        return self.workdir / "partial" / f"{stage.name}{part}-{self.made_from(stage)}.npz"

    def state(self, stage: Stage) -> str:
        """Whether a stage is "to do", "done", or "stale": made from results that are there no longer."""
        files = (f"{stage.name}.json", *stage.files)
        if stage.result is None or not all((self.workdir / file).is_file() for file in files):
            return "to do"
        made_from = read_json(self.path(stage)).get("inputs")
        there = all(self.has(kind) for kind in stage.needs)
        return "done" if there and made_from == self.inputs(stage) else "stale"

    def key(self, kind: type) -> Key:
        """Root of the draws of the stage of this result."""
        return jax.random.fold_in(jax.random.key(self.config.seed), self.stage_of(kind).stream)

    def checkpoint_directory(self, name: str) -> Path:
        """Where those of one network are; those trained on other data have another name."""
        kind = ScoreResult if name == "score" else ClassifiersResult
        return self.workdir / "checkpoints" / f"{name}-{self.made_from(self.stage_of(kind))}"

    def checkpoints(self, name: str) -> Checkpoints:
        """Checkpoints of one network."""
        score = self.config.score
        keep = {"keep_last": score.keep_last, "keep_every": score.keep_every} if name == "score" else {}
        return Checkpoints(self.checkpoint_directory(name), **keep)

    def has_weights(self, stage: Stage) -> bool:
        """Whether the newest checkpoints of what a stage trains are as they were written."""
        for name in stage.weights(self):
            directory = self.checkpoint_directory(name)
            step = newest_step(directory)
            if step is None or any(damage(directory, step)):
                return False
        return True

    def finish(self, result: Any) -> None:
        """Writes a stage's result, then drops what it kept of its way there."""
        stage = self.stage_of(type(result))
        save(self.path(stage), result, self.inputs(stage))
        # Their names may begin with a dot where a kill came while they were written.
        for pattern in (f"{stage.name}*.npz", f".{stage.name}*.tmp"):
            for partial in self.workdir.glob(f"partial/{pattern}"):
                partial.unlink()

    @functools.cached_property
    def log(self) -> MetricsLog:
        """Metrics of every stage."""
        events = self.workdir / "tensorboard" if self.config.report.tensorboard else None
        return MetricsLog(self.workdir / "metrics.jsonl", tensorboard=events)
