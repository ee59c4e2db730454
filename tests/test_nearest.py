"""Detection by the nearest training images against closed forms and a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.classifier import ClassifierSettings
from fpjax.fingerprint import to_model
from fpjax.nearest import make_nearest_detect_fn, measure_errors, nearest_ratios

# Points of the plane as images of 1x2 pixels: the target in the middle, neighbours above and below, one far away.
PLANE = np.array([[0, 1], [0, -1], [5, 5]], np.float32).reshape(3, 1, 2, 1)
TARGET = np.zeros((1, 1, 2, 1), np.float32)


def score(x, *, neighbours=2, ratio=1 / 3):
    detect = make_nearest_detect_fn(PLANE, TARGET, neighbours=neighbours, ratio=ratio)
    fingerprint, identity = detect(jnp.asarray(x, jnp.float32).reshape(-1, 1, 2, 1))
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
    detect = make_nearest_detect_fn(images[:30], images[30:35], neighbours=5, ratio=1 / 3)
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
    found = np.asarray(nearest_ratios(references, targets, images, neighbours=4))
    for i, x in enumerate(images.astype(np.float64)):
        mean = np.sort([np.linalg.norm(x - r) for r in references])[:4].mean()
        np.testing.assert_allclose(found[i], [np.linalg.norm(x - t) / mean for t in targets], rtol=1e-5)
        alone = nearest_ratios(references, targets, images[i : i + 1], neighbours=4)
        np.testing.assert_allclose(alone[0], found[i], rtol=1e-5)


def test_errors_are_counted_where_they_are_made():
    bytes_ = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1)).astype(np.uint8)
    references, targets, held_out = bytes_[:20], bytes_[20:22], bytes_[22:]
    held_out = np.concatenate([held_out, targets[:1]])  # one that a threshold cannot tell from a target
    detect = make_nearest_detect_fn(to_model(references), to_model(targets), neighbours=10, ratio=1 / 3)

    def errors(max_noise):
        settings = ClassifierSettings(detector="nearest", max_noise=max_noise)
        return measure_errors(detect, held_out, targets, key=jax.random.key(0), settings=settings)

    few, many = errors(0.1), errors(2.0)
    assert (few.num_images, few.identity_images, few.heads) == (9, 64, 2)
    assert (few.identity_missed, few.identity_false_images, few.joint_false_images) == (0, 1, 1)
    assert many.identity_missed > 16
