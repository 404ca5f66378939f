"""What a computation costs: wall time, time of the CPU, peak memory, and the hardware that it ran on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ncdd.allocator import give_back


@dataclass
class Cost:
    """One computation's, or the sum of several, one after the other.

    hardware: in words.  seconds: wall time.  memory: peak bytes, None where the system does not tell.
    cpu_seconds: of this process, all threads together: what other work on the machine changes least.
    """

    hardware: str
    seconds: float = 0.0
    memory: int | None = None
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        memory = max((m for m in (self.memory, other.memory) if m is not None), default=None)
        return Cost(self.hardware, self.seconds + other.seconds, memory, self.cpu_seconds + other.cpu_seconds)

    def __str__(self) -> str:
        memory = "" if self.memory is None else f"{self.memory / 1e6:,.0f} MB, "
        return f"{self.seconds:.1f} s, {memory}{self.hardware}"


@contextmanager
def measured(device: torch.device | str) -> Iterator[Cost]:
    """The cost of a block; its numbers are there when the block has ended.

    Memory is what tensors held at most on a GPU, and what the whole process held at most on a CPU (Linux only).
    """
    device = torch.device(device)
    cost = Cost(hardware(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back()
        with suppress(OSError):  # where it cannot be reset, the peak is the process's so far
            Path("/proc/self/clear_refs").write_text("5")
    start, cpu_start = time.perf_counter(), time.process_time()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cost.seconds, cost.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    cost.memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()


def hardware(device: torch.device | str) -> str:
    """The GPU's name, or how many threads of the CPU are used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def _resident_peak() -> int | None:
    """The most bytes that this process has held; `ru_maxrss` would count its parent's too."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
