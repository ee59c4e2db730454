"""AugMix on device beside the same AugMix in Pillow and NumPy, same images, same machine, same run: images/s.

Run with `python -m tests.benchmarks.bench_augmix`, or with `pytest -m bench tests/benchmarks/bench_augmix.py`. Pillow takes image by image
on one core, as one worker of a data loader does; ours takes a batch at a time, jitted and vmapped, and we wait for
it. Rounds alternate, so that whatever else the machine does meets both; medians are compared.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest

from fpjax.core.images import to_model
from fpjax.data.phantom import phantom_images
from fpjax.detectors.augmix import AugMixSettings, augmix

from .. import pillow_augmix
from .timing import alternate, processor

pytestmark = pytest.mark.bench


def compare(*, batch=128, side=28, channels=(1, 3), rounds=10, settings=None):
    """Prints the table; returns medians in images a second by (channels, contestant)."""
    settings = settings or AugMixSettings()
    device = jax.devices()[0]
    hardware = processor() if device.platform == "cpu" else f"{device.device_kind} beside {processor()}"
    print(
        f"{hardware}; JAX {jax.__version__}, Pillow {PIL.__version__}; "
        f"{settings}, batch {batch}, {side}x{side}, median of {rounds} rounds\n\n"
        "| channels | contestant | images/s | of Pillow |\n|---|---|---|---|"
    )
    found = {}
    for count in channels:
        images = to_model(np.repeat(phantom_images(batch, side=side, seed=0), count, axis=-1))
        for name, seconds in alternate(_contestants(images, settings), rounds).items():
            found[count, name] = batch / seconds
            ratio = found[count, name] / found[count, "Pillow"]
            print(f"| {count} | {name} | {found[count, name]:,.0f} | {ratio:.1f} |")
    return found


def _contestants(images, settings):
    """Functions that augment the batch anew and wait for it."""
    rng, keys = np.random.default_rng(0), iter(range(10**9))
    on_device = jnp.asarray(images)

    @jax.jit
    def mixtures(key, images):
        return jax.vmap(lambda key, image: augmix(key, image, settings))(jax.random.split(key, len(images)), images)

    return {
        "Pillow": lambda: np.stack([pillow_augmix.augmix(rng, image, settings) for image in images]),
        "fpjax": lambda: mixtures(jax.random.key(next(keys)), on_device).block_until_ready(),
    }


def test_speed():
    assert min(compare(batch=32, rounds=3).values()) > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    compare(batch=options.batch, side=options.side, rounds=options.rounds)
