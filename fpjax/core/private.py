"""What a process leaves on this machine is its user's alone: files, and no image of its memory."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def private_process() -> Iterator[None]:
    """Inside, new files and directories are closed to others, whichever library writes them, and a crash dumps no core.

    The limit stays: memory that held images once may hold them still. A crash handler that the system pipes cores to
    is told the limit, and may not heed it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
