"""`tabular balance --evaluate`: classifiers trained with more rows of rare labels, judged on real rows they never saw.

On repeated stratified splits everything is fitted on the training part alone: the generator, medians that stand in for
gaps, and the classifiers. Precision, recall, F1 and area under the precision-recall curve are those of a rare label
against all others (their mean, where several labels are rare).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from typicality.errors import DatasetError, SettingsError
from typicality.metrics import average_precision
from typicality.progress import SILENT, Progress
from typicality.tabular.balance import BalanceOptions, examined, fit_generator, lacking, new_rows
from typicality.tabular.columns import Column
from typicality.tabular.judging import averaged, differences
from typicality.tabular.preparing import LEAST_ROWS, Labels, Prepared
from typicality.tabular.rivals import matrix_of, oversampled, smote, smote_by_library

METHODS = ("ours", "nothing", "class_weights", "oversampling", "smote")
TREES = 200
REPEATS, TEST = 5, 0.3

Split = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]


def plan(
    table: Path, options: BalanceOptions, repeats: int, test: float
) -> tuple[Prepared, Labels, dict[int, int], list[Split]]:
    """Look at everything that could stand in the way; the splits are of the rows that have a label.

    Raises
    ------
    InputError
    """
    if not 0 < test < 1:
        raise SettingsError(f"--test must be above 0 and below 1, not {test}")
    if repeats < 2:
        raise SettingsError(f"--repeats must be at least 2, not {repeats}: the standard error is over repeats")
    found, labels, asked = examined(table, options)
    return found, labels, asked, splits_of(labels, asked, repeats, test, options.seed)


def splits_of(labels: Labels, rare: Collection[int], repeats: int, test: float, seed: int) -> list[Split]:
    """Return stratified splits, in each of which every rare label has rows to learn from and to judge.

    Raises
    ------
    DatasetError : there are too few rows for that.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    codes, counts = labels.codes[labels.codes >= 0], labels.counts
    if counts.min() < 2:
        raise DatasetError(f"label {labels.names[counts.argmin()]!r} has one row, which cannot be split")
    judging = math.ceil(test * len(codes))
    if min(judging, len(codes) - judging) < len(counts):
        raise DatasetError(
            f"--test {test:g} splits {len(codes)} rows into {len(codes) - judging} to learn from and {judging} to "
            f"judge: each part needs a row of every one of {len(counts)} labels"
        )
    splits = StratifiedShuffleSplit(repeats, test_size=test, random_state=seed)
    found = list(splits.split(np.zeros(len(codes)), codes))
    for label in sorted(rare):
        learned, judged = (min(int((codes[split[part]] == label).sum()) for split in found) for part in (0, 1))
        if learned < LEAST_ROWS or not judged:
            raise DatasetError(
                f"label {labels.names[label]!r} has too few rows ({counts[label]}) for --test {test:g}: splits leave "
                f"as few as {learned} to learn from and {judged} to judge; {LEAST_ROWS} and 1 at least are needed"
            )
    return found


def evaluate_balance(
    table: Path, options: BalanceOptions, repeats: int = REPEATS, test: float = TEST, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure what synthetic rows are worth to a random forest (and XGBoost, where installed); see the module.

    Parameters
    ----------
    test : share of the rows that judges

    Raises
    ------
    InputError
    """
    started = time.monotonic()
    found, labels, asked, splits = plan(table, options, repeats, test)
    rare = sorted(asked)
    usable = np.flatnonzero(labels.codes >= 0)
    values, codes = found.values[usable], labels.codes[usable]
    judges, notes = available_judges()
    records: dict[str, dict[str, list[dict[str, float]]]] = {name: defaultdict(list) for name in judges}
    dropped = dict.fromkeys(("drawn", "atypical", "copies", "kept"), 0)
    for repeat, (train, judged) in enumerate(splits):
        seed = options.seed + repeat
        part = Labels(labels.names, codes[train], labels.cells)
        own = replace(options, seed=seed)
        sets = training_sets(found.modelled, values[train], part, rare, own, dropped, progress)
        x_test = stand_in(matrix_of(found.modelled, values[judged], values[train]), values[train], found.modelled)
        for method, (x, y, weight) in sets.items():
            for name, fit in judges.items():
                records[name][method].append(measures(fit(x, y, weight, seed)(x_test), codes[judged], rare))
    overlap = test / (1 - test)
    return {
        **found.summary(),
        "label": options.label,
        "rare": [labels.names[label] for label in rare],
        "counts": {name: int(count) for name, count in zip(labels.names, labels.counts, strict=True)},
        "repeats": repeats,
        "test": test,
        **{name: averaged(of_judge, overlap) for name, of_judge in records.items()},
        "differences": {name: differences(of_judge, overlap) for name, of_judge in records.items()},
        "dropped": dropped,
        "remarks": notes,
        "options": options.as_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }


TrainingSet = tuple[Float[np.ndarray, "r d"], Int[np.ndarray, " r"], Float[np.ndarray, " r"] | None]


def training_sets(
    columns: Sequence[Column],
    values: Float[np.ndarray, "n m"],
    labels: Labels,
    rare: Collection[int],
    options: BalanceOptions,
    dropped: dict[str, int],
    progress: Progress = SILENT,
) -> dict[str, TrainingSet]:
    """Return method -> rows, labels and weights to train on, from the training rows of a split.

    Rows are added to the `rare` labels alone; to none where a split leaves them as many rows as are asked for.
    """
    missing = lacking(labels, rare, options.ratio)
    x, y = stand_in(matrix_of(columns, values), values, columns), labels.codes
    counts = labels.counts
    sets: dict[str, TrainingSet] = {
        "nothing": (x, y, None),
        "class_weights": (x, y, (len(y) / np.maximum(1, counts) / len(counts))[y]),
    }
    if not missing:
        return {name: sets.get(name, sets["nothing"]) for name in METHODS}
    rng = np.random.default_rng(options.seed)
    generator = fit_generator(columns, values, y, len(labels.names), options, progress)
    more, of = [], []
    for label, count in missing.items():
        made = new_rows(generator, values[y == label], label, count)
        dropped["drawn"] += made.drawn
        dropped["atypical"] += made.atypical
        dropped["copies"] += made.copies
        dropped["kept"] += len(made.values)
        more.append(matrix_of(columns, made.values, values))
        of.append(np.full(len(made.values), label))
    blocks = category_blocks(columns)
    library = None if blocks else smote_by_library(x, y, missing, options.seed)
    added = {
        "ours": (np.concatenate(more), np.concatenate(of)),
        "oversampling": oversampled(x, y, missing, rng),
        "smote": smote(x, y, missing, rng, blocks) if library is None else library,
    }
    sets |= {name: (np.concatenate([x, a]), np.concatenate([y, b]), None) for name, (a, b) in added.items()}
    return {name: sets[name] for name in METHODS}


def category_blocks(columns: Sequence[Column]) -> list[slice]:
    """The places of each category's indicators in `matrix_of`."""
    blocks, first = [], 0
    for column in columns:
        width = len(column.choices) if column.kind == "category" else 1
        if column.kind == "category":
            blocks.append(slice(first, first + width))
        first += width
    return blocks


def stand_in(
    matrix: Float[np.ndarray, "n d"], training: Float[np.ndarray, "f m"], columns: Sequence[Column]
) -> Float[np.ndarray, "n d"]:
    """Replace gaps by the medians of the training rows; an indicator's is its mean."""
    known = matrix_of(columns, training)
    centre = np.array([np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else 0.0 for c in known.T])
    for block in category_blocks(columns):
        own = known[:, block]
        shown = own[~np.isnan(own[:, 0])]
        centre[block] = shown.mean(0) if len(shown) else 0.0
    return np.where(np.isnan(matrix), centre, matrix)


Judge = Callable[..., Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n k"]]]


def available_judges() -> tuple[dict[str, Judge], list[str]]:
    """Return the classifiers that can be had, and what should be said of others."""
    judges, notes = {"random_forest": forest}, []
    try:
        import xgboost  # noqa: F401

        judges["xgboost"] = boosted
    except ImportError:
        notes.append("XGBoost is not installed: pip install 'typicality[tabular]'")
    try:
        import imblearn  # noqa: F401
    except ImportError:
        notes.append("imbalanced-learn is not installed, SMOTE is our own: pip install 'typicality[tabular]'")
    return judges, notes


def forest(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A random forest of 200 trees."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(TREES, random_state=seed, n_jobs=1).fit(x, y, weight)
    return lambda rows: _spread(model.predict_proba(rows), model.classes_)


def boosted(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """XGBoost with 200 rounds, depth 6, rate 0.1."""
    from xgboost import XGBClassifier

    classes, places = np.unique(y, return_inverse=True)
    model = XGBClassifier(n_estimators=200, max_depth=6, learning_rate=0.1, random_state=seed, n_jobs=1)
    model.fit(x, places, sample_weight=weight)
    return lambda rows: _spread(model.predict_proba(rows), classes)


def _spread(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probabilities (n, k) with a column for every code up to the largest class."""
    wide = np.zeros((len(probabilities), int(classes.max()) + 1))
    wide[:, classes] = probabilities
    return wide


def measures(
    probabilities: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"], rare: Sequence[int]
) -> dict[str, float]:
    """Return precision, recall, F1 and area under the precision-recall curve, as the mean over rare labels."""
    predicted = probabilities.argmax(1)
    rows = []
    for label in rare:
        said, true = predicted == label, truth == label
        hits = int((said & true).sum())
        precision, recall = hits / max(1, int(said.sum())), hits / max(1, int(true.sum()))
        f1 = 2 * hits / max(1, int(said.sum() + true.sum()))
        rows.append((precision, recall, f1, average_precision(probabilities[:, label], true)))
    means = np.mean(rows, axis=0)
    return {name: float(v) for name, v in zip(("precision", "recall", "f1", "auprc"), means, strict=True)}
