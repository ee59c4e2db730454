"""The command line from a checkout; `python launch.py --help` says what it can do."""

from fpjax.cli import run

if __name__ == "__main__":
    run()
