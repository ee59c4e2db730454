"""Command line of fpjax: flags and config in, exit status out.

python launch.py                                         audits the built-in phantoms
python launch.py --config=configs/retinamnist.py         one row of the paper's Table 2
python launch.py --config=... --stage=data,score         some stages only
python launch.py --config=... --config.score.num_steps=8000 --workdir=runs/longer
python launch.py --config=... --dry_run                  what would be done, and how much work it is
python launch.py --config=... --stage=check              what it could find, on this machine, and how long it takes
python launch.py --config=... --stage=benchmark          how fast its networks run here
python launch.py --config=... --fail_on=leak             for release pipelines: exit status 3 if a leak is found
python launch.py --config=... --coordinator=HOST:PORT --num_processes=N --process_id=I    on several machines

Exit status: 0 done (also when a leak is found), 1 stopped, 2 the request was wrong, 3 by --fail_on.
"""

import signal
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from fpjax.core.errors import refuse

CONFIGS = Path(__file__).resolve().parent / "configs"
CONFIG_SECONDS = 20  # a config that takes longer never ends
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run; empty: runs/NAME of the config.")
_STAGE = flags.DEFINE_list("stage", [], "Stages to run, comma-separated; empty: all.")
_FAIL_ON = flags.DEFINE_string("fail_on", "", "Exit with 3 on this verdict: leak, or inconclusive for either.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of the first of several processes, or auto.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the chains.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show what would be done and stop.")


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"--config: got a file that had not ended after {CONFIG_SECONDS} s, expected a config")


def _parse(argv: list[str]) -> list[str]:
    """Flags and config; whatever is wrong with them is one line and exit status 2."""
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(CONFIG_SECONDS)
    try:
        # Only here: it reads the default config, and what the command line says of its fields.
        config_flags.DEFINE_config_file("config", str(CONFIGS / "phantom.py"), "Config file.", lock_config=True)
        rest = flags.FLAGS(argv)
        flags.FLAGS.config.to_dict()
    except SystemExit:
        if any(word.lstrip("-").startswith("help") for word in argv):
            sys.exit(0)
        sys.exit(
            refuse("--config: got a file that ends the program, expected get_config(); fix: see configs/default.py")
        )
    # A config file is a program: it can fail in any way.
    except (Exception, KeyboardInterrupt) as error:
        plain = isinstance(error, flags.Error | OSError)
        known = f"configs here: {', '.join(sorted(p.stem for p in CONFIGS.glob('*.py')))}"
        fix = known if isinstance(error, FileNotFoundError) else "--help lists the flags"
        sys.exit(refuse(f"{error if plain else f'{type(error).__name__}: {error}'}; {fix}"))
    finally:
        signal.alarm(0)
    if len(rest) > 1:
        sys.exit(refuse(f"argument {rest[1]!r}: got a bare word, expected --flag=value; fix: --help lists the flags"))
    return rest


def main(_: list[str]) -> int:
    """Runs the stages."""
    logging.set_verbosity(logging.ERROR)
    try:
        # Imported only now: a mistyped flag should not wait for JAX.
        from fpjax.run import pipeline
    except KeyboardInterrupt:
        return 1

    return pipeline.main(
        flags.FLAGS.config,
        workdir=_WORKDIR.value,
        stages=_STAGE.value,
        dry_run=_DRY_RUN.value,
        fail_on=_FAIL_ON.value,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
    )


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
