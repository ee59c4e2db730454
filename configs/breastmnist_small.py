"""Real BreastMNIST on a CPU: a small model of 24 images, with 19 held-out targets so that the rank test can reject.

Command:  python launch.py --config=configs/breastmnist_small.py
Measured: 45 min (16.5 min of CPU time) on 2 busy CPU cores with JAX 0.10.2; leak (memorised), t50 0.31 against at most
          0.11 of 19 controls.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
    config = phantom.get_config()
    config.name = "breastmnist_small"
    config.data.update({"source": "medmnist", "name": "breastmnist", "side": 28, "num_train": 24, "num_controls": 19})
    config.model.update({"channels": (16, 16, 16), "attention": (False, False, False)})
    config.score.num_steps = 4000
    config.likelihood.update({"num_train": 20, "num_held_out": 40})
    return config
