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


def _worker(rank, port, budgets, cut):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
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
        assert got[key] == pytest.approx(value, rel=1e-10, abs=1e-13), key
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("budgets", "cut"), [((2**30, 2**30), 20), ((0, 0), 20), ((0, 2**30), 13), ((2**30, 2**30), 41)],
    ids=["both cached", "both streamed", "one streamed", "one empty"],
)  # fmt: skip
def test_two_processes_with_unequal_shares_give_the_values_of_one(budgets, cut):
    port = 20000 + (os.getpid() * 7 + cut + budgets[0] % 11) % 20000
    mp.spawn(_worker, args=(port, budgets, cut), nprocs=2)


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
