"""Audits of any JAX score model from Python, with no files: what the stages of the command line run, as functions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..core.environment import own_settings
from ..core.errors import check, whole_number
from ..core.metrics import MetricsLog
from ..core.types import DetectFn, Key
from ..diffusion.sampling import SamplerSettings, make_grid, make_sampler
from ..diffusion.sde import Process
from ..engine.chains import Engine, EngineSettings, make_engine
from ..engine.resume import remove_saved
from ..engine.work import make_work
from .count import CountSettings, count
from .search import count_returns
from .strategies import spaced_levels
from .tally import CountResult

Given = ParamSpec("Given")
Found = TypeVar("Found")


class ReturnCurves(NamedTuple):
    """How many chains from each target at each level came back as it."""

    t: np.ndarray  # (levels,) diffusion times, increasing
    num_chains: np.ndarray  # (targets, levels) that were run
    num_detected: np.ndarray  # (targets, levels) both scores above the threshold
    num_fingerprint: np.ndarray  # (targets, levels)
    num_identity: np.ndarray  # (targets, levels)
    evaluations: int  # of the score, that chains needed
    executed: int  # that were spent


def _in_own_settings(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """The function with JAX set as for every audit, whatever a notebook has set."""

    @functools.wraps(function)
    def run(*args: Given.args, **options: Given.kwargs) -> Found:
        with own_settings():
            return function(*args, **options)

    return run


def _engine(
    score_fn: Callable[..., Any],
    sde: Process,
    targets: np.ndarray,
    *,
    key: Key,
    params: Any,
    threshold: float,
    num_chains: int,
    sampler: SamplerSettings | None,
    engine: EngineSettings | None,
) -> Engine:
    """Engine of the model's chains, with no more slots than there are of these; refuses what it cannot run."""
    sampler, engine = sampler or SamplerSettings(), engine or EngineSettings()
    check(
        isinstance(threshold, float | int | np.number) and bool(0 <= threshold < 1),
        "threshold",
        got=repr(threshold),
        expected="a number from 0 to below 1, which scores must exceed",
        fix="use 0.5",
    )
    check(
        isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0,
        "key",
        got=f"{type(key).__name__} {getattr(key, 'dtype', '')} {np.shape(key) or ''}".strip(),
        expected="a typed key",
        fix="make it with jax.random.key(seed)",
    )
    check(
        np.ndim(targets) == 4 and len(targets) > 0,
        "targets",
        got=f"shape {np.shape(targets)}",
        expected="(k, h, w, c) with k of at least 1",
        fix="stack images of the model's size, channels last",
    )
    shape, grid = np.shape(targets)[1:], make_grid(sampler, sde)

    def bind(params: Any) -> Callable[..., Any]:
        return score_fn if params is None else lambda x, t: score_fn(params, x, t)

    x, t = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    found = jax.tree.leaves(jax.eval_shape(lambda params, x, t: bind(params)(x, t), params, x, t))
    check(
        [(leaf.shape, leaf.dtype) for leaf in found] == [(shape, jnp.float32)],
        "score_fn",
        got=", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in found) or "nothing",
        expected=f"float32{list(shape)}, the score at one image and one time",
        fix="return grad_x log p_t(x) without a batch axis",
    )
    engine = dataclasses.replace(engine, slots=min(engine.slots, -(-num_chains // jax.local_device_count())))
    return make_engine(lambda params: make_sampler(sampler, sde, grid, bind(params)), grid, shape, engine)


@_in_own_settings
def audit_search(
    score_fn: Callable[..., Any],
    sde: Process,
    detect: DetectFn,
    targets: np.ndarray,
    *,
    key: Key,
    params: Any = None,
    levels: Sequence[int] | None = None,
    num_chains: int = 16,
    threshold: float = 0.5,
    sampler: SamplerSettings | None = None,
    engine: EngineSettings | None = None,
    path: Path | None = None,
    log: MetricsLog | None = None,
) -> ReturnCurves:
    """Curves q_M(t) of any JAX score model (paper, Alg. 1): noise each target to t, denoise, detect.

    Args:
      score_fn: `score_fn(x, t)`, the score at one image (h, w, c) and one time; with `params` it is called as
        `score_fn(params, x, t)`, which keeps weights out of the compiled program.
      sde: the process that the model was trained for.
      detect: a jitted function from images (n, h, w, c) to scores `(fingerprint, identity)` in [0, 1] of shapes (n,)
        and (n, k); one that knows no fingerprint returns ones for it.
      targets: (k, h, w, c) float32 in model range [-1, 1].
      key: root of every draw.
      params: pytree of the model's weights; None: `score_fn` has them.
      levels: of the sampler's grid, in 1..N, strictly increasing; None: 20 of them, evenly spaced.
      num_chains: M, chains from each target at each level.
      threshold: score above which both must be, in [0, 1).
      sampler: None: Euler-Maruyama with 1000 levels, the paper's.
      engine: slots and the like; None: the defaults. There are never more slots than chains.
      path: where an interrupted search is kept, taken up by the same call, and removed by one that ends; None: nowhere.
      log: of the progress; None: none.

    Raises:
      RequestError: if an argument is not as it must be; before anything is computed.
      StageError: if a chain or its score becomes non-finite; the message names it.
    """
    whole_number("num_chains", num_chains)
    top = (sampler or SamplerSettings()).num_levels
    level = spaced_levels(top, min(20, top)) if levels is None else np.asarray(levels)
    check(
        level.ndim == 1
        and level.size > 0
        and np.issubdtype(level.dtype, np.integer)
        and bool(np.all(np.diff(level, prepend=0) > 0))
        and level[-1] <= top,
        "levels",
        got=np.ravel(level)[:8].tolist(),
        expected=f"strictly increasing integers in 1..{top}",
        fix="sort them, and take levels of the sampler's own grid",
    )
    made = _engine(
        score_fn,
        sde,
        targets,
        key=key,
        params=params,
        threshold=threshold,
        num_chains=math.prod((*np.shape(targets)[:1], len(level), int(num_chains))),
        sampler=sampler,
        engine=engine,
    )
    work = make_work(np.arange(len(targets))[:, None], level, num_chains)
    found, _ = count_returns(
        made, params, np.asarray(targets), detect, work, threshold=threshold, key=key, path=path, log=log
    )
    remove_saved(path)
    # The rows are sorted by target and level, and all have chains.
    shape = len(targets), len(level)
    return ReturnCurves(
        made.grid.t[level],
        found.num_chains.reshape(shape),
        found.num_detected.reshape(shape),
        found.num_fingerprint.reshape(shape),
        found.num_identity.reshape(shape),
        found.evaluations,
        found.executed,
    )


@_in_own_settings
def audit_count(
    score_fn: Callable[..., Any],
    sde: Process,
    detect: DetectFn,
    targets: np.ndarray,
    *,
    key: Key,
    num_samples: int,
    num_members: int,
    params: Any = None,
    threshold: float = 0.5,
    sampler: SamplerSettings | None = None,
    engine: EngineSettings | None = None,
    path: Path | None = None,
    log: MetricsLog | None = None,
) -> CountResult:
    """How many of `num_samples` plain samples of any JAX score model are a target: |q| of n.

    Args:
      score_fn, sde, detect, targets, key, params, threshold, sampler, engine, path, log: as of `audit_search`.
      num_samples: n.
      num_members: the first so many targets were trained on, the others are held out.

    Raises:
      RequestError, StageError: as `audit_search`.
    """
    whole_number("num_samples", num_samples)
    made = _engine(
        score_fn,
        sde,
        targets,
        key=key,
        params=params,
        threshold=threshold,
        num_chains=int(num_samples),
        sampler=sampler,
        engine=engine,
    )
    whole_number("num_members", num_members, most=len(targets))
    found, _ = count(
        made,
        params,
        np.asarray(targets),
        detect,
        CountSettings(num_samples=num_samples),
        num_members=num_members,
        threshold=threshold,
        key=key,
        path=path,
        log=log,
    )
    remove_saved(path)
    return found
