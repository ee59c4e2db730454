"""Sets of TFDS: which directory is read, and that none runs code of its own; without TFDS, which is never asked."""

import json
import os

import pytest

from fpjax.data.prepared import check_set, check_shards, find_set
from fpjax.data.remote import read_tfds

from .data_sets import refused

FEATURES = "tensorflow_datasets.core.features."
DICT, IMAGE = f"{FEATURES}features_dict.FeaturesDict", f"{FEATURES}image_feature.Image"
SOUND = {"pythonClassName": DICT, "featuresDict": {"features": {"image": {"pythonClassName": IMAGE, "image": {}}}}}
OLD = {"type": DICT, "content": {"image": {"type": IMAGE, "content": {}, "proto_cls": "tensorflow_datasets.Image"}}}
INFO = {"name": "mine", "version": "1.0.0", "fileFormat": "array_record", "schema": {"feature": [{"type": "BYTES"}]}}


def prepared(directory, *, features=SOUND, info=INFO):
    directory.mkdir(parents=True)
    (directory / "features.json").write_text(json.dumps(features))
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


def test_the_latest_version_is_found_unless_one_is_named(tmp_path):
    for version in ("1.9.0", "1.10.0", "1.2.3", "01.99.0", "2.0.0.incomplete"):
        prepared(tmp_path / "mine" / version)
    (tmp_path / "mine/9.9.9").write_text("")
    assert find_set("mine:1.2.3", tmp_path) == tmp_path / "mine/1.2.3"
    assert find_set("mine:3.0.0", tmp_path) is None
    assert find_set("mine", tmp_path) is None  # 9.9.9 is no directory
    (tmp_path / "mine/9.9.9").unlink()
    assert find_set("mine", tmp_path) == tmp_path / "mine/1.10.0"
    assert find_set("another", tmp_path) is None


@pytest.mark.parametrize("default", ["small", "../../elsewhere", "/", 3, None])
def test_without_a_config_it_is_the_default_one(tmp_path, default):
    small = prepared(tmp_path / "mine/small/1.0.0")
    own = prepared(tmp_path / "mine/2.0.0")
    (tmp_path / "mine/.config").mkdir()
    (tmp_path / "mine/.config/metadata.json").write_text(json.dumps({"default_config_name": default}))
    assert find_set("mine", tmp_path) == (small if default == "small" else own)
    assert find_set("mine/small", tmp_path) == find_set("mine/small:1.0.0", tmp_path) == small


@pytest.mark.parametrize(
    "name", ["kaggle:mine", "../mine", "/mine", "mine/..", "a/b/c", "mine:latest", "m\u00efne", ""]
)
def test_other_names_are_refused(tmp_path, name):
    with refused("data.name: got .*namespaces bring code"):
        find_set(name, tmp_path)


@pytest.mark.parametrize("features", [SOUND, OLD])
def test_tfds_own_features_pass(tmp_path, features):
    check_set(prepared(tmp_path / "1.0.0", features=features))


def within(feature):
    return {"pythonClassName": DICT, "featuresDict": {"features": {"image": feature}}}


FOREIGN = {
    "a module of its own": within({"pythonClassName": "evil.Feature"}),
    "the other spelling": within({"python_class_name": "evil.Feature"}),
    "the old form": {"type": DICT, "content": {"image": {"type": "evil.Feature", "content": {}}}},
    "beneath TFDS": within({"pythonClassName": f"{FEATURES}os.system"}),
    "another class of TFDS": within({"pythonClassName": "tensorflow_datasets.scripts.cli.main.Main"}),
    "JSON in JSON": {"pythonClassName": DICT, "jsonFeature": {"json": '{"image": {"type": "evil.Feature"}}'}},
    "JSON in JSON, spelt otherwise": {"pythonClassName": DICT, "json_feature": {"json": "{}"}},
    "no name": within({"pythonClassName": ""}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_classes_are_refused_before_tfds_is_imported(tmp_path, name):
    directory = prepared(tmp_path / "elsewhere", features=FOREIGN[name])
    (tmp_path / "tfds/mine").mkdir(parents=True)
    (tmp_path / "tfds/mine/1.0.0").symlink_to(directory)
    with refused(r"features.json: got \w+ .*, expected features of TFDS"):
        read_tfds("mine", directory=str(tmp_path / "tfds"))


def test_classes_in_dataset_info_are_refused(tmp_path):
    for i, name in enumerate(("a module of its own", "the other spelling", "JSON in JSON")):
        with refused("dataset_info.json: got (pythonClassName|python_class_name|jsonFeature) "):
            check_set(prepared(tmp_path / str(i), info=INFO | {"features": FOREIGN[name]}))


def test_what_tfds_would_wait_for_or_read_whole_is_refused(tmp_path):
    directory = prepared(tmp_path / "1.0.0")
    os.mkfifo(directory / "mine-train.array_record-00000-of-00001")
    with refused("'mine-train.array_record-00000-of-00001': got no plain file"):
        check_set(directory)
    (directory / "mine-train.array_record-00000-of-00001").unlink()
    for name in ("image.labels.txt", "dataset_info.json", "features.json"):
        size = (directory / name).stat().st_size if (directory / name).exists() else 0
        with (directory / name).open("ab") as file:
            file.truncate(10**11)
        with refused(f"'{name}': got 100,000,000,000 bytes"):
            check_set(directory)
        os.truncate(directory / name, size)
    (directory / "features.json").write_text("[" * 10**5)
    with refused("features.json: got ValueError: arrays or objects that are nested too deeply"):
        check_set(directory)


def test_shards_elsewhere_are_refused(tmp_path):
    directory = prepared(tmp_path / "1.0.0")
    (directory / "a").touch()
    (tmp_path / "a").touch()
    check_shards(directory, [f"{directory}/a"])
    for file in (f"{directory}/../a", "/dev/zero", f"{directory}/none"):
        with refused("dataset_info.json: got the file '.*', which is not there, expected files in its own directory"):
            check_shards(directory, [file])
