"""Which patches are the best of every label, when every look at an image costs UNet evaluations.

A few draws for every image first, then rounds of further draws where they may change the outcome: the mathematics
is in scoring/adaptive.py, this is its use on streams of maps. The rounds ask for maps through a function, so that a
run (shards on disk) and a benchmark (maps in memory) take the same decisions by the same code. Memory holds the
patches that may still be among the best, and sums; not maps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from scipy.special import ndtr

from typicality.dataset.split import unit_hash
from typicality.mining.boxes import PRIOR_DRAWS, best_boxes, box_means, box_variances
from typicality.mining.patches import PatchSelection, batches, box_of, refuse_infinite
from typicality.records import ModelView, Patch, ScoreMap
from typicality.scoring.adaptive import (
    FOLDS,
    FittedTrend,
    ScoreTrend,
    VarianceTrend,
    combine,
    inclusion,
    threshold_of,
)
from typicality.scoring.effort import Effort
from typicality.scoring.pooling import freedom, pooled, pooled_freedom
from typicality.scoring.scorer import Job

DECIDED = 0.05
"""A patch is decided where its chance to be among the best is below this, or above one minus this."""
ENOUGH = 60
"""Patches from which a trend of variances can be learned."""
LEAST_ODD = 0.1
"""Of the odd part's spread between boxes over its noise after the first pass, where so little of it shows."""
REACH = 4.0
"""Standard deviations by which a patch may be underestimated before it is forgotten."""


class Maps(Protocol):
    """Maps of one pass: `ScoreReader` on disk, a dictionary in a benchmark."""

    def __iter__(self) -> Iterator[ScoreMap]: ...

    def get(self, image_id: str, label: str) -> ScoreMap: ...


Ask = Callable[[int, int, Sequence[Job]], Maps]
"""(level from 1, draws, jobs) -> maps of these jobs, from draws that are independent of those of other levels.

Every image climbs the same levels, each with twice the draws of the one before; how far is decided round by round.
A level is asked for once for each image and label, but in several rounds for different images."""


@dataclass(frozen=True)
class Round:
    """What a round did, draws and maps in all, and the estimate after it. The first pass is a round too."""

    draws: int
    maps: int
    expected_overlap: float


@dataclass(frozen=True)
class Selected:
    """Patches by selection score, best first: `typicality` is the posterior mean, `standard_error` its deviation.

    Both serve selection only: they are inflated by it, and are replaced by scores from fresh draws.
    """

    patches: dict[str, list[Patch]]
    rounds: tuple[Round, ...]


# --------------------------------------------------------------------------------------------------- boxes


@dataclass(frozen=True)
class Boxes:
    """Every box of b maps of one shape.

    Attributes
    ----------
    score, even : (b, H, W) T, and the part of it that both signs of a noise share
    share : (b,) share of that part in the noise
    variance, shift : (b, H, W) own variance of the score, and D^2
    predictors : (b, H, W, 3) of the variance
    """

    score: np.ndarray
    even: np.ndarray
    share: np.ndarray
    variance: np.ndarray
    shift: np.ndarray
    predictors: np.ndarray

    @property
    def odd(self) -> np.ndarray:
        """(b, H, W) the part of the score that changes its sign with the noise."""
        return self.score - self.even


def boxes_of(batch: Sequence[ScoreMap], side: int) -> Boxes:
    """Read all boxes of maps that share a shape and recorded squares."""
    maps = np.stack([m.typicality for m in batch])
    squares = {k: np.stack([m.squares[k] for m in batch]) for k in batch[0].squares}
    units = np.array([m.n_pairs for m in batch])
    score = box_means(maps, side)
    refuse_infinite(batch, score)
    even = box_means(np.stack([m.typicality if m.even is None else m.even for m in batch]), side)
    share = np.array([share_of_even(m, side) for m in batch])
    with np.errstate(invalid="ignore"):
        own = box_variances(maps, squares, units, side, prior=0.0)
    shift = box_means(np.stack([m.shrinkage for m in batch]), side).astype(np.float64)
    loss = box_means(np.stack([m.null_loss for m in batch]), side).astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    image = np.where(np.isfinite(own), own, 0.0).mean(axis=(1, 2), keepdims=True)
    own = np.maximum(np.where(np.isfinite(own), own, 0.0), np.maximum(1e-4 * image, tiny))
    columns = (np.maximum(shift, 1e-12), np.broadcast_to(np.maximum(image, tiny), own.shape), np.maximum(loss, 1e-12))
    predictors = np.log(np.stack(columns, axis=-1))
    return Boxes(score.astype(np.float64), even.astype(np.float64), share, own, shift, predictors)


def share_of_even(score: ScoreMap, side: int) -> float:
    """Share of the even part in the noise of boxes of a side, which may lie between those that are recorded."""
    if score.even is None or score.even_share is None:
        return 1.0
    return float(np.interp(np.log(side), np.log(sorted(score.squares)), score.even_share))


def prior_set_of(image_id: str) -> int:
    """The set of images that an image belongs to when priors are cross-fitted."""
    return int(unit_hash(image_id, "prior") * FOLDS)


# --------------------------------------------------------------------------------------------------- prior


@dataclass
class Prior:
    """What the first pass says about the scores and variances of boxes in general, label by label.

    Most of the noise lies in the odd part of a score (scoring/estimator.py) and little of what boxes differ in: ranking
    weighs it by what its observed mean is worth, w = tau^2 / (tau^2 + v / n), and tends to the whole score with more
    units. `odd` is tau^2 / v for each label: the spread of the odd part between boxes over its noise in one unit.

    `side` in cells, `units` of the first pass, `even` the share of the even part in the noise. Fitted in two streams
    over the first pass: variances and shares, then scores.
    """

    side: int
    units: int = 0
    even: dict[str, float] = field(default_factory=dict)
    odd: dict[str, float] = field(default_factory=dict)
    trends: dict[str, list[FittedTrend]] = field(default_factory=dict)
    scores: dict[str, ScoreTrend] = field(default_factory=dict)

    def weigh(self, boxes: Boxes, i: int, label: str, units: int) -> tuple[np.ndarray, float]:
        """Return (H, W) ranking scores of map i, and their variance over that of plain scores, after so many units."""
        worth = units * self.odd[label]
        weight = worth / (1 + worth) if np.isfinite(worth) else 1.0
        even = self.even[label]
        return boxes.even[i] + weight * boxes.odd[i], even + weight**2 * (1 - even)

    @classmethod
    def fit(cls, first: Iterable[ScoreMap], side: int) -> Prior:
        """Fit to the maps of the first pass, which is iterated twice."""
        prior = cls(side)
        sums: defaultdict[str, list[VarianceTrend]] = defaultdict(lambda: [VarianceTrend(3) for _ in range(FOLDS)])
        totals: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(5))
        for batch in batches(first):
            boxes = boxes_of(batch, side)
            for i, score in enumerate(batch):
                prior.units = score.n_pairs
                odd, noise = boxes.odd[i], (1 - boxes.share[i]) * boxes.variance[i].mean()
                totals[score.label] += (1, boxes.shift[i].mean(), boxes.share[i], np.square(odd).mean(), noise)
                if score.n_pairs > 1:
                    rows = boxes.predictors[i].reshape(-1, 3), boxes.variance[i].ravel()
                    sums[score.label][prior_set_of(score.image_id)].add(*rows)
        degrees = float(freedom(prior.units))
        for label, parts in sums.items():
            others = [[p for j, p in enumerate(parts) if j != i] for i in range(FOLDS)]
            added = [sum(other[1:], other[0]) for other in others]
            if all(one.n > 0 for one in added):
                prior.trends[label] = [one.solve(degrees) for one in added]
        for label, total in totals.items():
            shift, share, square, noise = total[1:] / total[0]
            prior.scores[label] = ScoreTrend(max(float(shift), 1e-12))
            prior.even[label] = float(share)
            prior.odd[label] = max(square / noise - 1, LEAST_ODD) / prior.units if noise > 0 else np.inf
        for batch in batches(first):
            boxes = boxes_of(batch, side)
            for i, score in enumerate(batch):
                if score.label in prior.trends:
                    fold = prior_set_of(score.image_id)
                    predicted = prior.trends[score.label][fold].predict(boxes.predictors[i])
                    ranked, factor = prior.weigh(boxes, i, score.label, prior.units)
                    own = factor * boxes.variance[i]
                    prior.scores[score.label].add(fold, boxes.shift[i], ranked, own, factor * predicted)
        return prior

    def posterior(self, score: ScoreMap, boxes: Boxes, i: int, first: Boxes, units: Sequence[int]) -> Posterior:
        """Combine what was observed of an image with the prior.

        Parameters
        ----------
        score, boxes, i : the pooled map, and its boxes at position i
        first : boxes of the first pass alone, at position i too: where the predictors are read
        units : of each pass that was pooled
        """
        degrees = pooled_freedom(units)
        fold = prior_set_of(score.image_id)
        ranked, factor = self.weigh(boxes, i, score.label, sum(units))
        trend = self.scores[score.label].without(fold) if score.label in self.trends else None
        if trend is None:  # too few images to learn from: the score as it is, moderated within its image
            own = factor * boxes.variance[i]
            variance = (PRIOR_DRAWS * own.mean() + degrees * own) / (PRIOR_DRAWS + degrees)
            if not degrees:
                variance = np.full_like(own, np.inf)
            return Posterior(ranked, np.sqrt(variance), PRIOR_DRAWS + degrees)
        fitted = self.trends[score.label][fold]
        at = self.scores[score.label].bins(first.shift[i])
        predicted = factor * fitted.predict(first.predictors[i]) * trend.scale[at]
        variance, both = fitted.moderate(factor * boxes.variance[i], degrees, predicted * self.units / sum(units))
        mean, deviation = combine(ranked, variance, trend.mean[at], trend.ratio[at] * predicted)
        return Posterior(mean, deviation, float(both))


@dataclass(frozen=True)
class Posterior:
    """(H, W) mean and deviation of every box's score, Student's t with so many degrees of freedom."""

    mean: np.ndarray
    deviation: np.ndarray
    freedom: float


# ---------------------------------------------------------------------------------------------- candidates

_FIELDS = ("mean", "deviation", "freedom", "place", "row", "column")
MEAN, DEVIATION, FREEDOM, PLACE, ROW, COLUMN = range(len(_FIELDS))


def candidates_of(posterior: Posterior, side: int, count: int) -> np.ndarray:
    """(n, 6) the best disjoint boxes of an image: mean, deviation, freedom, place, row, column.

    `place` is the chance that the box lies where it seems to: that no box overlapping it by less than half (of
    their union) is the better one. Both share the draws, so their errors correlate by the area that they share.
    """
    mean = posterior.mean.astype(np.float32)
    rows, columns, best = best_boxes(mean[None], side, count)
    found = np.isfinite(best[0])
    rows, columns = rows[0, found], columns[0, found]
    steps = side - np.abs(np.arange(1 - side, side))
    shared = np.multiply.outer(steps, steps) / (side * side)
    rival = (shared > 0) & (shared / (2 - shared) < 0.5)
    spread = np.sqrt(2 * (1 - shared), where=rival, out=np.ones_like(shared))
    margin = side - 1
    left = np.full((mean.shape[0] + 2 * margin, mean.shape[1] + 2 * margin), -np.inf)
    left[margin : margin + mean.shape[0], margin : margin + mean.shape[1]] = mean
    result = np.empty((len(rows), len(_FIELDS)))
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        window = left[row : row + 2 * side - 1, column : column + 2 * side - 1]
        deviation = float(posterior.deviation[row, column])
        behind = (mean[row, column] - window[rival]).min(initial=np.inf)
        if np.isinf(deviation):
            place = 0.5
        elif deviation > 0 and np.isfinite(behind):
            place = float(ndtr(((mean[row, column] - window) / (deviation * spread))[rival].min()))
        else:
            place = 1.0
        result[i] = (posterior.mean[row, column], deviation, posterior.freedom, place, row, column)
        window[:] = -np.inf
    return result


@dataclass
class Contenders:
    """The patches of one label that may still be among the best `limit`, in memory that the limit bounds."""

    limit: int
    seen: int = 0
    images: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, ModelView] = field(default_factory=dict)
    _room: int = 0
    _forgets: bool = False

    def add(self, image_id: str, view: ModelView, found: np.ndarray) -> None:
        self.seen += len(found)
        self.images[image_id], self.views[image_id] = found, view
        self._room = self._room or 8 * self.limit + 64
        if len(self.images) > self._room:
            self._forgets = True
            self._forget()
            self._room = 2 * len(self.images) + 64

    def _forget(self) -> None:
        """Drop images none of whose patches could come among the best 2 * limit."""
        means = np.sort(np.concatenate([a[:, MEAN] for a in self.images.values()]))
        floor = means[max(0, len(means) - 2 * self.limit)]
        reach = {name: (a[:, MEAN] + REACH * a[:, DEVIATION]).max(initial=-np.inf) for name, a in self.images.items()}
        gone = [name for name, upper in reach.items() if upper < floor]
        for name in gone:
            del self.images[name], self.views[name]

    def table(self) -> tuple[list[str], np.ndarray]:
        """Image of every patch, and (n, 6) patches, in an order that does not depend on the stream's.

        Nor does it depend on the stream's order which images are left: those that the last floor leaves, whether or not
        an earlier one had dropped them.
        """
        if self._forgets:
            self._forget()
        names = sorted(self.images)
        arrays = [self.images[name] for name in names]
        owners = [name for name, a in zip(names, arrays, strict=True) for _ in range(len(a))]
        return owners, np.concatenate(arrays) if arrays else np.zeros((0, len(_FIELDS)))


@dataclass(frozen=True)
class Standing:
    """Where the patches of a label stand: chance of each to be among the best, and which are chosen."""

    owners: list[str]
    patches: np.ndarray
    chance: np.ndarray
    chosen: np.ndarray

    @property
    def expected_overlap(self) -> float:
        """Expected share of the chosen that are truly among the best, where they seem to lie."""
        return float((self.chance * self.patches[:, PLACE])[self.chosen].mean()) if len(self.chosen) else 1.0

    def gains(self) -> dict[str, float]:
        """How much is undecided in each image: the variance of its patches' membership, and of their places."""
        p, place = self.chance, self.patches[:, PLACE]
        variance = p * (1 - p) + p * place * (1 - place)
        open_ = variance > DECIDED * (1 - DECIDED)
        result: defaultdict[str, float] = defaultdict(float)
        for i in np.flatnonzero(open_):
            result[self.owners[i]] += float(variance[i])
        return dict(result)


def standing(contenders: Contenders, kept: int) -> Standing:
    owners, patches = contenders.table()
    columns = patches[:, MEAN], patches[:, DEVIATION], patches[:, FREEDOM]
    chance = inclusion(*columns, threshold_of(*columns, kept))
    order = sorted(range(len(owners)), key=lambda i: (-patches[i, MEAN], owners[i], *patches[i, ROW:]))
    return Standing(owners, patches, chance, np.array(order[:kept], dtype=np.int64))


# -------------------------------------------------------------------------------------------------- rounds


def select(
    first: Maps, ask: Ask, selection: PatchSelection, effort: Effort, draws: int,
    size_of: Callable[[str], tuple[int, int]], say: Callable[[str], None] = lambda _: None,
    prior: Prior | None = None,
) -> Selected:  # fmt: skip
    """Choose the patches of every label.

    Parameters
    ----------
    first : maps of the first pass, each image under its own labels; iterated several times
    ask : gives the maps of further rounds
    selection : what is a patch, and how many are kept
    effort : how much work may be done
    draws : of the first pass, an image and label
    size_of : image_id -> width and height of the original in pixels
    prior : fitted to more images than are chosen from; by default to the maps of the first pass
    """
    prior = prior or Prior.fit(first, selection.side)
    labels: defaultdict[str, Contenders] = defaultdict(lambda: Contenders(selection.per_label))
    total = 0
    for batch in batches(first):
        boxes = boxes_of(batch, selection.side)
        for i, score in enumerate(batch):
            posterior = prior.posterior(score, boxes, i, boxes, [score.n_pairs])
            found = candidates_of(posterior, selection.side, selection.per_image)
            labels[score.label].add(score.image_id, score.view, found)
            total += 1
    kept = {label: selection.kept(c.seen) for label, c in labels.items()}
    budget, spent = effort.further * total, 0.0
    held: defaultdict[tuple[str, str], list[Maps]] = defaultdict(list)
    standings = {label: standing(labels[label], kept[label]) for label in sorted(labels)}
    rounds = [Round(draws * total, total, overlap_of(standings))]
    for number in range(1, effort.rounds + 1):
        if effort.overlap is not None and rounds[-1].expected_overlap >= effort.overlap:
            break
        levels = undecided(
            standings, lambda *key: len(held[key]), draws, budget * number / effort.rounds - spent, effort.rounds
        )
        if not levels:
            break
        before = spent
        for level, jobs in sorted(levels.items()):
            amount = draws * 2**level
            maps = ask(level + 1, amount, jobs)
            spent += amount * sum(len(job.labels) for job in jobs)
            for job in jobs:
                for label in job.labels:
                    held[job.image_id, label].append(maps)
                    every = [m.get(job.image_id, label) for m in (first, *held[job.image_id, label])]
                    labels[label].images[job.image_id] = _found(prior, every, selection)
        standings = {label: standing(labels[label], kept[label]) for label in sorted(labels)}
        scored = sum(len(job.labels) for jobs in levels.values() for job in jobs)
        rounds.append(Round(round(spent - before), scored, overlap_of(standings)))
        say(f"round {number}: further draws for {scored} maps; expected overlap {rounds[-1].expected_overlap:.2f}")
    patches = {
        label: [
            _patch(one.owners[i], label, one.patches[i], labels[label].views, selection, size_of) for i in one.chosen
        ]
        for label, one in standings.items()
    }
    return Selected(patches, tuple(rounds))


def undecided(
    standings: dict[str, Standing], level_of: Callable[[str, str], int], draws: int, budget: float, levels: int
) -> dict[int, list[Job]]:
    """What to score further within a budget of draws: level -> images and labels.

    A step up a level doubles the draws that an image has, so it settles about the same share of what is undecided at
    twice the cost of the step before: images come in order of what is undecided for each draw.
    """
    order = []
    for label, one in standings.items():
        for image_id, gain in one.gains().items():
            level = level_of(image_id, label)
            if level < levels:
                order.append((-gain / (draws * 2**level), image_id, label, level))
    wanted: defaultdict[int, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for _, image_id, label, level in sorted(order):
        budget -= draws * 2**level
        if budget < 0:
            break
        wanted[level][image_id].append(label)
    return {
        level: [Job(image_id, tuple(sorted(names))) for image_id, names in sorted(found.items())]
        for level, found in wanted.items()
    }


def _found(prior: Prior, every: Sequence[ScoreMap], selection: PatchSelection) -> np.ndarray:
    """The candidates of one image from all its passes, the first pass first."""
    together = pooled(every)
    posterior = prior.posterior(
        together, boxes_of([together], selection.side), 0, boxes_of(every[:1], selection.side),
        [m.n_pairs for m in every],
    )  # fmt: skip
    return candidates_of(posterior, selection.side, selection.per_image)


def overlap_of(standings: dict[str, Standing]) -> float:
    """Expected overlap over all labels, weighted by the number of patches chosen."""
    chosen = sum(len(one.chosen) for one in standings.values())
    return sum(one.expected_overlap * len(one.chosen) for one in standings.values()) / max(1, chosen)


def moderated(patches: Mapping[str, list[Patch]], scores: Iterable[ScoreMap]) -> dict[str, list[Patch]]:
    """Give rescored patches the standard errors that all of them together support, and their degrees of freedom.

    Parameters
    ----------
    patches : label -> patches, whose scores come from `scores`
    scores : maps of the fresh draws; those of other images and labels are passed over

    The variance of a few units is shrunk towards a trend over all patches (`VarianceTrend`). With fewer than
    ENOUGH patches errors stay as they are, moderated within their image, with the freedom that this has.
    """
    places: defaultdict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for label, found in patches.items():
        for i, patch in enumerate(found):
            places[patch.image_id, label].append((label, i))
    own: dict[tuple[str, int], tuple[float, int, np.ndarray]] = {}
    for score in scores:
        here = places.get((score.image_id, score.label), ())
        boxes: dict[int, Boxes] = {}
        for label, i in here:
            patch = patches[label][i]
            if patch.side not in boxes:
                boxes[patch.side] = boxes_of([score], patch.side)
            at = (0, patch.row, patch.column)
            own[label, i] = (
                float(boxes[patch.side].variance[at]), score.n_pairs, boxes[patch.side].predictors[at]
            )  # fmt: skip
    known = sorted(key for key, (_, units, _) in own.items() if units > 1)
    result = {label: list(found) for label, found in patches.items()}
    if not known:
        return result
    variance = np.array([own[key][0] for key in known])
    units = np.array([own[key][1] for key in known])
    degrees = freedom(units)
    if len(known) < ENOUGH:
        for (label, i), d in zip(known, degrees, strict=True):
            result[label][i] = replace(result[label][i], freedom=PRIOR_DRAWS + float(d))
        return result
    predictors = np.stack([own[key][2] for key in known])
    trend = VarianceTrend(predictors.shape[1])
    trend.add(predictors, variance)
    fitted = trend.solve(float(degrees.mean()))
    predicted = fitted.predict(predictors)
    predicted *= variance.sum() / predicted.sum()
    values, both = fitted.moderate(variance, degrees, predicted)
    for (label, i), value, d in zip(known, values, both, strict=True):
        result[label][i] = replace(result[label][i], standard_error=float(np.float32(value**0.5)), freedom=float(d))
    return result


def _patch(
    image_id: str, label: str, found: np.ndarray, views: dict[str, ModelView], selection: PatchSelection,
    size_of: Callable[[str], tuple[int, int]],
) -> Patch:  # fmt: skip
    row, column = int(found[ROW]), int(found[COLUMN])
    box = box_of(views[image_id], row, column, selection.side, selection.factor, *size_of(image_id))
    return Patch(
        image_id, label, row, column, selection.side, box, typicality=float(found[MEAN]),
        standard_error=float(found[DEVIATION]), freedom=float(found[FREEDOM]),
    )  # fmt: skip
