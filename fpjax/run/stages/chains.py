"""What the stages that run chains have in common."""

from ...audit.verdict import smallest_p
from ...core.metrics import MetricsLog
from ...core.processes import process_index
from ...engine.chains import evaluations_per_step
from ...engine.work import Work
from ..job import Job
from ..stage import Cost, Finding


def chain_log(job: Job) -> MetricsLog | None:
    """Metrics of the stages that several processes share: the first one's."""
    return None if process_index() else job.log


def chain_cost(job: Job, work: Work) -> Cost:
    """Evaluations of the score network, and a look at the end of each chain."""
    evaluations = evaluations_per_step(job.engine, job.param_shapes) * work.num_steps
    return Cost(f"{evaluations:,} evaluations", {"evaluation": evaluations, "detection": work.num_chains})


def reject_finding(what: str, members: int, controls: int, level: float, field: str) -> Finding:
    """Whether a test of so many members among so many held-out targets can reject at all."""
    smallest, needed = smallest_p(members, controls), controls
    while smallest_p(members, needed) > level and needed < 10**4:
        needed += 1
    can = smallest <= level
    return Finding(
        "ok" if can else "weak",
        what,
        f"K = {members} members among {controls} held-out targets give p >= {smallest:.3g}; level {level:g}"
        + ("" if can else f": it cannot reject; set {field} to {needed} or more"),
    )
