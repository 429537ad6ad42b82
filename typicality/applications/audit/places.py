"""Things at a fixed place of the picture, found without a model: printed marks and printed text.

A *mark* is a window of the 64 x 64 copy that is the same in many images while what surrounds it differs: that is what
something pasted looks like, and what a style or a common subject does not. It must be rarer at other places of the
same images, which rules out backgrounds and textures. Whether it goes with a label is an exact test over groups.

*Text* need not be the same (a clock changes): cells in the upper and lower quarter in which thin strokes of high
contrast occur far more often than in the rest of the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import label as connected
from scipy.stats import binom, hypergeom, norm

from typicality.applications.audit.findings import EVIDENCE, REPORTED, Finding, severity_of, show
from typicality.applications.audit.images import STROKE_CELLS, THUMBNAIL, ImageFacts, cell_box

WINDOW, RING, STRIDE = 6, 3, 3
"""Side of a window, width of its surroundings and step, in pixels of the 64 x 64 copy."""
SAME = 14.0
"""RMS difference in levels of 255 up to which two windows show the same."""
SURROUNDINGS = 3.0
"""The surroundings of a mark differ at least so many times as much as the mark."""
ELSEWHERE = 0.25
"""A mark occurs at other places at most so often, as a share of its frequency at its own."""
PIVOTS = 400
COMMON = 0.05
"""Share of the images from which a mark that goes with no label is worth a line."""
MOST_IMAGES = 4000
"""Larger data sets are judged by so many images, one of each group and label first."""
LEAST = 5
"""Groups that must show a thing."""
PIVOTS_A_PLACE = 16
MOST_MARKS = 40

SAME_IMAGES = 0.5
"""Share of the fewer images from which two windows, or two places with text, are one thing."""

STROKES = 0.1
"""Share of a cell's pixels in strokes from which it may hold text."""
TEXT_SHARE, TEXT_EXCESS = 0.25, 0.12
TEXT_ROWS = (0, 1, 2, 3, 12, 13, 14, 15)


@dataclass(frozen=True)
class Mark:
    """The same thing at the same place: rows and columns in pixels of the 64 x 64 copy, (n,) who shows it.

    `pivot` is the image in which it was seen first.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    shown: np.ndarray
    pivot: int
    label: str | None
    precision: float
    p_value: float


def association(shown: np.ndarray, carries: np.ndarray, groups: np.ndarray) -> tuple[float, float, float, float]:
    """How a thing goes with a label: precision, excess, standard error of the excess, one-sided exact p-value.

    Groups count once, images of one group and the same side of the label as one. The excess is
    (precision - share of the label) / (1 - share of the label): 1 where only images of the label show it, 0 where it
    is as frequent as elsewhere; or, where that is more, the thing's frequency with the label minus that without. The
    p-value is hypergeometric (Fisher's exact test).
    """
    _, first = np.unique(np.stack([groups, carries.astype(groups.dtype)]), axis=1, return_index=True)
    unit = np.unique(np.stack([groups, carries.astype(groups.dtype)]), axis=1, return_inverse=True)[1].ravel()
    seen = np.bincount(unit, shown) > 0
    own = carries[first]
    total, n_own, n_seen, both = len(own), int(own.sum()), int(seen.sum()), int((seen & own).sum())
    share = n_own / total
    if n_seen == 0 or share in (0.0, 1.0):
        return 0.0, 0.0, 0.0, 1.0
    precision = both / n_seen
    smoothed = (both + 1) / (n_seen + 2)
    error = float(np.sqrt(smoothed * (1 - smoothed) / n_seen)) / (1 - share)
    p_value = float(hypergeom.sf(both - 1, total, n_own, n_seen))
    excess = (precision - share) / (1 - share)
    rates = both / n_own, (n_seen - both) / (total - n_own)
    if rates[0] - rates[1] > excess:
        excess = rates[0] - rates[1]
        error = float(np.sqrt(rates[0] * (1 - rates[0]) / n_own + rates[1] * (1 - rates[1]) / (total - n_own)))
    return precision, excess, error, p_value


def untold_labels(facts: ImageFacts, labels: Sequence[str], tests: int, least: int = LEAST) -> list[str]:
    """Labels of which nothing can be told, were it in all of their images and no others: they have too few groups.

    Parameters
    ----------
    tests : that the p-value of `association` is corrected for
    least : groups that must show a thing beside that of the image in which it was seen first
    """
    groups, untold = facts.groups, []
    for label in labels:
        carries = facts.carries(label)
        others = carries & (groups != groups[carries.argmax()])
        if len(np.unique(groups[others])) < least or association(others, carries, groups)[3] * tests > REPORTED:
            untold.append(label)
    return untold


def too_few_groups(facts: ImageFacts) -> bool:
    """Whether neither marks nor text can be found, whatever the pictures show."""
    return len(np.unique(facts.groups)) <= LEAST or len(_one_a_group_and_label(facts)) < 2 * LEAST


def too_few_for_text(facts: ImageFacts, labels: Sequence[str]) -> list[str]:
    """Labels that `text_findings` leaves out."""
    groups = facts.groups
    return [label for label in labels if len(np.unique(groups[facts.carries(label)])) < 2 * LEAST]


def fixed_marks(facts: ImageFacts, labels: Sequence[str]) -> list[Mark]:
    """Find marks: for each label those that go with it, and those that go with none.

    Every window of up to 400 images, spread over the labels, is compared with the same window of all images.
    """
    groups = facts.groups
    pivots = _pivots(facts, labels)
    if len(pivots) < 2 or len(facts) < 2 * LEAST:
        return []
    copies = facts.thumbnails.astype(np.float32)
    carries = np.stack([facts.carries(label) for label in labels], axis=1)
    kin = groups[pivots][:, None] == groups
    starts = range(0, THUMBNAIL - WINDOW + 1, STRIDE)
    tests = len(starts) ** 2 * len(pivots)
    everywhere = _windows_elsewhere(copies)
    found: list[Mark] = []
    for row in starts:
        for column in starts:
            inside = copies[:, row : row + WINDOW, column : column + WINDOW].reshape(len(facts), -1)
            close = (_rms(inside[pivots], inside) <= SAME) & ~kin
            counts = close.sum(1)
            rate = counts / len(facts)
            chosen = np.flatnonzero(counts >= LEAST)
            if not len(chosen):
                continue
            elsewhere = (_rms(inside[pivots[chosen]], everywhere) <= SAME).mean(1)
            rare = elsewhere <= ELSEWHERE * rate[chosen]
            order = np.argsort(-rate[chosen[rare]], kind="stable")[:PIVOTS_A_PLACE]
            for k, other in zip(chosen[rare][order], elsewhere[rare][order], strict=True):
                shown = np.flatnonzero(close[k])
                n_groups = len(np.unique(groups[shown]))
                if n_groups < LEAST or not _pasted(copies, row, column, int(pivots[k]), shown):
                    continue
                chance = float(binom.sf(n_groups - 1, len(np.unique(groups)), max(float(other), 1e-4)))
                if chance * tests <= REPORTED:
                    mask = close[k].copy()
                    mask[pivots[k]] = True
                    place = ((row, row + WINDOW), (column, column + WINDOW))
                    found.append(Mark(*place, mask, int(pivots[k]), None, 0.0, chance * tests))
    marks = _merged(found)
    named = [_with_label(mark, carries, groups, labels, len(marks)) for mark in marks]
    return [mark for mark in named if mark.label is not None or mark.shown.mean() >= COMMON]


def _with_label(mark: Mark, carries: np.ndarray, groups: np.ndarray, labels: Sequence[str], marks: int) -> Mark:
    """Name the label that a mark goes with, if any.

    Marks were found without a look at labels, so the test is over marks and labels only. The image that the mark was
    first seen in does not count.
    """
    without = mark.shown.copy()
    without[mark.pivot] = False
    tests = [association(without, carries[:, k], groups) for k in range(len(labels))]
    best = min(range(len(labels)), key=lambda k: tests[k][3])
    precision, _, _, p_value = tests[best]
    p_value *= marks * len(labels)
    if p_value > REPORTED:
        return mark
    return replace(mark, label=labels[best], precision=precision, p_value=p_value)


def _pivots(facts: ImageFacts, labels: Sequence[str]) -> np.ndarray:
    each = max(8, PIVOTS // max(1, len(labels)))
    chosen: set[int] = set()
    for label in labels:
        # ids are hashes, so the first are as good as random ones
        chosen.update(np.flatnonzero(facts.carries(label))[:each].tolist())
    return np.array(sorted(chosen))


def _rms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) root mean square difference of the rows of (n, d) and (m, d)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])


def _windows_elsewhere(copies: np.ndarray, most: int = 4000) -> np.ndarray:
    """(m, d) windows at random places of random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, len(copies), most)
    places = rng.integers(0, THUMBNAIL - WINDOW + 1, (most, 2))
    return np.stack(
        [copies[i, r : r + WINDOW, c : c + WINDOW].ravel() for i, (r, c) in zip(images, places, strict=True)]
    )


def _pasted(copies: np.ndarray, row: int, column: int, pivot: int, shown: np.ndarray) -> bool:
    """Whether the surroundings differ far more than the window itself, and more than SAME."""
    r0, r1 = max(0, row - RING), min(THUMBNAIL, row + WINDOW + RING)
    c0, c1 = max(0, column - RING), min(THUMBNAIL, column + WINDOW + RING)
    difference = (copies[shown, r0:r1, c0:c1] - copies[pivot, r0:r1, c0:c1]) ** 2
    inside = np.zeros((r1 - r0, c1 - c0), dtype=bool)
    inside[row - r0 : row - r0 + WINDOW, column - c0 : column - c0 + WINDOW] = True
    within = np.sqrt(difference[:, inside].mean())
    # at the edge of a larger mark a part of the ring belongs to it: the side that differs most decides
    sides = [
        difference[:, : row - r0], difference[:, row - r0 + WINDOW :],
        difference[:, :, : column - c0], difference[:, :, column - c0 + WINDOW :],
    ]  # fmt: skip
    around = max(float(np.sqrt(np.median(side.mean(axis=(1, 2, 3))))) for side in sides if side.size)
    whole = np.sqrt(((copies[shown] - copies[pivot]) ** 2).mean(axis=(1, 2, 3)))
    return bool(around >= max(SURROUNDINGS * within, 1.5 * SAME) and np.median(whole) >= 1.5 * SAME)


def _merged(found: Sequence[Mark]) -> list[Mark]:
    """Windows that the same images show, side by side or in one third of the picture, are one mark.

    It reaches as far as the windows that at least SAME_IMAGES of its images show. The MOST_MARKS commonest are kept.
    """
    marks = sorted(found, key=lambda m: (-int(m.shown.sum()), m.rows, m.columns))
    while True:
        merged: list[Mark] = []
        for mark in marks:
            place = _place(mark)
            for i, other in enumerate(merged):
                near = _gap(mark.rows, other.rows) <= STRIDE and _gap(mark.columns, other.columns) <= STRIDE
                if (near or place == _place(other)) and _shared(mark.shown, other.shown) >= SAME_IMAGES:
                    if mark.shown.sum() < SAME_IMAGES * other.shown.sum():
                        break  # what few of its images happen to show there says nothing of how far the mark reaches
                    rows = (min(mark.rows[0], other.rows[0]), max(mark.rows[1], other.rows[1]))
                    columns = (min(mark.columns[0], other.columns[0]), max(mark.columns[1], other.columns[1]))
                    merged[i] = replace(other, rows=rows, columns=columns)
                    break
            else:
                if len(merged) < MOST_MARKS:
                    merged.append(mark)
        if len(merged) == len(marks):
            return merged
        marks = merged  # again, for what has grown may have come near to another


def _place(mark: Mark) -> str:
    return place_name(mark.rows, mark.columns, THUMBNAIL)


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller of two sets (n,) bool that the other has too; neither is empty."""
    return float((a & b).sum() / min(a.sum(), b.sum()))


def _gap(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(a[0], b[0]) - min(a[1], b[1])


def mark_findings(facts: ImageFacts, labels: Sequence[str]) -> list[Finding]:
    """Marks as findings of the kind `same_place`."""
    findings = []
    facts = facts.subset(_one_a_group_and_label(facts)[:MOST_IMAGES])
    untold = len(untold_labels(facts, labels, len(labels))) == len(labels)
    for mark in fixed_marks(facts, labels):
        shown = np.flatnonzero(mark.shown)
        evidence = tuple(
            show(facts.images[i], cell_box(facts.images[i], mark.rows, mark.columns, THUMBNAIL), mark.label)
            for i in _one_a_group(facts, shown)[:EVIDENCE]
        )
        place = _place(mark)
        score, error = 0.0, 0.0
        share = len(shown) / len(facts)
        where = f"of {mark.label!r}" if mark.label else "of any label"
        if mark.label:
            carries = facts.carries(mark.label)
            _, score, error, _ = association(mark.shown, carries, facts.groups)
            share = float(mark.shown[carries].mean())
        findings.append(
            Finding(
                kind="same_place",
                severity=severity_of("same_place", score, mark.p_value) if mark.label else "low",
                title=f"the same mark {place} in {share:.0%} of the images {where}",
                explanation=f"{len(shown)} images show the same pixels {place}, while what surrounds them differs: "
                "something was pasted or printed there. "
                + (
                    f"{mark.precision:.0%} of them are labelled {mark.label!r}, so a model can learn the mark instead "
                    "of the content: remove or cover it, or balance it over labels."
                    if mark.label
                    else "Whether it goes with a label cannot be told in so few groups."
                    if untold
                    else "It goes with no label in particular, and does little harm while that stays so."
                ),
                labels=(mark.label,) if mark.label else (),
                score=score,
                standard_error=error,
                p_value=mark.p_value,
                evidence=evidence,
                identity=f"mark {place}",
                concerns=tuple(facts.images[i].image_id for i in shown),
                basis="images",
                details={
                    "method": "pixels",
                    "images": len(shown),
                    "share": round(share, 4),
                    "text_like": False,
                    "groups": sorted({facts.images[i].group for i in shown})[:50],
                },
            )
        )
    return findings


def text_findings(facts: ImageFacts, labels: Sequence[str]) -> list[Finding]:
    """Printed clocks and captions, as findings of the kind `same_place`: in a label's images, and in all."""
    findings = []
    shown = facts.strokes >= STROKES
    tests = len(TEXT_ROWS) * STROKE_CELLS * (len(labels) + 1)
    for label in (None, *labels):
        rows = np.ones(len(facts), dtype=bool) if label is None else facts.carries(label)
        chosen = np.array(_one_a_group(facts, np.flatnonzero(rows)))
        if len(chosen) < 2 * LEAST:
            continue
        p_values, share = _text_cells(shown[chosen])
        cells = (share >= TEXT_SHARE) & (p_values * tests <= LEVEL_TEXT)
        for blob in _blobs(cells, shown):
            finding = _text_finding(facts, shown, blob, label, p_values, tests)
            if finding is not None:
                findings.append(finding)
    return findings


LEVEL_TEXT = 0.01


def _blobs(cells: np.ndarray, shown: np.ndarray) -> list[np.ndarray]:
    """Connected cells, (16, 16) bool each; those in one third of the picture that the same images show are one."""
    numbers, n = connected(cells, structure=np.ones((3, 3)))
    blobs: list[np.ndarray] = []
    for number in range(1, n + 1):
        blob = numbers == number
        for i, other in enumerate(blobs):
            both = _with_text(shown, blob), _with_text(shown, other)
            if _cells_place(blob) == _cells_place(other) and all(map(np.any, both)) and _shared(*both) >= SAME_IMAGES:
                blobs[i] = blob | other
                break
        else:
            blobs.append(blob)
    return blobs


def _with_text(shown: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(n,) bool, the images in which half of the cells or more hold strokes."""
    return np.asarray(shown[:, cells].mean(1) >= 0.5)


def _span(cells: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns (start, end) that cover the cells."""
    where = np.argwhere(cells)
    (top, left), (bottom, right) = where.min(0), where.max(0) + 1
    return (int(top), int(bottom)), (int(left), int(right))


def _cells_place(cells: np.ndarray) -> str:
    return place_name(*_span(cells), STROKE_CELLS)


def _text_cells(shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(16, 16) p-value that strokes are more frequent in a cell than in the rest of the same images, and their share.

    The excess of each image is compared with 0 by a normal approximation; TEXT_EXCESS is taken off first, since no
    picture is equally busy everywhere. Cells of the middle rows are not tested.
    """
    share = shown.mean(0)
    excess = shown - shown.mean((1, 2), keepdims=True) - TEXT_EXCESS
    error = excess.std(0, ddof=1) / np.sqrt(len(shown))
    p_values = norm.sf(excess.mean(0) / np.maximum(error, 1e-6))
    tested = np.isin(np.arange(STROKE_CELLS), TEXT_ROWS)
    return np.where(tested[:, None], p_values, 1.0), share


def _text_finding(
    facts: ImageFacts, shown: np.ndarray, cells: np.ndarray, label: str | None, p_values: np.ndarray, tests: int
) -> Finding | None:
    if cells.sum() < 2:
        return None
    rows, columns = _span(cells)
    has = _with_text(shown, cells)
    place = place_name(rows, columns, STROKE_CELLS)
    p_value = min(1.0, float(p_values[cells].min()) * tests)
    score = error = 0.0
    if label is not None:
        carries = facts.carries(label)
        precision, score, error, p_label = association(has, carries, facts.groups)
        p_value = max(p_value, min(1.0, p_label * tests))
        if p_label * tests > REPORTED:
            return None
        share = float(has[carries].mean())
        meaning = f"{precision:.0%} of the images with such strokes there are labelled {label!r}"
    else:
        share = float(has.mean())
        meaning = "It may differ between cameras or sources and so give labels away"
    concerned = has & facts.carries(label) if label else has
    density = np.where(concerned, facts.strokes[:, cells].mean(1), 0)
    order = np.argsort(-density, kind="stable")
    best = _one_a_group(facts, [int(i) for i in order if density[i] > 0])
    return Finding(
        kind="same_place", severity=severity_of("same_place", score, p_value) if label else "low",
        title=f"printed text {place} in {share:.0%} of the images" + (f" of {label!r}" if label else ""),
        explanation=f"Thin strokes of high contrast, as of a printed clock, caption or logo, occur {place} in "
        f"{int(has.sum())} images, far more often than in the rest of the same images. {meaning}. Crop or cover it "
        "before training.",
        labels=(label,) if label else (), score=max(0.0, score), standard_error=error, p_value=p_value,
        evidence=tuple(show(facts.images[i], cell_box(facts.images[i], rows, columns, STROKE_CELLS), label)
                       for i in best[:EVIDENCE]),
        identity=f"text {place}",
        concerns=tuple(image.image_id for image, it in zip(facts.images, concerned, strict=True) if it),
        basis="images",
        details={
            "method": "strokes", "images": int(has.sum()), "share": round(share, 4), "text_like": True,
            "groups": sorted({facts.images[i].group for i in best})[:50], "n_groups": len(best),
        },
    )  # fmt: skip


def _one_a_group(facts: ImageFacts, rows: Sequence[int] | np.ndarray) -> list[int]:
    """The first of the rows in each group, in order."""
    first: dict[str, int] = {}
    for i in rows:
        first.setdefault(facts.images[i].group, int(i))
    return list(first.values())


def _one_a_group_and_label(facts: ImageFacts) -> list[int]:
    """The first image of each group and set of labels; the frames of one camera are no independent evidence."""
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    for i, image in enumerate(facts.images):
        first.setdefault((image.group, image.labels), i)
    return list(first.values())


def place_name(rows: tuple[int, int], columns: tuple[int, int], cells: int) -> str:
    """'at the top left', by thirds of the picture."""
    y, x = (rows[0] + rows[1]) / 2 / cells, (columns[0] + columns[1]) / 2 / cells
    wide = columns[1] - columns[0] > 0.7 * cells
    vertical = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    horizontal = "" if wide else "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    name = " ".join(part for part in (vertical, horizontal) if part)
    return f"at the {name}" if name else "in the middle"
