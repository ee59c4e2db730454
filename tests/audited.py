"""Results of the stages made by hand, as their files hold them, and the audit of them."""

from fpjax.audit.results import StageResults
from fpjax.audit.summary import make_audit
from fpjax.audit.verdict import AuditSettings
from fpjax.core.records import from_content
from fpjax.detectors.evaluation import POOR
from fpjax.diffusion.grid import time_grid
from fpjax.diffusion.sde import SubVP
from fpjax.studies.strategies import CURVE, RANK

GRID = time_grid(SubVP(), 20)
LEVELS = [4, 8, 12, 16]
COPIES, RETURNS = 32, 256
TAIL = 0.025  # by which each limit of a two-sided interval fails


def roc(decision, condition, positives, negatives, *, missed=0, false=0):
    """A curve of scores that all lie on one side or the other."""
    return {
        "decision": decision,
        "condition": condition,
        "num_positives": positives,
        "num_negatives": negatives,
        "num_images": min(negatives, 400),
        "positives_above": [positives - missed] * 33,
        "negatives_above": [false] * 33,
        "missed": missed,
        "false_images": false,
    }


def padded(values, size, *, by=0):
    return [*values, *[by] * (size - len(values))]


def results(
    *,
    hits=(0,),
    control_hits=(),
    num_samples=50_000,
    num_train=1000,
    controls=24,
    count_controls=99,
    member_curve=(8, 2, 0, 0),
    control_curve=(8, 2, 0, 0),
    strategy="exhaustive",
    planted_missed=0,
    poor=(),
    returns=(),
    real_false=0,
    looks=(),
    planned_looks=(),
    memoriser=None,
    memoriser_control_hits=(),
    canaries=0,
):
    """Contents of the stages' files, to be changed and given to `make`.

    Args:
      hits, control_hits: of each member, and of the first count controls.
      controls: with chains, the first of the count controls.
      member_curve, control_curve: chains that return of 8 ranking chains at each of `LEVELS`; members have twice as
        many curve chains, of which the same share returns.
      poor: of the first targets, found copies of `COPIES`; all of the others'.
      returns: of the first searched targets, found chains of `RETURNS`; all of the others'.
      looks: rows of counts, members first, for all looks but the last.
      memoriser: how many of its samples are seen of each member; None: all.
    """
    k, n = len(hits), num_samples
    targets, searched = k + count_controls, k + controls
    curves = [member_curve] * k + [control_curve] * controls
    rows = [(t, RANK, level, 8, m) for t in range(searched) for level, m in zip(LEVELS, curves[t], strict=True)]
    rows += [(t, CURVE, level, 16, 2 * m) for t in range(k) for level, m in zip(LEVELS, member_curve, strict=True)]
    names = ("target", "phase", "level", "num_chains", "num_detected")
    search = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    search["num_identity"] = list(search["num_detected"])
    search["num_fingerprint"] = list(search["num_chains"])
    # Of two other thresholds, the lower one detects every chain, the higher one none.
    search["num_detected_at"] = [[chains, 0] for chains in search["num_chains"]]
    detected = [*hits, *padded(control_hits, count_controls)]
    reproduced = [round(30_000 / num_train)] * k
    seen = reproduced if memoriser is None else [memoriser] * k
    contents = {
        "data": {
            "identity": {
                "source": "npz",
                "name": "images",
                "alike": ["train"],
                "sha256": {},
                "image_shape": [8, 8, 1],
                "repeat_grey": False,
                "num_images": {},
                "surplus_copies": {},
                "shared_images": {},
                "drawn": None,
                "groups": None,
                "details": {},
            },
            "seed": 0,
            "num_images": {},
            "sha256": {},
            "fingerprint_byte": 128,
            "min_contrast": 24,
            "passed_over": 0,
            "targets": [],
        },
        "score": {"num_steps": 100, "num_params": 7, "num_train": num_train, "weights_sha256": ""},
        "classifiers": {
            "trained": {
                "attempts": {"fingerprint": 1, "identity": 2},
                "epochs": {"fingerprint": 100, "identity": 300},
                "calibration": {"fingerprint": 0.0, "identity": [0.0] * targets},
                "gate": {},
                "unseen": 0,
                "dropped": [3],
                "weights_sha256": "",
            },
            "reused": None,
            "membership": {
                "rows": list(range(targets)),
                "num_members": k,
                "num_controls": controls,
                "num_train": num_train,
                "train_sha256": "0" * 64,
                "canaries": canaries,
            },
            "detector": {"description": "two nets", "marks": True, "advice": "train the detectors longer"},
            "threshold": 0.5,
            "thresholds": [0.1, 0.9],
            "errors": {
                "num_images": 400,
                "heads": targets,
                "draws_per_target": COPIES,
                "false_by_head": padded([real_false], targets),
                "false_images_at": [real_false + 5, 0],
                "missed_at": [0, 9],
                "planted_found": [1] * (targets - planted_missed) + [0] * planted_missed,
                "poor_found": padded(poor, targets, by=COPIES),
                "roc": [
                    roc("fingerprint", "plain", 400, 400, missed=1, false=2),
                    roc("identity", "plain", 640, 400 * targets, missed=3, false=4),
                    roc("joint", "plain", 640, 400 * targets, missed=4, false=real_false),
                    roc("joint", POOR, 640, 400 * targets, missed=70),
                ],
            },
        },
        "count": {
            "num_samples": n,
            "looks": [n // 2 ** (len(looks) - i) for i in range(len(looks) + 1)],
            "planned_looks": list(planned_looks) or [n // 2 ** (len(looks) - i) for i in range(len(looks) + 1)],
            "looks_detected": [*looks, detected],
            "num_fingerprint": sum(hits) + 1,
            "num_identity": [hits[0] + 2, *detected[1:]],
            "num_detected": detected,
            "num_detected_at": [[hit + 9, 0] for hit in hits] + [[1, 0]] * count_controls,
            "control_hit_samples": sum(control_hits),
            "control_hit_samples_at": [sum(control_hits) + 3, 0],
            "sensitivity_chains": RETURNS,
            "sensitivity_detected": padded(returns, searched, by=RETURNS),
            "sensitivity_detected_at": [[RETURNS, 0]] * searched,
            "sensitivity_level": 1,
            "roc": [
                roc("fingerprint", "residue", 256 * searched, 0),
                roc("joint", "residue", 256, 256 * (targets - 1)),
            ],
            "evaluations": 10,
            "executed": 11,
            "hits": [{"target": 0, "mse": 0.01, "mae": 0.08}],
            "near_misses": [{"target": 0, "mse": 0.2, "mae": 0.3, "score": 0.4}],
            "oracle": {
                "num_samples": 30_000,
                "reproduced": reproduced,
                "detected": seen,
                "num_detected": [*seen, *padded(memoriser_control_hits, count_controls)],
                "evaluations": 5,
                "executed": 6,
            },
        },
        "search": {
            **search,
            "num_members": k,
            "evaluations": 100,
            "executed": 101,
            "strategy": strategy,
            "exhaustive_evaluations": 120,
        },
    }
    return contents | ({"likelihood": likelihood(), "bound": darboux()} if k == 1 else {})


def likelihood():
    """Of one member, its original and four held-out targets, the last of which did not converge."""
    groups = {"group": ["member", "clean original"] + ["held-out target"] * 4, "row": [0, 0, 0, 1, 2, 3]}
    return {
        "num_dims": 10,
        "t_min": 1e-5,
        "exact_trace": False,
        "repeats": 2,
        "densities": {
            **groups,
            "nats": [-60.0, -90.0, -105.0, -135.0, -45.0, None],
            "prior_nats": [-20.0] * 5 + [None],
            "delta_nats": [-40.0, -70.0, -85.0, -115.0, -25.0, None],
            "probe_error": [None] * 6,
            "repeat_error": [3.0, 1.0, 1.0, 2.0, 3.0, None],
            "num_steps": [10] * 6,
            "nfe": [100, 200, 300, 400, 500, 9000],
            "outcome": ["converged"] * 5 + ["max steps"],
            "converged": [True] * 5 + [False],
            "bits_per_dim": [2.0, 3.0, 3.5, 4.5, 1.5, None],
        },
        "snapshots": [
            {
                "step": 50,
                "densities": {
                    **{name: values[:4] for name, values in groups.items()},
                    "nats": [-60.0] * 4,
                    "prior_nats": [-20.0] * 4,
                    "delta_nats": [-40.0] * 4,
                    "probe_error": [0.0] * 4,
                    "repeat_error": [None] * 4,
                    "num_steps": [10] * 4,
                    "nfe": [100] * 4,
                    "outcome": ["converged"] * 4,
                    "converged": [True] * 4,
                    "bits_per_dim": [3.0, 2.0, 4.0, 5.0],
                },
            }
        ],
    }


def darboux():
    """Levels 0 to 16 by 4 in two cells."""
    return {
        "target": [0] * 5,
        "level": [0, 4, 8, 12, 16],
        "log_mean": [700.0, 710.0, 500.0, 90.0, 80.0],
        "effective": [1.0, 1.5, 2.0, 3.0, 4.0],
        "num_chains": [1, 4, 4, 4, 4],
        "not_converged": [0, 0, 0, 1, 0],
        "nats": [],
        "edges": [[0, 8, 16]],
        "nfe": 0,
        "trace_error": 0.5,
        "t_min": 1e-5,
    }


def make(contents, settings=None):
    results = from_content(StageResults, contents)
    return make_audit(
        results, GRID, SubVP(), settings or AuditSettings(), name="x", sampler="ancestral", seed=0, provenance={}
    )


def audit(settings=None, **changes):
    return make(results(**changes), settings)


def add_chains(contents, rows):
    """Rows of target, phase, level, chains and hits for search.json."""
    search = contents["search"]
    for row in rows:
        for name, value in zip(("target", "phase", "level", "num_chains", "num_detected"), row, strict=True):
            search[name].append(value)
        search["num_identity"].append(row[4])
        search["num_fingerprint"].append(row[3])
        search["num_detected_at"].append([row[3], 0])
    return contents
