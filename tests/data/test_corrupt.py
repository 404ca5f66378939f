"""Selections and relabellings against their formulas and laws."""

import itertools

import pytest
import torch

from ncdd.data import corrupt, seeding

LABELS = torch.arange(1000) % 10


def counts(labels, indices):
    return labels[indices].bincount(minlength=10).tolist()


def test_split_is_a_stratified_partition():
    train, val = corrupt.split(LABELS, 10, 0.2, seed=1)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))
    assert counts(LABELS, val) == [20] * 10
    assert torch.equal(train, train.sort().values)
    assert not torch.equal(val, corrupt.split(LABELS, 10, 0.2, seed=2)[1])
    assert torch.equal(val, corrupt.split(LABELS, 10, 0.2, seed=1)[1])


def test_split_leaves_a_lone_sample_in_train():
    labels = torch.tensor([0, 1, 1, 1, 1])
    train, val = corrupt.split(labels, 2, 0.9, seed=0)
    assert 0 in train
    assert labels[val].tolist() == [1, 1, 1]


def test_split_of_nothing():
    train, val = corrupt.split(LABELS, 10, 0.0, seed=0)
    assert len(train) == 1000
    assert len(val) == 0


def test_samples_per_class_are_nested():
    small, large = (corrupt.samples_per_class(LABELS, 10, count, seed=3) for count in (5, 20))
    assert counts(LABELS, small) == [5] * 10
    assert set(small.tolist()) < set(large.tolist())


def test_every_sample_is_picked_equally_often():
    """Of 4 samples a class 1 is picked: 800 seeds give 200 +- 12 each."""
    picked = torch.stack([corrupt.samples_per_class(torch.arange(8) % 2, 2, 1, seed) for seed in range(800)])
    assert ((picked.flatten().bincount(minlength=8) - 200).abs() < 62).all()


def test_long_tail_counts_follow_the_formula():
    """CIFAR-10 with factor 100 as in Cao et al. 2019 (LDAM): 5000, 2997, ..., 50."""
    expected = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert corrupt.long_tail_counts(5000, 10, 100.0).tolist() == expected
    assert corrupt.long_tail_counts(500, 4, 1.0).tolist() == [500] * 4
    assert counts(LABELS, corrupt.imbalance(LABELS, 10, 10.0, seed=0)) == [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]


def test_imbalance_keeps_what_a_small_class_has():
    labels = torch.tensor([0] * 3 + [1] * 10)
    assert labels[corrupt.imbalance(labels, 2, 2.0, seed=0)].bincount().tolist() == [3, 5]


def test_random_labels_agree_with_the_truth_one_time_in_k():
    labels = torch.arange(100_000) % 10
    replaced = corrupt.random_labels(labels, 10, seed=0)
    assert abs((replaced == labels).float().mean() - 0.1) < 0.005  # five standard deviations
    assert ((replaced.bincount() - 10_000).abs() < 480).all()


def test_label_noise_replaces_that_fraction():
    labels = torch.arange(100_000) % 10
    noisy = corrupt.label_noise(labels, 10, 0.3, seed=0)
    assert abs((noisy != labels).float().mean() - 0.3 * 0.9) < 0.003
    assert torch.equal(corrupt.label_noise(labels, 10, 0.0, seed=0), labels)
    assert abs((corrupt.label_noise(labels, 10, 1.0, seed=0) == labels).float().mean() - 0.1) < 0.005


def test_nothing_is_changed_in_place_or_drawn_from_the_global_stream():
    before, state = LABELS.clone(), torch.random.get_rng_state()
    corrupt.label_noise(LABELS, 10, 0.5, 0)
    corrupt.random_labels(LABELS, 10, 0)
    corrupt.split(LABELS, 10, 0.5, 0)
    assert torch.equal(LABELS, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corrupt.split(LABELS, 10, 1.0, 0), r"val_fraction=1\.0: a fraction in \[0, 1\)"),
        (lambda: corrupt.samples_per_class(LABELS, 10, 101, 0), r"samples_per_class=101: .* has 100 samples; choose 1"),
        (lambda: corrupt.imbalance(LABELS, 10, 0.5, 0), r"imbalance=0\.5: a factor >= 1"),
        (lambda: corrupt.imbalance(LABELS, 10, 500.0, 0), r"imbalance=500\.0: class 7 would have no sample .* 100"),
        (lambda: corrupt.label_noise(LABELS, 10, 1.5, 0), r"label_noise=1\.5: a fraction in \[0, 1\]"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fold_in_tells_all_counters_apart():
    """Streams, epochs and steps, in either order, near each other and beyond 32 bits."""
    keys = list(itertools.product((0, 1, 2**32), (0, 1), range(20), range(20)))
    assert len({seeding.fold_in(*key) for key in keys}) == len(keys)
    assert seeding.fold_in(1, 2) != seeding.fold_in(2, 1)
    assert seeding.fold_in(1) != seeding.fold_in(1, 0)
    assert all(0 <= seeding.fold_in(*key) < 2**32 for key in keys)
