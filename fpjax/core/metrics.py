"""The log of a run: one JSON line an event, and TensorBoard's files on request."""

import contextlib
import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from .errors import RequestError
from .files import open_own, parse_json, read_plain
from .store import to_plain

_MAX_BYTES = 2**28  # of the log that is read back


def tensorboard_writer() -> Any:
    """Class that writes TensorBoard's event files.

    Raises:
      RequestError: if the extra is not installed.
    """
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise RequestError(
            "report.tensorboard: got no package tensorboardX, expected it for event files; "
            "fix: pip install 'fpjax[tensorboard]', or leave it False"
        ) from error


class MetricsLog:
    """Appends one JSON line an event to `metrics.jsonl`, with the time; results themselves hold no times.

    Args:
      path: of the file.
      tensorboard: directory for TensorBoard's event files, which get the same numbers; None: none.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._events = tensorboard and tensorboard_writer()(str(tensorboard), flush_secs=5)
        # A killed run may have left half a line.
        with os.fdopen(open_own(path, os.O_RDWR), "r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def write(self, stage: str, **values: Any) -> None:
        """Appends one event."""
        line = json.dumps(to_plain({"time": round(time.time(), 3), "stage": stage, **values}), allow_nan=False)
        with os.fdopen(open_own(self._path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(line.encode() + b"\n")
        if self._events:
            at = next((int(values[name]) for name in ("step", "epoch", "evaluations", "images") if name in values), 0)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{stage}/{name}", value, at)

    def close(self) -> None:
        """Ends TensorBoard's file, which would be written to later otherwise."""
        if self._events:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Events of `metrics.jsonl` in order; lines that are no event are left out."""
    events = []
    try:
        lines = read_plain(path, most=_MAX_BYTES).splitlines()
    except OSError:
        lines = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = parse_json(line)
            if isinstance(event, dict) and isinstance(event.get("stage"), str):
                events.append(event)
    return events
