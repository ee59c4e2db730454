"""Stage report: every statistic, the verdict, the page and its figures; always made anew."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import audit, report
from ...audit.results import AuditResult, StageResults
from ...audit.verdict import AuditSettings
from ...core.errors import RequestError
from ...core.files import write_bytes
from ...core.metrics import read_metrics
from ...core.records import load
from ...core.store import read_arrays, write_json
from ...core.terminal import say, show
from ...data.results import DataResult
from ...detectors import classifier
from ...detectors.results import ClassifiersResult
from ...diffusion.results import ScoreResult
from ...report.sections import SECTIONS
from ...report.sections.base import Section
from ...studies.bound import BoundResult
from ...studies.likelihood import LikelihoodResult
from ...studies.search import SearchResult
from ...studies.tally import CountResult
from ..config import ReportSettings
from ..job import Job
from ..stage import Cost, Stage
from ..workdir import Begun


def collect(job: Job) -> StageResults:
    """Results of the stages; densities may be left out."""
    return StageResults(
        job.result(DataResult),
        job.result(ClassifiersResult),
        job.result(ScoreResult),
        job.result(CountResult),
        job.result(SearchResult),
        job.result(LikelihoodResult) if job.has(LikelihoodResult) else None,
        job.result(BoundResult) if job.has(BoundResult) else None,
    )


def page_sections(stages: Sequence[Stage]) -> list[Section]:
    """Sections of the page: those in its own order, then those of further stages."""
    further = [stage.section for stage in stages if stage.section and stage.section not in SECTIONS]
    return [*SECTIONS, *further]


def _audit(job: Job) -> AuditResult:
    """The answer, with where it comes from."""
    config, results = job.config, collect(job)
    provenance = load(Begun, job.workdir / "config.json").provenance
    provenance |= {"data": results.data.identity.name, "parameters": results.score.num_params}
    if job.imported:
        provenance["imported"] = job.imported.sha256 | {
            "scheduler": job.imported.told(config.sde.name),
            "predicts": job.imported.prediction,
            "not_followed": job.imported.not_followed(config.sampler, job.sampler) or "nothing",
        }
    else:
        provenance["training_steps"] = results.score.num_steps
    return audit.make_audit(
        results,
        job.grid,
        job.process,
        config.audit,
        name=config.name,
        sampler=job.sampler.label,
        seed=config.seed,
        provenance=provenance,
    )


def _is_number(value: Any) -> bool:
    # Not isfinite, which overflows on huge whole numbers.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _has_numbers(event: dict[str, Any], *names: str) -> bool:
    """Whether an event of the log has these, each a finite number."""
    return all(_is_number(event.get(name)) for name in names)


def _numbers(values: Any) -> list[float | None]:
    """A list of numbers, with None for what is none; other things are an empty one."""
    return [value if _is_number(value) else None for value in values] if isinstance(values, list) else []


def _training(job: Job) -> report.Training:
    """What metrics.jsonl and the grids of samples say of the score network's training; steps taken twice count once."""
    events = read_metrics(job.workdir / "metrics.jsonl")
    looks = {
        event["step"]: event for event in events if event["stage"] == "score" and _has_numbers(event, "step", "loss")
    }
    grids = {int(path.stem[6:]): path for path in job.workdir.glob("samples/score_*.npz") if path.stem[6:].isdecimal()}
    rates = {
        name: [look[name] for look in looks.values() if _has_numbers(look, name)]
        for name in ("images_per_s", "tflop_per_s")
    }
    epochs = {
        name: {
            event["epoch"]: event
            for event in events
            if event["stage"] == f"{name} classifier" and _has_numbers(event, "epoch", "loss", "val_loss")
        }
        for name in classifier.NAMES
    }
    return report.Training(
        classifiers={
            name: (list(seen), [e["loss"] for e in seen.values()], [e["val_loss"] for e in seen.values()])
            for name, seen in epochs.items()
            if seen
        },
        step=list(looks),
        loss=[look["loss"] for look in looks.values()],
        grad_norm=[look["grad_norm"] if _has_numbers(look, "grad_norm") else None for look in looks.values()],
        loss_by_t=_numbers(looks[max(looks)].get("loss_by_t")) if looks else [],
        samples_step=max(grids, default=0),
        samples=_last_grid(grids[max(grids)]) if grids else None,
        # The first look waits for the compiler too.
        **{name: float(np.median(values)) if values else math.nan for name, values in rates.items()},
    )


def _last_grid(path: Path) -> np.ndarray | None:
    """Samples on the way; None if the file is damaged."""
    try:
        return read_arrays(path)["samples"]
    except (RequestError, KeyError):
        return None


def _pictures(job: Job, stage: str) -> dict[str, np.ndarray]:
    """Those that a stage kept; RequestError if they are damaged."""
    path = job.workdir / "samples" / f"{stage}.npz"
    try:
        return read_arrays(path)
    except RequestError:
        raise RequestError(
            f"samples/{path.name}: got a missing or damaged file, expected the pictures of the stage {stage}; fix: "
            f"delete it, and all stages make it again"
        ) from None


def _images(job: Job, result: AuditResult) -> report.ReportImages:
    """Pictures that the stages kept."""
    kept, judged, shown = (_pictures(job, stage) for stage in ("count", "classifiers", "search"))
    errors: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"fingerprint_false": (judged["fingerprint_false"], None)}
    errors |= {kind: (judged[kind], judged[f"{kind}_head"]) for kind in ("identity_false", "missed")}
    # Without a classifier of marks, that "sees" one everywhere.
    if result.detector.marks:
        errors["fingerprint_only"] = kept["fingerprint_only"], None
    errors |= {kind: (kept[kind], kept[f"{kind}_target"]) for kind in ("control", "identity_only")}
    errors["missed_chain"] = kept["missed"], kept["missed_target"]
    return report.ReportImages(
        job.planted.targets,
        job.planted.originals,
        job.planted.train[: len(kept["samples"])],
        kept["samples"],
        kept["hits"],
        kept["hit_target"],
        errors=errors,
        examples={
            name: (judged[f"{name}_examples"], judged[f"{name}_labels"])
            for name in classifier.NAMES
            if f"{name}_examples" in judged
        },
        near_misses=(kept["near_misses"], kept["near_target"]),
        returns=report.Returns(
            shown["shown_target"],
            job.grid.t[shown["shown_level"]],
            shown["shown_detected"],
            shown["shown_start"],
            shown["shown_end"],
        ),
    )


def run(job: Job) -> None:
    """Prints the answer, and writes the page, its figures and report.json."""
    result, workdir, shown = _audit(job), job.workdir, job.config.report.show_members
    # Before the pictures: whatever may befall those, the answer is there.
    write_json(workdir / "report.json", report.to_json(result))
    training, images = _training(job), None
    if shown:
        try:
            images = _images(job, result)
        except RequestError as error:
            say(f"report without pictures: {error}")
    shown = images is not None
    figures = report.draw_figures(result, images, training)
    for name, png in figures.items():
        write_bytes(workdir / "figures" / f"{name}.png", png)
    # Pictures of members that an earlier report showed do not stay behind.
    for left in set(workdir.glob("figures/*.png")) - {workdir / "figures" / f"{name}.png" for name in figures}:
        left.unlink()
    sections = page_sections(job.stages)
    page = report.to_html(result, figures, training, show_members=shown, sections=sections)
    write_bytes(workdir / "report.html", page.encode())
    public = _write_public(job, result)
    show(report.to_text(result))
    show(f"\n{workdir / 'report.html'}\n{workdir / 'report.json'}")
    if public:
        show(f"{public}/ may leave the hospital, the rest may not")


def _write_public(job: Job, result: AuditResult) -> Path | None:
    """Writes the folder that may leave, which holds nothing else, or removes it; its path."""
    public = job.workdir / "public"
    for left in public.glob("*"):
        left.unlink()
    if not job.config.report.public:
        if public.is_dir():
            public.rmdir()
        return None
    aggregates = audit.make_public(result)
    write_json(public / "report.json", dataclasses.asdict(aggregates))
    write_bytes(public / "report.html", report.to_public_html(aggregates).encode())
    return public


def cost(job: Any) -> Cost:
    """Seconds."""
    return Cost("")


REPORT = Stage(
    "report",
    None,
    needs=(DataResult, ClassifiersResult, ScoreResult, CountResult, SearchResult, LikelihoodResult, BoundResult),
    settings=(AuditSettings, ReportSettings),
    stream=-1,
    run=run,
    cost=cost,
)
