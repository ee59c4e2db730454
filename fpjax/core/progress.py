"""Progress of long loops, and requests to stop them.

A bar on a terminal, a plain line every few seconds otherwise. A loop that can go on later asks
`stopping()` at each safe point, saves if so, and reports its progress, which then ends it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tqdm import tqdm

from .terminal import say


class Stopped(Exception):
    """A signal asked for the end; what can be taken up again has been saved."""


_signals: list[int] = []


def stopping() -> bool:
    """Whether SIGTERM or SIGINT has come."""
    return bool(_signals)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT asks the loops to save and stop; a second one interrupts at once.

    A signal that is ignored, as SIGINT under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: FrameType | None) -> None:
        if _signals:
            raise KeyboardInterrupt
        _signals.append(number)
        # Not print, which a handler must not enter twice.
        os.write(2, f"\n{signal.Signals(number).name}: saving; a second one stops at once\n".encode())

    heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.clear()


class Progress:
    """Counts units of work, and prints rate and time left to standard error.

    Args:
      label: what runs, such as "score".
      total: units of work in all.
      unit: what they are, such as "steps".
      done: units that an earlier, interrupted run has done already.
    """

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0):
        self.label, self.total, self.unit = label, total, unit
        self._done = self._done_at_start = done
        self._started = time.monotonic()
        self._next = self._started + 5.0
        self._bar: Any = None
        if sys.stderr.isatty():
            tqdm.monitor_interval = 0  # no thread beside the work
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                unit=f" {unit}",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.2,
            )

    @property
    def rate(self) -> float:
        """Units a second since this process took up the work."""
        return (self._done - self._done_at_start) / max(time.monotonic() - self._started, 1e-9)

    def update(self, done: int, note: str = "") -> None:
        """Reports that `done` units are done in all; `note` is appended.

        Raises:
          Stopped: if a signal has asked for it and work is left.
        """
        self._done, now = done, time.monotonic()
        finished = done >= self.total
        if stopping() and not finished:
            raise Stopped(
                f"{signal.Signals(_signals[0]).name} during {self.label}, at {done:,} of {self.total:,} {self.unit}"
            )
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            if finished:
                self._bar.close()
            return
        if now < self._next and not finished:
            return
        line = f"{self.label}: {done:,}/{self.total:,} {self.unit}, {self.rate:,.1f}/s"
        if finished:
            line += f", {now - self._started:.0f} s"
        elif self.rate > 0:
            line += f", {(self.total - done) / self.rate:.0f} s left"
        line += f", {note}" if note else ""
        say(line)
        self._next = now + 5.0
