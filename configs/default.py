"""The paper's setting (Dombrowski & Kainz 2023), every field, but for what a comment says; others change what differs.

Command:  python launch.py --config=pathmnist   (this file names no data set of its own choice)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "default",
            "seed": 0,  # of every draw but the data's
            "data": {
                "source": "medmnist",  # medmnist | npz | folder | tfds | phantom
                "name": "pathmnist",  # the paper's main data set; medmnist and tfds
                "directory": "",  # empty: $FPJAX_DATA, then ./data; medmnist and tfds
                "path": "",  # the user's file or folder; npz and folder
                "download": True,  # an official MedMNIST file that is nowhere here
                "side": 28,  # pixels, the paper's; npz and tfds have their own
                "val_fraction": 0.1,
                "test_fraction": 0.1,  # of the train images, where npz, folder or tfds has no such split
                "num_pool": 1200,
                "num_val": 200,
                "num_test": 200,  # phantoms in the train, val and test split
                "num_train": 0,  # |N_D|, training images of the score model; 0: all that remain
                "num_members": 1,  # K, targets that are trained on
                "num_controls": 24,  # H, targets that are not, with chains; 24 give the rank of t50 its p of 0.04
                "num_count_controls": 99,  # targets that are not, the H among them; 99 give the counts' rank 0.01
                "num_spares": 8,  # planted beyond these, for targets that the detectors cannot see
                "canaries": 0,  # m targets, each trained on by a fair coin; the three numbers above are 0 then
                "min_contrast": 16,  # grey levels by which a disc differs in the mean from what it covers
                "group": "",  # of images of one patient: regex over a folder's paths, or name of npz's arrays
                "repeat_grey": False,  # the paper repeats grey to 3 channels; native is cheaper and has a density
                "dequantize": True,  # uniform noise on the bytes in training and likelihood
                "stamp": True,  # False: no discs; members are train images as they are, controls held-out ones
                "seed": 0,  # of drawn splits, targets, discs, membership and subset
            },
            "sde": {
                "name": "subvp",  # subvp | vp | ve; the paper's
                "beta_min": 0.1,
                "beta_max": 20.0,  # sub-VP and VP, Song et al. 2021
                "sigma_min": 0.01,
                "sigma_max": 50.0,  # VE; as far as two 28x28 images in [-1, 1] are apart
            },
            "model": {
                "channels": (128, 128, 256),  # the three outermost levels of diffusers' default
                "layers_per_block": 2,
                "attention": (False, True, False),  # at 14x14
                "up_attention": (),  # empty: as on the way down
                "attention_head_dim": 8,  # 0: one head
                "mid_block": "attention",  # attention | plain | none
                "mid_block_scale_factor": 1.0,
                "norm_num_groups": 32,
                "attn_norm_num_groups": 0,  # 0: as diffusers chooses
                "norm_eps": 1e-5,
                "act_fn": "silu",  # silu | mish | gelu | relu
                "resnet_time_scale_shift": "default",  # default | scale_shift
                "downsample_padding": 1,  # 0 in the models of DDPM's authors
                "downsample_type": "conv",
                "upsample_type": "conv",  # conv | resnet
                "time_embedding_type": "positional",  # positional | fourier
                "flip_sin_to_cos": True,
                "freq_shift": 0.0,  # diffusers' defaults
                "center_input_sample": False,  # images are in [-1, 1] already
                "dropout": 0.1,
                "dtype": "auto",  # bfloat16 where the device computes in it, float32 elsewhere; or one of these
                "kernels": "auto",  # pallas on an NVIDIA GPU where they prove right, xla elsewhere; or one of these
                "remat": False,  # True: less memory in training for about a third more time
            },
            "score": {
                "path": "",  # a diffusers model or pipeline that is audited instead of a trained one
                "without_scheduler": False,  # which has none: it predicts epsilon of `sde` and is told 999 t
                "num_steps": 30_000,  # the paper's training length
                "batch_size": 128,  # over all devices
                "accumulate": 1,  # parts of the batch, one after the other; more where memory is short
                "learning_rate": 2e-4,  # score_sde's, as are warm-up and clipping
                "warmup_steps": 5_000,
                "grad_clip": 1.0,
                "prediction": "epsilon",  # epsilon | v_prediction | sample | edm
                "weighting": "simple",  # simple | likelihood: of the loss over t; the second for better bits/dim
                "ema_decay": 0.9999,  # with warm-up, or 5 % of the random start would be left at 30,000 steps
                "ema_extra": (),  # decays of more EMAs in the checkpoints, such as (0.999, 0.99995); never audited
                "log_every": 100,  # steps
                "checkpoint_every": 5_000,  # steps
                "keep_last": 2,  # checkpoints: the newest, and the one before it
                "keep_every": 0,  # steps; more than 0 to study the length of training: these checkpoints all stay
                "sample_every": 0,  # steps between two grids of 16 samples; each grid is 16 chains of the sampler
            },
            "sampler": {
                "name": "euler_maruyama",  # the paper's; ancestral below about 1000 levels
                "num_levels": 1000,  # N; the paper's t' values have a resolution of 0.001
                "t_min": 1e-3,  # score_sde's for sampling
                "spacing": "time",  # time | quadratic | log_snr; the last for high order with 20 to 50 levels
                "steps_offset": 0,  # of the spacings of a scheduler's steps: leading | linspace | trailing
                "eta": 0.0,  # of ddim; 1: as much noise as ancestral
                "set_alpha_to_one": True,  # of ddim
                "clip_sample": 0.0,  # of ancestral and ddim, where the predicted image is cut; 0: it is not
                "max_extrapolation": 0.0,  # of dpm_solver; 0: no limit, as published
                "predictor": "ancestral",  # of predictor_corrector; or euler_maruyama
                "corrector_steps": 1,
                "corrector_snr": 0.16,  # score_sde's
                "ode_solver": "heun",  # of probability_flow; or bosh3, tsit5: 2, 4, 7 evaluations a step
                "ode_substeps": 1,
            },
            "engine": {
                "slots": 1024,  # chains in flight on each device
                "block_steps": 100,  # reverse steps between two looks of the host
                "compilation_cache": True,  # in $XDG_CACHE_HOME/fpjax or ~/.cache/fpjax, unless JAX has its own
            },
            "resnet": {
                "stages": (3, 4, 6, 3),  # ResNet50
                "block": "bottleneck",  # bottleneck | basic: of 50 layers and more, or of 18 and 34
                "width": 64,
                "stem": "small",  # 3x3: the ImageNet stem would leave 28x28 images at 7x7 before the first block
                "dtype": "auto",
            },
            "classifiers": {
                "path": "",  # work directory of a run with the same targets, whose classifiers are used (Table 1)
                "detector": "classifiers",  # classifiers | identity | nearest; the paper's
                "distance": "ratio",  # ratio | absolute; of nearest: plain images are near to all, absolutely
                "neighbours": 50,  # Carlini et al. 2023, for CIFAR-10
                "ratio": 1 / 3,  # of its distance to theirs, below which an image is a copy; as Gu et al. 2023
                "max_difference": 0.1,  # of absolute: rms of pixels in [0, 1]; what it errs is measured
                "learning_rate": 1e-3,
                "batch_size": 128,
                "steps_per_epoch": 100,
                "epochs": 100,  # of a round; the paper stops early, on one epoch's luck
                "max_rounds": 3,  # until every target and its poor copies are seen
                "max_restarts": 2,  # from other weights, after that
                "ema_decay": 0.999,  # of the averaged weights, which are judged
                "sensitivity": 0.95,  # on poor copies of each target, which sets its head's threshold
                "gate_copies": 128,  # of each target
                "gate": True,  # False: to look at detectors that do not see their targets
                "fingerprint_rate": 0.5,
                "fingerprint_rate_val": 0.1,  # positives of c_p (paper, appendix A)
                "identity_rate": 0.1,
                "identity_rate_val": 0.5,  # positives of c_id
                "max_masks": 4,  # random discs over an image of c_id
                "max_tone": 0.2,  # of brightness and log contrast: models reproduce images in other tones than theirs,
                "max_blur": 0.25,  # and blurred, in radii of the disc. Not in the paper; 0 for neither
                "max_noise": 0.1,  # standard deviation in model range
                "augmix": True,  # of the training images of both, as in the paper
                "js_weight": 0.0,  # AugMix's paper: 12, at three times the work; this paper names no such loss
                "num_val": 1024,  # examples
                "threshold": 0.5,  # of calibrated scores: each head's own
                "thresholds": (0.05, 0.1, 0.25, 0.75, 0.9, 0.95),  # at which detections are counted too
            },
            "augmix": {"severity": 3, "width": 3, "depth": -1, "alpha": 1.0},  # Hendrycks et al. 2020
            "count": {
                "num_samples": 50_000,  # the paper's Table 2
                "looks": (),  # numbers of samples after which the counts are tested, such as (10_000, 50_000)
                "sensitivity_chains": 256,  # from each searched target, below one grey level of noise
                "oracle_samples": 1024,
            },
            "search": {
                "strategy": "exhaustive",  # exhaustive | descending | coarse_to_fine | bisection | random; the paper's
                "member_levels": 1000,
                "member_chains": 16,  # the paper's
                "coarse_levels": 20,
                "fine_levels": 20,
                "confirm_chains": 16,  # of coarse_to_fine, bisection and descending, which see `strategies.py`
                "rank_levels": 20,
                "rank_chains": 16,  # members and held-out targets alike
                "rank_max_t": 1.0,
            },
            "ode": {
                "solver": "dopri5",  # RK45, as score_sde
                "rtol": 1e-5,
                "atol": 1e-5,
                "t_min": 1e-5,
                "max_steps": 4096,
                "num_probes": 1,  # Hutchinson; 0: exact trace
                "probe": "rademacher",  # rademacher | gaussian; the first has less noise
                "trace_batch": 64,  # directions of the exact trace at once; fewer where memory is short
            },
            "likelihood": {
                "num_train": 128,
                "num_held_out": 128,
                "num_neighbours": 8,  # nearest to each member
                "num_generated": 64,  # images
                "repeats": 1,  # draws of noise and probes for each image; 5 in score_sde
                "snapshots": False,  # True: under every checkpoint of score.keep_every too
                "batch_size": 64,  # images in flight on each device
                "block_steps": 4,  # of the solver, after which images that are done make room for others
            },
            "bound": {
                "num_cells": 10,
                "levels_per_cell": 20,  # over which each cell's sup is taken
                "num_chains": 8,  # from each member at each level; 0: no bound
                "repeats": 2,  # of each density, which tells the noise of the trace
            },
            "audit": {
                "level": 0.05,  # of "leak" where nothing was memorised
                "count_level": 0.01,
                "t50_level": 0.04,  # parts of it
                "tolerance": 0.0,  # rate of reproduction that is accepted; 0: 1/N, a perfect memoriser's
                "confidence": 0.95,  # of every interval
                "canary_score": "count",  # count | t50 | nll
                "canary_delta": 1e-5,  # of (epsilon, delta)
            },
            "report": {
                "show_members": True,  # False: no picture in report.html; numbers of single images stay in it
                "public": True,  # write public/, aggregates alone: what may leave the hospital
                "tensorboard": False,  # event files beside metrics.jsonl; needs the extra tensorboard
            },
        }
    )
