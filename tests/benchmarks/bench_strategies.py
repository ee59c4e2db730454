"""What each strategy of the search finds on a trained model, and what it spends.

    python -m tests.benchmarks.bench_strategies --workdir=runs/phantom --config=configs/phantom.py

The same model, detectors, grid and M for all, as a Markdown table with 95 % intervals; the stages `score`,
`classifiers` and `count` of the run must be done. Also `pytest -m bench tests/benchmarks/bench_strategies.py`.
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
from fpjax.diffusion.sampling import make_grid, make_sampler
from fpjax.engine.chains import make_engine
from fpjax.run.config import make_config
from fpjax.run.job import Job
from fpjax.run.stages import open_job
from fpjax.studies.search import SearchSettings, search
from fpjax.studies.strategies import CONFIRM, CURVE, STRATEGIES


def summary(result, grid, *, floor: float) -> dict:
    """t', t50 and t'_alpha of the first member, with intervals, as `audit` takes them."""

    def curve(least: int) -> tuple:
        rows = (result.target == 0) & (result.phase >= least)
        levels = np.unique(result.level[rows])
        pooled = (
            np.asarray([column[rows & (result.level == level)].sum() for level in levels])
            for column in (result.num_detected, result.num_chains)
        )
        return grid.t[levels].astype(float), *pooled

    mine = curve(CURVE)
    fresh = curve(CONFIRM) if (result.phase == CONFIRM).any() else mine
    low, high = stats.t50_interval(*mine, seed=0)
    alpha = stats.t_prime_alpha_range(*fresh, floor=floor)
    return {
        "t'": f"{stats.t_prime(*mine[:2]):.3f}",
        "t50": f"{stats.t50(*mine):.3f} ({low:.3f} to {high:.3f})",
        "t'_alpha": f"{stats.t_prime_alpha(*fresh, floor=floor):.3f} ({alpha.lower:.3f} to {alpha.upper:.3f})",
    }


def table(job: Job, *, levels: int, chains: int, few: int) -> str:
    """Markdown: a line for each strategy."""
    sampler = dataclasses.replace(job.config.sampler, num_levels=levels)
    grid = make_grid(sampler, job.process)
    engine = make_engine(
        lambda params: make_sampler(sampler, job.process, grid, job.make_score(params)),
        grid,
        job.image_shape,
        job.config.engine,
    )
    floor = 1 / len(job.planted.train)
    settings = SearchSettings(
        member_levels=levels,
        member_chains=chains,
        coarse_levels=few,
        fine_levels=few,
        confirm_chains=chains,
        rank_levels=1,
        rank_chains=1,
    )
    lines = [
        f"{sampler.label}, {levels} levels, M = {chains}, {few} levels a look; floor {floor:.3g}; member 0",
        "",
        "| strategy | evaluations | of the exhaustive | s | t' | t50 | t'_alpha |",
        "|---|---|---|---|---|---|---|",
    ]
    most = 0
    # The first run compiles.
    for name in ("random", *STRATEGIES):
        count = levels // 20 if name == "random" else levels
        asked = dataclasses.replace(settings, strategy=name, member_levels=count)
        started = time.monotonic()
        result, _ = search(
            engine,
            job.score_params,
            job.targets,
            job.detector.detect_fn,
            asked,
            num_members=1,
            threshold=job.config.classifiers.threshold,
            key=jax.random.key(0),
        )
        seconds, most = time.monotonic() - started, max(most, result.evaluations)
        if name != "random" or len(lines) > 4:
            found = summary(result, grid, floor=floor)
            cells = [name, f"{result.evaluations:,}", f"1/{most / result.evaluations:.0f}", f"{seconds:.1f}"]
            lines.append("| " + " | ".join([*cells, found["t'"], found["t50"], found["t'_alpha"]]) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


@pytest.mark.bench
def test_strategies_on_the_smoke_run(tmp_path):
    from fpjax.configs import smoke
    from fpjax.run import pipeline

    config = smoke.get_config()
    pipeline.run_audit(config, workdir=str(tmp_path / "run"), stages=["data", "classifiers", "score"])
    text = table(open_job(make_config(config), tmp_path / "run"), levels=40, chains=4, few=4)
    assert text.count("\n") == 3 + len(STRATEGIES)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/phantom.py"))
    parser.add_argument("--levels", type=int, default=400)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--few", type=int, default=8, help="levels of each look")
    flags = parser.parse_args()
    job = open_job(make_config(runpy.run_path(str(flags.config))["get_config"]()), flags.workdir)
    print(table(job, levels=flags.levels, chains=flags.chains, few=flags.few))


if __name__ == "__main__":
    main()
