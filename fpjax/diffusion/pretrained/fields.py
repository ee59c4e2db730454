"""Fields of a diffusers JSON file, each taken once and checked, so that none is passed over in silence."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...core.errors import RequestError, check
from ...core.files import read_json_file

MAX_FIELDS = 2**24  # bytes of a JSON file of a model; the index of a thousand shards has fewer
FIX = "audit a model without it"
FIX_FILE = "give the file as diffusers' save_pretrained wrote it: without it, this would be an audit of another sampler"


def short(value: Any) -> str:
    """A value in a message, cut."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listing(names: Iterable[str]) -> str:
    """Names in a message: at most three of them."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_fields(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    fix = "copy the whole directory again, as diffusers' save_pretrained wrote it"
    check(path.is_file(), str(path), got="no such file", expected="a JSON file", fix=fix)
    try:
        content = read_json_file(path, most=MAX_FIELDS)
    except (ValueError, OSError) as error:
        why = short(getattr(error, "strerror", None) or error)
        raise RequestError(f"{path}: got an unreadable file ({why}), expected JSON; fix: {fix}") from None
    check(isinstance(content, dict), str(path), got=short(content), expected="a JSON object", fix=fix)
    return content


class Fields:
    """Values of one JSON file; each is taken out once, so that what is left is unknown."""

    def __init__(self, path: Path):
        self.path, self.values = path, read_fields(path)

    def take(self, name: str, default: Any, ok: Callable[[Any], bool], expected: str, *, fix: str = FIX) -> Any:
        """A field's value, checked; it counts as known from now on."""
        value = self.values.pop(name, default)
        check(ok(value), f"{self.path}: {name}", got=short(value), expected=expected, fix=fix)
        return value

    def choice(self, name: str, default: Any, options: Iterable[Any]) -> Any:
        """One of some values."""
        options = tuple(options)
        return self.take(name, default, lambda v: v in options, f"one of {', '.join(map(str, options))}")

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self.take(name, default, lambda v: isinstance(v, bool), "true or false")

    def integer(self, name: str, default: int | None, low: int, high: int, *, null: int | None = None) -> int:
        """A whole number; `null` is what null stands for, if it is allowed."""
        value = self.take(
            name,
            default,
            lambda v: is_integer(v, low, high) or (v is None and null is not None),
            f"a whole number in [{low}, {high}]",
        )
        return null if value is None else value  # pyright: ignore[reportReturnType]

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number in [low, high]."""
        return float(
            self.take(name, default, lambda v: is_number(v) and low <= v <= high, f"a number in [{low:g}, {high:g}]")
        )

    def items(self, name: str, default: list[Any], ok: Callable[[Any], bool], expected: str) -> list[Any]:
        """A list of 1 to 16 items."""
        return self.take(
            name, default, lambda v: isinstance(v, list) and 1 <= len(v) <= 16 and all(map(ok, v)), expected
        )

    def refuse_unknown(self, expected: str, *, fix: str = FIX) -> None:
        """Refuses fields that nobody took, but for null and private ones."""
        unknown = {name for name, value in self.values.items() if not name.startswith("_") and value is not None}
        check(not unknown, str(self.path), got=f"unknown {listing(unknown)}", expected=expected, fix=fix)


def is_integer(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number in [low, high]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    # Not isfinite, which overflows on huge whole numbers.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def part_file(directory: Path, part: str, name: str) -> Path:
    """`name` in a pipeline's `part`, or in the directory itself."""
    check(
        directory.is_dir(),
        str(directory),
        got="no such directory",
        expected="a model saved by diffusers",
        fix="give a local directory; download a model of a hub first",
    )
    inside = directory / part / name
    return inside if inside.is_file() else directory / name
