"""Numbers as text, with no more digits than their interval supports."""

import math
from collections.abc import Iterable, Sequence

from ..audit.results import Curve
from ..audit.verdict import Rate

MISSING = "n/a"
MOST_SHOWN = 6  # Members that are named side by side; canaries can be hundreds.


# Numbers as text


def num_decimals(width: float) -> int:
    """Decimals that leave the last digit worth a fifth to a fiftieth of an interval of this width."""
    return min(6, max(0, 1 - math.floor(math.log10(2 * width) + 1e-9))) if 0 < width < math.inf else 2


def fixed(value: float | None, decimals: int) -> str:
    """A number with so many decimals; never "-0.0"."""
    return MISSING if value is None or not math.isfinite(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def small(value: float | None) -> str:
    """A p-value or a rate with two digits that count.

    >>> small(0.1), small(0.00046), small(0.0)
    ('0.10', '4.6e-4', '0')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    return f"{value:#.2g}" if 1e-3 <= abs(value) < 10 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def percent(fraction: float) -> str:
    """A fraction in percent."""
    return f"{100 * fraction:g} %"


def rate_text(rate: Rate, confidence: float) -> str:
    """A fraction with its interval and its counts."""
    if rate.trials == 0:
        return f"{MISSING} (no trials)"
    if rate.upper - rate.lower > 0.5:
        return f"{rate.hits:,} of {rate.trials:,}, too few to state a rate"
    decimals = num_decimals(rate.upper - rate.lower)
    number = small if rate.upper < 0.01 else lambda value: fixed(value, decimals)
    ends = f"{number(rate.lower)} to {number(rate.upper)}"
    return f"{number(rate.estimate)} ({percent(confidence)} interval {ends}; {rate.hits:,} of {rate.trials:,})"


def time_text(value: float, width: float, *, last: float = math.inf, zero: str = "none") -> str:
    """A time with the digits that an interval of this width supports; ">=" where the search ended before it could say.

    >>> time_text(0.3512, 0.1), time_text(0.6, 0.1, last=0.6), time_text(0.0, 0.1), time_text(0.001, 0.1)
    ('0.35', '>= 0.60', 'none', '0.001')
    """
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return zero
    first_digit = math.ceil(-math.log10(value))
    return ">= " * (value >= last) + f"{value:.{max(num_decimals(width), first_digit)}f}"


def grid_width(curve: Curve) -> float:
    """The width whose digits tell one level from the next."""
    return 5 * min((b - a for a, b in zip(curve.t, curve.t[1:], strict=False)), default=0.1)


def last_level(curve: Curve) -> float:
    """Where t' is censored: the last level with chains, unless that is the end of the diffusion."""
    return curve.t[-1] if curve.t[-1] < 1 - 1e-6 else math.inf


def t50_text(value: float, lower: float, upper: float, last: float, confidence: float) -> str:
    """The crossing with its interval, censored at the last level."""
    width = upper - lower
    ends = f"{time_text(lower, width, zero='0')} to {time_text(upper, width, last=last)}"
    return f"{time_text(value, width, last=last)} ({percent(confidence)} interval {ends})"


def p_text(value: float | None, level: float) -> str:
    """A p-value beside the level that it is tested at."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"p = {small(value)}, {'at or below' if value <= level else 'above'} the level {level:.3g}"


def counts_text(numbers: Iterable[int]) -> str:
    """Counts as a list in words, or their range where they are many.

    >>> counts_text([9]), counts_text([1, 0, 2]), counts_text(range(7))
    ('9', '1, 0 and 2', '0 to 6')
    """
    values = list(numbers)
    if len(values) > MOST_SHOWN:
        return f"{min(values):,} to {max(values):,}"
    *most, last = [f"{number:,}" for number in values]
    return f"{', '.join(most)} and {last}" if most else last


def plural(count: int, one: str, *, many: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def one_in_text(rate: float) -> str:
    """A rate in words.

    >>> one_in_text(0.00919), one_in_text(0.31), one_in_text(0.00046), one_in_text(1.0)
    ('about one sample in 110', 'about one sample in 3', 'about one sample in 2,200', 'about every sample')
    """
    if rate > 2 / 3:
        return "about every sample"
    return f"about one sample in {float(f'{1 / rate:.2g}'):,.0f}" if rate > 0 else "no sample"


def held_out_text(controls: Sequence[int]) -> str:
    """Counts of held-out targets, as their range.

    >>> held_out_text([0, 0, 3]), held_out_text([0, 0]), held_out_text([])
    ('3 held-out targets 0 to 3', '2 held-out targets 0', 'no held-out target')
    """
    if not controls:
        return "no held-out target"
    low, high = min(controls), max(controls)
    return f"{plural(len(controls), 'held-out target')} {low:,}{f' to {high:,}' if high > low else ''}"
