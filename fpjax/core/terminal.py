"""What is printed for people: on one line, and without what a terminal would obey instead of showing it.

Names of files, keys of JSON, flags and what other programs say can hold control characters, marks that turn the
direction of text, and NUL; every message goes through here.
"""

import sys
import unicodedata


def printable(text: str) -> bool:
    r"""Whether it has no control characters; spaces of any kind are none, and occur in the names of folders.

    >>> printable("Scans\u00a02024/\u3000x"), printable("a\nb")
    (True, False)
    """
    return all(character.isprintable() or unicodedata.category(character) == "Zs" for character in text)


def escaped(text: object) -> str:
    r"""A text on one line, with everything written out that a terminal does not show as a character.

    >>> escaped("Münch\x1b[31m \u202etxt\x00\udc80\n  x")
    'Münch\\x1b[31m \\u202etxt\\x00\\udc80 x'
    """
    return _written_out(" ".join(str(text).split()))


def _written_out(line: str) -> str:
    return "".join(
        character if printable(character) else character.encode("unicode_escape").decode() for character in line
    )


def say(message: object) -> None:
    """Prints a line to standard error."""
    print(escaped(message), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints lines to standard output, with their blanks as they are."""
    for line in text.split("\n"):
        print(_written_out(line))


def refuse(message: object) -> int:
    """Prints why a request cannot be carried out; exit status 2."""
    say(f"error: {message}")
    return 2
