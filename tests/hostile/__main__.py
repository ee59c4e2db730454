"""Runs the cases, each in a process of its own, and prints a table: input, time, peak memory, answer.

Processes are forked from one that has imported everything and computed nothing, so that a case takes as long as its
answer does. One is wrong if it takes more than `SECONDS` or `BYTES`, prints a traceback or a control character, has
another exit status or says more than its case allows, leaves a work directory behind where nothing was begun, or
changes a file anywhere else.
"""

import dataclasses
import hashlib
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
import warnings
from pathlib import Path

from .case import Bases, Case
from .inputs import CASES

ROOT = Path(__file__).resolve().parents[2]
SECONDS, BYTES = 10, 10**9
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a case; `wrong` is empty where that is right."""

    seconds: float
    bytes: int
    status: int
    last: str
    wrong: str


def _fork(function, out: Path, err: Path) -> tuple[int, float, int]:
    """Runs a function in a process of its own: exit status, seconds and peak memory."""
    started, child = time.monotonic(), os.fork()
    if not child:
        status = 70
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            status = function()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1 if error.code else 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
    while True:
        done, state, used = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(state), time.monotonic() - started, used.ru_maxrss * 1024
        if time.monotonic() - started > 2 * SECONDS:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)


def _prepare(directory: Path) -> Bases:
    """A model, its images and a finished run, made by programs of their own."""
    bases = Bases(directory / "model", directory / "images.npz", directory / "run")
    make = (
        "import sys, pathlib, numpy as np\n"
        "from tests.test_imported import source\n"
        "class Factory:\n"
        "    def mktemp(self, _): return pathlib.Path(sys.argv[1])\n"
        "source.__wrapped__(Factory()) if hasattr(source, '__wrapped__') else source._get_wrapped_function()(Factory())\n"
    )
    subprocess.run([sys.executable, "-c", make, str(directory)], cwd=ROOT, check=True)
    launch = [sys.executable, str(ROOT / "launch.py"), SMOKE, f"--workdir={bases.run}"]
    subprocess.run(launch, cwd=ROOT, check=True, capture_output=True)
    return bases


def _state(directory: Path, but: Path) -> dict[str, str]:
    """What lies below a directory, but for one in it: digests of files that are small, and kinds of the rest."""
    found = {}
    for place, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if Path(place, name) != but and len(place) < 1000]
        for name in (*names, *folders):
            path = Path(place, name)
            plain = path.is_file() and not path.is_symlink() and path.stat().st_size < 2**24
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else oct(path.lstat().st_mode)
    return found


def answer(case: Case, directory: Path, bases: Bases) -> Answer:
    """Hands a case in."""
    directory.mkdir()
    outside = directory / "outside"
    outside.mkdir()
    (outside / "kept").write_text("not to be touched")
    given, run = case.flags(directory, bases), directory / "run"
    begun, before = run.exists(), _state(directory, run)
    own = any(flag.startswith(("--workdir", "--verify", "--key")) for flag in given)
    config = [] if any(flag.startswith(("--config=", "--flagfile")) for flag in given) else [SMOKE]
    argv = ["launch.py", *config, *given, *([] if own else [f"--workdir={run}"])]

    def program() -> int:
        from fpjax import cli

        sys.argv[:] = argv
        cli.run()
        return 0

    said = directory.parent / "said"
    status, seconds, used = _fork(program, said.with_suffix(".out"), said.with_suffix(".err"))
    out, err = (said.with_suffix(end).read_bytes().decode(errors="surrogateescape") for end in (".out", ".err"))
    lines = err.splitlines()
    controls = {c for c in out + err if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"}
    wrong = {
        f"took {seconds:.0f} s": seconds > SECONDS,
        f"took {used / 1e9:.1f} GB": used > BYTES,
        f"ended with {status}": status not in case.statuses,
        "has a traceback": "Traceback" in err + out,
        f"prints {sorted(map(ascii, controls))}": bool(controls),
        f"says {len(lines)} lines": len(lines) > case.lines,
        "is no error in words": status == 2
        and not (lines and lines[-1].startswith("error: ") and "; fix: " in lines[-1]),
        "left a work directory": not begun and status == 2 and run.exists(),
        "changed files outside": _state(directory, run) != before,
    }
    return Answer(
        seconds, used, status, lines[-1] if lines else "", ", ".join(text for text, is_so in wrong.items() if is_so)
    )


def main(argv: list[str]) -> int:
    """The table; exit status 1 if an answer is wrong."""
    markdown, names = "--markdown" in argv, [word for word in argv if not word.startswith("--")]
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    os.environ.pop("FPJAX_TRACEBACK", None)
    warnings.filterwarnings("ignore", message="os.fork")
    for module in ("run.pipeline", "run.manifest", "core.checkpoints"):
        importlib.import_module(f"fpjax.{module}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chosen = [case for case in CASES if not names or any(name in case.name for name in names)]
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        bases = _prepare(directory)
        if markdown:
            print("| input | s | MB | status | answer |\n|---|---|---|---|---|")
        for i, case in enumerate(chosen):
            got = answer(case, directory / str(i), bases)
            wrong += bool(got.wrong)
            last = got.last.replace(place, "")
            last = last if len(last) <= 160 else f"{last[:157]}..."
            if markdown:
                print(
                    f"| {case.name} | {got.seconds:.1f} | {got.bytes / 1e6:.0f} | {got.status} | {last.replace('|', '/')} |"
                )
            elif got.wrong or names:
                print(
                    f"{case.name}: {got.wrong or 'right'} ({got.seconds:.1f} s, {got.bytes / 1e6:.0f} MB): {got.last[:600]}"
                )
            subprocess.run(["rm", "-rf", str(directory / str(i))], check=True)
    print(f"\n{len(chosen)} inputs, {wrong} answered wrongly")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
