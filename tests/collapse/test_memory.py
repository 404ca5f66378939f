"""The memory that `measure` says it takes, in a process of its own: many classes, and many dimensions."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from ncdd.collapse import measure
torch.set_num_threads(1)
K, D, N = map(int, sys.argv[1:])
y = torch.arange(N) % K
y[-1] = 0  # unequal classes
X, W = torch.randn(N, D), torch.randn(K, D)
measure(X[:50], torch.arange(50) % 3, weight_KD=W[:3], vci=False)  # what torch loads on the first use of anything
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measure(X, y, weight_KD=W, vci=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize(
    ("K", "D", "N", "forbidden"),
    [(1000, 128, 3000, "K x K x D"), (20, 4000, 400, "D x D")],
)
def test_measure_stays_within_its_stated_memory(K, D, N, forbidden):
    bound = 30 * 8 * K * max(K, D) + 2**23 * (1 + K / D)
    assert bound < 8 * {"K x K x D": K * K * D, "D x D": D * D}[forbidden]
    command = [sys.executable, "-c", CODE, str(K), str(D), str(N)]
    used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert used < bound, f"{used / 2**20:.0f} MiB"
