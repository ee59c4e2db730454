"""The paper's Table 2: 13,932 grey images (13,940 in the release that the paper used).

Command:  python launch.py --config=configs/organsmnist.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "organsmnist"
    config.data.update({"name": "organsmnist"})
    return config
