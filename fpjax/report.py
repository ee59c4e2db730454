"""From an `AuditResult` to what people and programs read: JSON, the terminal's text, figures, one HTML file.

Only formats and draws; every statistic comes from `audit`. Numbers show no more digits than their interval supports.
The text and the HTML share their rows, so they cannot disagree.
"""

import base64
import dataclasses
import html
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .audit import (
    AtThreshold,
    AuditResult,
    Bound,
    Curve,
    Heads,
    NllDiagnostics,
    NllGroup,
    NllSnapshot,
    RocCurve,
    Sensitivity,
    TargetResult,
)
from .canaries import CanaryResult
from .verdict import BELOW, INCONCLUSIVE, LEAK, MEMORISED, REPRODUCED, MemberTests, Rate, SelfTest

MISSING = "n/a"
WIDTH = 100  # Columns of the terminal's text.
MOST_SHOWN = 6  # Members that are named side by side; canaries can be hundreds.

# Colours of Okabe & Ito (2008), which colour-blind readers can tell apart; controls are grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY, _DARK = "#a0a0a0", "#404040"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
}
_MAX_TILES = 40


class Returns(NamedTuple):
    """Chains that start at members, and what they ended as (paper, Fig. 4); a member's by increasing time."""

    target: np.ndarray  # (n,) int, row in the targets
    t: np.ndarray  # (n,) that the member was noised to
    detected: np.ndarray  # (n,) bool, as that member
    start: np.ndarray  # (n, h, w, c) uint8, the noised member
    end: np.ndarray  # (n, h, w, c) uint8


class ReportImages(NamedTuple):
    """Pictures of the report, uint8 of shape (n, h, w, c) with c = 1 or 3."""

    targets: np.ndarray  # members first
    originals: np.ndarray  # the targets without their fingerprints
    train: np.ndarray  # some training images
    samples: np.ndarray  # some plain samples
    hits: np.ndarray  # samples detected as a member, may be empty
    hit_target: np.ndarray  # (n_hits,) int, row in `targets`
    # Errors by kind, a key of `ERRORS`, with the row of the target of each, or None where no target is meant.
    errors: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}  # noqa: RUF012
    # By classifier, images that it was trained on (paper, Fig. 7), and whether each is a positive.
    examples: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # noqa: RUF012
    # Samples that are not detected but nearest to a member, and its row in `targets`.
    near_misses: tuple[np.ndarray, np.ndarray] | None = None
    returns: Returns | None = None


class Training(NamedTuple):
    """The score network's training; may be empty. The rates are this machine's, the rest is the same anywhere."""

    step: Sequence[int] = ()  # at which the rest was logged: means since the step before
    loss: Sequence[float] = ()
    grad_norm: Sequence[float | None] = ()
    loss_by_t: Sequence[float | None] = ()  # the last, in equal bins of t in [0, 1]; None where no image fell
    images_per_s: float = math.nan
    tflop_per_s: float = math.nan
    samples: np.ndarray | None = None  # the last that were drawn on the way, uint8 of shape (n, h, w, c)
    samples_step: int = 0
    # By classifier: epochs, loss, loss in validation.
    classifiers: dict[str, tuple[Sequence[int], Sequence[float], Sequence[float]]] = {}  # noqa: RUF012


class Row(NamedTuple):
    """A line of a table, chosen by its id; the label is for people and may be reworded freely."""

    id: str
    label: str
    cells: tuple[str, ...]  # one a member, or one for all, or one a column


def to_json(result: AuditResult) -> dict[str, Any]:
    """The result as plain dictionaries; `artifacts.write_json` turns numbers that are not finite into null."""
    return dataclasses.asdict(result)


# Numbers as text


def _decimals(width: float) -> int:
    """Decimals that leave the last digit worth a fifth to a fiftieth of an interval of this width."""
    return min(6, max(0, 1 - math.floor(math.log10(2 * width) + 1e-9))) if 0 < width < math.inf else 2


def _fixed(value: float | None, decimals: int) -> str:
    """A number with so many decimals; never "-0.0"."""
    return MISSING if value is None or not math.isfinite(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def _small(value: float | None) -> str:
    """A p-value or a rate with two digits that count.

    >>> _small(0.1), _small(0.00046), _small(0.0)
    ('0.10', '4.6e-4', '0')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    return f"{value:#.2g}" if 1e-3 <= abs(value) < 10 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _rate(rate: Rate, confidence: float) -> str:
    """A fraction with its interval and its counts."""
    if rate.trials == 0:
        return f"{MISSING} (no trials)"
    if rate.upper - rate.lower > 0.5:
        return f"{rate.hits:,} of {rate.trials:,}, too few to state a rate"
    decimals = _decimals(rate.upper - rate.lower)
    number = _small if rate.upper < 0.01 else lambda value: _fixed(value, decimals)
    ends = f"{number(rate.lower)} to {number(rate.upper)}"
    return f"{number(rate.estimate)} ({_percent(confidence)} interval {ends}; {rate.hits:,} of {rate.trials:,})"


def _time(value: float, width: float, *, last: float = math.inf, zero: str = "none") -> str:
    """A time with the digits that an interval of this width supports; ">=" where the search ended before it could say.

    >>> _time(0.3512, 0.1), _time(0.6, 0.1, last=0.6), _time(0.0, 0.1), _time(0.001, 0.1)
    ('0.35', '>= 0.60', 'none', '0.001')
    """
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return zero
    first_digit = math.ceil(-math.log10(value))
    return ">= " * (value >= last) + f"{value:.{max(_decimals(width), first_digit)}f}"


def _grid_width(curve: Curve) -> float:
    """The width whose digits tell one level from the next."""
    return 5 * min((b - a for a, b in zip(curve.t, curve.t[1:], strict=False)), default=0.1)


def _last(curve: Curve) -> float:
    """Where t' is censored: the last level with chains, unless that is the end of the diffusion."""
    return curve.t[-1] if curve.t[-1] < 1 - 1e-6 else math.inf


def _t50(value: float, lower: float, upper: float, last: float, confidence: float) -> str:
    """The crossing with its interval, censored at the last level."""
    width = upper - lower
    ends = f"{_time(lower, width, zero='0')} to {_time(upper, width, last=last)}"
    return f"{_time(value, width, last=last)} ({_percent(confidence)} interval {ends})"


def _p(value: float | None, level: float) -> str:
    """A p-value beside the level that it is tested at."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"p = {_small(value)}, {'at or below' if value <= level else 'above'} the level {level:.3g}"


def _counts(numbers: Iterable[int]) -> str:
    """Counts as a list in words, or their range where they are many.

    >>> _counts([9]), _counts([1, 0, 2]), _counts(range(7))
    ('9', '1, 0 and 2', '0 to 6')
    """
    values = list(numbers)
    if len(values) > MOST_SHOWN:
        return f"{min(values):,} to {max(values):,}"
    *most, last = [f"{number:,}" for number in values]
    return f"{', '.join(most)} and {last}" if most else last


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


# Rows that text and HTML share


def _row(id: str, label: str, *cells: str) -> Row:
    return Row(id, label, cells)


def _pick(rows: Iterable[Row], *ids: str) -> list[Row]:
    """The rows of these ids, in their own order."""
    return [row for row in rows if row.id in ids]


def _side_by_side(columns: Sequence[Sequence[Row]]) -> list[Row]:
    """Tables of the same rows as one, with a cell of each."""
    return [
        _row(same[0].id, same[0].label, *(cell for row in same for cell in row.cells))
        for same in zip(*columns, strict=True)
    ]


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Rows of one cell: what differs between members in their order, what does not once."""

    def join(cells: tuple[str, ...]) -> str:
        if len(set(cells)) == 1:
            return cells[0]
        return " | ".join(cells[:MOST_SHOWN]) + " | ..." * (len(cells) > MOST_SHOWN)

    return [_row(row.id, row.label, join(row.cells)) for row in rows]


def _members(result: AuditResult) -> list[tuple[TargetResult, MemberTests]]:
    """Each member's search with its tests."""
    by_row = {target.row: target for target in result.targets}
    return [(by_row[test.row], test) for test in result.tests]


def _controls(result: AuditResult) -> list[TargetResult]:
    """Held-out targets with chains; more of them may have been counted."""
    return [target for target in result.targets if not target.member]


def _rank_last(result: AuditResult, member: TargetResult) -> float:
    """Where the t50 that is ranked is censored; the controls have only the chains that are."""
    return min(target.curve.t[-1] for target in [member, *_controls(result)])


def _one_in(rate: float) -> str:
    """A rate in words.

    >>> _one_in(0.00919), _one_in(0.31), _one_in(0.00046), _one_in(1.0)
    ('about one sample in 110', 'about one sample in 3', 'about one sample in 2,200', 'about every sample')
    """
    if rate > 2 / 3:
        return "about every sample"
    return f"about one sample in {float(f'{1 / rate:.2g}'):,.0f}" if rate > 0 else "no sample"


def _impossible(result: AuditResult, smallest: float, level: float, num_controls: int) -> str:
    """Says so where so few targets could not have rejected."""
    if smallest <= level:
        return ""
    return f"; with K = {len(result.tests)} and H = {num_controls} no p at or below the level is possible"


def _looks(result: AuditResult) -> list[Row]:
    """The counts of each declared look with their test."""
    model, rows = result.model, []
    for i, planned in enumerate(model.planned_looks):
        label = "counts" if len(model.planned_looks) == 1 else f"counts, look {i + 1} of {len(model.planned_looks)}"
        if i >= len(model.looks):
            rows.append(_row(f"look_{i}", label, f"n = {planned:,}: not needed, an earlier look rejects"))
            continue
        look = model.looks[i]
        who = "the member" if len(look.members) == 1 else "the members"
        test = _p(look.p, look.level) if look.controls else f"{MISSING} (no held-out targets)"
        note = _impossible(result, model.smallest_count_p, look.level, len(look.controls)) if look.controls else ""
        found = f"n = {look.num_samples:,}: {who} {_counts(look.members)}, {_held_out(look.controls)}"
        rows.append(_row(f"look_{i}", label, f"{found}; {test}{note}"))
    return rows


def _held_out(controls: Sequence[int]) -> str:
    """Counts of held-out targets, as their range.

    >>> _held_out([0, 0, 3]), _held_out([0, 0]), _held_out([])
    ('3 held-out targets 0 to 3', '2 held-out targets 0', 'no held-out target')
    """
    if not controls:
        return "no held-out target"
    low, high = min(controls), max(controls)
    return f"{_plural(len(controls), 'held-out target')} {low:,}{f' to {high:,}' if high > low else ''}"


def _prevalence(result: AuditResult) -> str:
    rate = result.model.prevalence
    if not result.model.num_count_controls:
        return f"{MISSING} (no held-out targets)"
    if rate.trials < 2:
        return f"{rate.hits} of {rate.trials}"
    decimals = _decimals(rate.upper - rate.lower)
    ends = f"{_fixed(rate.lower, decimals)} to {_fixed(rate.upper, decimals)}"
    return f"{rate.hits} of {rate.trials} ({_percent(result.settings.confidence)} interval of the share {ends})"


def _tolerance(result: AuditResult) -> str:
    stated = "stated" if result.settings.tolerance else "1/N, as often as a perfect memoriser"
    return f"{_small(result.model.tolerance)} ({stated})"


def _model_rows(result: AuditResult) -> list[Row]:
    """Tests of the model as a whole: one family, one level."""
    model, settings, k = result.model, result.settings, len(result.tests)
    t50 = f"{MISSING} (no held-out targets with chains)"
    if model.num_controls:
        note = _impossible(result, model.smallest_t50_p, model.t50_level, model.num_controls)
        t50 = f"{_p(model.t50_p, model.t50_level)}{note}"
    limit = f"upper end of the {_percent(settings.confidence)} interval, misses of the detectors allowed for"
    side = "below" if model.bound < model.tolerance else "not below"
    return [
        _row(
            "level",
            "level of the tests",
            f"{settings.level:g} in all: counts {settings.count_level:g}, t50 {settings.t50_level:g}",
        ),
        *_looks(result),
        _row("t50_test", "t50", t50),
        _row("prevalence", "members above every held-out target", _prevalence(result)),
        _row(
            "bound",
            "bound of the rate of reproduction",
            f"at most {_small(model.bound)}, {_one_in(model.bound)} ({limit}{'' if k == 1 else '; largest of any member'})",
        ),
        _row("tolerance", "tolerance", f"{_tolerance(result)}; the bound is {side} it"),
        _row("detectable", "rate seen with a power of 80 %", _detectable(model.detectable_rate)),
    ]


def _detectable(rate: float) -> str:
    return f"{_small(rate)} or more" if math.isfinite(rate) else "none (too few samples or targets)"


def _rank(result: AuditResult, p: float, adjusted: float, num_controls: int) -> str:
    """A member's own p-value, with Holm's where there are several members."""
    if num_controls == 0:
        return f"{MISSING} (no held-out targets)"
    k = len(result.tests)
    holm = f"; {_small(adjusted)} by Holm over {k} members" if k > 1 else ""
    return f"p = {_small(p)}, rank among {_plural(num_controls, 'held-out target')}{holm}"


def _control_t50(result: AuditResult, member: TargetResult) -> str:
    """The t50 of the held-out targets by the chains that all share."""
    controls = _controls(result)
    if not controls:
        return f"{MISSING} (no held-out targets)"
    values, last = [target.t50_rank for target in controls], _rank_last(result, member)
    middle, low, high = (_ranked(result, t, last) for t in (float(np.median(values)), min(values), max(values)))
    return f"median {middle}, range {low} to {high} (H = {len(values)})"


def _ranked(result: AuditResult, value: float, last: float) -> str:
    """A t50 by the chains that members and held-out targets share."""
    width = float(np.median([target.t50_upper - target.t50_lower for target in _controls(result)]))
    return _time(value, width, last=last)


def _t_prime(member: TargetResult, *values: float) -> list[str]:
    """Values of t' with the digits that its range supports."""
    width = max(member.t_prime_upper - member.t_prime_lower, _grid_width(member.curve))
    return [_time(value, width, last=_last(member.curve)) for value in values]


def _t_prime_alpha(member: TargetResult) -> list[str]:
    """t'_alpha and the ends of its range."""
    width = max(member.t_prime_alpha_upper - member.t_prime_alpha_lower, _grid_width(member.curve))
    times = (member.t_prime_alpha, member.t_prime_alpha_lower, member.t_prime_alpha_upper)
    return [_time(value, width, last=_last(member.curve)) for value in times]


def _search_rows(result: AuditResult, member: TargetResult, test: MemberTests) -> list[Row]:
    """One member's search."""
    confidence = result.settings.confidence
    repeats = f"{_percent(confidence)} of repeats"
    t_prime, low, high = _t_prime(member, member.t_prime, member.t_prime_lower, member.t_prime_upper)
    alpha, alpha_low, alpha_high = _t_prime_alpha(member)
    controls = _control_t50(result, member)
    if _controls(result):
        own = _ranked(result, member.t50_rank, _rank_last(result, member))
        controls += f"; the member's by the same chains {own}"
    rows = [_row("t_prime", "t' (largest t with a return)", f"{t_prime} ({repeats} {low} to {high})")]
    if result.detector.marks:
        label = "t' by the identity classifier alone"
        rows.append(_row("t_prime_identity", label, *_t_prime(member, member.t_prime_identity)))
    return rows + [
        _row(
            "t_prime_alpha",
            "t'_alpha (returns above the floor)",
            f"{alpha} ({repeats} {alpha_low} to {alpha_high}; floor {_small(result.floor)})",
        ),
        _row(
            "t50",
            "t50 (half the chains return)",
            _t50(member.t50, member.t50_lower, member.t50_upper, member.curve.t[-1], confidence),
        ),
        _row(
            "log_snr",
            "log-SNR at t50; at t'",
            f"{_fixed(member.log_snr_t50, 1)}; {_fixed(member.log_snr_t_prime, 1)}",
        ),
        _row("t50_controls", "t50 of the held-out targets", controls),
        _row("t50_rank", "rank of t50", _rank(result, test.t50_p, test.t50_holm, result.model.num_controls)),
    ]


def _expected(result: AuditResult, test: MemberTests) -> str:
    n = test.expected
    number = f"{n:,.{1 if n < 100 else 0}f}" if n >= 1 else _small(n)
    return f"{number} (rate 1/N = {_small(1 / result.num_train)})"


def _count_rows(result: AuditResult, member: TargetResult, test: MemberTests) -> list[Row]:
    """One member's counts."""
    n, rate, controls = f"{result.num_samples:,}", test.rate, result.model.looks[-1].controls
    interval = f"{_percent(result.settings.confidence)} interval {_small(rate.lower)} to {_small(rate.upper)}"
    parts = [
        _row("num_fingerprint", "samples with a fingerprint, c_p+", f"{result.num_fingerprint:,} of {n}"),
        _row("num_identity", "samples with the identity, c_id+", f"{member.num_identity:,} of {n}"),
    ]
    return (parts if result.detector.marks else []) + [
        _row("num_detected", "samples detected as the target, |q|", f"{rate.hits:,} of {n}"),
        _row("rate", "rate of reproduction", f"{_small(rate.estimate)} ({interval})"),
        _row("expected", "expected of a memoriser, E|q| = n/N", _expected(result, test)),
        _row("count_controls", "counts of the held-out targets", _control_counts(controls)),
        _row("count_rank", "rank of |q|", _rank(result, test.count_p, test.count_holm, len(controls))),
    ]


def _control_counts(controls: Sequence[int]) -> str:
    if not controls:
        return f"{MISSING} (no held-out targets)"
    middle = float(np.median(controls))
    return f"median {middle:,g}, range {min(controls):,} to {max(controls):,} (H = {len(controls)})"


def _model_based_rows(result: AuditResult, member: TargetResult, test: MemberTests) -> list[Row]:
    """P-values that rest on more than exchangeability; s is the detectors' sensitivity."""
    del result, member
    return [
        _row("fewer", "paper's test (H1: fewer than s n/N)", f"p = {_small(test.fewer_p)}"),
        _row("leak", "leak test (H1: above any false hits)", f"p = {_small(test.leak_p)}"),
        _row("gamma_poisson", "gamma-Poisson (H1: above held-out)", f"p = {_small(test.gamma_poisson_p)}"),
    ]


MODEL_BASED = "Model-based, decides nothing"


def _table_of(result: AuditResult, rows: Callable[[AuditResult, TargetResult, MemberTests], list[Row]]) -> list[Row]:
    """Rows of a table with one column for each member."""
    return _side_by_side([rows(result, member, test) for member, test in _members(result)])


def _member_table(result: AuditResult) -> tuple[list[str], list[Row]]:
    """Heads, and one short line for each member."""
    confidence = _percent(result.settings.confidence)
    heads = ["member", "|q|", f"rate, {confidence}", "p; Holm", f"t50, {confidence}", "p; Holm", "t'", "t'_alpha"]
    lines = []
    for member, test in _members(result):
        width, last = member.t50_upper - member.t50_lower, member.curve.t[-1]
        t50, low, high = (
            _time(t, width, last=last, zero="0") for t in (member.t50, member.t50_lower, member.t50_upper)
        )
        cells = (
            f"{test.rate.hits:,}",
            f"{_small(test.rate.lower)} to {_small(test.rate.upper)}",
            f"{_small(test.count_p)}; {_small(test.count_holm)}" if result.model.num_count_controls else MISSING,
            f"{t50} [{low}, {high}]",
            f"{_small(test.t50_p)}; {_small(test.t50_holm)}" if result.model.num_controls else MISSING,
            *_t_prime(member, member.t_prime),
            _t_prime_alpha(member)[0],
        )
        lines.append(_row(f"member_{test.row}", str(test.row), *(cell.replace(">= ", ">=") for cell in cells)))
    return heads, lines


def _shared_rows(result: AuditResult) -> list[Row]:
    """What is the same for all members, in the terminal."""
    member, test = _members(result)[0]
    once = _count_rows(result, member, test) + _search_rows(result, member, test)
    own = {
        "num_identity": " | ".join(f"{member.num_identity:,}" for member, _ in _members(result)),
        "t50_controls": _control_t50(result, member),
    }
    ids = ("num_fingerprint", "num_identity", "expected", "count_controls", "t50_controls")
    return [_row(row.id, row.label, own.get(row.id, *row.cells)) for row in _pick(once, *ids)]


def _likelihood_rows(result: AuditResult) -> list[Row]:
    """Densities of the members, a cell for each; none were they not computed."""
    columns = []
    for each in result.nll_members:
        p = _small(each.rank_p)
        rank = p if p == MISSING else f"p = {p} (small: likelier than they are)"
        columns.append(
            [
                _row("nll", "NLL of the member, bits/dim", _fixed(each.bits_per_dim, 2)),
                _row("nll_rank", "its rank among held-out targets", rank),
            ]
        )
    return _side_by_side(columns)


def _group(group: NllGroup) -> Row:
    """Mean of a group with its standard error."""
    if not group.bits_per_dim:
        mean = MISSING
    elif math.isfinite(group.standard_error):
        decimals = _decimals(2 * group.standard_error)
        mean = f"{_fixed(group.mean, decimals)} +- {_fixed(group.standard_error, decimals)} (standard error)"
    else:
        mean = _fixed(group.mean, 2)
    lost = f", {group.not_converged} more did not converge" if group.not_converged else ""
    images = _plural(len(group.bits_per_dim), "image")
    return _row(f"nll_{group.name}", f"mean NLL, {group.name}", f"{mean}, {images}{lost}")


def _diagnosed(found: NllDiagnostics) -> str:
    """How a group's densities came about: parts, noise, evaluations, outcomes."""
    sign = "-" if found.divergence_nats < 0 else "+"
    lost = [f"{count:,} {name}" for name, count in found.outcomes.items() if count and name != "converged"]
    parts = [
        f"prior {_fixed(found.prior_nats, 2)} {sign} divergence {_fixed(abs(found.divergence_nats), 2)} nats/dim",
        f"one image +- {_small(found.image_error)} bits/dim" if math.isfinite(found.image_error) else "",
        f"evaluations: median {_fixed(found.median_evaluations, 0)}, most {found.most_evaluations:,}",
        f"lost: {', '.join(lost)}" if lost else "",
    ]
    return "; ".join(part for part in parts if part)


def _diagnostic_rows(result: AuditResult) -> list[Row]:
    return [
        _row(f"diagnostics_{group.name}", f"of {group.name}", _diagnosed(group.diagnostics))
        for group in result.nll
        if group.diagnostics
    ]


def _snapshot_cells(snapshot: NllSnapshot) -> list[str]:
    """Members with their ranks, then the mean of each other followed group."""
    members = [f"{_fixed(m, 2)} (p = {_small(p)})" for m, p in zip(snapshot.member, snapshot.rank_p, strict=True)]
    means = [f"{group.name} {_fixed(group.mean, 2)}" for group in snapshot.groups if group.name != "member"]
    return [", ".join(members), ", ".join(means)]


def _snapshot_rows(result: AuditResult) -> list[Row]:
    return [
        _row(f"snapshot_{snapshot.step}", f"after {snapshot.step:,} steps", f"member {members}; {means}")
        for snapshot in result.snapshots
        for members, means in [_snapshot_cells(snapshot)]
    ]


def _log_sum(value: float, end: float) -> str:
    return f"{_fixed(value, 1)} nats (up to t = {_small(end)})" if end else "none: there is no such t"


def _bound_rows(found: Bound) -> list[Row]:
    """The Darboux sum of one member, with what tells how far to trust it."""
    known = [value for value in found.effective if math.isfinite(value)]
    largest = max(found.cells, key=lambda cell: cell.log_term, default=None)
    inflation = found.trace_error**2 / 2
    lost = f", {found.not_converged:,} more did not converge" if found.not_converged else ""
    term = f"t = {_small(largest.t_low)} to {_small(largest.t_high)}, " if largest else ""
    effective = f"median {_fixed(float(np.median(known)), 1)}, least {_fixed(min(known), 1)}" if known else MISSING
    return [
        _row("log_sum", "log of the sum up to t'", _log_sum(found.log_sum, found.t_prime)),
        _row("log_sum_alpha", "log of the sum up to t'_alpha", _log_sum(found.log_sum_alpha, found.t_prime_alpha)),
        _row(
            "cells",
            "cells; largest term",
            f"{len(found.cells)}; " + (f"{term}{_fixed(largest.log_term, 1)} nats" if largest else MISSING),
        ),
        _row(
            "densities",
            "densities; effective of each mean",
            f"{found.num_densities - found.not_converged:,}{lost}; {effective}",
        ),
        _row(
            "trace_error",
            "noise of a density by its trace",
            f"+- {_fixed(found.trace_error, 1)} nats; it raises the logs, by at most {_fixed(inflation, 1)} in the mean"
            if math.isfinite(found.trace_error)
            else f"{MISSING} (one probe, not repeated)",
        ),
        _row("t_min", "t_min, which sets its size", f"{found.t_min:g}"),
        _row("meaning", "what it means", "a sum of densities, not of probabilities: it bounds none"),
    ]


def _bounds(result: AuditResult) -> list[Row]:
    """The terminal's rows of the Darboux sums, short where there are several members."""
    if len(result.bound) == 1:
        return _bound_rows(result.bound[0])
    rows = _joined(_side_by_side([_bound_rows(found) for found in result.bound]))
    return _pick(rows, "log_sum", "log_sum_alpha", "t_min", "meaning")


def _sensitivity(found: Sensitivity, confidence: float) -> str:
    """Detection of copies, with the target as the unit."""
    if not found.targets:
        return f"{MISSING} (not measured)"
    decimals = _decimals(2 * (found.mean - found.lower))
    mean, lower, worst = (_fixed(value, decimals) for value in (found.mean, found.lower, found.worst))
    return (
        f"mean {mean}, at least {lower} ({_percent(confidence)} limit, the target as its unit); worst target "
        f"{found.worst_row}: {worst}; {_plural(found.targets, 'target')}, {_plural(found.copies, 'copy', 'copies')} of each"
    )


def _gate_rows(result: AuditResult) -> list[Row]:
    """What the detectors passed before any chain was run."""
    gate = result.detector.gate
    trained = [
        f"{name} {_plural(attempts, 'attempt')}"
        + (f", {_plural(gate.epochs[name], 'epoch')}" if name in gate.epochs else "")
        for name, attempts in gate.attempts.items()
    ]
    return [
        *([_row("gate_training", "gate: training until it opened", "; ".join(trained))] if trained else []),
        _row(
            "gate_dropped",
            "gate: targets dropped",
            f"{gate.dropped:,}, not seen by the detectors and replaced before membership was drawn"
            if gate.dropped
            else "none",
        ),
        *(
            [
                _row(
                    "gate_unseen",
                    "gate: left shut",
                    f"{_plural(gate.unseen, 'target')} not seen by the detectors stay (classifiers.gate = False)",
                )
            ]
            if gate.unseen
            else []
        ),
        _row(
            "gate_planted",
            "gate: targets found",
            f"{gate.planted_found:,} of {_plural(gate.targets, 'target')} found as planted",
        ),
    ]


def _detector_rows(result: AuditResult) -> list[Row]:
    detector, confidence = result.detector, result.settings.confidence
    oracle = (
        f"{detector.oracle_detected:,} of its {detector.oracle_samples:,} samples taken for a member, "
        f"{detector.oracle_reproduced:,} are"
    )
    marks = detector.fingerprint_accuracy
    identity = ", identity classifier" if detector.marks else " of the detector"
    return [
        _row("detector", "detector", detector.description),
        _row("threshold", "threshold of its scores", f"{detector.threshold:g}"),
        *_gate_rows(result),
        *(
            [_row("accuracy_fingerprint", "accuracy, fingerprint classifier", _rate(marks, confidence))]
            if marks
            else []
        ),
        _row("accuracy_identity", f"accuracy{identity}", _rate(detector.identity_accuracy, confidence)),
        _row("false_real", "joint false hits, real images", _rate(detector.joint_false_real, confidence)),
        _row(
            "false_generated", "joint false hits, generated images", _rate(detector.joint_false_generated, confidence)
        ),
        _row("false_used", "false-hit rate used, at most", _small(detector.false_rate_upper)),
        _row(
            "sensitivity_poor", "sensitivity, other tones and blur", _sensitivity(detector.sensitivity_poor, confidence)
        ),
        _row(
            "sensitivity_returns",
            "sensitivity, returns from low noise",
            _sensitivity(detector.sensitivity_returns, confidence),
        ),
        _row(
            "sensitivity_used",
            "sensitivity used, at least",
            f"{_fixed(detector.sensitivity_lower, 2)} (the smaller limit of poor copies and of returns)",
        ),
        _row("memoriser", "audited memoriser, members", oracle),
        *(
            _row(f"worst_{heads.images}", f"worst head, {heads.images} images", _head(heads, confidence))
            for heads in detector.heads
        ),
    ]


def _head(heads: Heads, confidence: float) -> str:
    """The head with the most false hits, and whether heads differ."""
    if not any(heads.hits):
        return f"no false hit of any of {_plural(len(heads.hits), 'head')} on {_plural(heads.num_images, 'image')}"
    return f"target {heads.worst}, {_rate(heads.worst_rate, confidence)}; all heads alike: p = {_small(heads.equal_p)}"


def _outcome(test: SelfTest) -> str:
    """One part of the audit of the auditor; what vetoes nothing is told."""
    if not test.vetoes:
        return "told"
    return "cannot tell" if not test.possible else "passed" if test.passed else "FAILED"


def _self_rows(result: AuditResult) -> list[Row]:
    """The audit of the auditor."""
    return [_row(f"self_{i}", test.what, f"{_outcome(test)}: {test.text}") for i, test in enumerate(result.self_tests)]


_SCORES = {
    "count": "plain samples that are taken for the canary",
    "t50": "t50, the noise up to which it comes back",
    "nll": "the negative of its NLL",
}


def _epsilon(found: CanaryResult) -> tuple[str, str]:
    """The lower bound of epsilon, never rounded up, and what it could have been."""
    if found.epsilon is None or found.epsilon_most is None:
        missing = f"{MISSING} (the extra fpjax[privacy] is not installed)"
        return missing, missing
    shown = f"epsilon >= {math.floor(10 * found.epsilon + 1e-9) / 10:.1f} at confidence {_percent(found.confidence)}"
    most = f"at most {found.epsilon_most:.1f} could have been shown with {_plural(found.num_in + found.num_out, 'canary', 'canaries')}"
    return f"{shown} (delta = {_small(found.delta)})", most


def _canary_rows(result: AuditResult) -> list[Row]:
    """Canaries, each a member by a fair coin of its own; none without them."""
    found = result.canaries
    if found is None:
        return []
    epsilon, most = _epsilon(found)
    area = "too few to state"
    if found.area_upper - found.area_lower <= 0.5:
        decimals = _decimals(found.area_upper - found.area_lower)
        own, low, high = (_fixed(value, decimals) for value in (found.area, found.area_lower, found.area_upper))
        area = f"{own} ({_percent(found.confidence)} interval {low} to {high})"
    tpr = Rate(found.tpr_hits, found.tpr_trials, found.tpr, found.tpr_lower, found.tpr_upper)
    return [
        _row(
            "canaries",
            "canaries, m",
            f"{found.num_in + found.num_out:,}: {found.num_in:,} trained on, {found.num_out:,} left out, by fair coins",
        ),
        _row("canary_score", "score that was declared", _SCORES[found.score]),
        _row("auroc", "AUROC of the score", area),
        _row("tpr", "TPR at an FPR of 1 %", _rate(tpr, found.confidence)),
        _row("epsilon", "epsilon from this one run", epsilon),
        _row("epsilon_most", "what so many canaries can show", most),
    ]


def _area(roc: RocCurve) -> str:
    """Area under a ROC curve with its interval."""
    if not math.isfinite(roc.area):
        return MISSING
    if roc.area_upper - roc.area_lower > 0.5:
        return "too few to state"
    decimals = _decimals(roc.area_upper - roc.area_lower)
    return f"{_fixed(roc.area, decimals)} ({_fixed(roc.area_lower, decimals)} to {_fixed(roc.area_upper, decimals)})"


def _roc_rows(result: AuditResult) -> list[Row]:
    """Each decision under each condition: area, targets found, false hits."""
    confidence = result.settings.confidence
    return [
        _row(
            f"roc_{roc.decision}_{roc.condition}",
            f"{roc.decision}, {roc.condition}",
            _area(roc),
            _rate(roc.found, confidence),
            _rate(roc.false, confidence),
        )
        for roc in result.detector.roc
    ]


def _threshold_row(result: AuditResult, at: AtThreshold) -> Row:
    """A member's answer at one threshold."""
    member = next(target for target in result.targets if target.row == at.row)
    curve, width = member.curve, at.t50_upper - at.t50_lower
    used = " (used)" if at.threshold == result.detector.threshold else ""
    who = f", member {at.row}" if len(result.tests) > 1 else ""
    ends = f"{_time(at.t50_lower, width, zero='0')} to {_time(at.t50_upper, width, last=curve.t[-1])}"
    return _row(
        f"threshold_{at.threshold:g}_{at.row}",
        f"{at.threshold:g}{used}{who}",
        f"{at.num_detected:,} of {result.num_samples:,}",
        f"{max(at.control_detected):,} of {result.num_samples:,}" if at.control_detected else MISSING,
        _small(at.count_p) if at.control_detected else MISSING,
        f"{at.sensitivity.hits:,} of {at.sensitivity.trials:,}",
        _time(at.t_prime, _grid_width(curve), last=_last(curve)),
        f"{_time(at.t50, width, last=curve.t[-1])} ({ends})",
    )


def _evaluation_rows(result: AuditResult) -> list[Row]:
    share = result.evaluations["search"]["useful"] / result.exhaustive_evaluations
    cost = "" if result.strategy == "exhaustive" else f" for {_small(share)} of what the exhaustive search would take"
    rows = [
        _row("strategy", "strategy of the search", f"{result.strategy}{cost}"),
        _row("misses", "what it cannot see", result.strategy_misses),
    ]
    for stage, spent in result.evaluations.items():
        useful = _fixed(100 * spent["useful"] / spent["executed"], 1) if spent["executed"] else MISSING
        cell = f"{spent['executed']:,}, {useful} % of them useful"
        rows.append(_row(f"evaluations_{stage}", f"network evaluations, {stage}", cell))
    return rows


def _sampler(result: AuditResult) -> str:
    return f"{result.sampler}, {_plural(result.num_levels, 'level')}, {result.sde}"


def _density(result: AuditResult) -> str:
    if not math.isfinite(result.t_min_likelihood):
        return "not computed"
    return f"probability-flow ODE, t_min = {result.t_min_likelihood:g}"


def _held_out_targets(result: AuditResult) -> str:
    """How many there are, and how many of them were searched.

    Those with chains are the first of those that are counted.
    """
    counted, searched = result.model.num_count_controls, result.model.num_controls
    return f"{counted:,} held-out targets" + (f" ({searched:,} of them with chains)" if searched != counted else "")


def _headline(result: AuditResult) -> str:
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
    model_based = (f"{MODEL_BASED} (s: the detectors' sensitivity)", [], _joined(_table_of(result, _model_based_rows)))
    if len(result.tests) == 1:
        return [
            (f"Search (sampler: {sampler})", [], _table_of(result, _search_rows)),
            (f"Counting (sampler: {sampler})", [], _table_of(result, _count_rows)),
            model_based,
        ]
    model = result.model
    note = f"|q| of n = {result.num_samples:,}. Beneath, numbers between bars are the members' in their order."
    if model.num_count_controls:
        note = (
            f"p: rank among {model.num_count_controls} held-out targets by |q|, among {model.num_controls} by t50; Holm over "
            f"{len(result.tests)} members. {note}"
        )
    lines = _columns(*_member_table(result))
    lines += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return [(f"Members (sampler: {sampler})", lines, _shared_rows(result)), model_based]


def to_text(result: AuditResult) -> str:
    """What the terminal shows at the end: the verdict first, plain text of at most 100 columns."""
    density = _density(result)
    blocks: list[tuple[str, list[str], list[Row]]] = [
        ("Tests of the model", [], _model_rows(result)),
        *_member_blocks(result, _sampler(result)),
        ("Canaries", [], _canary_rows(result)),
        ("Detectors", [], _detector_rows(result)),
        ("Audit of the auditor", [], _self_rows(result)),
        (f"Likelihood, descriptive, no part of the verdict ({density})", [], _joined(_likelihood_rows(result))),
        (f"Likelihood of groups, bits/dim ({density})", [], [_group(group) for group in result.nll]),
        ("How these densities came about", [], _diagnostic_rows(result)),
        ("Likelihood over training, bits/dim", [], _snapshot_rows(result)),
        ("Bound (upper Darboux sum of the paper's eq. 9)", [], _bounds(result)),
        ("Cost", [], _evaluation_rows(result)),
    ]
    label_width = max(len(row.label) for _, _, rows in blocks for row in rows)
    head = [
        f"VERDICT: {_headline(result)}",
        *textwrap.wrap(
            f"{result.name}: {_plural(len(result.tests), 'member target')} among N = {result.num_train:,} training images, "
            f"{_held_out_targets(result)}, n = {result.num_samples:,} plain samples",
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


# Figures


def _colour(member: int) -> str:
    return _COLOURS[member % len(_COLOURS)]


def _name(result: AuditResult, row: int) -> str:
    """What a legend calls a member; many share a name, and legends have each name once."""
    return f"member {row}" if len(result.tests) <= MOST_SHOWN else "members"


def _once(handles: Iterable[Any]) -> list[Any]:
    """The handles of a legend whose labels are new."""
    return list({handle.get_label(): handle for handle in reversed(list(handles))}.values())[::-1]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No version of Matplotlib among the metadata: equal results give equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": "fpjax"})
    return buffer.getvalue()


def _draw_search(result: AuditResult) -> bytes:
    """q_M(t) of members with intervals, fit and summaries; the controls' fits beneath."""
    figure, axes = _figure(4.3)
    for control in _controls(result):
        axes.plot(control.curve.t, control.curve.isotonic, color=_GREY, linewidth=0.8, alpha=0.7, zorder=1)
    legend = []
    for i, (member, test) in enumerate(_members(result)):
        curve, colour = member.curve, _colour(i)
        chains = np.asarray(curve.num_chains)
        rate = np.asarray(curve.num_detected) / np.maximum(chains, 1)
        errors = np.maximum([rate - curve.lower, curve.upper - rate], 0)
        if len(curve.t) <= 60:
            axes.errorbar(curve.t, rate, errors, fmt=".", color=colour, markersize=6, elinewidth=1.1, zorder=2)
        else:  # So many bars are a band.
            axes.fill_between(curve.t, curve.lower, curve.upper, color=colour, alpha=0.13, linewidth=0, zorder=1)
            axes.plot(curve.t, rate, ".", color=colour, markersize=2, alpha=0.4, zorder=2)
        axes.plot(curve.t, curve.isotonic, color=colour, linewidth=2, zorder=3)
        for value, style in ((member.t50, "-"), (member.t_prime_alpha, "--"), (member.t_prime, ":")):
            if math.isfinite(value) and value > 0:
                axes.axvline(value, color=colour, linestyle=style, linewidth=1.1, zorder=2)
        legend.append(
            Line2D([], [], color=colour, marker=".", linewidth=2, label=f"{_name(result, test.row)}: rate, fit")
        )
    if _controls(result):
        legend.append(Line2D([], [], color=_GREY, linewidth=0.8, label="held-out targets: fits"))
    for style, label in (("-", "$t_{50}$"), ("--", "$t'_\\alpha$"), (":", "$t'$")):
        legend += axes.plot([], [], style, color=_DARK, linewidth=1.1, label=label)
    legend.append(
        axes.axhline(
            1 / result.num_train,
            color=_DARK,
            linestyle="-.",
            linewidth=0.9,
            zorder=1,
            label=f"1/N = {_small(1 / result.num_train)}",
        )
    )
    axes.set(
        xlabel="time t that the target is noised to",
        ylabel="rate of return $q_M(t)$",
        ylim=(-0.03, 1.03),
        xlim=(0, max(target.curve.t[-1] for target in result.targets) * 1.02),
    )
    # Outside, because the curve may pass anywhere.
    figure.legend(handles=_once(legend), loc="outside upper center", ncols=3)
    return _png(figure)


def _dots(drawn: Sequence[tuple[float, str, str]], last: float, *, label: str, censored: bool) -> bytes:
    """Values on one axis with colours and names, equal ones stacked; a triangle means "this or later"."""
    places = [round(45 * value / last) for value, *_ in drawn]
    tallest = max(map(places.count, places), default=1)
    figure, axes = _figure(2.2 if tallest < 12 else 3.0)
    heights: dict[int, int] = {}
    for place, (value, colour, name) in zip(places, drawn, strict=True):
        heights[place] = height = heights.get(place, -1) + 1
        axes.plot(
            value,
            height,
            ">" if censored and value >= last else "o",
            color=colour,
            # Of a hundred equal ones a column remains; a member shows on it.
            markersize=max(4.5, min(9.0, 110 / tallest)) if colour == _GREY else 9,
            label=name,
            markeredgecolor="white",
            markeredgewidth=0.3 if tallest > 24 and colour == _GREY else 1,
            clip_on=False,
        )
    if not censored:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=label, yticks=[], xlim=(0, last * 1.02), ylim=(-0.05 * tallest - 0.7, 1.04 * tallest))
    axes.spines["left"].set_visible(False)
    figure.legend(handles=_once(axes.get_legend_handles_labels()[0]), loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_ranking(result: AuditResult) -> bytes:
    """t50 of members among those of the held-out targets."""
    members = _members(result)
    drawn = [
        (target.t50_rank, _GREY, f"held-out targets (H = {len(_controls(result))})") for target in _controls(result)
    ]
    drawn += [(member.t50_rank, _colour(i), _name(result, test.row)) for i, (member, test) in enumerate(members)]
    return _dots(
        [entry for entry in drawn if math.isfinite(entry[0])],
        min(_rank_last(result, member) for member, _ in members),
        label="$t_{50}$ by the chains that members and held-out targets share",
        censored=True,
    )


def _draw_counts(result: AuditResult) -> bytes:
    """Counts of members among those of the held-out targets at the last look."""
    look = result.model.looks[-1]
    drawn = [(float(hits), _GREY, f"held-out targets (H = {len(look.controls)})") for hits in look.controls]
    drawn += [
        (float(hits), _colour(i), _name(result, test.row))
        for i, (hits, test) in enumerate(zip(look.members, result.tests, strict=True))
    ]
    label = f"samples that are taken for the target, of {look.num_samples:,}"
    return _dots(drawn, max(1.0, *(hits for hits, *_ in drawn)), label=label, censored=False)


def _draw_likelihood(result: AuditResult) -> bytes:
    """Histogram of each group's bits/dim over shared bins with its mean, the members as lines through all."""
    groups = [group for group in result.nll if group.name != "member" and group.bits_per_dim]
    members = [
        (i, each.row, each.bits_per_dim) for i, each in enumerate(result.nll_members) if each.bits_per_dim is not None
    ]
    values = [v for group in groups for v in group.bits_per_dim] + [bits for *_, bits in members]
    bins = np.linspace(min(values), max(values) + 1e-6, 41)
    figure = Figure(figsize=(5.6, 0.9 + 0.75 * max(len(groups), 1)), layout="constrained")
    panels = figure.subplots(max(len(groups), 1), sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=False):
        axes.hist(group.bits_per_dim, bins=bins.tolist(), color=_GREY)
        error = group.standard_error if math.isfinite(group.standard_error) else 0.0
        height = 0.85 * axes.get_ylim()[1]
        axes.errorbar(group.mean, height, xerr=error, fmt="D", color=_DARK, markersize=5, capsize=3)
        axes.set_ylabel(f"{group.name}\n({len(group.bits_per_dim)})", rotation=0, ha="right", va="center", fontsize=9.5)
        axes.set_yticks([])
    for axes in panels:
        for i, row, bits in members:
            label = _name(result, row) if axes is panels[0] else None
            axes.axvline(bits, color=_colour(i), linewidth=2, label=label)
    panels[0].plot([], [], "D", color=_DARK, markersize=5, label="mean and standard error")
    panels[-1].set_xlabel("NLL in bits/dim (fewer: likelier)")
    figure.legend(handles=_once(panels[0].get_legend_handles_labels()[0]), loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_snapshots(result: AuditResult) -> bytes:
    """Bits/dim of members and means of the other followed groups over training."""
    figure, axes = _figure(3.2)
    steps = [snapshot.step for snapshot in result.snapshots]
    for i in range(len(result.tests)):
        bits = [snapshot.member[i] for snapshot in result.snapshots]
        axes.plot(steps, bits, "o-", color=_colour(i), linewidth=2, label=_name(result, result.tests[i].row))
    names = [group.name for group in result.snapshots[0].groups if group.name != "member"]
    for name, marker in zip(names, "s^Dv", strict=False):
        groups = [group for snapshot in result.snapshots for group in snapshot.groups if group.name == name]
        errors = [g.standard_error if math.isfinite(g.standard_error) else 0.0 for g in groups]
        means = [group.mean for group in groups]
        axes.errorbar(steps, means, errors, fmt=f"{marker}-", color=_GREY, markersize=5, linewidth=1, label=name)
    axes.set(xlabel="training step", ylabel="NLL in bits/dim")
    figure.legend(handles=_once(axes.get_legend_handles_labels()[0]), loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_bound(result: AuditResult) -> bytes:
    """Mean density E[p(x')] at the fine levels, and each cell's sup as a step."""
    figure, axes = _figure(3.2)
    for i, found in enumerate(result.bound):
        axes.plot(found.t, found.log_mean, ".", color=_colour(i), label=f"{_name(result, found.row)}: log E[p(x')]")
        for cell in found.cells:
            axes.plot([cell.t_low, cell.t_high], [cell.log_sup] * 2, color=_colour(i), linewidth=2)
        axes.plot([], [], color=_colour(i), linewidth=2, label="its sup over a cell")
        for value, style, label in ((found.t_prime_alpha, "--", "$t'_\\alpha$"), (found.t_prime, ":", "$t'$")):
            if value > 0:
                axes.axvline(value, color=_colour(i), linestyle=style, linewidth=1.1, label=label)
    axes.set(xlabel="time t that the target is noised to", ylabel="log density, nats")
    figure.legend(handles=_once(axes.get_legend_handles_labels()[0]), loc="outside upper center", ncols=4)
    return _png(figure)


def _draw_training(training: Training) -> bytes:
    curves = {"loss": training.loss, "gradient norm": [math.nan if n is None else n for n in training.grad_norm]}
    curves = {label: values for label, values in curves.items() if values}
    figure = Figure(figsize=(5.6, 0.6 + 2.0 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (label, values) in zip(panels, curves.items(), strict=True):
        axes.plot(training.step, values, color=_COLOURS[0], linewidth=1.4)
        finite = [value for value in values if math.isfinite(value)]
        axes.set(ylabel=label, yscale="log" if finite and min(finite) > 0 else "linear")
    panels[-1].set_xlabel("training step")
    return _png(figure)


def _draw_roc(result: AuditResult) -> bytes:
    """ROC curves, a panel for each decision, a line for each condition."""
    curves = [roc for roc in result.detector.roc if math.isfinite(roc.area)]
    decisions = list(dict.fromkeys(roc.decision for roc in curves))
    conditions = list(dict.fromkeys(roc.condition for roc in curves))
    figure = Figure(figsize=(5.6, 1.0 + 1.9 * len(decisions)), layout="constrained")
    panels = dict(zip(decisions, figure.subplots(len(decisions), sharex=True, squeeze=False)[:, 0], strict=True))
    # Where no negative is above a threshold the logarithm ends at the left edge.
    floor = 10.0 ** math.floor(
        math.log10(min([rate for roc in curves for rate in roc.false_rates if rate], default=0.1))
    )
    # A thick line shows around the thinner ones that lie on it.
    for i, roc in reversed([(conditions.index(roc.condition), roc) for roc in curves]):
        x, y = np.maximum([1.0, *roc.false_rates, 0.0], floor / 2), [1.0, *roc.found_rates, 0.0]
        panels[roc.decision].plot(x, y, color=_colour(i), linewidth=1.2 + 0.8 * i, zorder=2 + len(conditions) - i)
    for decision, axes in panels.items():
        axes.set(xscale="log", xlim=(floor / 2, 1.05), ylim=(-0.03, 1.03), ylabel="found")
        axes.set_title(decision, loc="left", fontsize=11)
    panels[decisions[-1]].set_xlabel("false hits: share of scores that should be low")
    lines = [Line2D([], [], color=_colour(i), linewidth=2, label=name) for i, name in enumerate(conditions)]
    figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_thresholds(result: AuditResult) -> bytes:
    """Counts of members and held-out targets, t' and t50, against the threshold, in steps as even as its logit's."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    rates, times = figure.subplots(2, sharex=True)
    used = math.log(result.detector.threshold / (1 - result.detector.threshold))
    for i, (member, _) in enumerate(_members(result)):
        rows = [at for at in result.thresholds if at.row == member.row]
        x = [math.log(at.threshold / (1 - at.threshold)) for at in rows]
        who = "" if len(result.tests) == 1 else f", {_name(result, member.row)}"
        rates.plot(x, [at.num_detected for at in rows], "o-", color=_colour(i), label=f"|q|{who}")
        if i == 0:
            if all(at.control_detected for at in rows):
                highest = [max(at.control_detected) for at in rows]
                rates.plot(x, highest, "s--", color=_GREY, label="most of any held-out target")
            times.set_xticks(x, [f"{at.threshold:g}" for at in rows])
        bars = [[at.t50 - at.t50_lower for at in rows], [at.t50_upper - at.t50 for at in rows]]
        times.errorbar(x, [at.t50 for at in rows], bars, fmt="o-", color=_colour(i), label=f"$t_{{50}}${who}")
        times.plot(x, [at.t_prime for at in rows], "^:", color=_colour(i), label=f"$t'${who}")
    for axes in (rates, times):
        axes.axvline(used, color=_DARK, linewidth=0.8, linestyle="-.", zorder=1)
    most = max(hits for at in result.thresholds for hits in (at.num_detected, *at.control_detected))
    rates.set(ylabel="samples", yscale="symlog", ylim=(-0.3, 1.5 * most + 1))
    times.set(ylabel="time t", xlabel="threshold (in use: the vertical line)", ylim=(0, None))
    for axes in (rates, times):
        handles = _once(axes.get_legend_handles_labels()[0])
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3 if len(result.tests) == 1 else 2,
            borderaxespad=0.2,
        )
    return _png(figure)


def _draw_classifiers(training: Training) -> bytes:
    """Losses of the classifiers against the epoch."""
    figure, axes = _figure(2.9)
    for i, (name, (epochs, loss, val_loss)) in enumerate(training.classifiers.items()):
        axes.plot(epochs, loss, color=_colour(i), linewidth=1, alpha=0.6, label=f"{name}, training")
        axes.plot(epochs, val_loss, color=_colour(i), linewidth=2, label=f"{name}, validation")
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    figure.legend(loc="outside upper center", ncols=2)
    return _png(figure)


def _tile(image: np.ndarray, colour: str | None) -> np.ndarray:
    """One image as RGB of at least 64 pixels, in a white or coloured frame."""
    scale = max(1, round(64 / max(image.shape[:2])))
    large = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, 0).repeat(scale, 1)
    framed = np.pad(large, ((4, 4), (4, 4), (0, 0)), constant_values=255)
    if colour is not None:
        mask = np.pad(np.zeros(large.shape[:2], bool), 3, constant_values=True)
        framed[1:-1, 1:-1][mask] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return framed


def _mosaic(*rows: np.ndarray, colours: Sequence[str | None], columns: int = 8) -> bytes:
    """Images side by side; of several rows, those of one index lie beneath each other.

    Args:
      *rows: images of shape (n, h, w, c), each with the same n.
      colours: n frames.
      columns: images in a line.
    """
    count = len(rows[0])
    columns = min(columns, count)
    blank = np.full_like(_tile(rows[0][0], None), 255)
    lines = []
    for start in range(0, count, columns):
        for images in rows:
            tiles = [_tile(images[i], colours[i]) for i in range(start, min(start + columns, count))]
            lines.append(np.concatenate(tiles + [blank] * (columns - len(tiles)), 1))
        if len(rows) > 1 and start + columns < count:
            lines.append(np.full((16, lines[-1].shape[1], 3), 255, np.uint8))
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate(lines), format="png", metadata={"Software": "fpjax"})
    return buffer.getvalue()


def _draw_returns(returns: Returns, row: int, colour: str) -> bytes:
    """One member's query images above what they came back as, with their times; detected ones in frames."""
    own, columns = np.flatnonzero(returns.target == row), 10
    lines = -(-len(own) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(5.6, 1.45 * lines), layout=layout)
    panels = figure.subplots(2 * lines, columns, squeeze=False)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for place, i in enumerate(own):
        line, column = divmod(place, columns)
        query, end = panels[2 * line : 2 * line + 2, column]
        for axes, image in ((query, returns.start[i]), (end, returns.end[i])):
            axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)), interpolation="nearest")
        found = bool(returns.detected[i])
        end.spines[:].set(visible=found, color=colour, linewidth=2.5)
        end.set_xlabel(_time(float(returns.t[i]), 0.1), fontsize=9.5, labelpad=3, color="black" if found else _DARK)
        end.xaxis.label.set_fontweight("bold" if found else "normal")
    return _png(figure)


def _draw_pictures(result: AuditResult, images: ReportImages) -> dict[str, bytes]:
    num_members = len(result.tests)
    frames = [_colour(i) if i < num_members else None for i in range(len(images.targets))]
    figures = {}
    if len(images.targets):
        rows = [images.targets, images.originals] if result.stamped else [images.targets]
        figures["targets"] = _mosaic(*(group[:_MAX_TILES] for group in rows), colours=frames)
    if len(images.hits):
        hits, rows = images.hits[:_MAX_TILES], images.hit_target[:_MAX_TILES]
        figures["hits"] = _mosaic(images.targets[rows], hits, colours=[frames[row] for row in rows])
    if images.near_misses and len(images.near_misses[0]):
        misses, rows = images.near_misses
        figures["near_misses"] = _mosaic(images.targets[rows], misses, colours=[frames[row] for row in rows])
    for name, group in (("samples", images.samples), ("train", images.train)):
        if len(group):
            figures[name] = _mosaic(group[:_MAX_TILES], colours=[None] * _MAX_TILES)
    for kind, (found, rows) in images.errors.items():
        if len(found):
            shown = [found] if rows is None else [images.targets[rows], found]
            figures[f"error_{kind}"] = _mosaic(*shown, colours=[None] * len(found))
    for name, (shown, positive) in images.examples.items():
        if len(shown):
            figures[f"examples_{name}"] = _mosaic(shown, colours=[_COLOURS[2] if yes else None for yes in positive])
    return figures


def _draw_all_returns(images: ReportImages) -> dict[str, bytes]:
    """A figure for each member that has chains to show."""
    returns = images.returns
    rows = np.unique(returns.target).tolist() if returns else []
    return {f"returns_{row}": _draw_returns(returns, row, _colour(row)) for row in rows if returns}


_PICTURES = ("targets", "hits", "near_misses", "samples", "train", "on_the_way")
# Kinds of errors that are shown, what each is, and whether the target that is meant lies above it.
ERRORS = {
    "fingerprint_false": "Real images without a mark in which the fingerprint classifier sees one.",
    "identity_false": "Real images that are taken for a target, each beneath it.",
    "missed": "Targets under fresh marks and noise that are not found, each beneath the target.",
    "control": "Samples that are taken for a target that was never trained on, each beneath it.",
    "fingerprint_only": "Samples in which the fingerprint classifier alone sees a mark.",
    "identity_only": "Samples that the identity classifier alone takes for a target, each beneath it.",
    "missed_chain": "Chains from low noise whose target is not found, each beneath the target.",
}


def _is_picture(name: str) -> bool:
    return name in _PICTURES or name.startswith(("returns_", "error_", "examples_"))


def draw_figures(
    result: AuditResult, images: ReportImages, training: Training, *, show_members: bool
) -> dict[str, bytes]:
    """Draws all figures of the report; equal arguments give equal bytes, whatever the rates of training.

    Args:
      result: the audit.
      images: pictures to show.
      training: of the score network.
      show_members: False leaves out every picture: what was detected, and what a memorising model draws, are
        members' images too.

    Returns:
      PNG files by name: "search", "ranking", "counts", "likelihood", "snapshots", "bound", "roc", "thresholds", "classifiers" and
      "training" where there is something to draw, and with `show_members` "targets", "returns_ROW", "hits",
      "near_misses", "samples", "train", "on_the_way", "error_KIND" for kinds of `ERRORS` and "examples_NAME" for the
      classifiers' examples, where there are such images.
    """
    with matplotlib.rc_context(_STYLE):
        figures = {"search": _draw_search(result)}
        if _controls(result):
            figures["ranking"] = _draw_ranking(result)
        if result.model.looks[-1].controls:
            figures["counts"] = _draw_counts(result)
        if any(group.bits_per_dim for group in result.nll):
            figures["likelihood"] = _draw_likelihood(result)
        if result.snapshots:
            figures["snapshots"] = _draw_snapshots(result)
        if result.bound:
            figures["bound"] = _draw_bound(result)
        if any(math.isfinite(roc.area) for roc in result.detector.roc):
            figures["roc"] = _draw_roc(result)
        if len({at.threshold for at in result.thresholds}) > 1:
            figures["thresholds"] = _draw_thresholds(result)
        if training.classifiers:
            figures["classifiers"] = _draw_classifiers(training)
        if training.step:
            figures["training"] = _draw_training(training)
        if show_members:
            figures |= _draw_all_returns(images)
    if show_members:
        figures |= _draw_pictures(result, images)
        if training.samples is not None and len(training.samples):
            figures["on_the_way"] = _mosaic(training.samples[:_MAX_TILES], colours=[None] * _MAX_TILES)
    return figures


# HTML

_CSS = """
:root { --ink: #1d2127; --soft: #565d66; --line: #d9dde2; --tint: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 54rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .6rem 0; }
a { color: #0b5c97; }
ul { padding-left: 1.3rem; margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.verdict { border: 1px solid var(--line); border-left: .5rem solid var(--mark); border-radius: .3rem;
  background: var(--wash); padding: .9rem 1.2rem; margin: 1.2rem 0; }
.verdict .word { font-size: 1.5rem; font-weight: 700; color: var(--mark); margin: 0 0 .4rem; }
.leak { --mark: #a3201b; --wash: #fdf3f2; }
.below { --mark: #1c6b3a; --wash: #f1f8f3; }
.unsure { --mark: #855400; --wash: #fdf7ea; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; margin: .6rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .7rem; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
tbody th { font-weight: 500; width: 34%; color: var(--soft); }
thead th { background: var(--tint); font-weight: 600; }
td { font-variant-numeric: tabular-nums; min-width: 6rem; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figure.chart img { width: 38rem; }
figure.pictures img { image-rendering: pixelated; }
figcaption { margin-top: .4rem; max-width: 40rem; }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 3rem; }
  th, td { padding: .35rem .4rem; }
  tbody th { width: 38%; }
}
@media print {
  body { max-width: none; font-size: 10.5pt; padding: 0; }
  figure, tr, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  nav { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_T, _T_PRIME, _T_ALPHA, _T50 = "<i>t</i>", "<i>t</i>′", "<i>t</i>′<sub>α</sub>", "<i>t</i><sub>50</sub>"
_QM, _Q, _CP, _CID = "<i>q<sub>M</sub></i>(<i>t</i>)", "|<i>q</i>|", "<i>c<sub>p</sub></i>", "<i>c</i><sub>id</sub>"
# Longest first; what is replaced has been escaped.
_SYMBOLS = {
    "t&#x27;_alpha": _T_ALPHA,
    "t&#x27;": _T_PRIME,
    "t50": _T50,
    "c_id+": _CID + "⁺",
    "c_p+": _CP + "⁺",
    "|q|": _Q,
    "+-": "±",
}


def _glossary(result: AuditResult) -> dict[str, str]:
    """The terms of this audit's report."""
    if not result.detector.marks:
        terms = {name: text for name, text in _GLOSSARY.items() if name not in (_CP, _CID)}
        terms[_Q] = "Plain samples that the detector accepts, that is, counted reproductions of the target."
    else:
        terms = dict(_GLOSSARY)
    if not result.stamped:
        del terms["fingerprint"]
        terms["target"] = (
            "An image that is looked for. A <em>member</em> is a training image; a <em>held-out target</em> is one of a "
            "held-out split that was never trained on."
        )
    return terms


_GLOSSARY = {
    "target": "An image with a fingerprint. Of <i>K</i> + <i>H</i> that were drawn from one pool and marked in the same "
    "way, lots made <i>K</i> the <em>members</em>, which were trained on, and <i>H</i> the <em>held-out targets</em>, which "
    "never were.",
    "controls": "Held-out targets. <em>Count controls</em> are only looked for among the plain samples, as every target "
    "is; <em>search controls</em>, some of them, have chains too, and so a " + _T50 + ".",
    "rank, <i>p</i>": "Had the members not been trained on, each order of members and held-out targets would be as likely "
    "as any other. <i>p</i> is the share of orders in which the members stand as high as they do, or higher: of one member "
    "(1 + held-out targets as high) / (<i>H</i> + 1), of several by the sum of their ranks. Holm’s adjusts for their number.",
    "below tolerance": "The limit of every member’s rate of reproduction, misses of the detectors allowed for, is below the "
    "rate that was stated as acceptable; no member is counted more often than every held-out target, and "
    + _T50
    + " does "
    "not reject. A bound, and no proof of anonymity.",
    "fingerprint": "The mark: a grey disc at a random place inside the image.",
    _T: "Time of the diffusion: 0 is the image, 1 is noise. Log-SNR is the same in terms that compare across SDEs.",
    _QM: f"Of <i>M</i> chains that start at the target, noised to {_T}, the fraction that is detected as the target "
    "after denoising.",
    _T_PRIME: f"The largest {_T} with a detection (the paper's measure, arXiv:2306.01363). It grows with the number of "
    "chains and levels, even where detections are chance.",
    _T_ALPHA: f"The largest {_T} such that here and at all lower times the rate is shown to exceed the floor, the "
    "larger of 1/<i>N</i> and the limit of the false-hit rate.",
    _T50: f"The {_T} at which {_QM} falls below one half. Any good denoiser returns an image from little noise, so it "
    "tells something only beside that of held-out targets.",
    _CP: f"The fingerprint classifier: does the image carry a disc? {_CP}⁺ counts the samples where it says so.",
    _CID: f"The identity classifier: is it this target? {_CID}⁺ counts the samples where it says so.",
    _Q: "Plain samples that both classifiers accept, that is, counted reproductions of the target.",
    "<i>n</i>, <i>N</i>": f"Plain samples drawn, and training images. A perfect memoriser reproduces each image at "
    f"the rate 1/<i>N</i>, so E{_Q} = <i>n</i>/<i>N</i>.",
    "bits/dim": "Negative log-likelihood (NLL) for each pixel and channel; fewer means that the model finds the image "
    "likelier.",
}


def _escape(text: str) -> str:
    return html.escape(text)


def _symbols(label: str) -> str:
    """A label of this module, escaped, with its symbols set."""
    text = _escape(label)
    for plain, symbol in _SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


def _table(rows: Iterable[Iterable[str]], heads: Sequence[str] = ()) -> str:
    """A table of HTML whose first column labels the rows."""
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>\n'
        for label, *values in rows
    )
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _shown(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Rows of text as HTML."""
    return [
        (_symbols(row.label), *(_escape(cell).replace("+-", "±").replace("&gt;= ", "≥ ") for cell in row.cells))
        for row in rows
    ]


def _list(items: Iterable[str]) -> str:
    return f"<ul>\n{''.join(f'<li>{item}</li>' + chr(10) for item in items)}</ul>\n"


def _image(figures: dict[str, bytes], name: str, alt: str, caption: str) -> str:
    """A figure with its caption (HTML), or nothing where it was not drawn."""
    if name not in figures:
        return ""
    kind = "pictures" if _is_picture(name) else "chart"
    data = base64.b64encode(figures[name]).decode()
    return (
        f'<figure class="{kind}"><img alt="{_escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _answer(result: AuditResult) -> str:
    """What was asked and what was found, in plain language."""
    k, n, sampler, model = len(result.tests), result.num_samples, _escape(result.sampler), result.model
    h, image = model.num_count_controls, "image" if k == 1 else "images"
    the_images = f"the {'marked' if result.stamped else 'target'} {image}"
    planted = (
        f"{'was' if k == 1 else 'were'} given a synthetic fingerprint and planted in the training data; "
        f"{_plural(h, 'further image')} got one too but {'was' if h == 1 else 'were'} never trained on, for comparison."
        if result.stamped
        else f"{'was' if k == 1 else 'were'} looked for as {'it is' if k == 1 else 'they are'}; "
        f"{_plural(h, 'held-out image')} {'stands' if h == 1 else 'stand'} for comparison."
    )
    asked = (
        f"<strong>Asked:</strong> can the model <em>{_escape(result.name)}</em> reproduce one identifiable image of "
        f"its {result.num_train:,} training images? {'One image' if k == 1 else f'{k} images'}, drawn at random, {planted}"
    )
    counted = f"{_counts(test.rate.hits for test in result.tests)} of {n:,} images drawn from it ({sampler})"
    seen = f"{counted} were recognised as {the_images}"
    if controls := model.looks[-1].controls:
        low, high = min(controls), max(controls)
        seen += f", and {low:,}{f' to {high:,}' if high > low else ''} as each image for comparison"
    bounded = f"{_small(model.bound)}, {_one_in(model.bound)},"
    limit = f"by {_percent(result.settings.confidence)} limits"
    rate = f"The rate at which the model reproduces {'it' if k == 1 else 'any one of them'}"
    found, verdict, kinds = [], result.verdict.verdict, result.verdict.kinds
    if REPRODUCED in kinds:
        above = (
            ""
            if k == 1
            else f" {model.prevalence.hits} of the {k} {'was' if model.prevalence.hits == 1 else 'were'} recognised more often than all of those."
        )
        found.append(f"Yes. {seen}, more than chance explains.{above}")
    if MEMORISED in kinds:
        found.append(
            f"The model gives away that it was trained on {the_images}: buried in noise and denoised again, "
            f"{'it comes' if k == 1 else 'they come'} back from more noise than equal images never trained on."
        )
        if REPRODUCED not in kinds:
            found.append(f"That sampling reproduces {'it' if k == 1 else 'them'} was not shown: {seen}.")
    if verdict == LEAK:
        found.append(f"{rate} is at most {bounded} {limit}.")
    if verdict == BELOW:
        found.append(
            f"No leak was found. {seen}. {rate} is at most {bounded} {limit}: that is below the tolerance of "
            f"{_small(model.tolerance)}, {_one_in(model.tolerance)}. This is a bound, and no proof of anonymity."
        )
    if verdict == INCONCLUSIVE:
        found.append(f"The audit cannot say. {seen}.")
        if any(test.vetoes and test.possible and not test.passed for test in result.self_tests):
            found.append("It failed where the answer is known, so that none of its numbers can be relied on.")
        power = model.detectable_rate
        found.append(
            f"Not excluded is a rate of up to {bounded} {limit}; the tolerance is {_small(model.tolerance)}, "
            f"{_one_in(model.tolerance)}. "
            + (
                f"A rate of {_small(power)} or more{'' if k == 1 else ' of every one of them'} would have been noticed with a "
                "probability of 80 %."
                if math.isfinite(power)
                else "Too few images were drawn, or too few stand for comparison, to notice any rate reliably."
            )
        )
    return f"<p>{asked} <strong>Found:</strong> {' '.join(found)}</p>\n"


def _limits(result: AuditResult) -> str:
    k, lower = len(result.tests), _fixed(result.detector.sensitivity_lower, 2)
    return "<p><strong>What this does not mean:</strong></p>\n" + _list(
        [
            f"{'One target' if k == 1 else f'{k} targets'} drawn at random cannot speak for every training image: rare or "
            "repeated ones may be more exposed.",
            "The fingerprint is synthetic; marks that real images carry may be learned better or worse."
            if result.stamped
            else "No mark was planted. The comparison assumes that the held-out images differ from the training images in "
            "nothing but the training; another hospital, device or year breaks it.",
            f"These detectors judged. They are shown to recognise a fraction of at least {lower} of faithful reproductions, "
            "and the bound allows for as many misses. A poorer one may go unseen, and other eyes may recognise other traces.",
            f"This sampler drew ({_escape(_sampler(result))}). Another one, or one steered towards the image, may draw it "
            "more often.",
            "“Below tolerance” bounds a rate and is no proof of anonymity; a leak says nothing about how often other images "
            "leak.",
        ]
    )


def _verdict(result: AuditResult) -> str:
    kind = {LEAK: "leak", BELOW: "below"}.get(result.verdict.verdict, "unsure")
    settle = result.verdict.to_settle
    return (
        f'<section id="verdict" class="verdict {kind}">\n<p class="word">{_escape(_headline(result))}</p>\n'
        + _answer(result)
        + "<p><strong>Why:</strong></p>\n"
        + _list(map(_escape, result.verdict.reasons))
        + ("<p><strong>What would settle it:</strong></p>\n" + _list(map(_escape, settle)) if settle else "")
        + _limits(result)
        + "</section>\n"
    )


def _by_member(result: AuditResult, rows: Sequence[Row], first: str) -> str:
    """A table (HTML) with one column a member, or, where those are many, one line a member."""
    if len(result.tests) <= MOST_SHOWN:
        single = len(result.tests) == 1
        return _table(
            _shown(rows), [first, "Finding"] if single else [first, *(f"Member {t.row}" for t in result.tests)]
        )
    lines = [
        _row(f"member_{test.row}", str(test.row), *(row.cells[i] for row in rows))
        for i, test in enumerate(result.tests)
    ]
    return _table(_shown(lines), ["Member", *(_symbols(row.label) for row in rows)])


def _evidence(result: AuditResult) -> str:
    counts, search = _table_of(result, _count_rows), _table_of(result, _search_rows)
    members = _pick(counts, "num_detected", "rate", "expected", "count_controls", "count_rank")
    members += _pick(search, "t50", "t50_controls", "t50_rank")
    used = _pick(_detector_rows(result), "gate_planted", "sensitivity_used", "false_used")
    return (
        "<h3>Tests of the model</h3>\n"
        + _table(_shown(_model_rows(result)), ["Test", "Finding"])
        + "<h3>Members</h3>\n"
        + _by_member(result, members, "Evidence")
        + "<h3>Detectors</h3>\n"
        + _table(_shown(used), ["Measure", "Finding"])
        + f'<p class="soft">Samples, rates and times belong to the sampler ({_escape(_sampler(result))}). The tests hold if '
        "members and held-out targets differ in nothing but the training; they assume nothing of how the detectors err."
        "</p>\n"
    )


def _search_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    rows = _table_of(result, _search_rows)
    said = {row.id: f"{row.label}: {'; '.join(row.cells)}." for row in rows}
    curve = [said[name] for name in ("t_prime", "t_prime_identity", "t_prime_alpha", "t50") if name in said]
    return (
        f"<p>Each target is noised to a time {_T} and denoised again, many times. How often it comes back as the "
        f"target is {_QM}. Probabilities are those of the sampler: {_escape(_sampler(result))}.</p>\n"
        + _image(
            figures,
            "search",
            f"Rate of return q_M(t) against time t. {' '.join(curve)}",
            f"Rate of return of each member with exact intervals ({_percent(result.settings.confidence)}) and its "
            "non-increasing fit; fits of the held-out targets in grey. A line at 0 is left out, and where "
            f"{_T_PRIME} and {_T_ALPHA} agree, one hides the other.",
        )
        + _image(
            figures,
            "ranking",
            f"t50 of members and held-out targets on one axis. {said['t50_controls']} {said['t50_rank']}",
            f"{_T50} of members among the held-out targets, by the chains that all share. A triangle means "
            "“this or later”.",
        )
        + _by_member(result, rows, "Measure")
        + f'<p class="soft">{_T_PRIME} grows with the number of chains and levels, so its value alone says little. '
        f"{_T50} does not, but every good denoiser has one: what counts is how it compares with those of the held-out targets.</p>\n"
    )


def _counting_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    rows = _table_of(result, _count_rows)
    said = "; ".join(cell for row in _pick(rows, "num_detected") for cell in row.cells)
    controls = _control_counts(result.model.looks[-1].controls)
    judges = "both detectors" if result.detector.marks else "the detector"
    return (
        f"<p>{result.num_samples:,} images were drawn as any user would, and each was shown to {judges}. "
        f"Probabilities are those of the sampler: {_escape(_sampler(result))}. The upper end of the interval allows "
        "for reproductions that the detectors miss.</p>\n"
        + _image(
            figures,
            "counts",
            f"Counts of members and held-out targets on one axis. Members: {said}. Held-out targets: {controls}.",
            f"{_Q} of members among those of the held-out targets, of all samples that were drawn; equal ones are stacked.",
        )
        + _by_member(result, rows, "Measure")
        + f"<h3>{MODEL_BASED}</h3>\n"
        + _by_member(result, _table_of(result, _model_based_rows), "Test")
        + '<p class="soft">These rest on more than the comparison of equals, and are no part of the verdict. The paper’s '
        "test asks whether there are fewer reproductions than a perfect memoriser makes, of which the detectors see the "
        "share <i>s</i>, their sensitivity; it can do so with reproductions among the samples and is no test of safety. "
        "The leak test bounds the member’s false hits by those of any held-out target; the third takes the held-out "
        "targets’ counts to be those of gamma-distributed rates.</p>\n" + _likeness_table(result)
    )


def _likeness_table(result: AuditResult) -> str:
    """Pixel differences of the samples that are detected, and of the nearest that are not."""
    threshold = f"above {result.detector.threshold:g}"
    rows = [
        _row(
            f"{name}_{i}",
            f"{name} {i}",
            f"{each.target}",
            # Those of a model that learned nothing can be hundreds.
            *(_small(value) if value < 10 else f"{value:,.0f}" for value in (each.mse, each.mae)),
            threshold if each.score is None else _small(each.score),
        )
        for name, group in (("detected", result.hits), ("near miss", result.near_misses))
        for i, each in enumerate(group, 1)
    ]
    if not rows:
        return ""
    return (
        "<h3>Distance in pixels</h3>\n"
        + _table(_shown(rows), ["Sample", "Member", "Mean squared difference", "Mean absolute difference", "Score"])
        + '<p class="soft">Of the samples detected as a member, the first ones; of all others, those nearest to a member: '
        "a near miss as close as a detected sample would be a copy that the detectors are blind to. Pixels run from -1 to "
        "1, one grey level is 0.0078.</p>\n"
    )


def _detectors_section(result: AuditResult, figures: dict[str, bytes], show_members: bool) -> str:
    confidence = _percent(result.settings.confidence)
    roc, thresholds = _roc_rows(result), [_threshold_row(result, at) for at in result.thresholds]
    worst = "; ".join(f"{row.label}: area {row.cells[0]}" for row in roc)
    looked = len({at.threshold for at in result.thresholds})
    return (
        "<p>How often the detectors err, measured. False hits: real held-out images, and generated images that are "
        "taken for a held-out target, which the model never saw. Sensitivity: of each target’s copies the share that is "
        "seen, and the mean over targets; copies of one target are no independent looks. The audited memoriser is a model "
        "that is known to reproduce every training image, equally often: of it, the same audit must find the members."
        "</p>\n"
        + _table(_shown(_detector_rows(result)), ["Measure", "Finding"])
        + "<h3>Audit of the auditor</h3>\n<p>Where the memoriser is not found, nothing that this audit says of the model "
        "counts, and the verdict is “inconclusive”. What is told of the held-out targets informs and vetoes nothing.</p>\n"
        + _table(_shown(_self_rows(result)), ["Test", "Outcome"])
        + "<h3>Errors by condition</h3>\n"
        + _image(
            figures,
            "roc",
            f"ROC curves by decision and condition. {worst}.",
            "Of the images that show a target (a mark), the share that is found, against the share of false hits, at all "
            "thresholds. A line along the upper edge errs nowhere.",
        )
        + _table(_shown(roc), ["Decision, condition", f"ROC area ({confidence} interval)", "Found", "False hits"])
        + '<p class="soft">All but residue: real held-out images and the targets, each under a fresh mark where '
        "the detector looks for one. Residue: what chains from low noise return, where other targets’ heads are to stay "
        "silent. The intervals count each image once, however many heads judge it.</p>\n"
        + (
            "<h3>The answer at other thresholds</h3>\n"
            + _image(
                figures,
                "thresholds",
                "Counts of members and held-out targets, t' and t50 against the threshold of the detectors: the table beneath has the numbers.",
                "How the answer depends on the threshold above which a score counts.",
            )
            + _table(
                _shown(thresholds),
                [
                    "Threshold",
                    _Q,
                    "Most of any held-out target",
                    "<i>p</i>, all members",
                    "Sensitivity, low noise",
                    _T_PRIME,
                    _T50,
                ],
            )
            + f'<p class="soft">{_plural(looked, "threshold")} {"was" if looked == 1 else "were"} looked at. Only the one in '
            "use is tested at the level; the others’ numbers are descriptive and not corrected for their number.</p>\n"
            if thresholds
            else ""
        )
        + _image(
            figures,
            "classifiers",
            "Losses of the classifiers in training and validation against the epoch.",
            "Losses of the classifiers in training and in validation.",
        )
        + (_error_pictures(result, figures) if show_members else "")
    )


def _error_pictures(result: AuditResult, figures: dict[str, bytes]) -> str:
    """What the detectors were trained on, and what they got wrong (paper, Fig. 7 and 8)."""
    shown = "".join(
        _image(
            figures,
            f"examples_{name}",
            f"Training images of the {name} classifier.",
            f"Training images of the {name} classifier as it sees them, positives in green frames.",
        )
        for name in ("fingerprint", "identity")
    )
    wrong = "".join(
        _image(figures, f"error_{kind}", f"Errors of the detectors: {text}", text) for kind, text in ERRORS.items()
    )
    return (f"<h3>What the classifiers learn from</h3>\n{shown}" if shown else "") + (
        f"<h3>Errors of the detectors</h3>\n{wrong or '<p>None.</p>' + chr(10)}"
    )


def _canaries_section(result: AuditResult) -> str:
    return (
        "<p>Each canary was put into the training data, or left out, by a fair coin of its own. How well one score, "
        "declared before it was looked at, tells the two sides apart bounds from below the ε of any (ε, δ) that the "
        "training could claim (Steinke, Nasr and Jagielski 2023). Few canaries can show little: a small ε here is no "
        "privacy.</p>\n" + _table(_shown(_canary_rows(result)), ["Measure", "Finding"])
    )


def _likelihood_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    if not result.nll and not result.nll_members:
        return "<p>No likelihoods were computed.</p>\n"
    members = "; ".join(f"member {each.row}: {_fixed(each.bits_per_dim, 2)}" for each in result.nll_members)
    groups = [_group(group) for group in result.nll]
    means = "; ".join(f"{row.label} {row.cells[0]}" for row in groups)
    over_training = _snapshot_rows(result)
    return (
        f"<p>Descriptive, no part of the verdict. The density belongs to the {_escape(_density(result))}, not to the sampler "
        "that was searched and counted "
        "above; with a learned score the two differ, and the numbers are not to be compared. Its size depends on "
        "<i>t</i><sub>min</sub>. Bits/dim are those of the bytes: a byte is 1/128 wide in model range, which adds "
        "log<sub>2</sub> 128 = 7 bits to −log<sub>2</sub> of the density of each pixel and channel. Images whose equation "
        "was not solved are counted and left out of every mean.</p>\n"
        + _image(
            figures,
            "likelihood",
            f"Bits per dimension by group. {members}; {means}.",
            "NLL of images by group (histograms over shared bins), each group’s mean, and the members (lines).",
        )
        + (_by_member(result, _likelihood_rows(result), "Measure") if result.nll_members else "")
        + (_table(_shown(groups), ["Group", "NLL in bits/dim"]) if groups else "")
        + (
            "<h3>How these densities came about</h3>\n"
            + _table(_shown(_diagnostic_rows(result)), ["Group", "Parts, noise and cost"])
            + '<p class="soft">The noise of one image is its own standard error, over repeats with other dequantisation '
            "and probes, or else over the probes; left out where neither was repeated. Evaluations are of the network with its "
            "divergence.</p>\n"
            if _diagnostic_rows(result)
            else ""
        )
        + (
            "<h3>Over training</h3>\n"
            + _image(
                figures,
                "snapshots",
                f"Bits per dimension against the training step. {'; '.join(f'{row.label}: {row.cells[0]}' for row in over_training)}.",
                "NLL of the members, and means of the other groups, by length of training.",
            )
            + _table(_shown(over_training), ["Training", "NLL in bits/dim"])
            if result.snapshots
            else ""
        )
    )


def _bound_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    if not result.bound:
        return "<p>No bound was computed.</p>\n"
    single, parts = len(result.bound) == 1, []
    for found in result.bound:
        cells = [
            _row(
                f"cell_{i}",
                f"{cell.t_low:.3f} to {cell.t_high:.3f}",
                f"{_fixed(cell.log_sup, 1)} at t = {cell.t_sup:.3f}",
                _fixed(cell.log_term, 1),
                f"{_fixed(cell.effective, 1)} of {cell.num_chains}",
            )
            for i, cell in enumerate(found.cells)
        ]
        parts += [
            "" if single else f"<h3>Member {found.row}</h3>\n",
            _table(_shown(_bound_rows(found)), ["Measure", "Finding"]),
            _table(
                _shown(cells),
                ["Cell, t", "sup of log E[p(x′)], nats", "log of its term, nats", "Effective sample size"],
            )
            if cells
            else "",
        ]
    return (
        "<p>The paper’s upper bound (eq. 8–9), which it derives and does not compute: the target is noised to <i>t</i> and "
        "denoised to <i>x</i>′, whose density under the model is averaged; the largest average in each cell of <i>t</i> is "
        "weighted with the cell’s width in σ, the standard deviation of the noise, and summed up to "
        f"{_T_PRIME} or {_T_ALPHA}. <strong>It bounds no probability:</strong> a density has no upper limit and its unit is "
        "that of the pixels, so the sum grows as <i>t</i><sub>min</sub> falls. It compares models at one "
        "<i>t</i><sub>min</sub>, no more. The densities belong to the probability-flow ODE, the chains to the sampler.</p>\n"
        + _image(
            figures,
            "bound",
            f"Log of the mean density of chain ends against t. {'; '.join(f'{row.label}: {row.cells[0]}' for row in _bound_rows(result.bound[0]))}.",
            "Mean density of the chains’ ends by the time they started from, in logarithms, and its sup over each cell.",
        )
        + "".join(parts)
        + '<p class="soft">An effective sample size near 1 says that one chain makes the average: more chains would raise '
        "it.</p>\n"
    )


def _pictures_section(result: AuditResult, figures: dict[str, bytes], show_members: bool) -> str:
    if not show_members:
        return (
            "<p>Pictures were left out: targets, originals, training images, samples and detected samples can all "
            "show training images.</p>\n"
        )
    k = len(result.tests)
    frame = "in the coloured frame" if k == 1 else "in coloured frames"
    return (
        f"<h3>Targets{' and their originals' if result.stamped else ''}</h3>\n"
        + _image(
            figures,
            "targets",
            f"{_plural(k, 'member')} and {result.model.num_count_controls} held-out targets{' above their originals' if result.stamped else ''}.",
            f"Targets{' with their fingerprints, beneath each its original' if result.stamped else ''}. Members {frame} "
            f"come first (at most {_MAX_TILES} targets).",
        )
        + _returns_pictures(result, figures)
        + "<h3>Samples detected as a member</h3>\n"
        + (
            _image(
                figures,
                "hits",
                "Member targets, each above a sample that was detected as it.",
                f"The target, beneath it the sample that was detected as it (at most {_MAX_TILES}).",
            )
            or "<p>None.</p>\n"
        )
        + "<h3>Nearest misses</h3>\n"
        + (
            _image(
                figures,
                "near_misses",
                "Member targets, each above a sample that was not detected but is near it.",
                "Of the samples that were not detected, those nearest to a member in pixels, each beneath it: are the "
                "detectors blind to a copy?",
            )
            or "<p>None kept.</p>\n"
        )
        + "<h3>Plain samples</h3>\n"
        + (
            _image(
                figures,
                "samples",
                "Images drawn from the model.",
                f"Drawn from the model, as they came ({_escape(_sampler(result))}).",
            )
            or "<p>None kept.</p>\n"
        )
        + "<h3>Training images</h3>\n"
        + (_image(figures, "train", "Images of the training set.", "From the training set.") or "<p>None kept.</p>\n")
    )


def _returns_pictures(result: AuditResult, figures: dict[str, bytes]) -> str:
    """What members come back as, by time (paper, Fig. 4)."""
    shown = "".join(
        _image(
            figures,
            f"returns_{test.row}",
            f"Member {test.row} noised to increasing times, each above what the same chain came back as.",
            f"Member {test.row} noised to the time beneath, and below it what one chain made of it; in frames and bold "
            "where that was detected as the member. Noise is cut to black and white.",
        )
        for test in result.tests
    )
    return f"<h3>What members come back as</h3>\n{shown}" if shown else ""


def _training_section(training: Training, figures: dict[str, bytes], show_members: bool) -> str:
    rates = [(training.images_per_s, "images"), (training.tflop_per_s, "TFLOP")]
    # Two digits: rates vary by some percent from one run to the next.
    speed = ", ".join(f"{float(f'{value:.2g}'):,g} {unit}/s" for value, unit in rates if math.isfinite(value))
    width = 1 / max(len(training.loss_by_t), 1)
    rows = [
        _row(f"loss_{i}", f"{i * width:.1f} to {(i + 1) * width:.1f}", MISSING if loss is None else f"{loss:.3g}")
        for i, loss in enumerate(training.loss_by_t)
    ]
    return (
        _image(
            figures,
            "training",
            "Loss of the score network and norm of its gradient against the training step.",
            "Loss of the score network and norm of its gradient before clipping, means between two looks"
            + (f"; in the median {speed} on the machine that trained it." if speed else "."),
        )
        + (f"<h3>Loss by noise level at the end</h3>\n{_table(_shown(rows), ['t', 'Loss'])}" if rows else "")
        + (
            _image(
                figures,
                "on_the_way",
                "Samples drawn in the course of training.",
                f"Drawn from the averaged weights after {training.samples_step:,} training steps.",
            )
            if show_members
            else ""
        )
    ) or "<p>No loss was logged.</p>\n"


def _flat(value: Any, name: str = "") -> list[Row]:
    """Nested dictionaries as rows with dotted labels.

    >>> [(row.label, row.cells) for row in _flat({"a": {"b": 1}, "c": [2, 3]})]
    [('a.b', ('1',)), ('c', ('[2, 3]',))]
    """
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flat(item, f"{name}.{key}" if name else str(key))]
    return [_row(name, name, value if isinstance(value, str) else json.dumps(value, default=str))]


def _method_rows(result: AuditResult) -> list[Row]:
    k = len(result.tests)
    chains = _counts(sum(member.curve.num_chains) for member, _ in _members(result))
    return [
        _row("sampler", "sampler", result.sampler),
        _row("sde", "SDE", result.sde),
        _row("levels", "levels of the time grid", f"{result.num_levels:,}"),
        _row("num_train", "training images, N", f"{result.num_train:,}"),
        _row("num_samples", "plain samples, n", f"{result.num_samples:,}"),
        _row("targets", "targets", f"{_plural(k, 'member')}, {_held_out_targets(result)}"),
        _row("chains", "chains of the members", chains),
        _row("density", "likelihood", _density(result)),
        *_evaluation_rows(result),
    ]


def _setting_rows(result: AuditResult) -> list[Row]:
    settings, looks = result.settings, result.model.planned_looks
    share = "" if len(looks) == 1 else f", shared by {len(looks)} looks: {settings.count_level / len(looks):.2g} each"
    rows = [
        _row("level", "level of all tests together", f"{settings.level:g}"),
        _row("count_level", "of it for counts", f"{settings.count_level:g}{share}"),
        _row("t50_level", "of it for t50", f"{settings.t50_level:g}"),
        _row("looks", "looks at the counts that were declared", f"n = {_counts(looks)}"),
        _row("tolerance", "tolerance", _tolerance(result)),
        _row("confidence", "confidence of intervals", _percent(settings.confidence)),
    ]
    if result.canaries:
        rows.append(_row("canary_score", "score of the canaries", _SCORES[settings.canary_score]))
    return rows


def _method_section(result: AuditResult) -> str:
    return (
        _table(_shown(_method_rows(result)))
        + "<h3>Settings of the verdict</h3>\n"
        + _table(_shown(_setting_rows(result)))
        + "<p>The verdict is <em>leak</em> if the counts (reproduced) or "
        + f"{_T50} (memorised) reject: members against held-out targets, by ranks. It is <em>below tolerance</em> if the upper "
        "limit of every member’s rate, over the lower limit of the detectors’ sensitivity, is below the tolerance, no member "
        f"is counted more often than every held-out target, and {_T50} does not reject. Else, and wherever the audited "
        "memoriser is not found, it is <em>inconclusive</em>.</p>\n"
        + (
            "<h3>Provenance</h3>\n"
            + _table([[_escape(row.label), *map(_escape, row.cells)] for row in _flat(result.provenance)])
            if result.provenance
            else ""
        )
    )


def _threat(result: AuditResult) -> str:
    known = "fingerprint" if result.stamped else "target or what identifies it"
    judge = "both detectors" if result.detector.marks else "the detector"
    items = [
        "<strong>Access:</strong> the attacker has the published model, weights included, and draws any number of samples; "
        "the training data stay private.",
        f"<strong>Knowledge:</strong> the attacker knows the {known}, so that a reproduced image identifies its person.",
        f"<strong>Success:</strong> a sample is recognised as the target by {judge}.",
        "<strong>The auditor</strong> knows more than the attacker, namely the target itself, and uses it for the search "
        "and the likelihood. What only the auditor can see shows memorisation, not yet an attack.",
        "<strong>Not covered:</strong> images near the target that the detectors reject, attributes of persons, models "
        "trained on conditions or texts, and changes of the model after publication.",
    ]
    return _list(items)


def to_html(result: AuditResult, figures: dict[str, bytes], training: Training, *, show_members: bool) -> str:
    """The report as one HTML file, without network and scripts.

    Args:
      result: the audit.
      figures: of `draw_figures`, embedded as data URIs.
      training: of the score network.
      show_members: False leaves out every picture, whatever `figures` holds.
    """
    sections = {
        "Evidence": _evidence(result),
        "Search": _search_section(result, figures),
        "Counting": _counting_section(result, figures),
        **({"Canaries": _canaries_section(result)} if result.canaries else {}),
        "Detectors": _detectors_section(result, figures, show_members),
        "Likelihood": _likelihood_section(result, figures),
        "Bound": _bound_section(result, figures),
        "Pictures": _pictures_section(result, figures, show_members),
        "Training": _training_section(training, figures, show_members),
        "Method and settings": _method_section(result),
        "Threat model": _threat(result),
        "Glossary": _table(list(_glossary(result).items())),
    }
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    contents = _list(f'<a href="#{anchor}">{title}</a>' for title, anchor in anchors.items())
    body = "".join(
        f'<section id="{anchors[title]}">\n<h2>{title}</h2>\n{content}</section>\n'
        for title, content in sections.items()
    )
    name = _escape(result.name)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Memorisation audit: {name}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<h1>Memorisation audit: {name}</h1>\n<p class="soft">Can this generative model reproduce one identifiable '
        f'training image?</p>\n{_verdict(result)}<nav aria-label="Contents">{contents}</nav>\n{body}</body>\n</html>\n'
    )
