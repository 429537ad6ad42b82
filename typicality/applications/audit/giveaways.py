"""What predicts the label without looking at the content: size, file, brightness.

A shallow decision tree is cross-validated over groups; its balanced accuracy is compared with that on permuted labels.
Only what a tree of depth three can say in a sentence is meant here, so the tree's most important measure is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from typicality.applications.audit.findings import (
    EVIDENCE,
    NO_BASELINE,
    REPORTED,
    Baseline,
    Finding,
    severity_of,
    show,
)
from typicality.applications.audit.images import FILE_MEASURES, TONE_MEASURES, ImageFacts

DEPTH = 3
FOLDS = 5
PERMUTATIONS = 199
"""Of the labels over groups; a tail beyond the permutations is fitted by the normal distribution."""
MOST_ROWS = 4000
LEAST = 10
"""Images a label must have to take part."""
SMALLEST = 0.1
"""Effects below this are not reported, however significant."""


def giveaway_findings(
    facts: ImageFacts, labels: Sequence[str], seed: int = 0, known: Baseline = NO_BASELINE
) -> tuple[list[Finding], float | None]:
    """Look for image-level giveaways among the file's measures and among the tones.

    Returns
    -------
    findings, and the largest effect: (balanced accuracy - chance) / (1 - chance), None where nothing could be tested;
    0 for what the baseline knows
    """
    findings, effects = [], []
    for family, names in (("file", FILE_MEASURES), ("tone", TONE_MEASURES)):
        result = predict(facts, {name: facts.measures[name] for name in names}, labels, seed)
        if result is None:
            continue
        effect, error, p_value, importance, classes, accuracy = result
        effects.append(max(effect, 0.0))
        if p_value > REPORTED or effect < SMALLEST:
            continue
        best = max(importance, key=lambda name: importance[name])
        severity = severity_of("giveaway", effect, p_value)
        meaning = (
            "What a file is like should say nothing about its label; a model may learn it instead of the content. "
            "Write all images with the same size, format and quality, or find out why they differ."
            if family == "file"
            else "That may be what the labels mean, or an accident of how the images were taken: look at the examples."
        )
        if family == "tone" and severity == "high":
            severity = "medium"  # brightness is part of what an image shows, and often rightly tells the label
        finding = Finding(
            kind="giveaway",
            severity=severity,
            title=f"{best.replace('_', ' ')} alone helps to tell the label" if len(importance) else "giveaway",
            explanation=f"A decision tree of depth {DEPTH} over {', '.join(names).replace('_', ' ')} finds the "
            f"label with a balanced accuracy of {accuracy:.0%} on groups it has not seen; chance is "
            f"{1 / len(classes):.0%}. Most of it comes from {best.replace('_', ' ')}. {meaning}",
            labels=(),
            score=effect,
            standard_error=error,
            p_value=p_value,
            evidence=tuple(show(facts.images[i]) for i in _extremes(facts, best, classes)),
            identity=family,
            details={
                "balanced_accuracy": round(accuracy, 4),
                "chance": round(1 / len(classes), 4),
                "importance": {name: round(value, 3) for name, value in importance.items() if value > 0},
                "median": {c: round(float(np.median(facts.measures[best][facts.carries(c)])), 3) for c in classes},
            },
        )
        if known.knows(finding):
            effects[-1] = 0.0
        findings.append(finding)
    return findings, max(effects, default=None)


def predict(
    facts: ImageFacts, measures: Mapping[str, np.ndarray], labels: Sequence[str], seed: int
) -> tuple[float, float, float, dict[str, float], list[str], float] | None:
    """Cross-validated effect, its error, permutation p-value, importances, labels, balanced accuracy; None if too few.

    Images with several labels do not take part. Labels are permuted over groups, since images of one group are alike.
    """
    single = [i for i, image in enumerate(facts.images) if len(image.labels) == 1]
    names = np.array([facts.images[i].labels[0] for i in single], dtype=str)
    groups = facts.groups[single]
    classes = [
        label for label in labels if (names == label).sum() >= LEAST and len(np.unique(groups[names == label])) >= FOLDS
    ]
    if len(classes) < 2:
        return None
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(np.isin(names, classes))
    if len(rows) > MOST_ROWS:
        rows = np.sort(rng.choice(rows, MOST_ROWS, replace=False))
    y = np.array([classes.index(name) for name in names[rows]])
    x = np.stack([values[single][rows] for values in measures.values()], axis=1)
    if not (x != x[0]).any():
        return 0.0, 0.0, 1.0, dict.fromkeys(measures, 0.0), classes, 1 / len(classes)
    group = groups[rows]
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, group))
    hits = _hits(x, y, folds)
    chance = 1 / len(classes)
    recalls = [hits[y == k] for k in range(len(classes))]
    accuracy = float(np.mean([r.mean() for r in recalls]))
    error = float(np.sqrt(sum(r.var() / len(r) for r in recalls)) / len(classes))
    permuted = []
    for _ in range(PERMUTATIONS if len(rows) <= 1000 else PERMUTATIONS // 4):
        shuffled = permute_by_group(y, group, rng)
        wrong = _hits(x, shuffled, folds)
        present = [k for k in range(len(classes)) if (shuffled == k).any()]
        permuted.append(float(np.mean([wrong[shuffled == k].mean() for k in present])))
    p_value = tail_p_value(accuracy, np.array(permuted))
    tree = _tree().fit(x, y)
    importance = dict(zip(measures, (float(v) for v in tree.feature_importances_), strict=True))
    scale = 1 - chance
    return (accuracy - chance) / scale, error / scale, p_value, importance, classes, accuracy


def _tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=3, class_weight="balanced", random_state=0)


def _hits(x: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(n,) float, whether each row's label was found by a tree that had not seen its group."""
    hits = np.zeros(len(y))
    for train, test in folds:
        hits[test] = _tree().fit(x[train], y[train]).predict(x[test]) == y[test]
    return hits


def permute_by_group(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute labels so that a group's labels stay together: groups of one size exchange theirs."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    members = np.split(order, starts[1:])
    by_size: dict[int, list[np.ndarray]] = {}
    for rows in members:
        by_size.setdefault(len(rows), []).append(rows)
    result = y.copy()
    for same in by_size.values():
        for into, source in zip(same, rng.permutation(len(same)), strict=True):
            result[into] = y[same[source]]
    return result


def tail_p_value(observed: float, permuted: np.ndarray) -> float:
    """One-sided permutation p-value; beyond the last permutation a normal tail, never above 1 / (permutations + 1)."""
    from scipy.stats import norm

    exact = (1 + (permuted >= observed).sum()) / (1 + len(permuted))
    if exact > 1 / (1 + len(permuted)):
        return float(exact)
    z = (observed - permuted.mean()) / max(float(permuted.std(ddof=1)), 1e-9)
    return float(min(exact, max(norm.sf(z) * 3, 1e-12)))  # three: the tail is only roughly normal


def _extremes(facts: ImageFacts, measure: str, classes: Sequence[str]) -> list[int]:
    """Two typical images of each label: nearest to its median of the measure, at most EVIDENCE in all."""
    values, found = facts.measures[measure], []
    for label in classes[: EVIDENCE // 2]:
        rows = np.flatnonzero(facts.carries(label))
        near = np.argsort(np.abs(values[rows] - np.median(values[rows])), kind="stable")
        found += [int(i) for i in rows[near[:2]]]
    return found
