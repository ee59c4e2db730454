"""Finished runs that somebody has changed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fpjax.core.store import read_json, write_json

from .case import ESCAPES, Bases, Case, fifo, written
from .models import replaced


def _run_case(
    name: str, spoil: Callable[[Path], Any], *, statuses: tuple[int, ...] = (2,), stage: str = "report"
) -> Case:
    """A finished run that is sound but for what `spoil` does to its directory."""

    def flags(directory: Path, bases: Bases) -> list[str]:
        shutil.copytree(bases.run, directory / "run", symlinks=True)
        spoil(directory / "run")
        return [f"--stage={stage}"] if stage else []

    return Case(f"run: {name}", flags, statuses, lines=6)


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a result, and writes its digest anew as whoever edits one can."""
    content = {name: value for name, value in read_json(path).items() if name not in ("digest", "schema_version")}
    change(content)
    write_json(path, content)


def _linked(path: Path, to: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(to)


_OTHER_FILES = (".lock", "config.json", "metrics.jsonl", "report.json", "samples/count.npz", ".config.json.tmp")
_ODD_LINES = b"\n".join(
    (
        b'{"stage": "score", "step": [], "loss": {}}',
        b'{"stage": "score", "step": 1' + b"0" * 400 + b', "loss": 1}',
        b'{"stage": "identity classifier", "epoch": "x", "loss": null}',
        b'{"stage": "score", "step": 3, "loss": 1, "loss_by_t": 4, "grad_norm": "x"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
    )
)


def runs() -> Iterator[Case]:
    for name in _OTHER_FILES:
        yield _run_case(f"{name} is a link out", lambda r, n=name: _linked(r / n, r.parent / "outside" / "kept"))
    yield _run_case(
        "figures/ is a link out", lambda r: (shutil.rmtree(r / "figures"), _linked(r / "figures", r.parent))
    )
    yield _run_case(
        "partial/ is a link out", lambda r: (shutil.rmtree(r / "partial"), _linked(r / "partial", r.parent))
    )
    yield _run_case("config.json is a pipe", lambda r: replaced(r / "config.json", fifo))
    yield _run_case("metrics.jsonl is a pipe", lambda r: replaced(r / "metrics.jsonl", fifo), statuses=(1, 2))
    yield _run_case(
        "metrics.jsonl with odd lines", lambda r: (r / "metrics.jsonl").write_bytes(_ODD_LINES), statuses=(0,)
    )
    yield _run_case("samples with odd names", lambda r: written(r / "samples/score_x.npz", b""), statuses=(0,))
    yield _run_case("pictures are damaged", lambda r: (r / "samples/count.npz").write_bytes(b"x"), statuses=(0,))
    for name in ("config", "data", "classifiers", "score", "count", "search", "likelihood", "bound"):
        path = f"{name}.json"
        yield _run_case(f"{path} with 100,000 brackets", lambda r, p=path: (r / p).write_bytes(b"[" * 100_000))
        yield _run_case(
            f"{path} without its keys, with a right digest",
            lambda r, p=path: (r / p).unlink() or write_json(r / p, {"inputs": {}}),
        )
    yield _run_case("count.json of 2 GB", lambda r: os.truncate(r / "count.json", 2**31))
    yield _run_case("versions with escapes", lambda r: _edit(r / "config.json", _foreign), statuses=(0,))
    # Nothing is made from these two, so that nothing is stale either: the report itself stumbles.
    yield _run_case(
        "densities of another length, with a right digest",
        lambda r: _edit(r / "likelihood.json", lambda c: c["densities"].update(bits_per_dim=[1.0], converged=[True])),
        statuses=(1, 2),
    )
    yield _run_case(
        "members that are not there, with a right digest",
        lambda r: _edit(r / "bound.json", lambda c: c.update(target=[77] * len(c["target"]))),
        statuses=(1, 2),
    )


def _foreign(content: dict[str, Any]) -> None:
    content["provenance"][ESCAPES] = ESCAPES
    content["provenance"]["jax"] = ESCAPES
