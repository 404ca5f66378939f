"""Projections on the span of the class means, against what they must preserve."""

from itertools import combinations

import numpy as np
import pytest

from ncdd.report.folder import Sample
from ncdd.report.view import closest_classes, span_view


def sample_of(means: np.ndarray, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    labels = np.arange(40 * len(means)) % len(means)
    features = means[labels] + 0.1 * rng.normal(size=(len(labels), means.shape[1]))
    return Sample(means, np.bincount(labels), features, labels)


def distances(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


@pytest.mark.parametrize(("K", "d"), [(2, 2), (3, 2), (4, 3), (3, 3)])
def test_a_view_that_has_room_for_the_means_keeps_their_distances(K, d):
    means = np.random.default_rng(K).normal(size=(K, 12))
    view = span_view(sample_of(means), np.arange(K), d)
    np.testing.assert_allclose(distances(view(means)) * view.scale, distances(means), atol=1e-9)
    np.testing.assert_allclose(view.axes.T @ view.axes, np.eye(d), atol=1e-9)
    assert view.share == pytest.approx(1)


def test_the_view_of_many_classes_has_the_largest_share():
    means = np.random.default_rng(0).normal(size=(9, 12)) * np.linspace(1, 3, 12)
    view = span_view(sample_of(means), np.arange(9), 3)
    eigenvalues = np.linalg.eigvalsh(np.cov(means.T))
    assert view.share == pytest.approx(eigenvalues[-3:].sum() / eigenvalues.sum())


def test_the_view_does_not_depend_on_rotations():
    means = np.random.default_rng(1).normal(size=(3, 6))
    turned = means @ np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    seen = [span_view(sample_of(rows), np.arange(3), 2)(rows) for rows in (means, turned)]
    np.testing.assert_allclose(*seen, atol=1e-9)


def test_one_feature_is_padded():
    view = span_view(sample_of(np.array([[0.0], [2.0], [3.0]])), np.arange(3), 2)
    assert view(np.ones((5, 1))).shape == (5, 2)


@pytest.mark.parametrize("K", [3, 12, 60])
def test_closest_classes(K):
    means = np.random.default_rng(K).normal(size=(K, 8))
    means[-3:] = means[-3] + 0.1 * np.random.default_rng(0).normal(size=(3, 8))
    distance = distances(means)
    best = min(combinations(range(K), 3), key=lambda c: sum(distance[i, j] for i, j in combinations(c, 2)))
    np.testing.assert_array_equal(closest_classes(means + 1e4), best)
