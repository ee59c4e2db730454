"""The upper Darboux sum of the paper's eq. 8-9, which the paper derives and calls infeasible, in log space.

    sum over cells [t_i, t_i+1] up to t' of (sigma_i+1 - sigma_i) * sup over t in the cell of E[p(x'_t)]

x'_t is the end of a chain from the target noised to t, p the density of the probability-flow ODE, sigma(t) the
standard deviation of x_t given x_0. The sup is taken over the fine levels of a cell, both ends among them; at level 0
x' is the target itself. The sum adds densities, which are not probabilities and grow without limit as t_min falls for
a model that memorises: it bounds no probability, and is reported beside its t_min for comparison between models alone.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..core.errors import whole
from ..core.metrics import MetricsLog
from ..core.types import Key
from ..engine.chains import Block, Engine
from ..engine.densities import DensityEngine, log_likelihoods
from ..engine.resume import run_saved
from ..engine.work import Work, make_work
from .search import SearchResult


@dataclasses.dataclass(frozen=True)
class BoundSettings:
    """Cells of the sum and the chains in them.

    Attributes:
      num_cells: cells from 0 to the highest level from which a member ever came back.
      levels_per_cell: fine levels in each, over which the sup is taken.
      num_chains: chains from each member at each of them; 0: no sum.
      repeats: densities of each chain's end, each with probes of its own, whose mean is taken.
    """

    num_cells: int = 10
    levels_per_cell: int = 20
    num_chains: int = 8
    repeats: int = 2

    def __post_init__(self) -> None:
        whole("bound", self, names=("num_cells", "levels_per_cell"), most=10**4)
        whole("bound", self, names=("num_chains",), least=0, most=10**4)
        whole("bound", self, names=("repeats",), most=10**3)


@dataclasses.dataclass(frozen=True)
class BoundResult:
    """Result of the stage bound: log E[p(x')] by member and fine level, one row for each pair; none without a sum."""

    t_min: float  # where the densities' ODE ends
    target: Int[np.ndarray, " rows"]
    level: Int[np.ndarray, " rows"]
    log_mean: Float[np.ndarray, " rows"]  # nats; nan where no density converged
    effective: Float[np.ndarray, " rows"]  # effective sample size of the mean, in [1, chains]
    num_chains: Int[np.ndarray, " rows"]
    not_converged: Int[np.ndarray, " rows"]
    nats: list[list[float | None]]  # of each chain's end
    edges: list[list[int]]  # levels between the cells, for each member
    trace_error: float | None  # root mean square over all ends of the standard error of `nats`; None: nothing tells it
    nfe: int


def no_bound(t_min: float) -> BoundResult:
    """Where no sum was asked for."""
    none, nothing = np.zeros(0, int), np.zeros(0)
    return BoundResult(t_min, none, none, nothing, nothing, none, none, [], [], None, 0)


def fine_levels(top: int, settings: BoundSettings) -> tuple[np.ndarray, np.ndarray]:
    """Fine levels from 0 to `top`, and those of them between which the cells lie.

    >>> fine_levels(8, BoundSettings(num_cells=2, levels_per_cell=2))
    (array([0, 2, 4, 6, 8]), array([0, 4, 8]))
    """
    edges = np.unique(np.round(np.linspace(0, top, settings.num_cells + 1)).astype(int))
    inner = np.round(np.linspace(0, top, settings.num_cells * settings.levels_per_cell + 1)).astype(int)
    return np.union1d(edges, inner), edges


def log_mean_exp(values: np.ndarray) -> tuple[float, float]:
    """Logarithm of the mean of exp(values), and its effective sample size (sum p)^2 / sum p^2; nan without values.

    >>> log_mean_exp(np.array([1000.0, 1000.0]))
    (1000.0, 2.0)
    """
    if not len(values):
        return np.nan, np.nan
    weights = np.exp(values - np.max(values))
    return float(np.max(values) + np.log(np.mean(weights))), float(np.sum(weights) ** 2 / np.sum(weights**2))


class Cell(NamedTuple):
    """One term of the sum."""

    low: int  # levels
    high: int
    at: int  # level of the sup
    log_sup: float
    log_term: float


def darboux_cells(
    std: np.ndarray, edges: np.ndarray, levels: np.ndarray, log_mean: np.ndarray, *, end: int
) -> list[Cell]:
    """Terms of the sum up to level `end`, which cuts the last cell.

    Args:
      std: (N+1,) sigma by level.
      edges: levels between the cells, from 0 on.
      levels: fine levels, the edges among them.
      log_mean: log E[p(x')] at each; where it is nan no sup is known.
    """
    cells = []
    for low, high in zip(edges[:-1], np.minimum(edges[1:], end), strict=True):
        if low >= high:
            break
        inside = np.flatnonzero((levels >= low) & (levels <= high) & ~np.isnan(log_mean))
        if not len(inside):
            cells.append(Cell(int(low), int(high), int(low), np.nan, np.nan))
            continue
        best = inside[np.argmax(log_mean[inside])]
        sup = float(log_mean[best])
        width = float(std[high]) - float(std[low])
        cells.append(Cell(int(low), int(high), int(levels[best]), sup, sup + float(np.log(width))))
    return cells


def log_darboux_sum(cells: list[Cell]) -> float:
    """Logarithm of the sum; -inf without cells, nan where a cell's sup is not known."""
    terms = [cell.log_term for cell in cells]
    if not terms:
        return -np.inf
    return np.nan if np.isnan(terms).any() else float(np.logaddexp.reduce(terms))


def top_levels(search: SearchResult) -> list[int]:
    """The highest level from which each member came back, 0 if from none; t' and t'_alpha lie at or below it."""
    returned = search.num_detected > 0
    return [int(search.level[(search.target == row) & returned].max(initial=0)) for row in range(search.num_members)]


def bound_work(settings: BoundSettings, tops: list[int]) -> Work | None:
    """Chains of all members at their fine levels above 0; None if there are none."""
    levels = [fine_levels(top, settings)[0][1:] for top in tops]
    target = np.repeat(np.arange(len(tops)), [len(each) for each in levels])
    if not len(target) or not settings.num_chains:
        return None
    return make_work(target, np.concatenate(levels), settings.num_chains)


class Ends(NamedTuple):
    """The images whose densities are averaged: each member itself, at level 0, then the ends of its chains."""

    target: np.ndarray
    level: np.ndarray
    images: np.ndarray  # (n, h, w, c) float32


def chain_ends(
    engine: Engine,
    params: Any,
    targets: np.ndarray,
    tops: list[int],
    settings: BoundSettings,
    *,
    key: Key,
    path: Path,
    log: MetricsLog | None,
) -> Ends:
    """Runs the chains of every member; several processes share them.

    Args:
      engine: of the sampler that was searched.
      targets: (k, h, w, c) float32 in model range, members first.
      tops: of `top_levels`.
      path: where interrupted chains are kept.
    """
    members, work = targets[: len(tops)].astype(np.float32), bound_work(settings, tops)
    rows, none = np.arange(len(members)), np.zeros(len(members), int)
    if work is None:
        return Ends(rows, none, members)
    target, level, chain = work.items(np.arange(work.num_chains))
    place = {item: i for i, item in enumerate(zip(target.tolist(), level.tolist(), chain.tolist(), strict=True))}
    tally = {"ends": np.zeros((work.num_chains, *members.shape[1:]), np.float32)}

    def consume(block: Block, tally: dict[str, np.ndarray]) -> None:
        items = zip(block.target.tolist(), block.level.tolist(), block.chain.tolist(), strict=True)
        tally["ends"][[place[item] for item in items]] = np.asarray(block.images)[block.rows]

    label = "bound (chains)"
    # The densities follow.
    run_saved(
        engine, params, members, work, key=key, tally=tally, consume=consume, path=path, log=log, label=label, keep=True
    )
    return Ends(np.concatenate([rows, target]), np.concatenate([none, level]), np.concatenate([members, tally["ends"]]))


def bound(
    density: DensityEngine,
    params: Any,
    ends: Ends,
    tops: list[int],
    settings: BoundSettings,
    *,
    key: Key,
    path: Path,
    log: MetricsLog,
) -> BoundResult:
    """Densities of the chains' ends, and their means by member and fine level.

    Args:
      density: of the model that the chains are of, with the same parameters.
      ends: of `chain_ends`, with the same tops and settings.
      path: where interrupted densities are kept.
    """
    levels = [fine_levels(top, settings) for top in tops]
    # The exact trace is the same every time.
    repeats = settings.repeats if density.settings.num_probes else 1
    found = log_likelihoods(
        density,
        params,
        ends.images,
        key=key,
        path=path,
        log=log,
        repeats=repeats,
        limit=np.inf,  # the ends of a poor model's chains may lie anywhere
        label="bound",
    )
    rows = [(row, one) for row, (fine, _) in enumerate(levels) for one in fine.tolist()]
    nats = [found["nats"][(ends.target == row) & (ends.level == one)] for row, one in rows]
    known = [values[~np.isnan(values)] for values in nats]
    means = np.asarray([log_mean_exp(values) for values in known])
    error = found["probe_error" if repeats == 1 else "repeat_error"]
    error = error[~np.isnan(error)]
    return BoundResult(
        t_min=density.settings.t_min,
        target=np.asarray([row for row, _ in rows]),
        level=np.asarray([one for _, one in rows]),
        log_mean=means[:, 0],
        effective=means[:, 1],
        num_chains=np.asarray([len(values) for values in nats]),
        not_converged=np.asarray([len(a) - len(b) for a, b in zip(nats, known, strict=True)]),
        nats=[[one if np.isfinite(one) else None for one in values.tolist()] for values in nats],
        edges=[edges.tolist() for _, edges in levels],
        trace_error=float(np.sqrt(np.mean(error**2))) if len(error) else None,
        nfe=int(found["nfe"].sum()),
    )
