"""Imports Matplotlib without the backend of MPLBACKEND: a notebook names one that others lack, and figures need none."""

import importlib
import os

_named = os.environ.pop("MPLBACKEND", None)
try:
    importlib.import_module("matplotlib")
finally:
    if _named is not None:
        os.environ["MPLBACKEND"] = _named
