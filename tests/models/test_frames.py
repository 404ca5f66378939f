"""Heads that are not learned: the nearest simplex ETF by its definition, the orthogonal frame by its properties."""

import pytest
import torch

from ncdd.collapse import measure
from ncdd.collapse.simplex import simplex_etf
from ncdd.models import NearestETF, NonNegativeOrthogonal
from ncdd.models.guided import nearest_simplex_etf
from ncdd.models.orthogonal import nonnegative_frame


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(gaussian(dim, dim, seed=seed))[0]


def objective(frame_KD, mean_KD, previous_KD, proximal):
    """The paper's, of frames; their distance is that of the rotations by `K/(K-1)`."""
    K = len(mean_KD)
    centred = mean_KD - mean_KD.mean(0)
    fit = (centred / centred.norm() - frame_KD / K**0.5).square().sum()
    return float(fit + proximal / 2 * (K - 1) / K * (frame_KD - previous_KD).square().sum())


@pytest.mark.parametrize(("K", "D"), [(2, 1), (4, 3), (4, 4), (5, 12)])
@pytest.mark.parametrize("proximal", [0.0, 0.3])
def test_the_nearest_frame_is_a_simplex_etf_that_no_other_beats(K, D, proximal):
    mean, previous = gaussian(K, D), simplex_etf(K, D, rotation="random", seed=1)
    nearest = nearest_simplex_etf(mean, previous, proximal=proximal)
    torch.testing.assert_close(nearest @ nearest.T, previous @ previous.T, rtol=0, atol=1e-12)
    best = objective(nearest, mean, previous, proximal)
    others = (simplex_etf(K, D, rotation="random", seed=seed) for seed in range(1000))
    assert all(objective(other, mean, previous, proximal) >= best - 1e-12 for other in others)


def test_gradient_descent_over_rotations_ends_at_the_closed_form():
    """Over `exp(A) E0` with A antisymmetric, autograd and Adam: an optimiser that knows nothing of Procrustes."""
    K, D = 4, 6
    mean, start = gaussian(K, D, seed=2), simplex_etf(K, D, rotation="random", seed=2)
    centred = mean - mean.mean(0)
    generator = torch.zeros(D, D, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([generator], lr=0.05)
    for _ in range(800):
        frame = start @ torch.linalg.matrix_exp(generator - generator.T)
        loss = (centred / centred.norm() - frame / K**0.5).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nearest = nearest_simplex_etf(mean, start, proximal=0.0)
    torch.testing.assert_close(nearest, frame.detach(), rtol=0, atol=1e-6)


def test_a_rotated_scaled_shifted_simplex_is_its_own_nearest():
    frame = simplex_etf(5, 9, rotation="random", seed=3)
    found = nearest_simplex_etf(7 * frame + gaussian(9), simplex_etf(5, 9), proximal=0.0)
    torch.testing.assert_close(found, frame, rtol=0, atol=1e-12)


def test_rotating_the_means_rotates_the_frame_and_scale_changes_nothing():
    mean, previous, turn = gaussian(4, 7), simplex_etf(4, 7), rotation(7, seed=5)
    nearest = nearest_simplex_etf(mean, previous, proximal=0.1)
    turned = nearest_simplex_etf(1e4 * mean @ turn + 3, previous @ turn, proximal=0.1)
    torch.testing.assert_close(turned, nearest @ turn, rtol=0, atol=1e-10)


def test_without_means_the_proximal_term_keeps_the_frame():
    previous = simplex_etf(4, 6, rotation="random", seed=1)
    torch.testing.assert_close(
        nearest_simplex_etf(torch.ones(4, 6, dtype=torch.float64), previous, proximal=1e-3), previous
    )


def guided(**options):
    defaults = {"num_features": 6, "num_classes": 3, "bias": True, "scale": 5.0, "proximal": 1e-3, "min_step": 1e-4}
    return NearestETF(**{**defaults, "seed": 0, **options})


def test_the_head_follows_the_running_means_of_the_classes():
    head, total = guided(), torch.zeros(3, 6, dtype=torch.float64)
    targets = torch.tensor([0, 0, 1, 2])
    for t in range(1, 4):
        features = gaussian(4, 6, seed=t)
        means = torch.stack([features[targets == k].mean(0) for k in range(3)])
        total += 2 / (t + 1) * (means - total)
        before = head.weight.double() / 5
        head.follow(features.float(), targets if t % 2 else torch.eye(3)[targets])
    torch.testing.assert_close(head.mean_KD, total, rtol=0, atol=1e-6)
    expected = 5 * nearest_simplex_etf(total, before, proximal=1e-3)
    torch.testing.assert_close(head.weight.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(head.bias.double(), -expected @ total.mean(0), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in head.parameters())


def test_a_class_that_was_not_seen_has_no_say_and_one_that_is_missing_keeps_its_mean():
    head = guided(num_classes=4)
    seen = torch.tensor([[0.0, 2, 0, 0, 0, 0], [0, 0, 3.0, 0, 0, 0], [0, 0, 0, 5.0, 0, 0]])
    head.follow(seen, torch.tensor([0, 1, 2]))
    assert head.updates_K.tolist() == [1, 1, 1, 0]
    assert torch.linalg.vector_norm(head.weight, dim=1).tolist() == pytest.approx([5] * 4, rel=1e-6)
    assert (head.weight[:3] * (seen - seen.mean(0))).sum(1).gt(0).all()
    mean = head.mean_KD.clone()
    head.follow(torch.ones(1, 6), torch.tensor([3]))
    torch.testing.assert_close(head.mean_KD[:3], mean[:3], rtol=0, atol=0)


def test_a_state_dict_is_all_that_the_head_knows():
    batches = [(gaussian(5, 6, seed=s).float(), torch.tensor([0, 1, 2, 0, 1])) for s in range(4)]
    whole, resumed = guided(), guided(seed=9)
    for step, batch in enumerate(batches):
        whole.follow(*batch)
        if step >= 2:
            resumed.follow(*batch)
        else:
            resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


@pytest.mark.parametrize(("K", "D"), [(2, 2), (3, 11), (10, 64)])
def test_orthogonal_rows_are_orthonormal_non_negative_and_share_no_dimension(K, D):
    frame = nonnegative_frame(K, D, seed=4)
    torch.testing.assert_close(frame @ frame.T, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (frame >= 0).all()
    owners = (frame > 0).sum(0)
    assert (owners == 1).all()
    sizes = (frame > 0).sum(1)
    assert int(sizes.max() - sizes.min()) == int(D % K > 0)
    assert not torch.equal(frame, nonnegative_frame(K, D, seed=5)) or K == 2


def test_zero_mean_collapse_reads_as_the_docstring_says():
    K = 6
    head = NonNegativeOrthogonal(num_features=20, num_classes=K, scale=3.0, seed=0)
    labels = torch.arange(60) % K
    features = 2 * head.weight.double()[labels] + 1e-9 * gaussian(60, 20)
    values = measure(features, labels, weight_KD=head.weight.double()).values
    for name in ("nc1_pinv", "nc2_etf_M", "nc2_equinorm_M", "nc3_dual_etf"):
        assert values[name] == pytest.approx(0, abs=1e-6), name
    assert values["nc4_agree_bias"] == 1
    assert values["nc2_etf_W"] == pytest.approx((2 - 2 * ((K - 1) / K) ** 0.5) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: guided(num_classes=8), "num_classes=8"),
        (lambda: guided(scale=0.0), r"scale=0.0: must be positive"),
        (lambda: guided(proximal=-1.0), r"proximal=-1.0: must be 0 or more"),
        (lambda: guided(min_step=2.0), r"min_step=2.0: choose from 0 to 1"),
        (lambda: nonnegative_frame(5, 4, seed=0), r"num_classes=5: choose from 2 to dim=4"),
        (
            lambda: NonNegativeOrthogonal(num_features=4, num_classes=2, scale=-1.0, seed=0),
            r"scale=-1.0: must be positive",
        ),
    ],
)
def test_errors_name_the_choices(build, message):
    with pytest.raises(ValueError, match=message):
        build()
