"""What the figures show, against the numbers they were given."""

import threading
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from ncdd.report.curves import collapse_figure, training_figure
from ncdd.report.features import features_figure
from ncdd.report.figures import draw
from ncdd.report.folder import Geometry, Metrics, read_geometry, read_metrics
from ncdd.report.gram import cosine_gram, gram_figure, simplex_etf_gram
from ncdd.report.style import CLASSIFIER, SPLIT_COLOURS, by_epoch

ALL = ["curves", "collapse", "gram", "features"]


@pytest.fixture
def metrics(make_run) -> Metrics:
    return read_metrics(make_run(K=4))


@pytest.fixture
def geometry_of(make_run, geometry_arrays):
    def build(change: dict | None = None, **options) -> Geometry:
        arrays = geometry_arrays(**options) | (change or {})
        return read_geometry(make_run(epochs=1, arrays={k: v for k, v in arrays.items() if v is not None}))

    return build


def lines(ax) -> list[tuple[str, np.ndarray]]:
    return [(line.get_color(), np.asarray(line.get_xydata())) for line in ax.lines]


def matrices(figure: Figure) -> list[np.ndarray]:
    return [np.ma.filled(ax.images[0].get_array(), np.nan) for ax in figure.axes if ax.images]


# ------------------------------------------------------------------------------ draw
def test_draw_writes_all_figures_and_leaves_no_temporary_file(make_run, monkeypatch):
    monkeypatch.undo()  # at their true size
    folder = make_run()
    paths = draw(folder)
    assert paths == [folder / "figures" / f"{name}.png" for name in ALL]
    assert sorted(folder.joinpath("figures").iterdir()) == sorted(paths)
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 1500 <= int.from_bytes(path.read_bytes()[16:20], "big") <= 1800


def test_draw_in_other_formats(make_run, geometry_arrays):
    folder = make_run(K=3, epochs=2, arrays=geometry_arrays(K=3, N=60))
    (folder / "metrics.csv").unlink()
    paths = draw(folder, formats=("pdf", "svg", "pdf"))
    assert [path.name for path in paths] == ["gram.pdf", "gram.svg", "features.pdf", "features.svg"]
    assert paths[0].read_bytes().startswith(b"%PDF")
    assert b"<svg" in paths[1].read_bytes()
    with pytest.raises(ValueError, match="unknown figure format jpg; choose from png, pdf, svg"):
        draw(folder, formats=("jpg",))


def test_draw_skips_what_has_no_data(make_run, tmp_path):
    folder = make_run(K=3, epochs=2)
    (folder / "collapse.npz").unlink()
    assert [path.stem for path in draw(folder)] == ["curves", "collapse"]
    (folder / "metrics.csv").write_text("epoch,step,lr\n0,0,0.1\n")
    assert draw(folder) == []
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        draw(tmp_path / "nowhere")


def test_a_failed_save_keeps_the_old_figure(make_run, monkeypatch):
    folder = make_run(K=3, epochs=2)
    (folder / "collapse.npz").unlink()
    before = {path: path.read_bytes() for path in draw(folder)}

    def fail(self, path, **_):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(folder)
    assert {path: path.read_bytes() for path in folder.joinpath("figures").iterdir()} == before


def test_draw_in_threads_and_without_global_state(make_run):
    folders = [make_run(f"run{n}", K=3, epochs=2) for n in range(2)]
    for folder in folders:
        (folder / "collapse.npz").unlink()
    settings = dict(matplotlib.rcParams)
    drawn: dict[Path, list[Path]] = {}
    threads = [
        threading.Thread(target=lambda folder=folder: drawn.update({folder: draw(folder)})) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(drawn[folder]) for folder in folders] == [2, 2]
    assert dict(matplotlib.rcParams) == settings


# ------------------------------------------------------------------------------ curves
def test_curves_show_every_split(metrics):
    loss, accuracy = training_figure(metrics).axes
    for ax, kind in ((loss, "loss"), (accuracy, "accuracy")):
        for split, (colour, drawn) in zip(("train", "val", "test"), lines(ax), strict=True):
            assert colour == SPLIT_COLOURS[split]
            np.testing.assert_array_equal(drawn.T, metrics[f"{split}/{kind}"])
    assert loss.get_yscale() == "log"
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "train  100.0%",
        "val  97.0%",
        "test  94.0%",
    ]


def test_the_terminal_phase_is_shaded_from_where_the_train_error_vanishes(metrics):
    epochs, accuracy = metrics["train/accuracy"]
    start = epochs[accuracy >= 0.999][0]
    for ax in training_figure(metrics).axes + collapse_figure(metrics).axes:
        (shade,) = ax.patches
        assert shade.get_x() == start
    never = metrics | {"train/accuracy": (epochs, np.minimum(accuracy, 0.99))}
    assert not any(ax.patches for ax in training_figure(never).axes)


def test_batch_loss_stands_in_by_its_mean(metrics):
    batches = {"train/batch_loss": (np.array([1.0, 1, 2, 2]), np.array([4.0, 2, 1, 3]))}
    ((_, drawn),) = lines(training_figure(batches).axes[0])
    np.testing.assert_array_equal(drawn, [[1, 3], [2, 2]])


def test_a_resumed_epoch_counts_once():
    metrics = {"a": (np.array([0.0, 1, 2, 1, 2]), np.array([9.0, 8, np.nan, 7, np.inf]))}
    np.testing.assert_array_equal(by_epoch(metrics, "a"), [[0, 1], [9, 7]])
    assert by_epoch(metrics, "b") is None


def test_collapse_panels_show_the_values(metrics):
    nc1, nc2, nc3, nc4 = collapse_figure(metrics).axes
    expected = {
        nc1: ["nc1_pinv", "nc1_quotient"],
        nc2: ["nc2_etf_M", "nc2_etf_W", "nc2_equinorm_M", "nc2_equiangular_std_M"],
        nc3: ["nc3_dual_etf"],
        nc4: ["nc4_agree_bias", "ncc_accuracy"],
    }
    for ax, names in expected.items():
        drawn = iter(lines(ax))
        for name in names:
            splits = ["train"] if name == "nc2_etf_W" else ["train", "test"]
            for split in splits:
                colour, data = next(drawn)
                epochs, values = metrics[f"{split}/{name}"]
                np.testing.assert_array_equal(data.T, [epochs, 1 - values if ax is nc4 else values])
                assert colour == (CLASSIFIER if name == "nc2_etf_W" else SPLIT_COLOURS[split])
        assert next(drawn, None) is None
    assert [ax.get_yscale() for ax in (nc1, nc2, nc3, nc4)] == ["log", "log", "log", "symlog"]
    assert r"\Sigma_B^{\dagger}" in nc1.get_title(loc="left")


def test_a_distillation_shows_its_network_on_real_and_on_distilled_images(metrics):
    joint = {"train/outer_loss": metrics["train/loss"], "test/ncc_accuracy": metrics["test/ncc_accuracy"]}
    for name in ("nc1_pinv", "nc3_dual_etf", "accuracy"):
        of_test, of_train = metrics[f"test/{name}"], metrics[f"train/{name}"]
        joint |= {f"train/{name}": of_train, f"real_test/{name}": of_test, f"distilled/{name}": of_train}
    joint["distilled/nc1_pinv__train_means"] = metrics["test/nc1_quotient"]
    nc1, _, nc3, nc4 = collapse_figure(joint).axes
    colours = [SPLIT_COLOURS[split] for split in ("train", "real_test", "distilled")]
    for ax, last in ((nc1, "distilled/nc1_pinv__train_means"), (nc3, "distilled/nc3_dual_etf")):
        assert [colour for colour, _ in lines(ax)] == colours
        np.testing.assert_array_equal(lines(ax)[-1][1].T, joint[last])
    assert lines(nc4) == []  # what the set teaches others is not the network's
    (legend,) = collapse_figure(joint).legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[:3] == ["train features", "real_test features", "distilled features (NC1, NC4: at the train means)"]
    assert [colour for colour, _ in lines(training_figure(joint).axes[1])] == colours


def test_values_of_one_size_have_a_linear_axis_from_zero():
    epochs = np.arange(3.0)
    figure = collapse_figure({"train/nc3_dual_etf": (epochs, np.array([1.2, 1.1, 1.0]))})
    assert figure.axes[2].get_yscale() == "linear"
    assert figure.axes[2].get_ylim()[0] == 0
    assert [text.get_text() for text in figure.axes[0].texts if "not" in text.get_text()] == ["not logged"]


@pytest.mark.parametrize(("value", "count"), [(0.0, 1), (-1.0, 2), (np.nan, 2), (np.inf, 1), (1e-30, 2), (1e30, 1)])
def test_curves_of_odd_values(value, count, tmp_path):
    names = [
        "train/loss",
        "train/accuracy",
        "test/nc1_pinv",
        "train/nc2_etf_M",
        "train/nc3_dual_etf",
        "val/nc4_agree_bias",
    ]
    metrics = {name: (np.arange(float(count)), np.full(count, value)) for name in names}
    for figure in (training_figure(metrics), collapse_figure(metrics)):
        assert (figure is None) == (not np.isfinite(value))
        if figure is not None:
            figure.savefig(tmp_path / "figure.png", dpi=30)


# ------------------------------------------------------------------------------ gram
@pytest.mark.parametrize("K", [2, 3, 10, 25])
def test_gram_matrices_equal_an_independent_computation(geometry_of, K):
    geometry = geometry_of(K=K, D=40)
    mean, weight = geometry.samples["train"].mean, geometry.weight
    grand = sum(mean) / K
    means, rows, target = np.empty((3, K, K))
    for i in range(K):
        for j in range(K):
            a, b = mean[i] - grand, mean[j] - grand
            means[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
            rows[i, j] = weight[i] @ weight[j] / np.sqrt((weight[i] @ weight[i]) * (weight[j] @ weight[j]))
            target[i, j] = 1 if i == j else -1 / (K - 1)
    figure = gram_figure(geometry)
    shown = matrices(figure)
    for drawn, expected in zip(shown, (means, rows, target), strict=False):
        np.testing.assert_allclose(drawn, expected, atol=1e-12)
    above = np.triu(np.ones((K, K), dtype=bool), 1)
    np.testing.assert_allclose(shown[3][above], (means - target)[above], atol=1e-12)
    np.testing.assert_allclose(shown[3][above.T], (rows - target)[above.T], atol=1e-12)
    np.testing.assert_allclose(np.diag(shown[3]), 0, atol=1e-12)
    assert [ax.images[0].get_clim() for ax in figure.axes[:3]] == [(-1, 1)] * 3
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert (ticks == geometry.class_names) == (K <= 20)


def test_simplex_etf_gram_is_that_of_a_simplex():
    for K in (2, 3, 7):
        vertices = np.eye(K) - 1 / K
        np.testing.assert_allclose(cosine_gram(vertices), simplex_etf_gram(K), atol=1e-12)


def test_gram_leaves_empty_classes_out_and_shows_zero_rows_as_unknown(geometry_of, geometry_arrays, tmp_path):
    arrays = geometry_arrays(K=5)
    mean, count, weight = arrays["train/mean"].copy(), arrays["train/count"].copy(), arrays["weight"].copy()
    mean[1], count[1], weight[3] = np.nan, 0, 0
    figure = gram_figure(geometry_of({"train/mean": mean, "train/count": count, "weight": weight}, K=5))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "2", "3", "4"]
    rows = matrices(figure)[1]
    assert np.isnan(rows[2]).all()
    assert np.isfinite(np.delete(np.delete(rows, 2, 0), 2, 1)).all()
    figure.savefig(tmp_path / "figure.png", dpi=30)


def test_gram_without_a_classifier(geometry_of):
    means, target, deviation = matrices(gram_figure(geometry_of({"weight": None, "bias": None}, K=4)))
    np.testing.assert_allclose(deviation, means - target, atol=1e-12)


# ------------------------------------------------------------------------------ features
def test_three_classes_are_seen_undistorted_in_their_plane(geometry_of):
    geometry = geometry_of(K=3)
    train, test = features_figure(geometry).axes
    for ax, sample in zip((train, test), geometry.samples.values(), strict=True):
        drawn = next(c for c in ax.collections if c.get_label() == "class means").get_offsets()
        mean = geometry.samples["train"].mean
        scale = np.linalg.norm(mean - mean.mean(axis=0), axis=1).mean()
        if sample is geometry.samples["train"]:
            distance = np.linalg.norm(mean[:, None] - mean[None], axis=2) / scale
            np.testing.assert_allclose(np.linalg.norm(drawn[:, None] - drawn[None], axis=2), distance, atol=1e-9)
            np.testing.assert_allclose(drawn[0, 0], 0, atol=1e-9)
            assert drawn[0, 1] > 0 and drawn[1, 0] > 0 > drawn[2, 0]
        features = next(c for c in ax.collections if c.get_label() == "features").get_offsets()
        outside = [t.get_text() for t in ax.texts if "outside" in t.get_text()]
        missing = int(outside[0].split()[0]) if outside else 0
        assert len(features) + missing == len(sample.features)
        assert sum(line.get_label() == "classifier" for line in ax.lines) == 3
    assert train.get_xlim() == test.get_xlim() == train.get_ylim()


def test_a_dual_classifier_ends_at_the_class_means(geometry_of):
    mean = geometry_of(K=3).samples["train"].mean
    geometry = geometry_of({"weight": 0.1 * (mean - mean.mean(axis=0))}, K=3)
    ax = features_figure(geometry).axes[0]
    ends = [line.get_xydata()[1] for line in ax.lines if line.get_label() == "classifier"]
    marks = next(c for c in ax.collections if c.get_label() == "class means").get_offsets()
    np.testing.assert_allclose(ends, marks, atol=1e-9)


def test_four_classes_and_more_have_a_view_in_space_and_a_plane(geometry_of):
    figure = features_figure(geometry_of(K=4))
    assert [ax.name for ax in figure.axes] == ["3d", "3d", "rectilinear", "rectilinear"]
    assert "100% of the variance between classes" in figure.axes[0].get_title()
    assert figure.axes[0].get_zlim() == figure.axes[1].get_zlim()


@pytest.mark.parametrize(
    "options",
    [{"K": 2}, {"K": 2, "D": 1}, {"K": 3, "D": 1}, {"K": 4, "D": 2}, {"K": 20}, {"K": 100, "D": 60, "N": 300}],
)
def test_features_of_any_shape_are_drawn(geometry_of, options, tmp_path):
    for figure in (features_figure(geometry_of(**options)), gram_figure(geometry_of(**options))):
        figure.savefig(tmp_path / "figure.png", dpi=30)


def test_features_with_holes_are_drawn(geometry_of, geometry_arrays, tmp_path):
    arrays = geometry_arrays(K=5)
    features, mean, count = (arrays[name].copy() for name in ("train/features", "test/mean", "test/count"))
    features[::7] = np.nan
    mean[2], count[2] = 0, 0
    figure = features_figure(geometry_of({"train/features": features, "test/mean": mean, "test/count": count}, K=5))
    figure.savefig(tmp_path / "figure.png", dpi=30)
    points = next(c for c in figure.axes[0].collections if c.get_label() == "features")
    assert len(points.get_offsets()) <= np.isfinite(features).all(axis=1).sum()


def test_equal_means_and_no_samples_are_drawn(geometry_of, tmp_path):
    nothing = {
        f"{s}/{k}": v for s in ("train", "test") for k, v in (("features", np.ones((0, 32))), ("labels", np.ones(0)))
    }
    for K in (2, 5):
        geometry = geometry_of(nothing | {"train/mean": np.ones((K, 32)), "weight": np.zeros((K, 32))}, K=K)
        for figure in (features_figure(geometry), gram_figure(geometry)):
            figure.savefig(tmp_path / "figure.png", dpi=30)


def test_a_single_class_has_no_figure(geometry_of):
    geometry = geometry_of({"train/count": np.array([600, 0, 0])}, K=3)
    assert gram_figure(geometry) is None
    assert features_figure(geometry) is None
