"""How fast one compiled program runs on one device."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Program(NamedTuple):
    """What a stage runs over and over, with arguments as it takes them, or their shapes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    batch: int
    full: int = 0  # images at once in the run itself, where they take much memory
    unit: str = "images"  # what a row is
    alone: bool = False  # on one device, however many there are
    highest: bool = False  # products at full float32 precision

    def compile(self, args: tuple[Any, ...]) -> Any:
        """The compiled program, of arguments like its own, or their shapes placed on devices that need not be here."""
        function: Any = self.function if hasattr(self.function, "lower") else jax.jit(self.function)
        with jax.default_matmul_precision("highest") if self.highest else contextlib.nullcontext():
            return function.lower(*args).compile()


class Timing(NamedTuple):
    """One compiled program on one device."""

    batch: int
    seconds: float  # one call, median of three
    compile_s: float
    flops: float  # of one call, as the compiler counts; nan if it does not
    bytes: int  # arguments, outputs and temporaries; 0 if the compiler does not say
    temp_bytes: int = 0  # of these the temporaries, which grow with the batch
    full: int = 0  # images at once in the run itself, where they take much memory
    unit: str = "images"  # what a row is
    alone: bool = False  # on one device, however many there are

    @property
    def per_second(self) -> float:
        """Rows of the batch a second."""
        return self.batch / self.seconds

    def bytes_for(self, rows: int) -> float:
        """What a batch of `rows` would take; weights and data do not grow with it."""
        return self.bytes + self.temp_bytes * (rows / self.batch - 1)

    @property
    def teraflops(self) -> float:
        """Achieved TFLOP/s; nan if the compiler counts no FLOPs."""
        return self.flops / self.seconds / 1e12


def time_program(program: Program) -> Timing:
    """Compiles and times it; for ever where memory does not suffice."""
    started, args = time.monotonic(), program.args
    compiled = program.compile(args)
    compile_s = time.monotonic() - started
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    size = sum(int(getattr(memory, part, 0)) for part in parts) if memory else 0
    temporary = int(getattr(memory, "temp_size_in_bytes", 0)) if memory else 0
    seconds = []
    try:
        for _ in range(4):
            started = time.monotonic()
            jax.block_until_ready(compiled(*args))
            seconds.append(time.monotonic() - started)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = [math.inf]
    # The first call warms up.
    median = float(np.median(seconds[1:] or seconds))
    flops = float(costs.get("flops", np.nan))
    how = program.batch, median, compile_s, flops, size, temporary
    return Timing(*how, full=program.full, unit=program.unit, alone=program.alone)


def timed_batch(full: int, *, whole: bool) -> int:
    """Images at once that tell the rate: on a CPU a few, on an accelerator only a full batch, or when `whole`."""
    return min(full, 8) if jax.default_backend() == "cpu" and not whole else full


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if math.isinf(seconds):
        return "never, for want of memory"
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
