"""The floor that benchmarks.frepo divides by is what torch counts, and the published size is the paper's."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.frepo import Steps, forward_flops, step_flops

SIZES = {"channels": 1, "size": 28, "per_class": 2, "batch": 32, "width": 8}


def test_the_published_network():
    assert forward_flops(1, 28, 128) == pytest.approx(0.304e9, rel=2e-3)


@pytest.mark.parametrize("use_flip", [False, True])
def test_the_convolutions_of_a_step(use_flip):
    """But for the first one in the network's own step: nobody needs the gradient of the images, and that of the weights
    is a product."""
    steps = Steps(**SIZES, use_flip=use_flip, compile=False, precision="float32")
    counter = FlopCounterMode(display=False)
    with counter:
        steps.step()
    counted = sum(n for name, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(name))
    first = 20 * 2 * 9 * 8 * 32**2  # of 20 images
    assert counted == step_flops(**SIZES, use_flip=use_flip) - 2 * first
