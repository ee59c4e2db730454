"""One UNet in diffusers and in fpjax, same weights, same machine, same run: milliseconds an image.

Run with `python -m tests.benchmarks.bench_diffusers`, or with `pytest -m bench tests/benchmarks/bench_diffusers.py`; needs the extra `parity`.
On a CPU both run in float32, diffusers eagerly; on a GPU both run in bfloat16, diffusers eagerly and compiled,
channels last. Rounds alternate, so that whatever else the machine does meets both; medians are compared.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fpjax.models.unet import UNet, UNetSettings

from ..stored_models import write_model
from .timing import alternate, processor

pytestmark = pytest.mark.bench
SIDE, CHANNELS, LEARNING_RATE = 28, 3, 2e-4


def ours(settings, params, x, t, noise):
    """Functions that take one forward pass and one training step, and wait for it."""
    model, tx = UNet(settings), optax.adam(LEARNING_RATE)
    x, t, noise = jnp.asarray(x), jnp.asarray(t, jnp.float32), jnp.asarray(noise)
    forward = jax.jit(lambda params, x, t: model.apply({"params": params}, x, t))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, x, t, noise):
        def loss(params):
            return jnp.mean((model.apply({"params": params}, x, t) - noise) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    state = [jax.tree.map(jnp.copy, params), tx.init(params)]

    def train():
        *state[:], value = step(*state, x, t, noise)
        return float(value)

    return lambda: np.asarray(forward(params, x, t)), train


def theirs(directory, x, t, noise, *, compiled, dtype):
    """The same for diffusers."""
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    model = diffusers.UNet2DModel.from_pretrained(directory, low_cpu_mem_usage=False).to(device, memory_format=layout)
    x, noise = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()).to(device, memory_format=layout) for a in (x, noise))
    t = torch.from_numpy(t).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    call = torch.compile(model) if compiled else model
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward():
        with torch.inference_mode(), cast:
            return call(x, t).sample.float().permute(0, 2, 3, 1).cpu().numpy()

    def train():
        optimizer.zero_grad()
        with cast:
            loss = torch.nn.functional.mse_loss(call(x, t).sample.float(), noise)
        loss.backward()
        optimizer.step()
        return loss.item()

    return forward, train


def compare(*, batch=8, rounds=10, settings=None):
    """Prints the table; returns medians in milliseconds an image by (work, contestant)."""
    import diffusers
    import torch

    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    dtype = "bfloat16" if gpu else "float32"
    settings = settings or UNetSettings(dropout=0.0, dtype=dtype)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, batch, SIDE, SIDE, CHANNELS)).astype(np.float32)
    t = rng.integers(0, 1000, batch)
    params = jax.jit(UNet(settings).init)(jax.random.key(0), x[:1], t[:1].astype(np.float32))["params"]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        write_model(path, settings, params, side=(SIDE, SIDE))
        contestants = {"fpjax": ours(settings, params, x, t, noise)}
        contestants["diffusers eager"] = theirs(path, x, t, noise, compiled=False, dtype=dtype)
        if gpu:
            contestants["diffusers compiled"] = theirs(path, x, t, noise, compiled=True, dtype=dtype)

    outputs = {name: forward() for name, (forward, _) in contestants.items()}
    for name, output in outputs.items():
        gap = np.linalg.norm(output - outputs["fpjax"]) / np.linalg.norm(output)
        assert gap < (3e-2 if gpu else 1e-4), (name, gap)

    versions = f"JAX {jax.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    hardware = torch.cuda.get_device_name() if gpu else processor()
    print(f"{hardware}; {versions}; {dtype}, batch {batch}, {SIDE}x{SIDE}x{CHANNELS}, median of {rounds} rounds")
    found = {}
    for i, work in enumerate(("forward", "training step")):
        medians = alternate({name: pair[i] for name, pair in contestants.items()}, rounds)
        for name, seconds in medians.items():
            found[work, name] = 1e3 * seconds / batch
            print(f"{work:14} {name:19} {found[work, name]:9.2f} ms/image   {seconds / medians['fpjax']:5.2f} of fpjax")
    return found


def test_speed():
    assert min(compare(batch=8, rounds=5).values()) > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    compare(batch=options.batch, rounds=options.rounds)
