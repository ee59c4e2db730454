"""Rows, and what they are made of everywhere: members, held-out targets, texts of the method."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ...audit.results import (
    AuditResult,
    TargetResult,
)
from ...audit.verdict import MemberTests
from ..numbers import (
    MOST_SHOWN,
    plural,
    small,
)


class Row(NamedTuple):
    """A line of a table, chosen by its id; the label is for people and may be reworded freely."""

    id: str
    label: str
    cells: tuple[str, ...]  # one a member, or one for all, or one a column


def make_row(id: str, label: str, *cells: str) -> Row:
    """A row of these cells."""
    return Row(id, label, cells)


def pick(rows: Iterable[Row], *ids: str) -> list[Row]:
    """The rows of these ids, in their own order."""
    return [row for row in rows if row.id in ids]


def _side_by_side(columns: Sequence[Sequence[Row]]) -> list[Row]:
    """Tables of the same rows as one, with a cell of each."""
    return [
        make_row(same[0].id, same[0].label, *(cell for row in same for cell in row.cells))
        for same in zip(*columns, strict=True)
    ]


def joined(rows: Sequence[Row]) -> list[Row]:
    """Rows of one cell: what differs between members in their order, what does not once."""

    def join(cells: tuple[str, ...]) -> str:
        if len(set(cells)) == 1:
            return cells[0]
        return " | ".join(cells[:MOST_SHOWN]) + " | ..." * (len(cells) > MOST_SHOWN)

    return [make_row(row.id, row.label, join(row.cells)) for row in rows]


def members_of(result: AuditResult) -> list[tuple[TargetResult, MemberTests]]:
    """Each member's search with its tests."""
    by_row = {target.row: target for target in result.targets}
    return [(by_row[test.row], test) for test in result.tests]


def controls_of(result: AuditResult) -> list[TargetResult]:
    """Held-out targets with chains; more of them may have been counted."""
    return [target for target in result.targets if not target.member]


def rank_last(result: AuditResult, member: TargetResult) -> float:
    """Where the t50 that is ranked is censored; the controls have only the chains that are."""
    return min(target.curve.t[-1] for target in [member, *controls_of(result)])


def table_of(result: AuditResult, rows: Callable[[AuditResult, TargetResult, MemberTests], list[Row]]) -> list[Row]:
    """Rows of a table with one column for each member."""
    return _side_by_side([rows(result, member, test) for member, test in members_of(result)])


def tolerance_text(result: AuditResult) -> str:
    """The tolerance and where it is from."""
    stated = "stated" if result.settings.tolerance else "1/N, as often as a perfect memoriser"
    return f"{small(result.model.tolerance)} ({stated})"


def sampler_text(result: AuditResult) -> str:
    """Sampler, levels and process."""
    return f"{result.sampler}, {plural(result.num_levels, 'level')}, {result.sde}"


def density_text(result: AuditResult) -> str:
    """Whose densities were computed, and from which time."""
    if not math.isfinite(result.t_min_likelihood):
        return "not computed"
    return f"probability-flow ODE, t_min = {result.t_min_likelihood:g}"


def held_out_targets_text(result: AuditResult) -> str:
    """How many there are, and how many of them were searched.

    Those with chains are the first of those that are counted.
    """
    counted, searched = result.model.num_count_controls, result.model.num_controls
    return f"{counted:,} held-out targets" + (f" ({searched:,} of them with chains)" if searched != counted else "")
