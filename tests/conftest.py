"""No test may wait for W&B's server; those that test W&B set the mode themselves."""

import os

os.environ["WANDB_MODE"] = "disabled"
