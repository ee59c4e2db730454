"""Densities a second and evaluations an image, beside SciPy's RK45 on the same compiled network.

    python -m tests.benchmarks.bench_likelihood --config=configs/breastmnist_small.py --images=64
    python -m tests.benchmarks.bench_likelihood --config=configs/phantom.py --workdir=runs/phantom     (a trained model)

Both take one Hutchinson probe an image and the config's tolerances, in one run, and are timed without compilation. The
last line tells what plain batches, each as long as its slowest image, would have executed. Also `pytest -m bench
tests/benchmarks/bench_likelihood.py` on a network of random weights.
"""

import argparse
import dataclasses
import runpy
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from fpjax.core.metrics import MetricsLog, read_metrics
from fpjax.diffusion.flow import flow_drift, prior_logp
from fpjax.diffusion.score import make_score_fn
from fpjax.engine.densities import log_likelihoods, make_density_engine
from fpjax.models.unet import UNet
from fpjax.run.config import Config, make_config
from fpjax.run.stages import open_job
from fpjax.studies.likelihood import bits_per_dim


def scipy_loop(make_score, params, process, images, keys, settings) -> tuple[np.ndarray, np.ndarray]:
    """Nats and evaluations of each image, one after the other; steps chosen on the host, network compiled."""
    shape = images.shape[1:]

    @jax.jit
    def field(params, y, t, probe):
        def drift(x):
            return flow_drift(process, make_score(params), x, t)

        value, push = jax.jvp(drift, (y[:-1].reshape(shape),), (probe,))
        return jnp.append(value.ravel(), jnp.sum(push * probe))

    nats, evaluations = [], []
    for image, key in zip(images, keys, strict=True):
        probe = jax.random.rademacher(key, shape, jnp.float32)
        solved = solve_ivp(
            lambda t, y, probe=probe: np.asarray(field(params, jnp.float32(y), jnp.float32(t), probe), np.float64),
            (settings.t_min, 1.0),
            np.append(image.ravel(), 0.0),
            rtol=settings.rtol,
            atol=settings.atol,
        )
        end = jnp.float32(solved.y[:-1, -1]).reshape(shape)
        nats.append(float(prior_logp(process, end)) + solved.y[-1, -1])
        evaluations.append(solved.nfev)
    return np.asarray(nats), np.asarray(evaluations)


def table(config: Config, params, shape: tuple[int, int, int], count: int) -> str:
    """Markdown: a line for each of both, then the slots beside plain batches."""
    process, settings = config.process, dataclasses.replace(config.ode, num_probes=1, probe="rademacher")
    model, size = UNet(dataclasses.replace(config.model, dtype="float32")), config.likelihood.batch_size

    def make_score(params):
        return make_score_fn(process, model, params)

    images = np.random.default_rng(0).uniform(-1, 1, (count, *shape)).astype(np.float32)
    engine = make_density_engine(
        make_score, process, shape, settings, batch_size=size, block_steps=config.likelihood.block_steps
    )
    key = jax.random.key(0)
    with tempfile.TemporaryDirectory() as directory:
        log = MetricsLog(Path(directory) / "metrics.jsonl")

        def ours(images, name):
            return log_likelihoods(engine, params, images, key=key, path=Path(directory) / f"{name}.npz", log=log)

        ours(images[:1], "compile")
        started = time.monotonic()
        found = ours(images, "all")
        seconds = time.monotonic() - started
        last = read_metrics(Path(directory) / "metrics.jsonl")[-1]
    own = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), 0))[1])(jnp.arange(count))
    with jax.default_matmul_precision("highest"):
        scipy_loop(make_score, params, process, images[:1], own[:1], settings)
        started = time.monotonic()
        nats, evaluations = scipy_loop(make_score, params, process, images, own, settings)
        slow = time.monotonic() - started
    dims, device = int(np.prod(shape)), jax.local_devices()[0].device_kind
    gap = np.abs(bits_per_dim(nats, dims) - bits_per_dim(found["nats"], dims))
    steps = found["num_steps"]
    plain = sum(len(part) * part.max() for part in np.array_split(steps, np.arange(size, count, size)))
    return "\n".join(
        [
            f"{jax.local_device_count()} x {device}, JAX {jax.__version__}; {config.name}, {count} images of "
            f"{'x'.join(map(str, shape))}, rtol {settings.rtol:g}, atol {settings.atol:g}, {size} slots a device",
            "",
            "| | images/s | evaluations an image | bits/dim |",
            "|---|---|---|---|",
            f"| fpjax ({settings.solver}) | {count / seconds:.3g} | {found['nfe'].mean():.0f} "
            f"| {np.mean(bits_per_dim(found['nats'], dims)):.4f} |",
            f"| SciPy RK45 | {count / slow:.3g} | {evaluations.mean():.0f} | {np.mean(bits_per_dim(nats, dims)):.4f} |",
            "",
            f"{count / seconds / (count / slow):.1f} times the images/s; bits/dim differ by {gap.max():.2g} at most, "
            f"{np.median(gap):.2g} in the median",
            f"steps an image: median {np.median(steps):.0f}, most {steps.max()}; of the steps executed "
            f"{last['useful_steps'] / last['executed_steps']:.2f} were useful, in plain batches of {size} "
            f"{steps.sum() / plain:.2f}",
        ]
    )


def random_params(config: Config, shape: tuple[int, int, int]):
    """Weights as they are initialised, with a last layer that is not zero."""
    params = UNet(config.model).init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + np.float32(0.02 * rng.standard_normal(leaf.shape)), params)


@pytest.mark.bench
def test_beside_scipy():
    from fpjax.configs import smoke

    config = make_config(smoke.get_config())
    print(table(config, random_params(config, (8, 8, 1)), (8, 8, 1), 12))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, default=Path("configs/breastmnist_small.py"))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--channels", type=int, default=1)
    flags = parser.parse_args()
    config = make_config(runpy.run_path(str(flags.config))["get_config"]())
    shape = (config.data.side, config.data.side, flags.channels)
    params = open_job(config, flags.workdir).score_params if flags.workdir else random_params(config, shape)
    print(table(config, params, shape, flags.images))


if __name__ == "__main__":
    main()
