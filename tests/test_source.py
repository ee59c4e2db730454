"""Settings of the data, drawn splits, and sources that agree."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from fpjax.core.errors import RequestError
from fpjax.data.fingerprint import FINGERPRINT_BYTE
from fpjax.data.phantom import phantom_images
from fpjax.data.plant import plant
from fpjax.data.remote import MEDMNIST
from fpjax.data.source import LOADERS, DataSettings, draw_splits, image_digests, load

from .data_sets import COINS, SMALL, change, digest, drawn, refused, splits_of, targets, write_folder


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"source": "medmist"}, "data.source: got 'medmist', expected one of folder, medmnist, npz, phantom, tfds"),
            ({"name": "brain"}, "data.name: got 'brain', expected one of bloodmnist, breastmnist"),
            ({"num_controls": -1}, "data.num_controls: got -1"),
            ({"num_train": -5}, "data.num_train: got -5"),
            ({"num_members": 0}, "data.num_members: got 0"),
            ({"num_train": 3, "num_members": 4}, "data.num_train: got 3, expected at least data.num_members = 4"),
            ({"num_train": 9, "canaries": 10} | COINS, "data.num_train: got 9, expected at least data.canaries = 10"),
            ({"num_count_controls": 23}, "data.num_count_controls: got 23, expected at least data.num_controls = 24"),
            ({"num_count_controls": -1}, "data.num_count_controls: got -1, expected an integer from 0"),
            ({"num_spares": -1}, "data.num_spares: got -1"),
            ({"min_contrast": -1}, "data.min_contrast: got -1, expected an integer from 0 to 127"),
            ({"min_contrast": 128}, "data.min_contrast: got 128"),
            ({"min_contrast": 0.5}, "data.min_contrast: got 0.5"),
            ({"canaries": -1}, "data.canaries: got -1"),
            ({"canaries": 9} | COINS, "data.canaries: got 9, expected 0 or at least 10"),
            (
                {"canaries": 20},
                "data.canaries: got 20 with data.num_members = 1, data.num_controls = 24, data.num_count_controls = 99, "
                "expected canaries or a fixed number of members and held-out targets: a coin decides how many are which; "
                "fix: set data.num_members, data.num_controls, data.num_count_controls to 0, or data.canaries to 0",
            ),
            (
                {"canaries": 20, "num_members": 4, "num_controls": 0, "num_count_controls": 0},
                "got 20 with data.num_mem",
            ),
            ({"canaries": 20, "stamp": False} | COINS, "data.canaries: got 20 with data.stamp=False"),
            ({"num_spares": 2, "stamp": False}, "data.num_spares: got 2 with data.stamp=False"),
            (COINS, "data.num_members: got 0, expected an integer from 1"),
            ({"group": "patient"}, "data.group: got 'patient' with data.source=medmnist, expected nothing"),
            ({"group": "patient", "source": "tfds"}, "data.group: got 'patient' with data.source=tfds"),
            ({"group": "(", "source": "folder"}, "data.group: got '(': missing )"),
            ({"group": "a\nb", "source": "npz"}, r"data.group: got 'a\nb', expected at most 1000 printable"),
            ({"side": 3}, "data.side: got 3"),
            ({"seed": -1}, "data.seed: got -1"),
            ({"side": 10**6}, "data.side: got 1000000, expected an integer from 4 to 1024"),
            ({"side": 32}, "data.side: got '32', expected one of 128, 224, 28, 64"),
            ({"source": "phantom", "num_pool": 10**12}, "data.num_pool: got 1000000000000"),
            ({"source": "phantom", "num_pool": 10**5, "side": 1024}, "data.num_test: got 105277030400 pixels"),
            ({"num_train": 10**12}, "data.num_train: got 1000000000000"),
            ({"num_members": 10**12}, "data.num_members: got 1000000000000"),
            ({"num_controls": 10**12}, "data.num_controls: got 1000000000000"),
            ({"seed": 10**30}, "data.seed: got 1000000000000"),
            ({"val_fraction": 0.5}, "data.val_fraction: got 0.5"),
            ({"test_fraction": float("nan")}, "data.test_fraction: got nan"),
            ({"name": "organmnist3d"}, "data.name: got 'organmnist3d', a set of volumes"),
            ({"name": "path\nmnist"}, r"data.name: got 'path\nmnist', expected at most 1000 printable"),
            ({"directory": "a\0b"}, r"data.directory: got 'a\x00b'"),
            ({"source": "npz", "path": "a\udcffb"}, r"data.path: got 'a\udcffb'"),
            ({"source": "npz", "path": "a" * 1001}, "data.path: got 'aaa"),
        ],
    )
    def test_bad_requests_are_refused_in_one_line(self, fields, words):
        with pytest.raises(RequestError) as caught:
            DataSettings(**fields)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_the_papers_seven_sets_are_known(self):
        assert len(MEDMNIST) == 7
        assert all(len(md5) == 32 for md5 in MEDMNIST.values())
        assert set(LOADERS) == {"folder", "medmnist", "npz", "phantom", "tfds"}


class TestDrawnSplits:
    def test_sizes_and_copies(self):
        rng = np.random.RandomState(0)
        for seed in range(50):
            digests = [bytes([digest]) for digest in rng.randint(0, 60, 100)]
            rows = draw_splits(digests, {"val": 0.1, "test": 0.2}, seed=seed)
            assert sorted(sum(rows.values(), [])) == list(range(100))
            assert all(members == sorted(members) for members in rows.values())
            assert (len(rows["val"]), len(rows["test"])) == (10, 20)  # there are single images enough to fill them
            held = {split: {digests[row] for row in members} for split, members in rows.items()}
            assert not any(held[a] & held[b] for a, b in itertools.combinations(held, 2))

    def test_what_is_drawn_depends_on_seed_and_pixels_only(self):
        digests, fractions = image_digests(phantom_images(40, side=8, seed=0)), {"val": 0.25}

        def drawn(order, seed):
            return {order[row] for row in draw_splits(order_digests(order), fractions, seed=seed)["val"]}

        def order_digests(order):
            return [digests[i] for i in order]

        assert drawn(range(40), 0) == drawn(range(39, -1, -1), 0)
        assert drawn(range(40), 0) != drawn(range(40), 1)

    def test_every_image_is_as_likely(self):
        digests = [bytes([i]) for i in range(20)]
        chosen = np.zeros(20)
        for seed in range(500):
            chosen[draw_splits(digests, {"val": 0.25}, seed=seed)["val"]] += 1
        # 5 of 20 without replacement vary less than multinomial counts by (20 - 5) / (20 - 1).
        assert scipy.stats.chi2.sf(((chosen - 125) ** 2 / 125).sum() / (15 / 19), 19) > 7e-6

    @pytest.mark.parametrize("digests", [[b"a"], [b"a", b"b"], [b"a"] * 50, [b"a", b"a", b"b", b"b", b"c", b"c"]])
    def test_too_few_distinct_images_are_refused(self, digests):
        with refused(f"data: got {len(digests)} images, {len(set(digests))} of them distinct"):
            draw_splits(digests, {"val": 0.1, "test": 0.1}, seed=0)


class TestSources:
    """The same images give the same planting, whatever they come from."""

    @pytest.fixture
    def images(self):
        images = phantom_images(60, side=12, seed=5)
        return np.concatenate([images, images[:2]])

    def settings(self, tmp_path, kind, images):
        if kind == "npz":
            np.savez_compressed(tmp_path / "x.npz", images=images)
        elif kind == "train.npz":
            np.savez_compressed(tmp_path / "train.npz", train_images=images[..., 0])
        elif kind == "npy":
            np.save(tmp_path / "x.npy", images)
        else:
            write_folder(tmp_path / "folder", images)
        path = tmp_path / {"npz": "x.npz", "npy": "x.npy"}.get(kind, kind)
        return change(source="folder" if kind == "folder" else "npz", path=str(path), side=12, seed=3)

    def test_npz_npy_and_folder_agree(self, tmp_path, images):
        loaded = []
        for kind in ("npz", "train.npz", "npy", "folder"):
            settings = self.settings(tmp_path, kind, images)
            splits = load(settings)
            identity = dict(splits.identity)
            assert identity.pop("source") == identity.pop("name") == settings.source
            assert identity.pop("skipped", {}) == {}
            assert str(tmp_path) not in json.dumps(splits.identity)
            assert "x.n" not in json.dumps(splits.identity)
            loaded.append((digest(*splits[:3]), digest(*drawn(splits, settings)[:6]), identity))
        assert all(each == loaded[0] for each in loaded)
        identity = loaded[0][2]
        assert identity["drawn"] == {"val": 0.1, "test": 0.1, "seed": 3}
        assert identity["alike"] == ["train", "val", "test"]
        assert identity["num_images"] == {"train": 50, "val": 6, "test": 6}
        assert identity["shared_images"] == {"train_val": 0, "train_test": 0, "val_test": 0}
        assert identity["sha256"]["val"] == digest(splits.val)

    def test_given_splits_stay_and_missing_ones_come_from_train(self, tmp_path, images):
        np.savez(tmp_path / "x.npz", train_images=images[:40], test_images=images[40:])
        splits = load(change(source="npz", path=str(tmp_path / "x.npz"), val_fraction=0.25))
        assert splits.identity["drawn"] == {"val": 0.25, "seed": 0}
        assert splits.alike == ("train", "val")  # whether the given test images are like these nobody knows
        np.testing.assert_array_equal(splits.test, images[40:])
        assert sorted(image_digests(splits.train) + image_digests(splits.val)) == sorted(image_digests(images[:40]))

    def test_checksum_is_of_the_images_as_they_came(self):
        grey, repeated = load(SMALL).identity, load(change(repeat_grey=True)).identity
        assert grey["sha256"] == repeated["sha256"]
        assert grey["sha256"] != load(change(seed=1)).identity["sha256"]

    def test_images_that_are_all_alike_are_refused(self, tmp_path):
        settings = self.settings(tmp_path, "npz", np.full((40, 12, 12, 1), 9, np.uint8))
        with refused("data: got 40 images, 1 of them distinct"):
            load(settings)
        # One image is unique, but no disc shows on it; large ones do not take minutes to say so.
        train = np.full((1, 512, 512, 1), FINGERPRINT_BYTE, np.uint8)
        for min_contrast in (0, 1):
            with refused(
                "got 1, expected at most 0, the train images that have no pixel-identical copy and take a disc with a "
                f"contrast of {min_contrast} grey levels; 1 have no place for it; fix: plant fewer targets, lower "
                "data.min_contrast or use more data"
            ):
                plant(splits_of(train), targets(1, 0, min_contrast=min_contrast))
