"""The quickstart: the whole audit of a small model of built-in phantoms, on a laptop's CPU.

Command:  python launch.py
Measured: 6 min 10 s on 2 cores of an AMD EPYC, JAX 0.10.2, 2 min 44 s on those of another; leak (reproduced,
          memorised). So it was with 20 of 20 seeds (docs/verdict.md).
"""

from ml_collections import ConfigDict

from fpjax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "phantom"
    config.data.update(
        {
            "source": "phantom",
            "side": 16,
            "num_train": 24,
            "num_pool": 200,
            "num_val": 96,
            "num_test": 256,
            "num_members": 4,  # of 20: memberships that a permutation test can tell apart
            "num_controls": 16,
            "num_count_controls": 16,
            "num_spares": 4,
            "min_contrast": 24,
        }
    )
    config.model.update(
        {
            "channels": (16, 16),
            "layers_per_block": 1,
            "attention": (False, False),
            "attention_head_dim": 16,
            "norm_num_groups": 8,
            "dropout": 0.0,
        }
    )
    config.score.update(
        {"num_steps": 6000, "batch_size": 16, "learning_rate": 4e-3, "warmup_steps": 1000, "checkpoint_every": 500}
    )
    config.sampler.update({"name": "ancestral", "num_levels": 100})
    config.engine.update({"slots": 64, "block_steps": 50})
    config.resnet.update({"stages": (1, 1, 1), "block": "basic", "width": 12})
    config.classifiers.update(
        {
            "batch_size": 64,
            "steps_per_epoch": 25,
            "epochs": 60,
            "max_rounds": 2,
            "gate_copies": 64,
            "num_val": 512,
            "learning_rate": 5e-3,
            "identity_rate": 0.3,
            "augmix": False,  # networks as small as these take more images for a target with it
        }
    )
    config.count.update({"num_samples": 512, "sensitivity_chains": 32, "oracle_samples": 256})
    config.search.update(
        {"member_levels": 20, "member_chains": 8, "rank_levels": 10, "rank_chains": 8, "rank_max_t": 0.6}
    )
    config.ode.update({"rtol": 1e-4, "atol": 1e-4})
    config.likelihood.update(
        {"num_train": 8, "num_neighbours": 3, "num_held_out": 22, "num_generated": 16, "batch_size": 16}
    )
    config.bound.update({"num_cells": 5, "levels_per_cell": 2, "num_chains": 4})
    return config
