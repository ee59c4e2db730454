"""What is counted of the detectors' errors, and the audit of the auditor, on detectors whose errors are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.audit.detection import audit_auditor
from fpjax.audit.verdict import AuditSettings
from fpjax.core.errors import RequestError
from fpjax.core.metrics import MetricsLog
from fpjax.data.fingerprint import FINGERPRINT_VALUE
from fpjax.detectors.base import as_detect_fn, check_scores, detect_all
from fpjax.detectors.evaluation import (
    ROC_THRESHOLDS,
    Residue,
    conditions,
    count_above,
    measure_errors,
)
from fpjax.detectors.settings import ClassifierSettings
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.oracle import empirical_score_fn
from fpjax.diffusion.sampling import SAMPLERS
from fpjax.diffusion.sde import SubVP
from fpjax.engine import slots
from fpjax.engine.chains import EngineSettings, make_engine
from fpjax.studies.count import CountSettings, count
from fpjax.studies.memoriser import audit_oracle

SIDE, RADIUS = 12, 2


def test_scores_are_counted_above_fixed_thresholds():
    scores = np.random.default_rng(0).uniform(0, 1, (7, 40)).astype(np.float32)
    np.testing.assert_array_equal(count_above(scores), [(scores > c).sum() for c in ROC_THRESHOLDS])
    assert ROC_THRESHOLDS[16] == 0.5
    assert count_above(np.full(3, 0.5))[15:18].tolist() == [3, 0, 0]  # not above its own value
    assert count_above(np.zeros(0)).sum() == 0


def grey(values):
    """Flat uint8 images."""
    return np.asarray(values, np.uint8)[:, None, None, None] * np.ones((1, SIDE, SIDE, 1), np.uint8)


@jax.jit
def read(images):
    """Scores of flat images: the share of the mark's grey; and 0.9 or 0.2 for heads of bytes 240 and 200."""
    mark = jnp.mean(jnp.abs(images - FINGERPRINT_VALUE) < 1e-4, axis=(1, 2, 3)) > 0.05
    value = jnp.median(images.reshape(len(images), -1), axis=1)
    heads = [jnp.where(jnp.abs(value - (byte + 0.5) / 128 + 1) < 0.02, 0.9, 0.2) for byte in (240, 200)]
    return jnp.where(mark, 0.8, 0.1), jnp.stack(heads, axis=1)


# The settings hold no noise, so that a flat image stays flat: under noise the reader above sees nothing.
QUIET = ClassifierSettings(max_noise=0.0, max_masks=0, max_tone=0.0, max_blur=0.0, thresholds=(0.15, 0.85))


@pytest.fixture(scope="module")
def measured():
    """Twenty held-out images, three of which look like the second target."""
    images = grey([*range(10, 27), 200, 200, 200])
    key = jax.random.key(0)
    targets = grey([240, 100])
    planted = targets.copy()
    planted[:, 2:7, 2:7] = 128
    options = {"radius": RADIUS, "marks": True, "settings": QUIET, "draws_per_target": 8}
    return measure_errors(read, images, targets, planted, key=key, **options)


def test_errors_are_those_of_the_detector(measured):
    errors, _ = measured
    by_name = {(roc.decision, roc.condition): roc for roc in errors.roc}
    assert {condition for _, condition in by_name} == {"plain", "noise", "twice the noise", "masks"}
    assert ("fingerprint", "masks") not in by_name  # a mask is a mark
    mark, who, both = (by_name[decision, "plain"] for decision in ("fingerprint", "identity", "joint"))
    assert (mark.num_positives, mark.num_negatives, mark.missed, mark.false_images) == (20, 20, 0, 0)
    # The second head knows 200 and its target is 100: all of its draws are missed, and three images are false.
    assert (who.num_positives, who.num_negatives, who.num_images) == (16, 40, 20)
    assert (who.missed, who.false_images) == (both.missed, both.false_images) == (8, 3)
    assert who.positives_above[16] == 8
    assert who.negatives_above[16] == 3
    assert both.positives_above[-1] == 0
    np.testing.assert_array_equal(errors.false_by_head, [0, 3])
    # Below 0.15 all scores of the identity lie, above 0.85 the mark's do not reach.
    np.testing.assert_array_equal(errors.false_images_at, [20, 0])
    np.testing.assert_array_equal(errors.missed_at, [0, 16])
    # As planted, and its copies, which are no poorer here: the first head knows its target, the second does not.
    assert (errors.planted_found.tolist(), errors.poor_found.tolist()) == ([1, 0], [8, 0])


def test_pictures_are_the_errors_themselves(measured):
    _, pictures = measured
    assert len(pictures.fingerprint_false) == 0
    assert np.median(pictures.identity_false, axis=(1, 2, 3)).tolist() == [200] * 3
    assert pictures.identity_false_head.tolist() == [1] * 3
    assert (pictures.identity_false == 128).any(axis=(1, 2, 3)).all()  # under their marks
    assert np.median(pictures.missed, axis=(1, 2, 3)).tolist() == [100] * 8
    assert pictures.missed_head.tolist() == [1] * 8


def test_errors_are_plain_counts(measured):
    errors = measured[0]
    assert len(errors.roc) == 11
    for roc in errors.roc:
        assert roc.positives_above.dtype.kind == roc.negatives_above.dtype.kind == "i"
        assert (np.diff(roc.positives_above) <= 0).all()


def test_conditions_do_what_they_say():
    image, keys = jnp.full((SIDE, SIDE, 1), 0.3), jax.random.split(jax.random.key(0), 200)
    changes = conditions(ClassifierSettings(max_noise=0.1, max_masks=3), RADIUS)
    changed = {name: np.asarray(jax.vmap(lambda key, f=f: f(key, image))(keys)) for name, f in changes.items()}
    np.testing.assert_array_equal(changed["plain"], np.broadcast_to(image, changed["plain"].shape))
    spread = changed["noise"].std(axis=(1, 2, 3))
    assert spread.max() < 0.12
    assert spread.min() < 0.02
    np.testing.assert_allclose(changed["twice the noise"].std(axis=(1, 2, 3)), 0.2, atol=0.05)
    assert set(np.unique(changed["masks"]).round(4)) == {np.float32(FINGERPRINT_VALUE).round(4), np.float32(0.3)}
    tones = changed["other tones and blur"]
    assert np.ptp(tones, axis=(1, 2, 3)).max() < 1e-5  # a flat image has no contrast and nothing to blur
    assert 0.05 < tones[:, 0, 0, 0].std() < 0.2
    assert "other tones and blur" not in conditions(ClassifierSettings(max_tone=0.0, max_blur=0.0), RADIUS)
    assert "masks" not in conditions(ClassifierSettings(), 0)


def test_residue_is_counted_alike_in_any_blocks():
    rng = np.random.default_rng(1)
    fingerprint, identity = rng.uniform(size=50).astype(np.float32), rng.uniform(size=(50, 3)).astype(np.float32)
    own = rng.integers(0, 3, 50)

    def tallied(cuts):
        tally = Residue.zeros()
        for rows in np.split(np.arange(50), cuts):
            tally.add(fingerprint[rows], identity[rows], own[rows], threshold=0.5)
        return tally.roc()

    mark, who, both = tallied([])
    for other, roc in zip(tallied([0, 7, 30]), (mark, who, both), strict=True):
        np.testing.assert_equal(vars(other), vars(roc))
    assert (mark.num_positives, mark.num_negatives) == (50, 0)
    own_scores = [identity[i, own[i]] for i in range(50)]
    others = [identity[i, j] for i in range(50) for j in range(3) if j != own[i]]
    assert (who.num_positives, who.num_negatives, who.num_images) == (50, 100, 50)
    assert who.missed == sum(score <= 0.5 for score in own_scores)
    assert who.negatives_above[20] == sum(score > ROC_THRESHOLDS[20] for score in others)
    joint = [min(a, b) for a, b in zip(own_scores, fingerprint, strict=True)]
    assert both.missed == sum(score <= 0.5 for score in joint)


# Detectors of any make


def test_any_function_is_a_detector():
    images = jnp.linspace(-1, 1, 6).reshape(6, 1, 1, 1)
    for function in (
        lambda x: np.asarray(x).reshape(-1, 1) * np.array([0.5, -0.5]) + 0.5,  # NumPy, identity alone
        lambda x: (np.ones(len(x)), (np.asarray(x).reshape(-1, 1) * [0.5, -0.5] + 0.5).tolist()),
    ):
        detect = as_detect_fn(function, num_targets=2)
        fingerprint, identity = detect_all(detect, images, np.array([5, 0, 2]), batch_size=2)
        np.testing.assert_array_equal(fingerprint, 1)
        np.testing.assert_allclose(identity, [[1, 0], [0, 1], [0.4, 0.6]], atol=1e-6)
        assert detect_all(detect, images, np.array([], int))[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.full((4, 2), np.nan), "identity scores: got nan at image 0, target 0, expected numbers in"),
        (np.array([[0, 1], [0, 1], [0, -0.1], [0, 1]]), "got -0.1.* at image 2, target 1"),
        (np.full((4, 2), 1.5), "got 1.5 at image 0"),
        (np.zeros((4, 3)), r"identity scores: got shape \(4, 3\), expected \(4, 2\)"),
        (np.zeros(4), r"got shape \(4,\)"),
        ((np.full(4, np.inf), np.zeros((4, 2))), "fingerprint scores: got inf at image 0, expected"),
        ((np.zeros(3), np.zeros((4, 2))), r"fingerprint scores: got shape \(3,\)"),
        ((np.zeros(4), np.zeros((4, 2)), 0), "got 3 results"),
        ([["yes", "no"]] * 4, "identity scores: got list, expected an array of numbers"),
    ],
)
def test_scores_that_are_none_are_refused_by_name(found, message):
    detect = as_detect_fn(lambda images: found, num_targets=2)
    with pytest.raises(RequestError, match=message) as error:
        detect(jnp.zeros((4, 1, 1, 1)))
    assert "fix:" in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_of_any_detector_are_checked_on_real_images():
    with pytest.raises(RequestError, match="identity scores: got nan at image 0, target 0"):
        measure_errors(
            lambda images: (jnp.ones(len(images)), jnp.full((len(images), 2), jnp.nan)),
            grey([1, 2]),
            grey([3, 4]),
            grey([3, 4]),
            key=jax.random.key(0),
            radius=0,
            marks=False,
            settings=QUIET,
        )
    fingerprint, identity = check_scores([0, 1], [[0.5], [1]], images=2, targets=1)
    assert (fingerprint.dtype, identity.dtype) == (np.float32, np.float32)


def test_any_function_is_a_detector_of_chains(memoriser):
    """NumPy on the host in place of a compiled function."""
    engine, train, targets = memoriser
    detect = as_detect_fn(
        lambda x: np.abs(np.asarray(x)[:, None] - targets).max(axis=(2, 3, 4)) < 0.1, num_targets=len(targets)
    )
    settings = CountSettings(num_samples=50, sensitivity_chains=8)
    common = {"num_members": 1, "threshold": 0.5, "key": jax.random.key(1)}
    found, same = (
        count(engine, jnp.asarray(train), targets, d, settings, **common)[0] for d in (detect, by_distance(targets))
    )
    np.testing.assert_array_equal(found.num_detected, same.num_detected)
    np.testing.assert_array_equal(found.sensitivity_detected, same.sensitivity_detected)


# The audit of the auditor, on chains


SDE = SubVP()
GRID = time_grid(SDE, 12)


@pytest.fixture(scope="module")
def memoriser():
    """Twelve images of 2x2 pixels, of which one is the member, two held-out targets, and an engine of their score."""
    images = np.random.default_rng(0).uniform(-0.9, 0.9, (14, 2, 2, 1)).astype(np.float32)
    engine = make_engine(
        lambda images: SAMPLERS["ancestral"](SDE, GRID, empirical_score_fn(SDE, images)),
        GRID,
        (2, 2, 1),
        EngineSettings(64, 12),
    )
    return engine, images[:12], images[[0, 12, 13]]


def by_distance(targets):
    """A detector that is right: an image within 0.1 of a target."""
    return jax.jit(
        lambda x: (
            jnp.ones(len(x)),
            (jnp.abs(x[:, None] - targets[None]).max(axis=(2, 3, 4)) < 0.1).astype(jnp.float32),
        )
    )


@pytest.mark.parametrize("kind", ["right", "blind", "yes"])
def test_the_auditor_is_found_out(memoriser, tmp_path, kind):
    """The memoriser in place of the trained model too: its member leaks, and only a good detector may say so."""
    engine, train, targets = memoriser
    detect = {
        "right": by_distance(targets),
        "blind": jax.jit(lambda x: (jnp.zeros(len(x)), jnp.zeros((len(x), 3)))),
        "yes": jax.jit(lambda x: (jnp.ones(len(x)), jnp.ones((len(x), 3)))),
    }[kind]
    common = {"num_members": 1, "threshold": 0.5, "log": MetricsLog(tmp_path / "m.jsonl"), "key": jax.random.key(1)}
    settings = CountSettings(num_samples=400, sensitivity_chains=64)
    oracle = audit_oracle(engine, train, targets, detect, num_samples=600, path=tmp_path / "o.npz", **common)
    counted, pictures = count(
        engine, jnp.asarray(train), targets, detect, settings, thresholds=(0.9,), path=tmp_path / "c.npz", **common
    )
    # Two held-out targets give p >= 1/3.
    levels = AuditSettings(level=0.7, count_level=0.35, t50_level=0.35)
    memorised, controls = audit_auditor(counted, oracle, levels, members=1)
    assert memorised.possible
    assert memorised.vetoes
    assert memorised.passed == (kind == "right")
    assert not controls.vetoes
    assert not audit_auditor(counted, oracle, AuditSettings(), members=1)[0].possible
    hits, low = {"right": (None, 64), "blind": (0, 0), "yes": (400, 64)}[kind]
    assert hits is None or counted.num_detected.tolist() == [hits] * 3
    assert oracle.reproduced[0] > 20
    assert oracle.detected[0] == (0 if kind == "blind" else oracle.reproduced[0])
    # Chains from low levels come back, also those of targets that nothing was trained on.
    assert counted.sensitivity_detected[0] == low
    assert counted.sensitivity_detected_at.shape == (3, 1)
    assert counted.roc[2].num_positives == 3 * 64
    assert len(pictures.errors["control"]) == (8 if kind == "yes" else 0)
    assert len(pictures.errors["missed"]) == (8 if kind == "blind" else 0) or kind == "right"
    assert (pictures.errors["fingerprint_only"].size, pictures.errors["identity_only"].size) == (
        (0, 0) if kind != "right" else (8 * 4, 0)
    )


def test_an_interrupted_oracle_is_that_of_its_threshold(memoriser, tmp_path, monkeypatch):
    """Scores of 0.7: nothing above 0.9, everything above 0.5."""
    engine, train, targets = memoriser
    monkeypatch.setattr(slots, "SAVE_EVERY_S", -1.0)

    class Stopping(MetricsLog):
        blocks = 0

        def __init__(self):
            pass

        def write(self, *_, **__):
            self.blocks += 1
            if self.blocks == 3:
                raise KeyboardInterrupt

    def run(threshold, log=None):
        detect = jax.jit(lambda x: (jnp.ones(len(x)), jnp.full((len(x), 3), 0.7)))
        common = {"num_members": 1, "threshold": threshold, "key": jax.random.key(1)}
        return audit_oracle(engine, train, targets, detect, num_samples=600, path=tmp_path / "o.npz", log=log, **common)

    with pytest.raises(KeyboardInterrupt):
        run(0.9, log=Stopping())
    assert (tmp_path / "o.npz").is_file()
    assert run(0.5).num_detected.tolist() == [600] * 3
