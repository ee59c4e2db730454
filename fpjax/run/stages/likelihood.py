"""Stage likelihood: exact densities of members, held-out targets and others, also over training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...detectors import nearest
from ...diffusion.flow import OUTCOMES, OdeSettings, divergence, flow_drift
from ...diffusion.results import ScoreResult
from ...engine.densities import log_likelihoods
from ...report.sections import studies
from ...studies.likelihood import (
    HELD_OUT_TARGET,
    MEMBER,
    Densities,
    LikelihoodResult,
    NllSettings,
    Snapshot,
    bits_per_dim,
)
from ..job import Job
from ..stage import Cost, Stage
from ..timing import Program, timed_batch

ODE_EVALUATIONS = 200  # assumed of an image's density; the solver's own choice depends on the model


def _groups(job: Job) -> dict[str, np.ndarray]:
    """Images of the study by group, bytes; those up to the neighbours are followed over snapshots."""
    planted, settings, members = job.planted, job.config.likelihood, job.planted.num_members
    others = planted.train[members:]
    # Of every member's nearest, each once.
    near = [nearest.nearest_rows(others, target, settings.num_neighbours) for target in planted.targets[:members]]
    near = list(dict.fromkeys(np.concatenate(near).tolist()))
    far = np.delete(np.arange(len(others)), near)[: settings.num_train]
    return {
        MEMBER: planted.targets[:members],
        **({"clean original": planted.originals[:members]} if job.config.data.stamp else {}),
        HELD_OUT_TARGET: planted.targets[members : job.num_searched],
        "nearest neighbour": others[near],
        "training": others[far],
        "held-out": planted.test[: settings.num_held_out],
        "generated": job.draw_samples(settings.num_generated, key=jax.random.fold_in(job.key(LikelihoodResult), 1)),
    }


def run(job: Job) -> None:
    """The study of the trained model, then of each snapshot."""
    config, groups = job.config, _groups(job)
    images, settings = np.concatenate(list(groups.values())), config.likelihood
    group = [name for name, part in groups.items() for _ in part]
    row = np.asarray([row for part in groups.values() for row in range(len(part))])

    def study(params: Any, number: int, part: str = "") -> Densities:
        found = log_likelihoods(
            job.density,
            params,
            images[:number],
            key=job.key(LikelihoodResult),
            path=job.partial(LikelihoodResult, part),
            log=job.log,
            dequantized=config.data.dequantize,
            repeats=settings.repeats,
            label=f"likelihood{part}",
        )
        outcome = [OUTCOMES[one] for one in found.pop("outcome")]
        bits = bits_per_dim(found["nats"], images[0].size)
        return Densities(group[:number], row[:number], **found, outcome=outcome, bits_per_dim=np.asarray(bits))

    score = config.score
    steps = range(score.keep_every, score.num_steps, score.keep_every) if settings.snapshots else ()
    names = list(groups)
    followed = sum(len(groups[name]) for name in names[: names.index("training")])
    densities = study(job.score_params, len(images))
    job.finish(
        LikelihoodResult(
            num_dims=images[0].size,
            t_min=config.ode.t_min,
            exact_trace=config.ode.num_probes == 0,
            repeats=settings.repeats,
            densities=densities,
            snapshots=[Snapshot(step, study(job.snapshot(step), followed, f"-{step}")) for step in steps],
        )
    )


def num_densities(job: Job) -> int:
    """Densities that are computed, at most."""
    config, planted = job.config, job.planted
    settings, members, others = config.likelihood, planted.num_members, len(planted.train) - planted.num_members
    near = min(members * settings.num_neighbours, others)
    followed = job.num_searched + members * config.data.stamp + near
    rest = min(settings.num_train, others - near) + min(settings.num_held_out, len(planted.test))
    snapshots = (config.score.num_steps - 1) // config.score.keep_every if settings.snapshots else 0
    return settings.repeats * ((1 + snapshots) * followed + rest + settings.num_generated)


def cost(job: Job) -> Cost:
    """The solver's own choice decides; `ODE_EVALUATIONS` is what is assumed."""
    images = num_densities(job)
    basis = f"{images} densities, if each takes {ODE_EVALUATIONS} evaluations"
    return Cost(f"{images} densities, adaptive", {"density": images * ODE_EVALUATIONS}, basis)


def density_program(job: Job, whole: bool) -> Program:
    """One evaluation of the flow with its divergence, in float32."""
    config, shape, key, full = job.config, job.image_shape, jax.random.key(0), job.config.likelihood.batch_size
    batch = timed_batch(full, whole=whole)
    exact = config.ode.num_probes == 0
    probes = None if exact else jax.random.rademacher(key, (config.ode.num_probes, *shape), jnp.float32)

    def density(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        drift = functools.partial(flow_drift, job.process, job.make_score(params, dtype="float32"), t=jnp.asarray(0.5))
        return jax.vmap(lambda x: divergence(drift, x, probes=probes, trace_batch=config.ode.trace_batch))(x)

    return Program(density, (job.fresh_params, jnp.zeros((batch, *shape))), batch, full, highest=True)


LIKELIHOOD = Stage(
    "likelihood",
    LikelihoodResult,
    needs=(ScoreResult,),
    settings=(OdeSettings, NllSettings),
    stream=5,
    run=run,
    cost=cost,
    section=studies.LIKELIHOOD,
    programs={"density": density_program},
)
