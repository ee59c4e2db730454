"""Tests, and the checker of annotations that jaxtyping runs in them where it is asked to (.ci/run)."""

import functools
from typing import Any


@functools.cache
def _checker() -> Any:
    # Only here: benchmarks are modules of this package, and run without what tests need.
    from beartype import BeartypeConf, beartype

    # An int is a float, as for static checkers.
    return beartype(conf=BeartypeConf(is_pep484_tower=True))


def _known(hint: Any) -> bool:
    from beartype.door import is_bearable
    from beartype.roar import BeartypeDecorHintException

    try:
        is_bearable(None, hint)
    except BeartypeDecorHintException:
        return False
    return True


def checked(function: Any) -> Any:
    """The function with its annotations checked at each call.

    Left out are hints that beartype does not know (generic NamedTuples), and what has checks of its own with a message
    for people: fields of settings, and the functions for notebooks.
    """
    if function.__qualname__.endswith("Settings.__init__") or function.__module__ == "fpjax.studies.api":
        return function
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint if _known(hint) else Any for name, hint in hints.items()}
    return _checker()(function)
