"""Exact log densities of many images under the probability-flow ODE, in a fixed number of slots.

    d log p(x(t)) / dt = -div of the flow's drift,   log p_0(x) = log p_1(x(1)) + integral of the divergence

(Song et al. 2021, arXiv:2011.13456, eq. 39; Hutchinson's estimate eq. 40.) The density belongs to the deterministic
sampler, not to the stochastic one that is searched and counted. Every image takes adaptive steps of its own, and makes
room for the next once it reached t = 1.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ..core.errors import StageError, check
from ..core.images import dequantize, to_model
from ..core.metrics import MetricsLog
from ..core.progress import Progress
from ..core.types import Key, Keys, ScoreFn
from ..diffusion.flow import CONVERGED, NON_FINITE, FlowState, LogLikelihood, OdeSettings, make_flow
from ..diffusion.sde import Process
from .slots import SavedSlots, by_slot, on_each, per_device, pick, slot_mesh


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
    mesh = slot_mesh(devices)

    def idle(params: Any, x: Array) -> FlowState:
        return jax.vmap(make_flow(sde, make_score_fn(params), settings).init)(x)._replace(t=jnp.ones(len(x)))

    def advance(
        params: Any, state: FlowState, x: Array, fresh: Array, keys: Keys
    ) -> tuple[FlowState, LogLikelihood, Array, Array]:
        flow = make_flow(sde, make_score_fn(params), settings)

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

    return DensityEngine(
        per_device(advance, mesh, whole=1, rows=4),
        jax.jit(idle, out_shardings=by_slot(mesh)),
        image_shape,
        mesh,
        batch_size * len(devices),
        settings,
    )


def _check_images(images: np.ndarray, shape: tuple[int, int, int], limit: float) -> None:
    """Refuses what is neither bytes nor model range."""
    check(
        images.ndim == 4 and images.shape[1:] == shape,
        "images",
        got=f"shape {images.shape}",
        expected=f"(n, {', '.join(map(str, shape))})",
        fix="give the images that the model was trained on",
    )
    if images.dtype == np.uint8 or not images.size:
        return
    check(
        images.dtype == np.float32 and bool(np.all(np.abs(images) <= limit)),
        "images",
        got=f"{images.dtype} from {np.min(images):.4g} to {np.max(images):.4g}",
        expected="bytes, or finite float32 in model range [-1, 1]",
        fix="convert bytes with fpjax.to_model",
    )


def log_likelihoods(
    engine: DensityEngine,
    params: Any,
    images: np.ndarray,
    *,
    key: Key,
    path: Path,
    log: MetricsLog,
    dequantized: bool = False,
    repeats: int = 1,
    limit: float = 1.0,
    label: str = "likelihood",
) -> dict[str, np.ndarray]:
    """Log densities of many images, resumable: a run that was interrupted ends with the same bytes.

    Args:
      images: (n, h, w, c), uint8 or float32 in model range.
      key: root; each repeat of image i draws its dequantisation noise and probes from a fold of its own, whatever the
        slots and devices.
      path: where an interrupted run is kept; removed by the caller, once its own result is written.
      dequantized: add uniform noise to bytes; otherwise the middle of each byte's bin is taken.
      repeats: draws for each image, whose mean density is reported.
      limit: of the absolute value of float32 images; above 1 only for what a model made.
      label: stage name for progress and log.

    Returns:
      Arrays of length n by the names of `LogLikelihood`'s fields, steps and evaluations summed over the repeats; and
      `repeat_error`, the standard error of `nats` over repeats (nan with one), `converged`. An image whose ODE was not
      solved in every repeat has nan for its density.

    Raises:
      RequestError: if the images are neither bytes nor in model range.
      StageError: if no density is finite.
    """
    _check_images(images, engine.image_shape, limit)
    total, num_slots = len(images) * repeats, engine.num_slots
    placed = by_slot(engine.mesh)

    @jax.jit
    def prepare(rows: Array, images: Array) -> tuple[Array, Keys]:
        def one(row: Array, image: Array) -> tuple[Array, Key]:
            own = jax.random.fold_in(jax.random.fold_in(key, row // repeats), row % repeats)
            key_noise, key_probe = jax.random.split(own)
            if image.dtype == jnp.uint8:
                image = dequantize(key_noise, image) if dequantized else to_model(image)
            return image, key_probe

        return jax.vmap(one)(rows, images)

    params = jax.device_put(params, on_each(engine.mesh))
    parts = (engine.settings, dequantized, repeats, num_slots, engine.mesh.size, jax.random.key_data(key).tolist())
    identity = hashlib.sha256(images.tobytes() + repr((*parts, images.shape, str(images.dtype))).encode()).hexdigest()
    host = {
        "held": np.full(num_slots, -1),  # row of the work in each slot
        "taken": np.zeros((), np.int64),
        "executed": np.zeros((), np.int64),
        "done": np.zeros(total, bool),
        **{name: np.zeros(total) for name in LogLikelihood._fields},
    }
    state = engine.idle(params, jax.device_put(jnp.zeros((num_slots, *engine.image_shape)), placed))
    saved = SavedSlots(path, identity)
    if found := saved.load(state):
        state, host = found[0], {name: found[1][name] for name in host}
    held, done = host["held"], host["done"]
    progress = Progress(label, total, "densities", done=int(done.sum()))
    while not done.all():
        # Spread over the devices, so that the last images do not all lie on one.
        free = np.flatnonzero(held < 0)
        free = free[np.argsort(free % (num_slots // engine.mesh.size), kind="stable")][: total - int(host["taken"])]
        held[free] = host["taken"] + np.arange(len(free))
        host["taken"] += len(free)
        fresh = np.isin(np.arange(num_slots), free)
        rows = np.maximum(held, 0)
        x, keys = prepare(jnp.asarray(rows), jnp.asarray(images[rows // repeats]))
        with jax.default_matmul_precision("highest"):
            state, found, ended, count = engine.advance(
                params, state, *(jax.device_put(part, placed) for part in (x, jnp.asarray(fresh), keys))
            )
        found, ended, count = jax.device_get((found, ended, count))
        slots = np.flatnonzero(ended & (held >= 0))
        for name, values in found._asdict().items():
            host[name][held[slots]] = values[slots]
        done[held[slots]] = True
        host["executed"] += int(count.sum()) * (num_slots // engine.mesh.size)
        if len(slots):
            log.write(
                label,
                images=int(done.sum()),
                rows=held[slots],
                steps=found.num_steps[slots],
                nfe=int(found.nfe[slots].max()),
                not_converged=int((host["outcome"][done] != CONVERGED).sum()),
                useful_steps=int(host["num_steps"][done].sum()),
                executed_steps=int(host["executed"]),
                images_per_s=progress.rate,
            )
        held[slots] = -1
        # The end is kept too: a stage may have other densities to compute after these.
        if saved.due() or done.all():
            saved.save(state, **host)
        steps = host["num_steps"][done]
        progress.update(int(done.sum()), f"{steps.mean() if len(steps) else 0:.0f} steps an image")
    return _over_repeats({name: host[name].reshape(len(images), repeats) for name in LogLikelihood._fields}, label)


def _over_repeats(found: dict[str, np.ndarray], label: str) -> dict[str, np.ndarray]:
    """One row an image, from one a repeat."""
    outcome = found["outcome"].astype(int).max(axis=1)
    if outcome.size and bool(np.all(outcome == NON_FINITE)):
        raise StageError(
            f"{label}: the density of none of {len(outcome)} images is finite; the score model returns non-finite "
            "values: train it longer, lower its learning rate, or check its input range"
        )
    repeats, solved = found["nats"].shape[1], outcome == CONVERGED
    found = {name: np.where(solved[:, None], values, np.nan) for name, values in found.items()} | {
        name: found[name] for name in ("num_steps", "nfe")
    }
    spread = found["nats"].std(axis=1, ddof=1) / np.sqrt(repeats) if repeats > 1 else np.full(len(solved), np.nan)
    return {
        **{name: found[name].mean(axis=1) for name in ("nats", "prior_nats", "delta_nats")},
        "probe_error": np.sqrt((found["probe_error"] ** 2).mean(axis=1) / repeats),
        "repeat_error": spread,
        "num_steps": found["num_steps"].astype(int).sum(axis=1),
        "nfe": found["nfe"].astype(int).sum(axis=1),
        "outcome": outcome,
        "converged": solved,
    }
