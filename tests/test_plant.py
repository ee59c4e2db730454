"""Targets, members and controls: discs and the draw, canaries, unstamped targets."""

import contextlib
import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
import scipy.stats

from fpjax.core.errors import RequestError
from fpjax.core.records import from_content, to_content
from fpjax.data import plant as plant_module
from fpjax.data.files import SPLITS
from fpjax.data.fingerprint import FINGERPRINT_BYTE, disc_mask
from fpjax.data.plant import assign, describe, describe_membership, held_out_rows, plant
from fpjax.data.results import DataResult, Membership
from fpjax.data.source import DataSettings, Splits, image_digests, load

from .data_sets import COINS, SHA256, SMALL, change, digest, drawn, refused, splits_of, targets


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
        clean.alike,
    )


class TestPlant:
    @pytest.mark.parametrize("seed", range(25))
    @pytest.mark.parametrize("num_train", [0, 2, 20])
    def test_invariants(self, small, seed, num_train):
        settings = change(seed=seed, num_train=num_train, num_spares=3)
        before = digest(*small[:3])
        candidates = plant(small, settings)
        planted = assign(candidates, settings)
        assert digest(*small[:3]) == before

        train = image_digests(planted.train)
        everything = train + [d for array in planted[3:6] for d in image_digests(array)]
        stamped = image_digests(planted.targets)
        assert len(set(stamped)) == 6
        assert stamped[:2] == train[:2]
        assert [everything.count(d) for d in stamped] == [1, 1, 0, 0, 0, 0]

        natural = [d for array in small[:3] for d in image_digests(array)]
        num_rest = 43 - sum(target.split == "train" for target in candidates.record)
        assert len(planted.train) == (num_train or 2 + num_rest)
        assert len(planted.train) + len(planted.reserve) == 2 + num_rest
        # Everything that is neither stamped nor an original, spares included, is there as often as the data has it.
        originals = image_digests(candidates.originals)
        assert sorted(everything + originals) == sorted(natural + stamped[:2])
        np.testing.assert_array_equal(np.concatenate([planted.train[2:], planted.reserve]), candidates.rest)

        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        assert (planted.num_members, planted.num_controls) == (2, 3)
        assert {target.member for target in candidates.record} == {None}
        for i, row in enumerate(planted.rows):
            assert planted.record[i]._replace(member=None) == candidates.record[row]
            np.testing.assert_array_equal(planted.targets[i], candidates.targets[row])
            np.testing.assert_array_equal(planted.originals[i], candidates.originals[row])
        for target, image, original in zip(candidates.record, candidates.targets, candidates.originals, strict=True):
            np.testing.assert_array_equal(original, getattr(small, target.split)[target.index])
            assert natural.count(image_digests(original[None])[0]) == 1
            assert target.radius == 1
            assert target.radius <= min(target.row, target.col)
            assert max(target.row, target.col) <= 7 - target.radius
            mask = disc_mask((8, 8), (target.row, target.col), target.radius)
            assert (image[mask] == FINGERPRINT_BYTE).all()
            np.testing.assert_array_equal(image[~mask], original[~mask])
            assert target.contrast == int(np.abs(original[mask].astype(float) - FINGERPRINT_BYTE).mean())
            assert target.contrast >= 16

    def test_targets_do_not_depend_on_sizes_and_smaller_runs_are_nested(self, small):
        base, members = plant(small, change(num_train=10)), drawn(small, change(num_train=10))
        larger = drawn(small, change(num_train=30))
        assert larger.record == members.record
        np.testing.assert_array_equal(larger.train[:10], members.train)
        other = change(num_train=10, num_members=4, num_controls=1, num_count_controls=2)
        assert plant(small, other).record == base.record
        np.testing.assert_array_equal(drawn(small, other).targets, members.targets)
        for more in (change(num_count_controls=10), change(num_spares=6), change(canaries=12, **COINS)):
            assert plant(small, more).record[:6] == base.record
        assert plant(small, change(seed=1)).record != base.record

    def test_draws_are_uniform_over_seeds(self):
        # Membership over the drawn targets, targets over the images, centres over the places.
        splits = splits_of(load(change(num_pool=12)).train)
        membership, in_order, chosen, places = np.zeros(6), np.zeros(6), np.zeros(12), np.zeros((6, 6))
        for seed in range(250):
            settings = targets(1, 5, seed=seed, min_contrast=0)
            planted = drawn(splits, settings)
            in_order[planted.rows[0]] += 1
            membership[sorted(target.index for target in planted.record).index(planted.record[0].index)] += 1
            for target in planted.record:
                chosen[target.index] += 1
                places[target.row - 1, target.col - 1] += 1
        # 4.5 standard deviations, two-sided, are 7e-6. Membership follows neither row nor order of drawing.
        assert scipy.stats.chisquare(membership).pvalue > 7e-6
        assert scipy.stats.chisquare(in_order).pvalue > 7e-6
        # Drawn without replacement: the counts vary less than multinomial ones by (12 - 6) / (12 - 1).
        assert scipy.stats.chi2.sf(((chosen - 125) ** 2 / 125).sum() / (6 / 11), 11) > 7e-6
        assert scipy.stats.chisquare(places.ravel()).pvalue > 7e-6
        # The test can fail: it rejects a first row three times as likely as another.
        skewed = np.array([3, 1, 1, 1, 1, 1]) * 250 / 8
        assert scipy.stats.chisquare(skewed).pvalue < 7e-6

    def test_targets_come_from_all_alike_splits_by_their_shares(self):
        clean = load(change(num_pool=30, num_val=20, num_test=10))
        for alike, sizes in ((SPLITS, (30, 20, 10)), (("train", "test"), (30, 0, 10)), (("train",), (30, 0, 0))):
            splits, counts = clean._replace(alike=alike), dict.fromkeys(SPLITS, 0)
            for seed in range(100):
                for target in plant(splits, change(seed=seed)).record:
                    counts[target.split] += 1
            some = np.array(sizes) > 0
            expected = 600 * np.array(sizes)[some] / sum(sizes)
            assert sum(counts.values()) == 600
            assert [counts[split] > 0 for split in SPLITS] == some.tolist()
            # Six of each without replacement: at most as spread as multinomial counts.
            assert sum(some) == 1 or scipy.stats.chisquare(np.array([*counts.values()])[some], expected).pvalue > 7e-6

    def test_every_place_has_the_contrast_and_images_without_one_are_passed_over(self):
        # Half of each image is the disc's grey, and every third image is all of it but for one pixel.
        train = np.full((60, 16, 16, 3), FINGERPRINT_BYTE, np.uint8)
        train[:, :, 8:] = np.random.RandomState(0).randint(0, 256, (60, 16, 8, 3))
        train[::3] = FINGERPRINT_BYTE
        train[::3, 0, 0, 0] = range(20)
        num_passed = 0
        for seed in range(20):
            candidates = plant(splits_of(train), targets(2, 28, seed=seed, min_contrast=50))
            for target, original in zip(candidates.record, candidates.originals, strict=True):
                mask = disc_mask((16, 16), (target.row, target.col), target.radius)
                assert target.index % 3
                assert np.abs(original[mask].astype(float) - FINGERPRINT_BYTE).mean() >= 50
            # The candidates are the first thirty of a permutation that take a disc.
            num_passed += candidates.passed_over
            assert 3 <= candidates.passed_over <= 20
        # 30 of 40 are found: of the 20 others, (30 / 41) on average lie before the last of them.
        assert abs(num_passed / 20 - 20 * 30 / 41) < 4.5 * 2.5 / 20**0.5
        with refused(
            r"data.num_members \+ data.num_count_controls \+ data.num_spares: got 41, expected at most 40, the train "
            "images that have no pixel-identical copy and take a disc with a contrast of 50 grey levels; 20 have no place"
        ):
            plant(splits_of(train), targets(2, 39, min_contrast=50))
        with refused(r"data.canaries \+ data.num_spares: got 42, expected at most 40"):
            plant(splits_of(train), DataSettings(canaries=40, num_spares=2, min_contrast=50, **COINS))

    def test_the_contrast_of_all_places_is_that_of_each(self):
        # Every place of an image, by asking for one after another: each image before is known and so not given again.
        image = np.random.RandomState(0).randint(0, 256, (1, 12, 9, 3)).astype(np.uint8)
        image[0, :6] //= 8
        seen = {}
        for seed in range(300):
            (target,) = plant(splits_of(image), targets(1, 0, seed=seed, min_contrast=0)).record
            mask = disc_mask((12, 9), (target.row, target.col), target.radius)
            seen[target.row, target.col] = target.contrast
            assert target.contrast == int(np.abs(image[0][mask].astype(float) - FINGERPRINT_BYTE).mean())
        assert len(seen) > 60  # of 10 x 7
        assert len(set(seen.values())) > 20

    @pytest.mark.parametrize("spares", [0, 4])
    def test_members_and_controls_are_exchangeable(self, spares):
        # Whatever a candidate looks like: each is a member, a search control and a count control equally often.
        splits = load(change(num_pool=20))
        kinds = np.zeros((3, 6 + spares))
        settings = change(num_spares=spares)
        candidates = plant(splits, settings)
        for seed in range(600):
            # The same candidates, so that only the draw of membership varies.
            planted = assign(candidates, dataclasses.replace(settings, seed=seed))
            for kind, rows in enumerate(np.split(planted.rows, [2, 5])):
                kinds[kind, rows] += 1
        for kind, number in zip(kinds, (2, 3, 1), strict=True):
            expected, total = 600 * number / (6 + spares), 6 + spares
            spread = (total - number) / (total - 1)
            assert scipy.stats.chi2.sf(((kind - expected) ** 2 / expected).sum() / spread, total - 1) > 7e-6

    def test_dropped_candidates_are_no_targets_and_nothing_else_moves(self, small):
        settings = change(num_spares=3, num_train=20)
        candidates = plant(small, settings)
        whole = assign(candidates, settings)
        counts = np.zeros(9)
        for dropped in itertools.combinations(range(9), 3):
            planted = assign(candidates, settings, dropped=dropped)
            assert len(set(planted.rows)) == 6
            assert not set(planted.rows) & set(dropped)
            assert len(planted.train) == 20
            np.testing.assert_array_equal(np.concatenate([planted.train[2:], planted.reserve]), candidates.rest)
            counts[planted.rows[:2]] += 1
            if not set(dropped) & set(whole.rows):
                np.testing.assert_array_equal(planted.rows, whole.rows)
        # Members are the first two kept in one order: with three dropped, any of its first five.
        assert (counts > 0).sum() == 5
        with refused("targets whose detectors see them: got 5 of 9, expected at least 6; fix: plant more"):
            assign(candidates, settings, dropped=(0, 2, 4, 8))

    def test_a_disc_that_would_change_nothing_is_drawn_elsewhere(self):
        # Grey but for one pixel: of nine discs only one reaches (0, 1), and none reaches the corner.
        train = np.full((2, 5, 5, 1), FINGERPRINT_BYTE, np.uint8)
        train[0, 0, 1] = train[1, 0, 0] = 7
        for seed in range(20):
            candidates = plant(splits_of(train), targets(1, 0, seed=seed, min_contrast=0))
            assert candidates.record[0] == (0, "train", 1, 1, 1, 24, None)
        with refused("got 2, expected at most 1, the train images"):
            plant(splits_of(train), targets(1, 1, min_contrast=0))

    def test_targets_that_differ_only_under_the_disc_stay_distinct(self):
        # They differ at (1, 1), which three of the four discs cover: six targets, so some must move to the fourth.
        train = np.zeros((6, 4, 4, 1), np.uint8)
        train[:, 1, 1, 0] = range(6)
        for seed in range(20):
            candidates = plant(splits_of(train), targets(1, 5, seed=seed))
            assert len(set(image_digests(candidates.targets))) == 6

    def test_held_out_rows_are_new_to_all_and_distinct(self, small):
        test = np.concatenate([small.test, small.test[:1], small.val[:1], small.train[:1]])
        splits = small._replace(test=test, alike=("train",))
        candidates = plant(splits, change(num_train=10))
        rows = held_out_rows(candidates)
        # Of the fixture's seven the last is in train, unless the original of a target is; of the others one is a copy.
        digests = image_digests(candidates.test)
        known = {d for part in (candidates.targets, candidates.rest, candidates.val) for d in image_digests(part)}
        assert sorted({*digests} - known) == sorted(digests[row] for row in rows)
        assert rows.tolist() == list(range(6))

    def test_golden(self, small):
        settings = change(num_train=20)
        planted = drawn(small, settings)
        again = drawn(small, settings)
        assert digest(*planted[:6]) == digest(*again[:6]) == SHA256["planted"]
        described = describe(small, plant(small, settings), settings), describe_membership(planted, settings)
        text = json.dumps(to_content(described), sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == SHA256["data_json"]

    def test_description(self, small):
        settings = change(num_train=20, directory="private/place")
        candidates = plant(small, settings)
        described = describe(small, candidates, settings)
        content = json.loads(json.dumps(to_content(described), allow_nan=False))
        assert from_content(DataResult, content) == described
        details = content["identity"].pop("details")
        assert {n: v for n, v in (content["identity"] | details).items() if v is not None} == small.identity
        arrays = {field: getattr(candidates, field) for field in ("targets", "rest", "val", "test")}
        assert content["num_images"] == {field: len(array) for field, array in arrays.items()}
        assert content["sha256"] == {field: digest(array) for field, array in arrays.items()}
        assert (content["min_contrast"], content["passed_over"]) == (16, candidates.passed_over)
        first = candidates.record[0]
        assert content["targets"][0] == {
            "split": first.split,
            "index": first.index,
            "center": [first.row, first.col],
            "radius": 1,
            "contrast": first.contrast,
            "copies_removed": 0,
        }
        assert "private" not in json.dumps(content)
        # Who is a member moves nothing in it.
        others = change(num_train=20, num_members=3, num_controls=3, num_count_controls=3)
        assert describe(small, plant(small, others), others) == described
        planted = assign(candidates, settings)
        membership = describe_membership(planted, settings)
        assert from_content(Membership, json.loads(json.dumps(to_content(membership), allow_nan=False))) == membership
        assert to_content(membership) == {
            "rows": planted.rows.tolist(),
            "num_members": 2,
            "num_controls": 3,
            "num_train": 20,
            "train_sha256": digest(planted.train),
            "canaries": 0,
        }

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            (
                {"num_train": 44},
                "data.num_train: got 44, expected 2 to [34][0-9], what remains of 43 images beside the",
            ),
            ({"num_train": 43, "canaries": 10} | COINS, "data.num_train: got 43, expected 10 to 3[0-9], what remains"),
            # 38 of train, 5 each of val and test, and the copies in these are none.
            (
                {"num_count_controls": 99},
                r"data.num_members \+ data.num_count_controls \+ data.num_spares: got 101, expected at most 48, the "
                "train, val, test images that have no pixel-identical copy and take a disc with a contrast of 16",
            ),
        ],
    )
    def test_requests_beyond_the_data_say_what_there_is(self, small, fields, words):
        with refused(words):
            plant(small, change(**fields))

    def test_images_too_small_for_the_disc_are_refused(self):
        with refused("fingerprint radius: got 0 for images of 3x3 pixels"):
            plant(splits_of(np.zeros((2, 3, 3, 1), np.uint8)), SMALL)


class TestCanaries:
    """Targets of which each is a member by a coin of its own."""

    SETTINGS = change(canaries=12, num_spares=2, **COINS)

    def test_every_coin_is_fair_and_of_its_own(self, small):
        candidates = plant(small, self.SETTINGS)
        members, numbers = np.zeros(14), []
        for seed in range(400):
            planted = assign(candidates, dataclasses.replace(self.SETTINGS, seed=seed))
            assert len(planted.record) == len(set(planted.rows)) == 12
            assert planted.num_members + planted.num_controls == 12
            assert [target.member for target in planted.record] == [
                *[True] * planted.num_members,
                *[False] * planted.num_controls,
            ]
            np.testing.assert_array_equal(planted.train[: planted.num_members], planted.targets[: planted.num_members])
            together = np.concatenate([planted.train[planted.num_members :], planted.reserve])
            np.testing.assert_array_equal(together, candidates.rest)
            members[planted.rows[: planted.num_members]] += 1
            numbers.append(planted.num_members)
        assert abs(sum(numbers) - 2400) < 4.5 * (400 * 12 / 4) ** 0.5
        # Independent coins: the number of heads has the binomial's variance, 3; its own spread over 400 seeds is 0.21.
        assert abs(np.var(numbers) - 3) < 4.5 * 0.21
        assert scipy.stats.chisquare(members).pvalue > 7e-6

    def test_dropped_ones_are_replaced_and_their_coin_goes_to_the_next(self, small):
        candidates = plant(small, self.SETTINGS)
        whole = assign(candidates, self.SETTINGS)
        planted = assign(candidates, self.SETTINGS, dropped=whole.rows[:2].tolist())
        assert planted.num_members == whole.num_members
        assert not set(planted.rows) & set(whole.rows[:2])
        with refused("targets whose detectors see them: got 11 of 14, expected at least 12"):
            assign(candidates, self.SETTINGS, dropped=(0, 1, 2))

    def test_coins_that_all_fall_on_one_side_are_refused_at_once(self, small):
        settings, refusals = change(canaries=10, **COINS), []
        for seed in range(3000):
            with contextlib.suppress(RequestError):
                plant_module._coins(dataclasses.replace(settings, seed=seed))
                continue
            refusals.append(seed)
        assert 0 < len(refusals) < 20  # 5.9 are expected
        settings = dataclasses.replace(settings, seed=refusals[0])
        words = "data.canaries: got 10 coins that all fall on one side, .*fix: choose another data.seed"
        with refused(words):
            plant(small, settings)
        with refused(words):
            assign(plant(small, dataclasses.replace(settings, seed=0)), settings)

    def test_a_fixed_number_of_training_images_is_that_whatever_the_coins(self, small):
        for seed in range(10):
            settings = dataclasses.replace(self.SETTINGS, num_train=20, seed=seed)
            assert len(drawn(small, settings).train) == 20


class TestUnstamped:
    """`plant` for a model that was trained elsewhere, on all train images."""

    @pytest.mark.parametrize("seed", range(25))
    def test_invariants(self, small, seed):
        settings = change(seed=seed, stamp=False)
        candidates = plant(small, settings)
        planted = assign(candidates, settings)
        train, targets, test = (image_digests(images) for images in (planted.train, planted.targets, planted.test))
        natural = [d for array in small[:3] for d in image_digests(array)]
        # The train split is whole, its copies included, with the members first; nothing is left over.
        assert sorted(train) == sorted(image_digests(small.train))
        assert train[:2] == targets[:2]
        assert len(planted.reserve) == len(planted.val) == 0
        # Held-out images are controls or test images, and no copy of a control was trained on.
        assert sorted(targets[2:] + test) == sorted(image_digests(np.concatenate([small.val, small.test])))
        assert all(natural.count(d) == 1 for d in targets)
        np.testing.assert_array_equal(planted.originals, planted.targets)
        for target, image in zip(planted.record, planted.targets, strict=True):
            np.testing.assert_array_equal(getattr(small, target.split)[target.index], image)
            assert (target.split == "train") == target.member
        assert [target.member for target in planted.record] == [True] * 2 + [False] * 4
        assert planted.record == candidates.record
        assert planted.rows.tolist() == list(range(6))
        assert (planted.num_members, planted.num_controls) == (2, 3)
        assert digest(*drawn(small, settings)[:6]) == digest(*planted[:6])
        with refused("targets whose detectors see them: got 5 of 6"):
            assign(candidates, settings, dropped=[3])

    def test_targets_vary_with_the_seed_and_a_subset_is_nested(self, small):
        assert len({plant(small, change(stamp=False, seed=seed)).record for seed in range(9)}) > 6
        whole, part = (drawn(small, change(stamp=False, num_train=n)) for n in (0, 20))
        np.testing.assert_array_equal(whole.targets, part.targets)
        np.testing.assert_array_equal(whole.train[:20], part.train)
        assert sorted(image_digests(np.concatenate([part.train, part.reserve]))) == sorted(image_digests(whole.train))

    def test_splits_that_were_drawn_from_the_train_images_are_no_controls(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
        for given_splits, num_train, num_test in (({"test_images": images[30:]}, 30, 6), ({}, 40, 0)):
            path = tmp_path / "images.npz"
            np.savez(path, train_images=images[:num_train], **given_splits)
            settings = targets(1, 4, source="npz", path=str(path), stamp=False)
            splits = load(settings)
            if not given_splits:
                with refused("data.num_count_controls: got 4, expected at most 0.*must not have been"):
                    plant(splits, settings)
                continue
            planted = drawn(splits, settings)
            assert sorted(image_digests(planted.train)) == sorted(image_digests(images[:num_train, :, :, None]))
            assert len(planted.test) == num_test

    def test_the_description_names_no_mark(self, small):
        settings = change(stamp=False)
        content = describe(small, plant(small, settings), settings)
        assert content.fingerprint_byte is content.min_contrast is None
        assert content.num_images["rest"] == len(small.train) - 2
        assert {target.radius for target in content.targets} == {0}
