"""What is usual: mean, k-NN, MICE and random forests for gaps; weights, oversampling and SMOTE for rare labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from typicality.tabular.columns import Column

NEIGHBOURS = 5
ROUNDS = 5  # of the imputation by forests
TREES = 50


def matrix_of(
    columns: Sequence[Column], values: Float[np.ndarray, "n m"], fitted: Float[np.ndarray, "f m"] | None = None
) -> Float[np.ndarray, "n d"]:
    """Return standardised numbers and 0-1 indicators of categories; NaN where nothing is known.

    Mean and deviation are those of the `fitted` rows (`values` by default).
    """
    fitted = values if fitted is None else fitted
    parts = []
    for i, column in enumerate(columns):
        own = values[:, i : i + 1]
        if column.kind == "category":
            parts.append(np.where(np.isnan(own), np.nan, own == np.arange(len(column.choices))))
        else:
            mean, deviation = scale_of(fitted[:, i])
            parts.append((own - mean) / deviation)
    return np.concatenate(parts, axis=1)


def scale_of(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and standard deviation of what is known; 0 and 1 where nothing is, or nothing varies."""
    known = values[~np.isnan(values)]
    return (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)


def values_of(
    columns: Sequence[Column], matrix: Float[np.ndarray, "n d"], fitted: Float[np.ndarray, "f m"]
) -> Float[np.ndarray, "n m"]:
    """Undo `matrix_of`; the largest indicator is the category."""
    parts, first = [], 0
    for i, column in enumerate(columns):
        width = len(column.choices) if column.kind == "category" else 1
        own = matrix[:, first : first + width]
        mean, deviation = scale_of(fitted[:, i])
        parts.append(own.argmax(1) if column.kind == "category" else own[:, 0] * deviation + mean)
        first += width
    return np.stack(parts, axis=1).astype(np.float64)


def mean_or_mode(columns: Sequence[Column], values: Float[np.ndarray, "n m"], seed: int) -> Float[np.ndarray, "n m"]:
    """Fill every gap with the mean of its column, or its most frequent category."""
    matrix = matrix_of(columns, values)
    filled = np.where(np.isnan(matrix), np.nanmean(matrix, axis=0), matrix)
    return np.where(np.isnan(values), values_of(columns, filled, values), values)


def by_neighbours(columns: Sequence[Column], values: Float[np.ndarray, "n m"], seed: int) -> Float[np.ndarray, "n m"]:
    """Fill every gap with the mean, or the vote, of the 5 nearest rows."""
    from sklearn.impute import KNNImputer

    filled = KNNImputer(n_neighbors=NEIGHBOURS, keep_empty_features=True).fit_transform(matrix_of(columns, values))
    return np.where(np.isnan(values), values_of(columns, filled, values), values)


def chained(
    columns: Sequence[Column],
    values: Float[np.ndarray, "n m"],
    rounds: int,
    regressor: Callable[[], Any],
    classifier: Callable[[], Any],
) -> Float[np.ndarray, "n m"]:
    """Predict each column from all others, as filled so far, round after round; those with few gaps go first.

    As scikit-learn's IterativeImputer, but a category is predicted as one: indicators of one category explain one
    another, so that regressions on them never leave their first guess.
    """
    gaps = np.isnan(values)
    filled = mean_or_mode(columns, values, 0)
    for _ in range(rounds):
        for i in np.argsort(gaps.sum(0), kind="stable"):
            if not gaps[:, i].any() or len(columns) < 2:
                continue
            others = [j for j in range(len(columns)) if j != i]
            x = matrix_of([columns[j] for j in others], filled[:, others])
            y = values[~gaps[:, i], i]
            if len(np.unique(y)) < 2:
                continue
            model = (classifier if columns[i].kind == "category" else regressor)()
            filled[gaps[:, i], i] = model.fit(x[~gaps[:, i]], y).predict(x[gaps[:, i]])
    return filled


def mice(columns: Sequence[Column], values: Float[np.ndarray, "n m"], seed: int) -> Float[np.ndarray, "n m"]:
    """Chained equations with Bayesian ridge and logistic regression, 10 rounds."""
    from sklearn.linear_model import BayesianRidge, LogisticRegression

    return chained(columns, values, 10, BayesianRidge, lambda: LogisticRegression(max_iter=1000))


def missforest(columns: Sequence[Column], values: Float[np.ndarray, "n m"], seed: int) -> Float[np.ndarray, "n m"]:
    """Chained forests of 50 extremely randomised trees, 5 rounds."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    return chained(
        columns, values, ROUNDS, lambda: ExtraTreesRegressor(TREES, random_state=seed, n_jobs=1),
        lambda: ExtraTreesClassifier(TREES, random_state=seed, n_jobs=1),
    )  # fmt: skip


IMPUTERS: dict[str, Callable[..., Float[np.ndarray, "n m"]]] = {
    "mean": mean_or_mode,
    "knn": by_neighbours,
    "mice": mice,
    "missforest": missforest,
}
"""mean or mode; 5 nearest neighbours; MICE (van Buuren & Groothuis-Oudshoorn 2011); missForest (Stekhoven & Bühlmann
2012), with extremely randomised trees."""


def oversampled(
    x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], missing: dict[int, int], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "r d"], Int[np.ndarray, " r"]]:
    """Return copies of rows of rare labels, drawn with replacement."""
    rows = [rng.choice(np.flatnonzero(y == label), count) for label, count in missing.items()]
    chosen = np.concatenate(rows)
    return x[chosen], y[chosen]


def smote(
    x: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    missing: dict[int, int],
    rng: np.random.Generator,
    categories: Sequence[slice] = (),
) -> tuple[Float[np.ndarray, "r d"], Int[np.ndarray, " r"]]:
    """Return rows between a row of a rare label and one of its 5 nearest of the same label (Chawla et al. 2002).

    Indicators of a category are taken from one of the two.
    """
    from sklearn.neighbors import NearestNeighbors

    rows, labels = [], []
    for label, count in missing.items():
        own = x[y == label]
        k = min(NEIGHBOURS, len(own) - 1)
        near = NearestNeighbors(n_neighbors=k + 1).fit(own).kneighbors(own, return_distance=False)
        start = rng.integers(len(own), size=count)
        end = near[start, rng.integers(1, k + 1, size=count)]
        share = rng.random((count, 1))
        made = own[start] + share * (own[end] - own[start])
        for block in categories:
            made[:, block] = np.where(share < 0.5, own[start][:, block], own[end][:, block])
        rows.append(made)
        labels.append(np.full(count, label))
    return np.concatenate(rows), np.concatenate(labels)


def smote_by_library(
    x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], missing: dict[int, int], seed: int
) -> tuple[Float[np.ndarray, "r d"], Int[np.ndarray, " r"]] | None:
    """SMOTE of imbalanced-learn, for tables of numbers; None where the package is not installed."""
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError:
        return None
    counts = np.bincount(y)
    neighbours = min(NEIGHBOURS, int(min(counts[label] for label in missing)) - 1)
    goal = {label: int(counts[label]) + count for label, count in missing.items()}
    more, labels = SMOTE(sampling_strategy=goal, k_neighbors=neighbours, random_state=seed).fit_resample(x, y)
    return more[len(x) :], labels[len(x) :]
