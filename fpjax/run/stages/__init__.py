"""The stages, in order. A new one is a file here, a line in `STAGES`, and a section in `config.Config`."""

from pathlib import Path

from ..config import Config
from ..job import Job
from .bound import BOUND
from .classifiers import CLASSIFIERS
from .count import COUNT
from .data import DATA
from .likelihood import LIKELIHOOD
from .report import REPORT
from .score import SCORE
from .search import SEARCH

STAGES = (DATA, CLASSIFIERS, SCORE, COUNT, SEARCH, LIKELIHOOD, BOUND, REPORT)


def open_job(config: Config, workdir: Path) -> Job:
    """The audit of this config in this directory, with all its stages."""
    return Job(config, workdir, STAGES)
