"""The pool of networks: ages, training, fresh starts, and going on where a saved one stopped."""

import io
from functools import partial

import pytest
import torch
from torch import nn

from ncdd.distill.pool import NetworkPool

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def new_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def made(size: int = 3, max_age: int | None = 4, seed: int = 0) -> NetworkPool:
    torch.manual_seed(seed)
    return NetworkPool(new_network=new_network, optimizer=partial(torch.optim.Adam, lr=0.1), size=size, max_age=max_age)


def loss(network: nn.Module) -> torch.Tensor:
    assert network.training
    return network(X).square().mean()


def weights(pool: NetworkPool) -> list[torch.Tensor]:
    return [p.detach().clone() for p in pool.state_dict().values() if isinstance(p, torch.Tensor)]


def test_ages_are_staggered():
    assert made(10, 100).ages == list(range(0, 100, 10))
    assert made(4, 10).ages == [0, 2, 5, 7]
    assert made(3, None).ages == [0, 0, 0]


def test_advance_is_a_step_of_the_networks_own_optimizer():
    pool = made(1)
    torch.manual_seed(0)
    own = new_network()
    adam = torch.optim.Adam(own.parameters(), lr=0.1)
    for _ in range(3):
        found = pool.advance(0, loss)
        adam.zero_grad()
        value = own(X).square().mean()
        value.backward()
        adam.step()
        assert torch.equal(found, value.detach())
    for name, tensor in own.state_dict().items():
        assert torch.equal(pool.networks[0].state_dict()[name], tensor), name
    assert pool.ages == [3]


def test_what_serves_is_constant():
    """In eval mode, without gradient, before and after, whatever `train` says; and no network moves another."""
    pool = made().train()
    before = weights(pool)
    per_network = len(before) // 3
    pool.advance(1, loss)
    pool.train()
    assert not any(m.training for network in pool.networks for m in network.modules())
    assert not any(p.requires_grad for p in pool.parameters())
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(pool.networks[0](x).sum(), x)
    assert found.abs().sum() > 0
    same = [torch.equal(a, b) for a, b in zip(before, weights(pool), strict=True)]
    assert all(same[:per_network]) and all(same[2 * per_network :]) and not any(same[per_network : 2 * per_network])


def test_an_old_network_starts_anew_instead_of_a_step():
    pool = made(2, max_age=2)
    assert pool.ages == [0, 1]
    found = [(pool.advance(0, loss) is None, pool.ages[0]) for _ in range(4)]
    assert found == [(False, 1), (False, 2), (False, 3), (True, 0)]
    assert pool.optimizers[0].state_dict()["state"] == {}
    torch.manual_seed(7)
    pool.renew(1)
    torch.manual_seed(7)
    fresh = new_network()
    assert all(torch.equal(a, b) for a, b in zip(pool.networks[1].parameters(), fresh.parameters(), strict=True))


def test_never_anew_without_a_max_age():
    pool = made(1, max_age=None)
    assert all(pool.advance(0, loss) is not None for _ in range(5))
    assert pool.ages == [5]


def test_draws_are_uniform_and_of_torchs_generator():
    pool = made(4)
    torch.manual_seed(0)
    drawn = [pool.draw() for _ in range(4000)]
    assert all(abs(drawn.count(i) - 1000) < 5 * 27 for i in range(4))  # five standard deviations
    torch.manual_seed(0)
    assert [pool.draw() for _ in range(10)] == drawn[:10]


def test_a_loaded_pool_goes_on_exactly():
    pool, other = made(), made(seed=1)
    for index in (0, 2, 2, 2):
        pool.advance(index, loss)
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (pool, other):
        torch.manual_seed(5)
        for index in (0, 1, 2, 2, 2):
            one.advance(index, loss)
    assert pool.ages == other.ages == [2, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(weights(pool), weights(other), strict=True))


def test_optimizers_move_with_the_networks():
    pool = made(1)
    pool.advance(0, loss)
    pool.double()
    state = pool.optimizers[0].state[pool.trained[0][0]]
    assert state["exp_avg"].dtype == torch.float64
    pool.advance(0, lambda network: network(X.double()).square().mean())


def test_what_a_network_does_not_train_stays():
    def frozen() -> nn.Module:
        network = new_network()
        network[2].weight.requires_grad_(False)
        return network

    pool = NetworkPool(new_network=frozen, optimizer=partial(torch.optim.SGD, lr=1.0), size=1, max_age=None)
    before = pool.networks[0][2].weight.clone()
    pool.advance(0, loss)
    assert torch.equal(pool.networks[0][2].weight, before)


@pytest.mark.parametrize(
    ("size", "max_age", "message"),
    [(0, 1, r"pool\.size=0: a number >= 1"), (1, -1, r"pool\.max_age=-1: null or a number >= 0")],
)
def test_wrong_settings_are_named(size, max_age, message):
    with pytest.raises(ValueError, match=message):
        made(size, max_age)
