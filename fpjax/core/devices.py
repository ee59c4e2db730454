"""The devices that share each batch of a training."""

import jax
from jax.sharding import AxisType, Mesh

from .errors import check


def batch_mesh(field: str, batch_size: int, *, parts: int = 1, devices: list[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The devices that share each batch along the axis "batch": those given, or all local ones.

    Args:
      field: of the config, that `batch_size` stands in.
      parts: that each device takes its share in, one after the other.

    Raises:
      RequestError: if they cannot share it evenly.
    """
    devices = list(devices or jax.local_devices())
    share = len(devices) * parts
    check(
        batch_size % share == 0,
        field,
        got=batch_size,
        expected=f"a multiple of {share}, for {len(devices)} devices" + (f" x {parts} parts" if parts > 1 else ""),
        fix="change the batch, or show JAX fewer devices",
    )
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)
