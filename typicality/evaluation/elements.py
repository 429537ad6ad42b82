"""Are mined elements worth more than other patches? Measured on held-out images, without any ground truth.

Elements of every label are patches of training images, from which rivals learn as our model did. They are searched in
images of held-out groups, which neither fine-tuning nor any rival has seen: the best match of an element in an image is
its detection there. Two measures, see coverage.py: the area under purity-coverage (Doersch et al., NIPS 2013), and the
accuracy of logistic regression that knows of an image only how well each element matches it. The regression is fitted
on one half of the held-out groups, and everything is measured on the other.

The same number of elements comes from each method:

- `ours`: mined elements, clustered: first of every cluster in order of rank, then second, and so on;
- `published`: the same from the published protocol, independent draws and k-means alone (detection.py);
- `random`: any patch of any training image of the label;
- `least typical`: patches with the lowest typicality, one of every k-means cluster in turn;
- `hog svm`: discriminative patches (rivals/patches.py);
- `gradcam`: best Grad-CAM boxes of a small CNN (rivals/gradcam.py), one of every k-means cluster in turn.

How an element is searched decides as much as the element does, so that there are several searches:

- `dift`, for every method: the patch that the element's detector likes best, a linear discriminant of this one
  example over DIFT features (`Whitening`). The prompt is the **null** prompt: that of an image's own label would tell
  the answer;
- `typicality`, for every method: the same patch, but it is worth how much more typical it is of the element's label
  than of the best other label, measured by the run's model with the same draws for all labels. It is the search that
  belongs to our elements, and other methods' elements gain by it as well;
- `hog` and `cnn`: the rivals' own detectors and features, trained on the labels as our model was.

With each seed a method draws its elements from twice as many of its best, and what is random in a rival is drawn anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from typicality.applications.audit.probe import fit_logistic
from typicality.config import Settings
from typicality.errors import InputError
from typicality.evaluation.coverage import (
    LEVELS,
    area,
    chance_area,
    group_weights,
    interval,
    purity_curve,
    purity_when_reached,
)
from typicality.evaluation.detection import DIFT, OURS, TYPICALITY, ElementSet, Workbench
from typicality.progress import SILENT, Progress
from typicality.run import open_finished
from typicality.scoring.noise import check_draws

RESAMPLES = 200
STYLES = {TYPICALITY: "-", DIFT: ":"}


@dataclass(frozen=True)
class Row:
    """One method in one space: means over seeds and 90% intervals (groups resampled, and spread of the seeds).

    Attributes
    ----------
    area : under purity-coverage; `chance_area` is that of permuted labels
    accuracy : of logistic regression on the detections, on held-out images
    area_difference, accuracy_difference : ours by its own search minus this row, over the same bootstrap samples
    area_same_search, accuracy_same_search : ours by the search of this row minus this row; None where ours has none
    elements : a label, on average
    coverage, purity : the curve: mean purity over seeds where each share of a label's held-out images is reached
    """

    method: str
    space: str
    area: float
    area_interval: tuple[float, float]
    chance_area: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    area_difference: tuple[float, float, float]
    accuracy_difference: tuple[float, float, float]
    area_same_search: tuple[float, float, float] | None
    accuracy_same_search: tuple[float, float, float] | None
    elements: float
    coverage: tuple[float, ...]
    purity: tuple[float, ...]


@dataclass(frozen=True)
class ElementsBenchmark:
    """The result of `evaluate elements`.

    Attributes
    ----------
    area_ours, accuracy_ours : of our elements by their own search, `typicality`
    area_margin, accuracy_margin : the same minus the best other method by any other search; above 0 is a win
    area_margin_same_search, accuracy_margin_same_search : the same minus the best other method by our own search: what
        the elements are worth without what the search is
    rows : every method and space
    chance : share of the most frequent label among the held-out images
    cnn_accuracy : of the whole CNN as a classifier on the held-out images, for orientation
    detector : whose DIFT features were compared
    n_training, n_fitting, n_held_out : images that elements came from, that matches were fitted on, and measured on
    paper_draws : draws an image of `published`
    draws : draws an image of the search by typicality
    built_on : the state of the run that was measured, see `RunDirectory.built_on`
    """

    dataset: str
    label: str
    area_ours: float
    accuracy_ours: float
    area_margin: float
    accuracy_margin: float
    area_margin_same_search: float
    accuracy_margin_same_search: float
    rows: list[Row]
    chance: float
    cnn_accuracy: float
    elements: int
    seeds: int
    n_held_out: int
    n_training: int
    n_fitting: int
    paper_draws: int
    draws: int
    detector: str
    warnings: list[str]
    seconds: float
    built_on: dict[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def elements(
    folder: Path,
    *,
    count: int = 20,
    seeds: int = 3,
    images: int = 4000,
    epochs: int = 15,
    paper_draws: int = 16,
    draws: int = 8,
    picture: Path | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> ElementsBenchmark:
    """Compare the elements of a mined run with rivals on held-out images.

    Parameters
    ----------
    folder : run directory
    count : elements a label and method
    seeds : how often elements are drawn and rivals trained
    images : training images, and held-out ones, at most
    epochs : of the CNN
    paper_draws : of the published protocol, which takes 100 of every image where this takes 16
    draws : of every image in which elements are searched, under every label; even
    picture : PNG of the purity-coverage curves
    settings : with what is to differ from those of the run, as another device

    Raises
    ------
    OutputError : when `folder` has not been mined, or the data set has images that it does not know.
    InputError : when nothing is held out, the run has folds, or a number is impossible.
    """
    started = time.monotonic()
    if min(count, seeds, images, epochs, paper_draws - 1) < 1:
        raise InputError("--elements, --seeds, --images and --epochs must be at least 1, and --paper-draws 2")
    check_draws(draws)
    run = open_finished(folder, "mine", settings, progress)
    with run.directory.lock():
        work = Workbench(run, images, progress, paper_draws, draws)
        sets = [made for seed in range(seeds) for made in work.element_sets(count, seed, epochs)]
        matches = work.matches(sets)
    rows, curves = compare(sets, matches, work)
    if picture is not None:
        draw_curves(curves, picture)
    mine = rows[0]
    rivals = [row for row in rows if row.method != OURS]
    alike = [row for row in rivals if row.space == TYPICALITY]
    others = [row for row in rivals if row.space != TYPICALITY]
    cnn = np.mean([work.cnn_accuracy(seed) for seed in range(seeds)])
    carried = work.truth(work.held_out)
    return ElementsBenchmark(
        dataset=run.dataset.name,
        label=run.dataset.label,
        area_ours=mine.area,
        accuracy_ours=mine.accuracy,
        area_margin=round(mine.area - max(r.area for r in others), 4),
        accuracy_margin=round(mine.accuracy - max(r.accuracy for r in others), 4),
        area_margin_same_search=round(mine.area - max(r.area for r in alike), 4),
        accuracy_margin_same_search=round(mine.accuracy - max(r.accuracy for r in alike), 4),
        rows=rows,
        chance=round(float(carried.mean(0).max()), 4),
        cnn_accuracy=round(float(cnn), 4),
        elements=count,
        seeds=seeds,
        n_held_out=len(work.held_out),
        n_training=len(work.making),
        n_fitting=len(work.fitting),
        paper_draws=paper_draws,
        draws=draws,
        detector=work.detector,
        warnings=work.warnings,
        seconds=round(time.monotonic() - started, 1),
        **run.directory.built_on("finetune", "mine"),
    )


# ------------------------------------------------------------------------------------------------- comparison


def compare(
    sets: Sequence[ElementSet], matches: Sequence[tuple[np.ndarray, np.ndarray]], work: Workbench
) -> tuple[list[Row], dict[tuple[str, str], np.ndarray]]:
    """Measure every set, and put the methods beside one another; ours comes first, by its own search.

    Returns
    -------
    rows, and the mean purity at each coverage of LEVELS by name of method and space
    """
    truth, targets = work.truth(work.held_out), work.truth(work.fitting)
    groups = [image.group for image in work.held_out]
    weights = group_weights(groups, np.random.default_rng(work.run.settings.seed), RESAMPLES)
    samples = [np.repeat(np.arange(len(groups)), w) for w in weights]
    single = np.flatnonzero(targets.sum(1) == 1)
    names = [image.group for image in work.fitting]
    measured: dict[tuple[str, str], list[Measured]] = {}
    for made, (fitting, held_out) in zip(sets, matches, strict=True):
        of = np.array([work.labels.index(p.label) for p in made.patches])
        reached = purity_when_reached(held_out, of, truth)
        model = fit_logistic(
            fitting[single], targets[single].argmax(1), [names[i] for i in single], work.run.settings.seed
        )
        right = truth[np.arange(len(truth)), model.predict(held_out)]
        chance = chance_area(held_out, of, truth, np.random.default_rng(made.seed), times=5)
        measured.setdefault((made.method, made.space), []).append(
            Measured(
                area(reached), float(right.mean()), chance, purity_curve(held_out, of, truth),
                len(of) / len(work.labels),
                np.array([area(purity_when_reached(held_out[i], of, truth[i])) for i in samples]),
                weights @ right / weights.sum(1),
            )
        )  # fmt: skip
    order = sorted(measured, key=lambda key: (key[0] != OURS, list(measured).index(key)))
    ours = {space: found for (method, space), found in measured.items() if method == OURS}
    rows = [_row(key, measured[key], ours[TYPICALITY], ours.get(key[1])) for key in order]
    return rows, {key: np.mean([x.curve for x in measured[key]], axis=0) for key in order}


@dataclass(frozen=True)
class Measured:
    """Measures of one set, and the same on bootstrap samples of the held-out groups (times,)."""

    area: float
    accuracy: float
    chance: float
    curve: np.ndarray
    elements: float
    areas: np.ndarray
    accuracies: np.ndarray


def _row(
    key: tuple[str, str], found: Sequence[Measured], ours: Sequence[Measured], alike: Sequence[Measured] | None
) -> Row:
    """`ours` by its own search, `alike` by that of this row."""

    def between(name: str, many: str, against: Sequence[Measured] | None = None) -> tuple[float, float, float]:
        values = np.array([getattr(m, name) for m in found])
        resampled = np.stack([getattr(m, many) for m in found], axis=1)
        if against is not None:
            values = np.array([getattr(m, name) for m in against]) - values
            resampled = np.stack([getattr(m, many) for m in against], axis=1) - resampled
        mean, low, high = interval(values, resampled)
        return round(mean, 4), round(low, 4), round(high, 4)

    covered, accuracy = between("area", "areas"), between("accuracy", "accuracies")
    return Row(
        method=key[0],
        space=key[1],
        area=covered[0],
        area_interval=covered[1:],
        chance_area=round(float(np.mean([m.chance for m in found])), 4),
        accuracy=accuracy[0],
        accuracy_interval=accuracy[1:],
        area_difference=between("area", "areas", ours),
        accuracy_difference=between("accuracy", "accuracies", ours),
        area_same_search=None if alike is None else between("area", "areas", alike),
        accuracy_same_search=None if alike is None else between("accuracy", "accuracies", alike),
        elements=round(float(np.mean([m.elements for m in found])), 2),
        coverage=tuple(np.round(LEVELS, 4).tolist()),
        purity=tuple(np.stack([m.curve for m in found]).mean(0).round(4).tolist()),
    )


def draw_curves(curves: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """PNG of purity against coverage, a line a method and space."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from typicality.store import write_whole

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(method for method, _ in curves))
    for (method, space), curve in curves.items():
        axes.plot(
            LEVELS, curve, label=f"{method}, by {space}", color=f"C{methods.index(method)}",
            linewidth=2.2 if method == OURS else 1.2, linestyle=STYLES.get(space, "--"),
        )  # fmt: skip
    axes.set(xlabel="coverage of the label's held-out images", ylabel="purity", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=120))
