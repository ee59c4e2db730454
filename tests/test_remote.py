"""Downloads, TFDS, and the real files where they are."""

import dataclasses
import hashlib
import http.server
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from fpjax.core.errors import RequestError
from fpjax.data import remote
from fpjax.data.phantom import phantom_images
from fpjax.data.plant import assign, describe, plant
from fpjax.data.remote import MEDMNIST
from fpjax.data.source import DataSettings, image_digests, load

from .conftest import MEDMNIST as FILES
from .conftest import medmnist
from .data_sets import ROOT, change, refused, write_arrays, write_folder


@pytest.fixture
def real():
    """Settings for the real files."""

    def settings(name, **fields):
        return DataSettings(name=name, directory=str(medmnist(name).parent), **fields)

    return settings


class TestDownload:
    """A server on this machine in place of the official one."""

    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """What the server sends, or its first `cut` bytes; then it holds the connection until `hold` is set."""
        content = write_arrays(tmp_path / "official.npz").read_bytes()
        state = {"content": content, "cut": None, "status": 200, "requests": 0, "hold": threading.Event()}
        state["hold"].set()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                state["requests"] += 1
                self.send_response(state["status"])
                self.send_header("Content-Length", str(len(state["content"])))
                self.end_headers()
                self.wfile.write(state["content"][: state["cut"]])
                state["hold"].wait(60)

            def log_message(self, format, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state["url"] = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(remote, "URL", state["url"] + "{file}")
        monkeypatch.setitem(MEDMNIST, "breastmnist", hashlib.md5(content).hexdigest())
        monkeypatch.delenv("FPJAX_DATA", raising=False)
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield state
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.mark.parametrize("place", ["data.directory", "FPJAX_DATA", "data"])
    def test_what_is_missing_is_fetched_once(self, served, tmp_path, monkeypatch, capsys, place):
        if place == "FPJAX_DATA":
            monkeypatch.setenv("FPJAX_DATA", str(tmp_path / place))
        directory = str(tmp_path / place) if place == "data.directory" else ""
        settings = DataSettings(name="breastmnist", directory=directory)
        splits = load(settings)
        assert splits.train.shape == (3, 8, 8, 1)
        found = Path("data" if place == "data" else tmp_path / place)
        assert [path.name for path in found.iterdir()] == ["breastmnist.npz"]
        stderr = capsys.readouterr().err
        assert stderr.startswith(f"downloading {served['url']}breastmnist.npz to ")
        assert stderr.count("\n") == 1
        np.testing.assert_array_equal(load(settings).train, splits.train)
        assert served["requests"] == 1

    def test_a_terminal_sees_a_progress_bar(self, served, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        load(DataSettings(name="breastmnist"))
        assert "100%" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"status": 404}, "got HTTPError: 404 Client Error"),
            ({"cut": 100}, "got ChunkedEncodingError"),
            ({"content": b"another file"}, "got ValueError: MD5 hash of downloaded file"),
            ({"url": "http://127.0.0.1:9/"}, "got no connection"),
        ],
    )
    def test_what_fails_leaves_nothing_and_says_where_to_put_the_file(self, served, monkeypatch, change, words):
        served |= change
        monkeypatch.setattr(remote, "URL", served["url"] + "{file}")
        with refused(f"download: {words}.*fix: download {served['url']}breastmnist.npz as data/breastmnist.npz"):
            load(DataSettings(name="breastmnist"))
        assert not Path("data").exists()

    def test_a_place_that_cannot_be_written_to_is_one_line(self, served):
        Path("data").write_text("a file, not a folder")
        with refused("download: got (FileExists|NotADirectory)Error"):
            load(DataSettings(name="breastmnist"))

    def test_a_kill_half_way_leaves_no_file_under_the_name(self, served, tmp_path):
        served |= {"cut": 1000, "hold": threading.Event()}
        code = (
            "import sys; from fpjax.data import remote, source; remote.URL = sys.argv[1] + '{file}'; "
            "source.load(source.DataSettings(name='breastmnist', directory=sys.argv[2]))"
        )
        target = tmp_path / "there"
        process = subprocess.Popen([sys.executable, "-c", code, served["url"], str(target)], cwd=ROOT)
        try:
            deadline = time.monotonic() + 60
            while not served["requests"] and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
            served["hold"].set()
        assert served["requests"] == 1
        assert not (target / "breastmnist.npz").exists()
        served["cut"] = None
        assert load(DataSettings(name="breastmnist", directory=str(target))).train.shape == (3, 8, 8, 1)

    def test_it_can_be_turned_off(self, served, tmp_path, monkeypatch):
        url = f"{served['url']}breastmnist.npz"
        settings = DataSettings(name="breastmnist", download=False)
        with refused(f"no file breastmnist.npz in data, .*data.download=True; fix: download {url}"):
            load(settings)
        (tmp_path / "shared/data/medmnist").mkdir(parents=True)
        monkeypatch.setenv("FPJAX_DATA", "mine")
        with refused("in mine or data or ../shared/data/medmnist,") as caught:
            load(settings)
        assert str(tmp_path) not in str(caught.value)
        with refused("no file breastmnist.npz in other,"):
            load(dataclasses.replace(settings, directory="other"))
        assert served["requests"] == 0

    def test_a_wrong_checksum_names_both(self, served, tmp_path):
        path = write_arrays(tmp_path / "breastmnist.npz", val_images=np.ones((3, 8, 8), np.uint8))
        got, expected = hashlib.md5(path.read_bytes()).hexdigest(), MEDMNIST["breastmnist"]
        with refused(f"breastmnist.npz: got MD5 {got} .*expected MD5 {expected}"):
            load(DataSettings(name="breastmnist", directory=str(tmp_path)))
        assert served["requests"] == 0

    def test_a_file_without_end_is_not_read(self, tmp_path):
        with (tmp_path / "breastmnist.npz").open("wb") as file:
            file.truncate(10**12)
        with refused("breastmnist.npz: got 1,000,000,000,000 bytes, expected MD5"):
            load(DataSettings(name="breastmnist", directory=str(tmp_path)))

    def test_other_sets_and_sizes_come_from_the_registry(self, served, monkeypatch):
        md5 = hashlib.md5(served["content"]).hexdigest()
        entry = {"url": f"{served['url']}a", "MD5": md5, "url_64": f"{served['url']}b", "MD5_64": md5}
        registry = types.SimpleNamespace(INFO={"octmnist": entry, "breastmnist": entry})
        monkeypatch.setitem(sys.modules, "medmnist", registry)
        for name, side, file in (
            ("octmnist", 28, "octmnist.npz"),
            ("octmnist", 64, "octmnist_64.npz"),
            ("breastmnist", 64, "breastmnist_64.npz"),
        ):
            assert load(DataSettings(name=name, side=side)).identity["md5"] == md5
            assert Path("data", file).is_file()
        with refused("data.name: got octmnist of side 224, not in the registry"):
            load(DataSettings(name="octmnist", side=224))
        monkeypatch.setitem(sys.modules, "medmnist", None)
        with refused(r"MD5 and URL of octmnist.npz: got .*fix: pip install 'fpjax\[medmnist\]'"):
            load(DataSettings(name="octmnist"))

    @pytest.mark.extra
    @pytest.mark.filterwarnings("ignore")  # of medmnist and its dependencies
    def test_the_packages_registry_has_every_set_and_our_md5(self):
        pytest.importorskip("medmnist")
        for name, side in itertools.product([*MEDMNIST, *remote.MORE_MEDMNIST], remote.MEDMNIST_SIDES):
            file = f"{name}.npz" if side == 28 else f"{name}_{side}.npz"
            url, md5 = remote._official(name, side, file)
            assert url.startswith("https://")
            assert f"/{file}" in url
            assert len(md5) == 32
        registry = sys.modules["medmnist"].INFO
        assert {name: registry[name]["MD5"] for name in MEDMNIST} == MEDMNIST


# A program of its own, so that nothing here knows the class: as with sets that others have prepared.
# The feature gets files, since TFDS needs TensorFlow to make a PNG of an array.
BUILD_TFDS = """
import pathlib
import tensorflow_datasets as tfds

class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 24)}

    def _generate_examples(self, first, last):
        for path in sorted(pathlib.Path("png").iterdir())[first:last]:
            yield path.stem, {"image": path}

TinyImages(data_dir=".", file_format="array_record").download_and_prepare()
"""


class TestTfds:
    def test_a_missing_package_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with refused(
            r"data.source=tfds: got .*expected the package tensorflow_datasets; fix: pip install 'fpjax\[tfds\]'"
        ):
            load(DataSettings(source="tfds", name="mnist"))

    @pytest.mark.extra
    @pytest.mark.filterwarnings("ignore")  # of TFDS and its dependencies
    def test_a_set_prepared_here_is_read_without_tensorflow(self, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        images = phantom_images(24, side=8, seed=0)
        write_folder(tmp_path / "png", images)
        (tmp_path / "build.py").write_text(BUILD_TFDS)
        subprocess.run([sys.executable, "build.py"], cwd=tmp_path, check=True, capture_output=True)
        settings = change(source="tfds", name="tiny_images", directory=str(tmp_path))
        splits = load(settings)
        assert splits.identity["version"] == "1.2.3"
        assert splits.identity["drawn"] == {"val": 0.1, "seed": 0}
        assert sorted(image_digests(splits.test)) == sorted(image_digests(images[20:]))
        assert sorted(image_digests(np.concatenate(splits[:2]))) == sorted(image_digests(images[:20]))
        assert len(plant(splits, settings).targets) == 6
        assert "tensorflow" not in sys.modules
        with refused("data.name no_such_set: got .*expected a set in data.directory"):
            load(dataclasses.replace(settings, name="no_such_set"))


class TestRealFiles:
    def test_breast(self, real, monkeypatch):
        splits = load(real("breastmnist"))
        assert [array.shape for array in splits[:3]] == [(n, 28, 28, 1) for n in (546, 78, 156)]
        assert splits.identity["md5"] == MEDMNIST["breastmnist"]
        assert splits.identity["surplus_copies"] == {"train": 0, "val": 0, "test": 0}
        assert splits.identity["shared_images"] == {"train_val": 0, "train_test": 1, "val_test": 0}
        assert str(FILES) not in json.dumps(splits.identity)
        monkeypatch.setenv("FPJAX_DATA", str(FILES))
        np.testing.assert_array_equal(load(DataSettings(name="breastmnist")).train, splits.train)

    def test_pneumonia_has_copies_and_none_of_them_is_a_target(self, real):
        settings = real("pneumoniamnist", num_members=5)
        splits = load(settings)
        assert splits.identity["surplus_copies"]["train"] == 18
        assert splits.identity["shared_images"]["train_val"] == 8
        candidates = plant(splits, settings)
        planted = assign(candidates, settings)
        originals = set(image_digests(planted.originals))
        assert len(planted.train) == 5 + 4708 - sum(target.split == "train" for target in planted.record)
        assert len(planted.val) == 524 - sum(target.split == "val" for target in planted.record)
        assert not originals & {d for array in planted[:1] + planted[3:6] for d in image_digests(array)}
        assert all(target.copies_removed == 0 for target in describe(splits, candidates, settings).targets)
        assert min(target.contrast for target in planted.record) >= 16

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
