import dataclasses
import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from fpjax.checks import RequestError
from fpjax.data.phantom import phantom_images
from fpjax.data.plant import describe, plant
from fpjax.data.source import LOADERS, MEDMNIST, DataSettings, Splits, image_digests, load, read_npz
from fpjax.fingerprint import FINGERPRINT_BYTE, disc_mask

REAL = Path(__file__).parents[1] / "../shared/data/medmnist"
SMALL = DataSettings(source="phantom", side=8, num_pool=40, num_val=6, num_test=6, num_members=2, num_controls=4)
# Changed bytes are a break for every stored run: change these only with a line in the README's "Changes".
SHA256 = {
    "phantom_16": "ec7e33dbaeaeb78e63ac94fcca763c39d68481cee835671b3b353a0016866deb",
    "phantom_28": "add7dd1ff9dabf9f795b82ceedd5361566c6148cbcd78ef556244cf6b0acc8e0",
    "splits": "321df86e8cddc5a86c5979db4543990cf072362f9df7621c2a6421ef58b2ea77",
    "planted": "f34a1a3100e721880c2659542dec8296afee510cbef11fda5e317e7cb7da9013",
    "data_json": "668eb4f0fa32045493ddd14e17e6d90b330dc923b333084a2494b44824874a0e",
}


def change(**fields):
    return dataclasses.replace(SMALL, **fields)


def digest(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def splits_of(train, val=None, test=None):
    empty = train[:0]
    return Splits(train, empty if val is None else val, empty if test is None else test, {"source": "test"})


@pytest.fixture(scope="module")
def small():
    """Phantoms to which copies are added: two train rows in train again, one in val, one in test."""
    clean = load(SMALL)
    train = np.concatenate([clean.train, clean.train[[0, 0, 1]]])
    return Splits(
        train,
        np.concatenate([clean.val, clean.train[[2]]]),
        np.concatenate([clean.test, clean.train[[3]]]),
        clean.identity,
    )


@pytest.fixture
def real():
    """Settings for the real files."""

    def settings(name, **fields):
        if not (REAL / f"{name}.npz").is_file():
            pytest.skip(f"{name}.npz is not in ../shared/data/medmnist")
        return DataSettings(name=name, directory=str(REAL), **fields)

    return settings


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


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"source": "medmist"}, "data.source: got 'medmist', expected one of medmnist, phantom"),
            ({"name": "brain"}, "data.name: got 'brain', expected one of bloodmnist, breastmnist"),
            ({"num_controls": -1}, "data.num_controls: got -1"),
            ({"num_train": -5}, "data.num_train: got -5"),
            ({"num_members": 0}, "data.num_members: got 0"),
            ({"num_train": 3, "num_members": 4}, "data.num_train: got 3, expected at least data.num_members = 4"),
            ({"side": 3}, "data.side: got 3"),
            ({"seed": -1}, "data.seed: got -1"),
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
        assert set(LOADERS) == {"medmnist", "phantom"}


class TestPhantomSource:
    def test_golden_bytes_and_identity(self):
        splits = load(SMALL)
        assert digest(splits.train, splits.val, splits.test) == SHA256["splits"]
        assert splits.identity == {
            "source": "phantom",
            "name": "phantom",
            "side": 8,
            "split_seeds": {"train": 0, "val": 1, "test": 2},
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


class TestFiles:
    def write(self, path, **changes):
        arrays = {f"{split}_images": np.zeros((3, 8, 8), np.uint8) for split in ("train", "val", "test")} | changes
        np.savez(path, allow_pickle=True, **{name: array for name, array in arrays.items() if array is not None})
        return path

    def test_grey_and_colour_are_read_with_channels_last(self, tmp_path):
        assert read_npz(self.write(tmp_path / "grey.npz"))["val"].shape == (3, 8, 8, 1)
        colour = dict.fromkeys(("train_images", "val_images", "test_images"), np.ones((2, 8, 8, 3), np.uint8))
        assert read_npz(self.write(tmp_path / "colour.npz", **colour))["test"].shape == (2, 8, 8, 3)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"val_images": np.zeros((3, 8, 8), np.float32)}, r"val_images in x.npz: got float32 of shape \(3, 8, 8,"),
            ({"val_images": np.zeros((3, 8, 9), np.uint8)}, r"val_images in x.npz: got uint8 of shape \(3, 8, 9, 1\)"),
            ({"test_images": np.zeros((3, 8, 8, 2), np.uint8)}, "test_images in x.npz: got uint8"),
            ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "train_images in x.npz: got uint8"),
            ({"train_images": np.zeros(9, np.uint8)}, "train_images in x.npz: got uint8"),
            ({"test_images": None}, "x.npz: got KeyError"),
            ({"test_images": np.array([None, 1], object)}, "x.npz: got ValueError: Object arrays cannot be loaded"),
        ],
    )
    def test_arrays_of_the_wrong_kind_are_refused(self, tmp_path, changes, words):
        with pytest.raises(RequestError, match=words):
            read_npz(self.write(tmp_path / "x.npz", **changes))

    @pytest.mark.parametrize("kept", [0, 3, 200, 700])
    def test_damaged_files_are_refused(self, tmp_path, kept):
        path = self.write(tmp_path / "x.npz")
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(RequestError, match="x.npz: got .*; fix: replace the file"):
            read_npz(path)

    def test_flipped_bytes_are_refused(self, tmp_path):
        path = self.write(tmp_path / "x.npz")
        content = bytearray(path.read_bytes())
        content[250] ^= 1
        path.write_bytes(content)
        with pytest.raises(RequestError, match="x.npz: got BadZipFile"):
            read_npz(path)

    def test_a_missing_file_says_where_it_was_looked_for(self, tmp_path, monkeypatch):
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        monkeypatch.delenv("FPJAX_DATA", raising=False)
        url = "https://zenodo.org/records/10519652/files/breastmnist.npz"
        with pytest.raises(RequestError, match=f"no file breastmnist.npz in data, .*; fix: download {url}"):
            load(DataSettings(name="breastmnist"))
        (tmp_path / "shared/data/medmnist").mkdir(parents=True)
        monkeypatch.setenv("FPJAX_DATA", "mine")
        with pytest.raises(RequestError, match="in mine or data or ../shared/data/medmnist,") as caught:
            load(DataSettings(name="breastmnist"))
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(RequestError, match="no file breastmnist.npz in other,"):
            load(DataSettings(name="breastmnist", directory="other"))

    def test_a_wrong_checksum_names_both(self, tmp_path):
        path = self.write(tmp_path / "breastmnist.npz")
        got, expected = hashlib.md5(path.read_bytes()).hexdigest(), MEDMNIST["breastmnist"]
        with pytest.raises(RequestError, match=f"breastmnist.npz: got MD5 {got} .*expected MD5 {expected}"):
            load(DataSettings(name="breastmnist", directory=str(tmp_path)))


class TestRealFiles:
    def test_breast(self, real, monkeypatch):
        splits = load(real("breastmnist"))
        assert [array.shape for array in splits[:3]] == [(n, 28, 28, 1) for n in (546, 78, 156)]
        assert splits.identity["md5"] == MEDMNIST["breastmnist"]
        assert splits.identity["surplus_copies"] == {"train": 0, "val": 0, "test": 0}
        assert splits.identity["shared_images"] == {"train_val": 0, "train_test": 1, "val_test": 0}
        assert str(REAL) not in json.dumps(splits.identity)
        monkeypatch.setenv("FPJAX_DATA", str(REAL))
        np.testing.assert_array_equal(load(DataSettings(name="breastmnist")).train, splits.train)

    def test_pneumonia_has_copies_and_none_of_them_is_a_target(self, real):
        settings = real("pneumoniamnist", num_members=5, num_controls=95)
        splits = load(settings)
        assert splits.identity["surplus_copies"]["train"] == 18
        assert splits.identity["shared_images"]["train_val"] == 8
        planted = plant(splits, settings)
        originals = set(image_digests(planted.originals))
        assert len(planted.train) == 4708 - 95
        assert not originals & set(image_digests(np.concatenate([planted.train, splits.val, splits.test])))
        assert all(target["copies_removed"] == 0 for target in describe(splits, planted, settings)["targets"])

    def test_a_truncated_file_is_refused(self, real, tmp_path):
        settings = real("retinamnist")
        content = (Path(settings.directory) / "retinamnist.npz").read_bytes()
        (tmp_path / "retinamnist.npz").write_bytes(content[:100_000])
        with pytest.raises(RequestError, match=r"retinamnist.npz: got MD5 \w{32} \(100000 bytes\), .*it is truncated"):
            load(dataclasses.replace(settings, directory=str(tmp_path)))

    def test_a_file_under_another_name_is_refused(self, real, tmp_path):
        shutil.copyfile(Path(real("breastmnist").directory) / "breastmnist.npz", tmp_path / "retinamnist.npz")
        with pytest.raises(RequestError, match=f"got MD5 {MEDMNIST['breastmnist']}"):
            load(DataSettings(name="retinamnist", directory=str(tmp_path)))


class TestPlant:
    @pytest.mark.parametrize("seed", range(25))
    @pytest.mark.parametrize("num_train", [0, 2, 20])
    def test_invariants(self, small, seed, num_train):
        settings = change(seed=seed, num_train=num_train)
        before = digest(*small[:3])
        planted = plant(small, settings)
        assert digest(*small[:3]) == before

        train = image_digests(planted.train)
        everything = train + [d for array in planted[3:6] for d in image_digests(array)]
        stamped = image_digests(planted.targets)
        assert len(set(stamped)) == 6
        assert stamped[:2] == train[:2]
        assert [everything.count(d) for d in stamped] == [1, 1, 0, 0, 0, 0]
        assert not set(image_digests(planted.originals)) & set(everything)

        natural = [d for array in small[:3] for d in image_digests(array)]
        assert len(planted.train) == (num_train or 39)
        assert len(planted.train) + len(planted.reserve) == 43 - 4
        # Everything that is neither stamped nor an original is there, as often as the data has it.
        assert sorted(everything + image_digests(planted.originals)) == sorted(natural + stamped[:2])

        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        for target, image, original in zip(planted.record, planted.targets, planted.originals, strict=True):
            np.testing.assert_array_equal(original, small.train[target.index])
            assert natural.count(image_digests(original[None])[0]) == 1
            assert target.radius == 1
            assert target.radius <= min(target.row, target.col)
            assert max(target.row, target.col) <= 7 - target.radius
            mask = disc_mask((8, 8), (target.row, target.col), target.radius)
            assert (image[mask] == FINGERPRINT_BYTE).all()
            np.testing.assert_array_equal(image[~mask], original[~mask])
            assert (image != original).any()

    def test_targets_do_not_depend_on_sizes_and_smaller_runs_are_nested(self, small):
        def drawn(planted):
            return {target[:4] for target in planted.record}

        base = plant(small, change(num_train=10))
        larger = plant(small, change(num_train=30))
        assert larger.record == base.record
        np.testing.assert_array_equal(larger.train[:10], base.train)
        other_split = plant(small, change(num_train=10, num_members=4, num_controls=2))
        assert drawn(other_split) == drawn(base)
        np.testing.assert_array_equal(other_split.targets, base.targets)
        assert drawn(base) < drawn(plant(small, change(num_controls=10)))
        assert drawn(base) != drawn(plant(small, change(seed=1)))

    def test_draws_are_uniform_over_seeds(self):
        # Membership over the drawn targets, targets over the images, centres over the places.
        splits = splits_of(load(change(num_pool=12)).train)
        membership, chosen, places, num_first = np.zeros(6), np.zeros(12), np.zeros((6, 6)), 0
        for seed in range(250):
            settings = change(seed=seed, num_members=1, num_controls=5)
            record = plant(splits, settings).record
            (member,) = (target for target in record if target.member)
            first = plant(splits, dataclasses.replace(settings, num_controls=0)).record[0]
            num_first += first.index == member.index
            membership[sorted(target.index for target in record).index(member.index)] += 1
            for target in record:
                chosen[target.index] += 1
                places[target.row - 1, target.col - 1] += 1
        # 4.5 standard deviations, two-sided, are 7e-6. Membership follows neither row nor order of drawing.
        assert scipy.stats.chisquare(membership).pvalue > 7e-6
        assert scipy.stats.binomtest(num_first, 250, 1 / 6).pvalue > 7e-6
        # Drawn without replacement: the counts vary less than multinomial ones by (12 - 6) / (12 - 1).
        assert scipy.stats.chi2.sf(((chosen - 125) ** 2 / 125).sum() / (6 / 11), 11) > 7e-6
        assert scipy.stats.chisquare(places.ravel()).pvalue > 7e-6
        # The test can fail: it rejects a first row three times as likely as another.
        skewed = np.array([3, 1, 1, 1, 1, 1]) * 250 / 8
        assert scipy.stats.chisquare(skewed).pvalue < 7e-6

    def test_a_disc_that_would_change_nothing_is_drawn_elsewhere(self):
        # Grey but for one pixel: of nine discs only one reaches (0, 1), and none reaches the corner.
        train = np.full((2, 5, 5, 1), FINGERPRINT_BYTE, np.uint8)
        train[0, 0, 1] = train[1, 0, 0] = 7
        for seed in range(20):
            planted = plant(splits_of(train), DataSettings(num_controls=0, seed=seed))
            assert planted.record[0][:4] == (0, 1, 1, 1)
        with pytest.raises(RequestError, match="got 2, expected at most 1, the train images"):
            plant(splits_of(train), DataSettings(num_controls=1))

    def test_targets_that_differ_only_under_the_disc_stay_distinct(self):
        # They differ at (1, 1), which three of the four discs cover: six targets, so some must move to the fourth.
        train = np.zeros((6, 4, 4, 1), np.uint8)
        train[:, 1, 1, 0] = range(6)
        for seed in range(20):
            planted = plant(splits_of(train), DataSettings(num_controls=5, seed=seed))
            assert len(set(image_digests(planted.targets))) == 6

    def test_golden(self, small):
        settings = change(num_train=20)
        planted = plant(small, settings)
        again = plant(small, settings)
        assert digest(*planted[:6]) == digest(*again[:6]) == SHA256["planted"]
        content = describe(small, planted, settings)
        text = json.dumps(content, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == SHA256["data_json"]

    def test_description(self, small):
        settings = change(num_train=20, directory="private/place")
        planted = plant(small, settings)
        content = describe(small, planted, settings)
        assert json.loads(json.dumps(content, allow_nan=False)) == content
        assert content["schema_version"] == 1
        assert content["identity"] == small.identity
        assert content["num_train"] == 20
        assert content["num_images"] == {"train": 20, "targets": 6, "reserve": 19, "val": 7, "test": 7}
        first = planted.record[0]
        assert content["targets"][0] == {
            "index": first.index,
            "center": [first.row, first.col],
            "radius": 1,
            "member": True,
            "copies_removed": 0,
        }
        assert "private" not in json.dumps(content)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"num_train": 40}, "data.num_train: got 40, expected 2 to 39, what remains of 43 images"),
            ({"num_controls": 36}, "got 38, expected at most 36, the train images that have no pixel-identical copy"),
        ],
    )
    def test_requests_beyond_the_data_say_what_there_is(self, small, fields, words):
        with pytest.raises(RequestError, match=words):
            plant(small, change(**fields))

    def test_images_too_small_for_the_disc_are_refused(self):
        with pytest.raises(RequestError, match="fingerprint radius: got 0 for images of 3x3 pixels"):
            plant(splits_of(np.zeros((2, 3, 3, 1), np.uint8)), SMALL)
