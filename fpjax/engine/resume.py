"""Chains with their tally on disk every few seconds, so that a run that was interrupted ends with the same counts."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.errors import StageError
from ..core.metrics import MetricsLog
from ..core.processes import gather, num_processes, process_index
from ..core.progress import Progress
from ..core.store import tree_digest
from ..core.types import DetectFn, Key
from ..detectors.base import detect_all
from .chains import Block, Engine, EngineState, evaluations_per_step, initial_state, run_chains
from .slots import SavedSlots
from .work import Work, describe_chain


def block_scores(detect: DetectFn, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Fingerprint and identity scores of the chains of a block, (k,) and (k, targets).

    Raises:
      StageError: if a score is not a number; the message names the chain.
    """
    fingerprint, identity = detect_all(detect, block.images, block.rows)
    bad = np.flatnonzero(np.isnan(fingerprint) | np.isnan(identity).any(axis=1))
    if len(bad):
        first = describe_chain(*(int(c[bad[0]]) for c in (block.target, block.level, block.chain)))
        raise StageError(
            f"the detector's score of {first} is not a number ({len(bad)} of {len(block.rows)} chains in this block); "
            "the image is finite: look for a division by zero in the detector"
        )
    return fingerprint, identity


def _own_path(path: Path | None) -> Path | None:
    """Where this process keeps its state; those after the first beside `path`."""
    if not path or not process_index():
        return path
    return path.with_name(f"{path.stem}-process{process_index()}{path.suffix}")


def remove_saved(path: Path | None) -> None:
    """Removes what `run_saved` left at `path`, in this process."""
    if own := _own_path(path):
        own.unlink(missing_ok=True)


def add_tallies(tallies: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The sum of several processes' counts."""
    return {name: np.sum([tally[name] for tally in tallies], axis=0) for name in tallies[0]}


def run_saved(
    engine: Engine,
    params: Any,
    targets: np.ndarray,
    work: Work,
    *,
    key: Key,
    tally: dict[str, np.ndarray],
    consume: Callable[[Block, dict[str, np.ndarray]], None],
    label: str,
    path: Path | None = None,
    log: MetricsLog | None = None,
    merge: Callable[[list[dict[str, np.ndarray]]], dict[str, np.ndarray]] = add_tallies,
    counted: Any = (),
    keep: bool = False,
) -> EngineState:
    """Runs all work, block by block through `consume`, with slots and tally on disk every few seconds.

    A run that was interrupted goes on where `path` left it and ends with the same tally; a state of other parameters,
    targets, work, key, slots, grid, devices or processes is not taken up, and the run starts over. The caller removes
    `path` (`remove_saved`) once its own result is there. Strategies of several rounds give each a path of its own.

    Of several processes each runs its share and saves its own state (those after the first beside `path`); at the end
    all have the tally of all. Each process calls this with the same arguments.

    Args:
      tally: what `consume` accumulates, zeros to begin with; changed in place.
      label: stage name for progress and log.
      path: where the state is kept; None: nowhere.
      log: of the progress; None: none.
      merge: the tally of all, given one of each process.
      counted: what else the tally depends on, such as thresholds; its `repr` is part of the saved state's identity.
      keep: keep the last state too, where more work follows before there is a result.

    Returns:
      The last state, with the counts of all processes' devices.
    """
    parts = (
        work.digest(),
        jax.random.key_data(key).tolist(),
        engine.settings.slots,
        (engine.queues, engine.num_queues),
        engine.grid.t.tolist(),
        [(name, tally[name].shape) for name in sorted(tally)],
        tree_digest((params, np.asarray(targets))) if path else "",
        counted,
    )
    saved = SavedSlots(_own_path(path), hashlib.sha256(repr(parts).encode()).hexdigest())
    state = initial_state(engine, params)
    if found := saved.load(state.slots):
        slots, arrays = found
        state = EngineState(slots, *arrays["counters"])
        for name in tally:
            tally[name][...] = arrays[f"tally_{name}"]
    shares = [work.share(queue, engine.num_queues) for queue in engine.queues]
    num_chains = sum(share.num_chains for share in shares)
    evaluations = sum(share.num_steps for share in shares) * evaluations_per_step(engine, params)
    name = f"{label}, process {process_index()}" if process_index() else label
    progress = Progress(name, evaluations, "evaluations", done=state.num_useful)
    for block in run_chains(engine, params, targets, work, key=key, state=state):
        if len(block.rows):
            consume(block, tally)
        state = block.state
        if log:
            log.write(
                label,
                chains=state.num_finished,
                evaluations=state.num_useful,
                executed=state.num_executed,
                evaluations_per_s=progress.rate,
            )
        # The last state only where something is still to come, here or in other processes.
        if (keep or num_processes() > 1) if state.num_finished == num_chains else saved.due():
            tallies = {f"tally_{name}": values for name, values in tally.items()}
            saved.save(state.slots, counters=np.stack(state[1:]), **tallies)
        progress.update(state.num_useful, f"{state.num_finished:,} of {num_chains:,} chains")
    everyone = gather(tally | {"": np.stack(state[1:])})
    counters = np.concatenate([arrays.pop("") for arrays in everyone], axis=1)
    for name, values in merge(everyone).items():
        tally[name][...] = values
    return EngineState(state.slots, *counters)
