"""Data sets that others publish: MedMNIST files, found or downloaded, and TensorFlow Datasets on this disk."""

import contextlib
import errno
import hashlib
import importlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..core.errors import RequestError, check
from ..core.files import open_plain
from ..core.paths import local_path
from ..core.terminal import say
from .files import check_bytes, explain
from .prepared import check_set, check_shards, find_set

# The paper's seven sets at 28x28, with the MD5 of the official files (medmnist 3.0.2).
MEDMNIST = {
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "chestmnist": "02c8a6516a18b556561a56cbdd36c4a8",
    "organsmnist": "9ab87b696fb54e2a387ebe992d6ed5f1",
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
}
# Sets and sizes that the registry of the `medmnist` package adds.
MORE_MEDMNIST = ("dermamnist", "octmnist", "organamnist", "organcmnist", "tissuemnist")
MEDMNIST_SIDES = (28, 64, 128, 224)
URL = "https://zenodo.org/records/10519652/files/{file}?download=1"
_MAX_MEDMNIST = 2**28 // 28**2  # bytes of a file by the pixels of an image: of the largest set's, uncompressed
_TIMEOUT = 30  # seconds without a byte


def medmnist_file(name: str, *, side: int, directory: str, download: bool) -> tuple[Path, str]:
    """Path and MD5 of an official MedMNIST file, checked; downloaded if it is nowhere here and `download` allows.

    The first of these places that has it: `directory`; or, if that is empty, $FPJAX_DATA, ./data and, if it exists,
    ../shared/data/medmnist. A download goes to the first place, and is there whole or not at all.

    Raises:
      RequestError: the file is nowhere, unreadable, not the official one, or cannot be downloaded.
    """
    file = f"{name}.npz" if side == 28 else f"{name}_{side}.npz"
    url, expected = _official(name, side, file)
    shared = "../shared/data/medmnist"
    defaults = [os.environ.get("FPJAX_DATA", ""), "data", shared if os.path.isdir(shared) else ""]
    given = [("data.directory", directory)] if directory else [("FPJAX_DATA", place) for place in defaults if place]
    places = [str(local_path(what, place)) for what, place in given]
    # os.path, not Path: it takes a place that cannot be looked into for one without the file.
    path = next((Path(place, file) for place in places if os.path.isfile(os.path.join(place, file))), None)
    by_hand = f"download {url} as {places[0]}/{file}, or set data.directory or FPJAX_DATA"
    check(
        path is not None or download,
        "data.name",
        got=f"no file {file} in {' or '.join(places)}",
        expected="the official MedMNIST file, or data.download=True",
        fix=by_hand,
    )
    if path is None:
        path = Path(places[0], file)
        _download(url, path, md5=expected, by_hand=by_hand)
    most = _MAX_MEDMNIST * side**2
    try:
        with open_plain(path) as stream:
            if (size := os.fstat(stream.fileno()).st_size) > most:
                raise OSError(errno.EFBIG, f"{size:,} bytes")
            md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            got = f"MD5 {md5} ({stream.tell()} bytes)"
    except OSError as error:
        md5, got = "", error.strerror
    check(
        md5 == expected,
        file,
        got=got,
        expected=f"MD5 {expected}, the official {side}x{side} file",
        fix=f"it is truncated, unreadable or another release; replace it by {url}",
    )
    return path, expected


def read_tfds(name: str, *, directory: str) -> tuple[dict[str, UInt8[np.ndarray, "n h w c"]], dict[str, str]]:
    """Images and version of a data set that TensorFlow Datasets has prepared in `directory` as array_record files.

    Reads the feature `image` of the splits train, validation (or val) and test through `as_data_source`, without
    TensorFlow. `directory` empty: TFDS's own place. Nothing is downloaded.

    Raises:
      RequestError: the package is missing, the set is not there or not in array_record files, has no train split, or
        its images are not uint8 of one shape with 1 or 3 channels.
    """
    given = directory or os.environ.get("TFDS_DATA_DIR", "") or "~/tensorflow_datasets"
    place = find_set(name, local_path("data.directory", given))
    if place:
        check_set(place)
    tfds = _import_extra("tensorflow_datasets", "tfds", "data.source=tfds")
    _import_extra("array_record", "tfds", "data.source=tfds")
    problem, images, version, num_bytes = "", {}, "", 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not place:
                raise FileNotFoundError("no such set, config or version")
            builder = tfds.builder_from_directory(place)  # not by its name, which could load code
            version = str(builder.version)
            for split, keys in {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}.items():
                for key in keys:
                    if split in images or key not in builder.info.splits:
                        continue
                    check_shards(place, [os.fspath(path) for path in builder.info.splits[key].filepaths])
                    source = builder.as_data_source(split=key)
                    first = np.asarray(source[0]["image"])
                    num_bytes += len(source) * first.nbytes
                    check_bytes("data.name", num_bytes)
                    array = np.empty((len(source), *first.shape), np.uint8)
                    for i in range(len(source)):
                        image = np.asarray(source[i]["image"])
                        if image.dtype != np.uint8 or image.shape != first.shape:
                            raise ValueError(f"images of {image.dtype} {image.shape} and uint8 {first.shape}")
                        array[i] = image
                    images[split] = array
    except RequestError:
        raise
    except Exception as error:  # TFDS raises what its many parts do
        problem = explain(error)
    shapes = {array.shape[1:] for array in images.values()}
    if not problem and "train" not in images:
        problem = "no train split with images"
    if not problem and (len(shapes) > 1 or not all(len(shape) == 3 and shape[-1] in (1, 3) for shape in shapes)):
        problem = f"images of shapes {sorted(shapes)}"
    check(
        not problem,
        f"data.name {name}",
        got=problem,
        expected="a set in data.directory, in array_record files, with uint8 images (h, w, c) as feature 'image'",
        fix=f"tfds.builder('{name}', data_dir=..., file_format='array_record').download_and_prepare()",
    )
    return images, {"version": version}


def _official(name: str, side: int, file: str) -> tuple[str, str]:
    """URL and MD5 of a file: of the paper's from here, of all others from the registry of the `medmnist` package."""
    if side == 28 and name in MEDMNIST:
        return URL.format(file=file), MEDMNIST[name]
    noise = io.StringIO()  # the package prints when it lacks torch, which its registry does not need
    with contextlib.redirect_stdout(noise):
        registry = _import_extra("medmnist", "medmnist", f"MD5 and URL of {file}").INFO
    suffix = "" if side == 28 else f"_{side}"
    entry = registry.get(name, {})
    check(
        f"url{suffix}" in entry and f"MD5{suffix}" in entry,
        "data.name",
        got=f"{name} of side {side}, not in the registry of the installed medmnist",
        expected="a set and size that it knows",
        fix="pip install -U 'fpjax[medmnist]', or choose data.side=28",
    )
    return entry[f"url{suffix}"], entry[f"MD5{suffix}"]


def _download(url: str, path: Path, *, md5: str, by_hand: str) -> None:
    """Fetches a file to a name of its own beside `path`, and moves it there once its MD5 is right."""
    import pooch  # only here: these are slow to import
    import requests

    live, new = sys.stderr.isatty(), not path.parent.exists()
    if not live:
        say(f"downloading {url} to {path}")
    problem = ""
    pooch.get_logger().setLevel("ERROR")
    try:
        downloader = pooch.HTTPDownloader(progressbar=live, timeout=_TIMEOUT)
        pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=path.parent, downloader=downloader)  # pyright: ignore[reportArgumentType]
    except requests.ConnectionError:
        problem = "no connection, or one that broke off"
    except Exception as error:  # requests, urllib3, pooch and the disk raise a dozen unrelated types
        problem = explain(error)
    if problem and new:
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    check(not problem, "download", got=problem, expected=f"{url} with MD5 {md5}", fix=by_hand)


def _import_extra(module: str, extra: str, what: str) -> Any:
    """A module that only an extra installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{what}: got {explain(error)}, expected the package {module}; fix: pip install 'fpjax[{extra}]'"
        raise RequestError(message) from None
