"""What a run would be able to say, and how long it would take, before it is begun."""

import os
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from . import stats
from .benchmark import duration, measure, predict
from .config import Config
from .count import sensitivity_level
from .data.plant import Planted
from .fingerprint import FINGERPRINT_BYTE, disc_mask
from .run import Run
from .sde import TimeGrid
from .strategies import spaced_levels

Grade = Literal["ok", "note", "weak"]


class Finding(NamedTuple):
    """One line of the check; `weak` findings keep the verdict from "none found", or a test from rejecting."""

    grade: Grade
    what: str
    text: str


def _training(config: Config, planted: Planted) -> str:
    """How long the score network is trained."""
    steps, batch, count = config.score.num_steps, config.score.batch_size, len(planted.train)
    return f"{steps:,} steps x {batch} images, {steps * batch / count:,.0f} passes over N = {count:,}"


def _data_findings(config: Config, planted: Planted, identity: dict[str, Any]) -> list[Finding]:
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
        source,
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
        Finding("ok", "training", _training(config, planted)),
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


def _sensitivity_limit(config: Config) -> float:
    """The sensitivity that detectors without error would show, by as many chains as are run."""
    chains = min(config.count.sensitivity_chains, config.count.oracle_chains)
    confidence = 1 - (1 - config.audit.confidence) / config.data.num_members
    return float(stats.clopper_pearson(chains, chains, confidence=confidence, side="lower").lower)


def _power_finding(config: Config, num_train: int, num_test: int) -> Finding:
    """Whether n samples would show a memoriser's rate, if the detectors make no error at all."""
    n, members = config.count.num_samples, config.data.num_members
    level = config.audit.leak_level / members

    def detectable(samples: int) -> float:
        # Without held-out targets only real images show how often the detectors err.
        trials = samples if config.data.num_controls else num_test
        sensitivity = max(_sensitivity_limit(config), 1e-6)
        return stats.detectable_rate(samples, 0, trials, alpha=level, beta=level / 10, sensitivity=sensitivity)

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
    lower = _sensitivity_limit(config)
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
