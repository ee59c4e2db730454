"""Sets that TensorFlow Datasets (TFDS) has prepared: where one lies, and whether its files may be given to TFDS.

TFDS imports the module of each class that a set's files name, waits for pipes, and reads texts whole.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

from ..core.errors import RequestError, check
from ..core.files import read_json_file
from .files import explain

_NAME = re.compile(r"(?P<name>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", re.ASCII)
_MAX_TEXT = 2**24  # bytes of a JSON file or of a list of labels
# Where TFDS finds the names of classes: in what it writes today, by either spelling, and in sets of old versions.
_CLASS_KEYS = ("pythonClassName", "python_class_name")
_OLD_KEYS = ("type", "proto_cls")
_JSON_KEYS = ("jsonFeature", "json_feature")  # JSON within JSON, of classes that are not TFDS's own
# What sets of images with labels are made of.
_FEATURES = "tensorflow_datasets.core.features."
_CLASSES = {
    f"{_FEATURES}{name}"
    for name in (
        *("features_dict.FeaturesDict", "image_feature.Image", "labeled_image.LabeledImage", "text_feature.Text"),
        *("class_label_feature.ClassLabel", "tensor_feature.Tensor", "feature.Tensor", "scalar.Scalar"),
        *("sequence_feature.Sequence", "bounding_boxes.BBoxFeature"),
    )
}
_OLD_MESSAGE = re.compile(r"(tensorflow_datasets\.[A-Z]\w*)?", re.ASCII)  # of a field `proto_cls`, which loads nothing
_FIX = "get the set from those who prepared it with TFDS's own features"


def find_set(name: str, place: Path) -> Path | None:
    """The directory of a set: of the version in its name, or the latest; None: it is not there.

    Args:
      name: NAME, NAME/CONFIG or either with :VERSION; without a config that of the set's default, if it has one.
      place: TFDS's directory of all sets.

    Raises:
      RequestError: another name, such as one of a namespace, which brings code of its own.
    """
    match = _NAME.fullmatch(name)
    check(
        match is not None and ".." not in name,
        "data.name",
        got=ascii(name)[:100],
        expected="a set that TFDS has prepared here, as NAME, NAME/CONFIG or NAME/CONFIG:VERSION",
        fix="correct it; sets of other people's namespaces bring code of their own",
    )
    assert match
    directory, version = place / match["name"], match["version"]
    if "/" not in match["name"]:
        directory /= _default_config(directory)
    try:
        found = [version] if version else [entry.name for entry in os.scandir(directory)]
    except OSError:
        return None
    numbers = [tuple(map(int, parts.groups())) for parts in map(_VERSION.fullmatch, found) if parts]
    latest = directory / ".".join(map(str, max(numbers, default=())))
    return latest if numbers and latest.is_dir() else None


def _default_config(directory: Path) -> str:
    """Name of the config that a set has where none is named; empty: none, or none that is a plain name."""
    try:
        content = read_json_file(directory / ".config/metadata.json", most=_MAX_TEXT)
    except (OSError, ValueError):
        return ""
    config = content.get("default_config_name") if isinstance(content, dict) else None
    return config if isinstance(config, str) and re.fullmatch(r"\w[\w.+-]*", config, re.ASCII) else ""


def check_set(directory: Path) -> None:
    """Refuses a set whose files are not plain, or name a class that no set of images needs: its module would be run.

    Raises:
      RequestError: there is such a file or name, or one of the two JSON files is none.
    """
    try:
        found = [(path, path.stat()) for path in sorted(directory.iterdir())]
    except OSError as error:
        raise RequestError(f"data.directory: got {explain(error)}, expected TFDS's files; fix: {_FIX}") from error
    for path, status in found:
        plain, size = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode), status.st_size
        check(
            plain and (size <= _MAX_TEXT or path.suffix not in (".json", ".txt")),
            ascii(path.name),
            got=f"{size:,} bytes" if plain else "no plain file",
            expected=f"a file, if a text one of at most {_MAX_TEXT:,} bytes",
            fix=_FIX,
        )
    for file, keys in {"features.json": (*_CLASS_KEYS, *_OLD_KEYS), "dataset_info.json": _CLASS_KEYS}.items():
        try:
            content = read_json_file(directory / file, most=_MAX_TEXT)
        except (OSError, ValueError) as error:
            raise RequestError(f"{file}: got {explain(error)}, expected JSON of TFDS; fix: {_FIX}") from error
        for key, value in _strings(content, (*keys, *_JSON_KEYS)):
            own = key not in _JSON_KEYS and (_OLD_MESSAGE.fullmatch(value) if key == "proto_cls" else value in _CLASSES)
            got = f"{key} {ascii(value)[:100]}"
            check(bool(own), file, got=got, expected="features of TFDS that a set of images has", fix=_FIX)


def _strings(value: Any, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    """Values of some keys at any depth of a JSON value, where they are texts; of JSON in JSON whatever they are."""
    found, left = [], [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            named = [(key, part[key]) for key in keys if key in part]
            found += [(key, str(text)) for key, text in named if isinstance(text, str) or key in _JSON_KEYS]
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return found


def check_shards(directory: Path, files: list[str]) -> None:
    """Refuses files that a set's `dataset_info.json` names outside of its directory, or that are not there."""
    for file in map(Path, files):
        inside = file.parent == directory and file.is_file()
        got = f"the file {ascii(file.name)[:100]}, which is not there"
        check(inside, "dataset_info.json", got=got, expected="files in its own directory", fix=_FIX)
