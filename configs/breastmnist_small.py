"""Real BreastMNIST on a CPU: a small model of 24 images, with 19 held-out targets so that the rank test can reject.

Command:  python launch.py --config=configs/breastmnist_small.py
Measured: 20 min on 2 CPU cores, with other work beside it, with JAX 0.10.2; leak (memorised, reproduced), t50 0.41
          against at most 0.12 of 19 controls, 20 of 2,048 samples.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
    config = phantom.get_config()
    config.name = "breastmnist_small"
    config.data.update({"source": "medmnist", "name": "breastmnist", "side": 28, "num_train": 24})
    config.model.update({"channels": (16, 16, 16), "attention": (False, False, False)})
    config.resnet.width = 16
    config.count.update({"num_samples": 2048, "oracle_samples": 1024})  # 4 of 512 would not be told from false hits
    config.likelihood.update({"num_train": 20, "num_held_out": 40})
    return config
