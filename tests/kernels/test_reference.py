"""Every kernel against neural-tangents in float64, and fully connected ones against 50-digit values."""

import numpy as np
import pytest
import torch

from ncdd.kernels import Kernel, conv, convnet, fc, myrtle
from tests.kernels.conftest import SMALL, every, images

POOLED = Kernel(("conv", "relu", "avgpool", "conv", "relu", "gap", "dense"), w_std=2**0.5, b_std=0.1, memory=2**30)
KERNELS = {
    **{f"fc_{activation}_d{depth}": fc(depth, activation) for activation in ("relu", "erf") for depth in (1, 2, 3)},
    "fc_relu_d2_nobias": fc(2, b_std=0.0),
    "fc_relu_d1_W1_b0.5": fc(1, w_std=1.0, b_std=0.5),
    "conv_relu_d2_flatten": conv(2),
    "conv_relu_d2_gap": conv(2, head="gap"),
    "conv_erf_d2_flatten": conv(2, "erf"),
    "conv_pool_gap": POOLED,
    "convnet": convnet(),
    "convnet3": convnet(prepend=False),
    "convnet_gap": convnet(head="gap", depth=2),
    "myrtle5": myrtle(),
}
VALUES = SMALL | every("ntk.npz")
EXACT = {name.removeprefix("exact/"): value for name, value in SMALL.items() if name.startswith("exact/")}
EXACT |= every("ntk_exact_fc.npz")
SETS = {"_28": "s", "_c": "c"}  # endings of a case's name, and of the names of its images


def compute(case: str, dtype: torch.dtype = torch.float64) -> np.ndarray:
    name, get, which = case.split("/")
    suffix = next((s for s in SETS if name.endswith(s)), "")
    kernel = KERNELS[name.removesuffix(suffix)]
    x1, x2 = (images(VALUES[x + SETS.get(suffix, "")]).to(dtype) for x in ("x1", "x2"))
    return kernel(x1, x2 if which == "12" else None, get).numpy()


@pytest.mark.parametrize(
    "case", [name for name in VALUES if name.split("/")[-1] in ("12", "11") and "exact" not in name]
)
def test_neural_tangents(case):
    error = np.abs(compute(case) / VALUES[case] - 1)
    parallel = np.zeros(error.shape, dtype=bool)
    if "ntk" in case and "erf" not in case:  # where neural-tangents itself is off by up to 1.5e-8
        parallel = np.eye(*error.shape, dtype=bool) if case.endswith("11") else error > 1e-10
    assert parallel.sum() <= len(error)
    assert error[~parallel].max() < 1e-12
    assert error.max() < 1e-7


@pytest.mark.parametrize("case", EXACT)
def test_fifty_digits(case):
    np.testing.assert_allclose(compute(case), EXACT[case], rtol=1e-13 if "relu" in case else 1e-12)


@pytest.mark.parametrize("name", ["fc_relu_d3", "convnet3", "conv_erf_d2_flatten"])
@pytest.mark.parametrize("which", ["12", "11"])
def test_float32(name, which):
    case = f"{name}/ntk/{which}"
    np.testing.assert_allclose(compute(case, torch.float32), VALUES[case], rtol=5e-5)
