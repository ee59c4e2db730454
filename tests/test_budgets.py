"""No program of the product costs more on an accelerator than `budgets.json` says."""

import json
import os
import subprocess
import sys

import pytest

from fpjax.run.targets import TARGETS as KNOWN
from fpjax.run.targets import installed

from .budgets import TABLE, TARGETS

SLACK = 1.02  # compilers' versions and machines' differences
CODE = "import json, sys; from tests.budgets import measured; print('RESULT', json.dumps(measured(sys.argv[1])))"


@pytest.mark.extra
@pytest.mark.parametrize("target", TARGETS)
def test_budgets(target):
    if not installed(KNOWN[target].platform):
        pytest.skip("a compiler of the extra aot is not installed")
    # Read when JAX is imported; other tests run on several devices.
    own = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "XLA_FLAGS": ""}
    ran = subprocess.run([sys.executable, "-c", CODE, target], env=os.environ | own, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("RESULT"))[6:])
    budgets = json.loads(TABLE.read_text())[target]
    assert set(found) == set(budgets)
    for name, cost in found.items():
        assert cost["host_transfers"] == 0, name
        assert cost["float32"] == budgets[name]["float32"], name
        for what in ("kernels", "megabytes", "temp_mib"):
            low, budget, got = budgets[name][what] / 1.05 - 1, budgets[name][what], cost[what]
            assert got <= SLACK * budget + 1, f"{target}, {name}: {got} {what}, budget {budget}: it became worse"
            assert got >= low, f"{target}, {name}: {got} {what}, budget {budget}: better; python -m tests.budgets"
