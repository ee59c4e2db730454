"""What each part of the detectors' training is worth: trained with and without it, the same seed, errors measured.

Run with `python -m tests.benchmarks.bench_detectors --config=breastmnist_small --epochs=60`, or with
`pytest -m bench tests/benchmarks/bench_detectors.py`. Every variant sees the same images and targets, and takes all epochs, the last of which counts; rates have 95 % intervals.
"""

import argparse
import dataclasses
import importlib
import os
import tempfile
import time
from pathlib import Path

import jax
import pytest

from fpjax.core.checkpoints import Checkpoints
from fpjax.core.metrics import MetricsLog
from fpjax.detectors import classifier
from fpjax.detectors.evaluation import measure_errors
from fpjax.run.config import make_config
from fpjax.run.stages import open_job
from fpjax.stats.binomial import clopper_pearson

pytestmark = pytest.mark.bench
VARIANTS = {
    "as configured": {},
    "without masks": {"max_masks": 0},
    "without noise": {"max_noise": 0.0},
    "without tones and blur": {"max_tone": 0.0, "max_blur": 0.0},
    "without AugMix": {"augmix": False, "js_weight": 0.0},
    "with AugMix": {"augmix": True, "js_weight": 0.0},
    "with its JS loss": {"augmix": True, "js_weight": 12.0},
}


def errors_of(run, detect):
    """Misses or false hits of how many, by name; every variant under the noise, tones and blur that the config asks for."""
    candidates = run.candidates
    found, _ = measure_errors(
        detect,
        run.held_out,
        candidates.originals,
        candidates.targets,
        key=jax.random.fold_in(run.key("classifiers"), 2),
        radius=candidates.record[0].radius,
        min_contrast=run.min_contrast,
        marks=True,
        settings=run.config.classifiers,
    )
    return {
        f"{roc.decision}, {roc.condition}, {what}": (wrong, n)
        for roc in found.roc
        for what, wrong, n in (("missed", roc.missed, roc.num_positives), ("false", roc.false_images, roc.num_images))
    }


def train(run, settings):
    """Detect function and seconds of training, compilation among them."""
    candidates, start = run.candidates, time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = {name: Checkpoints(Path(directory) / name) for name in classifier.NAMES}
        found = classifier.train_detectors(
            run.classifier_models,
            run.detector_data(candidates.rest),
            run.detector_data(candidates.val),
            settings,
            augmix_settings=run.config.augmix,
            key=run.key("classifiers"),
            radius=candidates.record[0].radius,
            min_contrast=run.min_contrast,
            checkpoints=checkpoints,
            log=MetricsLog(Path(directory) / "metrics.jsonl"),
        )
        for part in checkpoints.values():
            part.close()
    detector = classifier.make_classifier_detector(
        run.classifier_models, found.variables, calibration=found.calibration
    )
    return detector.detect_fn, tuple(found.epochs.values()), time.perf_counter() - start


def ablate(config, *, epochs, variants=tuple(VARIANTS)):
    """Prints the table; returns the counts by variant."""
    run, counts = open_job(make_config(config), Path("unused")), {}
    base = dataclasses.replace(run.config.classifiers, epochs=epochs, max_rounds=1, max_restarts=0)
    device = jax.local_devices()[0]
    where = f"{jax.local_device_count()} x {device.device_kind}, {len(os.sched_getaffinity(0))} CPU cores"
    heads = len(run.candidates.targets)
    print(f"{config.name}, {heads} targets, at most {epochs} epochs; {where}; JAX {jax.__version__}")
    for name in variants:
        detect, taken, seconds = train(run, dataclasses.replace(base, **VARIANTS[name]))
        counts[name] = errors_of(run, detect)
        print(f"{name:22} epochs {taken[0]:3} and {taken[1]:3}, {seconds:6.0f} s", flush=True)
        for error, (hits, n) in counts[name].items():
            low, high = (float(end) for end in clopper_pearson(hits, n))
            print(f"    {error:36} {hits:5} of {n:5}   {hits / n:6.3f}   [{low:.3f}, {high:.3f}]", flush=True)
    return counts


def test_ablation():
    config = importlib.import_module("fpjax.configs.smoke").get_config()
    found = ablate(config, epochs=1, variants=("as configured", "without masks"))
    assert found["as configured"].keys() == found["without masks"].keys()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="breastmnist_small")
    parser.add_argument("--data", help="a MedMNIST set in place of the config's images, all of its training images")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    chosen = importlib.import_module(f"fpjax.configs.{options.config}").get_config()
    if options.data:
        chosen.data.update({"source": "medmnist", "name": options.data, "num_train": 0})
    ablate(chosen, epochs=options.epochs, variants=options.variants)
