"""What a section of the page is, and what the sections share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...audit.results import AuditResult
from ..images import Training
from ..numbers import MOST_SHOWN
from ..rows import Row, make_row


class Page(NamedTuple):
    """Everything that sections are made of."""

    result: AuditResult
    figures: dict[str, bytes]  # PNG files by name
    training: Training
    show_members: bool  # False leaves out every picture


def _always(page: Page) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the page: a template, and what it is given beside the fields of `Page`.

    Attributes:
      title: heading, also in the contents.
      template: file in `templates/`.
      context: a pure function of the page to the template's variables; texts are escaped by the template.
      shown: whether the page has it.
    """

    title: str
    template: str
    context: Callable[[Page], dict[str, Any]]
    shown: Callable[[Page], bool] = _always

    @property
    def id(self) -> str:
        """Anchor."""
        return self.title.lower().replace(" ", "-")


class ByMember(NamedTuple):
    """A table with one column a member, or, where those are many, one line a member."""

    heads: list[str]
    rows: list[Row]


def by_member(result: AuditResult, rows: Sequence[Row], first: str) -> ByMember:
    """These rows, one cell a member, as a table whose first column is headed `first`."""
    if len(result.tests) <= MOST_SHOWN:
        single = len(result.tests) == 1
        return ByMember([first, *(["Finding"] if single else (f"Member {t.row}" for t in result.tests))], list(rows))
    lines = [
        make_row(f"member_{test.row}", str(test.row), *(row.cells[i] for row in rows))
        for i, test in enumerate(result.tests)
    ]
    return ByMember(["Member", *(row.label for row in rows)], lines)
