"""The slot engine on an exhaustive search, beside the bare network and beside a loop over levels, in one run.

Run with `python -m tests.benchmarks.bench_search`, or with `pytest -m bench tests/benchmarks/bench_search.py`; about a minute on two cores.
The model's weights are as initialised: what it says of images is nothing, what it costs is the same. Rounds alternate,
so that whatever else the machine does meets all; medians are compared. The loop over levels is the paper's way: the M
chains of a level at once, level after level.
"""

import argparse
import functools
import platform
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.detectors.classifier import NAMES, make_classifier_detector, make_models
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sampling import make_sampler
from fpjax.diffusion.score import make_score_fn
from fpjax.engine.chains import EngineSettings, chain_key, make_engine, noised_start, run_chains
from fpjax.engine.resume import block_scores
from fpjax.engine.work import make_work
from fpjax.models.unet import UNet
from fpjax.run.config import make_config
from fpjax.studies.search import SearchSettings, search

from .timing import alternate, processor

pytestmark = pytest.mark.bench
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Bench:
    """One model, one target, and the chains of an exhaustive search: `chains` from each of `levels`."""

    def __init__(self, *, config="phantom", levels=30, chains=16, slots=64, side=16):
        settings = make_config(runpy.run_path(str(CONFIGS / f"{config}.py"))["get_config"]())
        self.levels, self.chains, self.slots = levels, chains, slots
        model, self.shape = UNet(settings.model), (side, side, 3 if settings.data.repeat_grey else 1)
        self.key, self.target = jax.random.key(0), np.zeros((1, *self.shape), np.float32)
        x, t = jnp.zeros((slots, *self.shape)), jnp.full(slots, 0.5)
        self.params = jax.jit(model.init)(self.key, x[:1], t[:1])["params"]
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        classifiers = make_models(settings.resnet, settings.data.num_members + settings.data.num_count_controls)
        self.detect = make_classifier_detector(
            classifiers,
            {name: jax.jit(each.init)(self.key, x[:1]) for name, each in zip(NAMES, classifiers, strict=True)},
        ).detect_fn
        self.grid, sde = time_grid(settings.process, levels), settings.process

        def sampler(params):
            return make_sampler(settings.sampler, sde, self.grid, make_score_fn(sde, model, params))

        # One device, as the bare network and the loop over levels have one.
        options = EngineSettings(slots=slots, block_steps=100)
        self.engine = make_engine(sampler, self.grid, self.shape, options, devices=jax.devices()[:1])
        self.num_steps, self.counts = chains * levels * (levels + 1) // 2, {}

        @jax.jit
        def network(params, x, t):
            return jax.vmap(make_score_fn(sde, model, params))(x, t)

        @jax.jit
        def one_level(params, level):
            made, scale, std = sampler(params), jnp.asarray(self.grid.scale)[level], jnp.asarray(self.grid.std)[level]
            keys = jax.vmap(functools.partial(chain_key, self.key, jnp.asarray(0), level))(jnp.arange(chains))

            def start(key):
                image, prior_std = jnp.asarray(self.target[0]), jnp.asarray(self.grid.prior_std)
                noised = noised_start(jax.random.fold_in(key, 0), image, jnp.asarray(True), scale, std, prior_std)
                return made.init(noised)

            def step(i, states):
                now = level - i
                return jax.vmap(lambda s, k: made.step(s, now, jax.random.fold_in(k, now)))(states, keys)

            return jax.lax.fori_loop(0, level, step, jax.vmap(start)(keys)).x

        self._network, self._one_level, self._x, self._t = network, one_level, x, t

    def bare(self, *, calls=20):
        """The network alone at the engine's batch size; evaluations that it made."""
        out = None
        for _ in range(calls):
            out = self._network(self.params, self._x, self._t)
        jax.block_until_ready(out)
        return calls * self.slots

    def exhaustive(self, detect=None):
        """The engine, and what looks at every chain's end; evaluations that chains needed."""
        work = make_work(0, np.arange(1, self.levels + 1), self.chains)
        for block in run_chains(self.engine, self.params, self.target, work, key=self.key):
            if detect:
                block_scores(detect, block)
            self.counts["useful"], self.counts["executed"] = block.state.num_useful, block.state.num_executed
        return self.counts["useful"]

    def plain_loop(self):
        """Level after level, its chains at once."""
        for level in range(1, self.levels + 1):
            np.asarray(self._one_level(self.params, jnp.asarray(level)))
        return self.num_steps

    def coarse_to_fine(self):
        """The strategy with a fortieth of the levels in each of its looks, and a detector that costs nothing."""
        few = max(3, self.levels // 40)
        settings = SearchSettings(
            strategy="coarse_to_fine",
            member_levels=self.levels,
            member_chains=self.chains,
            coarse_levels=few,
            fine_levels=few,
            confirm_chains=self.chains,
            rank_levels=1,
            rank_chains=1,
        )
        options = {"num_members": 1, "threshold": 0.5, "key": self.key}
        return search(self.engine, self.params, self.target, _detect, settings, **options)[0].evaluations

    @property
    def searches(self):
        """What is compared; another strategy is one more method and one more line here."""
        return {
            "engine, exhaustive": self.exhaustive,
            "engine, exhaustive, with detection": functools.partial(self.exhaustive, self.detect),
            "engine, coarse_to_fine": self.coarse_to_fine,
            "loop over levels": self.plain_loop,
        }


@jax.jit
def _detect(images):
    return jnp.ones(len(images)), jnp.exp(-jnp.mean(images**2, axis=(1, 2, 3)))[:, None]


def report(bench, rounds):
    """Markdown, and the figures in it by name."""
    contestants = {"bare network": bench.bare} | bench.searches
    evaluations = {name: function() for name, function in contestants.items()}  # compiles
    medians = alternate(contestants, rounds, warm_up=0)
    found = {name: (medians[name], evaluations[name]) for name in contestants}
    rates = {name: evaluations / seconds for name, (seconds, evaluations) in found.items()}
    useful = bench.counts["useful"] / bench.counts["executed"]
    # The rate at which the engine evaluates, of which `useful` is the part that chains need.
    ratio = rates["engine, exhaustive"] / useful / rates["bare network"]
    share = 1 - found["engine, exhaustive"][0] / found["engine, exhaustive, with detection"][0]
    device = jax.devices()[0].device_kind
    device = processor() if device == "cpu" else device
    lines = [
        f"{device}; JAX {jax.__version__}, Python {platform.python_version()}; {bench.num_params:,} parameters, "
        f"{'x'.join(map(str, bench.shape))}, {bench.levels} levels x {bench.chains} chains, {bench.slots} slots, "
        f"median of {rounds} rounds",
        "",
        "| | batch | evaluations | s | evaluations/s |",
        "|---|---|---|---|---|",
    ]
    batches = {"loop over levels": bench.chains}
    for name, (seconds, evaluations) in found.items():
        batch = batches.get(name, bench.slots)
        lines.append(f"| {name} | {batch} | {evaluations:,} | {seconds:.2f} | {rates[name]:,.0f} |")
    lines += [
        "",
        f"useful evaluations: {useful:.4f} of those executed; executed evaluations/s: {ratio:.3f} of the bare "
        f"network's at the same batch size; the loop over levels takes "
        f"{found['loop over levels'][0] / found['engine, exhaustive'][0]:.2f} times as long as the engine; detection "
        f"takes {share:.3f} of the search's time",
    ]
    return "\n".join(lines), {"useful": useful, "ratio": ratio, "evaluations": found["engine, exhaustive"][1]}


def test_search():
    bench = Bench(config="smoke", levels=12, slots=16, side=8)
    text, found = report(bench, 1)
    assert found["evaluations"] == bench.num_steps == 16 * 12 * 13 // 2
    assert 0.5 < found["useful"] <= 1
    assert text.count("\n|") == 7


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="phantom", help="whose model, process and sampler, of configs/")
    parser.add_argument("--side", type=int, default=16, help="pixels")
    parser.add_argument("--levels", type=int, default=30)
    parser.add_argument("--chains", type=int, default=16, help="from each level")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = vars(parser.parse_args())
    rounds = options.pop("rounds")
    print(report(Bench(**options), rounds)[0])
