"""Whether the verdict holds: one config's audit over seeds of data and draws, without likelihood and bound.

Run with `python -m tests.benchmarks.bench_verdict --seeds 20 --out=DIR`; `--set=score.num_steps=300` for a model that has hardly
learned; `--null` for one that has not seen the members, so that "leak" is false. Runs that are there already are taken as they are, so that a benchmark that was stopped goes on.
`--classifiers=DIR` takes the detectors of an earlier benchmark that kept its runs, whose seeds and data are the same.
`--table` prints the table of what is there. `pytest -m bench tests/benchmarks/bench_verdict.py` tries it.
"""

import argparse
import ast
import dataclasses
import importlib
import tempfile
import time
from pathlib import Path

import jax
import pytest

from fpjax.audit.summary import make_audit
from fpjax.core.store import read_json, write_json
from fpjax.run import pipeline
from fpjax.run.config import make_config
from fpjax.run.stages import open_job, report, score

from .timing import processor

pytestmark = pytest.mark.bench
STAGES = ["data", "classifiers", "score", "count", "search"]


def audit_seed(name, seed, changes, workdir, *, classifiers="", null=False):
    """One audit with this seed of data and draws; what the table shows of it.

    Args:
      null: whether the score network is kept from seeing the members, which lie first among its images.
    """
    config = importlib.import_module(f"fpjax.configs.{name}").get_config()
    config.seed = config.data.seed = seed
    for field, value in changes.items():
        section, leaf = field.split(".")
        config[section][leaf] = value
    if classifiers:
        config.classifiers.path = str(Path(classifiers) / f"run_{seed}")
    started, fit = time.monotonic(), score.fit
    if null:
        unseen = config.data.num_members
        score.fit = lambda loss, params, images, *rest, **more: fit(loss, params, images[unseen:], *rest, **more)
    try:
        status = pipeline.main(config, workdir=str(workdir), stages=STAGES)
    finally:
        score.fit = fit
    seconds = time.monotonic() - started
    where = {"cpu": processor(), "jax": jax.__version__}
    if status:
        return {"seed": seed, "status": status, "seconds": seconds, **where}
    job = open_job(make_config(config), workdir)
    found = make_audit(
        report.collect(job), job.grid, job.process, job.config.audit,
        name=name, sampler=job.config.sampler.label, seed=seed, provenance={},
    )  # fmt: skip
    model, detector = found.model, found.detector
    return {
        "seed": seed,
        "status": 0,
        "verdict": found.verdict.verdict,
        "kinds": found.verdict.kinds,
        "num_samples": found.num_samples,
        "members": model.looks[-1].members,
        "controls": model.looks[-1].controls,
        "count_p": min(look.p * len(model.planned_looks) for look in model.looks),
        "t50_members": [round(t.t50_rank, 3) for t in found.targets if t.member],
        "t50_controls": [round(t.t50_rank, 3) for t in found.targets if not t.member],
        "t50_p": model.t50_p,
        "bound": model.bound,
        "tolerance": model.tolerance,
        "sensitivity": [dataclasses.asdict(part) for part in (detector.sensitivity_poor, detector.sensitivity_returns)],
        "sensitivity_lower": detector.sensitivity_lower,
        "planted": [detector.gate.planted_found, detector.gate.targets],
        "attempts": detector.gate.attempts,
        "epochs": detector.gate.epochs,
        "dropped": detector.gate.dropped,
        "false_real": [detector.joint_false_real.hits, detector.joint_false_real.trials],
        "auditor": all(test.passed for test in found.self_tests if test.vetoes and test.possible),
        "thresholds": {f"{at.threshold:g}": at.count_p for at in found.thresholds},
        "seconds": seconds,
        **where,
    }  # fmt: skip


HEADS = (
    "s", "verdict", "members, of n", "most of any control", "p of counts", "t50 of members", "of controls", "p of t50",
    "bound", "audit of the auditor", "epochs", "s",
)  # fmt: skip


def row(found):
    """One line of the table."""
    if found["status"]:
        return (found["seed"], f"status {found['status']}", *[""] * 9, f"{found['seconds']:.0f}")
    kinds = f" ({', '.join(found['kinds'])})" if found["kinds"] else ""
    return (
        found["seed"],
        found["verdict"] + kinds,
        f"{', '.join(map(str, found['members']))} of {found['num_samples']:,}",
        max(found["controls"], default=0),
        f"{found['count_p']:.2g}",
        ", ".join(f"{t:.2f}" for t in found["t50_members"]),
        f"{min(found['t50_controls']):.2f} to {max(found['t50_controls']):.2f}",
        f"{found['t50_p']:.2g}",
        f"{found['bound']:.2g}",
        "passed" if found["auditor"] else "FAILED",
        " and ".join(map(str, found["epochs"].values())),
        f"{found['seconds']:.0f}",
    )


def table(directory):
    """Markdown, with counts of the verdicts beneath."""
    found = [read_json(path) for path in sorted(Path(directory).glob("*.json"), key=lambda p: int(p.stem))]
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (HEADS, ["---"] * len(HEADS), *map(row, found))]
    verdicts = [one.get("verdict", f"status {one['status']}") for one in found]
    lines.append("")
    lines += [f"{verdicts.count(verdict)} of {len(found)}: {verdict}" for verdict in sorted(set(verdicts))]
    lines.append(f"audit of the auditor passed in {sum(one.get('auditor', False) for one in found)} of {len(found)}")
    lines.append(", ".join(sorted({f"{one['cpu']}, JAX {one['jax']}" for one in found})))
    return "\n".join(lines)


def test_a_seed_is_audited_and_tabled(tmp_path):
    write_json(tmp_path / "0.json", audit_seed("smoke", 0, {"score.num_steps": 5}, tmp_path / "run"))
    assert "1 of 1: " in table(tmp_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="phantom")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    parser.add_argument("--out", required=True, help="one JSON file a seed")
    parser.add_argument("--keep", action="store_true", help="the runs' directories too")
    parser.add_argument("--classifiers", default="", help="the --out of a benchmark with --keep")
    parser.add_argument("--null", action="store_true", help="keep the members from the score network")
    parser.add_argument("--table", action="store_true", help="of what is there, and nothing else")
    options = parser.parse_args()
    changed = {field: ast.literal_eval(value) for field, value in (one.split("=", 1) for one in options.set)}
    for number in range(options.first, options.first + options.seeds * (not options.table)):
        path = Path(options.out) / f"{number}.json"
        if path.is_file():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(options.out) / f"run_{number}" if options.keep else Path(scratch) / "run"
            how = {"classifiers": options.classifiers, "null": options.null}
            write_json(path, audit_seed(options.config, number, changed, directory, **how))
        print("| " + " | ".join(map(str, row(read_json(path)))) + " |", flush=True)
    print(table(options.out))
