"""Errors that say what was got, what was expected, and the fix.

Raised on the host, before anything is traced or computed. On the command line a `RequestError` is one line
and exit status 2, a `StageError` one line and exit status 1.
"""

from typing import Any

import numpy as np


class RequestError(ValueError):
    """The request (flag, config, data) cannot be carried out as it stands."""


class StageError(RuntimeError):
    """A stage met something it must not go on with, such as a non-finite loss."""


def check(ok: bool | np.bool_, what: str, *, got: Any, expected: str, fix: str) -> None:
    """Raises `RequestError` on one line unless `ok`.

    >>> check(-1 > 0, "score.num_steps", got=-1, expected="a positive integer", fix="set it to 2000")
    Traceback (most recent call last):
    ...
    fpjax.core.errors.RequestError: score.num_steps: got -1, expected a positive integer; fix: set it to 2000
    """
    if not ok:
        got = str(got)
        got = got if len(got) <= 200 else f"{got[:200]}..."
        message = f"{what}: got {got}, expected {expected}; fix: {fix}"
        raise RequestError(" ".join(message.split()))


def positive(what: str, value: Any, *, fix: str = "give a positive number") -> None:
    """Refuses numbers that are not above zero."""
    check(value > 0, what, got=value, expected="a number above 0", fix=fix)


def in_range(what: str, value: Any, low: float, high: float, *, fix: str = "choose a value in the range") -> None:
    """Refuses numbers outside [low, high]."""
    check(low <= value <= high, what, got=value, expected=f"a number in [{low:g}, {high:g}]", fix=fix)


def whole_number(what: str, value: Any, *, least: int = 1, most: int = 2**31 - 1) -> None:
    """Refuses what is no integer in [least, most]; Python's and NumPy's are integers, their fractions are not."""
    ok = isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= value <= most
    check(ok, what, got=value, expected=f"an integer in [{least}, {most:,}]", fix="choose one in the range")


def whole(section: str, settings: Any, *, most: int, least: int = 1, names: tuple[str, ...]) -> None:
    """Refuses fields of a settings section that are not integers in [least, most]."""
    for name in names:
        whole_number(f"{section}.{name}", getattr(settings, name), least=least, most=most)


def one_of(what: str, value: Any, options: Any) -> None:
    """Refuses values that are not among `options`, and lists them."""
    options = sorted(options)
    check(value in options, what, got=repr(value), expected=f"one of {', '.join(options)}", fix="pick one of these")
