"""`task=ood`: does a network tell what it was not trained on? NC5, NECO and the usual scores beside them."""

from __future__ import annotations

import logging
import os

import numpy as np
from torch import Tensor

from ncdd.collapse import auroc, fpr95
from ncdd.collapse import ood as scores
from ncdd.data.adapt import AdaptedLoader
from ncdd.report.figures import draw
from ncdd.report.rows import Row, print_rows, write_rows
from ncdd.runfolder import replacing
from ncdd.tasks.layers import train_moments
from ncdd.tasks.subject import Subject

log = logging.getLogger(__name__)


def ood(*, subject: Subject, max_samples: int | None, neco_components: int | None, vim_dimension: int | None) -> None:
    """Score the test splits of the network's own data set (`dataset`) and of another (`dataset@ood`).

    max_samples: of the train split, to which scores are fitted, drawn at random; their features are kept in memory.
        None takes all; ViM's authors took 200,000.
    neco_components, vim_dimension: of the principal spaces; None: the number of classes (no NECO where there are no
        more dimensions), and ViM's published rule, see `ncdd.collapse.ood`.

    Writes ood.csv (AUROC, FPR95 of each score), ood.npz (the scores), summary.json and a figure.
    """
    if subject.ood is None:
        raise ValueError("task=ood needs a second data set: dataset@ood=NAME, any choice of dataset")
    epochs, file = subject.load_last()
    data, other = subject.data, subject.ood
    _say_how_adapted(subject)
    outside_loader = AdaptedLoader(
        images=other.splits["test"],
        channels=data.in_channels,
        image_size=data.image_size,
        normalisation=data.normalisation,
        whitening=data.whitening,
        batch_size=data.measure_batch_size,
    )
    train, labels = subject.features(subject.loader("train", max_samples))
    inside, _ = subject.features(subject.loader("test", None))
    outside, _ = subject.features(outside_loader)
    nc5, found = score_all(subject, train, labels, (inside, outside), neco_components, vim_dimension)
    rows: list[Row] = [
        {"score": name, "auroc": float(auroc(*pair)), "fpr95": float(fpr95(*pair))} for name, pair in found.items()
    ]
    write_rows(subject.folder / "ood.csv", rows)
    with replacing(subject.folder / "ood.npz") as temporary, temporary.open("wb") as stream:
        arrays = {f"{name}/{s}": x.cpu().numpy() for name, p in found.items() for s, x in zip(SIDES, p, strict=True)}
        np.savez(stream, names=np.array([data.source_name, other.source_name]), **arrays)  # type: ignore[arg-type]
    final = {f"ood/{row['score']}_{key}": float(row[key]) for row in rows for key in ("auroc", "fpr95")}
    subject.summarise(epochs, file, {"ood/nc5_ood_orth": nc5, **final})
    if subject.record.figures:
        draw(subject.folder)
    title = f"{os.path.relpath(file)}, epoch {epochs}: {data.source_name} against {other.source_name}, NC5 {nc5:.3g}"
    print_rows(rows, title=title)


SIDES = ("inside", "outside")


def score_all(
    subject: Subject,
    train_ND: Tensor,
    labels_N: Tensor,
    test: tuple[Tensor, Tensor],
    neco_components: int | None,
    vim_dimension: int | None,
) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """NC5, and by name every score of the features inside and outside, fitted to the train features."""
    head = subject.method.head
    moments = train_moments(train_ND, labels_N, head.out_features)
    nc5 = scores.ood_orthogonality(moments.mean_KD, test[1].double().mean(dim=0))
    neco = None
    if neco_components is not None or scores.neco_defined(moments):
        neco = scores.neco_basis(moments, neco_components)
    else:
        log.info(
            "no NECO: features of dimension %d leave none beside the %d classes'", train_ND.shape[1], len(head.weight)
        )
    mahalanobis = scores.mahalanobis_basis(moments)
    vim = scores.vim_basis(train_ND, subject.logits(train_ND), head.weight, head.bias, vim_dimension)

    def both(x: Tensor) -> dict[str, Tensor]:
        logits = subject.logits(x)
        return ({} if neco is None else {"neco": scores.neco_scores(x, neco)}) | {
            "msp": scores.max_softmax(logits),
            "max_logit": scores.max_logit(logits),
            "energy": scores.energy(logits),
            "mahalanobis": scores.mahalanobis(x, mahalanobis),
            "vim": scores.vim(x, logits, vim),
        }

    inside, outside = (both(x) for x in test)
    return float(nc5), {name: (inside[name], outside[name]) for name in inside}


def _say_how_adapted(subject: Subject) -> None:
    data, other = subject.data, subject.ood
    assert other is not None
    colour = {1: "grey", 3: "colour"}
    log.info(
        "%s: %s %s images of %d x %d pixels, as %s ones of %d x %d, normalised as %s",
        other.source_name,
        f"{len(other.splits['test']):,}",
        colour.get(other.in_channels, f"{other.in_channels}-channel"),
        other.image_size,
        other.image_size,
        colour.get(data.in_channels, f"{data.in_channels}-channel"),
        data.image_size,
        data.image_size,
        data.source_name,
    )
