"""From typicality maps to patches: the best boxes of every image, and the best of those for every label.

A patch scores the mean of T over its cells (Siglidis et al., ECCV 2024, section 3.2; METHOD.md, section 2). Maps are
streamed in any order: the result is the same, and memory grows with labels * per_label, not with the images.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from typicality.errors import SettingsError, TypicalityError
from typicality.mining.boxes import best_boxes, box_means, box_standard_errors, box_variances
from typicality.records import Box, ModelView, Patch, ScoreMap

BATCH = 256
"""Maps worked on at once; it bounds memory and changes no result."""


@dataclass(frozen=True)
class PatchSelection:
    """What is a patch, and how many are kept.

    Parameters
    ----------
    side : latent cells
    factor : model pixels a latent cell
    per_image : patches an image and label, disjoint
    per_label : patches a label
    share : at most this share of a label's candidates is kept (one at least). With little data the best
        `per_label` would otherwise be everything there is. Candidates number images * per_image, or fewer
        where an image has no room for per_image disjoint boxes.
    """

    side: int
    factor: int
    per_image: int = 5
    per_label: int = 1000
    share: float = 0.25

    def __post_init__(self) -> None:
        for name in ("side", "factor", "per_image", "per_label"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} of the patches must be at least 1, but is {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise SettingsError(f"mine.share must be above 0 and at most 1, but is {self.share}")

    def kept(self, candidates: int) -> int:
        """Number of patches that a label with so many candidates keeps."""
        return max(1, min(self.per_label, math.floor(self.share * candidates + 1e-9)))


def patch_side(model_size: int, setting: int | None, factor: int) -> int:
    """Side of a patch in latent cells.

    Parameters
    ----------
    model_size : short side of the image as the model sees it, in pixels
    setting : side in model pixels (`mine.patch`); None for a quarter of the short side at 64 px and less, an
        eighth at 512 px and more, and log-log-linear between
    factor : model pixels a latent cell

    Raises
    ------
    SettingsError : where the patch is larger than the image.
    """
    if setting is None:
        position = np.clip(np.log(model_size / 64) / np.log(512 / 64), 0, 1)
        setting = round(model_size * 2.0 ** -(2 + position))
    side = max(1, math.floor(setting / factor + 0.5))
    if side > model_size // factor:
        raise SettingsError(
            f"mine.patch = {setting} pixels is larger than the image that the model sees ({model_size} pixels "
            f"on its short side): set it to at most {model_size // factor * factor}"
        )
    return side


def top_patches(
    scores: Iterable[ScoreMap], selection: PatchSelection, size_of: Callable[[str], tuple[int, int]]
) -> dict[str, list[Patch]]:
    """Find the most typical patches of every label.

    Parameters
    ----------
    scores : one map for each image and each label it is to be mined for, in any order
    selection : what to keep
    size_of : image_id -> width and height of the original in pixels

    Returns
    -------
    label -> patches, best first; labels sorted. Equal scores: image_id, row, column ascending.

    Raises
    ------
    SettingsError : where the patch does not fit into a map.
    TypicalityError : where a map holds values that are not finite.
    """
    best: defaultdict[str, _Best] = defaultdict(lambda: _Best(selection.per_label))
    for batch in batches(scores):
        for label, candidate in _candidates(batch, selection):
            best[label].add(candidate)
    return {
        label: [_patch(label, c, selection, size_of) for c in best[label].sorted()[: selection.kept(best[label].seen)]]
        for label in sorted(best)
    }


class _Candidate(NamedTuple):
    """Sorts best first; `key` leaves nothing to chance."""

    score: float
    image_id: str
    row: int
    column: int
    standard_error: float
    view: ModelView

    @property
    def key(self) -> tuple[float, str, int, int]:
        return (-self.score, self.image_id, self.row, self.column)


@dataclass
class _Best:
    """The best `limit` candidates of a stream, in at most 2 * limit places."""

    limit: int
    seen: int = 0
    floor: float = -math.inf
    kept: list[_Candidate] = field(default_factory=list)

    def add(self, candidate: _Candidate) -> None:
        self.seen += 1
        if candidate.score < self.floor:
            return
        self.kept.append(candidate)
        if len(self.kept) >= 2 * self.limit:
            self.kept = self.sorted()
            self.floor = self.kept[-1].score

    def sorted(self) -> list[_Candidate]:
        return sorted(self.kept, key=lambda c: c.key)[: self.limit]


def batches(scores: Iterable[ScoreMap]) -> Iterator[list[ScoreMap]]:
    """Maps of one shape and with the same recorded squares, at most BATCH at once."""
    stream = iter(scores)
    while chunk := list(islice(stream, BATCH)):
        alike: defaultdict[tuple[tuple[int, ...], tuple[int, ...]], list[ScoreMap]] = defaultdict(list)
        for score in chunk:
            alike[score.typicality.shape, tuple(sorted(score.squares))].append(score)
        yield from alike.values()


def refuse_infinite(batch: Sequence[ScoreMap], means: np.ndarray) -> None:
    """Raise TypicalityError where a map of the batch has a box mean, (b, H, W), that is not finite."""
    for score, finite in zip(batch, np.isfinite(means).all(axis=(1, 2)), strict=True):
        if not finite:
            raise TypicalityError(
                f"the score map of image {score.image_id} for label {score.label!r} holds values that are not "
                "finite: score again with --dtype fp32"
            )


def _candidates(batch: list[ScoreMap], selection: PatchSelection) -> Iterator[tuple[str, _Candidate]]:
    """The best disjoint boxes of every map of a batch of one shape, with their labels."""
    maps = np.stack([score.typicality for score in batch])
    known = batch[0].squares
    sides = [selection.side] if selection.side in known else list(known)  # the others would not be read
    squares = {k: np.stack([score.squares[k] for score in batch]) for k in sides}
    draws = np.array([score.n_pairs for score in batch])
    means = box_means(maps, selection.side)
    refuse_infinite(batch, means)
    rows, columns, best = best_boxes(means, selection.side, selection.per_image)
    errors = np.sqrt(box_variances(maps, squares, draws, selection.side, means=means))
    for i, j in np.argwhere(np.isfinite(best)):
        score, row, column = batch[i], int(rows[i, j]), int(columns[i, j])
        error = float(np.float32(errors[i, row, column]))
        yield score.label, _Candidate(float(best[i, j]), score.image_id, row, column, error, score.view)


def _patch(
    label: str, found: _Candidate, selection: PatchSelection, size_of: Callable[[str], tuple[int, int]]
) -> Patch:
    box = box_of(found.view, found.row, found.column, selection.side, selection.factor, *size_of(found.image_id))
    return Patch(
        found.image_id,
        label,
        found.row,
        found.column,
        selection.side,
        box,
        typicality=found.score,
        standard_error=found.standard_error,
    )


def box_of(view: ModelView, row: int, column: int, side: int, factor: int, width: int, height: int) -> Box:
    """Pixels of the original (width x height) that a box of latent cells covers; one pixel at least."""
    cells = (column * factor, row * factor, (column + side) * factor, (row + side) * factor)
    x0, y0, x1, y1 = view.to_original(cells, width, height)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def rescored(patches: Mapping[str, list[Patch]], scores: Iterable[ScoreMap]) -> dict[str, list[Patch]]:
    """Give the patches the scores and errors that other maps hold at the same places, and sort them anew.

    With maps from **fresh** draws this removes the selection's inflation (the winner's curse). Patches whose image
    and label are not among `scores` keep what they have.
    """
    fresh: dict[_Place, Patch] = {}
    at = _by_image(patches)
    for score in scores:
        errors: dict[int, np.ndarray] = {}
        for patch in at.get(score.image_id, ()):
            if patch.label != score.label:
                continue
            if patch.side not in errors:
                errors[patch.side] = box_standard_errors(score, patch.side)
            error = float(errors[patch.side][patch.row, patch.column])
            fresh[_place(patch)] = replace(patch, typicality=_mean_at(score, patch), standard_error=error)
    return {
        label: sorted(
            (fresh.get(_place(p), p) for p in found), key=lambda p: (-p.typicality, p.image_id, p.row, p.column)
        )
        for label, found in patches.items()
    }


def with_specificity(
    patches: Mapping[str, list[Patch]], scores: Iterable[ScoreMap], labels_of: Callable[[str], Collection[str]]
) -> dict[str, list[Patch]]:
    """Fill in how much more typical each patch is of its label than, on average, of labels its image does not carry.

    Parameters
    ----------
    patches : label -> patches
    scores : maps of the patches' images for any labels, from the same draws; others are passed over
    labels_of : image_id -> the labels that the image carries

    Returns
    -------
    The same patches in the same order; specificity is NaN where no map of another label was seen. The score for the
    own label is read from `scores` too where it is there, so that both sides share their noise.
    """
    at = _by_image(patches)
    means: defaultdict[_Place, dict[str, float]] = defaultdict(dict)
    for score in scores:
        for patch in at.get(score.image_id, ()):
            means[_place(patch)][score.label] = _mean_at(score, patch)

    def filled(patch: Patch) -> Patch:
        by_label = means[_place(patch)]
        carried = labels_of(patch.image_id)
        others = [by_label[label] for label in sorted(by_label) if label != patch.label and label not in carried]
        own = by_label.get(patch.label, patch.typicality)
        return replace(patch, specificity=own - math.fsum(others) / len(others) if others else math.nan)

    return {label: [filled(patch) for patch in found] for label, found in patches.items()}


_Place = tuple[str, str, int, int, int]


def _place(patch: Patch) -> _Place:
    return patch.image_id, patch.label, patch.row, patch.column, patch.side


def _by_image(patches: Mapping[str, list[Patch]]) -> dict[str, list[Patch]]:
    result: defaultdict[str, list[Patch]] = defaultdict(list)
    for found in patches.values():
        for patch in found:
            result[patch.image_id].append(patch)
    return dict(result)


def _mean_at(score: ScoreMap, patch: Patch) -> float:
    rows, columns = slice(patch.row, patch.row + patch.side), slice(patch.column, patch.column + patch.side)
    return float(np.float32(score.typicality[rows, columns].mean(dtype=np.float64)))
