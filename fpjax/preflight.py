"""What a run would be able to say, and how long it would take, before it is begun.

`examine` looks at the config and the planted data alone; `measure` compiles and times the networks on this machine.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import stats
from .chains import Work, evaluations_per_step
from .classifier import make_detect_fn
from .compilation import jit_once
from .config import Config
from .count import count_work, sensitivity_level
from .data.plant import Planted
from .fingerprint import FINGERPRINT_BYTE, disc_mask
from .likelihood import divergence
from .run import Run
from .sde import TimeGrid, flow_drift
from .search import search_work, spaced_levels
from .training import init_state, make_train_step

Grade = Literal["ok", "note", "weak"]


class Finding(NamedTuple):
    """One line of the check; `weak` findings keep the verdict from "none found", or a test from rejecting."""

    grade: Grade
    what: str
    text: str


def _data_findings(config: Config, planted: Planted, identity: dict[str, Any]) -> list[Finding]:
    """Where the images come from, and what the discs do to them."""
    sizes, copies, shared = identity["num_images"], identity["surplus_copies"], identity["shared_images"]
    height, width = planted.train.shape[1:3]
    target = planted.record[0]
    masks = np.stack([disc_mask((height, width), (t.row, t.col), t.radius) for t in planted.record])
    contrast = np.asarray(
        [
            np.mean(np.abs(image[mask].astype(float) - FINGERPRINT_BYTE))
            for image, mask in zip(planted.originals, masks.astype(bool), strict=True)
        ]
    )
    share = float(masks[0].mean())
    return [
        Finding(
            "note" if sum(shared.values()) else "ok",
            "data",
            f"{identity['source']} {identity['name']}: "
            + ", ".join(f"{n:,} {split}" for split, n in sizes.items())
            + f" of {'x'.join(map(str, identity['image_shape']))}; {sum(copies.values())} surplus copies, "
            f"{sum(shared.values())} images in two splits",
        ),
        Finding(
            "ok" if share <= 0.2 else "note",
            "disc",
            f"radius {target.radius} pixels, {100 * share:.1f} % of the image",
        ),
        Finding(
            "ok" if contrast.min() >= 8 else "note",
            "contrast",
            f"the disc differs from what it covers by {np.median(contrast):.0f} grey levels on average over "
            f"{len(contrast)} targets, at least {contrast.min():.0f}"
            + ("" if contrast.min() >= 8 else "; it is hard to see on some, another data.seed draws other places"),
        ),
        Finding(
            "ok",
            "training",
            f"{config.score.num_steps:,} steps x {config.score.batch_size} images, "
            f"{config.score.num_steps * config.score.batch_size / len(planted.train):,.0f} passes over "
            f"N = {len(planted.train):,}",
        ),
    ]


def _rank_finding(config: Config) -> Finding:
    """Whether the rank test can reject at all."""
    controls, members, level = config.data.num_controls, config.data.num_members, config.audit.rank_level
    smallest = 1 / (controls + 1)
    needed = int(np.ceil(members / level)) - 1
    can = smallest <= level / members
    return Finding(
        "ok" if can else "weak",
        "rank test",
        f"H = {controls} held-out targets give p >= {smallest:.3g}; level {level / members:g}"
        + ("" if can else f": it cannot reject; set data.num_controls to {needed} or more"),
    )


def _power_finding(config: Config, num_train: int, num_test: int) -> Finding:
    """Whether n samples would show a memoriser's rate, if the detectors make no error at all."""
    n, members = config.count.num_samples, config.data.num_members
    level = config.audit.leak_level / members

    def detectable(samples: int) -> float:
        # Without held-out targets only real images show how often the detectors err.
        trials = samples if config.data.num_controls else num_test
        return stats.detectable_rate(samples, 0, trials, alpha=level, beta=level / 10)

    rate, enough = detectable(n), n
    while detectable(enough) > 1 / num_train and enough < 10**8:
        enough *= 2
    can, reached = rate <= 1 / num_train, detectable(enough) <= 1 / num_train
    return Finding(
        "ok" if can else "weak",
        "leak test",
        f"n = {n:,} samples see a reproduction rate of {rate:.2g} or more (power 80 %, detectors without error, "
        f"K = {members}); a memoriser's is 1/N = {1 / num_train:.2g}"
        + ("" if can else f": raise count.num_samples to {enough:,}" if reached else ": plant held-out targets too"),
    )


def _sensitivity_finding(config: Config, grid: TimeGrid) -> Finding:
    """Whether perfect detectors could show the sensitivity that "none found" needs."""
    chains = min(config.count.sensitivity_chains, config.count.oracle_chains)
    confidence = 1 - (1 - config.audit.confidence) / config.data.num_members
    lower = float(stats.clopper_pearson(chains, chains, confidence=confidence, side="lower").lower)
    can = lower >= config.audit.min_sensitivity
    needed = int(np.ceil(np.log(1 - confidence) / np.log(config.audit.min_sensitivity)))
    return Finding(
        "ok" if can else "weak",
        "sensitivity",
        f"{chains} of {chains} detected would show {lower:.3f} (chains from level {sensitivity_level(grid)}); "
        f"{config.audit.min_sensitivity:g} is needed"
        + ("" if can else f": raise count.sensitivity_chains and count.oracle_chains to {needed}"),
    )


def _search_finding(config: Config, grid: TimeGrid, num_train: int) -> Finding:
    """What M chains a level can tell."""
    search = config.search
    chains = search.member_chains or search.rank_chains
    levels = spaced_levels(grid.level_at(search.rank_max_t), search.rank_levels)
    lower = float(stats.clopper_pearson(chains, chains, side="lower").lower)
    can = lower > 1 / num_train
    seen = 1 - 0.2 ** (1 / chains)
    return Finding(
        "ok" if can else "weak",
        "search",
        f"M = {chains} chains a level show a return rate of {seen:.2g} with 80 %; all of them returning shows "
        f"{lower:.2f} or more"
        + ("" if can else f", not above 1/N = {1 / num_train:.2g}: raise search.member_chains")
        + f"; t50 is compared over {len(levels)} levels up to t = {grid.t[levels[-1]]:.2f}",
    )


def examine(config: Config, planted: Planted, identity: dict[str, Any], grid: TimeGrid) -> list[Finding]:
    """What the data, the disc, and the numbers of samples, chains and controls allow the audit to find."""
    num_train = len(planted.train)
    return [
        *_data_findings(config, planted, identity),
        _rank_finding(config),
        _power_finding(config, num_train, len(planted.test)),
        _sensitivity_finding(config, grid),
        _search_finding(config, grid, num_train),
    ]


class Timing(NamedTuple):
    """One compiled program on one device."""

    batch: int
    seconds: float  # one call, median of three
    compile_s: float
    flops: float  # of one call, as the compiler counts; nan if it does not
    bytes: int  # arguments, outputs and temporaries; 0 if the compiler does not say

    @property
    def per_second(self) -> float:
        """Rows of the batch a second."""
        return self.batch / self.seconds


def time_call(function: Callable[..., Any], *args: Any, batch: int) -> Timing:
    """Compiles and times `function(*args)`, whose rows are `batch`; the arguments stay alive."""
    started = time.monotonic()
    compiled = jax.jit(function).lower(*args).compile()
    compile_s = time.monotonic() - started
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    size = sum(int(getattr(memory, part, 0)) for part in parts) if memory else 0
    jax.block_until_ready(compiled(*args))
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.monotonic() - started)
    return Timing(batch, float(np.median(seconds)), compile_s, float(costs.get("flops", np.nan)), size)


ODE_EVALUATIONS = 200  # assumed of an image's density; the solver's own choice depends on the model


def measure(run: Run) -> dict[str, Timing]:
    """Times the networks of a config on one device, with weights as they are initialised.

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
    training = dataclasses.replace(config.score, batch_size=images, accumulate=1 if cpu else config.score.accumulate)
    state = init_state(params, training)
    detectors, rows = run.classifier_models, batch(config.classifiers.batch_size)
    faces = jnp.zeros((rows, *shape))
    variables = [jit_once(model.init)(key, faces[:1]) for model in detectors]
    ode = batch(config.likelihood.batch_size)
    probes = jax.random.rademacher(key, (max(1, config.ode.num_probes), *shape), jnp.float32)

    def density(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        drift = functools.partial(flow_drift, config.process, run.make_score(params), t=t[0])
        return jax.vmap(lambda image: divergence(drift, image, probes=probes))(x)

    def classify(variables: list[Any], x: jax.Array) -> Any:
        def loss(params: list[Any]) -> jax.Array:
            parts = zip(detectors, variables, params, strict=True)
            outs = [m.apply({**v, "params": p}, x, train=True, mutable=["batch_stats"])[0] for m, v, p in parts]
            return jnp.sum(jnp.stack([jnp.mean(out**2) for out in outs]))

        return jax.grad(loss)([v["params"] for v in variables])

    return {
        "evaluation": time_call(lambda p, x, t: jax.vmap(run.make_score(p))(x, t), params, x, t, batch=slots),
        "training": time_call(
            make_train_step(run.loss, training), state, jnp.asarray(run.planted.train), key, batch=images
        ),
        "classifier training": time_call(classify, variables, faces, batch=rows),
        "detection": time_call(lambda v, x: make_detect_fn(detectors, *v)(x), variables, faces, batch=rows),
        "density": time_call(density, params, jnp.zeros((ode, *shape)), batch=ode),
    }


def predict(run: Run, timings: dict[str, Timing]) -> dict[str, tuple[float, str]]:
    """Seconds of each stage and what they rest on: rates of one device, shared out over all of them."""
    config, planted = run.config, run.planted
    devices, members, targets = jax.local_device_count(), config.data.num_members, len(planted.targets)

    def seconds(rows: float, name: str, *, over: int = 1) -> float:
        return rows / timings[name].per_second / over

    def chains(work: Work) -> float:
        evaluations = evaluations_per_step(run.engine, shapes) * work.num_steps
        return seconds(evaluations, "evaluation", over=devices) + seconds(len(work.level), "detection")

    shapes = jax.eval_shape(run.init_params, jax.random.key(0))
    epochs, settings = config.classifiers.max_epochs, config.classifiers
    images = num_densities(run)
    score = config.score.num_steps * config.score.batch_size
    return {
        "score": (seconds(score, "training", over=devices), f"{timings['training'].per_second:,.1f} images/s a device"),
        "classifiers": (
            seconds(epochs * settings.steps_per_epoch * settings.batch_size, "classifier training"),
            f"at most {epochs} epochs",
        ),
        "count": (chains(count_work(config.count, run.grid, members)), _rate_text(timings["evaluation"])),
        "search": (
            chains(search_work(config.search, run.grid, targets, members)),
            _rate_text(timings["evaluation"]),
        ),
        "likelihood": (
            seconds(images * ODE_EVALUATIONS, "density"),
            f"{images} images, if each takes {ODE_EVALUATIONS} evaluations",
        ),
    }


def _rate_text(timing: Timing) -> str:
    return f"{timing.per_second:,.1f} evaluations/s a device"


def num_densities(run: Run) -> int:
    """Images whose density the likelihood stage computes."""
    config, planted = run.config, run.planted
    members = config.data.num_members
    held_out = min(config.likelihood.num_held_out, len(planted.test))
    return min(config.likelihood.num_train, len(planted.train) - members) + held_out + len(planted.targets) + members


def _duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def show_check(run: Run) -> bool:
    """Prints devices, memory, data, what the audit could find, and predicted times; whether a finding is weak."""
    config = run.config
    devices = jax.local_devices()
    planted, content = run.data
    findings = examine(config, planted, content["identity"], run.grid)
    for finding in findings:
        print(f"{finding.grade:5} {finding.what:12} {finding.text}")
    timings = measure(run)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    full = {
        "evaluation": config.engine.slots,
        "training": config.score.batch_size // jax.local_device_count(),
        "classifier training": config.classifiers.batch_size,
        "density": config.likelihood.batch_size,
    }
    need, name = max((timings[name].bytes * rows / timings[name].batch, name) for name, rows in full.items())
    findings.append(
        Finding(
            "ok" if need <= 0.9 * limit else "weak",
            "memory",
            f"{need / 2**30:.1f} GiB for {name} of {full[name]} images, of {limit / 2**30:.0f} GiB"
            + ("" if need <= 0.9 * limit else f": lower the batch of {name}, for the evaluation engine.slots"),
        )
    )
    print(f"{findings[-1].grade:5} {findings[-1].what:12} {findings[-1].text}")
    print(f"ok    devices      {len(devices)} x {devices[0].device_kind}")
    total = sum(timing.compile_s for timing in timings.values())
    for stage, (seconds, basis) in predict(run, timings).items():
        total += seconds
        print(f"time  {stage:12} {_duration(seconds)} ({basis})")
    print(f"time  {'all':12} {_duration(total)} with {sum(t.compile_s for t in timings.values()):.0f} s of compilation")
    weak = [finding.what for finding in findings if finding.grade == "weak"]
    if weak:
        print(f"The audit can run, but {', '.join(weak)} would keep it from its best answer.")
    return bool(weak)
