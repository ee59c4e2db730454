"""An existing diffusers model: nothing is trained, targets are as they are, the nearest training images detect.

Command:  python launch.py --config=import_diffusers --config.score.path=DIR --config.data.path=IMAGES
Needs:    a UNet2DModel or a pipeline of one; IMAGES/train with all the images that it was trained on, IMAGES/test with
          100 or more of the same kind that it was not; --config.data.side as the model has it. On a CPU for small ones:
          --stage=check tells the time.
"""

from ml_collections import ConfigDict

from fpjax.configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.name = "import_diffusers"
    config.data.update({"num_train": 0, "num_spares": 0, "stamp": False})
    config.score.path = ""  # no default
    config.classifiers.detector = "nearest"
    config.sampler.name = "scheduler"  # the pipeline's own: ddim or ancestral, spaced and clipped as it says
    config.sampler.num_levels = 100  # of the scheduler's steps, mostly 1000; at most as many as it has
    config.search.rank_max_t = 1.0  # a memoriser's t50 may lie anywhere
    config.ode.t_min = 1e-3  # its first of 1000 steps: below it the model was not trained
    config.likelihood.update({"num_train": 11, "num_held_out": 22})
    return config
