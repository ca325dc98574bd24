"""Fisher matrices of logistic regressions on named real data sets.

With standardised features x (8 of them, no intercept) and p = σ(wᵀx), the Fisher matrix of the model is
F(w) = mean p (1 - p) x xᵀ: at w = 0 it is a quarter of the features' correlation matrix, at the fit it is the
curvature of the loss there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression
from statsmodels.datasets import fair

from circuits.errors import InputError
from circuits.synthesis.options import DATA_SETS, check_weights
from circuits.synthesis.target import check_target

FEATURES = 8
RIDGE = 1e-6  # prior precision per sample: keeps the fit finite where the classes are separable


@dataclass(frozen=True, eq=False)
class DataSet:
    """Standardised features (m, 8) with their names, binary labels (m,) with their question."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]
    question: str


def load(name: str) -> DataSet:
    """Load a data set by name; InputError lists the names."""
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}; expected one of {', '.join(DATA_SETS)}")
    features, labels, names, question = _LOADERS[name]()
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    return DataSet(name, features, labels.astype(float), tuple(names), question)


def fit_weights(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights (n,) of the logistic regression of labels (m,), maximum likelihood up to a ridge of 1e-6 per sample."""
    model = LogisticRegression(
        C=1 / (RIDGE * len(labels)),
        fit_intercept=False,
        solver="newton-cholesky",
        tol=1e-10,
        max_iter=1000,
    )
    return model.fit(features, labels).coef_[0]


def fisher_matrix(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F(w) = mean p (1 - p) x xᵀ, (n, n), from features (m, n) and weights (n,)."""
    p = 1 / (1 + np.exp(-features @ weights))
    F = (features * (p * (1 - p))[:, None]).T @ features / len(features)
    return (F + F.T) / 2


def named_fisher(name: str, at: str) -> tuple[np.ndarray, DataSet]:
    """Fisher matrix (n, n) of data set `name` at the weights "zero" or "fit", checked, and the data set."""
    check_weights(at)
    data = load(name)
    weights = np.zeros(data.features.shape[1]) if at == "zero" else fit_weights(data.features, data.labels)
    return check_target(fisher_matrix(data.features, weights), what=f"Fisher matrix of {name}"), data


def _fair() -> tuple:
    table = fair.load_pandas().data
    features = table.drop(columns="affairs")
    return features.to_numpy(float), table["affairs"].to_numpy() > 0, features.columns, "affairs > 0"


def _wine() -> tuple:
    bunch = load_wine()
    return bunch.data[:, :FEATURES], bunch.target == 0, bunch.feature_names[:FEATURES], "cultivar 0"


def _diabetes() -> tuple:
    bunch = load_diabetes()
    labels = bunch.target > np.median(bunch.target)
    return bunch.data[:, :FEATURES], labels, bunch.feature_names[:FEATURES], "progression above median"


def _breast_cancer() -> tuple:
    bunch = load_breast_cancer()
    names = [str(name) for name in bunch.feature_names[:FEATURES]]
    return bunch.data[:, :FEATURES], bunch.target == 1, names, "benign"


_LOADERS: dict[str, Callable[[], tuple]] = {
    "fair": _fair,
    "wine": _wine,
    "diabetes": _diabetes,
    "breast-cancer": _breast_cancer,
}
