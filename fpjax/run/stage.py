"""What a stage is: one object that says what it reads, what it does, what it costs and where it is reported."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from ..report.sections.base import Section
from .timing import Program

Grade = Literal["ok", "note", "weak"]


class Finding(NamedTuple):
    """One line of the check; `weak` findings keep the verdict from "below tolerance", or a test from rejecting."""

    grade: Grade
    what: str
    text: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of a stage.

    Attributes:
      text: what is done, for `--dry_run`.
      rows: by program, as `Stage.programs` names them, how many images go through it; none: next to nothing.
      basis: what the time rests on; empty: the rate of the first program.
    """

    text: str
    rows: Mapping[str, float] = dataclasses.field(default_factory=dict)
    basis: str = ""


def _nothing(job: Any) -> list[Finding]:
    return []


def _none(job: Any) -> tuple[str, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the audit. `--dry_run`, `--stage=check`, `--stage=benchmark` and the pipeline iterate over them.

    Attributes:
      name: of the stage and of its file NAME.json.
      result: dataclass of that file; None: there is none, and the stage always runs.
      needs: results that it reads, which its own names by their digests.
      settings: classes of the config's sections that are its own.
      stream: of its random draws. Never renumber: a new stage takes a new number.
      run: does the work and ends with `Job.finish`; given the `Job`, as all functions here.
      cost: its work.
      programs: that it runs, with weights as they are initialised; given the `Job`, and whether to make them of whole
        batches rather than of what tells the rate here. A config that does not have one gives None.
      check: what the config allows it to find.
      section: of the page of the report; None: it has none of its own.
      shared: whether several processes share its chains; the first process alone does the others.
      files: beside NAME.json, without which it is not done.
      weights: names of the checkpoints that it ends with, without which it is not done either.
    """

    name: str
    result: type | None
    needs: tuple[type, ...]
    settings: tuple[type, ...]
    stream: int
    run: Callable[[Any], None]
    cost: Callable[[Any], Cost]
    programs: Mapping[str, Callable[[Any, bool], Program | None]] = dataclasses.field(default_factory=dict)
    check: Callable[[Any], list[Finding]] = _nothing
    section: Section | None = None
    shared: bool = False
    files: tuple[str, ...] = ()
    weights: Callable[[Any], tuple[str, ...]] = _none
