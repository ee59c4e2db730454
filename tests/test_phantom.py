"""Phantoms, and the source that draws them."""

import itertools

import numpy as np
import pytest

from fpjax.core.errors import RequestError
from fpjax.data.files import SPLITS
from fpjax.data.phantom import phantom_images
from fpjax.data.source import image_digests, load

from .data_sets import SHA256, SMALL, change, digest


class TestPhantom:
    def test_golden_bytes(self):
        assert digest(phantom_images(8, side=16, seed=0)) == SHA256["phantom_16"]
        assert digest(phantom_images(4, side=28, seed=1)) == SHA256["phantom_28"]

    def test_an_image_does_not_depend_on_how_many_are_drawn(self):
        np.testing.assert_array_equal(phantom_images(9, side=16, seed=3)[:4], phantom_images(4, side=16, seed=3))
        assert phantom_images(0, side=16, seed=3).shape == (0, 16, 16, 1)

    def test_no_two_are_alike_within_or_across_seeds(self):
        images = np.concatenate([phantom_images(100, side=16, seed=seed) for seed in (0, 1)])
        flat = images.reshape(len(images), -1).astype(np.float64)
        rms = np.sqrt(np.maximum((flat**2).sum(1)[:, None] + (flat**2).sum(1) - 2 * flat @ flat.T, 0) / flat.shape[1])
        np.fill_diagonal(rms, np.inf)
        assert rms.min() > 10  # grey levels; measured 15 over 2000 images of one seed

    def test_head_is_bright_on_black_and_uses_the_range(self):
        images = phantom_images(100, side=28, seed=0)
        assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
        assert (images.max((1, 2, 3)) > 150).all()
        assert 30 < images[:, 8:20, 8:20].mean() < 110

    @pytest.mark.parametrize("bad", [{"side": 3}, {"seed": -1}, {"seed": 2**32}])
    def test_numbers_out_of_range_are_refused(self, bad):
        with pytest.raises(RequestError, match="phantom"):
            phantom_images(1, **{"side": 16, "seed": 0} | bad)


class TestPhantomSource:
    def test_golden_bytes_and_identity(self):
        splits = load(SMALL)
        assert digest(splits.train, splits.val, splits.test) == SHA256["splits"]
        assert splits.identity == {
            "source": "phantom",
            "name": "phantom",
            "side": 8,
            "split_seeds": {"train": 0, "val": 1, "test": 2},
            "alike": ["train", "val", "test"],
            "sha256": {split: digest(getattr(splits, split)) for split in SPLITS},
            "image_shape": [8, 8, 1],
            "repeat_grey": False,
            "num_images": {"train": 40, "val": 6, "test": 6},
            "surplus_copies": {"train": 0, "val": 0, "test": 0},
            "shared_images": {"train_val": 0, "train_test": 0, "val_test": 0},
        }

    def test_splits_grow_by_themselves(self):
        more = load(change(num_pool=50, num_val=9))
        np.testing.assert_array_equal(more.train[:40], load(SMALL).train)
        np.testing.assert_array_equal(more.test, load(SMALL).test)

    def test_grey_can_be_repeated(self):
        grey, rgb = load(SMALL), load(change(repeat_grey=True))
        assert rgb.train.shape == (40, 8, 8, 3)
        np.testing.assert_array_equal(rgb.train, np.repeat(grey.train, 3, axis=-1))

    def test_seeds_share_no_image(self):
        rows = itertools.chain.from_iterable(image_digests(a) for s in (0, 1) for a in load(change(seed=s))[:3])
        assert len(set(rows)) == 104
