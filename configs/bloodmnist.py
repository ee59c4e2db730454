"""The paper's Table 2: 11,959 images.

Command:  python launch.py --config=configs/bloodmnist.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "bloodmnist"
    config.data.update({"name": "bloodmnist"})
    return config
