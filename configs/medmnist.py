"""Full-size audits of MedMNIST at 28x28: the paper's Table 1 (PathMNIST) and Table 2 (the others).

Command:  python launch.py --config=retinamnist
          python launch.py --config=pathmnist --config.data.num_train=5000 --workdir=runs/path5000
"""

from ml_collections import ConfigDict

from fpjax.configs import default
from fpjax.core.errors import one_of

SETS = {
    "pathmnist": "|N_D| in 1000, 5000, 10000, 20000, 50000 training images, 150,000 samples each",
    "retinamnist": "1,080 images",
    "bloodmnist": "11,959 images",
    "chestmnist": "78,468 grey images",
    "organsmnist": "13,932 grey images (13,940 in the release that the paper used)",
    "pneumoniamnist": "4,708 grey images",
    "breastmnist": "546 grey images",
}


def get_config(name: str = "pathmnist") -> ConfigDict:
    one_of("--config=medmnist:NAME", name, SETS)
    config = default.get_config()
    config.name = name
    config.data.update({"name": name})
    if name == "pathmnist":
        config.data.num_train = 1000
        config.count.num_samples = 150_000
    return config
