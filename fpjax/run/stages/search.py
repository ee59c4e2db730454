"""Stage search: chains from every target at many noise levels, and how many come back: t'."""

from ... import stats
from ...core.processes import process_index
from ...core.store import write_arrays
from ...detectors.results import ClassifiersResult
from ...diffusion.results import ScoreResult
from ...diffusion.sampling import SamplerSettings
from ...report.sections import studies
from ...studies.search import SearchResult, SearchSettings, search, search_work
from ...studies.strategies import spaced_levels
from ..job import Job
from ..stage import Cost, Finding, Stage
from .chains import chain_cost, chain_log, reject_finding


def run(job: Job) -> None:
    """All looks of the strategy."""
    config = job.config
    result, shown = search(
        job.engine,
        job.score_params,
        job.targets,
        job.detector.detect_fn,
        config.search,
        num_members=job.planted.num_members,
        num_searched=job.num_searched,
        threshold=config.classifiers.threshold,
        thresholds=config.classifiers.thresholds,
        key=job.key(SearchResult),
        path=job.partial(SearchResult),
        log=chain_log(job),
    )
    if process_index():
        return
    pictures = {f"shown_{name}": values for name, values in shown._asdict().items()}
    write_arrays(job.workdir / "samples" / "search.npz", **pictures)
    job.finish(result)


def cost(job: Job) -> Cost:
    """At most so many evaluations, where a strategy looks first."""
    return chain_cost(job, search_work(job.config.search, job.grid, job.num_searched, job.planted.num_members))


def check(job: Job) -> list[Finding]:
    """Whether the test of t50 can reject, and what M chains a level can tell."""
    config, grid, planted = job.config, job.grid, job.planted
    search, num_train = config.search, len(planted.train)
    chains = search.member_chains or search.rank_chains
    levels = spaced_levels(grid.level_at(search.rank_max_t), search.rank_levels)
    lower = float(stats.clopper_pearson(chains, chains, confidence=config.audit.confidence, side="lower").lower)
    can = lower > 1 / num_train
    seen = 1 - 0.2 ** (1 / chains)
    curve = Finding(
        "ok" if can else "weak",
        "search",
        f"M = {chains} chains a level show a return rate of {seen:.2g} with 80 %; all of them returning shows "
        f"{lower:.2f} or more"
        + ("" if can else f", not above 1/N = {1 / num_train:.2g}: raise search.member_chains")
        + f"; t50 is compared over {len(levels)} levels up to t = {grid.t[levels[-1]]:.2f}",
    )
    level = config.audit.t50_level
    return [reject_finding("t50 test", planted.num_members, planted.num_controls, level, "data.num_controls"), curve]


SEARCH = Stage(
    "search",
    SearchResult,
    needs=(ScoreResult, ClassifiersResult),
    settings=(SamplerSettings, SearchSettings),
    stream=4,
    run=run,
    cost=cost,
    section=studies.SEARCH,
    check=check,
    shared=True,
    files=("samples/search.npz",),
)
