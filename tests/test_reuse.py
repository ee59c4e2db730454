"""Classifiers of another run (`classifiers.path`): whose they may be, and that their directory is needed once."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.configs import smoke as smoke_config
from fpjax.core.errors import RequestError
from fpjax.data.plant import held_out_rows
from fpjax.data.source import image_digests
from fpjax.run.config import make_config
from fpjax.run.stages import open_job

from .conftest import launch


def run_of(workdir, **changes):
    """A run of the smoke config with fields changed, each named SECTION__FIELD."""
    config = smoke_config.get_config()
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return open_job(make_config(config), workdir)


def test_another_runs_classifiers_are_used_for_another_training_set(smoke, environment, tmp_path):
    shutil.copytree(smoke[0], tmp_path / "first")
    flags = [
        f"--workdir={tmp_path / 'second'}",
        f"--config.classifiers.path={tmp_path / 'first'}",
        "--config.data.num_train=5",
        "--stage=data,classifiers",
    ]
    done = launch(environment, *flags)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / name / "classifiers.json").read_text()) for name in ("first", "second"))
    data = [json.loads((tmp_path / name / "data.json").read_text()) for name in ("first", "second")]
    assert [each["membership"]["num_train"] for each in (first, second)] == [8, 5]
    assert data[0]["sha256"]["targets"] == data[1]["sha256"]["targets"]
    assert (
        second["trained"]["weights_sha256"] == first["trained"]["weights_sha256"] == second["reused"]["weights_sha256"]
    )
    assert second["reused"]["data_digest"] == data[0]["digest"]
    # The same detectors on the same held-out images, which neither model was trained on, err alike.
    assert second["errors"] == first["errors"]
    # The directory has served; no file of the run names it.
    shutil.rmtree(tmp_path / "first")
    again = launch(environment, *flags)
    assert again.returncode == 0, again.stderr
    assert "classifiers: done already" in again.stderr
    assert not any(
        str(tmp_path / "first").encode() in path.read_bytes()
        for path in (tmp_path / "second").rglob("*")
        if path.is_file()
    )
    run = run_of(tmp_path / "second", data__num_train=5, classifiers__path=str(tmp_path / "first"))
    scores = run.detector.detect_fn(jnp.asarray(run.targets))
    own = run_of(smoke[0]).detector.detect_fn(jnp.asarray(run.targets))
    for mine, theirs in zip(scores, own, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # Asking for classifiers of its own now is another request.
    with pytest.raises(RequestError, match="got a run whose classifiers were those of another"):
        _ = run_of(tmp_path / "second", data__num_train=5).reused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__seed": 1}, "classifiers.path: got a run with other targets, .*data.seed"),
        ({"data__num_count_controls": 2}, "classifiers.path: got a run with other targets"),
        (
            {"data__num_test": 25},
            "classifiers.path: got a run with other (targets|images)",
        ),  # targets are of all splits
        ({"resnet__width": 8}, "classifiers.path: got a run with other networks"),
    ],
)
def test_classifiers_that_do_not_fit_are_refused(smoke, tmp_path, changes, message):
    with pytest.raises(RequestError, match=message):
        _ = run_of(tmp_path, classifiers__path=str(smoke[0]), **changes).data


def test_directories_without_classifiers_are_refused(smoke, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(RequestError, match="classifiers.path: got a directory without trained classifiers"):
            _ = run_of(tmp_path / "run", classifiers__path=str(path)).reused
    with pytest.raises(RequestError, match="got a run whose classifiers were its own"):
        _ = run_of(smoke[0], classifiers__path=str(tmp_path)).reused


def test_held_out_images_are_in_no_other_part(tmp_path):
    candidates = run_of(tmp_path).candidates
    copies = np.concatenate([candidates.rest[:1], candidates.val[:1], candidates.test[:2]])
    candidates = candidates._replace(test=np.concatenate([copies, candidates.test]))
    rows = held_out_rows(candidates)
    assert rows.tolist() == [2, 3, *range(6, len(candidates.test))]
    seen = {digest for part in (candidates.rest, candidates.val) for digest in image_digests(part)}
    assert not seen & set(image_digests(candidates.test[rows]))
