"""Sections of the models and the method: detectors, pictures, training, method, threat model and glossary."""

import json
import math
from typing import Any

from ...audit.results import AuditResult
from ..figures import MAX_TILES
from ..images import ERRORS
from ..numbers import MISSING, counts_text, percent, plural
from ..rows import (
    SCORE_NAMES,
    Row,
    density_text,
    detector_rows,
    evaluation_rows,
    held_out_targets_text,
    make_row,
    members_of,
    roc_rows,
    sampler_text,
    self_rows,
    threshold_row,
    tolerance_text,
)
from .base import Page, Section


def _detectors(page: Page) -> dict[str, Any]:
    result, roc = page.result, roc_rows(page.result)
    looked = len({at.threshold for at in result.thresholds})
    return {
        "measures": detector_rows(result),
        "self_tests": self_rows(result),
        "roc": roc,
        "worst": "; ".join(f"{row.label}: area {row.cells[0]}" for row in roc),
        "confidence": percent(result.settings.confidence),
        "thresholds": [threshold_row(result, at) for at in result.thresholds],
        "looked": f"{plural(looked, 'threshold')} {'was' if looked == 1 else 'were'}",
        "errors": ERRORS,
        "no_errors": not any(f"error_{kind}" in page.figures for kind in ERRORS),
    }


def _pictures(page: Page) -> dict[str, Any]:
    return {
        "members": plural(len(page.result.tests), "member"),
        "max_tiles": MAX_TILES,
        "returns": [test.row for test in page.result.tests if f"returns_{test.row}" in page.figures],
        "sampler": sampler_text(page.result),
    }


def _training(page: Page) -> dict[str, Any]:
    training = page.training
    rates = [(training.images_per_s, "images"), (training.tflop_per_s, "TFLOP")]
    width = 1 / max(len(training.loss_by_t), 1)
    rows = [
        make_row(f"loss_{i}", f"{i * width:.1f} to {(i + 1) * width:.1f}", MISSING if loss is None else f"{loss:.3g}")
        for i, loss in enumerate(training.loss_by_t)
    ]
    drawn = {"training", "on_the_way"} if page.show_members else {"training"}
    return {
        # Two digits: rates vary by some percent from one run to the next.
        "speed": ", ".join(f"{float(f'{value:.2g}'):,g} {unit}/s" for value, unit in rates if math.isfinite(value)),
        "rows": rows,
        "nothing": not rows and not drawn & set(page.figures),
    }


def flat(value: Any, *, name: str = "") -> list[Row]:
    """Nested dictionaries as rows with dotted labels.

    >>> [(row.label, row.cells) for row in flat({"a": {"b": 1}, "c": [2, 3]})]
    [('a.b', ('1',)), ('c', ('[2, 3]',))]
    """
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in flat(item, name=f"{name}.{key}" if name else str(key))]
    return [make_row(name, name, value if isinstance(value, str) else json.dumps(value, default=str))]


def _method_rows(result: AuditResult) -> list[Row]:
    k = len(result.tests)
    chains = counts_text(sum(member.curve.num_chains) for member, _ in members_of(result))
    return [
        make_row("sampler", "sampler", result.sampler),
        make_row("sde", "SDE", result.sde),
        make_row("levels", "levels of the time grid", f"{result.num_levels:,}"),
        make_row("num_train", "training images, N", f"{result.num_train:,}"),
        make_row("num_samples", "plain samples, n", f"{result.num_samples:,}"),
        make_row("targets", "targets", f"{plural(k, 'member')}, {held_out_targets_text(result)}"),
        make_row("chains", "chains of the members", chains),
        make_row("density", "likelihood", density_text(result)),
        *evaluation_rows(result),
    ]


def _setting_rows(result: AuditResult) -> list[Row]:
    settings, looks = result.settings, result.model.planned_looks
    share = "" if len(looks) == 1 else f", shared by {len(looks)} looks: {settings.count_level / len(looks):.2g} each"
    rows = [
        make_row("level", "level of all tests together", f"{settings.level:g}"),
        make_row("count_level", "of it for counts", f"{settings.count_level:g}{share}"),
        make_row("t50_level", "of it for t50", f"{settings.t50_level:g}"),
        make_row("looks", "looks at the counts that were declared", f"n = {counts_text(looks)}"),
        make_row("tolerance", "tolerance", tolerance_text(result)),
        make_row("confidence", "confidence of intervals", percent(settings.confidence)),
    ]
    if result.canaries:
        rows.append(make_row("canary_score", "score of the canaries", SCORE_NAMES[settings.canary_score]))
    return rows


def _method(page: Page) -> dict[str, Any]:
    result = page.result
    return {
        "method": _method_rows(result),
        "settings": _setting_rows(result),
        "provenance": flat(result.provenance) if result.provenance else [],
    }


def _nothing(page: Page) -> dict[str, Any]:
    return {}


DETECTORS = Section("Detectors", "detectors.html", _detectors)
PICTURES = Section("Pictures", "pictures.html", _pictures)
TRAINING = Section("Training", "training.html", _training)
METHOD = Section("Method and settings", "method.html", _method)
THREAT = Section("Threat model", "threat.html", _nothing)
GLOSSARY = Section("Glossary", "glossary.html", _nothing)
