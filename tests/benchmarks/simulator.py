"""How often the verdict is right, simulated without networks: counts and t50 are drawn from models, then tested.

`python -m tests.benchmarks.simulator [--runs=1000]` prints tables in Markdown. In a simulated audit every target has a head with a
false-hit rate of its own; the heads' rates are drawn before it is known who is a member, as membership is. A member is
detected at its rate of reproduction times the sensitivity as well. The t50 of members and held-out targets are draws of
one distribution: no table here has its power from t50.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
from scipy.stats import beta as beta_distribution
from scipy.stats import binom

from fpjax import stats
from fpjax.audit.verdict import (
    BELOW,
    BETA,
    INCONCLUSIVE,
    LEAK,
    MEMORISED,
    REPRODUCED,
    AuditSettings,
    Evidence,
    Verdict,
    audit_members,
    count_decided,
    count_p,
    decide,
)
from fpjax.studies.count import CountSettings

DESIGNS = ((1, 24, 99), (1, 19, 19), (4, 16, 16), (5, 15, 15))  # members, controls with chains, count controls
HEADS = {
    "never": "no head fires falsely",
    "clean": "all heads at 1e-5",
    "equal": "all heads at 1e-3",
    "gamma": "gamma-distributed rates, shape 0.05, mean 1e-3",
    "bad": "5 % of heads at 3 %",
    "one": "one of all heads at 3 %",
}
NULLS = (
    ("never", "continuous"),
    ("never", "tied"),
    ("equal", "continuous"),
    ("gamma", "continuous"),
    ("bad", "tied"),
    ("one", "continuous"),
)
SETTINGS = AuditSettings()
POOR_COPIES, RETURNS = 32, 256  # copies of a target by which sensitivity is measured


@dataclasses.dataclass(frozen=True)
class World:
    """What is true of the simulated audits.

    Attributes:
      design: members, controls with chains, count controls.
      heads: of `HEADS`.
      t50: continuous, or tied: 69 % have the smallest value, few the others.
      rate: at which each member is reproduced.
      sensitivity: probability that a reproduction is detected, of every target.
      looks: numbers of samples after which counts are tested.
      num_train: N.
    """

    design: tuple[int, int, int]
    heads: str = "never"
    t50: str = "continuous"
    rate: float = 0.0
    sensitivity: float = 0.95
    looks: tuple[int, ...] = (2048,)
    num_train: int = 100


def false_rates(heads: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """False-hit rate of every head, (runs, heads)."""
    flat = {"never": 0.0, "clean": 1e-5, "equal": 1e-3}
    if heads in flat:
        return np.full(shape, flat[heads])
    if heads == "gamma":
        return np.minimum(rng.gamma(0.05, 1e-3 / 0.05, shape), 1.0)
    if heads == "bad":
        return np.where(rng.random(shape) < 0.05, 0.03, 0.0)
    return np.where(np.arange(shape[1]) == rng.integers(shape[1], size=(shape[0], 1)), 0.03, 0.0)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Numbers of many simulated audits, members first."""

    world: World
    counts: np.ndarray  # (runs, looks, K + count controls)
    t50: np.ndarray  # (runs, K + controls)
    poor: np.ndarray  # (runs, K + count controls) share of poor copies that is found
    returns: np.ndarray  # (runs, controls) the same of noisy returns

    def looks_taken(self, run: int, settings: AuditSettings) -> int:
        """Looks up to the one that rejects."""
        looks, k = self.world.looks, self.world.design[0]
        plan = CountSettings(num_samples=looks[-1], looks=looks)
        for look, counts in enumerate(self.counts[run]):
            if count_decided(k, plan, settings, counts):
                return look + 1
        return len(looks)

    def evidence(self, run: int, settings: AuditSettings = SETTINGS) -> Evidence:
        """As `make_audit` gathers it."""
        k, taken = self.world.design[0], self.looks_taken(run, settings)
        n, parts = self.world.looks[taken - 1], (self.poor[run], self.returns[run])
        lower, sure = (
            min(stats.mean_lower_limit(part, confidence=confidence) for part in parts)
            for confidence in ((1 + settings.confidence) / 2, 1 - BETA)
        )
        counts = self.counts[run, :taken]
        return Evidence(
            num_train=self.world.num_train,
            num_members=k,
            looks=self.world.looks[:taken],
            planned_looks=self.world.looks,
            counts=counts,
            any_control=union(counts[-1, k:], n),
            t50=self.t50[run],
            sensitivity=lower,
            sure_sensitivity=sure,
        )


def union(hits: np.ndarray, n: int) -> int:
    """Samples that some head takes, where each takes its own at random."""
    return round(n * (1 - float(np.prod(1 - hits / n))))


def draw(world: World, runs: int, seed: int) -> Draws:
    """Simulates audits."""
    k, controls, count_controls = world.design
    heads, times, found = (np.random.default_rng((seed, part)) for part in range(3))
    rates = false_rates(world.heads, (runs, k + count_controls), heads)
    rates[:, :k] = 1 - (1 - rates[:, :k]) * (1 - world.rate * world.sensitivity)
    steps = np.diff((0, *world.looks))[:, None]
    t50 = times.normal(size=(runs, k + controls))
    if world.t50 == "tied":
        t50 = np.ceil(2 * np.maximum(t50 - 0.5, 0))
    return Draws(
        world,
        np.cumsum(heads.binomial(steps, rates[:, None]), axis=1),
        t50,
        found.binomial(POOR_COPIES, world.sensitivity, (runs, k + count_controls)) / POOR_COPIES,
        found.binomial(RETURNS, world.sensitivity, (runs, controls)) / RETURNS,
    )


def kinds(draws: Draws, settings: AuditSettings = SETTINGS) -> np.ndarray:
    """(runs, 2) bool: whether counts, and whether t50, reject; `answers` without all that decides no leak."""
    k, looks = draws.world.design[0], draws.world.looks
    plan = CountSettings(num_samples=looks[-1], looks=looks)

    # The tests see the order alone, and many draws have the same.
    @functools.cache
    def by_t50(members: tuple[int, ...], controls: tuple[int, ...]) -> bool:
        return stats.permutation_p(members, controls, seed=0) <= settings.t50_level

    @functools.cache
    def by_counts(members: tuple[int, ...], controls: tuple[int, ...]) -> bool:
        return count_decided(k, plan, settings, np.asarray(members + controls))

    def ordered(values: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
        places = np.unique(values, return_inverse=True)[1].tolist()
        return tuple(sorted(places[:k])), tuple(sorted(places[k:]))

    return np.asarray(
        [
            (any(by_counts(*ordered(look)) for look in counts), by_t50(*ordered(t50)))
            for counts, t50 in zip(draws.counts, draws.t50, strict=True)
        ]
    )


def answers(draws: Draws, settings: AuditSettings = SETTINGS, *, sensitivity: float | None = None) -> Iterator[Verdict]:
    """The whole verdict of each simulated audit; with a sensitivity as if that were its limit."""
    for run in range(len(draws.counts)):
        evidence = draws.evidence(run, settings)
        if sensitivity is not None:
            evidence = dataclasses.replace(evidence, sensitivity=sensitivity)
        yield decide(*audit_members(evidence, settings), settings, sensitivity=evidence.sensitivity)


def old_leak_p(draws: Draws) -> np.ndarray:
    """(runs,) p-values of the former leak test, whose level was 0.01: no held-out head may have the member's rate."""
    n, counts = draws.world.looks[-1], draws.counts[:, -1]
    return np.asarray([stats.leak_p(each[0], n, union(each[1:], n), n, beta=1e-3) for each in counts])


def old_answers(draws: Draws) -> list[str]:
    """The former verdict for one member: leak, none found or inconclusive; its sensitivity is taken as shown."""
    n, limit = draws.world.looks[-1], 1 / draws.world.num_train
    found = []
    for counts, t50, p in zip(draws.counts[:, -1], draws.t50, old_leak_p(draws), strict=True):
        false = stats.clopper_pearson(union(counts[1:], n), n, confidence=1 - 1e-3, side="upper").upper
        critical = int(binom.isf(0.01 - 1e-3, n, false)) + 1
        detectable = float(beta_distribution.ppf(0.8, critical, n - critical + 1)) / 0.9 if critical <= n else math.inf
        leak = p <= 0.01 or stats.rank_p_value(t50[0], t50[1:]) <= 0.05
        found.append(LEAK if leak else "none found" if detectable <= limit else INCONCLUSIVE)
    return found


def count_power(world: World, runs: int, seed: int) -> float:
    """Share of audits in which counts reject."""
    draws = draw(world, runs, seed)
    k, level = world.design[0], SETTINGS.count_level
    return float(np.mean([count_p(counts[-1], k) <= level for counts in draws.counts]))


def _row(*cells: object) -> None:
    print(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in cells)} |")


def _head(*cells: str) -> None:
    _row(*cells)
    _row(*["---"] * len(cells))


def _verdicts(world: World, runs: int, seed: int, *, sensitivity: float | None = None) -> list[float]:
    """Shares of leak, of leak by counts and by t50, of below tolerance, and of inconclusive."""
    found = list(answers(draw(world, runs, seed), sensitivity=sensitivity))
    shares = [[answer.verdict == LEAK for answer in found]]
    shares += [[kind in answer.kinds for answer in found] for kind in (REPRODUCED, MEMORISED)]
    shares += [[answer.verdict == verdict for answer in found] for verdict in (BELOW, INCONCLUSIVE)]
    return [float(np.mean(share)) for share in shares]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="How often the verdict is right, simulated without networks.")
    parser.add_argument("--runs", type=int, default=1000, help="simulated audits of each row")
    parser.add_argument("--seed", type=int, default=0)
    runs, seed = (vars(parser.parse_args())[name] for name in ("runs", "seed"))
    world = World(DESIGNS[0])
    n, c = world.looks[-1], SETTINGS
    print(f"{runs:,} simulated audits a row, {n:,} samples each; K members, H controls with chains, H' count controls;")
    print(f"tolerance 1/{world.num_train}; sensitivity {world.sensitivity}, its limit as measured.\n")
    print(f"Nothing memorised; levels: counts {c.count_level:g}, t50 {c.t50_level:g}, leak {c.level:g}.\n")
    _head("K, H, H'", "false hits", "t50", "leak", "by counts", "by t50", "below tolerance", "inconclusive")
    for design in DESIGNS:
        for heads, t50 in NULLS:
            shares = _verdicts(World(design, heads, t50), runs, seed)
            _row(", ".join(map(str, design)), HEADS[heads], t50, *shares)
    print(f"\nEvery member is reproduced at a rate r; {HEADS['clean']}; t50 tells nothing.\n")
    _head("K, H, H'", "r", "leak", "by counts", "below tolerance", "inconclusive")
    for design in DESIGNS:
        for inverse in (100, 500, 2000):
            shares = _verdicts(World(design, "clean", rate=1 / inverse), runs, seed)
            _row(", ".join(map(str, design)), f"1/{inverse}", *shares[:2], *shares[3:])
    print("\nEvery member is reproduced at exactly the tolerance of 1/1000; 50,000 samples; sensitivity 0.9.\n")
    _head("K, H, H'", "false hits", "limit of the sensitivity", "leak", "below tolerance", "inconclusive")
    for design in DESIGNS:
        for heads in ("clean", "bad"):
            at = World(design, heads, rate=1e-3, sensitivity=0.9, looks=(50_000,), num_train=1000)
            for limit in (None, 0.9) if heads == "bad" else (None,):
                shares = _verdicts(at, runs, seed, sensitivity=limit)
                said = f"{limit:g}, the truth" if limit else "as measured"
                _row(", ".join(map(str, design)), HEADS[heads], said, shares[0], *shares[3:])
    print(f"\nThe test of counts before and now, K = 1, nominal level 0.01; {HEADS['one']}.\n")
    _head("H'", "former leak test", "rank of the count")
    for controls in (9, 19, 49, 99):
        draws = draw(World((1, 1, controls), "one"), 10 * runs, seed)
        _row(controls, float(np.mean(old_leak_p(draws) <= 0.01)), float(kinds(draws)[:, 0].mean()))
    print("\nVerdicts before and now on a member with r = 1/500, N = 24; all heads at 1e-5; t50 tells nothing.\n")
    _head("K, H, H'", "which", "leak", "none found / below tolerance", "inconclusive")
    for design in DESIGNS[:2]:
        at = World(design, "clean", rate=1 / 500, num_train=24)
        before = old_answers(draw(at, runs, seed))
        shares = _verdicts(at, runs, seed)
        old = [float(np.mean([each == name for each in before])) for name in (LEAK, "none found", INCONCLUSIVE)]
        _row(", ".join(map(str, design)), "before", *old)
        _row(", ".join(map(str, design)), "now", shares[0], *shares[3:])


if __name__ == "__main__":
    main()
