"""How programs are compiled: quickly where they run once, and once for all runs of a user on one kind of machine."""

import hashlib
import importlib.metadata
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit for programs that run once, such as initialisation: on CPU, LLVM's optimisation takes longer than they do."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def _machine() -> str:
    """Digest of what compiled programs depend on: a home directory may be shared by different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Intel and AMD say "flags", ARM "Features"; the first core speaks for all.
    first = {line.split(":")[0].strip(): line for line in reversed(lines)}
    processor = [first.get(name, "") for name in ("model name", "flags", "Features")]
    parts = (platform.machine(), platform.processor(), *processor, *map(importlib.metadata.version, ("jax", "jaxlib")))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


_spent = [0.0]


def _listen(event: str, duration_secs: float, **_: Any) -> None:
    if event in ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"):
        _spent[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
    """Seconds that this process has spent on lowering and compiling, or on reading compiled programs from the cache."""
    return _spent[0]


def use_compilation_cache() -> Path | None:
    """Keeps programs that took a second or more to compile in the user's cache directory, for later runs.

    Leaves everything as it is if JAX has a cache already, or was told to have none.

    Returns:
      The directory; None if there is none that can be written to.
    """
    if jax.config.values["jax_compilation_cache_dir"] or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    try:
        # Relative ones are to be ignored, says the XDG base directory specification.
        told = Path(os.environ.get("XDG_CACHE_HOME", ""))
        directory = (told if told.is_absolute() else Path.home() / ".cache") / "fpjax" / _machine()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.parent.chmod(0o700)
        with tempfile.TemporaryFile(dir=directory):
            pass
    # Without a home directory, RuntimeError.
    except (OSError, RuntimeError):
        return None
    # A cache that fills up or breaks later costs time and nothing else.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
