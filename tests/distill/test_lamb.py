"""LAMB against its closed form, and the schedule against optax's formula."""

import copy
import math

import pytest
import torch

from ncdd.distill.lamb import Lamb, cosine_to


def test_the_first_step_is_lr_times_the_tensors_length():
    p = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    Lamb([p], lr=0.1, eps=0.0).step()  # Adam's first update is the sign of the gradient
    torch.testing.assert_close(p, torch.tensor([3.0, 4.0]).double() - 0.1 * 5 / 2**0.5 * torch.tensor([1.0, -1.0]))


def test_against_adam():
    """The direction is that of torch's Adam; the length lr ||p||, of each tensor by itself."""
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), 100 * torch.randn(5, dtype=torch.float64)]
    ours = [p.clone().requires_grad_() for p in start]
    lamb = Lamb([{"params": ours[:1]}, {"params": ours[1:]}], lr=0.01)
    theirs = [p.clone().requires_grad_() for p in start]
    adam = torch.optim.Adam(theirs, lr=1.0, eps=1e-6)
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in start]
        before = [p.detach().clone() for p in ours]
        for p, q, gradient in zip(ours, theirs, gradients, strict=True):
            p.grad, q.grad = gradient, gradient
        lamb.step()
        last = [q.detach().clone() for q in theirs]
        adam.step()
        for p, b, q, old in zip(ours, before, theirs, last, strict=True):
            moved, update = (p - b).detach(), (q - old).detach()
            assert moved.norm().item() == pytest.approx(0.01 * b.norm().item(), rel=1e-12)
            torch.testing.assert_close(moved / moved.norm(), update / update.norm(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("value", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_where_a_norm_is_zero_the_ratio_is_one(value, gradient):
    p = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([gradient], dtype=torch.float64)
    Lamb([p], lr=0.1, eps=0.0 if gradient else 1e-6).step()
    assert p.item() == pytest.approx(value - 0.1 * gradient)


def test_weight_decay_is_part_of_the_update():
    p = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([-1.0], dtype=torch.float64)
    Lamb([p], lr=0.1, eps=0.0, weight_decay=1.0).step()  # u = -1 + 2, and ||p|| / ||u|| = 2
    assert p.item() == pytest.approx(2 - 0.1 * 2)


def test_state_goes_on_exactly():
    torch.manual_seed(0)
    p = torch.randn(6, requires_grad=True)
    gradients = torch.randn(6, 6)

    def run(optimizer, q, rows):
        for gradient in rows:
            q.grad = gradient.clone()
            optimizer.step()

    first = Lamb([p], lr=0.1)
    run(first, p, gradients[:3])
    q = p.detach().clone().requires_grad_()
    second = Lamb([q], lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(first, p, gradients[3:])
    run(second, q, gradients[3:])
    assert torch.equal(p, q)


def test_cosine_to_a_fraction():
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=2.0)
    scheduler = cosine_to(optimizer, steps=4, final=0.1)
    found = []
    for _ in range(6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    half = math.sqrt(0.5)
    expected = [1, 0.1 + 0.45 * (1 + half), 0.55, 0.1 + 0.45 * (1 - half), 0.1, 0.1]
    assert found == pytest.approx([2 * value for value in expected])


def test_wrong_settings_are_named():
    p = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"optimizer\.lr=0\.0: a number > 0"):
        Lamb([p], lr=0.0)
    with pytest.raises(ValueError, match=r"scheduler\.steps=0: a number >= 1"):
        cosine_to(torch.optim.SGD([p], lr=1.0), steps=0, final=0.1)
