"""The paper's Table 2: 78,468 grey images.

Command:  python launch.py --config=configs/chestmnist.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "chestmnist"
    config.data.update({"name": "chestmnist"})
    return config
