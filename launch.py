"""Command line of fpjax: flags and config in, exit status out.

python launch.py                                         audits the built-in phantoms
python launch.py --config=configs/retinamnist.py         one row of the paper's Table 2
python launch.py --config=... --stage=data,score         some stages only
python launch.py --config=... --config.score.num_steps=8000 --workdir=runs/longer
python launch.py --config=... --dry_run                  what would be done, and how much work it is

Exit status: 0 done (also when a leak is found), 2 the request was wrong, 1 anything else.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

CONFIGS = Path(__file__).resolve().parent / "configs"
_CONFIG = config_flags.DEFINE_config_file("config", str(CONFIGS / "phantom.py"), "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run; empty: runs/NAME of the config.")
_STAGE = flags.DEFINE_list("stage", [], "Stages to run, comma-separated; empty: all.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show what would be done and stop.")


def _refuse(message: object) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Flags and config; whatever is wrong with them is one line and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()
    # A config file is a program: it can fail in any way.
    except Exception as error:
        known = f"; configs here: {', '.join(sorted(p.stem for p in CONFIGS.glob('*.py')))}"
        sys.exit(_refuse(f"{error}{known if isinstance(error, OSError) else '; --help lists the flags'}"))
    if len(rest) > 1:
        sys.exit(_refuse(f"argument {rest[1]!r}: got a bare word, expected --flag=value; fix: --help lists the flags"))
    return rest


def main(_: list[str]) -> int:
    """Runs the stages."""
    logging.set_verbosity(logging.ERROR)
    # Imported only now: a mistyped flag should not wait for JAX.
    from fpjax import pipeline
    from fpjax.checks import RequestError, StageError

    try:
        pipeline.run(_CONFIG.value, workdir=_WORKDIR.value, stages=_STAGE.value, dry_run=_DRY_RUN.value)
    except RequestError as error:
        return _refuse(error)
    except StageError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
