"""Fisher matrices of logistic regressions on named real data sets.

With standardised features x (8 of them, no intercept) and p = σ(wᵀx), the Fisher matrix of the model is
F(w) = mean p (1 - p) x xᵀ: at w = 0 it is a quarter of the features' correlation matrix, at the fit it is the
curvature of the loss there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression
from statsmodels.datasets import fair

from circuits.board import check_name
from circuits.errors import InputError
from circuits.synthesis.target import check_congruence, check_square, check_target, inverse_factor, read_matrix

FEATURES = 8
RIDGE = 1e-6  # prior precision per sample: keeps the fit finite where the classes are separable


@dataclass(frozen=True, eq=False)
class DataSet:
    """Standardised features (m, 8), binary labels (m,), and what they are."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]
    question: str


def load(name: str) -> DataSet:
    """Load a data set by name; InputError lists the names."""
    if name not in _LOADERS:
        raise InputError(f"unknown data set {name!r}; expected one of {', '.join(_LOADERS)}")
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
    """Fisher matrix of data set `name` at the weights "zero" or "fit", checked, with the data it came from."""
    check_weights(at)
    data = load(name)
    weights = np.zeros(data.features.shape[1]) if at == "zero" else fit_weights(data.features, data.labels)
    return check_target(fisher_matrix(data.features, weights), what=f"Fisher matrix of {name}"), data


def check_weights(at: str) -> None:
    """Raise InputError unless `at` names the weights at which a Fisher matrix is taken."""
    if at not in ("zero", "fit"):
        raise InputError(f"the Fisher matrix is taken --at zero or fit, got {at!r}")


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
DATA_SETS = tuple(_LOADERS)


@dataclass(frozen=True)
class Place:
    """What is to be programmed: a target by name or file, the factor and damping it is programmed with, its name."""

    target: str
    at: str = "zero"
    precondition: str | None = None
    damping: float = 0.0
    name: str | None = None


def target_of(place: Place) -> tuple[str, np.ndarray, str]:
    """Name, square matrix and origin of a target; InputError if there is no such target, or it is not square."""
    path = Path(place.target)
    named = place.target in DATA_SETS
    name = check_name(place.name if place.name is not None else place.target if named else path.stem)
    check_weights(place.at)
    if named:
        return name, named_fisher(place.target, place.at)[0], f"{place.target} at {place.at}"
    if path.suffix in (".npy", ".csv"):
        return name, check_square(read_matrix(path, "target"), "target"), path.name
    raise InputError(f"unknown target {place.target!r}; expected one of {', '.join(DATA_SETS)}, or a .npy or .csv file")


def congruence_of(given: str | None, target: str, size: int, damping: float) -> np.ndarray | None:
    """The factor T (size, size) of --precondition; InputError if there is none of that name or size."""
    if given is None:
        return None
    if given in ("zero", "fit"):
        if target not in DATA_SETS:
            raise InputError(f"--precondition {given} goes with a named target, not with {target}; give a .npy file")
        return inverse_factor(check_target(named_fisher(target, given)[0], damping))
    return check_congruence(read_matrix(Path(given), "preconditioner"), size)
