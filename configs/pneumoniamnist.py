"""The paper's Table 2: 4,708 grey images.

Command:  python launch.py --config=configs/pneumoniamnist.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "pneumoniamnist"
    config.data.update({"name": "pneumoniamnist"})
    return config
