"""What is set outside of the program and would change what it computes: JAX's settings and its platform."""

import concurrent.futures
import contextlib
import os
import resource
from collections.abc import Iterator
from typing import Any

import jax

from .errors import RequestError, check
from .terminal import say

# Settings of JAX that would change results or stop programs of ours, with what all of these were written for.
SETTINGS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_enable_checks": False,
    "jax_check_tracer_leaks": False,
    "jax_disable_jit": False,
}
LEAST_ADDRESS_SPACE = 2**32  # bytes; with 2 GiB the smallest run aborts in the compiler
# Of the environment: what is not undone, and may change the last bits.
RECORDED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")


def _others() -> dict[str, Any]:
    """The settings that are not ours, as they are now."""
    now = {name: getattr(jax.config, name) for name in SETTINGS if hasattr(jax.config, name)}
    now = {name: getattr(value, "value", value) for name, value in now.items()}
    return {name: value for name, value in now.items() if value != SETTINGS[name]}


@contextlib.contextmanager
def own_settings(*, tell: bool = False) -> Iterator[None]:
    """JAX with the settings of `SETTINGS`, whatever they are outside; those are back afterwards.

    Args:
      tell: name on stderr what is not followed.

    Raises:
      RequestError: a setting is that of a context, such as `jax.enable_x64()`, which cannot be left from within.
    """
    # A thread of its own has none of this one's contexts.
    with concurrent.futures.ThreadPoolExecutor(1) as fresh:
        before = fresh.submit(_others).result()
    if before and tell:
        listed = ", ".join(f"{name}={value}" for name, value in before.items())
        say(f"not followed, so that results are those of any other machine: {listed}")
    try:
        for name in before:
            jax.config.update(name, SETTINGS[name])
        for name, value in _others().items():
            raise RequestError(
                f"{name}: got {value} in a context, expected {SETTINGS[name]}; fix: call this outside of that context"
            )
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def check_platform() -> None:
    """Refuses a platform that was asked for (JAX_PLATFORMS) and is not here, and too little address space.

    Raises:
      RequestError: JAX finds no device, or would abort for want of memory.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    check(
        limit == resource.RLIM_INFINITY or limit >= LEAST_ADDRESS_SPACE,
        "ulimit -v",
        got=f"{limit / 2**30:.1f} GiB",
        expected=f"at least {LEAST_ADDRESS_SPACE / 2**30:.0f} GiB: JAX reserves more than it uses",
        fix="ulimit -v unlimited; to limit memory itself, use a cgroup (systemd-run -p MemoryMax=..., docker -m ...)",
    )
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, and AssertionError of a plugin that is not there
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = " ".join(str(error).split())[:200] or type(error).__name__
        package = "'jax[tpu]'" if "tpu" in asked else "'jax[rocm]'" if "rocm" in asked else "'jax[cuda12]'"
        raise RequestError(
            f"JAX_PLATFORMS={asked}: got {said.rstrip('.')}, expected a device that JAX finds here; fix: install "
            f"JAX for it (pip install {package}) and look at its driver, or unset JAX_PLATFORMS to use the CPU"
        ) from None


def computes_bfloat16(device: jax.Device) -> bool:  # pyright: ignore[reportInvalidTypeForm]
    """Whether a device multiplies bfloat16 natively: TPUs, and NVIDIA GPUs since Ampere (compute capability 8.0)."""
    if device.platform == "tpu":
        return True
    capability = str(getattr(device, "compute_capability", "0"))
    return device.platform == "gpu" and capability.split(".")[0].isdigit() and float(capability) >= 8.0


def recorded() -> dict[str, str]:
    """Variables of `RECORDED` that are set, without what could be a path."""
    found = {name: os.environ[name].split() for name in RECORDED if os.environ.get(name)}
    return {name: " ".join(word for word in words if "/" not in word) for name, words in found.items()}
