"""The paper's Table 2: 546 grey images.

Command:  python launch.py --config=configs/breastmnist.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "breastmnist"
    config.data.update({"name": "breastmnist"})
    return config
