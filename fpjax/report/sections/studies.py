"""Sections of what was measured: evidence, search, counting, canaries, likelihood and bound."""

from typing import Any

from ...audit.results import AuditResult
from ..numbers import fixed, percent, small
from ..rows import (
    MODEL_BASED,
    Row,
    bound_rows,
    canary_rows,
    control_counts_text,
    count_rows,
    density_text,
    detector_rows,
    diagnostic_rows,
    group_row,
    likelihood_rows,
    make_row,
    model_based_rows,
    model_rows,
    pick,
    sampler_text,
    search_rows,
    snapshot_rows,
    table_of,
)
from .base import Page, Section, by_member


def _evidence(page: Page) -> dict[str, Any]:
    result = page.result
    counts, search = table_of(result, count_rows), table_of(result, search_rows)
    members = pick(counts, "num_detected", "rate", "expected", "count_controls", "count_rank")
    members += pick(search, "t50", "t50_controls", "t50_rank")
    return {
        "tests": model_rows(result),
        "members": by_member(result, members, "Evidence"),
        "used": pick(detector_rows(result), "gate_planted", "sensitivity_used", "false_used"),
        "sampler": sampler_text(result),
    }


def _search(page: Page) -> dict[str, Any]:
    result, rows = page.result, table_of(page.result, search_rows)
    said = {row.id: f"{row.label}: {'; '.join(row.cells)}." for row in rows}
    curve = [said[name] for name in ("t_prime", "t_prime_identity", "t_prime_alpha", "t50") if name in said]
    return {
        "members": by_member(result, rows, "Measure"),
        "curve": " ".join(curve),
        "ranked": f"{said['t50_controls']} {said['t50_rank']}",
        "confidence": percent(result.settings.confidence),
        "sampler": sampler_text(result),
    }


def _counting(page: Page) -> dict[str, Any]:
    result, rows = page.result, table_of(page.result, count_rows)
    return {
        "members": by_member(result, rows, "Measure"),
        "said": "; ".join(cell for row in pick(rows, "num_detected") for cell in row.cells),
        "controls": control_counts_text(result.model.looks[-1].controls),
        "judges": "both detectors" if result.detector.marks else "the detector",
        "model_based_title": MODEL_BASED,
        "model_based": by_member(result, table_of(result, model_based_rows), "Test"),
        "likenesses": _likenesses(result),
        "sampler": sampler_text(result),
    }


def _likenesses(result: AuditResult) -> list[Row]:
    """Pixel differences of the samples that are detected, and of the nearest that are not."""
    threshold = f"above {result.detector.threshold:g}"
    return [
        make_row(
            f"{name}_{i}",
            f"{name} {i}",
            f"{each.target}",
            # Those of a model that learned nothing can be hundreds.
            *(small(value) if value < 10 else f"{value:,.0f}" for value in (each.mse, each.mae)),
            threshold if each.score is None else small(each.score),
        )
        for name, group in (("detected", result.hits), ("near miss", result.near_misses))
        for i, each in enumerate(group, 1)
    ]


def _likelihood(page: Page) -> dict[str, Any]:
    result = page.result
    groups, over_training = [group_row(group) for group in result.nll], snapshot_rows(result)
    return {
        "density": density_text(result),
        "members": by_member(result, likelihood_rows(result), "Measure") if result.nll_members else None,
        "members_said": "; ".join(f"member {one.row}: {fixed(one.bits_per_dim, 2)}" for one in result.nll_members),
        "groups": groups,
        "means": "; ".join(f"{row.label} {row.cells[0]}" for row in groups),
        "diagnostics": diagnostic_rows(result),
        "over_training": over_training,
        "over_training_said": "; ".join(f"{row.label}: {row.cells[0]}" for row in over_training),
    }


def _bound(page: Page) -> dict[str, Any]:
    bound = page.result.bound
    parts = [
        {
            "row": found.row,
            "rows": bound_rows(found),
            "cells": [
                make_row(
                    f"cell_{i}",
                    f"{cell.t_low:.3f} to {cell.t_high:.3f}",
                    f"{fixed(cell.log_sup, 1)} at t = {cell.t_sup:.3f}",
                    fixed(cell.log_term, 1),
                    f"{fixed(cell.effective, 1)} of {cell.num_chains}",
                )
                for i, cell in enumerate(found.cells)
            ],
        }
        for found in bound
    ]
    return {
        "parts": parts,
        "said": "; ".join(f"{r.label}: {r.cells[0]}" for r in bound_rows(bound[0])) if bound else "",
    }


EVIDENCE = Section("Evidence", "evidence.html", _evidence)
SEARCH = Section("Search", "search.html", _search)
COUNTING = Section("Counting", "counting.html", _counting)
CANARIES = Section(
    "Canaries",
    "canaries.html",
    lambda page: {"rows": canary_rows(page.result)},
    lambda page: bool(page.result.canaries),
)
LIKELIHOOD = Section("Likelihood", "likelihood.html", _likelihood)
BOUND = Section("Bound", "bound.html", _bound)
