"""The picture of the pipeline shows what it says."""

import numpy as np
import pytest

from .figure_pipeline import TIMES, compute, draw, is_member


@pytest.fixture(scope="module")
def pictures():
    return compute(seed=1)


def test_chains_of_the_memoriser_end_at_training_images(pictures):
    ends = np.concatenate([pictures.samples, pictures.returned])
    nearest = np.abs(ends[:, None] - pictures.train).max(axis=(2, 3, 4)).min(axis=1)
    assert (nearest < 1 / 64).all()


def test_the_member_returns_from_little_noise_and_not_from_much(pictures):
    assert is_member(pictures.returned, pictures.train).tolist() == [t < 0.8 for t in TIMES]
    assert 0 < is_member(pictures.samples, pictures.train).sum() < len(pictures.samples)
    # Only the planted image differs from its original.
    assert (pictures.originals != pictures.train).any(axis=(1, 2, 3)).tolist() == [True] + [False] * 8


def test_the_picture_is_drawn(pictures, tmp_path):
    draw(pictures, tmp_path / "pipeline.png")
    assert (tmp_path / "pipeline.png").read_bytes().startswith(b"\x89PNG")
