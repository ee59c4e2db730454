"""Configs: every one builds, and what does not fit is refused in one line."""

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from ml_collections import ConfigDict

from fpjax.cli import MEDMNIST, SHIPPED
from fpjax.core.errors import RequestError
from fpjax.data.plant import Candidates, Target
from fpjax.detectors.fitting import init_fit
from fpjax.diffusion.sde import VE, VP, SubVP
from fpjax.diffusion.training import init_state, make_train_step
from fpjax.engine.chains import Queue, slot_shapes
from fpjax.run.config import FREE_FIELDS, Config, describe_config, make_config
from fpjax.run.stages import open_job

CONFIGS = [*(name for name in SHIPPED if name != "medmnist"), *(f"medmnist:{name}" for name in MEDMNIST)]
CHANNELS = {"pathmnist": 3, "retinamnist": 3, "bloodmnist": 3}


def config_of(name):
    """A shipped config, `FILE` or `FILE:WORD`."""
    file, *words = name.split(":")
    return importlib.import_module(f"fpjax.configs.{file}").get_config(*words)


def run_of(name):
    """A run with blank images of the config's shape in place of its data."""
    raw = config_of(name)
    if raw.sampler.name == "scheduler":  # there is no imported model that would have one
        raw.sampler.name = "ancestral"
    config = make_config(raw)
    shape = (
        config.data.side,
        config.data.side,
        CHANNELS.get(config.data.name, 1) if config.data.source == "medmnist" else 1,
    )
    data = config.data
    targets = (data.canaries or data.num_members + data.num_count_controls) + data.num_spares
    blank = [np.zeros((n, *shape), np.uint8) for n in (targets, targets, 8, 2, 2)]
    member = [None if data.stamp else row < data.num_members for row in range(targets)]
    record = tuple(Target(row, "train", 0, 0, 1, 99, member=member[row]) for row in range(targets))
    run = open_job(config, Path("unused"))
    run.__dict__["data"] = (Candidates(*blank, record=record, passed_over=0), {})
    return run


def shape_key(name):
    run = run_of(name)
    c = run.config
    return run.image_shape, c.model, c.resnet, c.engine, c.sampler, len(run.planted.targets), c.score.batch_size


def test_default_lists_every_field():
    values = config_of("default").to_dict()
    for field in dataclasses.fields(Config):
        assert field.name in values
        if dataclasses.is_dataclass(field.type):
            assert set(values[field.name]) == {f.name for f in dataclasses.fields(field.type)}, field.name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds(name):
    run = run_of(name)
    assert run.config.name in (name.removeprefix("medmnist:"), "default")
    params = jax.eval_shape(run.init_params, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 100
    heads = [
        jax.eval_shape(
            lambda key, m=m: init_fit(m, run.config.classifiers, key, jnp.zeros((1, *run.image_shape))),
            jax.random.key(0),
        )
        for m in run.classifier_models
    ]
    widths = [state.variables["params"]["fc"]["bias"].shape[0] for state in heads]
    assert widths == [1, len(run.candidates.targets)]
    assert run.grid.num_levels == run.config.sampler.num_levels
    describe_config(run.config)


def test_table_configs_are_the_papers_model():
    for name in ("medmnist:pathmnist", "medmnist:retinamnist"):
        params = jax.eval_shape(run_of(name).init_params, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 17_587_715


@pytest.mark.parametrize("name", list({shape_key(name): name for name in CONFIGS}.values()))
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(name, platform):
    """Train step and engine, each distinct shape once, without such a device."""
    run = run_of(name)

    def spec(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: init_state(run.init_params(key), run.config.score), key)
    images = jax.ShapeDtypeStruct((8, *run.image_shape), jnp.uint8)
    step = jax.jit(make_train_step(run.loss, run.config.score))
    assert export.export(step, platforms=[platform])(state, images, key).platforms == (platform,)

    engine = run.engine
    queue = jax.ShapeDtypeStruct((engine.mesh.size * engine.window,), jnp.int32)
    targets = jax.ShapeDtypeStruct((len(run.planted.targets), *run.image_shape), jnp.float32)
    lowered = export.export(engine.advance, platforms=[platform])(
        state.params,
        key,
        targets,
        slot_shapes(engine, state.params),
        Queue(queue, queue, queue),
        jax.ShapeDtypeStruct((engine.mesh.size,), jnp.int32),
    )
    assert lowered.platforms == (platform,)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("score", "num_steps", -5, "score.num_steps: got -5"),
        ("score", "num_steps", 2.5, "score.num_steps: got 2.5"),
        ("score", "num_steps", True, "score.num_steps: got True"),
        ("data", "dequantize", 1, "data.dequantize: got 1"),
        ("data", "source", "folderr", "data.source: got 'folderr', expected one of"),
        ("data", "num_members", 0, "data.num_members"),
        ("model", "channels", ("a",), "model.channels"),
        ("model", "chanels", (8,), "model.chanels: got an unknown field"),
        (
            "sampler",
            "name",
            "plms",
            "sampler.name: got 'plms', expected one of ancestral, ddim, dpm_solver, euler_maruyama",
        ),
        ("sampler", "spacing", "even", "sampler.spacing: got 'even'"),
        ("sde", "name", "ddpm", "sde.name: got 'ddpm', expected one of subvp, ve, vp"),
        ("sde", "beta_max", 1e30, "sde.beta_min, sde.beta_max: got (0.1, 1e+30)"),
        ("sde", "beta_max", float("nan"), "sde.beta_max: got nan"),
        ("sampler", "t_min", 0.9, "t_min"),
        ("ode", "rtol", 0.0, "ode.rtol"),
        ("ode", "solver", "rk45", "ode.solver: got 'rk45', expected one of dopri5, dopri8, heun, tsit5"),
        ("ode", "probe", "cauchy", "ode.probe: got 'cauchy', expected one of gaussian, rademacher"),
        ("likelihood", "snapshots", True, "likelihood.snapshots: got True, with no checkpoints kept"),
        ("bound", "num_cells", 0, "bound.num_cells: got 0"),
        ("audit", "count_level", 0.02, "audit.count_level + audit.t50_level: got 0.02 + 0.04, expected audit.level"),
        ("audit", "tolerance", 1.0, "audit.tolerance: got 1.0, expected a rate in (0, 1), or 0 for 1/N"),
        ("audit", "tolerance", -0.1, "audit.tolerance: got -0.1"),
        ("audit", "canary_score", "loss", "audit.canary_score: got 'loss', expected one of count, nll, t50"),
        ("count", "looks", (48, 24), "count.looks: got (48, 24), expected increasing numbers of samples"),
        ("data", "canaries", 12, "data.canaries: got 12"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(section, field, value, message):
    config = config_of("smoke").unlock()
    config[section].unlock()
    with config[section].ignore_type():
        config[section][field] = value
    with pytest.raises(RequestError) as error:
        make_config(config)
    assert message in str(error.value)
    assert "fix:" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_process_is_the_one_that_the_config_names():
    for name, process in (("subvp", SubVP()), ("vp", VP()), ("ve", VE())):
        assert make_config(ConfigDict({"sde": {"name": name}})).process == process
    with pytest.raises(RequestError, match="sde.sigma_max: got 1000000.0"):
        make_config(ConfigDict({"sde": {"name": "ve", "sigma_max": 1e6}}))
    with pytest.raises(RequestError, match="sde.beta_max: got 1000"):
        make_config(ConfigDict({"sde": {"beta_max": 10**400}}))


def test_unknown_section_and_bad_seed_are_refused():
    for change, message in (
        ({"scores": {}}, "config.scores"),
        ({"seed": -1}, "seed"),
        ({"name": "a/b"}, "name"),
        ({"score": 3}, "score: got 3"),
    ):
        with pytest.raises(RequestError, match=message):
            make_config(ConfigDict(change))


def test_what_can_hold_names_is_not_written_down():
    config = config_of("folder")
    config.data.update({"path": "/home/jane/images", "group": "(jane|joe)/"})
    written = describe_config(make_config(config), skip=FREE_FIELDS)
    assert "jane" not in str(written)
    assert written["data"]["side"] == 28


def test_whole_numbers_pass_for_floats_and_lists_for_tuples():
    config = make_config(ConfigDict({"score": {"learning_rate": 1}, "model": {"channels": [32], "attention": [False]}}))
    assert config.score.learning_rate == 1.0
    assert isinstance(config.score.learning_rate, float)
    assert config.model.channels == (32,)
