"""`python -m fpjax`."""

from .cli import run

if __name__ == "__main__":
    run()
