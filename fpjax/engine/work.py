"""What is to be run: chains by target, level and number, kept as groups that differ in their number alone."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import check

NO_TARGET = -1
MAX_CHAINS = 2**31 - 1  # of one piece of work: chains are numbered in int32


class Work(NamedTuple):
    """Chains to run, in groups of one target and level: int64 arrays of one entry a group, the longest chains first.

    The items are the chains of the first group by their number, then those of the next; none is ever listed.
    """

    target: np.ndarray  # row of the targets, or NO_TARGET to start from the prior
    level: np.ndarray  # reverse steps to take, in 1..N
    first: np.ndarray  # number of the group's first chain
    chains: np.ndarray  # how many chains the group has, at least 1

    @property
    def num_chains(self) -> int:
        """Chains of all groups."""
        return int(np.sum(self.chains))

    @property
    def num_steps(self) -> int:
        """Reverse steps that the work needs; each is as many evaluations as the sampler's `num_evaluations`."""
        return int(np.sum(self.level * self.chains))

    def digest(self) -> str:
        """Identity of the work, for resuming."""
        return hashlib.sha256(np.stack(self).tobytes()).hexdigest()

    def items(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Target, level and chain number of the items at `places`, each in 0..num_chains - 1."""
        ends = np.cumsum(self.chains)
        group = np.searchsorted(ends, places, side="right")
        return self.target[group], self.level[group], self.first[group] + places - ends[group] + self.chains[group]

    def share(self, queue: int, num_queues: int) -> "Work":
        """What queue q of Q owns, the items q, q + Q, ...; its chains are counted, not numbered.

        >>> make_work(0, [3, 2], 5).share(1, 4).chains.tolist()
        [1, 2]
        """
        owned = (np.cumsum(self.chains) - queue + num_queues - 1) // num_queues
        return self._replace(chains=np.diff(owned, prepend=0))


def make_work(target: Any, level: Any, chains: Any, *, first: Any = 0) -> Work:
    """Groups of chains in the order in which the engine takes them: longest first.

    >>> make_work(0, [1, 8], 16).num_chains
    32

    Args:
      target, level, chains, first: integers or integer arrays that broadcast to one shape, an entry a group: `chains`
        chains with the numbers `first`, `first` + 1, ...; groups without chains are left out.

    Raises:
      RequestError: if there are no chains, or more than int32 can number.
    """
    columns = np.broadcast_arrays(*(np.asarray(column, np.int64) for column in (target, level, first, chains)))
    return concatenate_work([Work(*(np.ravel(column) for column in columns))])


def concatenate_work(parts: list[Work]) -> Work:
    """All groups of several pieces of work, longest chains first."""
    work = Work(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    # In float64, which sums do not overflow.
    total, last = np.sum(work.chains, dtype=float), np.max(work.first + work.chains, initial=0)
    check(
        total > 0 and np.min(work.chains) >= 0 and np.min(work.first) >= 0,
        "work",
        got=f"no chains in {len(work.chains)} groups" if total == 0 else "a negative number of chains",
        expected="at least one",
        fix="ask for chains and levels",
    )
    check(
        max(total, last) <= MAX_CHAINS,
        "work",
        got=f"{max(total, last):,.0f} chains",
        expected=f"at most {MAX_CHAINS:,}, which int32 can number",
        fix="ask for fewer chains or levels, or split the work",
    )
    order = np.argsort(-work.level, kind="stable")
    order = order[work.chains[order] > 0]
    return Work(*(column[order] for column in work))


def describe_chain(target: int, level: int, chain: int) -> str:
    """A chain in words.

    >>> describe_chain(0, 9, 3), describe_chain(NO_TARGET, 20, 7)
    ('chain 3 of target 0 at level 9', 'plain sample 7')
    """
    return f"plain sample {chain}" if target == NO_TARGET else f"chain {chain} of target {target} at level {level}"
