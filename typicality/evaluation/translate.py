"""Translations against the truth: the same subject exists with the other label.

Subjects are groups (an emoji, a person, a place) of the data set's fixed held-out part that have an image of label A
and one of label B. The image of A is translated to B by models that have not seen the group, and compared with the
true image of B. Fixed before any result was seen:

- a subject counts where its two images differ (`DIFFERS`), and as *restyled rather than redrawn* where their edges
  align (`RESTYLED`): only there can a translation that keeps the subject come nearer to the truth;
- options are tuned, and the best method is chosen, on a part of the subjects that a hash sets apart; everything that
  is reported is of the others, so that its intervals are not of what was picked for being high;
- the judge of labels is a small CNN, trained on real images of the other groups; its held-out accuracy is reported
  beside that of the diffusion classifier, which must not judge its own work.

Distances are root mean squares: of pixels in [0, 1], of autoencoder latents, of Sobel edges. A reduction is
1 - mean distance after / mean distance before, over subjects; 0 is what leaving the image as it is gets.

Such a distance also falls when a picture is only blurred or loses contrast. Therefore controls that involve no model
(`controls.py`) are measured like the methods, with amounts from the tuning part; `over_best_control` is
1 - mean distance of the best method / mean distance of the best control, and above 0 the translation knows something of
the label. Every row also has distances that contrast cannot change: `pixels_correlation` and `edges_correlation`,
1 - the correlation with the truth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from typicality.applications.translate.methods import METHODS, Method, TranslateOptions, evaluations_of
from typicality.applications.translate.pictures import source_pixels, to_bytes, translated_pixels
from typicality.applications.translate.run import check_pair, translate_images
from typicality.config import Settings, key_of
from typicality.dataset import load_dataset
from typicality.dataset.split import unit_hash
from typicality.errors import DatasetError, InputError
from typicality.evaluation.controls import Control, tuned
from typicality.evaluation.likeness import (
    coarse_edges,
    edge_alignment,
    edges,
    own_is_nearest,
    rate_interval,
    reduction,
    reduction_interval,
    root_mean_square,
    uncorrelated,
)
from typicality.evaluation.rivals.gradcam import SmallCnn, cnn_probabilities, train_cnn
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.rescoring import batches, rival_labels, score_latents
from typicality.run import Run, open_finished
from typicality.store import write_arrays, write_whole

DIFFERS = 0.02
"""Root mean square difference of pixels in [0, 1] from which two designs count as different: less is hardly visible."""
RESTYLED = 0.45
"""Correlation of blurred edges, at the best shift, from which a design is restyled rather than redrawn.

Chosen on 400 training groups of the emoji of 2016 and 2024, without a translation: 0.25% of pairs of *different*
subjects reach it (their 99th percentile is 0.37), so that it is hardly ever chance, and 39% of the true pairs do."""
TUNING_SHARE = 1 / 3
"""Share of the subjects on which options are tuned; the others are the test."""
FLIPS_WANTED = 0.8
MARGIN = 1.645
"""Tuning looks for the largest reduction of distance, less what the flip rate is below FLIPS_WANTED and so many of its
standard errors: it is to hold for other subjects, too. One was too few: 0.87 on 76 subjects became 0.79 on 141."""
GRID: dict[Method, dict[str, tuple[float, ...]]] = {
    "delta": {"strength": (0.8,), "guidance": (8.0, 12.0, 16.0)},
    "pnp": {"strength": (1.0,), "guidance": (4.0, 7.0, 12.0), "inject": (0.5,)},
    "sdedit": {"strength": (0.45, 0.6, 0.75), "guidance": (7.0,)},
    "edit-friendly": {"strength": (0.8,), "guidance": (6.0, 10.0, 14.0)},
    "mean": {"strength": (0.7, 0.8), "guidance": (8.0, 12.0), "keep": (0.2, 0.4), "average": (0.0, 0.2)},
}
"""Values of the options that are tried, in all combinations. They lie around the best of a wider grid, on tuning
subjects of the emoji (reports/benchmarks)."""
CORRELATION = "pixels_correlation"
COMPARED = ("pixels", CORRELATION)
"""Distances by which the best method is compared with the best control; the latter is chosen for each."""
PURPOSE = "evaluate translate"
SHOWN = 8


@dataclass(frozen=True)
class Subjects:
    """Subjects whose two designs differ, of one shape: row i of everything is subject i.

    Attributes
    ----------
    source, truth : their images of A and of B
    before, wanted : (n, 3, H, W) pixels in [-1, 1] of the two
    restyled : (n,) bool
    """

    source: list[LabelledImage]
    truth: list[LabelledImage]
    before: Tensor
    wanted: Tensor
    restyled: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def part(self, rows: np.ndarray) -> Subjects:
        chosen = rows.tolist()
        return Subjects(
            [self.source[i] for i in chosen], [self.truth[i] for i in chosen], self.before[chosen],
            self.wanted[chosen], self.restyled[chosen],
        )  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """A classifier of real images, trained on groups that are not judged."""

    model: SmallCnn
    labels: tuple[str, ...]

    def says(self, pixels: Tensor) -> np.ndarray:
        """(n,) column of the likeliest label of (n, 3, H, W)."""
        return cnn_probabilities(self.model, list(pixels.float().numpy())).argmax(1)


@dataclass(frozen=True)
class Measured:
    """What is measured a subject, all (n,): is B by the judge, by the diffusion classifier, distances, kept subject."""

    flipped: np.ndarray
    flipped_diffusion: np.ndarray
    distances: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    pixels: Tensor


def evaluate_translate(
    folder: Path,
    source: str,
    target: str,
    methods: Sequence[Method] = METHODS,
    *,
    images: int | None = None,
    tune: bool = False,
    tune_images: int = 30,
    steps: int = 25,
    draws: int = 8,
    epochs: int = 12,
    picture: Path | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure methods of translation on held-out subjects of a run.

    Parameters
    ----------
    methods : of `typicality.applications.translate.methods.METHODS`
    images, tune_images : subjects of the test and of tuning, at most
    tune : choose strength, guidance, injection and what is kept of every method on the tuning part; else their
        defaults. Which method is the best is decided there either way
    steps, draws : sampler steps; UNet draws an image and label of the diffusion classifier
    epochs : of the judge's training
    picture : PNG of subjects, their translations and the truth
    settings : with what is to differ from the run's own: seed, device, precision

    Returns
    -------
    a JSON document; `label_flip_rate` (by the judge, all subjects) and `distance_reduction` (of pixels, restyled
    subjects) are of the best method, `over_best_control` compares it with the best control over the same subjects
    (null without a tuning part), `rows` has a row a method or control and subset with 90% bootstrap intervals over
    subjects, which of a single subject are null; those of flip rates hold Wilson's where all or no subjects flip or
    there are few.

    Raises
    ------
    OutputError, DatasetError, InputError
    """
    started = time.monotonic()
    for method in methods:
        TranslateOptions(method=method, steps=steps, draws=draws).resolved()
    run = open_finished(folder, "finetune", settings, progress)
    everyone, gallery = find_subjects(run, source, target)
    tuning, test = split(everyone)
    controls = controls_of(tuning)
    tuning = tuning.part(np.arange(min(len(tuning), tune_images)))
    test = test.part(np.arange(min(len(test), images or len(test))))
    choose = tune or len(methods) > 1
    if not len(test) or (choose and not len(tuning)):
        raise InputError(
            f"too few held-out groups have differing images of both {source!r} and {target!r}: {len(everyone)} in all, "
            f"{len(tuning)} of them to tune and to choose the method on"
        )
    judge, judged = train_judge(run, epochs, progress)
    measure = Measurement(run, judge, gallery, source, target)
    chosen = {m: TranslateOptions(method=m, steps=steps, draws=draws).resolved() for m in methods}
    tried: list[dict[str, Any]] = []
    for method in methods if choose else ():
        candidates = candidates_of(chosen[method]) if tune else [chosen[method]]
        chosen[method], found = _tuned(measure, tuning, candidates)
        tried += found
    results: dict[str, Measured] = {}
    for method, options in chosen.items():
        progress.say(f"test of {method}: strength {options.strength}, guidance {options.guidance}")
        results[method] = measure(test, options, classify=True)
    before = measure.unchanged(test)
    changed = {name: measure.control(test, control) for name, control in controls.controls.items()}
    named = {m: _named(o) for m, o in chosen.items()} | {n: c.amounts() for n, c in controls.controls.items()}
    rows = _rows({"no change": before, "truth": measure.truth(test), **changed, **results}, before, test, named)
    if picture is not None:
        write_whole(picture, lambda p: draw(test, results, source, target).savefig(p, format="png", dpi=110))
        plt.close("all")
    best = max(tried, key=lambda row: row["objective"])["method"] if tried else methods[0]
    restyled = next(r for r in rows if r["method"] == best and r["subset"] == _subset(test))
    overall = next(r for r in rows if r["method"] == best and r["subset"] == "all")
    return {
        "label_flip_rate": overall["flip_rate"], "distance_reduction": restyled["reduction_pixels"],
        "distance_reduction_interval": restyled["reduction_pixels_interval"],
        **_over_controls(results[best], changed, controls.best, _parts(test)[_subset(test)]),
        "correlation_reduction": restyled[f"reduction_{CORRELATION}"],
        "correlation_reduction_interval": restyled[f"reduction_{CORRELATION}_interval"], "best": best,
        "best_chosen_on": "tuning part" if len(methods) > 1 else "the only method",
        "subset": restyled["subset"], "n": len(test), "n_restyled": int(test.restyled.sum()),
        "n_tuning": len(tuning) if tried else 0, "from": source, "to": target, "judge_accuracy": judged["accuracy"],
        "judge": judged, "restyled_at": RESTYLED, "differs_at": DIFFERS, "rows": rows, "tuning": tried,
        "options": {m: o.as_dict() for m, o in chosen.items()}, "model_folds": run.folds,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def plan_of(
    settings: Settings,
    folder: Path,
    source: str,
    target: str,
    methods: Sequence[Method] = METHODS,
    *,
    images: int | None = None,
    tune: bool = False,
    tune_images: int = 30,
    steps: int = 25,
    draws: int = 8,
) -> dict[str, Any]:
    """Return what `evaluate_translate` would do, for `--dry-run`: no image is read and nothing is written.

    Raises
    ------
    DatasetError, SettingsError : for labels and options that cannot work.
    """
    dataset = load_dataset(settings.dataset)
    check_pair(dataset, source, target)
    options = {m: TranslateOptions(method=m, steps=steps, draws=draws).resolved() for m in methods}
    tried = {m: len(candidates_of(o)) if tune else int(len(methods) > 1) for m, o in options.items()}
    _, pairs = _pairs(dataset.held_out()[1], source, target)
    tuning = sum(_is_for_tuning(a) for a, _ in pairs)
    test = len(pairs) - tuning
    tuning, test = min(tuning, tune_images), test if images is None else min(test, images)
    classified = draws * (1 + len(rival_labels(dataset.labels, source, target)))
    work = sum((tuning * tried[m] + test) * evaluations_of(o) + test * classified for m, o in options.items())
    return {
        "run": str(folder), "from": source, "to": target, "test subjects at most": test,
        "tuning subjects at most": tuning if any(tried.values()) else 0, "option sets tried": tried,
        "UNet evaluations at most": work,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ subjects


def find_subjects(run: Run, source: str, target: str) -> tuple[Subjects, list[LabelledImage]]:
    """Return held-out subjects with differing images of both labels, and all held-out images of the source label.

    Subjects are ordered by a hash. One image a side stands for a subject: the first by image_id.
    """
    check_pair(run.dataset, source, target)
    held = [i for i in run.dataset.held_out()[1] if i.image_id in run.held_out]
    sources, pairs = _pairs(held, source, target)
    if not pairs:
        raise DatasetError(
            f"no held-out group has an image of {source!r} and one of {target!r}: there is no truth to compare with; "
            "set dataset.group to the column that names the subject"
        )
    shapes = [(run.latents.shape_of(a), run.latents.shape_of(b)) for a, b in pairs]
    common = max({a for a, b in shapes if a == b} or {shapes[0][0]}, key=[a for a, _ in shapes].count)
    pairs = [pair for pair, shape in zip(pairs, shapes, strict=True) if shape == (common, common)]
    if not pairs:
        raise DatasetError("the two images of every subject differ in shape, so that their pixels cannot be compared")
    before = source_pixels(run.dataset, [a for a, _ in pairs], run.latents)
    wanted = source_pixels(run.dataset, [b for _, b in pairs], run.latents)
    differ = root_mean_square(before.numpy(), wanted.numpy()) / 2 >= DIFFERS
    restyled = edge_alignment(before.numpy(), wanted.numpy()) >= RESTYLED
    subjects = Subjects([a for a, _ in pairs], [b for _, b in pairs], before, wanted, restyled)
    gallery = [i for _, i in sorted(sources.items()) if run.latents.shape_of(i) == common]
    return subjects.part(np.flatnonzero(differ)), gallery


def _pairs(
    images: Sequence[LabelledImage], source: str, target: str
) -> tuple[dict[str, LabelledImage], list[tuple[LabelledImage, LabelledImage]]]:
    """Return group -> its image of the source label, and (source, target) images of the groups that have both."""
    by_label: dict[str, dict[str, LabelledImage]] = {source: {}, target: {}}
    for image in images:
        for label in (source, target):
            if label in image.labels:
                by_label[label].setdefault(image.group, image)
    both = sorted(set(by_label[source]) & set(by_label[target]), key=lambda g: unit_hash(g, "subject"))
    pairs = [(by_label[source][g], by_label[target][g]) for g in both]
    return by_label[source], [(a, b) for a, b in pairs if a.image_id != b.image_id]


def _is_for_tuning(image: LabelledImage) -> bool:
    return unit_hash(image.group, "tuning") < TUNING_SHARE


def split(subjects: Subjects) -> tuple[Subjects, Subjects]:
    """Split into (tuning, test) by a hash of the group."""
    tuning = np.array([_is_for_tuning(i) for i in subjects.source], dtype=bool)
    return subjects.part(np.flatnonzero(tuning)), subjects.part(np.flatnonzero(~tuning))


def train_judge(run: Run, epochs: int, progress: Progress) -> tuple[Judge, dict[str, Any]]:
    """Train the judge on the real images of the training groups; return it with its accuracy on the others.

    The accuracy is over images, its 90% interval over groups, whose images are alike. Its weights stay in the run
    directory, for the next evaluation on the same data.
    """
    training, held_out = run.dataset.held_out()
    labels = run.dataset.labels
    data, latents = run.dataset, run.latents
    key = key_of([data.fingerprint, data.grouping, labels, latents.size, latents.max_aspect, run.settings.seed, epochs])
    weights = run.directory.path("translate", f"judge-{key}.safetensors")
    if weights.is_file():
        model = SmallCnn(len(labels)).to(run.device).eval()
        model.load_state_dict(load_file(weights, device=str(run.device)))
    else:
        view = [source_pixels(run.dataset, [i], run.latents)[0].numpy() for i in training]
        targets = np.array([[label in i.labels for label in labels] for i in training], dtype=np.float32)
        model = train_cnn(view, targets, run.settings.seed, epochs, device=run.device, progress=progress)
        write_arrays(weights, {name: w.cpu().numpy() for name, w in model.state_dict().items()})
    judge = Judge(model, labels)
    correct = {label: np.zeros(2) for label in labels}
    hits = []
    for image in held_out:
        says = labels[int(judge.says(source_pixels(run.dataset, [image], run.latents))[0])]
        hits.append(float(says in image.labels))
        for label in image.labels:
            correct[label] += (says in image.labels, 1)
    found = np.array(hits)
    interval = _rounded(rate_interval(found, [i.group for i in held_out]))
    return judge, {
        "accuracy": round(float(found.mean()), 4), "interval": interval, "n": len(found),
        "recall": {label: round(float(a / max(b, 1)), 4) for label, (a, b) in correct.items()},
        "trained_on": len(training), "epochs": epochs,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ measuring


class Measurement:
    """Translates subjects and measures the results; the gallery is described once."""

    def __init__(self, run: Run, judge: Judge, gallery: list[LabelledImage], source: str, target: str) -> None:
        self.run, self.judge, self.source, self.target = run, judge, source, target
        self.column = run.dataset.labels.index(target)
        self.position = {image.image_id: i for i, image in enumerate(gallery)}
        self.gallery = {
            "latents": run.latents.stack(list(self.position)).flatten(1).numpy(),
            "edges": coarse_edges(source_pixels(run.dataset, gallery, run.latents).numpy()),
        }

    def __call__(self, subjects: Subjects, options: TranslateOptions, classify: bool) -> Measured:
        """Translate and measure; `classify` asks the diffusion classifier, too."""
        run = self.run
        after, pixels = torch.empty(0), torch.empty(0)
        order: list[LabelledImage] = []
        diffusion: list[bool] = []
        labels = rival_labels(run.dataset.labels, self.source, self.target)
        row_of = {image.image_id: i for i, image in enumerate(subjects.source)}
        run.progress.start(f"translate by {options.method}", len(subjects))
        for fold, images in batches(run, subjects.source, 32):
            denoiser = run.denoiser_of(fold)
            before, moved = translate_images(run, denoiser, images, self.source, self.target, options)
            originals = subjects.before[[row_of[i.image_id] for i in images]]
            after = torch.cat([after, moved])
            pixels = torch.cat([pixels, translated_pixels(denoiser, originals, before, moved, options.detail)])
            if classify:
                ids = [i.image_id for i in images]
                scores = score_latents(run, denoiser, ids, moved, labels, options.draws, PURPOSE)
                diffusion += [
                    max(scores[i], key=lambda label, s=scores[i]: s[label].mean) == self.target  # type: ignore[misc]
                    for i in ids
                ]
            order += images
            run.progress.advance(len(images))
        run.progress.finish()
        back = np.argsort([row_of[i.image_id] for i in order])
        judged = np.array(diffusion, dtype=np.float64)[back] if classify else np.full(len(back), np.nan)
        return self.of(subjects, pixels[back], after[back], judged)

    def of(self, subjects: Subjects, pixels: Tensor, latents: Tensor, diffusion: np.ndarray) -> Measured:
        """Measure pictures (n, 3, H, W) and their latents against the truth."""
        wanted = self.run.latents.stack([i.image_id for i in subjects.truth])
        own = np.array([self.position[i.image_id] for i in subjects.source])
        return Measured(
            flipped=(self.judge.says(pixels) == self.column).astype(np.float64),
            flipped_diffusion=diffusion,
            distances={
                "pixels": root_mean_square(pixels.numpy(), subjects.wanted.numpy()) / 2,
                "latents": root_mean_square(latents.numpy(), wanted.numpy()),
                "edges": root_mean_square(edges(pixels.numpy()), edges(subjects.wanted.numpy())),
                CORRELATION: uncorrelated(pixels.numpy(), subjects.wanted.numpy()),
                "edges_correlation": uncorrelated(edges(pixels.numpy()), edges(subjects.wanted.numpy())),
            },
            kept={
                "latents": own_is_nearest(latents.flatten(1).numpy(), self.gallery["latents"], own),
                "edges": own_is_nearest(coarse_edges(pixels.numpy()), self.gallery["edges"], own),
            },
            pixels=pixels,
        )

    def unchanged(self, subjects: Subjects) -> Measured:
        latents = self.run.latents.stack([i.image_id for i in subjects.source])
        return self.of(subjects, subjects.before, latents, np.full(len(subjects), np.nan))

    def control(self, subjects: Subjects, control: Control) -> Measured:
        pixels = torch.from_numpy(control(subjects.before.numpy()))
        latents = torch.cat([self.run.denoiser.encode_images(part) for part in pixels.split(32)]).float().cpu()
        return self.of(subjects, pixels, latents, np.full(len(subjects), np.nan))

    def truth(self, subjects: Subjects) -> Measured:
        latents = self.run.latents.stack([i.image_id for i in subjects.truth])
        return self.of(subjects, subjects.wanted, latents, np.full(len(subjects), np.nan))


@dataclass(frozen=True)
class Controls:
    """The controls, with amounts of the tuning part, and which of them is the best there by each distance COMPARED."""

    controls: dict[str, Control]
    best: dict[str, str]


def controls_of(tuning: Subjects) -> Controls:
    """Tune every kind of control on the restyled subjects of the tuning part, or on all where there is none.

    The whole part serves, also where methods are tuned on fewer of it. Without a tuning part there are no controls.
    """
    if not len(tuning):
        return Controls({}, {})
    before, wanted = tuning.before.numpy(), tuning.wanted.numpy()
    rows = _parts(tuning)[_subset(tuning)]
    found = tuned(before[rows], wanted[rows], before.mean(0), wanted.mean(0))
    distance = {"pixels": root_mean_square, CORRELATION: uncorrelated}
    changed = {name: control(before[rows]) for name, control in found.items()}
    best = {
        by: min(changed, key=lambda name, by=by: distance[by](changed[name], wanted[rows]).mean())  # type: ignore[misc]
        for by in COMPARED
    }
    return Controls(found, best)


def _over_controls(
    best: Measured, controls: Mapping[str, Measured], named: Mapping[str, str], part: np.ndarray
) -> dict[str, Any]:
    """Compare the best method with the best control of each distance, over the same subjects."""
    found: dict[str, Any] = {}
    for by, end in zip(COMPARED, ("", "_correlation"), strict=True):
        name = named.get(by)
        found[f"best_control{end}"] = name
        found[f"over_best_control{end}"] = found[f"over_best_control{end}_interval"] = None
        if name is not None:
            after, control = best.distances[by][part], controls[name].distances[by][part]
            found[f"over_best_control{end}"] = round(reduction(after, control), 4)
            found[f"over_best_control{end}_interval"] = _rounded(reduction_interval(after, control))
    return found


def candidates_of(options: TranslateOptions) -> list[TranslateOptions]:
    """Return the options that tuning tries for a method."""
    grid = GRID[options.method]
    combinations: list[dict[str, Any]] = [dict(zip(grid, v, strict=True)) for v in product(*grid.values())]
    return [replace(options, **combination) for combination in combinations]


def _named(options: TranslateOptions) -> dict[str, Any]:
    """The options that tell one translation by a method from another."""
    own = {"pnp": ("inject",), "mean": ("keep", "average")}.get(options.method, ())
    return {name: getattr(options, name) for name in ("strength", "guidance", *own)}


def objective(found: Measured, before: Mapping[str, np.ndarray], restyled: np.ndarray) -> tuple[float, float, float]:
    """Return (objective, reduction, flip rate) of a translation, as the headline has them.

    The reduction of pixel distance is of the restyled subjects, the flip rate of all; the objective is the former, less
    what the latter lacks of `FLIPS_WANTED` and MARGIN standard errors of a rate of that size.
    """
    part = restyled if restyled.any() else np.ones(len(restyled), dtype=bool)
    gain = reduction(found.distances["pixels"][part], before["pixels"][part])
    flips = float(found.flipped.mean())
    wanted = FLIPS_WANTED + MARGIN * math.sqrt(FLIPS_WANTED * (1 - FLIPS_WANTED) / len(found.flipped))
    return gain + min(0.0, flips - min(1.0, wanted)), gain, flips


def _tuned(
    measure: Measurement, subjects: Subjects, candidates: Sequence[TranslateOptions]
) -> tuple[TranslateOptions, list[dict[str, Any]]]:
    """Measure candidates of one method on the tuning part; return the best of them, and a row a candidate."""
    before = measure.unchanged(subjects).distances
    rows = []
    for candidate in candidates:
        value, gain, flips = objective(measure(subjects, candidate, classify=False), before, subjects.restyled)
        rows.append(
            {"method": candidate.method, **_named(candidate), "flip_rate": round(flips, 4),
             "reduction_pixels": round(gain, 4), "objective": round(value, 4)}
        )  # fmt: skip
        measure.run.progress.say(f"tuning {rows[-1]}")
    best = max(range(len(rows)), key=lambda i: rows[i]["objective"])
    return candidates[best], rows


# ------------------------------------------------------------------------------------------------ reporting


def _rounded(values: tuple[float, float] | None) -> list[float] | None:
    return None if values is None else [round(v, 4) for v in values]


def _subset(subjects: Subjects) -> str:
    """The subset of the headline: restyled subjects, or all where there is none."""
    return "restyled" if subjects.restyled.any() else "all"


def _parts(subjects: Subjects) -> dict[str, np.ndarray]:
    parts = {"all": np.ones(len(subjects), dtype=bool)}
    if subjects.restyled.any():
        parts["restyled"] = subjects.restyled
    if not subjects.restyled.all():
        parts["redrawn"] = ~subjects.restyled
    return parts


def row_of(
    method: str, subset: str, found: Measured, before: dict[str, np.ndarray], chosen: np.ndarray
) -> dict[str, Any]:
    """One row of the table: measures of the subjects `chosen` (n,) with 90% intervals."""
    row: dict[str, Any] = {"method": method, "subset": subset, "n": int(chosen.sum())}
    row["flip_rate"] = round(float(found.flipped[chosen].mean()), 4)
    row["flip_rate_interval"] = _rounded(rate_interval(found.flipped[chosen]))
    diffusion = found.flipped_diffusion[chosen]
    row["flip_rate_diffusion"] = None if np.isnan(diffusion).any() else round(float(diffusion.mean()), 4)
    for name, distances in found.distances.items():
        row[f"distance_{name}"] = round(float(distances[chosen].mean()), 5)
        row[f"reduction_{name}"] = round(reduction(distances[chosen], before[name][chosen]), 4)
        row[f"reduction_{name}_interval"] = _rounded(reduction_interval(distances[chosen], before[name][chosen]))
    nearer = found.distances["pixels"][chosen] < before["pixels"][chosen]
    row["share_nearer"] = round(float(nearer.mean()), 4)
    for name, kept in found.kept.items():
        row[f"subject_kept_{name}"] = round(float(kept[chosen].mean()), 4)
    return row


def _rows(
    results: dict[str, Measured], before: Measured, test: Subjects, options: Mapping[Any, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row a result and subset; `no change` and `truth` show what doing nothing and the true images would get."""
    return [
        row_of(method, subset, found, before.distances, part) | options.get(method, {})
        for method, found in results.items()
        for subset, part in _parts(test).items()
    ]


def draw(test: Subjects, results: dict[str, Measured], source: str, target: str) -> Figure:
    """Subjects (rows; the first restyled ones, then redrawn) by source, methods and truth (columns)."""
    rows = [*np.flatnonzero(test.restyled)[:SHOWN].tolist(), *np.flatnonzero(~test.restyled)[: SHOWN // 2].tolist()]
    names = [f"{source} (given)", *results, f"{target} (true)"]
    figure, axes = plt.subplots(len(rows), len(names), figsize=(1.3 * len(names), 1.3 * len(rows)), squeeze=False)
    for i, row in enumerate(rows):
        pictures = [test.before[row], *(found.pixels[row] for found in results.values()), test.wanted[row]]
        for axis, name, picture in zip(axes[i], names, pictures, strict=True):
            axis.imshow(to_bytes(picture))
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(name, fontsize=9)
        axes[i][0].set_ylabel("restyled" if test.restyled[row] else "redrawn", fontsize=8)
    figure.tight_layout()
    return figure
