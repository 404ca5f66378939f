"""Values of neural-tangents (float64) and of 50-digit arithmetic: a few beside this file, the others in shared."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("NCDD_SHARED", HERE.parents[2] / "shared")) / "reference" / "kip"
with np.load(HERE / "small_cases.npz") as file:
    SMALL = {name: file[name] for name in file}


def reference(file: str) -> dict[str, np.ndarray]:
    """The arrays of a file of the shared reference; the test is skipped where there is none."""
    if not (SHARED / file).exists():
        pytest.skip(f"no {file} in {SHARED} (NCDD_SHARED says where)")
    with np.load(SHARED / file) as arrays:
        return {name: arrays[name] for name in arrays}


def every(file: str) -> dict[str, np.ndarray]:
    """The same for parametrisation: empty where there is no such file."""
    return reference(file) if (SHARED / file).exists() else {}


def images(array: np.ndarray) -> torch.Tensor:
    """NHWC to NCHW."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    """The largest error beside the largest value."""
    expected = torch.as_tensor(expected)
    return float((found.detach() - expected).abs().max() / expected.abs().max())
