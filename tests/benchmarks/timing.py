"""What the benchmarks share: contestants that take turns, and the name of the machine."""

import os
import platform
import statistics
import time
from pathlib import Path


def alternate(contestants, rounds, *, warm_up=2):
    """Median seconds of each; everyone runs once in each round, after `warm_up` runs that compile."""
    times = {name: [] for name in contestants}
    for function in contestants.values():
        for _ in range(warm_up):
            function()
    for _ in range(rounds):
        for name, function in contestants.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def processor():
    """Name and cores of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
