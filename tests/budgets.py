"""What the product's programs may cost on accelerators, as compiled without one, and the program that renews the table.

`python -m tests.budgets` compiles the paper's model for each target and writes `budgets.json`: what was made better must
be written down, and what was made worse fails in `test_budgets.py`. Needs the compilers (extra `aot`).
"""

import json
import os
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
TARGETS = ("h100", "v5e")
ONLY = {"v5e": ("engine, 1024 slots", "training", "detection")}  # its compiler takes minutes for the others


def measured(target):
    """Costs of each program by name."""
    import jax

    from fpjax.configs import default
    from fpjax.run.aot import programs
    from fpjax.run.config import make_config
    from fpjax.run.stages import open_job
    from fpjax.run.targets import TARGETS as KNOWN
    from fpjax.run.targets import compile_for

    if KNOWN[target].platform == "tpu":
        # Four times as fast to compile; its estimates of cycles are unusable then, and not in the table.
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    raw = default.get_config()
    raw.data.update({"source": "phantom", "repeat_grey": True})
    auto = {"model.dtype": "bfloat16", "resnet.dtype": "bfloat16", "model.kernels": KNOWN[target].kernels}
    job = open_job(make_config(raw, auto=auto), Path("runs/none"))
    device, found = KNOWN[target].devices()[0], {}
    for name, program in programs(job, device).items():
        if name in ONLY.get(target, (name,)):
            one = compile_for(device, program)
            found[name] = {
                "kernels": len(one.cost.kernels),
                "megabytes": round(one.cost.bytes / 1e6),
                "temp_mib": round(one.temp_bytes / 2**20),
                "host_transfers": one.cost.host,
                "float32": sorted(one.cost.float32),
            }
    return found


def main():
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    TABLE.write_text(json.dumps({target: measured(target) for target in TARGETS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
