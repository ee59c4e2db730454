"""How fast the networks of a config run on this machine, and what that means for the time of each stage."""

import jax

from ..core.store import write_json
from ..core.terminal import show
from .job import Job
from .stages.score import evaluation_program
from .timing import Timing, duration, time_program


def measure(job: Job) -> dict[str, Timing]:
    """Times what the stages' programs do on one device."""
    programs = {name: program for stage in job.stages for name, program in stage.programs.items()}
    made = {name: program(job, False) for name, program in programs.items()}
    return {name: time_program(program) for name, program in made.items() if program}


def predict(job: Job, timings: dict[str, Timing]) -> dict[str, tuple[float, str]]:
    """Seconds of each stage and what they rest on: rates of one device, shared out over all of them."""
    devices, times = jax.local_device_count(), {}
    for stage in job.stages:
        cost = stage.cost(job)
        if cost.rows:
            parts = [(rows, timings[name]) for name, rows in cost.rows.items()]
            seconds = sum(rows / timing.per_second / (1 if timing.alone else devices) for rows, timing in parts)
            first = parts[0][1]
            times[stage.name] = seconds, cost.basis or f"{first.per_second:,.1f} {first.unit}/s a device"
    return times


def _evaluations_by_batch(job: Job) -> list[Timing]:
    """The score of 1, 4, 16, ... images at once, up to the engine's slots; on a CPU up to 16, which fill it."""
    most = min(job.config.engine.slots, 16) if jax.default_backend() == "cpu" else job.config.engine.slots
    batches = sorted({*(4**n for n in range(9) if 4**n < most), most})
    return [time_program(evaluation_program(job, False, batch=n)) for n in batches]


def show_benchmark(job: Job) -> None:
    """Times everything, prints the table, and writes `benchmark.json`."""
    device = jax.local_devices()[0]
    by_batch, timings = _evaluations_by_batch(job), measure(job)
    show(f"{jax.local_device_count()} x {device.device_kind}, JAX {jax.__version__}, {job.config.model.dtype} network")
    show(f"{'program':20} {'batch':>6} {'per second':>12} {'TFLOP/s':>9} {'compile s':>10} {'GiB':>7}")
    named = [("evaluation", timing) for timing in by_batch]
    named += [(name, timing) for name, timing in timings.items() if name != "evaluation"]
    for name, timing in named:
        show(
            f"{name:20} {timing.batch:6} {timing.per_second:12,.1f} {timing.teraflops:9.3f} {timing.compile_s:10.1f} "
            f"{timing.bytes / 2**30:7.2f}"
        )
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    if peak:
        show(f"peak memory of the device: {peak / 2**30:.2f} GiB")
    predicted = predict(job, timings | {"evaluation": by_batch[-1]})
    for stage, (seconds, basis) in predicted.items():
        show(f"{stage:20} about {duration(seconds)} ({basis})")
    write_json(
        job.workdir / "benchmark.json",
        {
            "device": device.device_kind,
            "num_devices": jax.local_device_count(),
            "jax": jax.__version__,
            "dtype": job.config.model.dtype,
            "programs": [
                {
                    "name": name,
                    "batch": timing.batch,
                    "per_second": timing.per_second,
                    "teraflops": timing.teraflops,
                    "compile_s": timing.compile_s,
                    "bytes": timing.bytes,
                }
                for name, timing in named
            ],
            "peak_bytes": peak,
            "predicted_s": {stage: seconds for stage, (seconds, _) in predicted.items()},
        },
    )
