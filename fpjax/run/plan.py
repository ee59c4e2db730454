"""What `--dry_run` prints: the config as it was resolved, and the work of each stage."""

import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..core.terminal import show
from .config import describe_config
from .job import Job
from .stage import Stage


def show_plan(job: Job, wanted: Sequence[Stage]) -> None:
    """Prints the resolved config, stages done and to do, and the work of each."""
    # Whatever is wrong with the data is said before anything is printed.
    shapes, work = job.param_shapes, [stage.cost(job).text for stage in job.stages]
    x, t = jax.ShapeDtypeStruct((1, *job.image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    lowered = jax.jit(lambda p, x, t: job.model.apply({"params": p}, x, t)).lower(shapes, x, t)
    flops = (lowered.cost_analysis() or {}).get("flops", float("nan"))
    show(json.dumps(describe_config(job.config), indent=1))
    show(f"parameters of the score network: {sum(leaf.size for leaf in jax.tree.leaves(shapes)):,}")
    show(f"FLOPs of one evaluation: {flops:,.0f}")
    for stage, text in zip(job.stages, work, strict=True):
        state = job.state(stage) if stage in wanted else "not asked for"
        show(f"{stage.name:12} {state:14} {text}")
