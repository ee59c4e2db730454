"""Images of one patient stay together, and no name is written down."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fpjax.core.errors import RequestError
from fpjax.core.records import to_content
from fpjax.data.arrays import read_arrays
from fpjax.data.files import SPLITS
from fpjax.data.folder import read_folder
from fpjax.data.phantom import phantom_images
from fpjax.data.plant import assign, describe, describe_membership, plant
from fpjax.data.source import DataSettings, draw_splits, image_digests, load

from .data_sets import refused, splits_of, targets, write_folder

NAMES = ("Jane-Doe", "J\u00fcrgen", "Ana", "Wu", "Li", "Bo", "Kim", "Ng", "Eve", "Max", "Sue", "Tom", "Ida", "Ole")


class TestGroups:
    """Images of one patient."""

    @staticmethod
    def sides(splits):
        """Groups by split."""
        return [set(splits.groups[split].tolist()) for split in SPLITS]

    @staticmethod
    def save(path, images, names, **others):
        np.savez(path, images=images, patient=names, **others)
        return DataSettings(source="npz", path=str(path), group="patient", val_fraction=0.2, test_fraction=0.2)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(
        pixels=st.lists(st.integers(0, 100), min_size=20, max_size=40),
        groups=st.lists(st.integers(0, 25), min_size=40, max_size=40),
        seed=st.integers(0, 100),
    )
    def test_drawn_splits_share_neither_groups_nor_copies(self, pixels, groups, seed):
        digests, groups = [bytes([pixel]) for pixel in pixels], groups[: len(pixels)]
        try:
            rows = draw_splits(digests, {"val": 0.3, "test": 0.3}, seed=seed, groups=groups)
        except RequestError:
            assume(False)  # too many are tied together
        assert sorted(sum(rows.values(), [])) == list(range(len(pixels)))
        for a, b in itertools.combinations(rows.values(), 2):
            assert not {groups[row] for row in a} & {groups[row] for row in b}
            assert not {digests[row] for row in a} & {digests[row] for row in b}
        # Neither the groups' names nor the order of the images matter.
        named = draw_splits(digests, {"val": 0.3, "test": 0.3}, seed=seed, groups=[f"x{25 - g}" for g in groups])
        assert named == rows
        turned = draw_splits(digests[::-1], {"val": 0.3, "test": 0.3}, seed=seed, groups=groups[::-1])
        assert {len(pixels) - 1 - row for row in turned["val"]} == set(rows["val"])

    def test_images_that_stand_alone_are_drawn_as_without_groups(self):
        digests = image_digests(phantom_images(40, side=8, seed=0))
        digests += digests[:5]
        alone = draw_splits(digests, {"val": 0.2}, seed=1)
        assert draw_splits(digests, {"val": 0.2}, seed=1, groups=list(range(45))) == alone
        assert draw_splits(digests, {"val": 0.2}, seed=1, groups=[0, 0, *range(43)]) != alone

    def test_one_group_alone_leaves_a_split_empty(self, tmp_path):
        config = self.save(tmp_path / "x.npz", phantom_images(30, side=8, seed=0), np.zeros(30, int))
        with refused("data: got 30 images, 30 of them distinct, in 1 parts that share no group, which leave a split"):
            load(config)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_targets_whole_group_leaves_and_its_name_is_nowhere(self, tmp_path, seed):
        images = phantom_images(90, side=8, seed=seed)
        names = np.random.RandomState(seed).choice([f"{name}-{i}" for name in NAMES for i in range(3)], 90)
        images[1] = images[0]  # one image under two names, perhaps: it leaves with either, and ties them in the draw
        config = dataclasses.replace(
            self.save(tmp_path / "x.npz", images, names),
            num_members=2,
            num_controls=3,
            num_count_controls=4,
            num_spares=1,
            seed=seed,
        )
        splits = load(config)
        assert not any(a & b for a, b in itertools.combinations(self.sides(splits), 2))
        assert splits.identity["groups"]["num"] == {
            split: len(side) for split, side in zip(SPLITS, self.sides(splits), strict=True)
        }
        candidates = plant(splits, config)
        patient = dict(zip(image_digests(images), names, strict=True))
        whose = [patient[d] for d in image_digests(candidates.originals)]
        assert len(set(whose)) == 7
        left = [d for part in (candidates.rest, candidates.val, candidates.test) for d in image_digests(part)]
        assert not {patient[d] for d in left} & set(whose)
        # And nobody else's, but for the image of two names.
        gone = {d for d, name in patient.items() if name in whose}
        twin = image_digests(images[:1])[0]
        assert {*patient} - {*left} - {twin} == gone - {twin}
        described = describe(splits, candidates, config), describe_membership(assign(candidates, config), config)
        text = json.dumps(to_content(described))
        assert not any(name in text for name in NAMES if len(name) > 2)
        assert not any(str(name) in text for name in names)

    def test_a_copy_under_another_name_leaves_too(self):
        images = phantom_images(6, side=8, seed=0)
        images[1] = images[3]
        splits = splits_of(images)._replace(
            groups={"train": np.array([0, 0, 1, 2, 2, 3]), "val": np.array([], int), "test": np.array([], int)}
        )
        for seed in range(20):
            candidates = plant(splits, targets(1, 0, seed=seed))
            gone = {0: {0, 1, 3}, 2: {2}, 4: {1, 3, 4}, 5: {5}}[candidates.record[0].index]
            expected = [image_digests(images)[i] for i in range(6) if i not in gone]
            assert sorted(image_digests(candidates.rest)) == sorted(expected)
        with refused(
            "at most [34], the train images that have no pixel-identical copy, are of different groups and take"
        ):
            plant(splits, targets(1, 9))

    def test_given_splits_that_share_patients_are_refused(self, tmp_path):
        images = phantom_images(12, side=8, seed=0)
        given_splits = {"train_images": images[:6], "val_images": images[6:9], "test_images": images[9:]}
        names = {"train": ["Ana", "Ana", "Wu", "Li", "Li", "Bo"], "val": ["Kim", "Ng", "Li"], "test": ["Bo", "Li", "X"]}
        path, config = tmp_path / "x.npz", DataSettings(source="npz", path=str(tmp_path / "x.npz"), group="who")
        np.savez(path, **given_splits, **{f"{split}_who": np.array(rows) for split, rows in names.items()})
        with refused(
            "data.group: got 2 groups with images in more than one split, expected no patient on both"
        ) as error:
            load(config)
        assert not any(name in str(error.value) for rows in names.values() for name in rows[:1])
        names |= {"val": ["Kim", "Ng", "Ng"], "test": ["X", "Y", "Z"]}
        np.savez(path, **given_splits, **{f"{split}_who": np.array(rows) for split, rows in names.items()})
        splits = load(config)
        assert {split: rows.tolist() for split, rows in splits.groups.items()} == {
            "train": [0, 0, 1, 2, 2, 3],
            "val": [4, 5, 5],
            "test": [6, 7, 8],
        }
        numbers = np.array([0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8], "<i8")
        assert splits.identity["groups"] == {
            "num": {"train": 4, "val": 2, "test": 3},
            "sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
        }
        assert splits.alike == ("train",)
        # Another spelling of the same partition is the same data.
        spelt = {f"{split}_who": np.array([f"patient {name}" for name in rows]) for split, rows in names.items()}
        np.savez(path, **given_splits, **spelt)
        assert load(config).identity == splits.identity

    @pytest.mark.parametrize("dtype", ["<i8", ">i4", "u1", "<U9", ">U2", "S3"])
    def test_arrays_of_integers_and_strings_are_read(self, tmp_path, dtype):
        names = np.arange(10).astype(dtype)
        np.savez(tmp_path / "x.npz", images=phantom_images(10, side=8, seed=0), who=names)
        read = read_arrays(tmp_path / "x.npz", group="who")
        assert read.groups == {"train": names.tolist()}
        assert read_arrays(tmp_path / "x.npz").groups is None

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (
                np.array(["Ana", None], object),
                r"who in 'x.npz': got object of shape \(2,\), expected an integer or a str",
            ),
            (np.array(["Ana"]), r"who in 'x.npz': got str96 of shape \(1,\), .*for each of 2 images"),
            (np.array([["Ana"], ["Wu"]]), r"who in 'x.npz': got str96 of shape \(2, 1\)"),
            (np.array([1.5, 2.5]), r"who in 'x.npz': got float64 of shape \(2,\)"),
            (np.zeros(2, [("Ana", "i4")]), r"who in 'x.npz': got void32 of shape \(2,\)"),
            (
                np.array([1 << 30, 1 << 31], "<u4").view("<U1"),
                r"'x.npz': got \w+Error: .*replace the file: it is damaged",
            ),
        ],
    )
    def test_other_arrays_are_refused_without_a_name(self, tmp_path, names, words):
        np.savez(tmp_path / "x.npz", allow_pickle=True, images=phantom_images(2, side=8, seed=0), who=names)
        with refused(words) as error:
            read_arrays(tmp_path / "x.npz", group="who")
        assert "Ana" not in str(error.value)

    def test_missing_arrays_mixed_kinds_and_npy_files_are_refused(self, tmp_path):
        images = phantom_images(2, side=8, seed=0)
        path = tmp_path / "x.npz"
        np.savez(path, images=images, labels=np.array(["Ana", "Wu"]))
        with refused("data.group: got no array 'who' in 'x.npz'") as error:
            read_arrays(path, group="who")
        assert "labels" not in str(error.value)
        np.savez(path, train_images=images, val_images=images, who=[1, 2], train_who=[1, 2])
        with refused("data.group: got no array 'val_who' in"):
            read_arrays(path, group="who")
        np.savez(path, train_images=images, val_images=images, val_who=["1", "2"], train_who=[1, 2])
        with refused("data.group: got integers for some splits and strings for others"):
            read_arrays(path, group="who")
        np.save(tmp_path / "x.npy", images)
        with refused("data.group: got 'x.npy', an npy file, expected an npz"):
            read_arrays(tmp_path / "x.npy", group="who")

    @pytest.mark.parametrize(
        ("group", "patients"),
        [
            (r"^[^/]+(?=/)", ["Ana", "Ana", "J\u00fcrgen", "Wu", "Wu"]),
            (r"^(\w+)/", ["Ana", "Ana", "J\u00fcrgen", "Wu", "Wu"]),
            (r"(\d+)[.]png", ["1", "2", "1", "1", "3"]),
            (r"\w+/(?:left|right)/", ["Ana/left/", "Ana/right/", "J\u00fcrgen/left/", "Wu/left/", "Wu/right/"]),
        ],
    )
    def test_a_regular_expression_finds_the_patient_in_the_path(self, tmp_path, group, patients):
        names = ["Ana/left/1.png", "Ana/right/2.png", "Ju\u0308rgen/left/1.png", "Wu/left/1.png", "Wu/right/3.png"]
        write_folder(tmp_path, phantom_images(5, side=8, seed=0), names)
        read = read_folder(tmp_path, side=8, group=group)
        assert read.groups == {"train": patients}
        assert len(read.images["train"]) == 5

    def test_the_sub_folders_of_the_splits_keep_their_own(self, tmp_path):
        images = phantom_images(6, side=8, seed=0)
        names = ["train/a-1.png", "train/a-2.png", "train/b-1.png", "test/d-1.png", "test/c-1.png", "train/e-1.png"]
        write_folder(tmp_path, images, names)
        read = read_folder(tmp_path, side=8, group=r"/(\w)-")
        assert read.groups == {"train": ["a", "a", "b", "e"], "test": ["c", "d"]}
        np.testing.assert_array_equal(read.images["test"], images[[4, 3]])
        config = DataSettings(source="folder", path=str(tmp_path), side=8, group=r"/(\w)-", val_fraction=0.3)
        assert not any(a & b for a, b in itertools.combinations(self.sides(load(config)), 2))

    def test_paths_without_a_patient_are_counted_and_not_named(self, tmp_path):
        write_folder(tmp_path, phantom_images(4, side=8, seed=0), ["Ana/1.png", "Wu/2.png", "3.png", "Li/x.png"])
        for group, number in ((r"^(\w+)/", 1), (r"(\d*)[.]png", 1), (r"(Q)|png", 4)):
            with refused(f"data.group: got {number} of 4 paths in which it finds nothing, expected a reg") as error:
                read_folder(tmp_path, side=8, group=group)
            assert not any(name in str(error.value) for name in ("Ana", "Wu", "Li", "3.png"))

    def test_unstamped_targets_are_of_different_groups_too(self, tmp_path):
        images = phantom_images(40, side=8, seed=0)
        who = {"train_who": np.arange(30) // 3, "test_who": 100 + np.arange(10) // 2}
        np.savez(tmp_path / "x.npz", train_images=images[:30], test_images=images[30:], **who)
        path = str(tmp_path / "x.npz")
        config = targets(4, 3, source="npz", path=path, group="who", stamp=False)
        splits = load(config)
        for seed in range(10):
            config = dataclasses.replace(config, seed=seed)
            splits = load(config)
            candidates = plant(splits, config)
            rows = [image_digests(images).index(d) for d in image_digests(candidates.targets)]
            assert len({row // 3 for row in rows[:4]}) == 4
            assert len({row // 2 for row in rows[4:]}) == 3
            # The model was trained on all images of the train split; those of a control's group are no test images.
            assert len(candidates.rest) == 26
            assert len(candidates.test) == 4
        with refused("data.num_count_controls: got 6, expected at most 5, .* and are of different groups"):
            plant(splits, dataclasses.replace(config, num_count_controls=6))
