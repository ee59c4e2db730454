"""The stages as objects: what they declare is consistent, and a new one is one object."""

import contextlib
import dataclasses
import typing

import jax
import pytest

from fpjax.core.records import load
from fpjax.report.sections import SECTIONS
from fpjax.report.sections.base import Section
from fpjax.run import benchmark, pipeline, preflight, timing
from fpjax.run.config import FREE_SECTIONS, Config, make_config
from fpjax.run.job import Job
from fpjax.run.stage import Cost, Finding, Stage
from fpjax.run.stages import STAGES, open_job
from fpjax.run.stages.report import page_sections
from fpjax.studies.tally import CountResult

from .test_config import config_of


def test_streams_keep_their_numbers():
    """The draws of a stage must not move when another one comes."""
    streams = {stage.name: stage.stream for stage in STAGES if stage.result}
    old = {"data": 0, "score": 1, "classifiers": 2, "count": 3, "search": 4, "likelihood": 5, "bound": 6}
    assert streams | old == streams
    assert len(set(streams.values())) == len(streams)


def test_every_stage_comes_after_what_it_needs():
    seen = set()
    for stage in STAGES:
        assert set(stage.needs) <= seen, stage.name
        seen.add(stage.result)


def test_every_section_of_the_config_belongs_to_one_stage():
    sections = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    owners = [kind for stage in STAGES for kind in stage.settings]
    assert len(set(owners)) == len(owners)
    assert {kind for name, kind in sections.items() if name not in FREE_SECTIONS or kind in owners} == set(owners)


def test_every_program_that_costs_time_is_timed(tmp_path):
    job = open_job(make_config(config_of("smoke")), tmp_path)
    programs = {name for stage in STAGES for name in stage.programs}
    for stage in STAGES:
        assert set(stage.cost(job).rows) <= programs, stage.name


@dataclasses.dataclass(frozen=True)
class Doubled:
    """Result of the made-up stage."""

    hits: int


def double(job: Job) -> None:
    job.finish(Doubled(2 * int(job.result(CountResult).num_detected.sum())))


DOUBLE = Stage(
    "double", Doubled, needs=(CountResult,), settings=(), stream=99, run=double,
    cost=lambda job: Cost("twice", {"doubling": 30}),
    programs={"doubling": lambda job: timing.Timing(10, 0.5, 0.0, 1.0, 0)},
    check=lambda job: [Finding("note", "doubling", "is twice as much")],
)  # fmt: skip


def test_every_stage_but_data_and_report_has_its_section_of_the_page():
    assert [stage.name for stage in STAGES if stage.section is None] == ["data", "report"]
    assert page_sections(STAGES) == list(SECTIONS)
    mine = Section("Doubling", "mine.html", lambda page: {})
    assert page_sections((*STAGES, dataclasses.replace(DOUBLE, section=mine))) == [*SECTIONS, mine]


def test_a_new_stage_is_planned_checked_timed_and_run(smoke, tmp_path, capsys, monkeypatch):
    """One object: every part of the command line has it."""
    monkeypatch.setattr(pipeline, "STAGES", (*STAGES, DOUBLE))
    monkeypatch.setattr(pipeline, "open_job", lambda config, path: Job(config, path, (*STAGES, DOUBLE)))
    job = Job(make_config(config_of("smoke")), smoke[0], (*STAGES, DOUBLE))
    assert preflight.examine(job)[-1].what == "doubling"
    timings = dict.fromkeys([name for stage in job.stages for name in stage.programs], DOUBLE.programs["doubling"](job))
    assert benchmark.predict(job, timings)["double"] == (
        pytest.approx(1.5 / jax.local_device_count()), "20.0 images/s a device",
    )  # fmt: skip
    assert pipeline.main(config_of("smoke"), workdir=str(smoke[0]), stages=["double"], dry_run=True) == 0
    assert "double       to do          twice" in capsys.readouterr().out
    path = smoke[0] / "double.json"
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        assert pipeline.main(config_of("smoke"), workdir=str(smoke[0]), stages=["double"]) == 0
        assert load(Doubled, path).hits == 2 * job.result(CountResult).num_detected.sum()
        assert job.state(DOUBLE) == "done"
