"""From the stages' results to the answer: every statistic with its interval, the tests, and the verdict.

Probabilities of the search and the count belong to the stochastic sampler that ran; densities belong to the
probability-flow ODE. They are different distributions once the score is learned, and are never compared here.
"""

import dataclasses
from typing import Any

import numpy as np

from ..core.errors import RequestError
from ..diffusion.grid import TimeGrid
from ..diffusion.sde import Process
from ..studies.strategies import MISSES
from ..studies.tally import CountResult
from .canaries import CanaryResult, audit_canaries
from .densities import bound_result, held_out_bits, member_bits, member_nll, nll_groups, nll_snapshots
from .detection import audit_auditor, detector_errors
from .results import AuditResult, StageResults, TargetResult
from .returns import at_thresholds, target_result
from .verdict import AuditSettings, Evidence, audit_members, decide

ASSUMPTION = (
    "no mark was planted: that the held-out targets differ from the training images in nothing but the training "
    "(exchangeable) is assumed, not made so"
)


def _canaries(
    count: CountResult, targets: list[TargetResult], nll: list[float], held_out: list[float], settings: AuditSettings
) -> CanaryResult:
    """Canaries by the score that was declared; a density that was not computed is the least likely one."""
    members = sum(target.member for target in targets)
    scores: dict[str, list[float]] = {
        "count": count.num_detected.tolist(),
        "t50": [target.t50_rank for target in targets],
        "nll": [-bits if np.isfinite(bits) else -np.inf for bits in [*nll, *held_out]],
    }
    chosen = scores[settings.canary_score]
    return audit_canaries(
        chosen[:members],
        chosen[members:],
        score=settings.canary_score,
        confidence=settings.confidence,
        delta=settings.canary_delta,
    )


def make_audit(
    results: StageResults,
    grid: TimeGrid,
    sde: Process,
    settings: AuditSettings,
    *,
    name: str,
    sampler: str,
    seed: int,
    provenance: dict[str, Any],
) -> AuditResult:
    """Joins the stages' results.

    Args:
      seed: of the bootstrap.
      provenance: versions, devices and the like, shown as they are.

    Raises:
      RequestError: the count is without the perfect memoriser.
    """
    classifiers, count, search = results.classifiers, results.count, results.search
    likelihood, bound, membership = results.likelihood, results.bound, results.classifiers.membership
    oracle = count.oracle
    if oracle is None:
        raise RequestError(
            "count: got no counts of the perfect memoriser, expected those of `audit_oracle`; fix: run it"
        )
    num_train, num_members = membership.num_train, membership.num_members
    searched, n = num_members + membership.num_controls, count.num_samples
    detector = detector_errors(classifiers, count, oracle, settings, seed=seed)
    self_tests = audit_auditor(count, oracle, settings, members=num_members)
    floor = max(1 / num_train, detector.false_rate_upper)
    targets = [
        target_result(row, search, count, grid, sde, floor=min(floor, 0.999), settings=settings, seed=seed + row)
        for row in range(searched)
    ]
    members = member_nll(likelihood.densities, num_members) if likelihood else []
    held_out = held_out_bits(likelihood.densities) if likelihood else []
    sensitivities = [part for part in (detector.sensitivity_poor, detector.sensitivity_returns) if part.targets]
    evidence = Evidence(
        num_train=num_train,
        num_members=num_members,
        looks=count.looks,
        planned_looks=count.planned_looks,
        counts=count.looks_detected,
        any_control=count.control_hit_samples,
        t50=[target.t50_rank for target in targets],
        sensitivity=detector.sensitivity_lower,
        sure_sensitivity=min((part.sure for part in sensitivities), default=0.0),
    )
    model, tests = audit_members(evidence, settings)
    verdict = decide(
        model,
        tests,
        settings,
        sensitivity=detector.sensitivity_lower,
        advice=detector.advice,
        self_tests=self_tests,
    )
    stamped = results.data.fingerprint_byte is not None
    if not stamped:
        verdict = dataclasses.replace(verdict, reasons=[*verdict.reasons, ASSUMPTION])
    return AuditResult(
        name=name,
        verdict=verdict,
        targets=targets,
        model=model,
        tests=tests,
        detector=detector,
        nll=nll_groups(likelihood.densities, likelihood.num_dims) if likelihood else [],
        num_train=num_train,
        num_samples=n,
        num_fingerprint=count.num_fingerprint,
        floor=floor,
        sampler=sampler,
        sde=type(sde).__name__,
        num_levels=grid.num_levels,
        t_min_likelihood=likelihood.t_min if likelihood else float("nan"),
        evaluations={
            "count": {"useful": count.evaluations, "executed": count.executed},
            "search": {"useful": search.evaluations, "executed": search.executed},
        },
        strategy=search.strategy,
        strategy_misses=MISSES[search.strategy],
        exhaustive_evaluations=search.exhaustive_evaluations,
        settings=settings,
        provenance=provenance,
        stamped=stamped,
        self_tests=self_tests,
        thresholds=[
            at
            for member in targets[:num_members]
            for at in at_thresholds(member.row, classifiers, count, search, grid, settings, seed=seed + member.row)
        ],
        hits=count.hits,
        near_misses=count.near_misses,
        snapshots=nll_snapshots(likelihood, num_members, num_steps=results.score.num_steps) if likelihood else [],
        bound=[bound_result(bound, target, grid) for target in targets[:num_members]]
        if bound and len(bound.target)
        else [],
        nll_members=members,
        canaries=_canaries(count, targets, member_bits(members), held_out, settings) if membership.canaries else None,
    )
