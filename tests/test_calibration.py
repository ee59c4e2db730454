"""The gate and the thresholds, on a network whose logits are pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fpjax.detectors.calibration import WAY, GateImages, Sight, calibrate, look_for_marks, look_for_targets


class Pixels(nn.Module):
    """Logits are the first pixels of an image."""

    num_heads: int

    @nn.compact
    def __call__(self, x):
        return x.reshape(len(x), -1)[:, : self.num_heads]


def images(rows):
    return jnp.asarray(rows, jnp.float32)[:, None, :, None]


def test_a_target_is_seen_by_its_own_head_above_every_real_image():
    # Two targets, each as planted and in 20 copies; the other head's logits are higher and must not count.
    own = np.concatenate([[30.0], np.arange(1, 21)])
    shown = np.concatenate([np.stack([own, own + 90], axis=1), np.stack([own + 90, own], axis=1)])
    gate = GateImages(images(shown), images([[0, 0]]), images([[-4, 1.5], [0.5, -9]]))
    sight = look_for_targets(Pixels(2), {}, gate, sensitivity=0.9)
    # floor(0.1 * 21) = 2: the second lowest copy.
    assert sight.found.tolist() == [2, 2]
    assert sight.silent.tolist() == [0.5, 1.5]
    assert sight.seen.tolist() == [True, True]
    # A target that is missed as planted is not seen, whatever its copies say.
    missed = np.concatenate([np.stack([np.append(-5, own[1:]), own], axis=1), np.stack([own, own], axis=1)])
    sight = look_for_targets(Pixels(2), {}, gate._replace(targets=images(missed)), sensitivity=0.9)
    assert sight.seen.tolist() == [False, True]


@pytest.mark.parametrize(("number", "silent"), [(39, 38), (5, 5)])
def test_the_mark_may_be_seen_in_a_few_images_without_one(number, silent):
    """One of 39 at a sensitivity of 0.95 is the second highest (floor(0.05 * 40) = 2); of five none may."""
    own = np.concatenate([[30.0], np.arange(1, 21)])
    gate = GateImages(images(np.tile(own, 2)[:, None]), images(np.arange(1.0, number + 1)[:, None]), images([[0]]))
    sight = look_for_marks(Pixels(1), {}, gate, targets=2, sensitivity=0.95)
    assert sight.found.tolist() == [1, 1]
    assert sight.silent.tolist() == [silent, silent]


def test_thresholds_lie_nearer_to_what_must_not_be_found():
    marks = Sight(np.float32([8, 4, -2]), np.float32([0, 0, 0]))
    targets = Sight(np.float32([9, 5, 7]), np.float32([1, -3, 3]))
    found = calibrate(marks, targets, kept=np.array([True, True, False]))
    assert found.fingerprint == pytest.approx(4 * WAY)  # of the targets that stay, the one that is seen least
    np.testing.assert_allclose(found.identity, [1 + 8 * WAY, -3 + 8 * WAY, 3 + 4 * WAY])
    assert calibrate(None, targets, kept=np.ones(3, bool)).fingerprint == 0
    assert 0 < WAY < 0.5
