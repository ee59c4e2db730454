"""What a job refuses before it computes anything with it."""

from ..core.errors import check
from ..data.plant import Candidates, Planted, held_out_rows
from ..diffusion.pretrained.imported import Imported
from ..models.unet import UNet
from .config import Config


def check_fit(config: Config, candidates: Candidates, planted: Planted, model: UNet, imported: Imported | None) -> None:
    """Refuses images that the network cannot take, and too few of them."""
    side = planted.train.shape[1:3]
    settings = model.settings
    factor = settings.downsampling
    fits = min(side) // factor * factor
    check(
        all(s % factor == 0 for s in side),
        "image side",
        got=f"{side[0]}x{side[1]}",
        expected=f"multiples of {factor} for the {len(settings.channels)} levels of the model",
        fix=f"set data.side to {fits}, or use fewer levels"
        if fits and config.data.source in ("folder", "phantom")
        else f"resize the images, to {fits}x{fits} for one, or use fewer levels"
        if fits
        else "use larger images or fewer levels",
    )
    if imported:
        architecture = imported.architecture
        for what, got, wanted in (
            ("image channels", planted.train.shape[3], architecture.channels),
            ("image side", side, architecture.side or side),
        ):
            check(
                got == wanted,
                what,
                got=got,
                expected=f"{wanted}, as the model of score.path",
                fix="give the images that it was trained on (data.side, data.repeat_grey)",
            )
    held_out = candidates.test[held_out_rows(candidates)]
    for part, name in ((planted.val, "val"), (held_out, "test")):
        if name == "val" and not config.data.stamp:
            continue
        got = "no images" if not len(planted.test) or name == "val" else "no image that is not in train or val too"
        check(len(part) > 0, f"{name} split", got=got, expected="at least one", fix="add held-out images")
    check(
        len(candidates.rest) > 0,
        "train split",
        got="no image but the targets",
        expected="others beside them",
        fix="add images or plant fewer targets",
    )


def check_weights(stage: str, digest: str, wanted: str) -> None:
    """Refuses weights that are not those of the stage's result."""
    check(
        digest == wanted,
        f"checkpoints of {stage}",
        got="other weights than the ones that the stage ended with",
        expected=f"those named in {stage}.json",
        fix=f"restore them, or delete {stage}.json and its directories in checkpoints/ to train again",
    )
