"""Which images' exact log densities are computed, and what is kept of them."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.errors import whole


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
