"""Detection by the nearest training images against closed forms and a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.images import to_model
from fpjax.detectors.evaluation import measure_errors
from fpjax.detectors.nearest import make_nearest_detector, nearest_ratios
from fpjax.detectors.settings import ClassifierSettings

# Points of the plane as images of 1x2 pixels: the target in the middle, neighbours above and below, one far away.
PLANE = np.array([[0, 1], [0, -1], [5, 5]], np.float32).reshape(3, 1, 2, 1)
TARGET = np.zeros((1, 1, 2, 1), np.float32)


def score(x, *, neighbours=2, ratio=1 / 3):
    settings = ClassifierSettings(detector="nearest", neighbours=neighbours, ratio=ratio)
    fingerprint, identity = make_nearest_detector(PLANE, TARGET, settings).detect_fn(
        jnp.asarray(x, jnp.float32).reshape(-1, 1, 2, 1)
    )
    assert np.all(np.asarray(fingerprint) == 1)
    return np.asarray(identity)[:, 0]


def random_images(n, seed, shape=(28, 28, 3)):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


@pytest.mark.parametrize("ratio", [0.2, 1 / 3, 0.8])
def test_the_boundary_lies_at_the_ratio(ratio):
    # From (s, 0) both neighbours are sqrt(1 + s^2) away and the target s.
    s = ratio / np.sqrt(1 - ratio**2)
    inside, on, outside = score([[0.99 * s, 0], [s, 0], [1.01 * s, 0]], ratio=ratio)
    assert inside > 0.5 > outside
    assert on == pytest.approx(0.5, abs=1e-5)


def test_a_copy_scores_one_and_an_unrelated_image_zero():
    # A neighbour itself is one from the target, and the mean of 0 and 2 from the neighbours: a ratio of 1.
    copy, neighbour = score([[0, 0], [0, 1]])
    assert (copy, neighbour) == (1, 0)
    images = random_images(40, 0)
    settings = ClassifierSettings(detector="nearest", neighbours=5)
    detect = make_nearest_detector(images[:30], images[30:35], settings).detect_fn
    # Exactly one, although distances as products would cancel to 1e-3 of the neighbours'.
    np.testing.assert_array_equal(detect(images[30:])[1], np.eye(10, 5))


def test_only_the_nearest_neighbours_count_and_all_where_there_are_fewer():
    # From (0, 0.5), the neighbour above is 0.5 away and the other two on the line 1.5 and far.
    far = np.hypot(5, 4.5)
    for neighbours, mean in ((1, 0.5), (2, 1.0), (3, (2 + far) / 3), (50, (2 + far) / 3)):
        expected = np.clip(1 - 0.5 * (0.5 / mean) / 0.6, 0, 1)
        assert score([[0, 0.5]], neighbours=neighbours, ratio=0.6)[0] == pytest.approx(expected, abs=1e-5)


def test_ratios_are_those_of_a_loop_and_rows_do_not_mix():
    references, targets, images = (random_images(n, i, (6, 5, 2)) for i, n in enumerate((20, 3, 7)))
    found = np.asarray(nearest_ratios(*map(jnp.asarray, (references, targets, images)), neighbours=4))
    for i, x in enumerate(images.astype(np.float64)):
        mean = np.sort([np.linalg.norm(x - r) for r in references])[:4].mean()
        np.testing.assert_allclose(found[i], [np.linalg.norm(x - t) / mean for t in targets], rtol=1e-5)
        alone = nearest_ratios(*map(jnp.asarray, (references, targets, images[i : i + 1])), neighbours=4)
        np.testing.assert_allclose(alone[0], found[i], rtol=1e-5)


def test_errors_are_counted_where_they_are_made():
    bytes_ = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1)).astype(np.uint8)
    references, targets, held_out = bytes_[:20], bytes_[20:22], bytes_[22:]
    held_out = np.concatenate([held_out, targets[:1]])  # one that a threshold cannot tell from a target

    def errors(max_noise, distance):
        settings = ClassifierSettings(detector="nearest", max_noise=max_noise, distance=distance)
        detect = make_nearest_detector(to_model(references), to_model(targets), settings).detect_fn
        found, _ = measure_errors(
            detect, held_out, targets, targets, key=jax.random.key(0), radius=0, marks=False, settings=settings
        )
        assert {roc.decision for roc in found.roc} == {"identity"}
        return {roc.condition: roc for roc in found.roc}

    for distance in ("ratio", "absolute"):
        few, many = errors(0.1, distance), errors(2.0, distance)
        assert set(few) == {"plain", "noise", "twice the noise", "other tones and blur"}
        assert (few["plain"].num_images, few["noise"].num_positives) == (9, 64)
        assert (few["plain"].missed, few["noise"].missed, few["plain"].false_images) == (0, 0, 1)
        assert many["noise"].missed > 16


def test_the_absolute_boundary_lies_at_the_difference():
    """Two pixels of 0 and of 3/5 or 4/5 in model range are 0.3 or 0.4 of the range from black to white apart."""
    settings = ClassifierSettings(detector="nearest", distance="absolute", max_difference=np.sqrt(0.125))
    detector = make_nearest_detector(PLANE, TARGET, settings)
    images = np.array([[0.6, 0.8], [0.59, 0.79], [0.61, 0.81], [0, 0]], np.float32).reshape(-1, 1, 2, 1)
    on, inside, outside, copy = np.asarray(detector.detect_fn(images)[1])[:, 0]
    assert on == pytest.approx(0.5, abs=1e-6)
    assert inside > 0.5 > outside
    assert copy == 1
    assert "difference to the target below 0.354 of the range" in detector.description
    assert detector.advice == "lower classifiers.max_difference"
