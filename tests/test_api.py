"""The Python interface: the README's lines, arguments that are not as they must be, and curves with a closed form."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import fpjax
from fpjax.core.errors import RequestError, StageError
from fpjax.core.metrics import MetricsLog
from fpjax.diffusion.sampling import make_grid
from fpjax.engine import slots

from .gaussian import chain_end, gaussian_score_fn

ROOT = Path(__file__).resolve().parents[1]
SDE, SHAPE, MEAN, STD, B = fpjax.SubVP(), (2, 2, 1), 0.2, 0.3, 0.5
SAMPLER = fpjax.SamplerSettings("ancestral", num_levels=10)
KEY = jax.random.key(0)
TARGETS = np.stack([np.full(SHAPE, 1.0, np.float32), np.full(SHAPE, -0.5, np.float32)])


@jax.jit
def detect(images):
    """Both heads: is the first pixel above B?"""
    above = 1.0 * (images[:, 0, 0, 0] > B)
    return jnp.ones(len(images)), jnp.stack([above, above], axis=1)


def search(**changes):
    arguments = {
        "score_fn": gaussian_score_fn(SDE, MEAN, STD), "sde": SDE, "detect": detect, "targets": TARGETS,
        "key": KEY, "sampler": SAMPLER, "engine": fpjax.EngineSettings(slots=64, block_steps=20),
    } | changes  # fmt: skip
    return fpjax.audit_search(**arguments)


def test_the_lines_of_the_readme_run(capsys):
    block = re.search(r"## Your own model.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    names = {}
    exec(block, names)  # noqa: S102
    trained_on, held_out = names["found"].num_detected
    assert trained_on.min() == names["found"].num_chains.max() == 16  # there is nothing else to return to
    assert held_out[-1] == 0
    assert "nan" not in capsys.readouterr().out


def test_curves_are_closed_form_tails_with_weights_as_arguments():
    chains, levels = 300, [1, 3, 5, 8, 10]

    def score_fn(params, x, t):
        return gaussian_score_fn(SDE, params, STD)(x, t)

    found = search(score_fn=score_fn, params=jnp.asarray(MEAN), levels=levels, num_chains=chains)
    grid = make_grid(SAMPLER, SDE)
    np.testing.assert_array_equal(found.t, grid.t[levels])
    for k, x in enumerate((1.0, -0.5)):
        q = np.array([norm.sf(B, *chain_end(SDE, grid, "ancestral", MEAN, STD, level, x)) for level in levels])
        z = (found.num_detected[k] - chains * q) / np.sqrt(chains * q * (1 - q) + 1)
        assert np.abs(z).max() < 4.5
    assert found.evaluations == 2 * chains * sum(levels)
    assert not np.array_equal(found.num_detected[0], found.num_detected[1])


def test_plain_samples_are_counted():
    found = fpjax.audit_count(
        gaussian_score_fn(SDE, MEAN, STD), SDE, detect, TARGETS, key=jax.random.key(1), num_samples=2000, num_members=1,
        sampler=SAMPLER, engine=fpjax.EngineSettings(slots=256, block_steps=20),
    )  # fmt: skip
    grid = make_grid(SAMPLER, SDE)
    q = norm.sf(B, *chain_end(SDE, grid, "ancestral", MEAN, STD, 10, 0.0))
    assert abs(found.num_detected[0] - 2000 * q) < 4.5 * np.sqrt(2000 * q * (1 - q)) + 2000 * 1e-3
    assert found.num_samples == 2000


class Callable:
    def __call__(self, images):
        return detect(images)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda images: detect(images),
        functools.partial(lambda bound, images: detect(images), 0.5),
        jax.jit(detect),
        Callable(),
        lambda images: tuple(np.asarray(scores) for scores in detect(images)),
    ],
    ids=["lambda", "partial", "jitted", "object", "numpy"],
)
def test_any_callable_is_a_detector(wrapped):
    found = search(detect=wrapped, levels=[1, 3], num_chains=8)
    expected = search(levels=[1, 3], num_chains=8)
    np.testing.assert_array_equal(found.num_detected, expected.num_detected)
    counted = [
        fpjax.audit_count(
            gaussian_score_fn(SDE, MEAN, STD), SDE, judge, TARGETS, key=jax.random.key(1), num_samples=50, num_members=1,
            sampler=SAMPLER, engine=fpjax.EngineSettings(slots=64, block_steps=20),
        )
        for judge in (wrapped, detect)
    ]  # fmt: skip
    np.testing.assert_array_equal(counted[0].num_detected, counted[1].num_detected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [3, 2]}, r"levels: got \[3, 2\], expected strictly increasing integers in 1..10; fix: sort"),
        ({"levels": [2, 2]}, "levels: got"),
        ({"levels": [0, 2]}, "levels: got"),
        ({"levels": [2, 11]}, "levels: got"),
        ({"levels": [0.5]}, r"levels: got \[0.5\]"),
        ({"levels": []}, r"levels: got \[\]"),
        ({"num_chains": 0}, "num_chains: got 0, expected an integer in \\[1, 2,147,483,647\\]"),
        ({"num_chains": -1}, "num_chains: got -1"),
        ({"num_chains": 2.5}, "num_chains: got 2.5"),
        ({"num_chains": True}, "num_chains: got True"),
        ({"threshold": float("nan")}, "threshold: got nan, expected a number from 0 to below 1"),
        ({"threshold": 1.5}, "threshold: got 1.5"),
        ({"threshold": 1.0}, "threshold: got 1.0"),
        ({"threshold": -1}, "threshold: got -1"),
        ({"threshold": "0.5"}, "threshold: got '0.5'"),
        ({"num_chains": 2**30}, "work: got .* chains, expected at most 2,147,483,647"),
        ({"targets": TARGETS[0]}, r"targets: got shape \(2, 2, 1\), expected \(k, h, w, c\)"),
        ({"targets": 255 * TARGETS}, r"targets: got values from -127.5 to 255, expected model range"),
        ({"score_fn": lambda x, t: x[None]}, r"score_fn: got float32\[1, 2, 2, 1\], expected float32\[2, 2, 1\]"),
        ({"score_fn": lambda x, t: (x, x)}, "score_fn: got float32"),
        ({"score_fn": lambda x, t: x.astype(jnp.bfloat16)}, "score_fn: got bfloat16"),
        ({"detect": lambda x: x.mean((1, 2, 3))}, r"detect: got float32\[256\], expected .*\[256, 2\]"),
        ({"detect": lambda x: (x, x)}, r"detect: got float32\[256, 2, 2, 1\]"),
        ({"detect": lambda x: (x[:, 0, 0, 0] > 0, x[:, 0, :, 0])}, r"detect: got bool\[256\]"),
        ({"key": jax.random.PRNGKey(0)}, r"key: got .*expected a typed key; fix: .*jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0))}, r"key: got \w+ key<fry> \(2,\)"),
        ({"key": 0}, "key: got int"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(changes, message):
    with pytest.raises(RequestError, match=message) as error:
        search(**changes)
    assert "\n" not in str(error.value)
    assert "fix: " in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 10.5}, "num_samples: got 10.5, expected an integer in \\[1, 2,147,483,647\\]"),
        ({"num_samples": 0}, "num_samples: got 0"),
        ({"num_members": 1.0}, "num_members: got 1.0, expected an integer in \\[1, 2\\]"),
        ({"num_members": 3}, "num_members: got 3"),
        ({"num_members": 0}, "num_members: got 0"),
        ({"threshold": float("nan")}, "threshold: got nan"),
    ],
)
def test_bad_counts_are_refused(changes, message):
    arguments = {"num_samples": 8, "num_members": 1, "key": jax.random.key(0), "sampler": SAMPLER} | changes
    with pytest.raises(RequestError, match=message):
        fpjax.audit_count(gaussian_score_fn(SDE, MEAN, STD), SDE, detect, TARGETS, **arguments)


def test_slots_never_exceed_the_work():
    found = search(engine=fpjax.EngineSettings(block_steps=20), levels=[3, 7], num_chains=5)
    assert fpjax.EngineSettings().slots == 1024
    assert found.executed <= 1.5 * found.evaluations


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_transfer_guard", "disallow"),
        ("jax_default_prng_impl", "rbg"),
        ("jax_random_seed_offset", 7),
        ("jax_debug_nans", True),
    ],
)
def test_settings_of_a_notebook_change_nothing(name, value):
    """And they are there again afterwards, also after an error."""
    expected, before = search(num_chains=3), getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        found = search(num_chains=3)
        assert getattr(getattr(jax.config, name), "value", getattr(jax.config, name)) == value
        with pytest.raises(RequestError):
            search(num_chains=-1)
        assert getattr(getattr(jax.config, name), "value", getattr(jax.config, name)) == value
    finally:
        jax.config.update(name, before)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_setting_that_cannot_be_left_is_refused():
    with jax.enable_x64(True), pytest.raises(RequestError, match="jax_enable_x64: got True in a context"):
        search(num_chains=3)
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32


def test_a_score_or_detector_that_is_not_a_number_names_the_chain():
    with pytest.raises(StageError, match="chain 0 of target 0 at level 7 became non-finite"):
        search(score_fn=lambda x, t: jnp.where(t > 0.6, jnp.nan, -x), levels=[2, 7], num_chains=1)

    def blind(images):
        fingerprint, identity = detect(images)
        return fingerprint, jnp.where(images[:, 0, 0, :1] > -0.4, identity, jnp.nan)

    with pytest.raises(StageError, match="detector's score of chain [0-3] of target 1 at level 1 is not a number"):
        search(detect=blind, levels=[1], num_chains=4)


def test_importing_is_quick_and_every_name_is_there():
    """In a process of its own: no plotting, no checkpoints; and without any name not even JAX."""
    script = (
        "import sys, fpjax; assert 'jax' not in sys.modules; "
        "names = [name for name in dir(fpjax) if not name.startswith('_')]; [getattr(fpjax, name) for name in names]; "
        "assert 'audit_search' in names; loaded = {name.split('.')[0] for name in sys.modules}; "
        "assert not loaded & {'matplotlib', 'orbax', 'ml_collections', 'absl_flags'}, loaded"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="No fpjax attribute nothing"):
        _ = fpjax.nothing


def test_a_saved_search_is_that_of_its_model_targets_and_threshold(tmp_path, monkeypatch):
    """What another model left behind is not taken up, and nothing is left once the answer is there."""
    monkeypatch.setattr(slots, "SAVE_EVERY_S", -1.0)
    path, targets = tmp_path / "search.npz", np.zeros((1, 2, 2, 1), np.float32)

    def score_fn(params, x, t):
        return -params * x

    @jax.jit
    def detect(images):
        return jnp.ones(len(images)), jnp.exp(-jnp.mean(images**2, axis=(1, 2, 3)))[:, None]

    class Stop(Exception):
        pass

    class StoppingLog(MetricsLog):
        def __init__(self):
            pass

        def write(self, *_, **__):
            self.blocks = getattr(self, "blocks", 0) + 1
            if self.blocks == 3:
                raise Stop

    def run(scale, shift=0.0, **options):
        options = {"num_chains": 4, "sampler": fpjax.SamplerSettings("ancestral", num_levels=20)} | options
        engine = fpjax.EngineSettings(slots=4, block_steps=8)
        params, key = jnp.asarray(scale), jax.random.key(0)
        return fpjax.audit_search(
            score_fn,
            fpjax.SubVP(),
            detect,
            targets + np.float32(shift),
            params=params,
            key=key,
            engine=engine,
            **options,
        )

    for other in ({"scale": 1.0}, {"scale": 0.5, "shift": 0.25}, {"scale": 0.5, "threshold": 0.9}):
        with pytest.raises(Stop):
            run(**other, path=path, log=StoppingLog())
        assert path.is_file()
        found, fresh = run(0.5, path=path), run(0.5)
        np.testing.assert_array_equal(found.num_detected, fresh.num_detected)
        assert found.executed == fresh.executed
        assert not path.is_file()
    # Its own is taken up, and ends the same.
    with pytest.raises(Stop):
        run(0.5, path=path, log=StoppingLog())
    log = StoppingLog()
    log.blocks = 10
    found = run(0.5, path=path, log=log)
    np.testing.assert_array_equal(found.num_detected, run(0.5).num_detected)
    everything = StoppingLog()
    everything.blocks = 10
    run(0.5, log=everything)
    assert log.blocks < everything.blocks
