"""The counts of benchmarks.memory against torchvision's networks and against arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.models import resnet18

from benchmarks.memory import network, train, trainable

FULL = {"depth": 18, "classes": 10, "head": "linear", "feature_dim": None, "size": 32}


def test_parameters_are_torchvisions_and_as_many_are_saved_as_the_paper_says():
    full = trainable(network(**FULL))
    assert full == sum(p.numel() for p in resnet18(num_classes=10).parameters())
    assert full - trainable(network(**FULL | {"head": "etf"})) == 10 * 512
    saved = 1 - trainable(network(**FULL | {"head": "etf", "feature_dim": 10})) / full
    assert round(100 * saved, 2) == 20.70  # Zhu et al. 2021, section 5.3


@pytest.mark.parametrize(("optimizer", "copies", "scalars"), [("SGD", 1, 0), ("Adam", 2, 1)])
def test_the_state_is_one_or_two_copies_of_what_is_trained(optimizer, copies, scalars):
    """In float32; Adam keeps a step count for each tensor too."""
    model = network(**FULL | {"head": "etf"})
    tensors = sum(p.requires_grad for p in model.parameters())
    state = train(model, optimizer, batch=2, size=32, classes=10, steps=1)
    assert state == 4 * (copies * trainable(model) + scalars * tensors)


def test_a_case_in_its_own_process_holds_at_least_weights_gradients_and_state():
    case = json.dumps(FULL | {"optimizer": "SGD", "batch": 2})
    command = [sys.executable, "-m", "benchmarks.memory", "--case", case]
    root = Path(__file__).parents[2]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)
    assert result["state"] == 4 * result["parameters"]
    assert result["peak"] > 3 * 4 * result["parameters"]
