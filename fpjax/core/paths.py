"""Paths as users give them."""

from pathlib import Path

from .errors import RequestError

LFS_POINTER = b"version https://git-lfs.github.com/spec"  # begins what Git LFS leaves in place of a file


def local_path(what: str, text: str) -> Path:
    """A path as a user gave it, with `~` as a shell has it.

    Args:
      what: the flag or field, for the message.

    Raises:
      RequestError: the home directory of nobody.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise RequestError(
            f"{what}: got {ascii(text)[:100]}, expected ~ or ~USER of a user with a home directory; fix: write it out"
        ) from None
