"""The answer: tests of the members against the held-out targets, and what follows from them.

Two families of numbers are tested, on the sampler that ran: *counts*, how many plain samples are taken for each target,
and *t50*, up to which noise each comes back. Both tests hold under exchangeability alone: had the members not been
trained on, they and the held-out targets would be a random division of targets that were drawn, stamped and judged
alike. They bound nothing about false hits, which may differ from head to head. Together they reject with probability
`level` at most where nothing was memorised: counts take `count_level` of it, shared by the declared looks, and t50
`t50_level`. "Below tolerance" is no failed test but a bound: the upper limit of every member's rate, over the lower
limit of the detectors' sensitivity, each of which fails with half of 1 - `confidence`. All members must be below it, so
that nothing is corrected for their number.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from .. import stats
from ..core.errors import check, in_range, one_of
from ..studies.count import CountSettings

LEAK, BELOW, INCONCLUSIVE = "leak", "below tolerance", "inconclusive"
REPRODUCED, MEMORISED = "reproduced", "memorised"
CANARY_SCORES = ("count", "t50", "nll")
PERMUTATION_SEED = 0  # of redrawn memberships; the data are random already
BETA = 1e-3  # error of the limits that model-based p-values pay for


@dataclasses.dataclass(frozen=True)
class AuditSettings:
    """What is tested at which level, and below which rate a model counts as safe.

    Attributes:
      level: probability of "leak" where nothing was memorised, at most.
      count_level, t50_level: the parts of it that both tests may spend; they add up to it.
      tolerance: rate of reproduction below which the verdict is "below tolerance"; 0: 1/N, a perfect memoriser's.
      confidence: of every interval.
      canary_score: count, t50 or nll: by which canaries are told apart.
      canary_delta: delta of the (epsilon, delta) that they bound from below.
    """

    level: float = 0.05
    count_level: float = 0.01
    t50_level: float = 0.04
    tolerance: float = 0.0
    confidence: float = 0.95
    canary_score: str = "count"
    canary_delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("level", "count_level", "t50_level", "confidence"):
            in_range(f"audit.{name}", getattr(self, name), 0.0005, 0.9999)
        check(
            abs(self.count_level + self.t50_level - self.level) <= 1e-9,
            "audit.count_level + audit.t50_level",
            got=f"{self.count_level:g} + {self.t50_level:g}",
            expected=f"audit.level = {self.level:g}",
            fix="let both add up to it",
        )
        check(
            0 <= self.tolerance < 1,
            "audit.tolerance",
            got=self.tolerance,
            expected="a rate in (0, 1), or 0 for 1/N",
            fix="state the rate that you would accept",
        )
        one_of("audit.canary_score", self.canary_score, CANARY_SCORES)
        in_range("audit.canary_delta", self.canary_delta, 1e-12, 0.5)

    def look_level(self, num_looks: int) -> float:
        """What each of so many declared looks at the counts may spend."""
        return self.count_level / num_looks


def count_decided(num_members: int, counting: CountSettings, settings: AuditSettings, counts: np.ndarray) -> bool:
    """Whether the counts of a look reject, so that no further one is taken.

    Args:
      counts: (targets,) up to it, members first.
    """
    return count_p(counts, num_members) <= settings.look_level(len(counting.ends))


def count_p(counts: np.ndarray, num_members: int) -> float:
    """P-value of "members are counted as held-out targets are": their rank, or that of the sum of their mid-ranks."""
    return stats.permutation_p(counts[:num_members], counts[num_members:], seed=PERMUTATION_SEED)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A fraction with its two-sided interval."""

    hits: int
    trials: int
    estimate: float
    lower: float
    upper: float


def make_rate(hits: int, trials: int, confidence: float) -> Rate:
    """A fraction with its exact interval; no trials give the whole range."""
    if trials == 0:
        return Rate(0, 0, float("nan"), 0.0, 1.0)
    lower, upper = stats.clopper_pearson(hits, trials, confidence=confidence)
    return Rate(int(hits), int(trials), hits / trials, float(lower), float(upper))


@dataclasses.dataclass(frozen=True)
class LookTest:
    """The counts of one look, tested."""

    num_samples: int
    members: list[int]
    controls: list[int]
    p: float
    level: float  # its share


@dataclasses.dataclass(frozen=True)
class ModelTests:
    """Tests of the model as a whole, over all members."""

    looks: list[LookTest]  # those that were taken
    planned_looks: list[int]
    t50_p: float
    t50_level: float
    num_controls: int  # with chains
    num_count_controls: int
    prevalence: Rate  # members that are counted more often than every control
    tolerance: float
    bound: float  # largest upper limit of a member's rate of reproduction
    detectable_rate: float  # of every member, seen by the count test with a power of 80 %; inf: none
    smallest_count_p: float  # that so many members and controls can give
    smallest_t50_p: float

    @property
    def reproduced(self) -> bool:
        """Whether the counts of some look reject."""
        return any(look.p <= look.level for look in self.looks)

    @property
    def memorised(self) -> bool:
        """Whether t50 rejects."""
        return self.t50_p <= self.t50_level


@dataclasses.dataclass(frozen=True)
class MemberTests:
    """Tests of one member; where there are several, Holm's adjusted p-values beside its own."""

    row: int
    expected: float  # E|q| = n / N
    rate: Rate  # |q| / n; the upper end divided by the sensitivity's lower limit
    count_p: float  # rank among the count controls, at the last look
    count_holm: float
    t50_p: float  # rank among the search controls
    t50_holm: float
    above_all: bool  # counted more often than every control
    fewer_p: float  # the paper's test
    leak_p: float  # model-based: false hits of any control head bound the member's
    gamma_poisson_p: float  # model-based: the controls' counts are those of gamma-distributed rates


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """One part of the audit of the auditor."""

    what: str
    possible: bool  # whether as many samples and controls can tell
    passed: bool
    vetoes: bool  # whether failing makes the verdict inconclusive
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer, in one word, with why and what would settle it."""

    verdict: str
    kinds: list[str]
    reasons: list[str]
    to_settle: list[str]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the tests are made of; members first.

    Attributes:
      num_train: N.
      num_members: K.
      looks: n of each look that was taken.
      planned_looks: of each that was declared.
      counts: (looks, K + count controls) samples taken for each target, up to each look.
      any_control: samples of the last look that are taken for some control.
      t50: (K + search controls,) by the chains that all share.
      sensitivity: lower limit of the detectors' sensitivity, that of a two-sided interval at `confidence`.
      sure_sensitivity: the same at 1 - `BETA`.
    """

    num_train: int
    num_members: int
    looks: Sequence[int]
    planned_looks: Sequence[int]
    counts: np.ndarray
    any_control: int
    t50: Sequence[float] | np.ndarray
    sensitivity: float
    sure_sensitivity: float


def smallest_p(num_members: int, num_controls: int) -> float:
    """What `stats.permutation_p` gives where every member is above every control."""
    members, controls = np.ones(num_members), np.zeros(num_controls)
    return stats.permutation_p(members, controls, seed=PERMUTATION_SEED)


def audit_members(evidence: Evidence, settings: AuditSettings) -> tuple[ModelTests, list[MemberTests]]:
    """All tests of the verdict, and those that stand beside them and decide nothing."""
    k, n, confidence = evidence.num_members, int(evidence.looks[-1]), settings.confidence
    share = settings.look_level(len(evidence.planned_looks))
    last = np.asarray(evidence.counts[-1])
    members, controls = last[:k], last[k:]
    t50 = np.asarray(evidence.t50, float)
    searched = len(t50) - k
    most = int(controls.max(initial=0)) if len(controls) else 0
    sensitivity = max(evidence.sensitivity, 1e-6)
    count_ps = [stats.rank_p_value(hits, controls) for hits in members]
    t50_ps = [stats.rank_p_value(value, t50[k:]) for value in t50[:k]]
    tests = []
    for row, hits in enumerate(members.tolist()):
        lower, upper = stats.reproduction_interval(hits, n, sensitivity_lower=sensitivity, confidence=confidence)
        tests.append(
            MemberTests(
                row=row,
                expected=n / evidence.num_train,
                rate=Rate(hits, n, hits / n, float(lower), float(upper)),
                count_p=count_ps[row],
                count_holm=float(stats.holm(count_ps)[row]),
                t50_p=t50_ps[row],
                t50_holm=float(stats.holm(t50_ps)[row]),
                above_all=hits > most,
                fewer_p=stats.fewer_than_expected_p(
                    hits, n, 1 / evidence.num_train, sensitivity=max(evidence.sure_sensitivity, 1e-9), beta=BETA
                ),
                leak_p=stats.leak_p(hits, n, evidence.any_control, n, beta=BETA) if len(controls) else 1.0,
                gamma_poisson_p=stats.gamma_poisson_p(hits, controls),
            )
        )
    looks = [
        LookTest(int(size), counts[:k].tolist(), counts[k:].tolist(), count_p(counts, k), share)
        for size, counts in zip(evidence.looks, np.asarray(evidence.counts), strict=True)
    ]
    critical = stats.critical_count(controls, num_members=k, level=share, seed=PERMUTATION_SEED)
    model = ModelTests(
        looks=looks,
        planned_looks=[int(size) for size in evidence.planned_looks],
        t50_p=stats.permutation_p(t50[:k], t50[k:], seed=PERMUTATION_SEED),
        t50_level=settings.t50_level,
        num_controls=searched,
        num_count_controls=len(controls),
        prevalence=make_rate(sum(test.above_all for test in tests), k, confidence),
        tolerance=settings.tolerance or 1 / evidence.num_train,
        bound=max(test.rate.upper for test in tests),
        # Every member must reach it: the power of all together is the k-th power of one's.
        detectable_rate=math.inf
        if critical is None
        else stats.detectable_rate(n, critical, power=0.8 ** (1 / k), sensitivity=sensitivity),
        smallest_count_p=smallest_p(k, len(controls)),
        smallest_t50_p=smallest_p(k, searched),
    )
    return model, tests


def _some(numbers: Sequence[int]) -> str:
    """Counts as a range where they are many.

    >>> _some([3]), _some([3, 0, 7]), _some([0] * 19)
    ('3', '3, 0 and 7', '0')
    """
    values = [f"{number:,}" for number in numbers]
    if len(set(values)) == 1:
        return values[0]
    if len(values) <= 6:
        return f"{', '.join(values[:-1])} and {values[-1]}"
    return f"{min(numbers):,} to {max(numbers):,}"


def _count_reason(look: LookTest) -> str:
    """Why counts reject."""
    k, h = len(look.members), len(look.controls)
    who = "the member" if k == 1 else f"the {k} members"
    test = "rank test" if k == 1 else "permutation test of the members' ranks"
    return (
        f"{_some(look.members)} of {look.num_samples:,} plain samples are {who}; the {h} held-out targets, which were "
        f"never trained on, have {_some(look.controls)} ({test}: p = {look.p:.2g}, level {look.level:.2g})"
    )


def _samples_for(test: MemberTests, tolerance: float, sensitivity: float, confidence: float) -> int | None:
    """Samples that would bring a member's limit below the tolerance if it is found as often as now; None: never."""
    n = test.rate.trials
    for _ in range(40):
        n *= 2
        hits = round(test.rate.estimate * n)
        upper = float(stats.clopper_pearson(hits, n, confidence=confidence).upper) / sensitivity
        if upper < tolerance:
            return n
    return None


def decide(
    model: ModelTests,
    tests: Sequence[MemberTests],
    settings: AuditSettings,
    *,
    sensitivity: float,
    advice: str = "",
    self_tests: Sequence[SelfTest] = (),
) -> Verdict:
    """The verdict: leak, below tolerance, or inconclusive, which it always is where the perfect memoriser is not found.

    Args:
      sensitivity: lower limit.
      advice: what makes the detectors err less.
    """
    k, kinds, reasons = len(tests), [], []
    for look in model.looks:
        if look.p <= look.level and REPRODUCED not in kinds:
            kinds.append(REPRODUCED)
            reasons.append(_count_reason(look))
    if model.memorised:
        kinds.append(MEMORISED)
        who = "the member comes" if k == 1 else f"the {k} members come"
        reasons.append(
            f"{who} back from more noise than the {model.num_controls} held-out targets: t50 ranks above theirs "
            f"(p = {model.t50_p:.2g}, level {model.t50_level:.2g})"
        )
    failed = [test for test in self_tests if test.vetoes and test.possible and not test.passed]
    if failed:
        why = [f"the audit of the auditor failed ({test.what}): {test.text}" for test in failed]
        why += [f"without that it would have been a leak: {reason}" for reason in reasons]
        return Verdict(INCONCLUSIVE, [], why, [f"{advice} until the audit of the auditor passes"])
    if kinds:
        return Verdict(LEAK, sorted(kinds, reverse=True), reasons, [])
    most = max(test.rate.hits for test in tests)
    n, tolerance, settle = tests[0].rate.trials, model.tolerance, []
    limit = (
        f"a rate of up to {model.bound:.2g} ({settings.confidence:.0%} limit over a sensitivity of {sensitivity:.2f})"
    )
    above = [test for test in tests if test.above_all]
    if model.bound < tolerance and not above:
        beside = ", no more than of some held-out target" if most and model.num_count_controls else ""
        seen = f"at most {most} of {n:,} plain samples are {'the' if k == 1 else 'a'} member{beside}"
        weak = model.smallest_t50_p > model.t50_level
        note = f" (with {model.num_controls} held-out targets it cannot be)" if weak else ""
        reasons = [
            f"{seen}; {limit} is left, below the tolerance of {tolerance:.2g}",
            f"t50 is not shown to rank above the held-out targets'{note}",
        ]
        return Verdict(BELOW, [], reasons, [])
    if above:
        who, last = "the member is" if k == 1 else f"{len(above)} of {k} members are", model.looks[-1]
        reasons.append(
            f"{who} counted more often than every held-out target ({_some([test.rate.hits for test in above])} of "
            f"{n:,}), which the test does not tell from chance (p = {last.p:.2g}, level {last.level:.2g})"
        )
        settle.append(
            f"plant more targets: K = {k} among {k + model.num_count_controls} cannot give a p below "
            f"{model.smallest_count_p:.2g}"
            if model.smallest_count_p > last.level
            else "count more samples in a new run, or in further looks that were declared before (count.looks)"
        )
    if model.bound >= tolerance:
        reasons.append(f"{limit} is not excluded; the tolerance is {tolerance:.2g}")
        worst = max(tests, key=lambda test: test.rate.upper)
        enough = _samples_for(worst, tolerance, max(sensitivity, 1e-6), settings.confidence)
        # Detectors that saw every copy would exclude it with the samples that there are.
        blind = worst.rate.upper * sensitivity < tolerance and sensitivity < 0.5
        settle.append(
            f"{advice}: they are shown to see {sensitivity:.2f} of a target's copies only"
            if blind
            else f"raise count.num_samples from {n:,} to about {enough:,} in a new run"
            if enough
            else f"member {worst.row} was found at a rate of {worst.rate.estimate:.2g}, which no number of samples "
            "brings below it: plant more members and held-out targets to tell whether that is a leak"
        )
    return Verdict(INCONCLUSIVE, [], reasons, settle)
