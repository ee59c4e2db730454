"""Exact log densities under the probability-flow ODE, through diffrax.

    d log p(x(t)) / dt = -div of the flow's drift,   log p_0(x) = log p_1(x(1)) + integral of the divergence

(Song et al. 2021, arXiv:2011.13456, eq. 39; Hutchinson's estimate eq. 40.) The density belongs to the deterministic
sampler, not to the stochastic one that is searched and counted. Every image takes adaptive steps of its own.

Images need different numbers of steps, and a batch lasts as long as its slowest one. So many of them go through a fixed
number of slots: every few steps those that reached t = 1 make room for the next, on each device for itself.
"""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from ..core.errors import RequestError, StageError, check, whole
from ..core.images import dequantize, to_model
from ..core.metrics import MetricsLog
from ..core.progress import Progress, stopping
from ..core.store import read_arrays, write_arrays
from ..core.types import Key
from ..diffusion.flow import CONVERGED, NON_FINITE, FlowState, LogLikelihood
from ..engine.densities import DensityEngine


def bits_per_dim(nats: float | np.ndarray, num_dims: int) -> float | np.ndarray:
    """Negative log density of the byte-valued image in bits per dimension.

    A byte is 1/128 wide in model range, so a density over model range becomes one over bytes by adding log2(128) = 7
    bits to each dimension. With uniform dequantisation the mean of this is at least the code length of the bytes
    themselves (Theis et al. 2016, arXiv:1511.01844), hence comparable with models of discrete pixels, and 8 for one
    that knows nothing.

    >>> round(float(bits_per_dim(0.0, 784)), 3)
    7.0
    """
    return -np.asarray(nats, np.float64) / (num_dims * np.log(2.0)) + 7.0


@dataclasses.dataclass(frozen=True)
class Densities:
    """Densities of images under one model, group by group; nan where the ODE was not solved."""

    group: list[str]
    row: Int[np.ndarray, " images"]  # within the group
    nats: Float[np.ndarray, " images"]  # the sum of the next two
    prior_nats: Float[np.ndarray, " images"]
    delta_nats: Float[np.ndarray, " images"]
    probe_error: Float[np.ndarray, " images"]  # standard errors of `nats`: over probes,
    repeat_error: Float[np.ndarray, " images"]  # and over repeats
    num_steps: Int[np.ndarray, " images"]  # over all repeats, as the next
    nfe: Int[np.ndarray, " images"]
    outcome: list[str]  # each of `OUTCOMES`
    converged: Bool[np.ndarray, " images"]
    bits_per_dim: Float[np.ndarray, " images"]

    def rows(self, chosen: Any) -> "Densities":
        """Those of these rows: indices, a mask or a slice."""
        columns: dict[str, Any] = {name: np.asarray(values)[chosen] for name, values in vars(self).items()}
        return Densities(**columns | {name: columns[name].tolist() for name in ("group", "outcome")})

    def of_group(self, name: str) -> "Densities":
        """Those of one group."""
        return self.rows(np.asarray(self.group, str) == name)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Densities of the followed groups after so many steps of training."""

    step: int
    densities: Densities


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """Result of the stage likelihood."""

    num_dims: int
    t_min: float
    exact_trace: bool
    repeats: int
    densities: Densities
    snapshots: list[Snapshot]  # of the first rows alone, with the same noise


MEMBER, HELD_OUT_TARGET = "member", "held-out target"  # groups that the audit compares


@dataclasses.dataclass(frozen=True)
class NllSettings:
    """Which images' densities are computed, beside all targets and the members' clean originals.

    Attributes:
      num_train: other training images, those nearest to the members apart.
      num_held_out: images of the test split.
      num_neighbours: training images nearest to each member, by Euclidean distance.
      num_generated: plain samples of the model, drawn for this.
      repeats: draws of dequantisation noise and probes for each image, whose mean is taken.
      snapshots: targets, originals and neighbours under every checkpoint of `score.keep_every` too.
      batch_size: images in flight on each device.
      block_steps: steps of the solver after which those that are done make room for others.
    """

    num_train: int = 128
    num_held_out: int = 128
    num_neighbours: int = 8
    num_generated: int = 64
    repeats: int = 1
    snapshots: bool = False
    batch_size: int = 64
    block_steps: int = 4

    def __post_init__(self) -> None:
        whole("likelihood", self, names=("num_train", "num_held_out"), most=10**6)
        whole("likelihood", self, names=("num_neighbours", "num_generated"), least=0, most=10**6)
        whole("likelihood", self, names=("repeats",), most=10**4)
        whole("likelihood", self, names=("batch_size", "block_steps"), most=2**16)


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


_SAVE_EVERY_S = 10.0


def _load_partial(
    path: Path, identity: str, state: FlowState, host: dict[str, np.ndarray]
) -> tuple[FlowState, dict[str, np.ndarray]]:
    """State of an interrupted run, or the fresh one given."""
    try:
        arrays = read_arrays(path)
    except RequestError:
        return state, host
    if str(arrays.get("identity")) != identity:
        return state, host
    leaves, structure = jax.tree.flatten(state)
    leaves = [jax.device_put(arrays[f"slot{i}"], leaf.sharding) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves), {name: arrays[name] for name in host}


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
    placed = NamedSharding(engine.mesh, P("images"))

    @jax.jit
    def prepare(rows: Array, images: Array) -> tuple[Array, Key]:
        def one(row: Array, image: Array) -> tuple[Array, Key]:
            own = jax.random.fold_in(jax.random.fold_in(key, row // repeats), row % repeats)
            key_noise, key_probe = jax.random.split(own)
            if image.dtype == jnp.uint8:
                image = dequantize(key_noise, image) if dequantized else to_model(image)
            return image, key_probe

        return jax.vmap(one)(rows, images)

    params = jax.device_put(params, NamedSharding(engine.mesh, P()))
    parts = (engine.settings, dequantized, repeats, num_slots, engine.mesh.size, jax.random.key_data(key).tolist())
    identity = hashlib.sha256(images.tobytes() + repr((*parts, images.shape, str(images.dtype))).encode()).hexdigest()
    host = {
        "held": np.full(num_slots, -1),  # row of the work in each slot
        "taken": np.zeros((), np.int64),
        "executed": np.zeros((), np.int64),
        "done": np.zeros(total, bool),
        **{name: np.zeros(total) for name in LogLikelihood._fields},
    }
    blank = jnp.zeros((num_slots, *engine.image_shape))
    state, host = _load_partial(path, identity, engine.idle(params, jax.device_put(blank, placed)), host)
    held, done = host["held"], host["done"]
    progress, saved = Progress(label, total, "densities", done=int(done.sum())), time.monotonic()
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
        if stopping() or time.monotonic() - saved > _SAVE_EVERY_S or done.all():
            leaves = {f"slot{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
            write_arrays(path, identity=np.asarray(identity), **host, **leaves)
            saved = time.monotonic()
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
