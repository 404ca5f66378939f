"""Where the terminal phase starts, and the table of what it is worth."""

import json

import numpy as np
import pytest

from ncdd.report.table import read_job
from ncdd.report.terminal import Terminal, main, terminal_phase, terminal_table

EPOCHS = np.arange(5.0)


def metrics(train: list[float], test: list[float]) -> dict:
    return {"train/accuracy": (EPOCHS[: len(train)], np.array(train)), "test/accuracy": (EPOCHS, np.array(test))}


@pytest.mark.parametrize(
    ("train", "threshold", "expected"),
    [
        ([0.1, 0.9, 1.0, 0.9, 1.0], 1.0, Terminal(2, 4, 0.7, 0.8)),  # first, though it is left again
        ([0.1, 0.999, 1.0, 1.0, 1.0], 0.999, Terminal(1, 4, 0.6, 0.8)),
        ([0.1, 0.9, 0.99, 0.99, 1.0], 1.0, Terminal(4, 4, 0.8, 0.8)),
        ([0.1, 0.9, 0.99, 0.99, 0.999], 1.0, None),
    ],
)
def test_the_phase_starts_at_the_first_epoch_without_train_error(train, threshold, expected):
    assert terminal_phase(metrics(train, [0.1, 0.6, 0.7, 0.75, 0.8]), train_accuracy=threshold) == expected


def test_only_epochs_at_which_both_were_measured_count():
    both = {"train/accuracy": (EPOCHS, np.ones(5)), "test/accuracy": (np.array([1.0, 3.0]), np.array([0.5, 0.6]))}
    assert terminal_phase(both) == Terminal(1, 3, 0.5, 0.6)
    assert terminal_phase({"train/accuracy": (EPOCHS, np.ones(5))}) is None


def rewrite(folder, train: list[float], test: list[float]) -> None:
    rows = [f"{n},{a},{b}" for n, (a, b) in enumerate(zip(train, test, strict=True))]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train/accuracy,test/accuracy", *rows]) + "\n")


@pytest.fixture
def sweep(make_run, tmp_path):
    """Two widths; of the wide one two seeds, which gain 10 and 20 points; the narrow one never gets there."""
    for width, seed, train, test in [
        (16, 0, [0.1, 0.5, 0.9], [0.1, 0.4, 0.5]),
        (64, 0, [0.1, 1.0, 1.0], [0.1, 0.6, 0.7]),
        (64, 1, [0.1, 1.0, 1.0], [0.1, 0.5, 0.7]),
    ]:
        overrides = (f"model.width={width}", f"seed={seed}")
        rewrite(make_run(f"sweep/{','.join(overrides)}", overrides=overrides), train, test)
    return tmp_path / "sweep"


def test_table(sweep):
    lines = terminal_table([read_job(folder) for folder in sorted(sweep.iterdir())]).splitlines()
    assert lines == [
        "| width | reached | epoch | at zero error, % | at the end, % | gain |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| 16 | 0 of 1 | - | - | - | - |",
        "| 64 | 2 of 2 | 1 ± 0 | 55.00 ± 7.07 | 70.00 ± 0.00 | +15.00 ± 7.07 |",
    ]


def test_command(sweep, capsys, tmp_path):
    assert main([str(sweep), "--train-accuracy", "0.9"]) == 0
    assert "| 16 | 1 of 1 | 2 | 50.00 | 50.00 | +0.00 |" in capsys.readouterr().out
    assert main([str(next(sweep.iterdir()))]) == 0
    (tmp_path / "nothing").mkdir()
    assert main([str(tmp_path / "nothing")]) == 2
    assert "neither a run folder nor one that holds any" in capsys.readouterr().err


def test_a_run_that_is_not_done_is_left_out(sweep):
    for folder in sweep.iterdir():
        (folder / "DONE").unlink()
        (folder / "summary.json").write_text(json.dumps({}))
    assert len(terminal_table([read_job(folder) for folder in sorted(sweep.iterdir())]).splitlines()) == 2
