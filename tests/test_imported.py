"""An imported model through all stages. It draws one training image whatever it is given: every count is known."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.core.compilation import jit_once
from fpjax.core.errors import RequestError
from fpjax.core.images import to_model
from fpjax.core.records import from_content, to_content
from fpjax.core.store import read_json
from fpjax.diffusion.pretrained.imported import Imported, file_digests, read_imported
from fpjax.diffusion.pretrained.weights import read_params
from fpjax.diffusion.sde import DiscreteVP, SubVP
from fpjax.models.unet import UNet, UNetSettings
from fpjax.run import benchmark, pipeline, timing
from fpjax.run.config import make_config
from fpjax.run.stages import open_job

from .stored_models import write_model
from .test_config import config_of

BYTE, SEED = 200, 20  # with this seed the grey image is the member
TINY = UNetSettings(
    channels=(4,), layers_per_block=1, attention=(False,), attention_head_dim=4, norm_num_groups=2, mid_block="plain"
)
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 20,
    "beta_start": 0.005,
    "beta_end": 0.6,
    "prediction_type": "sample",
    "thresholding": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model whose predicted image is grey of one byte, and images of noise with that one among them."""
    path = tmp_path_factory.mktemp("source")
    params = jit_once(UNet(TINY).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))["params"]
    out = {
        "kernel": jnp.zeros_like(params["conv_out"]["kernel"]),
        "bias": jnp.full((1,), to_model(np.uint8([BYTE]))[0]),
    }
    write_model(path / "model", TINY, {**params, "conv_out": out}, side=(8, 8))
    (path / "model" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8)).astype(np.uint8)
    images[0] = BYTE
    np.savez(path / "images.npz", train_images=images[:8], val_images=images[8:12], test_images=images[12:])
    return path


def config_for(source, *, model=None, **changes):
    config = config_of("smoke")
    config.update({"name": "imported"})
    config.data.update({"source": "npz", "path": str(source / "images.npz"), "num_train": 0, "stamp": False})
    config.data.seed = SEED
    config.score.path = str(model or source / "model")
    config.classifiers.detector = "nearest"
    config.sampler.num_levels = 20
    config.data.update({"num_members": 1, "num_controls": 2, "num_count_controls": 3, "num_spares": 0})
    # Three held-out targets give p >= 1/4.
    config.audit.update({"level": 0.55, "count_level": 0.25, "t50_level": 0.3})
    config.likelihood.update({"num_train": 1, "num_held_out": 1})
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """A run whose model was deleted as soon as it was imported."""
    path = tmp_path_factory.mktemp("imported")
    shutil.copytree(source / "model", path / "model")
    config = config_for(source, model=path / "model")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert pipeline.main(config, workdir=str(path / "run"), stages=["data", "classifiers", "score"]) == 0
        shutil.rmtree(path / "model")
        assert pipeline.main(config, workdir=str(path / "run")) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return path / "run", config


def test_every_sample_and_every_chain_is_the_member(finished):
    run, _ = finished
    count, search, report = (read_json(run / f"{name}.json") for name in ("count", "search", "report"))
    assert count["num_detected"] == [48, 0, 0, 0]
    assert count["sensitivity_detected"] == [16, 0, 0]
    member = np.asarray(search["target"]) == 0
    np.testing.assert_array_equal(
        np.asarray(search["num_detected"]), np.where(member, search["num_chains"], 0), err_msg="chains"
    )
    assert report["verdict"]["verdict"] == "leak"
    assert report["verdict"]["kinds"] == ["reproduced"]  # two controls are too few for t50
    assert "exchangeable" in report["verdict"]["reasons"][-1]
    assert report["sde"] == "DiscreteVP"
    assert "7 nearest" in report["detector"]["description"]
    page = (run / "report.html").read_text()
    assert "nearest training images" in page
    for word in ("fingerprint classifier", "marked"):
        assert word not in page, word


def test_what_was_imported_is_recorded_by_digest_and_without_its_path(finished, source):
    run, _ = finished
    score, config = read_json(run / "score.json"), read_json(run / "config.json")
    digests = file_digests(source / "model")
    assert set(digests) == {"config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"}
    assert score["imported"]["sha256"] == digests
    assert config["config"]["imported"] == digests
    assert score["imported"]["scheduler"]["ignored"] == [
        "thresholding: predicted images are not thresholded during sampling"
    ]
    report = read_json(run / "report.json")
    assert report["sampler"] == "ancestral"
    assert report["provenance"]["imported"]["scheduler"] == "DDPMScheduler"
    not_followed = report["provenance"]["imported"]["not_followed"]
    assert [line.split(":")[0] for line in not_followed] == [
        "thresholding",
        "its own sampler, ancestral (spacing leading, steps_offset 0)",
    ]
    assert "its own sampler, ancestral" in (run / "report.html").read_text()
    for name in ("score.json", "config.json", "report.json", "data.json", "report.html"):
        assert str(source) not in (run / name).read_text()
    assert "path" not in config["config"]["score"]


def test_the_stored_weights_are_the_files(finished, source):
    run, config = finished
    stored = open_job(make_config(config), run).score_params
    original = read_params(source / "model", read_imported(source / "model").architecture)
    jax.tree.map(np.testing.assert_array_equal, stored, original)


def test_the_digest_of_a_file_without_end_is_not_waited_for(source, tmp_path):
    shutil.copytree(source / "model", tmp_path / "model")
    with (tmp_path / "model/config.json").open("ab") as file:
        file.truncate(10**12)
    with pytest.raises(RequestError, match=r"config.json: got 1,000,000,000,000 bytes, expected a file of the model"):
        file_digests(tmp_path / "model")


def test_another_model_or_none_in_the_same_directory_is_refused(finished, source, tmp_path, capsys):
    run, config = finished
    other = tmp_path / "model"
    shutil.copytree(source / "model", other)
    (other / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {"beta_end": 0.5}))
    for path, message in ((str(other), "score.path: got other files"), ("", "got a run of a model that was imported")):
        changed = config.copy_and_resolve_references()
        changed.score.path = path
        assert pipeline.main(changed, workdir=str(run)) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("there", [False, True])
def test_only_if_it_is_asked_for_a_model_without_a_scheduler_is_one_of_the_config(source, tmp_path, capsys, there):
    shutil.copytree(source / "model", tmp_path / "model")
    config = config_for(source, model=tmp_path / "model", score__without_scheduler=True)
    if not there:
        (tmp_path / "model" / "scheduler_config.json").unlink()
        assert pipeline.main(config_for(source, model=tmp_path / "model"), workdir=str(tmp_path / "run")) == 2
        assert "a model without its scheduler" in capsys.readouterr().err
    run = open_job(make_config(config), tmp_path / "run")
    assert run.process == SubVP()
    assert run.imported.prediction == "epsilon"
    assert run.imported.not_followed(run.config.sampler, run.sampler) == []
    assert run.imported.told("subvp") == "none: taken to predict epsilon of subvp and told 999 t"
    scheduled = config_for(source, model=tmp_path / "model", score__without_scheduler=True, sampler__name="scheduler")
    assert pipeline.main(scheduled, workdir=str(tmp_path / "run"), dry_run=True) == 2
    assert "sampler.name: got 'scheduler' and no imported model that has one" in capsys.readouterr().err


def test_a_trainings_checkpoint_is_no_saved_pipeline(source, tmp_path, capsys):
    """As accelerate leaves it: the network and its running average in directories of their own, and no scheduler."""
    checkpoint = tmp_path / "checkpoint-500"
    shutil.copytree(source / "model", checkpoint / "unet")
    (checkpoint / "unet" / "scheduler_config.json").unlink()
    ema = json.loads((checkpoint / "unet" / "config.json").read_text()) | {
        **{"decay": 0.9999, "min_decay": 0.0, "optimization_step": 500, "update_after_step": 0},
        **{"use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75},
    }
    shutil.copytree(checkpoint / "unet", checkpoint / "unet_ema")
    (checkpoint / "unet_ema" / "config.json").write_text(json.dumps(ema))
    for path in (checkpoint, checkpoint / "unet", checkpoint / "unet_ema"):
        assert pipeline.main(config_for(source, model=path), workdir=str(tmp_path / "run"), dry_run=True) == 2
        assert "pipeline.save_pretrained" in capsys.readouterr().err
    with_ema = config_for(source, model=checkpoint / "unet_ema", score__without_scheduler=True)
    assert pipeline.main(with_ema, workdir=str(tmp_path / "run"), dry_run=True) == 0


def test_the_pipelines_own_sampler_is_that_of_its_scheduler(source, tmp_path):
    shutil.copytree(source / "model", tmp_path / "model")
    ddim = {**SCHEDULER, "_class_name": "DDIMScheduler", "thresholding": False, "timestep_spacing": "trailing"}
    (tmp_path / "model" / "scheduler_config.json").write_text(json.dumps(ddim | {"set_alpha_to_one": False}))
    config = config_for(source, model=tmp_path / "model", sampler__name="scheduler", sampler__num_levels=7)
    job = open_job(make_config(config), tmp_path / "run")
    assert job.sampler.label == "ddim (spacing trailing, eta 0.0, set_alpha_to_one False, clip_sample 1.0)"
    assert job.imported.not_followed(job.config.sampler, job.sampler) == []
    np.testing.assert_allclose(20 * job.grid.t, [0, 3, 6, 9, 11, 14, 17, 20], atol=1e-5)


def test_descriptions_survive_json(source):
    imported = read_imported(source / "model")
    again = from_content(Imported, json.loads(json.dumps(to_content(imported))))
    assert again == imported
    assert again.process(SubVP()) == DiscreteVP(tuple(np.linspace(0.005, 0.6, 20).tolist()))
    assert again.prediction == "sample"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__stamp": True}, "data.stamp: got True, with an imported model"),
        ({"data__num_train": 4}, "data.num_train: got 4, expected 0 with score.path"),
        ({"classifiers__detector": "classifiers"}, "data.stamp: got False, with classifiers"),
        ({"classifiers__detector": "furthest"}, "classifiers.detector: got 'furthest'"),
        ({"classifiers__ratio": 2.0}, "classifiers.ratio: got 2.0"),
        ({"score__path": "nowhere"}, "nowhere: got no such directory"),
        ({"score__path": "a\nb"}, "score.path: got 'a\\nb'"),
        ({"data__repeat_grey": True}, "image channels: got 3, expected 1"),
        ({"sampler__num_levels": 21}, "sampler.num_levels: got 21, expected no more than the process has steps"),
        ({"data__num_count_controls": 17}, "data.num_count_controls: got 17, expected at most 16"),
        ({"data__num_count_controls": 16}, "test split: got no images"),
        ({"data__num_members": 8}, "train split: got no image but the targets"),
    ],
)
def test_requests_that_cannot_be_audited_are_refused(source, tmp_path, capsys, changes, message):
    config = config_for(source, **changes)
    assert pipeline.main(config, workdir=str(tmp_path / "run"), dry_run=True) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scheduler_config.json", SCHEDULER | {"_class_name": "PNDMScheduler"}, "_class_name: got 'PNDMScheduler'"),
        ("scheduler_config.json", SCHEDULER | {"beta_end": 0.006}, "expected a schedule that leaves"),
        (
            "scheduler_config.json",
            SCHEDULER | {"num_train_timesteps": 200, "beta_end": 0.02},
            "fix: audit a model whose last",
        ),
        ("scheduler_config.json", SCHEDULER | {"solver_order": 2}, "unknown solver_order"),
        ("scheduler_config.json", SCHEDULER | {"timestep_spacing": "karras"}, "timestep_spacing: got 'karras'"),
        ("config.json", {"sample_size": 16}, "image side: got (8, 8), expected (16, 16)"),
        ("config.json", {"block_out_channels": [8]}, "conv_in.bias: got (4,), expected (8,)"),
        ("config.json", {"time_embedding_type": "fourier"}, "FOURIER"),
        ("../model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, ""),
    ],
)
def test_models_that_do_not_fit_are_refused(source, tmp_path, capsys, file, content, message):
    model = tmp_path / "model"
    shutil.copytree(source / "model", model)
    before = json.loads((model / file).read_text()) if (model / file).is_file() else {}
    (model / file).write_text(json.dumps(before | content))
    if message == "FOURIER":
        settings = dataclasses.replace(TINY, time_embedding_type="fourier")
        params = jit_once(UNet(settings).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))["params"]
        shutil.rmtree(model)
        write_model(model, settings, params, side=(8, 8))
        (model / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
        message = "score.path: got a Fourier embedding of log t with a scheduler"
    config = config_for(source, model=model)
    if not message:
        (model / "scheduler_config.json").unlink()
        message = "score.path: got a part of a pipeline"
    assert pipeline.main(config, workdir=str(tmp_path / "run"), dry_run=True) == 2
    assert message in capsys.readouterr().err


def test_the_check_of_an_imported_model_times_no_training(source, tmp_path, capsys, monkeypatch):
    timed = []

    def time_program(program):
        timed.append(jax.eval_shape(program.function, *program.args))
        return timing.Timing(program.batch, 0.1, 1.0, 1.0, 1, full=program.full)

    monkeypatch.setattr(benchmark, "time_program", time_program)
    pipeline.main(config_for(source), workdir=str(tmp_path / "run"), stages=["check"])
    out, _ = capsys.readouterr()
    assert len(timed) == 3
    assert "none here; N = 8 were trained on" in out
    assert "time  count" in out
    assert "time  score" not in out
