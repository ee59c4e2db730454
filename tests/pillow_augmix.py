"""AugMix in Pillow and NumPy, image by image: what `fpjax.augmix` is tested and timed against."""

import numpy as np
from PIL import Image, ImageOps

from fpjax.core.images import to_bytes, to_model
from fpjax.detectors.augmix import AugMixPlan


def _affine(*matrix):
    def transform(image):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)

    return transform


# Name: the operation of a magnitude.
OPERATIONS = {
    "identity": lambda _: lambda image: image,
    "autocontrast": lambda _: ImageOps.autocontrast,
    "equalize": lambda _: ImageOps.equalize,
    "posterize": lambda bits: lambda image: ImageOps.posterize(image, int(bits)),
    "solarize": lambda threshold: lambda image: ImageOps.solarize(image, int(threshold)),
    "rotate": lambda degrees: lambda image: image.rotate(degrees, resample=Image.Resampling.BILINEAR),
    "shear_x": lambda factor: _affine(1, factor, 0, 0, 1, 0),
    "shear_y": lambda factor: _affine(1, 0, 0, factor, 1, 0),
    "translate_x": lambda pixels: _affine(1, 0, pixels, 0, 1, 0),
    "translate_y": lambda pixels: _affine(1, 0, 0, 0, 1, pixels),
}
# Name: the magnitude of a level for images of (h, w).
MAGNITUDES = {
    "identity": lambda level, h, w: 0,
    "autocontrast": lambda level, h, w: 0,
    "equalize": lambda level, h, w: 0,
    "posterize": lambda level, h, w: 4 - int(level * 4 / 10),
    "solarize": lambda level, h, w: 256 - int(level * 256 / 10),
    "rotate": lambda level, h, w: int(level * 30 / 10),
    "shear_x": lambda level, h, w: level * 0.3 / 10,
    "shear_y": lambda level, h, w: level * 0.3 / 10,
    "translate_x": lambda level, h, w: int(level * (w / 3) / 10),
    "translate_y": lambda level, h, w: int(level * (h / 3) / 10),
}
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
NAMES = tuple(OPERATIONS)


def apply(levels, name, magnitude):
    """One operation on bytes (h, w, c)."""
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    return np.asarray(OPERATIONS[name](magnitude)(image)).reshape(levels.shape)


def mix(image, plan):
    """What `apply_plan` does, an operation at a time."""
    mixed = np.zeros_like(image)
    for operations, magnitudes, weight in zip(plan.operations, plan.magnitudes, plan.weights, strict=True):
        levels = to_bytes(image)
        for operation, magnitude in zip(operations, magnitudes, strict=True):
            levels = apply(levels, NAMES[operation], float(magnitude))
        mixed += weight * to_model(levels)
    return plan.keep * image + (1 - plan.keep) * mixed


def augmix(rng, image, settings):
    """The mixture of one image in model range, with its own draws."""
    height, width, _ = image.shape
    operations, magnitudes = [], []
    for _ in range(settings.width):
        depth = rng.integers(1, 4) if settings.depth == -1 else settings.depth
        operations.append(rng.integers(1, len(NAMES), depth))
        levels = rng.uniform(0.1, settings.severity, depth)
        names = [NAMES[operation] for operation in operations[-1]]
        signs = [rng.choice((-1, 1)) if name in SIGNED else 1 for name in names]
        found = [MAGNITUDES[name](level, height, width) for name, level in zip(names, levels, strict=True)]
        magnitudes.append([sign * magnitude for sign, magnitude in zip(signs, found, strict=True)])
    weights = rng.dirichlet([settings.alpha] * settings.width).astype(np.float32)
    keep = np.float32(rng.beta(settings.alpha, settings.alpha))
    return mix(image, AugMixPlan(operations, magnitudes, weights, keep))
