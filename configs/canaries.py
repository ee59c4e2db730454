"""Canaries: 20 targets, each trained on by a fair coin, and what they tell of epsilon from one run.

Command:  pip install 'fpjax[privacy]' && python launch.py --config=canaries
So many canaries can show an epsilon of 1.8 at most; hundreds need a larger model than a CPU trains in minutes.
"""

from ml_collections import ConfigDict

from fpjax.configs import phantom


def get_config() -> ConfigDict:
    config = phantom.get_config()
    config.name = "canaries"
    config.data.update({"num_members": 0, "num_controls": 0, "num_count_controls": 0, "canaries": 20})
    config.audit.canary_score = "t50"  # every canary has one; few are among a few hundred samples
    config.search.member_chains = 0  # the chains that all canaries share
    config.bound.num_chains = 0
    return config
