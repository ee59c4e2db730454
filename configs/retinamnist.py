"""The paper's Table 2: 1,080 images.

Command:  python launch.py --config=configs/retinamnist.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "retinamnist"
    config.data.update({"name": "retinamnist"})
    return config
