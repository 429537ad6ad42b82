"""Is typicality estimated well, and at which cost? Every way of drawing against a gold standard of many draws.

On a sample of a run's images: the published protocol (independent draws, t uniform; Siglidis et al., ECCV 2024),
stratified antithetic draws in equal number for every image, and adaptive scoring at each precision, which takes its
decisions by the code of the pipeline (`mining.selection.select`). The gold standard draws independently of all of
them, under the image's own labels. Cost is counted in UNet evaluations an image, null prompt included; other labels,
which adaptive scoring also looks at for specificity, are not part of the comparison.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from typicality.config import Settings, key_of
from typicality.dataset.split import unit_hash
from typicality.errors import InputError
from typicality.mining.boxes import box_means
from typicality.mining.patches import PatchSelection, patch_side, rescored, top_patches
from typicality.mining.selection import Prior, moderated, select
from typicality.model.calibration import saving
from typicality.model.recipe import sharing_of
from typicality.model.validation import STRATA
from typicality.passes import by_fold, scorer, tilt_of, tilted
from typicality.pipeline import FIRST_PASS, FURTHER, REFINEMENT, first_pass
from typicality.progress import SILENT, Progress
from typicality.records import Patch, ScoreMap
from typicality.run import Run, existing_record, open_finished
from typicality.scoring.adaptive import quantile
from typicality.scoring.effort import PRECISION, Effort, preset
from typicality.scoring.estimator import moments_of
from typicality.scoring.noise import DrawPlan
from typicality.scoring.pooling import pooled
from typicality.scoring.scorer import Job
from typicality.store import write_arrays, write_whole

BLOCK = 50
"""Draws of the gold standard that are in memory at once; its error comes from the spread between blocks."""
DEFAULT = "standard"
UNIFORM = (4, 8, 16, 32)
"""Draws for every image, those of the first pass first."""
SHARE = 500 / 1135
"""Patches that are compared, at least, for each image of a label: the top 500 of the embedded data's labels."""


@dataclass(frozen=True)
class Row:
    """One way of drawing.

    Attributes
    ----------
    name, draws : the way, and draws an image and label (their mean, where they differ)
    evaluations : UNet evaluations an image; what serves both prompts of an input counts once in ours, and twice in the
        published protocol, which runs the whole UNet under each
    predictions : the same with whatever is shared counted for every prompt
    rank_correlation : Spearman, with the gold standard, of the scores of a fixed grid of boxes; mean over labels
    overlap : share of the gold standard's best patches that are found (same image, IoU at least 0.5, one to one)
    value : typicality of the patches that are found, by the gold standard, over that of its best: near misses cost
        little here; None where the best have none
    expected_overlap : what adaptive scoring believes it to be
    coverage_90, coverage_90_selected : share of the 90% intervals that hold the gold value: of the grid's boxes, and
        of the patches that the way selected, scored by fresh draws
    """

    name: str
    draws: float
    evaluations: float
    predictions: float
    rank_correlation: float
    overlap: float
    value: float | None = None
    expected_overlap: float | None = None
    coverage_90: float | None = None
    coverage_90_selected: float | None = None


@dataclass(frozen=True)
class EstimatorQuality:
    """The rows, and what they come to.

    Attributes
    ----------
    evaluations_ratio : UNet evaluations of adaptive scoring (standard) over those of the published protocol at its
        largest N
    overlap, overlap_paper : of these two
    coverage_90 : of the random boxes, with as many draws as winners get; coverage_90_selected : of the winners
    sharing : share of an evaluation that serves both prompts of an input, in this model
    sample, gold_draws, k : images; draws of the gold standard; best patches compared, label by label
    spread : standard deviation of a box's score in one antithetic pair, in equal bins of timesteps from low to high
    neyman_saving : share of the variance that draws allocated to the bins in proportion to their spread would save
        (Neyman 1934)
    tilt, tilt_saving : of the density of timesteps at which ours are drawn, and the share of the variance that it saves
    """

    evaluations_ratio: float
    overlap: float
    overlap_paper: float
    coverage_90: float
    coverage_90_selected: float
    sharing: float
    sample: int
    gold_draws: int
    k: dict[str, int]
    spread: list[float]
    neyman_saving: float
    tilt: float
    tilt_saving: float
    seconds: float
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Drawn:
    """Maps in memory, by image and label."""

    maps: dict[tuple[str, str], ScoreMap] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ScoreMap]:
        return iter(self.maps.values())

    def get(self, image_id: str, label: str) -> ScoreMap:
        return self.maps[image_id, label]


@dataclass
class Gold:
    """The gold standard: maps, and the standard error of every box's score, (H, W) by image and label."""

    maps: Drawn
    errors: dict[tuple[str, str], np.ndarray]
    draws: int


@dataclass(frozen=True)
class Cost:
    """What drawing costs an image of `jobs`, which share so much of an evaluation between the prompts of an input."""

    jobs: Sequence[Job]
    sharing: float

    def predictions(self, draws: int, jobs: Sequence[Job]) -> float:
        """Of so many draws for some of the images, null prompt included; a mean over all images."""
        return draws * sum(1 + len(job.labels) for job in jobs) / len(self.jobs)

    def evaluations(self, draws: int, jobs: Sequence[Job]) -> float:
        """The same with what is shared counted once."""
        spared = self.sharing * draws * sum(len(job.labels) for job in jobs) / len(self.jobs)
        return self.predictions(draws, jobs) - spared


Draw = Callable[[str, DrawPlan, Sequence[Job], Sequence[int]], list[Drawn]]
"""(purpose, plan, jobs, prefixes) -> for each prefix the maps of the first so many units."""


def estimator(
    folder: Path, images: int = 96, gold: int = 1000, paper: Sequence[int] = (4, 16, 100),
    picture: Path | None = None, progress: Progress = SILENT, settings: Settings | None = None,
) -> EstimatorQuality:  # fmt: skip
    """Compare the ways of drawing on a sample of a run's images.

    The gold standard is nearly all of the work. It is kept in the run's `scores`, block by block, so that a call that
    was stopped goes on there, and another one on the same images draws only what it compares. Nothing else is written.

    Parameters
    ----------
    folder : a run with a finished model and encoded images
    images : of all labels together, the same number of each, chosen by a hash of their content
    gold : draws of the gold standard
    paper : numbers N of draws of the published protocol
    picture : where a figure of overlap against evaluations goes (PNG, PDF, SVG by its suffix)
    settings : with what is to differ from those of the run, as another device

    Raises
    ------
    OutputError : when `folder` is no run, or the run has no model, or the data set has images that it does not know.
    InputError : for numbers that cannot be.
    """
    existing_record(folder)
    if gold < 2 * BLOCK:
        raise InputError(f"--gold needs at least {2 * BLOCK} draws, so that its own error is known, not {gold}")
    if not paper or min(paper) < 2:
        raise InputError("--paper needs numbers of at least 2 draws")
    run = open_finished(folder, "finetune", settings, progress)
    jobs = sample(run.labels_of, images)
    score = run.settings.score
    low, high = score.t_min, score.t_max
    plans = (DrawPlan(1, low, high), DrawPlan(1, low, high, antithetic=False, stratified=False))
    mine = run.settings.mine
    totals = [run.dataset.number_of(label) for label in run.dataset.labels]
    share = max(mine.per_label / max(1.0, float(np.mean(totals))), SHARE)
    selection = PatchSelection(
        side=patch_side(run.latents.short_side, mine.patch, run.base.factor), factor=run.base.factor,
        per_image=mine.per_image, per_label=10**9, share=min(1.0, share / mine.per_image),
    )  # fmt: skip
    sizes = {image.image_id: (image.width, image.height) for image in run.dataset}
    with run.directory.lock():
        result = compare(
            partial_draw(run, progress), jobs, selection, sizes.__getitem__, plans, gold, sorted(paper), progress,
            prior_of(run, selection.side), gold_folder(run, jobs), sharing_of(run.settings.finetune, run.base),
            partial_draw(run, progress, as_mining=True),
            float(np.mean([tilt_of(run, run.denoiser_of(fold)) for fold in range(run.folds)])),
        )  # fmt: skip
    if picture is not None:
        draw_figure(result, picture)
    return result


def prior_of(run: Run, side: int) -> Prior | None:
    """Return what adaptive scoring of the whole run knew of boxes in general, or None where it cannot be told.

    A run of thousands of images learns it from all of them, and the sample is too small to learn it from.
    """
    if run.settings.score.protocol != "adaptive" or run.first_draws != UNIFORM[0]:
        return None
    if run.directory.record["stages"].get("score", {}).get("state") != "done":
        return None
    return Prior.fit(first_pass(run), side)


def gold_folder(run: Run, jobs: Sequence[Job]) -> Path:
    """Return where the gold standard of these images is kept; the name covers all that it depends on."""
    images = [[job.image_id, *job.labels] for job in jobs]
    key = key_of([run.score_folder("gold", BLOCK).name, images, "openvino" if run.compiled_shapes else "torch"])
    return run.directory.path("scores", f"gold-{key}")


def sample(labels_of: Mapping[str, Sequence[str]], images: int) -> list[Job]:
    """Choose images by a hash of their ids, as many of each label as of the next."""
    of_label: defaultdict[str, list[str]] = defaultdict(list)
    for image_id in sorted(labels_of, key=lambda i: unit_hash(i, "estimator")):
        for label in labels_of[image_id]:
            of_label[label].append(image_id)
    chosen: set[str] = set()
    for place in range(max((len(ids) for ids in of_label.values()), default=0)):
        for label in sorted(of_label):
            if len(chosen) < images and place < len(of_label[label]):
                chosen.add(of_label[label][place])
    return [Job(image_id, tuple(labels_of[image_id])) for image_id in sorted(chosen)]


def partial_draw(run: Run, progress: Progress, as_mining: bool = False) -> Draw:
    """The function that draws with a run's model, for each image that of its fold.

    Parameters
    ----------
    as_mining : with more draws where scores are noisy; else timesteps are uniform
    """

    def draw(purpose: str, plan: DrawPlan, jobs: Sequence[Job], prefixes: Sequence[int]) -> list[Drawn]:
        found = [Drawn() for _ in prefixes]
        progress.start(f"draw ({purpose})", len(jobs))
        for fold, held_out in by_fold(run, jobs):
            measure = replace(scorer(run, purpose, 2, fold), plan=plan)
            measure = tilted(run, measure) if as_mining else measure
            alike: defaultdict[tuple[int, int, int], list[Job]] = defaultdict(list)
            for job in held_out:
                view = run.latents.view(job.image_id)
                alike[view.height, view.width, len(job.labels)].append(job)
            for (_, _, labels), same in sorted(alike.items()):
                size = measure.images_at_once(labels)
                for start in range(0, len(same), size):
                    part = same[start : start + size]
                    differences, shifts, losses, even = measure.unit_maps(part)
                    for i, job in enumerate(part):
                        for j, label in enumerate(job.labels):
                            for drawn, n in zip(found, prefixes, strict=True):
                                moments = moments_of(
                                    differences[i, j, :n], shifts[i, j, :n], losses[i, :n], even[i, j, :n]
                                )
                                drawn.maps[job.image_id, label] = ScoreMap(
                                    job.image_id, label, run.latents.view(job.image_id), n,
                                    moments.typicality.numpy(),
                                    {side: square.numpy() for side, square in moments.squares.items()},
                                    moments.shrinkage.numpy(), moments.null_loss.numpy(), moments.even.numpy(),
                                    moments.even_share.numpy(),
                                )  # fmt: skip
                    progress.advance(len(part))
        progress.finish()
        return found

    return draw


# ---------------------------------------------------------------------------------------------- comparison


def compare(
    draw: Draw, jobs: Sequence[Job], selection: PatchSelection, size_of: Callable[[str], tuple[int, int]],
    plans: tuple[DrawPlan, DrawPlan], gold: int, paper: Sequence[int], progress: Progress = SILENT,
    prior: Prior | None = None, keep: Path | None = None, sharing: float = 0.0, as_mining: Draw | None = None,
    tilt: float = 0.0,
) -> EstimatorQuality:  # fmt: skip
    """Compare the ways of drawing, given a function that draws.

    Parameters
    ----------
    draw : gives maps, from timesteps of uniform density; other purposes draw independently
    selection : its share decides how many patches of a label are compared
    plans : one stratified antithetic unit, and one independent draw
    prior : of adaptive scoring, where more images are known than the sample
    keep : a folder for the gold standard's blocks; those that it holds are not drawn again
    sharing : share of an evaluation that serves all prompts of an input
    as_mining, tilt : gives maps from timesteps of the density of mining, and the tilt of that; by default uniform
    """
    started = time.monotonic()
    ours, theirs = plans
    our_draw = as_mining or draw
    efforts = {name: preset(name, UNIFORM[0], sharing) for name in PRECISION}
    winner = efforts[DEFAULT].refine
    uniform = sorted({*UNIFORM, winner})
    cost = Cost(jobs, sharing)
    per_draw = cost.predictions(1, jobs)  # an image
    blocks = range(-(-gold // BLOCK))
    missing = BLOCK * sum(keep is None or not block_path(keep, block).exists() for block in blocks)
    fixed = missing + max(paper) + sum(uniform) + UNIFORM[0] + 2 * 2 * STRATA
    progress.say(
        f"{len(jobs)} images: {fixed * per_draw * len(jobs):,.0f} predictions, and at most "
        f"{sum(p.further + p.refine for p in efforts.values()) * per_draw * len(jobs):,.0f} for adaptive scoring"
    )
    first = our_draw(FIRST_PASS, replace(ours, units=UNIFORM[0] // 2), jobs, [UNIFORM[0] // 2])[0]
    seconds = time.monotonic() - started
    progress.say(f"about {seconds / UNIFORM[0] * fixed / 60:.0f} minutes")
    standard = gold_standard(draw, replace(theirs, units=BLOCK), jobs, first, blocks, selection.side, keep)
    best = top_patches(standard.maps, selection, size_of)
    grid = grid_patches(standard.maps, selection.side)
    bench = _Bench(standard, best, grid, selection, size_of)

    rows = []
    for n, maps in zip(paper, draw("published", replace(theirs, units=max(paper)), jobs, list(paper)), strict=True):
        rows.append(bench.row(f"published, N = {n}", maps, n, n * per_draw, n * per_draw))
    for n in uniform:
        maps = our_draw(f"uniform {n}", replace(ours, units=n // 2), jobs, [n // 2])[0]
        rows.append(bench.row(f"uniform, {n} draws", maps, n, cost.evaluations(n, jobs), n * per_draw))
    cache: dict[tuple[str, int], Drawn] = {}
    for name, effort in efforts.items():
        rows.append(_adaptive(name, effort, cost, our_draw, ours, jobs, first, bench, cache, progress, prior))

    spread = spread_by_timestep(draw, ours, jobs, selection.side)

    by_name = {row.name: row for row in rows}
    adaptive, published = by_name[f"adaptive, {DEFAULT}"], by_name[f"published, N = {max(paper)}"]
    return EstimatorQuality(
        evaluations_ratio=round(adaptive.evaluations / published.evaluations, 4),
        overlap=adaptive.overlap,
        overlap_paper=published.overlap,
        coverage_90=by_name[f"uniform, {winner} draws"].coverage_90 or 0.0,
        coverage_90_selected=adaptive.coverage_90_selected or 0.0,
        sharing=round(sharing, 4),
        sample=len(jobs),
        gold_draws=standard.draws,
        k={label: len(found) for label, found in best.items()},
        spread=[float(f"{s:.4g}") for s in spread],
        neyman_saving=round(float(1 - spread.mean() ** 2 / np.square(spread).mean()), 4),
        tilt=round(tilt, 4),
        tilt_saving=round(saving(spread, tilt), 4),
        seconds=round(time.monotonic() - started, 1),
        rows=rows,
    )


def gold_standard(
    draw: Draw, plan: DrawPlan, jobs: Sequence[Job], like: Drawn, blocks: Sequence[int], side: int, keep: Path | None
) -> Gold:
    """Draw independently, block by block; keep sums of maps, and of box scores and their squares.

    `like` has maps of the same images and labels, whose scores are replaced; see `compare` for `keep`.
    """
    totals: dict[tuple[str, str], np.ndarray] = {}
    boxes: dict[tuple[str, str], np.ndarray] = {}
    for block in blocks:
        for key, typicality in _block(draw, plan, jobs, block, keep).items():
            means = box_means(typicality, side).astype(np.float64)
            totals[key] = totals.get(key, 0.0) + typicality.astype(np.float64)
            boxes[key] = boxes.get(key, 0.0) + np.stack([means, means * means])
    maps, errors, n = Drawn(), {}, len(blocks)
    for key, total in totals.items():
        mean, square = boxes[key] / n
        errors[key] = np.sqrt(np.maximum(square - mean * mean, 0) / (n - 1))
        maps.maps[key] = replace(like.maps[key], typicality=(total / n).astype(np.float32), squares={})
    return Gold(maps, errors, n * plan.units)


def _block(
    draw: Draw, plan: DrawPlan, jobs: Sequence[Job], block: int, keep: Path | None
) -> dict[tuple[str, str], np.ndarray]:
    """The maps of one block of the gold standard, from the folder that keeps them where it has them."""
    path = None if keep is None else block_path(keep, block)
    if path is not None and path.exists():
        kept = load_file(path)
        return {(job.image_id, label): kept[f"{job.image_id}|{label}"] for job in jobs for label in job.labels}
    drawn = draw(f"gold {block}", plan, jobs, [plan.units])[0]
    found = {key: one.typicality for key, one in drawn.maps.items()}
    if path is not None:
        write_arrays(path, {f"{image_id}|{label}": maps for (image_id, label), maps in found.items()})
    return found


def block_path(keep: Path, block: int) -> Path:
    return keep / f"{block}.safetensors"


def spread_by_timestep(draw: Draw, plan: DrawPlan, jobs: Sequence[Job], side: int) -> np.ndarray:
    """Return for each of `STRATA` bins of timesteps the standard deviation of a box's score in one unit.

    It is taken from two independent drawings of the same images, so that it holds nothing of how images and places
    differ. The maps of units follow from those of the first so many, since a plan's timesteps ascend.
    """
    units = list(range(1, STRATA + 1))
    first, second = (draw(f"spread {k}", replace(plan, units=STRATA), jobs, units) for k in range(2))

    def unit(drawn: Sequence[Drawn], u: int, key: tuple[str, str]) -> np.ndarray:
        total = (u + 1) * drawn[u].maps[key].typicality.astype(np.float64)
        return total - u * drawn[u - 1].maps[key].typicality if u else total

    variances = [
        np.mean(
            [np.square(box_means(unit(first, u, key) - unit(second, u, key), side)).mean() / 2 for key in first[0].maps]
        )
        for u in range(STRATA)
    ]
    return np.sqrt(variances)


@dataclass(frozen=True)
class _Bench:
    """What every row is compared with."""

    gold: Gold
    best: dict[str, list[Patch]]
    grid: dict[str, list[Patch]]
    selection: PatchSelection
    size_of: Callable[[str], tuple[int, int]]

    def row(self, name: str, maps: Drawn, draws: float, evaluations: float, predictions: float) -> Row:
        found = top_patches(maps, self.selection, self.size_of)
        return Row(
            name=name, draws=draws, evaluations=round(evaluations, 2), predictions=round(predictions, 2),
            rank_correlation=self.correlation(maps), overlap=overlap(self.best, found), value=self.value(found),
            coverage_90=self.coverage(self.grid, maps),
        )  # fmt: skip

    def correlation(self, maps: Drawn) -> float:
        """Mean over labels of Spearman's correlation over the grid's boxes."""
        ours, truth = rescored(self.grid, maps), self.grid
        found = []
        for label, patches in truth.items():
            at = {(p.image_id, p.row, p.column): p.typicality for p in ours[label]}
            pairs = [(p.typicality, at[p.image_id, p.row, p.column]) for p in patches]
            found.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
        return round(float(np.mean(found)), 4)

    def score(self, patch: Patch) -> float:
        """Return the gold standard's score of a patch."""
        rows, columns = slice(patch.row, patch.row + patch.side), slice(patch.column, patch.column + patch.side)
        return float(self.gold.maps.get(patch.image_id, patch.label).typicality[rows, columns].mean())

    def value(self, found: dict[str, list[Patch]]) -> float | None:
        """Mean typicality of patches over that of the best, both by the gold standard."""
        reached, best = (
            np.mean([self.score(p) for patches in of.values() for p in patches]) for of in (found, self.best)
        )
        return round(float(reached / best), 4) if best > 0 else None

    def coverage(self, patches: dict[str, list[Patch]], maps: Drawn) -> float:
        """Share of patches whose 90% interval, from these maps, holds the gold value; gold's own error is added."""
        inside = []
        for label, found in moderated(rescored(patches, maps), maps).items():
            for patch in found:
                error = np.hypot(patch.standard_error, self.gold.errors[patch.image_id, label][patch.row, patch.column])
                inside.append(abs(patch.typicality - self.score(patch)) <= quantile(patch.freedom, 0.95) * error)
        return round(float(np.mean(inside)), 4)


def _adaptive(
    name: str, effort: Effort, cost: Cost, draw: Draw, plan: DrawPlan, jobs: Sequence[Job], first: Drawn, bench: _Bench,
    cache: dict[tuple[str, int], Drawn], progress: Progress, prior: Prior | None,
) -> Row:  # fmt: skip
    """Adaptive scoring at one precision, as the pipeline does it; draws that two precisions share are made once."""
    labels_of = {job.image_id: job.labels for job in jobs}
    held: defaultdict[tuple[str, str], list[ScoreMap]] = defaultdict(list)
    for job in jobs:
        for label in job.labels:
            held[job.image_id, label].append(first.get(job.image_id, label))
    spent = [(UNIFORM[0], list(jobs))]

    def fetch(purpose: str, draws: int, wanted: Sequence[Job]) -> Drawn:
        store = cache.setdefault((purpose, draws), Drawn())
        missing = [j for j in wanted if any((j.image_id, label) not in store.maps for label in j.labels)]
        if missing:
            whole = [Job(j.image_id, labels_of[j.image_id]) for j in missing]
            store.maps |= draw(purpose, replace(plan, units=draws // 2), whole, [draws // 2])[0].maps
        spent.append((draws, list(wanted)))
        return store

    def ask(level: int, draws: int, wanted: Sequence[Job]) -> Drawn:
        store = fetch(f"{FURTHER} {level}", draws, wanted)
        for job in wanted:
            for label in job.labels:
                held[job.image_id, label].append(store.get(job.image_id, label))
        return store

    chosen = select(first, ask, bench.selection, effort, UNIFORM[0], bench.size_of, progress.say, prior)
    winners: defaultdict[str, set[str]] = defaultdict(set)
    for label, patches in chosen.patches.items():
        for patch in patches:
            winners[patch.image_id].add(label)
    fresh = fetch(REFINEMENT, effort.refine, [Job(i, tuple(sorted(own))) for i, own in sorted(winners.items())])
    together = Drawn({key: pooled(maps) for key, maps in held.items()})
    units = sum(m.n_pairs for maps in held.values() for m in maps)
    return Row(
        name=f"adaptive, {name}", draws=round(2 * units / len(held), 2),
        evaluations=round(sum(cost.evaluations(*part) for part in spent), 2),
        predictions=round(sum(cost.predictions(*part) for part in spent), 2),
        rank_correlation=bench.correlation(together), overlap=overlap(bench.best, chosen.patches),
        value=bench.value(chosen.patches), expected_overlap=round(chosen.rounds[-1].expected_overlap, 4),
        coverage_90_selected=bench.coverage(chosen.patches, fresh),
    )  # fmt: skip


def grid_patches(maps: Drawn, side: int) -> dict[str, list[Patch]]:
    """Patches side by side over every map, with the map's scores: places that no one has chosen."""
    found: defaultdict[str, list[Patch]] = defaultdict(list)
    for one in maps:
        means = box_means(one.typicality, side)
        for row in range(0, means.shape[0], side):
            for column in range(0, means.shape[1], side):
                place = (one.image_id, one.label, row, column, side, (0, 0, 1, 1))
                found[one.label].append(Patch(*place, float(means[row, column]), 0.0))
    return dict(found)


def overlap(best: Mapping[str, Sequence[Patch]], found: Mapping[str, Sequence[Patch]]) -> float:
    """Share of the best patches that were found: same image and label, IoU of at least 0.5, one to one, best first."""
    hits = 0
    for label, patches in best.items():
        left: defaultdict[str, list[Patch]] = defaultdict(list)
        for patch in found.get(label, ()):
            left[patch.image_id].append(patch)
        for patch in patches:
            close = max(left[patch.image_id], key=lambda other: union_share(patch, other), default=None)
            if close is not None and union_share(patch, close) >= 0.5:
                left[patch.image_id].remove(close)
                hits += 1
    return round(hits / max(1, sum(len(patches) for patches in best.values())), 4)


def union_share(a: Patch, b: Patch) -> float:
    """Intersection over union of two patches of one side, in cells."""
    shared = max(0, a.side - abs(a.row - b.row)) * max(0, a.side - abs(a.column - b.column))
    return shared / (2 * a.side**2 - shared)


def draw_figure(result: EstimatorQuality, path: Path) -> None:
    """Overlap against UNet evaluations, a line a family."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    families = (("published", "o-", "#888888"), ("uniform", "s-", "#3b7dd8"), ("adaptive", "D-", "#d1495b"))
    for family, style, colour in families:
        rows = [row for row in result.rows if row.name.startswith(family)]
        axes.plot([r.evaluations for r in rows], [r.overlap for r in rows], style, color=colour, label=family)
        for row in rows:
            text = row.name.partition(", ")[2]
            axes.annotate(text, (row.evaluations, row.overlap), xytext=(4, -10), textcoords="offset points", size=7)
    axes.set_xscale("log")
    axes.set_xlabel("UNet evaluations an image")
    axes.set_ylabel(f"overlap of the best patches with {result.gold_draws} draws")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    suffix = path.suffix.lstrip(".") or "png"
    write_whole(path, lambda p: figure.savefig(p, format=suffix, dpi=150))
