"""What a run would be able to say, and how long it would take, before it is begun."""

import math
import os
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from .. import stats
from ..audit.verdict import PERMUTATION_SEED, smallest_p
from ..data.fingerprint import disc_mask
from ..data.plant import Candidates, Planted
from ..diffusion.grid import TimeGrid
from ..studies.strategies import spaced_levels
from .benchmark import duration, measure, predict
from .config import Config
from .workdir import Run

Grade = Literal["ok", "note", "weak"]


class Finding(NamedTuple):
    """One line of the check; `weak` findings keep the verdict from "below tolerance", or a test from rejecting."""

    grade: Grade
    what: str
    text: str


def _training(config: Config, planted: Planted) -> str:
    """How long the score network is trained."""
    steps, batch, count = config.score.num_steps, config.score.batch_size, len(planted.train)
    return f"{steps:,} steps x {batch} images, {steps * batch / count:,.0f} passes over N = {count:,}"


def _data_findings(config: Config, candidates: Candidates, planted: Planted, identity: dict[str, Any]) -> list[Finding]:
    """Where the images come from, and what the discs do to them."""
    sizes, copies, shared = identity["num_images"], identity["surplus_copies"], identity["shared_images"]
    height, width = planted.train.shape[1:3]
    source = Finding(
        "note" if sum(shared.values()) else "ok",
        "data",
        f"{identity['source']} {identity['name']}: "
        + ", ".join(f"{n:,} {split}" for split, n in sizes.items())
        + f" of {'x'.join(map(str, identity['image_shape']))}; {sum(copies.values())} surplus copies, "
        f"{sum(shared.values())} images in two splits",
    )
    if not config.data.stamp:
        what = (
            f"none here; N = {len(planted.train):,} were trained on"
            if config.score.path
            else _training(config, planted)
        )
        return [source, Finding("ok", "training", what)]
    target, contrast = candidates.record[0], [target.contrast for target in candidates.record]
    side = height, width
    share = float(np.mean(disc_mask(side, (target.row, target.col), target.radius)))
    return [
        source,
        Finding(
            "ok" if share <= 0.2 else "note",
            "disc",
            f"radius {target.radius} pixels, {100 * share:.1f} % of the image",
        ),
        Finding(
            "ok" if not candidates.passed_over else "note",
            "contrast",
            f"the disc differs from what it covers by {np.median(contrast):.0f} grey levels on average over "
            f"{len(contrast)} targets, at least {min(contrast)}; data.min_contrast = {config.data.min_contrast}, "
            f"{candidates.passed_over} images without such a place were passed over",
        ),
        Finding("ok", "training", _training(config, planted)),
    ]


def _p_finding(what: str, members: int, controls: int, level: float, field: str) -> Finding:
    """Whether a test of so many members among so many held-out targets can reject at all."""
    smallest, needed = smallest_p(members, controls), controls
    while smallest_p(members, needed) > level and needed < 10**4:
        needed += 1
    can = smallest <= level
    return Finding(
        "ok" if can else "weak",
        what,
        f"K = {members} members among {controls} held-out targets give p >= {smallest:.3g}; level {level:g}"
        + ("" if can else f": it cannot reject; set {field} to {needed} or more"),
    )


def _power_finding(config: Config, planted: Planted) -> Finding:
    """Which rate n samples would show, and whether they could exclude the tolerance, if the detectors make no error."""
    n, members, settings = config.count.num_samples, planted.num_members, config.audit
    targets = len(planted.targets)
    tolerance = settings.tolerance or 1 / len(planted.train)
    sensitivity = stats.mean_lower_limit(np.ones(targets), confidence=(1 + settings.confidence) / 2)
    controls = np.zeros(targets - members, int)
    share = settings.look_level(len(config.count.ends))
    critical = stats.critical_count(controls, num_members=members, level=share, seed=PERMUTATION_SEED)
    rate = math.inf
    if critical is not None:
        rate = stats.detectable_rate(n, critical, power=0.8 ** (1 / members), sensitivity=sensitivity)

    def bound(samples: int) -> float:
        return stats.reproduction_interval(
            0, samples, sensitivity_lower=sensitivity, confidence=settings.confidence
        ).upper

    enough = n
    while bound(enough) >= tolerance and enough < 10**8:
        enough *= 2
    can = bound(n) < tolerance
    return Finding(
        "ok" if can else "weak",
        "counts",
        f"n = {n:,} samples without a hit leave a rate of {bound(n):.2g}, with {targets} targets whose copies are all "
        f"seen; the tolerance is {tolerance:.2g}; members' rates of {rate:.2g} or more are seen with a power of 80 %"
        + ("" if can else f": raise count.num_samples to {enough:,}"),
    )


def _search_finding(config: Config, grid: TimeGrid, num_train: int) -> Finding:
    """What M chains a level can tell."""
    search = config.search
    chains = search.member_chains or search.rank_chains
    levels = spaced_levels(grid.level_at(search.rank_max_t), search.rank_levels)
    lower = float(stats.clopper_pearson(chains, chains, confidence=config.audit.confidence, side="lower").lower)
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


def examine(
    config: Config, candidates: Candidates, planted: Planted, identity: dict[str, Any], grid: TimeGrid
) -> list[Finding]:
    """What the data, the disc, and the numbers of samples, chains and controls allow the audit to find."""
    members, level = planted.num_members, config.audit.look_level(len(config.count.ends))
    counted, searched = len(planted.targets) - members, planted.num_controls
    return [
        *_data_findings(config, candidates, planted, identity),
        _p_finding("count test", members, counted, level, "data.num_count_controls"),
        _p_finding("t50 test", members, searched, config.audit.t50_level, "data.num_controls"),
        _power_finding(config, planted),
        _search_finding(config, grid, len(planted.train)),
    ]


def show_check(run: Run) -> bool:
    """Prints devices, memory, data, what the audit could find, and predicted times; whether a finding is weak."""
    config = run.config
    devices = jax.local_devices()
    candidates, content = run.data
    findings = examine(config, candidates, run.planted, content["identity"], run.grid)
    for finding in findings:
        print(f"{finding.grade:5} {finding.what:12} {finding.text}")
    timings = measure(run)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    full = {
        "evaluation": config.engine.slots,
        "training": config.score.batch_size // jax.local_device_count(),
        "classifier training": config.classifiers.batch_size // jax.local_device_count(),
        "density": config.likelihood.batch_size,
    }
    need, name = max((timings[name].bytes_for(rows), name) for name, rows in full.items() if name in timings)
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
        print(f"time  {stage:12} {duration(seconds)} ({basis})")
    print(f"time  {'all':12} {duration(total)} with {sum(t.compile_s for t in timings.values()):.0f} s of compilation")
    weak = [finding.what for finding in findings if finding.grade == "weak"]
    if weak:
        print(f"The audit can run, but {', '.join(weak)} would keep it from its best answer.")
    return bool(weak)
