"""The audit on the terminal, and as JSON."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from ..audit.results import AuditResult
from .numbers import plural
from .rows import (
    MODEL_BASED,
    Row,
    bound_summary_rows,
    canary_rows,
    count_rows,
    density_text,
    detector_rows,
    diagnostic_rows,
    evaluation_rows,
    group_row,
    held_out_targets_text,
    joined,
    likelihood_rows,
    member_table,
    model_based_rows,
    model_rows,
    sampler_text,
    search_rows,
    self_rows,
    shared_rows,
    snapshot_rows,
    table_of,
)

WIDTH = 100  # Columns of the terminal's text.


def to_json(result: AuditResult) -> dict[str, Any]:
    """The result as plain dictionaries; `store.write_json` turns numbers that are not finite into null."""
    return dataclasses.asdict(result)


def headline(result: AuditResult) -> str:
    """The verdict with its kinds."""
    kinds = f" ({', '.join(result.verdict.kinds)})" if result.verdict.kinds else ""
    return result.verdict.verdict.upper() + kinds


# Terminal


def _lines(rows: Sequence[Row], label_width: int) -> list[str]:
    """Two columns, the second one wrapped."""
    return [
        line
        for row in rows
        for line in textwrap.wrap(
            f"  {row.label:<{label_width}}  {row.cells[0]}",
            WIDTH,
            drop_whitespace=True,
            subsequent_indent=" " * (label_width + 4),
            break_on_hyphens=False,
        )
    ]


def _columns(heads: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """A table with a line for each row, as narrow as its cells, and narrower where it must be."""
    table = [heads, *([row.label, *row.cells] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    gap = " " if 2 + sum(widths) + 2 * (len(widths) - 1) > WIDTH else "  "
    return [
        "  " + gap.join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]


def _bullets(title: str, items: Sequence[str]) -> list[str]:
    wrapped = [
        line
        for item in items
        for line in textwrap.wrap(item, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    ]
    return [title, *wrapped] if items else []


def _member_blocks(result: AuditResult, sampler: str) -> list[tuple[str, list[str], list[Row]]]:
    """Title, lines and rows of what the terminal says of the members: of one all, of several a line for each."""
    model_based = (f"{MODEL_BASED} (s: the detectors' sensitivity)", [], joined(table_of(result, model_based_rows)))
    if len(result.tests) == 1:
        return [
            (f"Search (sampler: {sampler})", [], table_of(result, search_rows)),
            (f"Counting (sampler: {sampler})", [], table_of(result, count_rows)),
            model_based,
        ]
    model = result.model
    note = f"|q| of n = {result.num_samples:,}. Beneath, numbers between bars are the members' in their order."
    if model.num_count_controls:
        note = (
            f"p: rank among {model.num_count_controls} held-out targets by |q|, among {model.num_controls} by t50; Holm over "
            f"{len(result.tests)} members. {note}"
        )
    lines = _columns(*member_table(result))
    lines += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return [(f"Members (sampler: {sampler})", lines, shared_rows(result)), model_based]


def to_text(result: AuditResult) -> str:
    """What the terminal shows at the end: the verdict first, plain text of at most 100 columns."""
    density = density_text(result)
    blocks: list[tuple[str, list[str], list[Row]]] = [
        ("Tests of the model", [], model_rows(result)),
        *_member_blocks(result, sampler_text(result)),
        ("Canaries", [], canary_rows(result)),
        ("Detectors", [], detector_rows(result)),
        ("Audit of the auditor", [], self_rows(result)),
        (f"Likelihood, descriptive, no part of the verdict ({density})", [], joined(likelihood_rows(result))),
        (f"Likelihood of groups, bits/dim ({density})", [], [group_row(group) for group in result.nll]),
        ("How these densities came about", [], diagnostic_rows(result)),
        ("Likelihood over training, bits/dim", [], snapshot_rows(result)),
        ("Bound (upper Darboux sum of the paper's eq. 9)", [], bound_summary_rows(result)),
        ("Cost", [], evaluation_rows(result)),
    ]
    label_width = max(len(row.label) for _, _, rows in blocks for row in rows)
    head = [
        f"VERDICT: {headline(result)}",
        *textwrap.wrap(
            f"{result.name}: {plural(len(result.tests), 'member target')} among N = {result.num_train:,} training images, "
            f"{held_out_targets_text(result)}, n = {result.num_samples:,} plain samples",
            WIDTH,
        ),
    ]
    parts = [
        "\n".join(
            [
                *head,
                *_bullets("Why", result.verdict.reasons),
                *_bullets("What would settle it", result.verdict.to_settle),
            ]
        )
    ]
    parts += [
        "\n".join([*textwrap.wrap(title, WIDTH, subsequent_indent="  "), *lines, *_lines(rows, label_width)])
        for title, lines, rows in blocks
        if rows
    ]
    return "\n\n".join(parts) + "\n"
