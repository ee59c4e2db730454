"""Progress of long loops: one line that rewrites itself on a terminal, a plain line every few seconds otherwise."""

import sys
import time


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
        self._live = sys.stderr.isatty()
        self._next = self._started + (0.2 if self._live else 5.0)

    @property
    def rate(self) -> float:
        """Units a second since this process took up the work."""
        return (self._done - self._done_at_start) / max(time.monotonic() - self._started, 1e-9)

    def update(self, done: int, note: str = "") -> None:
        """Reports that `done` units are done in all; `note` is appended."""
        self._done, now = done, time.monotonic()
        finished = done >= self.total
        if now < self._next and not finished:
            return
        left = (self.total - done) / max(self.rate, 1e-9)
        line = f"{self.label}: {done:,}/{self.total:,} {self.unit}, {self.rate:,.1f}/s"
        line += f", {now - self._started:.0f} s" if finished else f", {left:.0f} s left"
        line += f", {note}" if note else ""
        if self._live:
            print(f"\r\033[K{line}", end="\n" if finished else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
        self._next = now + (0.2 if self._live else 5.0)
