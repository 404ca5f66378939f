"""No test may wait for W&B's server (those that test W&B set the mode themselves), nor for another's threads."""

import os

from ncdd.allocator import keep_freed_memory

os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already fills the cores
keep_freed_memory()  # as run.py does
