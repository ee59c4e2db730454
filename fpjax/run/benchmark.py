"""How fast the networks of a config run on this machine, and what that means for the time of each stage."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.compilation import jit_once
from ..core.store import write_json
from ..core.types import Key
from ..detectors.classifier import make_detect_fn
from ..detectors.examples import make_tasks
from ..detectors.fitting import init_fit, make_fit_step
from ..diffusion.flow import divergence, flow_drift
from ..diffusion.training import init_state, make_train_step
from ..engine.chains import evaluations_per_step
from ..engine.work import Work
from ..studies.bound import bound_work
from ..studies.count import count_work
from ..studies.search import search_work
from .workdir import Run


class Timing(NamedTuple):
    """One compiled program on one device."""

    batch: int
    seconds: float  # one call, median of three
    compile_s: float
    flops: float  # of one call, as the compiler counts; nan if it does not
    bytes: int  # arguments, outputs and temporaries; 0 if the compiler does not say
    temp_bytes: int = 0  # of these the temporaries, which grow with the batch

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


def time_call(function: Callable[..., Any], *args: Any, batch: int) -> Timing:
    """Compiles and times `function(*args)`, whose rows are `batch`; for ever where memory does not suffice."""
    started = time.monotonic()
    compiled = jax.jit(function).lower(*args).compile()
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
    return Timing(batch, median, compile_s, float(costs.get("flops", np.nan)), size, temporary)


ODE_EVALUATIONS = 200  # assumed of an image's density; the solver's own choice depends on the model


def measure(run: Run) -> dict[str, Timing]:
    """Times what a config runs on one device, with weights as they are initialised.

    On a CPU a few images tell the rate, on an accelerator only a full batch does.
    """
    config, shape = run.config, run.image_shape
    cpu = jax.default_backend() == "cpu"

    def batch(full: int) -> int:
        return min(full, 8) if cpu else full

    key = jax.random.key(0)
    params = jit_once(run.init_params)(key)
    slots, images = batch(config.engine.slots), batch(config.score.batch_size // jax.local_device_count())
    x, t = jnp.zeros((slots, *shape)), jnp.full(slots, 0.5)
    detectors = run.classifier_models[-len(run.classifier_names) :]
    rows = batch(config.classifiers.batch_size // jax.local_device_count())
    faces = jnp.zeros((rows, *shape))
    ode = batch(config.likelihood.batch_size)
    exact = config.ode.num_probes == 0
    probes = None if exact else jax.random.rademacher(key, (config.ode.num_probes, *shape), jnp.float32)

    def density(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        drift = functools.partial(flow_drift, run.process, run.make_score(params, dtype="float32"), t=t[0])
        return jax.vmap(lambda x: divergence(drift, x, probes=probes, trace_batch=config.ode.trace_batch))(x)

    timings = {
        "evaluation": time_call(lambda p, x, t: jax.vmap(run.make_score(p))(x, t), params, x, t, batch=slots),
        "density": time_call(density, params, jnp.zeros((ode, *shape)), batch=ode),
    }
    if not run.imported:
        parts = 1 if cpu else config.score.accumulate
        training = dataclasses.replace(config.score, batch_size=images, accumulate=parts)
        state, data = init_state(params, training), jnp.asarray(run.planted.train)
        timings["training"] = time_call(make_train_step(run.loss, training), state, data, key, batch=images)
    if not run.classifier_names:
        detect: Any = run.detector.detect
        look = functools.partial(detect.func, **detect.keywords)
        return timings | {"detection": time_call(look, *detect.args, faces, batch=rows)}
    settings = dataclasses.replace(config.classifiers, batch_size=rows)
    data = jax.tree.map(jnp.asarray, run.detector_data(run.candidates.rest))
    states = [jit_once(functools.partial(init_fit, model, settings))(key, faces[:1]) for model in detectors]
    variables = [state.variables for state in states]
    candidates = run.candidates
    radius = candidates.record[0].radius
    tasks = make_tasks(
        settings, config.augmix, num_targets=len(candidates.targets), radius=radius, min_contrast=run.min_contrast
    )
    tasks = tasks[-len(detectors) :]
    steps = [make_fit_step(model, task, settings) for model, task in zip(detectors, tasks, strict=True)]
    absent = [None] * (len(run.classifier_models) - len(detectors))

    def classify(states: list[Any], data: Any, key: Key) -> Any:
        return [step(state, data, key) for step, state in zip(steps, states, strict=True)]

    return timings | {
        "classifier training": time_call(classify, states, data, key, batch=rows),
        "detection": time_call(
            lambda v, x: make_detect_fn(run.classifier_models, *absent, *v)(x), variables, faces, batch=rows
        ),
    }


def predict(run: Run, timings: dict[str, Timing]) -> dict[str, tuple[float, str]]:
    """Seconds of each stage and what they rest on: rates of one device, shared out over all of them."""
    config, planted = run.config, run.planted
    devices, members, searched = jax.local_device_count(), planted.num_members, run.num_searched

    def seconds(rows: float, name: str, *, over: int = 1) -> float:
        return rows / timings[name].per_second / over

    def chains(work: Work) -> float:
        evaluations = evaluations_per_step(run.engine, shapes) * work.num_steps
        return seconds(evaluations, "evaluation", over=devices) + seconds(work.num_chains, "detection")

    shapes = jax.eval_shape(run.init_params, jax.random.key(0))
    settings = config.classifiers
    images, ends = num_densities(run), num_bound_chains(run)
    bound_chains = bound_work(config.bound, [run.grid.num_levels] * members)
    score = config.score.num_steps * config.score.batch_size
    times = {}
    if "training" in timings:
        rate = f"{timings['training'].per_second:,.1f} images/s a device"
        times["score"] = seconds(score, "training", over=devices), rate
    if "classifier training" in timings:
        examples = settings.epochs * settings.steps_per_epoch * settings.batch_size
        basis = f"{settings.epochs} epochs, if the gate opens at once"
        times["classifiers"] = seconds(examples, "classifier training", over=devices), basis
    return times | {
        "count": (chains(count_work(config.count, run.grid, searched)), _rate_text(timings["evaluation"])),
        "search": (
            chains(search_work(config.search, run.grid, searched, members)),
            _rate_text(timings["evaluation"]),
        ),
        "likelihood": (
            seconds(images * ODE_EVALUATIONS, "density", over=devices),
            f"{images} densities, if each takes {ODE_EVALUATIONS} evaluations",
        ),
        "bound": (
            (chains(bound_chains) if bound_chains else 0.0)
            + seconds(ends * config.bound.repeats * ODE_EVALUATIONS, "density", over=devices),
            f"at most {ends} chains, the same",
        ),
    }


def _rate_text(timing: Timing) -> str:
    return f"{timing.per_second:,.1f} evaluations/s a device"


def num_densities(run: Run) -> int:
    """Densities that the likelihood stage computes, at most."""
    config, planted = run.config, run.planted
    settings, members, others = config.likelihood, planted.num_members, len(planted.train) - planted.num_members
    near = min(members * settings.num_neighbours, others)
    followed = run.num_searched + members * config.data.stamp + near
    rest = min(settings.num_train, others - near) + min(settings.num_held_out, len(planted.test))
    snapshots = (config.score.num_steps - 1) // config.score.keep_every if settings.snapshots else 0
    return settings.repeats * ((1 + snapshots) * followed + rest + settings.num_generated)


def num_bound_chains(run: Run) -> int:
    """Chains of the bound, if members return from every level."""
    tops = [run.grid.num_levels] * run.planted.num_members
    work = bound_work(run.config.bound, tops)
    return work.num_chains if work else 0


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if math.isinf(seconds):
        return "never, for want of memory"
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _evaluations_by_batch(run: Run) -> list[Timing]:
    """The score of 1, 4, 16, ... images at once, up to the engine's slots; on a CPU up to 16, which fill it."""
    most = min(run.config.engine.slots, 16) if jax.default_backend() == "cpu" else run.config.engine.slots
    sizes = sorted({*(4**n for n in range(9) if 4**n < most), most})
    params = jit_once(run.init_params)(jax.random.key(0))

    def score(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(run.make_score(params))(x, t)

    return [time_call(score, params, jnp.zeros((n, *run.image_shape)), jnp.full(n, 0.5), batch=n) for n in sizes]


def show_benchmark(run: Run) -> None:
    """Times everything, prints the table, and writes `benchmark.json`."""
    device = jax.local_devices()[0]
    by_batch, timings = _evaluations_by_batch(run), measure(run)
    print(f"{jax.local_device_count()} x {device.device_kind}, JAX {jax.__version__}, {run.config.model.dtype} network")
    print(f"{'program':20} {'batch':>6} {'per second':>12} {'TFLOP/s':>9} {'compile s':>10} {'GiB':>7}")
    named = [("evaluation", timing) for timing in by_batch]
    named += [(name, timing) for name, timing in timings.items() if name != "evaluation"]
    for name, timing in named:
        print(
            f"{name:20} {timing.batch:6} {timing.per_second:12,.1f} {timing.teraflops:9.3f} {timing.compile_s:10.1f} "
            f"{timing.bytes / 2**30:7.2f}"
        )
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    if peak:
        print(f"peak memory of the device: {peak / 2**30:.2f} GiB")
    predicted = predict(run, timings | {"evaluation": by_batch[-1]})
    for stage, (seconds, basis) in predicted.items():
        print(f"{stage:20} about {duration(seconds)} ({basis})")
    write_json(
        run.workdir / "benchmark.json",
        {
            "device": device.device_kind,
            "num_devices": jax.local_device_count(),
            "jax": jax.__version__,
            "dtype": run.config.model.dtype,
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
