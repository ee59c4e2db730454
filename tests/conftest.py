import os

# Two CPU devices, so that sharding is exercised by every test; set before JAX starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"

from pathlib import Path

import numpy as np
import pytest

from fpjax.data.phantom import phantom_images
from fpjax.fingerprint import to_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_images() -> np.ndarray:
    """100 distinct images in model range: BreastMNIST where the file is there, phantoms otherwise."""
    path = ROOT.parent / "shared" / "data" / "medmnist" / "breastmnist.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            images = np.unique(file["train_images"], axis=0)[:100, :, :, None]
    else:
        images = phantom_images(100, side=28, seed=0)
    return to_model(images)
