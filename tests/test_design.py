"""The direction of imports, which keeps each part usable alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ncdd"
# part -> the parts of ncdd that it may import; a part that is not named here may be imported by run.py only
ALLOWED: dict[str, set[str]] = {
    "collapse": set(),
    "kernels": set(),
    "config": set(),
    "runfolder": set(),
    "report": {"runfolder"},
    "sweep": {"config", "report"},
    "models": {"collapse"},
    "data": set(),
    "distill": {"allocator", "models", "data", "kernels", "collapse", "runfolder"},
    "methods": {"models", "data", "collapse", "kernels", "distill"},
    "inherit": set(),
    "logs": set(),
    "allocator": set(),
    "tasks": {"callbacks", "collapse", "data", "distill", "kernels", "models", "report", "runfolder"},
    "callbacks": {"collapse", "data", "distill", "models", "runfolder", "report"},
}
LIBRARIES = {  # who may import these, besides run.py
    "pytorch_lightning": ("methods/", "callbacks/", "data/module.py", "tasks/subject.py", "tasks/bench.py"),
    "hydra": ("config.py", "sweep.py"),
    "omegaconf": ("config.py", "sweep.py"),
    "wandb": ("callbacks/wandb.py", "report/dashboard.py"),
    "wandb_workspaces": ("report/dashboard.py",),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    if part == "__init__":
        return
    parts = {name.split(".")[1] for name in imported(path) if name.startswith("ncdd.")} - {part}
    assert parts <= ALLOWED[part], f"{relative} imports {parts - ALLOWED[part]}"
    for library, places in LIBRARIES.items():
        if any(name.split(".")[0] == library for name in imported(path)):
            assert str(relative).startswith(places), f"{relative} imports {library}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ncdd.collapse", ["pytorch_lightning", "hydra", "wandb", "torchmetrics"]),
        ("ncdd.kernels", ["pytorch_lightning", "hydra", "wandb", "torchmetrics", "matplotlib"]),
        ("ncdd.report", ["torch", "pytorch_lightning", "hydra", "wandb"]),
        ("ncdd.report.dashboard", ["torch", "pytorch_lightning", "hydra", "wandb", "wandb_workspaces"]),
        ("run", ["torch", "pytorch_lightning", "wandb", "matplotlib"]),
    ],
)
def test_importing_stays_light(module, unwanted):
    code = f"import sys; import {module}; print(*[m for m in {unwanted!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.split() == []
