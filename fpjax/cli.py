"""Command line of fpjax: flags and config in, exit status out.

%s                                         audits the built-in phantoms
%s --config=retinamnist                    one row of the paper's Table 2
%s --config=my_config.py                   a config of your own; see configs/default.py
%s --config=... --stage=data,score         some stages only
%s --config=... --config.score.num_steps=8000 --workdir=runs/longer
%s --config=... --dry_run                  what would be done, and how much work it is
%s --config=... --stage=check              what it could find, on this machine, and how long it takes
%s --config=... --stage=benchmark          how fast its networks run here
%s --config=... --stage=benchmark --target=h200    what bounds them on an accelerator that is not here
%s --config=... --fail_on=leak             for release pipelines: exit status 3 if a leak is found
%s --config=... --sign=KEY                 with a signature of all its files (docs/signing.md)
%s --verify=DIR --key=PUB                  whether a signed run is as it was
%s --config=... --coordinator=HOST:PORT --num_processes=N --process_id=I    on several machines

Exit status: 0 done (also when a leak is found), 1 stopped, 2 the request was wrong, 3 by --fail_on.
"""

import importlib
import io
import os
import re
import signal
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from .configs import DIRECTORY
from .core.errors import RequestError, check
from .core.files import read_plain
from .core.paths import local_path
from .core.terminal import refuse, show

CONFIG_SECONDS = 8  # a config that takes longer never ends
SHIPPED = sorted(path.stem for path in DIRECTORY.glob("*.py"))
# Configs of one file by the word after its name's colon.
MEDMNIST = tuple(importlib.import_module(".configs.medmnist", __package__).SETS)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run; empty: runs/NAME of the config.")
_STAGE = flags.DEFINE_list("stage", [], "Stages to run, comma-separated; empty: all.")
_FAIL_ON = flags.DEFINE_string("fail_on", "", "Exit with 3 on this verdict: leak, or inconclusive for either.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of the first of several processes, or auto.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the chains.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_SIGN = flags.DEFINE_string("sign", "", "Private key (PEM, Ed25519) to sign the manifest of all files with.")
_VERIFY = flags.DEFINE_string("verify", "", "Directory of a signed run: check that nothing was changed, and stop.")
_KEY = flags.DEFINE_string("key", "", "Public key (PEM) that --verify checks by.")
_TIMEOUT = flags.DEFINE_integer("coordinator_timeout", 300, "Seconds in which all processes must be there.")
_TARGET = flags.DEFINE_string("target", "", "With --stage=benchmark: h100, h200, v5e or v6e, compiled for, not run.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show what would be done and stop.")


def config_path(given: str) -> str:
    """File of a config, with what follows its colon: a path as it is, a name from among those that are shipped.

    Raises:
      RequestError: a name that is none of these, or the file of a config that lies in another one now.
    """
    path, colon, word = given.partition(":")
    path = str(local_path("--config", path)) if path.startswith("~") else path
    stem = Path(path).stem
    if stem in MEDMNIST and Path(path).parent.name == "configs" and not Path(path).exists():
        raise RequestError(
            f"--config={given}: got a file that is one of configs/medmnist.py now, expected its name; "
            f"fix: --config={stem}"
        )
    known = f"one of {', '.join([*SHIPPED, *MEDMNIST])}"
    if "/" in path or path.endswith(".py"):
        _read_small(f"--config={given}", path, expected=f"a file of at most 1 MiB, or {known}")
        return f"{path}{colon}{word}"
    if path in MEDMNIST and not colon:
        path, colon, word = "medmnist", ":", path
    check(
        path in SHIPPED,
        f"--config={given}",
        got="a name that is not known here",
        expected=f"a path to a file, or {known}",
        fix="correct it",
    )
    return f"{DIRECTORY / path}.py{colon}{word}"


def _read_small(flag: str, path: str, *, expected: str) -> bytes:
    """The content of a file that a flag names; refuses large ones, and pipes and devices, which have no end."""
    try:
        return read_plain(path, most=2**20)
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{flag}: got {got}, expected {expected}; fix: correct it") from error


def _with_flagfiles(argv: list[str], *, depth: int = 0) -> list[str]:
    """The command line with the flags of files, and of those that they name, in place of the files.

    absl reads them too, but without end, and configs that they name would not be looked at here.
    """
    found, words = [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--flagfile", "-flagfile"):
            found.append(word)
            continue
        path = value if equals else next(words, "")
        expected = "a file of flags of at most 1 MiB, within at most 9 others"
        check(depth < 9, f"--flagfile={path}", got="files within files", expected=expected, fix="write them as one")
        content = _read_small(f"--flagfile={path}", str(local_path("--flagfile", path)), expected=expected)
        lines = [line.strip() for line in content.decode(errors="surrogateescape").splitlines()]
        given = [line for line in lines if line and not line.startswith(("#", "//"))]
        found += _with_flagfiles(given, depth=depth + 1)
    return found


def _with_paths(argv: list[str]) -> list[str]:
    """The command line with the files of configs in place of their names."""
    found = list(argv)
    given = [word for word in argv if word.partition("=")[0] in ("--config", "-config")]
    check(len(given) < 2, "--config", got=f"{len(given)} of them", expected="one", fix="leave out the others")
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config") and equals:
            found[i] = f"{flag}={config_path(value)}"
        elif flag in ("--config", "-config") and i + 1 < len(argv):
            found[i + 1] = config_path(argv[i + 1])
    return found


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"a file that had not ended after {CONFIG_SECONDS} s")


def _mistyped(message: str, argv: list[str]) -> str:
    """The flag of a field that a config does not have, in words; empty: the error is of another kind.

    Args:
      message: of ml_collections: the field's name in quotes, and one that is like it.
    """
    name, *alike = re.findall(r"[\"'](\w+)\\?[\"']", message) or [""]
    flag = next((f for f in (w.partition("=")[0] for w in argv) if re.fullmatch(rf"--?config\.(\w+\.)*{name}", f)), "")
    other = f"one like it is {alike[0]}" if alike else "configs/default.py lists all fields"
    return f"{flag}: got a field that this config does not have, expected one that it has; fix: {other}" if flag else ""


# By a part of what absl or Python says of a flag's value: what was expected of it.
_EXPECTED = {
    "invalid literal for int": "a whole number",
    "boolean": "True or False",
    "could not convert string to float": "a number",
    "as a ConfigDict": "--config.SECTION.FIELD=VALUE: one field of the section",
}


def _flag_error(message: str) -> str:
    """What absl says of a flag, with what was got and expected."""
    fix = "--help lists the flags"
    if unknown := re.match(r"Unknown command line flag '(.*?)'(?:\. Did you mean: (.*?) \?)?", message, re.DOTALL):
        name, alike = unknown.groups()
        like = f"; one like it is --{alike}" if alike else ""
        return f"--{name}: got a flag that is not known, expected one of fpjax{like}; fix: {fix}"
    if missing := re.match(r"Missing value for flag (\S+)", message):
        return f"{missing[1]}: got no value, expected {missing[1]}=VALUE; fix: {fix}"
    if wrong := re.match(r"flag (--[\w.]+)=(.*?): (.*)", message, re.DOTALL):
        name, value, reason = wrong.groups()
        expected = next((words for part, words in _EXPECTED.items() if part in reason), f"a value that fits ({reason})")
        return f"{name}: got {value!r}, expected {expected}; fix: correct it; {fix}"
    return f"flags: got what cannot be read ({message}), expected --flag=value; fix: {fix}"


def _help(argv: list[str]) -> str:
    """What `--help` prints."""
    name = Path(argv[0]).name.replace("__main__.py", "python -m fpjax").replace("launch.py", "python launch.py")
    usage, shipped = (__doc__ or "").replace("%s", name), ", ".join([*SHIPPED, *MEDMNIST])
    config = f"  --config: Name or file of a config; --config.SECTION.FIELD=VALUE changes a field.\n    ({shipped})"
    return f"{usage}\n{flags.FLAGS.module_help(__name__)}\n{config}"


def _parse(argv: list[str]) -> list[str]:
    """Flags and config; whatever is wrong with them is one line and exit status 2."""
    if any(word in ("--help", "-help", "-h") for word in argv[1:]):
        show(_help(argv))
        sys.exit(0)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(CONFIG_SECONDS)
    try:
        argv = _with_paths(_with_flagfiles(argv))
        # Only here: it reads the default config, and what the command line says of its fields.
        config_flags.DEFINE_config_file(
            "config", str(DIRECTORY / "phantom.py"), "Name or file of a config.", lock_config=True
        )
        rest = flags.FLAGS(argv)
        flags.FLAGS.config.to_dict()
    except SystemExit:
        if any(word.lstrip("-").startswith("help") for word in argv):
            sys.exit(0)
        sys.exit(
            refuse("--config: got a file that ends the program, expected get_config(); fix: see configs/default.py")
        )
    except RequestError as error:
        sys.exit(refuse(error))
    # A config file is a program: it can fail in any way.
    except (Exception, KeyboardInterrupt) as error:
        # Of a traceback, what comes after its last line of code.
        said, _, trace = str(error).partition("Traceback (most recent call last):")
        lines = trace.strip().splitlines()
        code = max((i for i, line in enumerate(lines) if line.startswith(" ")), default=-1)
        last = " ".join(lines[code + 1 :])
        if f"{RequestError.__name__}: " in last:
            sys.exit(refuse(last.partition(f"{RequestError.__name__}: ")[2]))
        message = f"{said}{last}" if last else str(error)
        if isinstance(error, AttributeError | KeyError) and (field := _mistyped(message, argv)):
            sys.exit(refuse(field))
        if isinstance(error, flags.Error):
            sys.exit(refuse(_flag_error(message)))
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        sys.exit(
            refuse(f"--config: got {kind}{message}, expected a file with get_config(); fix: see configs/default.py")
        )
    finally:
        signal.alarm(0)
    if len(rest) > 1:
        sys.exit(refuse(f"argument {rest[1]!r}: got a bare word, expected --flag=value; fix: --help lists the flags"))
    return rest


def main(_: list[str]) -> int:
    """Runs the stages; exit status."""
    logging.set_verbosity(logging.ERROR)
    if _TARGET.value:
        # Read when JAX is imported: the CPU is its device, and nothing looks for the accelerators' own machines.
        os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    try:
        # Imported only now: a mistyped flag should not wait for JAX.
        from .run import pipeline
    except KeyboardInterrupt:
        return 1

    if _VERIFY.value or _KEY.value:
        return _verify()
    return pipeline.main(
        flags.FLAGS.config,
        workdir=_WORKDIR.value,
        stages=_STAGE.value,
        dry_run=_DRY_RUN.value,
        fail_on=_FAIL_ON.value,
        sign=_SIGN.value,
        target=_TARGET.value,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        timeout_s=_TIMEOUT.value,
    )


def _verify() -> int:
    """Checks a signed run; exit status."""
    from .run.manifest import verify

    others = [f"--{flag.name}" for flag in (_WORKDIR, _STAGE, _FAIL_ON, _COORDINATOR, _SIGN, _DRY_RUN) if flag.value]
    try:
        check(
            not others, "--verify", got=f"{', '.join(others)} beside it", expected="--key alone", fix="leave them out"
        )
        check(bool(_VERIFY.value), "--key", got="no --verify", expected="--verify=DIR --key=PUB", fix="add it")
        show(verify(_VERIFY.value, _KEY.value))
    except RequestError as error:
        return refuse(error)
    return 0


def run() -> None:
    """The program: `fpjax`, `python -m fpjax` and `python launch.py`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of what a terminal has no letters for
    app.run(main, flags_parser=_parse)
