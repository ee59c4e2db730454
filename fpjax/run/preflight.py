"""What a run would be able to say, and how long it would take, before it is begun."""

import os

import jax

from ..core.terminal import show
from .benchmark import measure, predict
from .job import Job
from .stage import Finding
from .timing import Timing, duration


def examine(job: Job) -> list[Finding]:
    """What the data, the disc, and the numbers of samples, chains and controls allow the audit to find."""
    return [finding for stage in job.stages for finding in stage.check(job)]


def _memory(timings: dict[str, Timing]) -> Finding:
    """Whether the program that takes most fits into a device's memory, with as many images as the run gives it."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need, name = max((timing.bytes_for(timing.full), name) for name, timing in timings.items() if timing.full)
    fits = need <= 0.9 * limit
    return Finding(
        "ok" if fits else "weak",
        "memory",
        f"{need / 2**30:.1f} GiB for {name} of {timings[name].full} images, of {limit / 2**30:.0f} GiB"
        + ("" if fits else f": lower the batch of {name}, for the evaluation engine.slots"),
    )


def show_check(job: Job) -> bool:
    """Prints devices, memory, data, what the audit could find, and predicted times; whether a finding is weak."""
    findings = examine(job)
    for finding in findings:
        show(f"{finding.grade:5} {finding.what:12} {finding.text}")
    timings, devices = measure(job), jax.local_devices()
    findings.append(_memory(timings))
    show(f"{findings[-1].grade:5} {findings[-1].what:12} {findings[-1].text}")
    show(f"ok    devices      {len(devices)} x {devices[0].device_kind}")
    compile_s = sum(timing.compile_s for timing in timings.values())
    predicted = predict(job, timings)
    for stage, (seconds, basis) in predicted.items():
        show(f"time  {stage:12} {duration(seconds)} ({basis})")
    total = compile_s + sum(seconds for seconds, _ in predicted.values())
    show(f"time  {'all':12} {duration(total)} with {compile_s:.0f} s of compilation")
    weak = [finding.what for finding in findings if finding.grade == "weak"]
    if weak:
        show(f"The audit can run, but {', '.join(weak)} would keep it from its best answer.")
    return bool(weak)
