"""The paper's Table 1: |N_D| in 1000, 5000, 10000, 20000, 50000 training images, 150,000 samples each.

Command:  python launch.py --config=configs/pathmnist.py --config.data.num_train=5000 --workdir=runs/path5000
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "pathmnist"
    config.data.update({"name": "pathmnist", "num_train": 1000})
    config.count.num_samples = 150_000
    return config
