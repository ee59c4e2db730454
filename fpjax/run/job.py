"""One audit in one directory: its settings, its files, and what several stages share, made when first asked for."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.compilation import jit_once
from ..core.errors import RequestError, check
from ..core.images import dequantize, to_bytes, to_model
from ..core.paths import local_path
from ..core.processes import num_processes
from ..core.records import load
from ..core.store import tree_digest
from ..core.types import Key, Keys, ScoreFn
from ..data.plant import Candidates, Planted, assign, describe, held_out_rows, plant
from ..data.results import DataResult
from ..data.source import load as load_images
from ..detectors import classifier
from ..detectors.base import Detector
from ..detectors.calibration import Calibration
from ..detectors.examples import DetectorData
from ..detectors.fitting import init_fit
from ..detectors.nearest import make_nearest_detector
from ..detectors.results import ClassifiersResult, Reused
from ..diffusion.grid import TimeGrid
from ..diffusion.oracle import empirical_score_fn
from ..diffusion.pretrained.imported import Imported, file_digests, read_imported
from ..diffusion.results import ScoreResult
from ..diffusion.sampling import OF_SCHEDULER, SAMPLERS, SamplerSettings, make_grid, make_sampler
from ..diffusion.score import DsmLosses, dsm_losses, make_score_fn
from ..diffusion.sde import Process
from ..diffusion.training import TrainState, init_state
from ..engine.chains import Engine, make_engine, run_chains
from ..engine.densities import DensityEngine, make_density_engine
from ..engine.work import NO_TARGET, make_work
from ..models.unet import UNet
from .config import Config, describe_config
from .refusals import check_fit, check_weights
from .stage import Stage
from .workdir import Begun, Workdir

NUM_GRID = 16  # samples in a grid


class Job(Workdir):
    """The shared parts of one audit: data, networks, engines and detectors, each made when it is first asked for."""

    def __init__(self, config: Config, workdir: Path, stages: Sequence[Stage]):
        super().__init__(config, workdir, stages)
        self._planted: dict[tuple[int, ...], Planted] = {}
        self.notes: tuple[str, ...] = ()  # of the data, once they are read

    @functools.cached_property
    def data(self) -> tuple[Candidates, DataResult]:
        """Planted images, and what data.json says of them; the same from the same seed on any machine."""
        splits = load_images(self.config.data, multiple=self.model.settings.downsampling)
        self.notes = splits.notes
        candidates = plant(splits, self.config.data)
        # As if no target were dropped: too few training images are refused before any compute.
        planted = assign(candidates, self.config.data)
        check_fit(self.config, candidates, planted, self.model, self.imported)
        content = describe(splits, candidates, self.config.data)
        self._check_reused(content)
        if self.has(DataResult):
            check(
                self.result(DataResult) == content,
                "data",
                got="other images than in data.json",
                expected="the ones this run began with",
                fix="restore the data, or use another --workdir",
            )
        return candidates, content

    @property
    def candidates(self) -> Candidates:
        """Targets before membership is drawn."""
        return self.data[0]

    @property
    def planted(self) -> Planted:
        """Planted images; before the stage classifiers has said which targets it drops, as if it dropped none."""
        dropped = self.result(ClassifiersResult).dropped if self.has(ClassifiersResult) else []
        return self.planted_without(dropped)

    def planted_without(self, dropped: Sequence[int]) -> Planted:
        """Membership drawn among all candidates but these rows."""
        key = tuple(dropped)
        if key not in self._planted:
            self._planted[key] = assign(self.candidates, self.config.data, dropped=key)
        return self._planted[key]

    @property
    def num_searched(self) -> int:
        """Targets that have chains: members and search controls."""
        return self.planted.num_members + self.planted.num_controls

    @property
    def min_contrast(self) -> float:
        """By which discs differ in the mean from what they cover, in model range."""
        return self.config.data.min_contrast / 128

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.candidates.targets.shape[1:]

    @functools.cached_property
    def grid(self) -> TimeGrid:
        """The sampler's times."""
        return make_grid(self.sampler, self.process)

    @functools.cached_property
    def sampler(self) -> SamplerSettings:
        """The sampler that runs: the config's, or that of the imported model's scheduler."""
        settings, scheduler = self.config.sampler, self.imported and self.imported.scheduler
        if settings.name != OF_SCHEDULER:
            return settings
        if not scheduler:
            raise RequestError(
                f"sampler.name: got {OF_SCHEDULER!r} and no imported model that has one, expected one of "
                f"{', '.join(SAMPLERS)}; fix: give score.path, or set sampler.name to ancestral"
            )
        return scheduler.sampler(settings)

    @functools.cached_property
    def imported(self) -> Imported | None:
        """The model that is audited instead of a trained one, as score.json or else its directory says."""
        directory = local_path("score.path", self.config.score.path)
        recorded = self.result(ScoreResult).imported if self.has(ScoreResult) else None
        check(
            bool(recorded) == bool(self.config.score.path) or not self.has(ScoreResult),
            f"--workdir={self.workdir.name}",
            got=f"a run of a model that was {'imported' if recorded else 'trained'}",
            expected="one as asked for now",
            fix="give --config.score.path as when it was begun, or choose another --workdir",
        )
        if not self.config.score.path:
            return None
        if not recorded:
            return read_imported(directory, without_scheduler=self.config.score.without_scheduler)
        check(
            not directory.is_dir() or file_digests(directory) == recorded.sha256,
            "score.path",
            got="other files than this run began with",
            expected="the same model, or no directory any more",
            fix="restore the files, or choose another --workdir",
        )
        return recorded

    @functools.cached_property
    def process(self) -> Process:
        """The diffusion that the score network knows."""
        return self.imported.process(self.config.process) if self.imported else self.config.process

    @functools.cached_property
    def model(self) -> UNet:
        """The score network."""
        settings = self.config.model
        if self.imported:
            theirs = self.imported.architecture.settings
            ours = {name: getattr(settings, name) for name in ("dtype", "kernels", "remat")}
            settings = dataclasses.replace(theirs, **ours)
        return UNet(settings)

    @functools.cached_property
    def training_model(self) -> UNet:
        """The score network as it is trained: by plain XLA where several devices share a batch.

        XLA does not divide kernels among devices: it would gather the whole batch for each of them.
        """
        alone = jax.local_device_count() == 1
        return self.model if alone else UNet(dataclasses.replace(self.model.settings, kernels="xla"))

    @property
    def targets(self) -> np.ndarray:
        """Targets in model range, members first."""
        return to_model(self.planted.targets)

    def init_params(self, key: Key) -> Any:
        """Fresh parameters of the score network."""
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)))["params"]

    @functools.cached_property
    def param_shapes(self) -> Any:
        """Shapes of the score network's parameters."""
        return jax.eval_shape(self.init_params, jax.random.key(0))

    @functools.cached_property
    def fresh_params(self) -> Any:
        """Parameters of the score network as they are initialised, to time it with."""
        return jit_once(self.init_params)(jax.random.key(0))

    @functools.cached_property
    def score_params(self) -> Any:
        """EMA parameters of the trained score network, or those that were imported."""
        wanted = self.result(ScoreResult).weights_sha256
        if self.imported:
            checkpoints = self.checkpoints("score")
            params = checkpoints.restore(_on_device(self.param_shapes), step=0)
            checkpoints.close()
            check_weights("score", tree_digest(params), wanted)
            return params
        params = self.snapshot(self.config.score.num_steps)
        check_weights("score", tree_digest(params), wanted)
        return params

    def snapshot(self, step: int) -> Any:
        """EMA parameters after so many training steps; RequestError if that checkpoint was not kept."""
        state = jax.eval_shape(lambda key: init_state(self.init_params(key), self.config.score), jax.random.key(0))
        checkpoints = self.checkpoints("score")
        restored: TrainState = checkpoints.restore(_on_device(state), step=step)
        checkpoints.close()
        return restored.ema_params

    def make_score(self, params: Any, *, dtype: str = "") -> ScoreFn:
        """The score network's score.

        Args:
          dtype: in which the network computes, by plain XLA, in whatever direction derivatives are asked for; empty:
            as the config says.
        """
        prediction = self.imported.prediction if self.imported else self.config.score.prediction
        plain = dataclasses.replace(self.model.settings, dtype=dtype, kernels="xla") if dtype else None
        model = UNet(plain) if plain else self.model
        return make_score_fn(self.process, model, params, prediction=prediction)

    def loss(self, params: Any, images: jax.Array, keys: Keys) -> DsmLosses:
        """Training losses of a batch of bytes, with one key for each image."""
        keys_noise, keys_loss = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = jax.vmap(dequantize)(keys_noise, images) if self.config.data.dequantize else to_model(images)
        score = self.config.score
        return dsm_losses(
            self.config.process,
            self.training_model,
            params,
            x,
            key=keys_loss,
            weighting=score.weighting,
            prediction=score.prediction,
        )

    def _engine(self, make_score: Callable[[Any], ScoreFn], *, slots: int = 0, devices: Any = None) -> Engine:
        settings = self.config.engine
        return make_engine(
            lambda params: make_sampler(self.sampler, self.process, self.grid, make_score(params)),
            self.grid,
            self.image_shape,
            dataclasses.replace(settings, slots=slots or settings.slots),
            devices=devices,
        )

    def engine_on(self, devices: list[Any], *, slots: int) -> Engine:
        """The engine of `engine` with other slots on given devices, which need not be here."""
        return self._engine(self.make_score, slots=slots, devices=devices)

    @functools.cached_property
    def engine(self) -> Engine:
        """Chains of the trained model; count and search share its one compile."""
        return self._engine(self.make_score)

    @functools.cached_property
    def density(self) -> DensityEngine:
        """Densities under the model; likelihood and bound share its one compile.

        In float32: the rounding of bfloat16 is far above the solver's tolerances.
        """
        return make_density_engine(
            functools.partial(self.make_score, dtype="float32"),
            self.process,
            self.image_shape,
            self.config.ode,
            batch_size=self.config.likelihood.batch_size,
            block_steps=self.config.likelihood.block_steps,
        )

    @functools.cached_property
    def _grid_engine(self) -> Engine:
        """A few chains, for samples in the course of training."""
        devices = jax.local_devices()
        return self._engine(self.make_score, slots=-(-NUM_GRID // len(devices)), devices=devices)

    def draw_grid(self, params: Any, *, key: Key) -> np.ndarray:
        """`NUM_GRID` plain samples as bytes; StageError if the model returns non-finite values."""
        return self._draw(self._grid_engine, params, NUM_GRID, key=key)

    def draw_samples(self, count: int, *, key: Key) -> np.ndarray:
        """Plain samples of the trained model as bytes, on the devices of this process."""
        if not count:
            return np.zeros((0, *self.image_shape), np.uint8)
        alone = num_processes() == 1
        engine = self.engine if alone else self._engine(self.make_score, devices=jax.local_devices())
        return self._draw(engine, self.score_params, count, key=key)

    def _draw(self, engine: Engine, params: Any, count: int, *, key: Key) -> np.ndarray:
        work = make_work(NO_TARGET, self.grid.num_levels, count)
        samples = np.zeros((count, *self.image_shape), np.uint8)
        for block in run_chains(engine, params, self.targets[:1], work, key=key):
            samples[block.chain] = to_bytes(np.asarray(block.images)[block.rows])
        return samples

    @functools.cached_property
    def oracle_engine(self) -> Engine:
        """Chains of the empirical oracle, whose parameters are the training images."""
        return self._engine(lambda images: empirical_score_fn(self.process, images))

    @functools.cached_property
    def classifier_models(self) -> tuple[Any, Any]:
        """Fingerprint and identity networks."""
        return classifier.make_models(self.config.resnet, len(self.candidates.targets))

    def detector_data(self, images: np.ndarray) -> DetectorData:
        """What the detectors' examples are drawn from: `images` that are no target, as bytes, and all candidates."""
        candidates = self.candidates
        centers = np.asarray([(target.row, target.col) for target in candidates.record], np.int32)
        return DetectorData(to_model(images), to_model(candidates.originals), centers)

    @property
    def _others_path(self) -> Path:
        """Directory of the run whose classifiers are used, if there is one."""
        return local_path("classifiers.path", self.config.classifiers.path)

    @functools.cached_property
    def reused(self) -> Reused | None:
        """Digests of the classifiers that are not trained here, as classifiers.json or else their run says."""
        given, path, there = self.config.classifiers.path, self._others_path, self.has(ClassifiersResult)
        recorded = self.result(ClassifiersResult).reused if there else None
        check(
            not there or bool(recorded) == bool(given),
            f"--workdir={self.workdir.name}",
            got=f"a run whose classifiers were {'those of another' if recorded else 'its own'}",
            expected="one as asked for now",
            fix="give --config.classifiers.path as when it was begun, or choose another --workdir",
        )
        if not given or (recorded and not path.is_dir()):
            return recorded
        there = all((path / name).is_file() for name in ("config.json", "data.json", "classifiers.json"))
        trained = self.other.result(ClassifiersResult).trained if there else None
        found = trained and Reused(trained.weights_sha256, self.other.digest(DataResult))
        check(
            found is not None,
            "classifiers.path",
            got="a directory without trained classifiers",
            expected="the work directory of a run that trained them",
            fix="run its stage classifiers first, or leave the path empty",
        )
        check(
            recorded in (None, found),
            "classifiers.path",
            got="other classifiers than this run began with",
            expected="the same, or no directory any more",
            fix="restore them, or choose another --workdir",
        )
        return found

    @property
    def other(self) -> "Job":
        """The run whose classifiers are used."""
        path = self._others_path
        made = load(Begun, path / "config.json").section("classifiers")
        settings = dataclasses.replace(self.config.classifiers, path="", detector=made.get("detector", ""))
        return Job(dataclasses.replace(self.config, classifiers=settings), path, self.stages)

    def _check_reused(self, data: DataResult) -> None:
        """Refuses classifiers of other targets, of other data or of another architecture."""
        if not self.reused or not self._others_path.is_dir():
            return
        theirs, made = self.other.result(DataResult), load(Begun, self.other.workdir / "config.json")
        networks = json.loads(json.dumps(describe_config(self.config)["resnet"]))
        for same, what, fix in (
            (
                theirs.sha256["targets"] == data.sha256["targets"],
                "targets",
                "give both runs the same data, data.seed and numbers of targets",
            ),
            # Its own training images are among these, so that none of them is held out here.
            (theirs.identity == data.identity, "images", "give both runs the same data"),
            (made.section("resnet") == networks, "networks", "give both runs the same section resnet"),
            (
                set(self.classifier_names) <= set(self.other.classifier_names),
                "detectors",
                "set classifiers.detector as there, or to identity",
            ),
        ):
            check(
                same,
                "classifiers.path",
                got=f"a run with other {what}",
                expected=f"one with the {what} of this run",
                fix=fix,
            )

    @property
    def held_out(self) -> np.ndarray:
        """Images that no network of this run, nor of one whose classifiers it uses, was trained on."""
        return self.candidates.test[held_out_rows(self.candidates)]

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """Networks that the detector is made of."""
        return {"classifiers": classifier.NAMES, "identity": classifier.NAMES[1:], "nearest": ()}[
            self.config.classifiers.detector
        ]

    @functools.cached_property
    def detector(self) -> Detector:
        """What judges images: the trained classifiers, one of them, or the nearest training images."""
        planted = self.planted
        if not self.classifier_names:
            others = planted.train[planted.num_members :]
            return make_nearest_detector(to_model(others), self.targets, self.config.classifiers)
        found = {name: self.restore_classifier(name).averaged for name in self.classifier_names}
        trained = self.result(ClassifiersResult).trained
        assert trained, "networks were asked for"
        check_weights("classifiers", tree_digest(list(found.values())), trained.weights_sha256)
        return self.make_detector(found, trained.calibration, planted.rows)

    def make_detector(self, variables: dict[str, Any], calibration: Calibration, rows: np.ndarray) -> Detector:
        """Detector by classifiers, with the heads of the candidates in `rows`."""
        models = self.classifier_models
        return classifier.make_classifier_detector(models, variables, calibration=calibration, rows=rows)

    @functools.cached_property
    def fresh_classifiers(self) -> list[Any]:
        """States of the networks that the detector is made of, as they are initialised, to time them with."""
        models, image = self.classifier_models, jnp.zeros((1, *self.image_shape))
        init = (functools.partial(init_fit, models[classifier.NAMES.index(n)]) for n in self.classifier_names)
        return [jit_once(functools.partial(one, self.config.classifiers))(jax.random.key(0), image) for one in init]

    def restore_classifier(self, name: str, *, of: "Job | None" = None) -> Any:
        """State in which the training of a classifier ended, here or in another run."""
        model = self.classifier_models[classifier.NAMES.index(name)]
        init = functools.partial(init_fit, model, self.config.classifiers)
        shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *self.image_shape)))
        checkpoints = (of or self).checkpoints(name)
        state = checkpoints.restore(_on_device(shapes))
        checkpoints.close()
        return state


def _on_device(shapes: Any) -> Any:
    """Abstract arrays placed on the first device, as Orbax restores them."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)
