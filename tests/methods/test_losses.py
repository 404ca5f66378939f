"""Losses and decays against their formulas, written out."""

import math

import pytest
import torch
from torch import nn

from ncdd.methods import losses
from ncdd.methods.optim import LBFGS, parameter_groups

torch.manual_seed(0)
LOGITS, FEATURES, WEIGHT = torch.randn(5, 3), torch.randn(5, 4), torch.randn(3, 4)
LABELS = torch.tensor([0, 2, 1, 1, 0])
SOFT = torch.softmax(torch.randn(5, 3), 1)


def call(loss, targets, **options):
    return float(loss(logits=LOGITS, features=FEATURES, weight=WEIGHT, targets=targets, **options))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    log_p = [[float(v) - math.log(sum(math.exp(float(u)) for u in row)) for v in row] for row in LOGITS]
    target = [[(1 - smoothing) * (k == y) + smoothing / 3 for k in range(3)] for y in LABELS.tolist()]
    expected = -sum(t * lp for ts, lps in zip(target, log_p, strict=True) for t, lp in zip(ts, lps, strict=True)) / 5
    assert call(losses.cross_entropy, LABELS, label_smoothing=smoothing) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("targets", [LABELS, SOFT])
def test_mse(targets):
    y = targets if targets.ndim == 2 else torch.eye(3)[targets]
    expected = sum(0.5 * float((LOGITS[i, k] - y[i, k]) ** 2) for i in range(5) for k in range(3)) / 5
    assert call(losses.mse, targets) == pytest.approx(expected, rel=1e-6)


def test_dot_regression_sees_directions_only():
    cosines = [float(FEATURES[i] @ WEIGHT[y] / FEATURES[i].norm() / WEIGHT[y].norm()) for i, y in enumerate(LABELS)]
    expected = sum(0.5 * (c - 1) ** 2 for c in cosines) / 5
    assert call(losses.dot_regression, LABELS) == pytest.approx(expected, rel=1e-6)
    rescaled = losses.dot_regression(logits=LOGITS, features=7 * FEATURES, weight=3 * WEIGHT, targets=LABELS)
    assert float(rescaled) == pytest.approx(expected, rel=1e-6)


def test_feature_penalty_has_the_gradient_of_zhu():
    features = FEATURES.clone().requires_grad_()
    losses.feature_penalty(features).backward()
    torch.testing.assert_close(features.grad, FEATURES)


@pytest.mark.parametrize(("targets", "right"), [(LABELS, LABELS), (SOFT, SOFT.argmax(1))])
def test_accuracy(targets, right):
    expected = sum(int(row.argmax()) == int(y) for row, y in zip(LOGITS, right, strict=True)) / 5
    assert float(losses.accuracy(LOGITS, targets)) == pytest.approx(expected)


def network():
    body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    return body, nn.Linear(6, 3)


def test_parameter_groups_are_disjoint_whole_and_leave_out_the_frozen():
    body, head = network()
    head.weight.requires_grad_(False)
    groups = parameter_groups(body, head, body_decay=0.0, norm_decay=None, head_decay=0.5)
    assert [len(g["params"]) for g in groups] == [1, 3, 1]
    assert [g.get("weight_decay") for g in groups] == [0.0, None, 0.5]
    assert groups[0]["params"][0] is body[0].weight
    assert groups[2]["params"][0] is head.bias


def test_lbfgs_decay_is_a_penalty_by_group():
    """Minimising 1/2 ||p - a||^2 + decay/2 ||p||^2 ends at a / (1 + decay)."""
    a = torch.tensor([1.0, -2.0, 3.0])
    plain, decayed = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = LBFGS(
        [{"params": [plain], "weight_decay": 0.0}, {"params": [decayed]}],
        lr=1.0,
        weight_decay=0.25,
        history_size=10,
        max_iter=50,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * ((plain - a).square().sum() + (decayed - a).square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(plain.data, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decayed.data, a / 1.25, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_decay_or_smoothing_that_means_nothing_is_named(value):
    decays = {"body_decay": None, "norm_decay": None, "head_decay": value}
    with pytest.raises(ValueError, match=r"method\.head_decay="):
        parameter_groups(nn.Linear(2, 2), nn.Linear(2, 2), **decays)
    with pytest.raises(ValueError, match=r"loss\.label_smoothing="):
        call(losses.cross_entropy, LABELS, label_smoothing=value)


def test_cross_entropy_refuses_regression_targets():
    """Of targets below 0 it has no minimum."""
    with pytest.raises(ValueError, match=r"regression targets, no probabilities; use loss=mse"):
        call(losses.cross_entropy, nn.functional.one_hot(LABELS, 3) - 1 / 3, label_smoothing=0.0)
