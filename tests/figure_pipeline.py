"""The stages of an audit as one picture: docs/figures/pipeline.png.

    python -m tests.figure_pipeline OUT.png

Every image in it is computed: phantoms, two of them planted, and chains of the perfect memoriser (`oracle.py`), who
stands in for a trained network so that the picture takes seconds. Frames mark what ends nearest to the member.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from fpjax.core.images import to_model
from fpjax.data.fingerprint import FINGERPRINT_BYTE, disc_mask, disc_radius, stamp
from fpjax.data.phantom import phantom_images
from fpjax.diffusion.oracle import empirical_score_fn, nearest_image
from fpjax.diffusion.sampling import SamplerSettings, make_grid, make_sampler
from fpjax.diffusion.sde import SubVP

SDE, SETTINGS = SubVP(), SamplerSettings("ancestral", num_levels=100)
SIDE, NUM_TRAIN = 64, 9
TIMES = (0.3, 0.6, 0.9)
MEMBER, HELD_OUT, HARMLESS, OTHER, INK, PALE = "#d55e00", "#0072b2", "#009e73", "#707070", "#303030", "#f3f3f3"


class Pictures(NamedTuple):
    """What the picture is made of, in model range; row 0 of `train` is the member."""

    originals: np.ndarray  # (NUM_TRAIN, h, w, 1) before planting
    train: np.ndarray
    held_out: np.ndarray  # (h, w, 1)
    samples: np.ndarray  # (8, h, w, 1) from noise alone
    noised: np.ndarray  # the member at each of TIMES
    returned: np.ndarray  # and where its chains end


def planted(image: np.ndarray, center: tuple[int, int]) -> np.ndarray:
    """A phantom's bytes with the disc."""
    return stamp(image, disc_mask((SIDE, SIDE), center, disc_radius(SIDE)), FINGERPRINT_BYTE)


def compute(*, seed: int) -> Pictures:
    """Phantoms, and chains of the exact score of those that are trained on."""
    images = phantom_images(NUM_TRAIN + 1, side=SIDE, seed=3)
    member, held_out = planted(images[0], (24, 40)), planted(images[-1], (38, 22))
    train = to_model(np.stack([member, *images[1:-1]]))
    grid = make_grid(SETTINGS, SDE)
    sampler = make_sampler(SETTINGS, SDE, grid, empirical_score_fn(SDE, jnp.asarray(train)))

    @jax.jit
    def chain(x: jax.Array, level: jax.Array, key: jax.Array) -> jax.Array:
        """From x at a level to its end; above the level nothing happens."""

        def step(state, at):
            moved = sampler.step(state, at, jax.random.fold_in(key, at))
            return jax.tree.map(lambda old, new: jnp.where(at > level, old, new), state, moved), None

        return jax.lax.scan(step, sampler.init(x), jnp.arange(grid.num_levels, 0, -1))[0].x

    def noise(n: int, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (n, SIDE, SIDE, 1))

    keys = jax.random.split(jax.random.key(seed), 4)
    levels = jnp.asarray([int(np.abs(grid.t - t).argmin()) for t in TIMES])
    scale, std = (jnp.asarray(c)[levels, None, None, None] for c in (grid.scale, grid.std))
    noised = scale * train[0] + std * noise(len(TIMES), keys[0])
    back = jax.vmap(chain)(noised, levels, jax.random.split(keys[1], len(TIMES)))
    top = jnp.full(8, grid.num_levels)
    samples = jax.vmap(chain)(noise(8, keys[2]), top, jax.random.split(keys[3], 8))
    arrays = (to_model(images[:-1]), train, to_model(held_out), samples, noised, back)
    return Pictures(*(np.asarray(array) for array in arrays))


def is_member(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Whether the nearest training image is the member, (n,)."""
    return np.asarray(nearest_image(jnp.asarray(images), jnp.asarray(train))) == 0


def tile(axes: Axes, image: np.ndarray, x: float, y: float, size: float, frame: str = "") -> None:
    """An image with its lower left corner at (x, y)."""
    axes.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1, extent=(x, x + size, y, y + size), zorder=2)
    if frame:
        axes.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor=frame, linewidth=2.6, zorder=3))


def note(axes: Axes, x: float, y: float, text: str, colour: str = INK) -> None:
    """Small text with its upper left corner at (x, y)."""
    axes.text(x, y, text, va="top", fontsize=9, color=colour, linespacing=1.35)


def panel(axes: Axes, x: float, y: float, width: float, height: float, colour: str = PALE) -> None:
    """A rounded box."""
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="none", zorder=1))


def stage(axes: Axes, x: float, y: float, width: float, height: float, name: str, text: str = "") -> None:
    """The panel of a stage: its name, with text below."""
    panel(axes, x, y, width, height)
    axes.text(x + 0.12, y + height - 0.12, name, va="top", fontsize=12, weight="bold", color=INK)
    note(axes, x + 0.12, y + height - 0.45, text)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From panel to panel."""
    style = {"arrowstyle": "-|>", "color": "#808080", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=1)


def draw_inputs(axes: Axes, pictures: Pictures) -> None:
    """Training images, and the stages that see no model."""
    axes.text(0.15, 4.63, "training images", fontsize=12, weight="bold", color=INK, va="top")
    for i, image in enumerate(pictures.originals):
        tile(axes, image, 0.15 + 0.62 * (i % 3), 3.62 - 0.62 * (i // 3), 0.58)
    note(axes, 0.15, 2.26, "your own, MedMNIST,\nor built-in phantoms")
    stage(axes, 2.4, 1.0, 2.15, 3.75, "data", "plants a disc in targets,\nmembers and others alike")
    for image, y, colour, text in (
        (pictures.train[0], 2.72, MEMBER, "member: trained on"),
        (pictures.held_out, 1.34, HELD_OUT, "held-out target: never"),
    ):
        tile(axes, image, 2.96, y, 1.03, colour)
        axes.text(3.475, y - 0.08, text, ha="center", va="top", fontsize=9, color=colour)
    text = (
        "$c_p$: is there a disc?\n$c_{id}$: which target is it?\ntheir errors are measured;\n"
        "once they see every target,\nlots draw the members"
    )
    stage(axes, 5.1, 3.15, 2.15, 1.6, "classifiers", text)


def draw_chains(axes: Axes, pictures: Pictures) -> None:
    """The model, and what its chains are used for."""
    text = "the generative model learns\nthe score of the training\nimages and the members;\nor yours is taken as it is"
    stage(axes, 5.1, 1.0, 2.15, 1.6, "score", text)

    found = is_member(pictures.samples, pictures.train)
    stage(axes, 7.8, 3.15, 3.0, 1.6, "count", "plain samples: how many are a target?")
    for i, image in enumerate(pictures.samples):
        tile(axes, image, 7.92 + 0.35 * i, 3.57, 0.32, MEMBER if found[i] else "")
    verb = "is" if found.sum() == 1 else "are"
    note(axes, 7.92, 3.46, f"{found.sum()} of these {len(found)} {verb} the member", MEMBER)

    found = is_member(pictures.returned, pictures.train)
    stage(axes, 7.8, 1.0, 3.0, 1.95, "search", "noised to t, denoised: what comes back?")
    for i, t in enumerate(TIMES):
        x, colour = 7.92 + 0.97 * i, MEMBER if found[i] else OTHER
        note(axes, x, 2.29, f"t = {t:g}")
        tile(axes, pictures.noised[i], x, 1.58, 0.53)
        tile(axes, pictures.returned[i], x + 0.3, 1.27, 0.53, colour)
        note(axes, x + 0.3, 1.23, "member" if found[i] else "another", colour)

    stage(axes, 5.1, 0.3, 5.7, 0.5, "likelihood, bound")
    note(axes, 7.92, 0.64, "exact densities; beside the verdict, not in it")


def draw_report(axes: Axes) -> None:
    """What is asked of the counts, and the three answers."""
    text = "are members\ncounted more\noften, or back\nfrom more noise,\nthan held-out\ntargets?"
    stage(axes, 11.35, 1.0, 1.4, 3.75, "report", text)
    answers = ((2.4, "leak", MEMBER), (1.78, "below\ntolerance", HARMLESS), (1.16, "incon-\nclusive", OTHER))
    for y, text, colour in answers:
        panel(axes, 11.47, y, 1.16, 0.52, colour)
        axes.text(12.05, y + 0.25, text, ha="center", va="center", color="white", fontsize=9.5, weight="bold")


def draw(pictures: Pictures, path: Path) -> None:
    """The stages from left to right."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "savefig.dpi": 120}):
        figure = Figure(figsize=(12.9, 4.9))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 12.9), ylim=(0, 4.9), aspect="equal")
        axes.set_axis_off()
        draw_inputs(axes, pictures)
        draw_chains(axes, pictures)
        draw_report(axes)
        arrow(axes, (2.03, 3.29), (2.36, 3.29))
        for y in (3.95, 1.8):
            for x in (4.59, 7.29, 10.84):
                arrow(axes, (x, y), (x + 0.47, y))
        arrow(axes, (6.18, 3.11), (6.18, 2.64))
        arrow(axes, (7.29, 3.4), (7.76, 2.5))
        arrow(axes, (7.29, 2.35), (7.76, 3.5))
        axes.set(xlim=(0, 12.9), ylim=(0, 4.9))
        figure.savefig(path, metadata={"Software": "fpjax"})


def main(path: str) -> None:
    """Computes and draws."""
    draw(compute(seed=1), Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
