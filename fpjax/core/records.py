"""A stage's result: a frozen dataclass of integers, texts and arrays, to JSON and back, checked field by field.

The annotations are the schema: what a file holds is converted to them or refused. Arrays are annotated with jaxtyping
(`Int[np.ndarray, "targets"]`), whose type and number of dimensions are checked; null in an array of floats is nan.
"""

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from .errors import RequestError
from .store import read_json, write_json

Record = TypeVar("Record")


def _plain(value: Any) -> Any:
    """What msgspec does not know, as JSON types."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a result")


def _array(kind: Any, value: Any) -> np.ndarray:
    """The array that an annotation asks for, in the widest of its types."""
    dtype = next(name for name in ("float64", "int64", "bool") if name in kind.dtypes)
    if dtype != "float64" and not np.can_cast(np.asarray(value or np.zeros(0, bool)).dtype, dtype):
        raise ValueError(f"no {dtype}")
    return np.asarray(value, dtype)


def to_content(record: Any) -> Any:
    """JSON types of a record, by field."""
    return msgspec.to_builtins(record, enc_hook=_plain)


def from_content(kind: type[Record], content: dict[str, Any]) -> Record:
    """The record of this content.

    Raises:
      msgspec.ValidationError: a field is missing or of another type; the message names it.
    """
    return msgspec.convert(content, kind, dec_hook=_array)


def save(path: Path, record: Any, inputs: dict[str, str]) -> None:
    """Writes a result beside the digests of what it was made from, whole or not at all."""
    write_json(path, {"inputs": inputs, **to_content(record)})


def load(kind: type[Record], path: Path) -> Record:
    """Reads a result.

    Raises:
      RequestError: the file is missing, damaged, edited, or holds something else than a `kind`.
    """
    try:
        return from_content(kind, read_json(path))
    except (msgspec.ValidationError, OverflowError) as error:
        raise RequestError(
            f"{path.name}: got {' '.join(str(error).split())}, expected a {kind.__name__} as this version of fpjax "
            "writes it; fix: use the version that wrote it, or another --workdir"
        ) from error
