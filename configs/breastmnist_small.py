"""Real BreastMNIST on a CPU: a small model of 24 images, 4 of them targets, beside 16 held-out ones.

Command:  python launch.py --config=breastmnist_small
Measured: 14 min on 2 cores of an AMD EPYC, with other work beside it, JAX 0.10.2; leak (reproduced, memorised).
"""

from ml_collections import ConfigDict

from fpjax.configs import phantom


def get_config() -> ConfigDict:
    config = phantom.get_config()
    config.name = "breastmnist_small"
    config.data.update({"source": "medmnist", "name": "breastmnist", "side": 28})
    config.model.update({"channels": (16, 16, 16), "attention": (False, False, False)})
    config.score.update({"num_steps": 4000, "warmup_steps": 100})
    config.count.update({"num_samples": 1024, "oracle_samples": 512})
    config.likelihood.update({"num_train": 20, "num_held_out": 40})
    return config
