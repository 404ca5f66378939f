"""Membership inference (Shokri et al. 2017): from a network's outputs on images, which of them was it trained on?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.float64]
LOSS_THRESHOLD = "loss_threshold"
# name -> (classifier, the grid that is searched); an estimator's seed is set where it takes one
LEARNED: dict[str, tuple[Any, dict[str, Sequence[Any]]]] = {
    "logistic_regression": (LogisticRegression(max_iter=2000), {"C": (1e-3, 1e-1, 10.0)}),
    "mlp": (MLPClassifier((32,), solver="lbfgs", max_iter=500), {"alpha": (1e-2, 1.0, 10.0)}),
    "random_forest": (RandomForestClassifier(n_estimators=50), {"max_depth": (3, 6, 12)}),
    "knn": (KNeighborsClassifier(), {"n_neighbors": (5, 15, 45)}),
}
ATTACKS = (LOSS_THRESHOLD, *LEARNED)
FOLDS = 2


class Attack(NamedTuple):
    """How well members are told from the others: area under the ROC curve and accuracy, 0.5 for not at all."""

    auc: float
    accuracy: float


def attack(name: str, outputs: Array, losses: Array, member: NDArray[np.bool_], *, seed: int) -> Attack:
    """Attack by cross-validation on two stratified folds: each is judged by what was fitted to the other, by a mean.

    name: one of ATTACKS. A learned attack sees logits and loss, standardised, and has its one hyper-parameter chosen by
        AUC in a cross-validation of its own; "loss_threshold" takes those with the smaller loss for members.
    outputs (n, K) logits, losses (n,), member (n,), of which half should be members.
    """
    if name not in ATTACKS:
        raise ValueError(f"task.attacks: no {name!r}; choose from {', '.join(ATTACKS)}")
    features = np.column_stack([outputs, losses])
    found = []
    for fitted, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, member):
        if name == LOSS_THRESHOLD:
            score = -losses[held]
            decided = score >= _threshold(-losses[fitted], member[fitted])
        else:
            with warnings.catch_warnings():  # an MLP that could be fitted better still is one of those to choose from
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = _search(name, seed).fit(features[fitted], member[fitted])
            score, decided = model.predict_proba(features[held])[:, 1], model.predict(features[held])
        found.append((roc_auc_score(member[held], score), accuracy_score(member[held], decided)))
    auc, accuracy = np.mean(found, axis=0).tolist()
    return Attack(auc, accuracy)


def _threshold(score: Array, member: NDArray[np.bool_]) -> float:
    """Of the scores that which, taken for members from there on, decides most of them rightly."""
    order = np.argsort(-score, kind="stable")
    right = np.cumsum(np.where(member[order], 1, -1))
    return float(score[order][int(right.argmax())])


def _search(name: str, seed: int) -> GridSearchCV:
    classifier, grid = LEARNED[name]
    if "random_state" in classifier.get_params():
        classifier = type(classifier)(**classifier.get_params() | {"random_state": seed})
    pipeline = make_pipeline(StandardScaler(), classifier)
    step = pipeline.steps[-1][0]
    return GridSearchCV(
        pipeline,
        {f"{step}__{key}": list(values) for key, values in grid.items()},
        scoring="roc_auc",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
    )
