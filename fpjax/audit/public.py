"""What may leave the hospital: aggregates alone, each field named here, so that nothing else can slip in.

Values of single images stay behind. Densities and counts at full precision, of chains whose noise depends on the seed
and the row alone, tell whoever has the model and some candidate images which of these were planted: the same numbers
come out. So there are

- no value of one image, but for the largest of counts that whoever draws samples can make too;
- means of `LEAST` images or more, in steps of `DENSITY_STEP` bits/dim: who knows all but one of m images learns the
  last one's value to within m / 2 steps;
- medians of t50 in steps of `T50_STEP`, which are shared by most images of a kind;
- p-values, limits and rates with two or three digits: functions of ranks, sums and maxima.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .results import AuditResult
from .verdict import BELOW, LEAK, MEMORISED, REPRODUCED, AuditSettings

LEAST = 10  # images in a group whose mean is told; a usual limit of statistical disclosure control
DENSITY_STEP = 0.01  # bits/dim
T50_STEP = 0.1
# Of what ran, and nothing of the data.
PROVENANCE = (
    "python", "fpjax", "jax", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy", "scipy", "commit", "devices",
    "parameters", "training_steps", "imported", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DISABLE_MOST_OPTIMIZATIONS",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PublicCounts:
    """How many of the plain samples are taken for targets; sums over targets, and the largest of each kind."""

    num_samples: int
    members: int
    members_most: int
    held_out: int
    held_out_most: int
    p: float
    level: float


@dataclasses.dataclass(frozen=True)
class PublicReturns:
    """From which noise targets come back; medians in steps of `T50_STEP`, nan where there are none."""

    members: float
    held_out: float
    p: float
    level: float


@dataclasses.dataclass(frozen=True)
class PublicGroup:
    """Mean density of a group of `LEAST` images or more, in steps of `DENSITY_STEP`."""

    name: str
    images: int
    mean_bits_per_dim: float


@dataclasses.dataclass(frozen=True)
class PublicCanaries:
    """What the canaries' scores show."""

    score: str
    num_in: int
    num_out: int
    area: float
    epsilon: float | None
    confidence: float
    delta: float


@dataclasses.dataclass(frozen=True)
class PublicResult:
    """Everything that the public report shows."""

    name: str
    verdict: str
    kinds: list[str]
    reasons: list[str]
    num_train: int
    num_members: int
    num_held_out: int
    counts: PublicCounts
    t50: PublicReturns
    bound: float  # of the rate of reproduction of any member
    tolerance: float
    detectable_rate: float  # inf: none
    sensitivity: float  # lower limit of the detectors'
    false_rate: float  # upper limit
    detectors: str
    marks: bool
    self_tests: dict[str, str]  # what, and whether it passed
    likelihood: list[PublicGroup]
    canaries: PublicCanaries | None
    sampler: str
    sde: str
    num_levels: int
    stamped: bool
    settings: AuditSettings
    provenance: dict[str, Any]


def _digits(value: float, digits: int) -> float:
    """A number with so many digits that count."""
    return float(f"{value:.{digits - 1}e}") if math.isfinite(value) else value


def _step(value: float, step: float) -> float:
    """The nearest multiple of a step."""
    return round(round(value / step) * step, 6) if math.isfinite(value) else value


def _median_t50(result: AuditResult, *, members: bool) -> float:
    """In steps; nan without any."""
    values = [target.t50_rank for target in result.targets if target.member == members]
    return _step(float(np.median(values)), T50_STEP) if values else math.nan


def _reasons(result: AuditResult, counts: PublicCounts, t50: PublicReturns) -> list[str]:
    """Why, in sums and maxima."""
    k, verdict, model = len(result.tests), result.verdict, result.model
    who = "the member" if k == 1 else f"one of the {k} members"
    counted = (
        f"{counts.members:,} of {counts.num_samples:,} plain samples are {who}; no held-out target has more than "
        f"{counts.held_out_most:,} (p = {counts.p:.2g}, level {counts.level:.2g})"
    )
    returned = (
        f"members come back from more noise than held-out targets (p = {t50.p:.2g}, level {t50.level:.2g})"
        if MEMORISED in verdict.kinds
        else f"t50 is not shown to rank above the held-out targets' (p = {t50.p:.2g}, level {t50.level:.2g})"
    )
    reasons = [counted] if REPRODUCED in verdict.kinds or verdict.verdict != LEAK else []
    reasons.append(returned)
    side = "below" if model.bound < model.tolerance else "not below"
    reasons.append(
        f"the rate at which any member is reproduced is at most {_digits(model.bound, 2):g}, which is {side} the "
        f"tolerance of {_digits(model.tolerance, 2):g}"
    )
    if verdict.verdict == BELOW:
        reasons.append("this is a bound, and no proof of anonymity")
    if any(test.vetoes and test.possible and not test.passed for test in result.self_tests):
        reasons.insert(0, "the audit failed where the answer is known, so that none of its numbers can be relied on")
    return reasons


def _passed(result: AuditResult) -> dict[str, str]:
    return {
        test.what: "passed" if test.passed else "failed" if test.possible else "could not tell"
        for test in result.self_tests
    }


def _groups(result: AuditResult) -> list[PublicGroup]:
    """Those that are large enough."""
    groups = []
    for group in result.nll:
        values = [bits for bits in group.bits_per_dim if bits is not None and math.isfinite(bits)]
        if len(values) >= LEAST:
            groups.append(PublicGroup(group.name, len(values), _step(float(np.mean(values)), DENSITY_STEP)))
    return groups


def _most(counts: Sequence[int]) -> int:
    return max(counts, default=0)


def make_public(result: AuditResult) -> PublicResult:
    """The aggregates of an audit."""
    model, found = result.model, result.canaries
    look = next((look for look in model.looks if look.p <= look.level), model.looks[-1])
    counts = PublicCounts(
        look.num_samples,
        sum(look.members),
        _most(look.members),
        sum(look.controls),
        _most(look.controls),
        _digits(look.p, 2),
        look.level,
    )
    t50 = PublicReturns(
        _median_t50(result, members=True),
        _median_t50(result, members=False),
        _digits(model.t50_p, 2),
        model.t50_level,
    )
    canaries = found and PublicCanaries(
        found.score,
        found.num_in,
        found.num_out,
        _digits(found.area, 2),
        None if found.epsilon is None else _digits(found.epsilon, 2),
        found.confidence,
        found.delta,
    )
    return PublicResult(
        name=result.name,
        verdict=result.verdict.verdict,
        kinds=result.verdict.kinds,
        reasons=_reasons(result, counts, t50),
        num_train=result.num_train,
        num_members=len(result.tests),
        num_held_out=model.num_count_controls,
        counts=counts,
        t50=t50,
        bound=_digits(model.bound, 3),
        tolerance=_digits(model.tolerance, 3),
        detectable_rate=_digits(model.detectable_rate, 2),
        sensitivity=_digits(result.detector.sensitivity_lower, 2),
        false_rate=_digits(result.detector.false_rate_upper, 2),
        detectors=result.detector.description,
        marks=result.detector.marks,
        self_tests=_passed(result),
        likelihood=_groups(result),
        canaries=canaries,
        sampler=result.sampler,
        sde=result.sde,
        num_levels=result.num_levels,
        stamped=result.stamped,
        settings=result.settings,
        provenance={name: value for name, value in result.provenance.items() if name in PROVENANCE},
    )
