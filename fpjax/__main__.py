"""`python -m fpjax`."""

from fpjax.cli import run

if __name__ == "__main__":
    run()
