"""Every stage in seconds, for the tests: too small a model to say anything.

Command:  python launch.py --config=smoke
"""

from ml_collections import ConfigDict

from fpjax.configs import phantom


def get_config() -> ConfigDict:
    config = phantom.get_config()
    config.name = "smoke"
    config.data.update({"side": 8, "num_train": 8, "num_pool": 32, "num_val": 12, "num_test": 24})
    config.data.update({"num_members": 2, "num_controls": 2, "num_count_controls": 3, "num_spares": 1})
    config.model.update({"channels": (8,), "attention": (False,), "attention_head_dim": 8, "norm_num_groups": 4})
    config.score.update({"num_steps": 60, "log_every": 20, "checkpoint_every": 20, "sample_every": 40})
    config.sampler.num_levels = 10
    config.engine.update({"slots": 16, "block_steps": 8})
    config.resnet.update({"stages": (1,), "width": 4})
    config.classifiers.update({"batch_size": 16, "steps_per_epoch": 5, "epochs": 6, "num_val": 300})
    config.classifiers.gate = False  # too small to see anything
    config.count.update({"num_samples": 48, "sensitivity_chains": 16, "oracle_samples": 32})
    config.search.update({"member_levels": 5, "member_chains": 4, "rank_levels": 3, "rank_chains": 4})
    config.ode.update({"rtol": 1e-3, "atol": 1e-3})
    config.likelihood.update(
        {"num_train": 2, "num_neighbours": 2, "num_held_out": 4, "num_generated": 3, "batch_size": 8}
    )
    config.bound.update({"num_cells": 2, "levels_per_cell": 2, "num_chains": 2})
    return config
