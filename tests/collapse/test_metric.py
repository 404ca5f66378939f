"""The torchmetrics shell: processes, devices, resets, and what it must not do to its inputs."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ncdd.collapse import NeuralCollapse, measure
from tests.collapse.conftest import case, streamed


def features(n=41, D=6, K=4):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(K, (n,), generator=generator)
    return torch.randn(n, D, generator=generator) * 3 + y[:, None], y, torch.randn(K, D, generator=generator)


# (memory budgets of the two processes, samples of the first of them)
SHARES = {
    "both cached": ((2**30, 2**30), 20),
    "both streamed": ((0, 0), 20),
    "one streamed": ((0, 2**30), 13),
    "one empty": ((2**30, 2**30), 41),
    "the union exceeds the budget of each": ((700, 700), 20),
}


def _worker(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name, (budgets, cut) in SHARES.items():
        _compare(rank, budgets, cut, name)
    dist.destroy_process_group()


def _compare(rank, budgets, cut, name):
    X, y, W = features()
    X, y = (X[:cut], y[:cut]) if rank == 0 else (X[cut:], y[cut:])
    metric = NeuralCollapse(4, memory_budget=budgets[rank])
    metric.set_head(W)
    for rows in torch.arange(len(X)).split(5):
        metric.update(X[rows], y[rows])
    if metric.needs_second_pass:
        for rows in torch.arange(len(X)).split(7):
            metric.update_decisions(X[rows], y[rows])
    got = metric.compute()
    X, y, W = features()
    expected = measure(X, y, weight_KD=W).values
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-10, abs=1e-13), (name, key)


def test_two_processes_with_unequal_shares_give_the_values_of_one():
    mp.spawn(_worker, args=(20000 + os.getpid() * 7 % 20000,), nprocs=2)


def test_reset_begins_anew():
    X, y, W = features()
    metric = NeuralCollapse(4, memory_budget=0)
    metric.set_head(W)
    metric.update(X + 5, y)
    metric.reset()
    metric.update(X, y)
    assert metric.compute()["nc1_pinv"] == pytest.approx(measure(X, y, weight_KD=W).values["nc1_pinv"], rel=1e-12)


def test_states_are_never_cast():
    X, y, W = features()
    metric = NeuralCollapse(4, memory_budget=0)
    metric.set_head(W)
    metric.update(X, y)
    metric.half().float().to(torch.float16)
    metric.update_decisions(X, y) if metric.needs_second_pass else None
    assert metric.compute()["nc1_pinv"] == pytest.approx(measure(X, y, weight_KD=W).values["nc1_pinv"], rel=1e-12)


def test_inputs_are_left_alone_and_may_be_reused():
    X, y, W = features()
    kept = X.clone()
    metric = NeuralCollapse(4)
    metric.set_head(W)
    buffer = X.clone()
    metric.update(buffer, y)
    assert torch.equal(buffer, kept)
    buffer.zero_()
    assert metric.compute() == measure(kept, y, weight_KD=W).values


def test_without_a_second_pass_what_needs_it_is_absent_not_approximate():
    X, y, W = features()
    metric = NeuralCollapse(4, memory_budget=0)
    metric.set_head(W)
    metric.update(X, y)
    first = metric.compute()
    expected = measure(X, y, weight_KD=W).values
    assert "nc4_agree_bias" not in first and "ncc_accuracy" not in first
    for key, value in first.items():
        assert value == pytest.approx(expected[key], rel=1e-10, abs=1e-13), key


def test_streaming_matches_cached_on_the_small_case():
    arrays, _ = case("balanced")
    one, two = streamed(arrays, memory_budget=2**30), streamed(arrays, memory_budget=0)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-11, abs=1e-14), key


def test_given_logits_decide_as_they_are():
    X, y, W = features()
    logits = torch.nn.functional.one_hot((y + 1) % 4, 4).float()  # always wrong, whatever the head
    for budget in (0, 2**30):
        metric = NeuralCollapse(4, memory_budget=budget)
        metric.set_head(W)
        metric.update(X, y, logits)
        if metric.needs_second_pass:
            metric.update_decisions(X, y, logits)
        assert metric.compute()["linear_accuracy"] == 0
    with pytest.raises(ValueError, match="always or never"):
        metric.update(X, y)


def test_a_half_made_second_pass_is_not_used():
    X, y, W = features()
    metric = NeuralCollapse(4, memory_budget=0)
    metric.set_head(W)
    metric.update(X, y)
    metric.update_decisions(X[:20], y[:20])
    assert metric.needs_second_pass and "ncc_accuracy" not in metric.compute()
    metric.update_decisions(X[20:], y[20:])
    assert not metric.needs_second_pass and "ncc_accuracy" in metric.compute()
    metric.update(X, y)  # the means move
    assert metric.needs_second_pass and "ncc_accuracy" not in metric.compute()
    with pytest.raises(RuntimeError, match="memory_budget"):
        NeuralCollapse(4).update_decisions(X, y)


def test_updates_under_inference_mode_and_autocast_are_exact():
    X, y, W = features()
    expected = measure(X, y, weight_KD=W).values
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        metric = NeuralCollapse(4, memory_budget=0)
        metric.set_head(W)
        for rows in torch.arange(len(X)).split(6):
            metric.update(X[rows], y[rows])
    metric.update_decisions(X, y)
    got = metric.compute()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-10, abs=1e-13), key


def test_merged_metrics_are_that_of_the_union():
    X, y, W = features()
    parts = []
    for rows, budget in ((slice(0, 15), 0), (slice(15, None), 2**30)):
        metric = NeuralCollapse(4, memory_budget=budget)
        metric.update(X[rows], y[rows])
        parts.append(metric)
    parts[0].merge_state(parts[1])
    parts[0].set_head(W)
    expected = measure(X, y, weight_KD=W).values
    for key, value in parts[0].compute().items():
        assert value == pytest.approx(expected[key], rel=1e-10, abs=1e-13), key
