"""`tabular impute --evaluate`: known cells are hidden at random and filled in again, by us and by what is usual.

Measures, over the hidden cells of a repeat: `nrmse`, the root of the mean squared error of numbers, each column's in
units of its standard deviation; `error_rate`, the share of wrong categories; `covered`, the share of numbers within
1.645 of our standard deviations (0.9 were right); `label_accuracy`, of a random forest that predicts the label from
the filled table, by three-fold cross-validation (`label_r2` where the label is a number). The label is seen by no
imputation.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from typicality.errors import DatasetError, SettingsError
from typicality.progress import SILENT, Progress
from typicality.tabular.columns import Column, column_of
from typicality.tabular.impute import ImputeOptions, fill
from typicality.tabular.judging import averaged, differences
from typicality.tabular.preparing import Prepared, labels_of_rows, prepare
from typicality.tabular.rivals import IMPUTERS, matrix_of

NORMAL_90 = 1.645
LEAST_KNOWN = 5
HIDE, REPEATS = 0.2, 3
TREES = 100


def check(hide: float, repeats: int) -> None:
    """Refuse shares and numbers of repeats that cannot work.

    Raises
    ------
    SettingsError
    """
    if not 0 < hide < 1:
        raise SettingsError(f"--hide must be above 0 and below 1, not {hide}")
    if repeats < 1:
        raise SettingsError(f"--repeats must be at least 1, not {repeats}")


def evaluate_imputation(
    table: Path, options: ImputeOptions, hide: float = HIDE, repeats: int = REPEATS, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure how well hidden cells are filled in; see the module.

    Parameters
    ----------
    hide : share of the known cells that is hidden, completely at random

    Raises
    ------
    InputError
    """
    started = time.monotonic()
    check(hide, repeats)
    found = prepare(table, options)
    judge = label_judge(found, options)
    records: dict[str, list[dict[str, float]]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for repeat in range(repeats):
        seed = options.seed + repeat
        hidden = hidden_cells(found.values, hide, seed)
        for method in ("ours", *IMPUTERS):
            began = time.monotonic()
            measured = one_repeat(found, hidden, method, replace(options, seed=seed), progress)
            seconds[method] += (time.monotonic() - began) / repeats
            records[method].append(measured[0] | judge(measured[1], seed))
    whole = averaged({"as it is": [judge(found.values, options.seed)]})["as it is"] if options.label else {}
    return {
        **found.summary(),
        "label": options.label,
        "hide": hide,
        "repeats": repeats,
        "methods": averaged(records),
        "differences": differences(records),
        "nothing_hidden": {name: value for name, value in whole.items() if not name.endswith("_se")},
        "seconds_a_fit": {method: round(value, 1) for method, value in seconds.items()},
        "options": options.as_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }


def hidden_cells(values: Float[np.ndarray, "n m"], share: float, seed: int) -> Bool[np.ndarray, "n m"]:
    """Return which known cells are hidden; a column keeps LEAST_KNOWN of its own.

    Raises
    ------
    DatasetError : where nothing can be hidden.
    """
    rng = np.random.default_rng(seed)
    known = ~np.isnan(values)
    hidden = known & (rng.random(values.shape) < share)
    for i in range(values.shape[1]):
        places = np.flatnonzero(hidden[:, i])
        spare = max(0, int(known[:, i].sum()) - LEAST_KNOWN)
        hidden[rng.permutation(places)[spare:], i] = False
    if not hidden.any():
        raise DatasetError("the table has too few known cells to hide some of them")
    return hidden


def one_repeat(
    found: Prepared, hidden: Bool[np.ndarray, "n m"], method: str, options: ImputeOptions, progress: Progress = SILENT
) -> tuple[dict[str, float], Float[np.ndarray, "n m"]]:
    """Fill in what is hidden by one method; return its measures and the filled table."""
    columns, truth = found.modelled, found.values
    values = np.where(hidden, np.nan, truth)
    if method == "ours":
        made = fill(columns, values, options, progress)
        covered = coverage(columns, truth, made.values, made.spread, hidden)
        return errors(columns, truth, made.values, hidden) | covered, made.values
    made_values = IMPUTERS[method](columns, values, options.seed)
    return errors(columns, truth, made_values, hidden), made_values


def errors(
    columns: Sequence[Column],
    truth: Float[np.ndarray, "n m"],
    made: Float[np.ndarray, "n m"],
    hidden: Bool[np.ndarray, "n m"],
) -> dict[str, float]:
    """Return `nrmse` of the hidden numbers and `error_rate` of the hidden categories, as far as there are any."""
    squares: list[np.ndarray] = []
    wrong: list[np.ndarray] = []
    for i, column in enumerate(columns):
        rows = hidden[:, i]
        if column.kind == "category":
            wrong.append(made[rows, i] != truth[rows, i])
        else:
            squares.append(((made[rows, i] - truth[rows, i]) / np.nanstd(truth[:, i])) ** 2)
    found = {}
    if squares:
        found["nrmse"] = float(np.sqrt(np.concatenate(squares).mean()))
    if wrong:
        found["error_rate"] = float(np.concatenate(wrong).mean())
    return found


def coverage(
    columns: Sequence[Column],
    truth: Float[np.ndarray, "n m"],
    made: Float[np.ndarray, "n m"],
    spread: Float[np.ndarray, "n m"],
    hidden: Bool[np.ndarray, "n m"],
) -> dict[str, float]:
    """Return the share of hidden numbers within 1.645 standard deviations of what was filled in."""
    numbers = [i for i, column in enumerate(columns) if column.kind != "category"]
    if not numbers:
        return {}
    inside = np.abs(made - truth) <= NORMAL_90 * np.where(np.isnan(spread), 0.0, spread) + 1e-12 * np.abs(truth)
    return {"covered": float(inside[:, numbers][hidden[:, numbers]].mean())}


def label_judge(found: Prepared, options: ImputeOptions) -> Any:
    """Return what measures a filled table by a random forest that predicts the label from it."""
    if options.label is None:
        return lambda _values, _seed: {}
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

    named = options.label in options.category
    column = column_of(options.label, found.sheet.cells[options.label], missing=options.missing, category=named)
    number = column.kind in ("number", "integer") and len(np.unique(column.values[~np.isnan(column.values)])) > 20
    codes = column.values if number else labels_of_rows(found.sheet, options.label, options.missing, named).codes
    rows = np.flatnonzero(~np.isnan(codes) if number else codes >= 0)
    if not number and np.bincount(codes[rows]).min() < 3:
        raise DatasetError(f"a label of {options.label!r} has fewer than 3 rows, too few for cross-validation")

    def judge(values: Float[np.ndarray, "n m"], seed: int) -> dict[str, float]:
        matrix = matrix_of(found.modelled, values)[rows]
        forest = RandomForestRegressor if number else RandomForestClassifier
        folds = (KFold if number else StratifiedKFold)(3, shuffle=True, random_state=seed)
        scores = cross_val_score(forest(TREES, random_state=seed, n_jobs=1), matrix, codes[rows], cv=folds)
        return {"label_r2" if number else "label_accuracy": float(scores.mean())}

    return judge
