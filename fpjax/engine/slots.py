"""Slots: a fixed number of rows in flight on each device, whose state the host carries from block to block.

Chains need different numbers of reverse steps and densities different numbers of the solver's, and a batch lasts as
long as its slowest row. So a block advances every slot by some steps, those that are done make room for the next work,
and each device does so for itself: there are no collectives inside a block, so none waits for another.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ..core.errors import RequestError
from ..core.progress import stopping
from ..core.store import read_arrays, write_arrays

SAVE_EVERY_S = 10.0


def slot_mesh(devices: list[jax.Device]) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The devices along the axis "slots"."""
    return jax.make_mesh((len(devices),), ("slots",), axis_types=(AxisType.Auto,), devices=devices)


def by_slot(mesh: Mesh) -> NamedSharding:
    """Placement of arrays of one row a slot: each device has its own."""
    return NamedSharding(mesh, P("slots"))


def on_each(mesh: Mesh) -> NamedSharding:
    """Placement of what every device needs whole."""
    return NamedSharding(mesh, P())


def per_device(block: Callable[..., Any], mesh: Mesh, *, whole: int, rows: int) -> Callable[..., Any]:
    """Compiled `block`, that each device runs on its own slots.

    Args:
      block: of `whole` arguments that every device has whole, then `rows` arguments of which each has its rows; its
        results have rows.
    """
    specs = (*[P()] * whole, *[P("slots")] * rows)
    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=P("slots"), check_vma=False))


def pick(mask: Array, new: Any, old: Any) -> Any:
    """Rows of `new` where `mask`, (n,), and of `old` elsewhere; pytrees with n rows in each leaf."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), new, old)


class SavedSlots:
    """The slots and what came out of them on disk, so that a run that was interrupted ends with the same bytes.

    Args:
      path: of the file; None: nothing is kept.
      identity: of all that the state depends on; a file of another is not taken up.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._saved = time.monotonic()

    def load(self, slots: Any) -> tuple[Any, dict[str, np.ndarray]] | None:
        """The slots, placed as the fresh ones given, and the arrays beside them; None if there is nothing that fits."""
        if not self._path:
            return None
        try:
            arrays = read_arrays(self._path)
        except RequestError:
            return None
        if str(arrays.get("identity")) != self._identity:
            return None
        fresh, structure = jax.tree.flatten(slots)
        leaves = [jax.device_put(arrays[f"slot{i}"], leaf.sharding) for i, leaf in enumerate(fresh)]
        return jax.tree.unflatten(structure, leaves), arrays

    def due(self) -> bool:
        """Whether to save now: every few seconds, and when the run was asked to stop."""
        return stopping() or time.monotonic() - self._saved > SAVE_EVERY_S

    def save(self, slots: Any, **arrays: np.ndarray) -> None:
        """Writes what `load` reads."""
        if not self._path:
            return
        leaves = {f"slot{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(slots))}
        write_arrays(self._path, identity=np.asarray(self._identity), **arrays, **leaves)
        self._saved = time.monotonic()
