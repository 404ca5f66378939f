"""Stopping on collapse: the rule on made-up values, and a real run that stops, is resumed and stops alike."""

from types import SimpleNamespace

import pytest
import torch

from ncdd.callbacks import NeuralCollapseCallback
from ncdd.callbacks.early_stopping import CollapseStopping
from tests.run.conftest import TINY, command, only_run, process  # noqa: F401
from tests.run.test_resume import wait_for


def stopping(**options):
    defaults = {"monitor": "train/nc1_pinv", "min_delta": 0.1, "patience": 2, "mode": "min", "accuracy": 0.9}
    return CollapseStopping(**{**defaults, **options})


def epochs_until_stop(callback, values, accuracies, *, first=0, every=1):
    """Epochs after which it stops, None if it does not; between measurements values are stale, as in a run."""
    trainer = SimpleNamespace(should_stop=False, callbacks=[NeuralCollapseCallback(every_n_epochs=every), callback])
    for epoch in range(first, len(values)):
        trainer.current_epoch = epoch
        if (epoch + 1) % every == 0:
            trainer.callback_metrics = {
                "train/nc1_pinv": torch.tensor(values[epoch]),
                "train/accuracy": torch.tensor(accuracies[epoch]),
            }
        callback.on_train_epoch_end(trainer, None)
        if trainer.should_stop:
            return epoch + 1
    return None


def test_it_stops_after_patience_measurements_without_a_relative_gain():
    values = [1.0, 0.5, 0.46, 0.44, 0.43, 0.42]  # 0.46 is no gain of a tenth, 0.44 is
    assert epochs_until_stop(stopping(), values, [1.0] * 6) == 6
    assert epochs_until_stop(stopping(min_delta=0.2), values, [1.0] * 6) == 4
    assert epochs_until_stop(stopping(min_delta=0.0), values, [1.0] * 6) is None
    assert epochs_until_stop(stopping(mode="max"), [-v for v in values], [1.0] * 6) == 6


def test_a_value_that_is_not_finite_is_never_the_best():
    for wrong in (float("nan"), float("inf"), float("-inf")):
        assert epochs_until_stop(stopping(), [wrong, 1.0, 0.5, 0.25, 0.1], [1.0] * 5) is None
        assert epochs_until_stop(stopping(), [wrong] * 5, [1.0] * 5) == 2


def test_the_scale_of_the_metric_changes_nothing():
    values = [1.0, 0.5, 0.46, 0.44, 0.43, 0.42]
    for scale in (1e-12, 1e6):
        assert epochs_until_stop(stopping(), [scale * v for v in values], [1.0] * 6) == 6


def test_nothing_is_counted_before_the_accuracy_and_all_of_it_after():
    flat = [1.0] * 8
    assert epochs_until_stop(stopping(), flat, [0.5] * 8) is None
    assert epochs_until_stop(stopping(), flat, [0.5, 0.5, 0.5, 0.95, 0.8, 0.8, 0.8, 0.8]) == 6


def test_patience_counts_measurements_not_epochs():
    assert epochs_until_stop(stopping(), [1.0] * 12, [1.0] * 12, every=3) == 9


def test_its_state_goes_on_where_it_was():
    values = [1.0, 0.5, 0.5, 0.5, 0.5]
    first, second = stopping(patience=3), stopping(patience=3)
    assert epochs_until_stop(first, values[:3], [1.0] * 3) is None
    second.load_state_dict(first.state_dict())
    assert epochs_until_stop(second, values, [1.0] * 5, first=3) == epochs_until_stop(
        stopping(patience=3), values, [1.0] * 5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience=0: must be at least 1"),
        ({"min_delta": 1.0}, r"min_delta=1.0: a fraction in \[0, 1\)"),
        ({"mode": "least"}, "mode='least': choose from min, max"),
    ],
)
def test_errors_name_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        stopping(**options)


def test_what_it_needs_is_named():
    trainer = SimpleNamespace(callbacks=[], current_epoch=0)
    with pytest.raises(ValueError, match="needs a NeuralCollapseCallback"):
        stopping().on_train_epoch_end(trainer, None)
    with pytest.raises(ValueError, match=r"monitor='train/nc9' is not measured: choose from train/accuracy, train/nc1"):
        epochs_until_stop(stopping(monitor="train/nc9"), [1.0], [1.0])


def test_a_run_stops_and_one_that_was_killed_stops_at_the_same_epoch(command, process, tmp_path):  # noqa: F811
    # a rule that is met: nothing improves by 99%, from the first epoch on
    options = ["callbacks=early_stopping", "callbacks.stopping.accuracy=0", "callbacks.stopping.min_delta=0.99"]
    options = [*TINY, *options, "callbacks.stopping.patience=5", "trainer.max_epochs=40"]
    code, out, _ = command(*options, "hydra.run.dir=whole")
    assert code == 0
    assert "stopping after epoch 6: train/nc1_pinv=" in out
    whole = (tmp_path / "whole/metrics.csv").read_text()
    assert whole.splitlines()[-1].startswith("6,")

    started = process(*options)
    wait_for(tmp_path, 2, started)
    started.kill()
    started.communicate()
    code, _, _ = command(*options, "resume=true")
    assert code == 0
    assert (only_run(tmp_path) / "metrics.csv").read_text() == whole

    # killed between its last checkpoint and its end: there is nothing left to train or to measure
    for file in ("DONE", "summary.json", "collapse.npz"):
        (tmp_path / "whole" / file).unlink()
    assert command(*options, "hydra.run.dir=whole", "resume=true")[0] == 0
    assert (tmp_path / "whole/metrics.csv").read_text() == whole
