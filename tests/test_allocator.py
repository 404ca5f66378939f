"""Memory that is freed is not given back, which the kernel's count of page faults tells."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from ncdd.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def step():  # as a forward and a backward pass: many large blocks, freed in another order
    blocks = [np.ones(size) for size in (3_000_000, 500_000, 6_000_000, 40_000)]
    del blocks[::2]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(what: str) -> tuple[str, int]:
    command = [sys.executable, "-c", FAULTS, what]
    told, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return told, int(faults)


def test_no_page_is_touched_for_the_first_time_twice():
    told, faults = run("keep")
    if told == "False":
        pytest.skip("no glibc")
    assert faults < 100
    assert run("leave")[1] > faults + 100  # 76 MB five times, in pages of 4 KiB or 2 MiB
