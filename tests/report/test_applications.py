"""The figures of task=continual and task=membership show the rows that they are given."""

import pytest

from ncdd.report.applications import continual_figure, membership_figure

CONTINUAL = [
    {"set": name, "step": step, "classes": 2 * (step + 1), "accuracy": base - 0.1 * step, "accuracy_std": 0.01}
    for name, base in (("distilled", 0.9), ("random", 0.7))
    for step in range(3)
]
MEMBERSHIP = [
    {"set": name, "chunk": chunk, "steps": steps, "loss_threshold_auc": auc + 0.1 * chunk, "loss_threshold_accuracy": 0}
    for name, auc in (("distilled", 0.5), ("real", 0.7), ("control", 0.4))
    for chunk in (0, 1)
    for steps in (10, 100)
]


def test_continual():
    (ax,) = continual_figure(CONTINUAL).axes
    lines = [container.lines[0] for container in ax.containers]
    assert [line.get_xdata().tolist() for line in lines] == [[2, 4, 6]] * 2
    assert lines[0].get_ydata().tolist() == pytest.approx([90, 80, 70])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["distilled images", "random images"]


def test_one_network_has_no_bar():
    alone = [row | {"accuracy_std": float("nan")} for row in CONTINUAL]
    (ax,) = continual_figure(alone).axes
    for container in ax.containers:
        assert not any(len(bar) for bar in container.lines[2][0].get_segments())


def test_membership_is_a_mean_over_chunks():
    axes = membership_figure(MEMBERSHIP).axes
    assert [ax.get_title(loc="left") for ax in axes] == [
        "membership attacks, trained on distilled images",
        "membership attacks, trained on real images",
        "control: the distilled images, attacked on others",
    ]
    for ax, auc in zip(axes, (0.55, 0.75, 0.45), strict=True):
        assert list(ax.lines[0].get_xdata()) == [10, 100]
        assert list(ax.lines[0].get_ydata()) == pytest.approx([auc, auc])
        assert ax.lines[0].get_label() == "loss threshold"
