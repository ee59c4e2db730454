"""How the detectors are trained, and what they have learned to look at."""

import functools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fpjax.core.checkpoints import Checkpoints
from fpjax.core.errors import RequestError
from fpjax.core.images import to_model
from fpjax.core.metrics import MetricsLog, read_metrics
from fpjax.core.store import tree_digest
from fpjax.data.fingerprint import FINGERPRINT_VALUE, disc_mask, stamp
from fpjax.data.phantom import phantom_images
from fpjax.detectors.augment import stamp_randomly
from fpjax.detectors.augmix import AugMixSettings, jensen_shannon
from fpjax.detectors.calibration import Sight
from fpjax.detectors.classifier import NAMES, make_classifier_detector, make_models, train_detectors
from fpjax.detectors.examples import DetectorData, Task
from fpjax.detectors.fitting import FitState, init_fit, make_fit_step
from fpjax.detectors.settings import ClassifierSettings
from fpjax.models.resnet import ResNetSettings

from .conftest import ROOT

SIDE, RADIUS, HEADS = 12, 2, 3
CENTERS = np.array([[4, 5], [6, 9], [8, 4]], np.int32)


def phantom_data():
    """Three targets, 80 images to train on and 57 to validate with."""
    images = to_model(phantom_images(140, side=SIDE, seed=3))
    train = DetectorData(images[3:83], images[:3], CENTERS)
    return train, train._replace(others=images[83:])


def train(path, models, settings, *, data=None, devices=None, log=None, spares=0):
    checkpoints = {name: Checkpoints(path / name) for name in NAMES}
    try:
        return train_detectors(
            models,
            *(data or phantom_data()),
            settings,
            augmix_settings=AugMixSettings(),
            key=jax.random.key(0),
            radius=RADIUS,
            checkpoints=checkpoints,
            log=log or MetricsLog(path / "metrics.jsonl"),
            spares=spares,
            devices=devices or jax.devices()[:1],
        )
    finally:
        for part in checkpoints.values():
            part.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A detect function of two small networks, and the images that they were trained on."""
    settings = ClassifierSettings(
        learning_rate=5e-3, batch_size=32, steps_per_epoch=25, epochs=24, max_rounds=3, num_val=300,
        identity_rate=0.3, max_masks=2, augmix=False,
    )  # fmt: skip
    models = make_models(ResNetSettings((1, 1), block="basic", width=8, stem="small"), HEADS)
    found = train(tmp_path_factory.mktemp("trained"), models, settings)
    assert found.seen.all()
    detect = make_classifier_detector(models, found.variables, calibration=found.calibration).detect_fn
    return detect, *phantom_data()


def detected(detect, images):
    return [np.asarray(scores) > 0.5 for scores in detect(jnp.asarray(images))]


def freshly_stamped(images, seed):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return jax.vmap(functools.partial(stamp_randomly, radius=RADIUS))(keys, jnp.asarray(images))


def test_identity_knows_the_clean_original_under_a_fresh_disc(trained):
    detect, data, _ = trained
    for head in range(HEADS):
        _, who = detected(detect, freshly_stamped(np.repeat(data.originals[head][None], 200, axis=0), seed=head))
        assert who[:, head].mean() > 0.9
        assert np.delete(who, head, axis=1).mean() < 0.05


def test_identity_is_neither_the_mark_nor_its_place(trained):
    """Images of training and of validation under each target's own disc are not it."""
    detect, data, val = trained
    for others in (data.others, val.others):
        for head in range(HEADS):
            mask = disc_mask((SIDE, SIDE), tuple(CENTERS[head]), RADIUS)
            _, who = detected(detect, np.stack([stamp(image, mask, FINGERPRINT_VALUE) for image in others]))
            assert who[:, head].mean() < 0.1


def test_identity_tells_the_target_from_its_nearest_neighbours(trained):
    detect, data, _ = trained
    for head in range(HEADS):
        gaps = np.mean((data.others - data.originals[head]) ** 2, axis=(1, 2, 3))
        near = data.others[np.argsort(gaps)[:5]]
        assert detected(detect, data.originals)[1][head, head]
        assert detected(detect, near)[1][:, head].mean() <= 0.2


def test_fingerprint_sees_a_disc_anywhere_and_not_its_absence(trained):
    detect, _, val = trained
    clean, _ = detected(detect, val.others)
    assert clean.mean() < 0.1
    places = [(r, c) for r in range(RADIUS, SIDE - RADIUS) for c in range(RADIUS, SIDE - RADIUS)]
    stamped = [stamp(val.others[i % 20], disc_mask((SIDE, SIDE), place, RADIUS), FINGERPRINT_VALUE)
               for i, place in enumerate(places)]  # fmt: skip
    marked, _ = detected(detect, np.stack(stamped))
    assert marked.mean() > 0.85


class Linear(nn.Module):
    """The smallest network with batch statistics."""

    num_heads: int

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.reshape(len(x), -1))
        return nn.Dense(self.num_heads)(x)


LINEAR: Any = (Linear(1), Linear(HEADS))
QUICK = ClassifierSettings(
    learning_rate=0.01,
    batch_size=8,
    steps_per_epoch=3,
    epochs=8,
    max_rounds=1,
    max_restarts=0,
    num_val=301,
    max_masks=1,
    augmix=False,
)


@pytest.fixture
def easy(monkeypatch):
    """Examples that cost nothing: bright images are the first target."""

    def example(key, data, heads):
        label = jax.random.bernoulli(key, 0.3, (heads,)).astype(jnp.float32)
        return 0.1 * data.others[0] + label[0] + jax.random.normal(key, data.others[0].shape), label

    tasks = [Task(f"{name} classifier", (functools.partial(example, heads=n),), functools.partial(example, heads=n), 1.0)
             for name, n in (("fingerprint", 1), ("identity", HEADS))]  # fmt: skip
    monkeypatch.setattr("fpjax.detectors.classifier.make_tasks", lambda *_, **__: tasks)


def assert_same(a, b, **tolerance):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, **tolerance or {"rtol": 0, "atol": 0})


@pytest.mark.slow
def test_interrupted_and_resumed_on_other_devices_it_ends_alike(tmp_path, easy):
    whole = train(tmp_path / "whole", LINEAR, QUICK)

    class Killed(Exception):
        pass

    class Dying(MetricsLog):
        def write(self, stage, **values):
            if stage.startswith("identity") and values["epoch"] > 6:
                raise Killed

    for devices, tolerance in ((1, {}), (2, {"rtol": 1e-4, "atol": 1e-5})):
        path = tmp_path / f"{devices}"
        with pytest.raises(Killed):
            train(path, LINEAR, QUICK, log=Dying(path / "metrics.jsonl"))
        resumed = train(path, LINEAR, QUICK, devices=jax.devices()[:devices])
        assert [event["epoch"] for event in read_metrics(path / "metrics.jsonl")] == [6, 7, 8]
        assert_same(whole.variables, resumed.variables, **tolerance)


@pytest.mark.slow
def test_scanned_epochs_are_the_single_steps(tmp_path, monkeypatch, easy):
    """Accelerators take an epoch in one dispatch."""
    single = train(tmp_path / "single", LINEAR, QUICK)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    scanned = train(tmp_path / "scanned", LINEAR, QUICK)
    assert_same(single.variables, scanned.variables, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backend", "loops"), [("cpu", False), ("gpu", True)])
def test_no_gradient_stands_in_a_loop_on_cpu(tmp_path, monkeypatch, easy, backend, loops):
    """There a convolution's is ten times slower."""
    seen, scan = [], jax.lax.scan
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.lax, "scan", lambda f, *rest, **more: seen.append(rest) or scan(f, *rest, **more))
    settings = ClassifierSettings(
        batch_size=8, steps_per_epoch=2, epochs=1, max_rounds=1, max_restarts=0, num_val=300, augmix=False
    )
    train(tmp_path, LINEAR, settings)
    assert any(isinstance(rest[0], FitState) for rest in seen) == loops


def test_what_is_judged_is_the_average_of_the_weights_at_the_end_of_a_decaying_rate(tmp_path, easy):
    found = train(tmp_path, LINEAR, QUICK)
    events = [e for e in read_metrics(tmp_path / "metrics.jsonl") if e["stage"] == "identity classifier"]
    assert [event["epoch"] for event in events] == list(range(1, 9))
    assert all(0 <= event["val_accuracy"] <= 1 for event in events)
    image = jnp.asarray(phantom_data()[0].others[:1])
    state = Checkpoints(tmp_path / "identity").restore(init_fit(LINEAR[1], QUICK, jax.random.key(0), image))
    assert_same(found.variables["identity"], state.averaged)
    assert int(state.step) == 24
    # The rate has fallen to 0, so that the last steps moved the weights by little; the average lags behind them.
    moved = [float(np.abs(a - b).max()) for a, b in zip(
        jax.tree.leaves(state.averaged["params"]), jax.tree.leaves(state.variables["params"]), strict=True
    )]  # fmt: skip
    assert 0 < max(moved) < QUICK.learning_rate * 4


@pytest.mark.parametrize(
    ("opens", "spares", "trained_for"),
    [
        ((1, 1), 0, (1, 4)),  # at once
        ((1, 3), 0, (1, 12)),  # after the third round of the first attempt
        ((2, 1), 0, (2, 4)),  # not in the first attempt
        ((9, 9), 0, (2, 12)),  # never: the last attempt counts
        ((9, 9), 1, (1, 12)),  # one target may stay unseen, after all rounds of one attempt
    ],
)
def test_training_goes_on_then_starts_again_until_the_gate_opens(
    tmp_path, easy, monkeypatch, capsys, opens, spares, trained_for
):
    """The gate in place of a network's sight: open from (attempt, round) on."""
    looks = []

    def look(model, variables, images, **_):
        attempt, number = divmod(len(looks), 3)
        looks.append(variables)
        shut = (attempt + 1, number + 1) < opens
        return Sight(np.array([1.0, 1.0, -1.0 if shut else 1.0], np.float32), np.zeros(3, np.float32))

    ok = Sight(np.ones(3, np.float32), np.zeros(3, np.float32))
    monkeypatch.setattr("fpjax.detectors.classifier.look_for_targets", look)
    monkeypatch.setattr("fpjax.detectors.classifier.look_for_marks", lambda *_, **__: ok)
    settings = ClassifierSettings(
        batch_size=8, steps_per_epoch=1, epochs=4, max_rounds=3, max_restarts=1, num_val=300, augmix=False
    )
    found = train(tmp_path, LINEAR, settings, spares=spares)
    assert (found.attempts["identity"], found.epochs["identity"]) == trained_for
    assert (found.attempts["fingerprint"], found.epochs["fingerprint"]) == (1, 4)
    assert found.seen.tolist() == [True, True, opens != (9, 9)]
    said = capsys.readouterr().err
    assert said.count("1 of 3 targets not seen") == len(looks) - (opens != (9, 9))
    assert ("starts again" in said) == (trained_for[0] == 2)
    if trained_for[0] == 2:
        # Other weights, not the same ones trained on.
        assert not np.array_equal(*(jax.tree.leaves(looks[i]["params"])[1] for i in (0, 3)))


@pytest.mark.slow
def test_killed_in_a_later_attempt_it_ends_alike(tmp_path, easy, monkeypatch):
    seen = []

    def look(model, variables, images, **_):
        """Shut for the first three networks that it is shown, by their weights: a resumed training shows some again."""
        digest = tree_digest(variables)
        seen.extend([digest] * (digest not in seen))
        return Sight(np.full(3, 1.0 if seen.index(digest) >= 3 else -1.0, np.float32), np.zeros(3, np.float32))

    class Killed(Exception):
        pass

    class Dying(MetricsLog):
        def write(self, stage, **values):
            if stage.startswith("identity") and values["epoch"] == 15:
                raise Killed

    ok = Sight(np.ones(3, np.float32), np.zeros(3, np.float32))
    monkeypatch.setattr("fpjax.detectors.classifier.look_for_targets", look)
    monkeypatch.setattr("fpjax.detectors.classifier.look_for_marks", lambda *_, **__: ok)
    settings = ClassifierSettings(
        batch_size=8, steps_per_epoch=2, epochs=6, max_rounds=2, max_restarts=1, num_val=300, augmix=False
    )
    whole = train(tmp_path / "whole", LINEAR, settings)
    assert (whole.attempts["identity"], whole.epochs["identity"]) == (2, 12)
    seen.clear()
    with pytest.raises(Killed):
        train(tmp_path / "killed", LINEAR, settings, log=Dying(tmp_path / "m.jsonl"))
    resumed = train(tmp_path / "killed", LINEAR, settings)
    assert_same(whole.variables, resumed.variables)
    assert (resumed.attempts, resumed.epochs) == (whole.attempts, whole.epochs)


def test_the_loss_weighs_positives_and_adds_the_views_divergence():
    """One step's loss by hand, through a network that is a constant."""
    settings = ClassifierSettings(batch_size=4, js_weight=12.0, learning_rate=0.1)
    logits = jnp.array([[0.3, -1.0], [0.5, -0.5], [2.0, 0.0]])

    class Known(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            self.variable("batch_stats", "n", lambda: jnp.zeros(()))
            return x.reshape(len(x), -1) + self.param("w", nn.initializers.zeros, ())

    labels = jnp.array([1.0, 0.0])
    views = tuple((lambda key, data, row=row: (row.reshape(1, 1, 2), labels)) for row in logits)
    state = init_fit(Known(), settings, jax.random.key(0), jnp.zeros((1, 1, 1, 2)))
    data = phantom_data()[0]
    losses = []
    for shown in (views, views[:1]):
        known = ClassifierSettings(batch_size=4, js_weight=12.0 if len(shown) == 3 else 0.0)
        step = jax.jit(make_fit_step(Known(), Task("known", shown, shown[0], 5.0), known))
        losses.append(float(step(state, data, jax.random.key(0))[1]))
    bce = np.mean([5.0 * np.log1p(np.exp(-0.3)), np.log1p(np.exp(-1.0))])
    assert losses[1] == pytest.approx(bce, rel=1e-5)
    assert losses[0] == pytest.approx(bce + 12.0 * float(jensen_shannon(*logits[:, None])), rel=1e-5)
    assert losses[0] > 1.1 * losses[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d._replace(others=np.full_like(d.others, np.nan)), "others.*: got values from nan to nan"),
        (lambda d: d._replace(originals=d.originals * 128), "originals.*expected -1 to 1"),
        (lambda d: d._replace(others=d.others[:0]), "others.*expected at least one"),
        (lambda d: d._replace(others=d.others[..., :5, :]), r"got float32 of shape \(57, 12, 5, 1\)"),
        (lambda d: d._replace(others=d.others.astype(np.uint8)), "got uint8"),
        (lambda d: d._replace(originals=np.repeat(d.originals, 2, axis=0)), "got 6 targets, expected 3, the outputs"),
        (lambda d: d._replace(centers=d.centers + 5), "centers.*expected row and column of 3 discs"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_before_compute(tmp_path, change, message):
    data, val = phantom_data()
    with pytest.raises(RequestError, match=f"validation images of the detectors .*{message}.*; fix: "):
        train(tmp_path, LINEAR, QUICK, data=(data, change(val)))


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
    settings = ClassifierSettings(batch_size=9)
    with pytest.raises(RequestError, match="classifiers.batch_size: got 9, expected a multiple of 2, for 2 devices"):
        train(tmp_path, LINEAR, settings, devices=jax.devices())


PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from fpjax.detectors.augmix import AugMixSettings
from fpjax.detectors.examples import DetectorData, make_tasks
from fpjax.detectors.fitting import detector_mesh, init_fit, make_fit_step
from fpjax.detectors.settings import ClassifierSettings
from fpjax.models.resnet import ResNet, ResNetSettings

settings = ClassifierSettings(batch_size=16, max_masks=1, learning_rate=1e-3)
model = ResNet(ResNetSettings((1,), block="basic", width=4, stem="small"), num_heads=2)
task = make_tasks(settings, AugMixSettings(), num_targets=2, radius=1)[1]
images = np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 1)).astype(np.float32)
data = DetectorData(images[2:], images[:2], np.array([[2, 2], [4, 5]], np.int32))
ends = []
for n in (1, 8):
    mesh = detector_mesh(settings, devices=jax.devices()[:n])
    state = init_fit(model, settings, jax.random.key(0), images[:1])
    everywhere = NamedSharding(mesh, PartitionSpec())
    args = jax.device_put((state, data, jax.random.key(1)), everywhere)
    step = jax.jit(make_fit_step(model, task, settings, mesh=mesh)).lower(*args).compile()
    state, loss = step(*args)
    found = loss, state.variables["batch_stats"], state.opt_state[0].mu
    ends.append((*jax.device_get(found), step.cost_analysis()["flops"]))
gaps = [max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *part))) for part in zip(*ends)][:3]
moved = max(float(np.abs(leaf - round(float(leaf.mean()))).max()) for leaf in jax.tree.leaves(ends[0][1]))
print(json.dumps({"gaps": gaps, "moved": moved, "share": ends[1][3] / ends[0][3]}))
"""


@pytest.mark.slow
def test_eight_devices_have_one_devices_loss_statistics_and_gradient():
    """Batch norm sees the whole batch, whatever the devices; each does its share."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert max(found["gaps"]) < 1e-5
    assert found["moved"] > 1e-3
    assert found["share"] < 0.3
