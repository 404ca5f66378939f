"""The variants that benchmarks.unrolled times compute the same gradients, and a peak is what must be held."""

import pytest
import torch

from benchmarks.unrolled import Problem, in_its_own_process


def gradients(work) -> list[torch.Tensor]:
    problem = Problem(2, 2, 2, 16)
    work(problem)
    return [problem.images.grad, problem.raw.grad]


@pytest.mark.parametrize("options", [{}, {"memory": "recompute"}, {"vectorise": True}])
def test_the_engine_and_the_plain_loop_agree(options):
    plain = gradients(Problem.plain)
    for found, expected in zip(gradients(lambda problem: problem.step(**options)), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_recomputing_holds_the_weights_between_steps_and_little_else():
    weights = 20 * 61_706 * 4
    full, less = (in_its_own_process(20, memory) for memory in ("full", "recompute"))
    assert less < weights + 30 * 2**20
    assert full > 3 * less
