"""Stage data: reads the images, plants the targets, and says what they are; membership is drawn later."""

from typing import Any

import numpy as np

from ...core.terminal import say
from ...data.fingerprint import disc_mask
from ...data.results import DataResult
from ...data.source import DataSettings
from ..config import Config
from ..job import Job
from ..stage import Cost, Finding, Stage


def run(job: Job) -> None:
    """Writes what was read and planted; on stderr what was drawn, and from what."""
    candidates, result = job.data
    identity = result.identity
    images = ", ".join(f"{count:,} {split}" for split, count in identity.num_images.items())
    grouped = "; no group of images on both sides" if identity.groups else ""
    for line in (f"{identity.name}, {images}{grouped}", *_found(job, identity)):
        say(f"data: {line}")
    if job.config.data.stamp:
        say(
            f"data: {len(candidates.record)} targets drawn from {', '.join(identity.alike)}; "
            f"{candidates.passed_over} images passed over, on which no disc has a contrast of "
            f"{job.config.data.min_contrast} grey levels"
        )
    job.finish(result)


def _found(job: Job, identity: Any) -> list[str]:
    """What was guessed or left out, in words."""
    drawn = [split for split in identity.drawn or {} if split != "seed"]
    lines, missing = [], " and no ".join(drawn)
    if drawn and not job.config.data.stamp:
        lines = [f"no {missing} given, and none is drawn: all of train count as trained on"]
    elif drawn:
        given = sum(identity.num_images[split] for split in ("train", *drawn))
        parts = " and ".join(f"{identity.num_images[split]:,} {split}" for split in drawn)
        lines = [f"no {missing} given: {parts} images drawn at random from the {given:,} given as train"]
    return [*lines, *job.notes]


def cost(job: Job) -> Cost:
    """No compute to speak of."""
    planted, shape = job.planted, "x".join(map(str, job.image_shape))
    return Cost(
        f"{len(planted.train)} training images of {shape}, {planted.num_members} member and {planted.num_controls} "
        f"held-out targets, {len(planted.targets) - job.num_searched} more that are counted alone"
    )


def training_text(config: Config, num_train: int) -> str:
    """How long the score network is trained."""
    steps, batch = config.score.num_steps, config.score.batch_size
    return f"{steps:,} steps x {batch} images, {steps * batch / num_train:,.0f} passes over N = {num_train:,}"


def check(job: Job) -> list[Finding]:
    """Where the images come from, and what the discs do to them."""
    config, (candidates, result), num_train = job.config, job.data, len(job.planted.train)
    identity: Any = result.identity
    copies, shared = sum(identity.surplus_copies.values()), sum(identity.shared_images.values())
    source = Finding(
        "note" if shared else "ok",
        "data",
        f"{identity.source} {identity.name}: "
        + ", ".join(f"{n:,} {split}" for split, n in identity.num_images.items())
        + f" of {'x'.join(map(str, identity.image_shape))}; {copies} surplus copies, {shared} images in two splits",
    )
    guessed = [Finding("note", "data", line) for line in _found(job, identity)]
    if not config.data.stamp:
        imported = f"none here; N = {num_train:,} were trained on"
        return [
            source,
            *guessed,
            Finding("ok", "training", imported if config.score.path else training_text(config, num_train)),
        ]
    target, contrast = candidates.record[0], [target.contrast for target in candidates.record]
    share = float(np.mean(disc_mask(job.image_shape[:2], (target.row, target.col), target.radius)))
    return [
        source,
        *guessed,
        Finding(
            "ok" if share <= 0.2 else "note",
            "disc",
            f"radius {target.radius} pixels, {100 * share:.1f} % of the image",
        ),
        Finding(
            "ok" if not candidates.passed_over else "note",
            "contrast",
            f"the disc differs from what it covers by {np.median(contrast):.0f} grey levels on average over "
            f"{len(contrast)} targets, at least {min(contrast)}; data.min_contrast = {config.data.min_contrast}, "
            f"{candidates.passed_over} images without such a place were passed over",
        ),
        Finding("ok", "training", training_text(config, num_train)),
    ]


DATA = Stage("data", DataResult, needs=(), settings=(DataSettings,), stream=0, run=run, cost=cost, check=check)
