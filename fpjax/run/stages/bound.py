"""Stage bound: the paper's upper Darboux sum (eq. 8-9) for each member."""

import jax

from ...core.processes import process_index
from ...diffusion.results import ScoreResult
from ...report.sections import studies
from ...studies.bound import BoundResult, BoundSettings, bound, bound_work, chain_ends, no_bound, top_levels
from ...studies.search import SearchResult
from ..job import Job
from ..stage import Cost, Stage
from .chains import chain_cost, chain_log
from .likelihood import ODE_EVALUATIONS


def run(job: Job) -> None:
    """Chains from the members, which several processes share, then the densities of their ends."""
    settings, tops = job.config.bound, top_levels(job.result(SearchResult))
    key_chains, key_density = jax.random.split(job.key(BoundResult))
    if not settings.num_chains:
        if not process_index():
            job.finish(no_bound(job.config.ode.t_min))
        return
    ends = chain_ends(
        job.engine,
        job.score_params,
        job.targets,
        tops,
        settings,
        key=key_chains,
        path=job.partial(BoundResult, "-chains"),
        log=chain_log(job),
    )
    if process_index():
        return
    path = job.partial(BoundResult)
    job.finish(bound(job.density, job.score_params, ends, tops, settings, key=key_density, path=path, log=job.log))


def cost(job: Job) -> Cost:
    """As if members returned from every level."""
    settings = job.config.bound
    work = bound_work(settings, [job.grid.num_levels] * job.planted.num_members)
    ends = work.num_chains if work else 0
    rows = dict(chain_cost(job, work).rows) if work else {}
    rows["density"] = ends * settings.repeats * ODE_EVALUATIONS
    text = f"{ends} chains and their densities, if members return from every level"
    return Cost(text, rows, basis=f"at most {ends} chains, the same")


BOUND = Stage(
    "bound",
    BoundResult,
    needs=(ScoreResult, SearchResult),
    settings=(BoundSettings,),
    stream=6,
    run=run,
    cost=cost,
    section=studies.BOUND,
    shared=True,
)
