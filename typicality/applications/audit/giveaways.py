"""What predicts the label without looking at the content: size, file, brightness.

A shallow decision tree is cross-validated over groups; its balanced accuracy, in which every label counts the same and
so does every group of a label, is compared with that on labels permuted over groups. Only what a tree of depth three
can say in a sentence is meant here, so the tree's most important measure is named.
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
from typicality.applications.audit.groups import clustered_error, even_weights, permute_by_group, tail_p_value
from typicality.applications.audit.images import FILE_MEASURES, TONE_MEASURES, ImageFacts

FAMILIES = (("file", FILE_MEASURES), ("tone", TONE_MEASURES))
DEPTH = 3
FOLDS = 5
PERMUTATIONS = 199
"""Of the labels over groups; a tail beyond the permutations is fitted by the normal distribution."""
MOST_ROWS = 4000
"""Images that trees are fitted to; where there are more, labels take turns, so that a rare one keeps its images."""
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
    findings, and the largest effect among those that are new: (balanced accuracy - chance) / (1 - chance); 0 where
    there is none, None where nothing could be tested
    """
    findings, effects = [], []
    for family, names in FAMILIES:
        result = predict(facts, {name: facts.measures[name] for name in names}, labels, seed)
        if result is None:
            continue
        effect, error, p_value, importance, classes, accuracy = result
        p_value = min(1.0, p_value * len(FAMILIES))
        effects.append(0.0)
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
        if not known.knows(finding):
            effects[-1] = effect
        findings.append(finding)
    return findings, max(effects, default=None)


def predict(
    facts: ImageFacts, measures: Mapping[str, np.ndarray], labels: Sequence[str], seed: int
) -> tuple[float, float, float, dict[str, float], list[str], float] | None:
    """Cross-validated effect, its error, permutation p-value, importances, labels, balanced accuracy; None if too few.

    Images with several labels do not take part. Labels are permuted over groups, since images of one group are alike.
    Too few are also groups whose permutations leave all labels in place so often that no accuracy could be significant.
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
        turn = np.zeros(len(rows))
        for label in classes:
            own = names[rows] == label
            turn[own] = rng.permutation(own.sum())
        rows = np.sort(rows[np.argsort(turn, kind="stable")[:MOST_ROWS]])
    y = np.array([classes.index(name) for name in names[rows]])
    x = np.stack([values[single][rows] for values in measures.values()], axis=1)
    if not (x != x[0]).any():
        return 0.0, 0.0, 1.0, dict.fromkeys(measures, 0.0), classes, 1 / len(classes)
    group = groups[rows]
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, group))
    hits = _hits(x, y, group, folds)
    chance, weights = 1 / len(classes), even_weights(y, group)
    recalls = np.bincount(y, weights * hits)
    accuracy = float(recalls.mean())
    error = clustered_error(weights * (hits - recalls[y]) / len(classes), group)
    permuted, in_place = [], 0
    for _ in range(PERMUTATIONS if len(rows) <= 1000 else PERMUTATIONS // 4):
        shuffled = permute_by_group(y, group, rng)
        in_place += bool((shuffled == y).all())
        found = even_weights(shuffled, group) * _hits(x, shuffled, group, folds)
        permuted.append(float(found.sum() / len(np.unique(shuffled))))
    if in_place and (1 + in_place) / (1 + len(permuted)) * len(FAMILIES) > REPORTED:
        return None
    p_value = tail_p_value(accuracy, np.array(permuted))
    tree = _tree().fit(x, y, sample_weight=weights)
    importance = dict(zip(measures, (float(v) for v in tree.feature_importances_), strict=True))
    scale = 1 - chance
    return (accuracy - chance) / scale, error / scale, p_value, importance, classes, accuracy


def _tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=3, random_state=0)


def _hits(
    x: np.ndarray, y: np.ndarray, group: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """(n,) float, whether each row's label was found by a tree that had not seen its group."""
    hits = np.zeros(len(y))
    for train, test in folds:
        tree = _tree().fit(x[train], y[train], sample_weight=even_weights(y[train], group[train]))
        hits[test] = tree.predict(x[test]) == y[test]
    return hits


def _extremes(facts: ImageFacts, measure: str, classes: Sequence[str]) -> list[int]:
    """Two typical images of each label: nearest to its median of the measure, at most EVIDENCE in all."""
    values, found = facts.measures[measure], []
    for label in classes[: EVIDENCE // 2]:
        rows = np.flatnonzero(facts.carries(label))
        near = np.argsort(np.abs(values[rows] - np.median(values[rows])), kind="stable")
        found += [int(i) for i in rows[near[:2]]]
    return found
