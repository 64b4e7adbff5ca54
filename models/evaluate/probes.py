"""Classes told by labelled embeddings of a training split: logistic regression and nearest neighbours.

scikit-learn computes both. It takes two seconds to import, so this module is imported where a probe is asked for.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from models.evaluate.metric import Groups, Metric
from models.evaluate.sets import SetError
from models.evaluate.zero_shot import accuracies
from models.towers.dual_encoder import Rows

LINEAR, NEIGHBOURS = "linear_probe", "knn"
STRENGTHS = np.logspace(-2, 4, 7)
"""Inverses of the L2 penalty that are tried: unit rows need weak ones (Radford et al. 2021, appendix A.3)."""
FOLDS = 3
NEIGHBOURS_ASKED, TEMPERATURE = 20, 0.07
"""How many neighbours vote, each with exp(cosine / temperature) (Wu et al. 2018, section 3.4; DINO has 20)."""


def linear_probe(
    name: str, train_nd: Rows, train_labels: Groups, test_nd: Rows, labels: Groups, classes: int, seed: int
) -> list[Metric]:
    """Logistic regression with the penalty that does best in cross-validation on the training split.

    Raises `SetError` where no class has a training sample for every fold.
    """
    most = int(np.bincount(train_labels).max())
    if most < FOLDS or len(np.unique(train_labels)) < 2:
        raise SetError(
            f"set {name}: {len(np.unique(train_labels))} classes in `train`, of at most {most} samples; expected 2 or "
            f"more classes, and {FOLDS} or more samples, for a linear probe"
        )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": STRENGTHS}, cv=folds)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # in some folds it cannot be told
        # With next to no penalty, separable classes have no optimum to converge to; the search compares, and goes on.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        search.fit(train_nd, train_labels)
    return accuracies(name, LINEAR, _spread(search.decision_function(test_nd), search.classes_, classes), labels)


def nearest_neighbours(
    name: str, train_nd: Rows, train_labels: Groups, test_nd: Rows, labels: Groups, classes: int
) -> list[Metric]:
    """The votes of the nearest training images."""

    def votes(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.exp(-distances / TEMPERATURE)  # 1 - cosine: a factor that all votes share goes out

    voters = min(NEIGHBOURS_ASKED, len(train_nd))
    model = KNeighborsClassifier(voters, weights=votes, metric="cosine", algorithm="brute").fit(train_nd, train_labels)
    return accuracies(name, NEIGHBOURS, _spread(model.predict_proba(test_nd), model.classes_, classes), labels)


def _spread(scores: npt.NDArray[np.float64], known: Groups, classes: int) -> npt.NDArray[np.float32]:
    """float32 (images, classes): the lowest score for classes that training had no sample of."""
    if scores.ndim == 1:  # of two classes, the second's alone
        scores = np.stack([-scores, scores], axis=1)
    full = np.full((len(scores), classes), scores.min() - 1, np.float32)
    full[:, known] = scores
    return full
