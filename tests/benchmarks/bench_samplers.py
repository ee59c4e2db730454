"""What another sampler does to q_M(t) on a trained model, and what it spends.

    python -m tests.benchmarks.bench_samplers --workdir=runs/breastmnist_small --config=configs/breastmnist_small.py

Chains of the first member from the same times with the same M under every sampler, as a Markdown table; the stages
`score` and `classifiers` of the run must be done. Also `pytest -m bench tests/benchmarks/bench_samplers.py` on a run of its own.
"""

import argparse
import dataclasses
import runpy
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fpjax import stats
from fpjax.detectors.base import detect_all, joint_scores
from fpjax.diffusion.sampling import SamplerSettings, make_grid, make_sampler
from fpjax.engine.chains import make_engine, run_chains
from fpjax.engine.work import make_work
from fpjax.run.config import make_config
from fpjax.run.job import Job
from fpjax.run.stages import open_job

# The first is what the others are compared with.
ROWS = (
    SamplerSettings("euler_maruyama", 250),
    SamplerSettings("ancestral", 100),
    SamplerSettings("ancestral", 20),
    SamplerSettings("predictor_corrector", 50),
    SamplerSettings("probability_flow", 20, spacing="quadratic"),
    SamplerSettings("dpm_solver", 50, spacing="log_snr"),
    SamplerSettings("dpm_solver", 20, spacing="log_snr"),
)


def measure(job: Job, sampler: SamplerSettings, times: np.ndarray, chains: int) -> dict:
    """Detections of the first member among `chains` from the level at or below each of `times`."""
    process, grid = job.process, make_grid(sampler, job.process)
    engine = make_engine(
        lambda params: make_sampler(sampler, process, grid, job.make_score(params)),
        grid,
        job.image_shape,
        job.config.engine,
    )
    levels = np.asarray([grid.level_at(t) for t in times])
    hits, spent, seconds = np.zeros(grid.num_levels + 1, int), 0, 0.0
    # The first pass compiles; distinct levels alone are run.
    for work in (make_work(0, 1, 1), make_work(0, np.unique(levels), chains)):
        started, hits[:] = time.monotonic(), 0
        for block in run_chains(engine, job.score_params, job.targets, work, key=jax.random.key(0)):
            joint = joint_scores(*detect_all(job.detector.detect_fn, block.images, block.rows))
            np.add.at(hits, block.level, joint[:, 0] > job.config.classifiers.threshold)
            spent, seconds = block.state.num_useful, time.monotonic() - started
    found = np.unique(levels)
    t50 = stats.t50(grid.t[found].astype(float), hits[found], np.full(len(found), chains))
    return {"hits": hits[levels], "t": grid.t[levels], "t50": t50, "evaluations": spent, "seconds": seconds}


def table(job: Job, times: np.ndarray, chains: int, rows: tuple[SamplerSettings, ...] = ROWS) -> str:
    """Markdown: a line for each sampler."""
    lines = [
        f"{type(job.process).__name__}, {chains} chains from the level at or below each time; detections of member 0",
        "",
        "| sampler | levels | " + " | ".join(f"t={t:.2f}" for t in times) + " | t50 | evaluations | s |",
        "|---" * (len(times) + 5) + "|",
    ]
    for sampler in rows:
        found = measure(job, sampler, times, chains)
        cells = [f"{h}" for h in found["hits"]]
        cells += [f"{found['t50']:.3f}", f"{found['evaluations']:,}", f"{found['seconds']:.1f}"]
        lines.append(f"| {sampler.label} | {sampler.num_levels} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


@pytest.mark.bench
def test_samplers_on_the_smoke_run(tmp_path):
    from fpjax.configs import smoke
    from fpjax.run import pipeline

    pipeline.run_audit(smoke.get_config(), workdir=str(tmp_path / "run"), stages=["data", "classifiers", "score"])
    rows = tuple(dataclasses.replace(row, num_levels=10) for row in ROWS)
    print(table(open_job(make_config(smoke.get_config()), tmp_path / "run"), np.linspace(0.1, 1, 4), 4, rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/breastmnist_small.py"))
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--times", type=float, nargs="+", default=[*np.arange(1, 11) * 0.05, 0.6, 0.8, 1.0])
    flags = parser.parse_args()
    job = open_job(make_config(runpy.run_path(str(flags.config))["get_config"]()), flags.workdir)
    print(table(job, np.asarray(flags.times), flags.chains))


if __name__ == "__main__":
    main()
