"""Stage count: how many plain samples are a target, and whether the detectors see the perfect memoriser."""

import dataclasses
import functools
import math

import jax
import numpy as np

from ... import stats
from ...audit import verdict
from ...core.images import to_bytes, to_model
from ...core.processes import process_index
from ...core.store import write_arrays
from ...detectors.results import ClassifiersResult
from ...diffusion.results import ScoreResult
from ...report.sections import studies
from ...studies.count import CountSettings, count, count_work
from ...studies.memoriser import audit_oracle
from ...studies.tally import CountResult
from ..job import Job
from ..stage import Cost, Finding, Stage
from .chains import chain_cost, chain_log, reject_finding


def run(job: Job) -> None:
    """The oracle first, then the looks at the model."""
    config, planted, key = job.config, job.planted, job.key(CountResult)
    common = {"num_members": planted.num_members, "threshold": config.classifiers.threshold, "log": chain_log(job)}
    oracle = audit_oracle(
        job.oracle_engine,
        to_model(planted.train),
        job.targets,
        job.detector.detect_fn,
        num_samples=config.count.oracle_samples,
        key=jax.random.fold_in(key, 1),
        path=job.partial(CountResult, "-oracle"),
        **common,
    )
    result, pictures = count(
        job.engine,
        job.score_params,
        job.targets,
        job.detector.detect_fn,
        config.count,
        num_searched=job.num_searched,
        decided=functools.partial(verdict.count_decided, planted.num_members, config.count, config.audit),
        thresholds=config.classifiers.thresholds,
        key=key,
        path=job.partial(CountResult),
        **common,
    )
    if process_index():
        return
    write_arrays(
        job.workdir / "samples" / "count.npz",
        samples=to_bytes(pictures.samples),
        hits=to_bytes(pictures.hits),
        hit_target=np.asarray([hit.target for hit in result.hits], int),
        near_misses=to_bytes(pictures.near_misses),
        near_target=np.asarray([miss.target for miss in result.near_misses], int),
        **{n: values if n.endswith("_target") else to_bytes(values) for n, values in pictures.errors.items()},
    )
    job.finish(dataclasses.replace(result, oracle=oracle))


def cost(job: Job) -> Cost:
    """Chains of the plain samples and of those from low levels."""
    return chain_cost(job, count_work(job.config.count, job.grid, job.num_searched))


def _power(job: Job) -> Finding:
    """Which rate n samples would show, and whether they could exclude the tolerance, if the detectors make no error."""
    config, planted = job.config, job.planted
    n, members, settings = config.count.num_samples, planted.num_members, config.audit
    targets = len(planted.targets)
    tolerance = settings.tolerance or 1 / len(planted.train)
    sensitivity = stats.mean_lower_limit(np.ones(targets), confidence=(1 + settings.confidence) / 2)
    controls = np.zeros(targets - members, int)
    share = settings.look_level(len(config.count.ends))
    critical = stats.critical_count(controls, num_members=members, level=share, seed=verdict.PERMUTATION_SEED)
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


def check(job: Job) -> list[Finding]:
    """Whether the test of the counts can reject, and which rates it would see."""
    members, level = job.planted.num_members, job.config.audit.look_level(len(job.config.count.ends))
    counted = len(job.planted.targets) - members
    return [reject_finding("count test", members, counted, level, "data.num_count_controls"), _power(job)]


COUNT = Stage(
    "count",
    CountResult,
    needs=(ScoreResult, ClassifiersResult),
    settings=(CountSettings,),
    stream=3,
    run=run,
    cost=cost,
    section=studies.COUNTING,
    check=check,
    shared=True,
    files=("samples/count.npz",),
)
