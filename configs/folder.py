"""Your own images on a CPU: a folder of PNG or JPEG files, the small model of BreastMNIST.

Command:  python launch.py --config=folder --config.data.path=DIR
Needs:    54 distinct images or more, of 28 pixels each way or more.
"""

from ml_collections import ConfigDict

from fpjax.configs import breastmnist_small


def get_config() -> ConfigDict:
    config = breastmnist_small.get_config()
    config.name = "folder"
    config.data.update({"source": "folder", "path": ""})  # data.path has no default
    return config
