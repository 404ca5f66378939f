"""A mistake is named: the argument, the value, and what may be there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ncdd.collapse import NeuralCollapse, measure, simplex_etf
from ncdd.collapse.__main__ import main
from tests.collapse.conftest import case, streamed

X, Y, W = torch.randn(9, 4), torch.arange(9) % 3, torch.randn(3, 4)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: measure(X, Y + 1, weight_KD=W), ("3", "[2]")),
        (lambda: measure(X, Y - 1, weight_KD=W), ("-1", "[0]")),
        (lambda: measure(X, torch.zeros(9, dtype=torch.long), num_classes=3), ("1 of num_classes=3 classes",)),
        (lambda: measure(X.clone().fill_(torch.nan), Y, weight_KD=W), ("features_ND[0]", "NaN")),
        (lambda: measure(X, Y[:5], weight_KD=W), ("9", "5")),
        (lambda: measure(X, Y, weight_KD=W[:, :3]), ("weight",)),
        (lambda: measure(X, Y, weight_KD=W, weighting="both"), ("both", "balanced", "sample")),
        (lambda: measure(X, Y, weight_KD=W, precision="quick"), ("quick", "exact", "fast")),
        (lambda: NeuralCollapse(1), ("num_classes=1",)),
        (lambda: NeuralCollapse(3, memory_budget=-1), ("memory_budget=-1",)),
        (lambda: NeuralCollapse(3).compute(), ("no samples",)),
        (lambda: simplex_etf(10, 5), ("num_classes=10", "5")),
        (lambda: simplex_etf(1, 5), ("num_classes=1",)),
        (lambda: simplex_etf(3, 5, rotation="left"), ("left", "identity", "random")),
    ],
)
def test_errors_name_the_value(call, parts):
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """The command, run in this process in the test's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def save(path, **changes):
    arrays, values = case("imbalanced")
    np.savez(path, **{k: v for k, v in ({k: v.numpy() for k, v in arrays.items()} | changes).items() if v is not None})
    return arrays, values


def test_the_command_prints_the_reference_keys(tmp_path, command):
    arrays, values = save(tmp_path / "f.npz")
    process = subprocess.run([sys.executable, "-m", "ncdd.collapse", "f.npz"], cwd=tmp_path,
                             capture_output=True, text=True)  # fmt: skip
    assert process.returncode == 0, process.stderr
    printed = json.loads(process.stdout)
    assert values.keys() <= printed.keys()
    for key, value in values.items():
        assert printed[key] == pytest.approx(value, rel=1e-10, abs=1e-14), key
    assert command("f.npz", "--batch-size", 5, "--output", "out.json") == (0, "", "")
    for key, value in json.loads((tmp_path / "out.json").read_text()).items():
        assert value == pytest.approx(printed[key], rel=1e-10, abs=1e-13), key
    weighted = json.loads(command("f.npz", "--weighting", "sample")[1])
    assert weighted["nc1_pinv"] == pytest.approx(values["nc1_pinv__centre_sample"], rel=1e-10)
    assert streamed(arrays)["nc1_pinv"] == pytest.approx(values["nc1_pinv"], rel=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.full(18, 9)}, "9"),
        ({"W": None}, "bias_K was given without weight_KD"),
        ({"X": np.zeros((18, 3, 3), np.float32)}, "X"),
        ({"y": np.array([None] * 18)}, "pickled arrays are refused"),
        ({"y": None}, "the file has no array y"),
        ({"mu_ood": np.zeros(3, np.float32)}, "mu_ood has shape (3,): expected 7 features"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, command, changes, message):
    save(tmp_path / "f.npz", **changes)
    code, out, error = command("f.npz")
    assert (code, out) == (2, "")
    assert len(error.strip().splitlines()) == 1
    assert message in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npz", None, "no such file"),
        ("text.npz", b"no zip", "not a readable .npz"),
        ("empty.npz", b"", "not a read"),
    ],
)
def test_the_command_names_a_file_it_cannot_read(tmp_path, command, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, error = command(name)
    assert (code, out) == (2, "")
    assert name in error and message in error
