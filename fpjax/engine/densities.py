"""Densities of many images in a fixed number of slots, each at its own adaptive steps.

Images need different numbers of steps, and a batch lasts as long as its slowest one. So every few steps those that
reached t = 1 make room for the next, on each device for itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ..core.types import Key, ScoreFn
from ..diffusion.flow import FlowState, LogLikelihood, OdeSettings, make_flow
from ..diffusion.sde import Process


class DensityEngine(NamedTuple):
    """Compiled advance of all slots by some steps of the solver, and the shapes it was built for."""

    advance: Callable[..., tuple[FlowState, LogLikelihood, Array, Array]]
    idle: Callable[[Any, Array], FlowState]  # slots that hold nothing
    image_shape: tuple[int, int, int]
    mesh: Mesh
    num_slots: int  # on all devices
    settings: OdeSettings


def make_density_engine(
    make_score_fn: Callable[[Any], ScoreFn],
    sde: Process,
    image_shape: tuple[int, int, int],
    settings: OdeSettings,
    *,
    batch_size: int,
    block_steps: int,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> DensityEngine:
    """Builds the engine; it compiles once, for any images and parameters.

    Args:
      make_score_fn: from parameters (any pytree, an argument of the compiled function) to the score.
      image_shape: (h, w, c).
      batch_size: slots on each device.
      block_steps: steps between two looks of the host.
      devices: those to use; None takes all local ones.
    """
    devices = list(devices or jax.local_devices())
    mesh = jax.make_mesh((len(devices),), ("images",), axis_types=(AxisType.Auto,), devices=devices)

    def idle(params: Any, x: Array) -> FlowState:
        return jax.vmap(make_flow(sde, make_score_fn(params), settings).init)(x)._replace(t=jnp.ones(len(x)))

    def advance(
        params: Any, state: FlowState, x: Array, fresh: Array, keys: Key
    ) -> tuple[FlowState, LogLikelihood, Array, Array]:
        flow = make_flow(sde, make_score_fn(params), settings)

        def pick(mask: Array, new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(mask.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), new, old)

        def body(carry: tuple[FlowState, Array]) -> tuple[FlowState, Array]:
            state, count = carry
            stepped = jax.vmap(flow.step, in_axes=(0, 0 if settings.num_probes else None))(state, probes)
            return pick(jax.vmap(flow.unfinished)(state), stepped, state), count + 1

        def go_on(carry: tuple[FlowState, Array]) -> Array:
            state, count = carry
            return (count < block_steps) & jnp.any(jax.vmap(flow.unfinished)(state))

        state = pick(fresh, jax.vmap(flow.init)(x), state)
        probes = jax.vmap(flow.draw_probes)(keys, x) if settings.num_probes else None
        state, count = jax.lax.while_loop(go_on, body, (state, jnp.zeros((), jnp.int32)))
        return state, jax.vmap(flow.end)(state), ~jax.vmap(flow.unfinished)(state), count[None]

    # No collectives inside: a device whose images need fewer steps does not wait for another.
    sharded = jax.shard_map(
        advance, mesh=mesh, in_specs=(P(), *[P("images")] * 4), out_specs=P("images"), check_vma=False
    )
    placed = NamedSharding(mesh, P("images"))
    return DensityEngine(
        jax.jit(sharded), jax.jit(idle, out_shardings=placed), image_shape, mesh, batch_size * len(devices), settings
    )
