"""Accelerators that programs are compiled for without having one, and what bounds them there."""

import dataclasses
import importlib.util
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from ..core.errors import RequestError, check
from ..core.roofline import Cost, analyse
from .timing import Program

_HOPPER = """gpu_device_info {{
  cuda_compute_capability {{ major: 9 }} core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 device_memory_size: {memory}
}}
platform_name: "CUDA" device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}"""


def installed(platform: str) -> bool:
    """Whether the compiler of a platform, "cuda" or "tpu", is installed."""
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda12" if platform == "cuda" else "libtpu") is not None
    except ModuleNotFoundError:  # not even the package that plugins lie in
        return False


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of accelerator.

    Attributes:
      name: as its maker calls it.
      flops_per_s: of bfloat16 products, as large ones reach it; float32 is slower, and counts the same.
      bytes_per_s: of its memory, as copies reach it.
      memory: in bytes.
      topology: for several of them, as the compiler's platform names it.
      clock_hz: of TPUs' estimated cycles.
    """

    name: str
    platform: str
    flops_per_s: float
    bytes_per_s: float
    memory: int
    topology: str
    clock_hz: float = 0.0

    @property
    def kernels(self) -> str:
        """Of `model.kernels`, what "auto" is."""
        return "pallas" if self.platform == "cuda" else "xla"

    def devices(self) -> Any:
        """Devices to compile for.

        Raises:
          RequestError: the compiler is not installed.
        """
        cuda, version = self.platform == "cuda", jax.__version__
        check(
            installed(self.platform),
            "--target",
            got=f"no compiler for {self.name}",
            expected=f"one that fits JAX {version}",
            fix=f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}; it needs no GPU"
            if cuda
            else f"pip install 'jax[tpu]=={version}'; it needs no TPU",
        )
        bandwidth, memory = int(self.bytes_per_s), self.memory
        config = _HOPPER.format(name=self.name, bandwidth=bandwidth, memory=memory)
        options = {"target_config": config, "topology": self.topology} if cuda else {"topology_name": self.topology}
        try:
            return topologies.get_topology_desc(platform=self.platform, **options).devices
        except Exception as error:  # of the plugin, of whatever kind
            said = " ".join(str(error).split())[:200]
            raise RequestError(
                f"--target: got a compiler that does not start ({said}), expected one that fits JAX {version}; "
                "fix: install it anew in a fresh virtual environment, and set JAX_PLATFORMS=cpu"
            ) from error

    def bound(self, cost: Cost) -> float:
        """The least seconds: by the roofline, and on a TPU by its compiler's own estimate of cycles."""
        return cost.cycles / self.clock_hz if self.clock_hz else cost.bound(self.flops_per_s, self.bytes_per_s)


# Reached rates on GPUs; peak rates of Google's tables on TPUs, whose bound are the compiler's cycles.
TARGETS = {
    "h100": Target("NVIDIA H100 80GB HBM3", "cuda", 798e12, 3.0e12, 84_942_979_072, "1x1x1"),
    "h200": Target("NVIDIA H200", "cuda", 790e12, 4.3e12, 150_754_820_096, "1x1x1"),
    "v5e": Target("TPU v5e", "tpu", 197e12, 0.819e12, 16 * 2**30, "v5e:2x2", 0.94e9),
    "v6e": Target("TPU v6e", "tpu", 918e12, 1.64e12, 32 * 2**30, "v6e:2x2", 0.94e9),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as it was compiled for a target."""

    cost: Cost
    temp_bytes: int
    bytes: int  # with arguments and results


def compile_for(device: Any, program: Program) -> Compiled:
    """Compiles a program for a device that need not be here.

    Args:
      program: whose arguments may be shapes, placed or not.
    """
    place = SingleDeviceSharding(device)

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        placed = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding else place
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    compiled = program.compile(jax.tree.map(shape, program.args))
    memory = compiled.memory_analysis()
    size = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Compiled(analyse(compiled.as_text()), memory.temp_size_in_bytes, size - memory.alias_size_in_bytes)
