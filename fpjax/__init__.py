"""Can a score-based generative model reproduce one identifiable training image?

The names below are the Python interface; `launch.py` and the configs are the command line's. Each is imported when it
is first asked for, so that a part of the package does not wait for all of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import ReturnCurves as ReturnCurves
    from .api import audit_count as audit_count
    from .api import audit_search as audit_search
    from .chains import NO_TARGET as NO_TARGET
    from .chains import EngineSettings as EngineSettings
    from .chains import make_engine as make_engine
    from .chains import make_work as make_work
    from .chains import run_chains as run_chains
    from .checks import RequestError as RequestError
    from .checks import StageError as StageError
    from .detection import as_detect_fn as as_detect_fn
    from .fingerprint import to_bytes as to_bytes
    from .fingerprint import to_model as to_model
    from .nearest import make_nearest_detect_fn as make_nearest_detect_fn
    from .oracle import empirical_score_fn as empirical_score_fn
    from .sampling import SamplerSettings as SamplerSettings
    from .score import make_score_fn as make_score_fn
    from .sde import VE as VE
    from .sde import VP as VP
    from .sde import DiscreteVP as DiscreteVP
    from .sde import SubVP as SubVP
    from .stats import clopper_pearson as clopper_pearson
    from .stats import permutation_p as permutation_p
    from .stats import t50 as t50
    from .stats import t_prime as t_prime

_NAMES = {
    "api": ("ReturnCurves", "audit_count", "audit_search"),
    "chains": ("NO_TARGET", "EngineSettings", "make_engine", "make_work", "run_chains"),
    "checks": ("RequestError", "StageError"),
    "detection": ("as_detect_fn",),
    "fingerprint": ("to_bytes", "to_model"),
    "nearest": ("make_nearest_detect_fn",),
    "oracle": ("empirical_score_fn",),
    "sampling": ("SamplerSettings",),
    "score": ("make_score_fn",),
    "sde": ("VE", "VP", "DiscreteVP", "SubVP"),
    "stats": ("clopper_pearson", "permutation_p", "t50", "t_prime"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
