"""Do maps of typicality show where labels are? Measured against masks or boxes that no training has seen.

Images whose groups the model has not seen are split, whole groups together, into a part on which every method chooses
its smoothing, range of timesteps and combination, and a part on which all are measured. Rivals choose as freely as we
do, from the same grid:

- `error`: the plain denoising error L(null), which knows no label (the paper does not compare with it);
- `bias`: the square of its mean residual over draws, which knows no label either;
- `shift`: D^2 at the label scale 1, how much the label changes the prediction, without a sign;
- `gradcam`: Grad-CAM of a small CNN, trained on the same images and the same image-level labels.

`ours` combines a map of the label with one of error; its ingredients alone are measured too, under their own names.
`ours, not fine-tuned` is the same recipe with the model before fine-tuning; `ours, not fine-tuned, own choice` may
choose anew. `typicality as published` has no choice: T under the null prompt at the label scale 1, all timesteps,
no smoothing; it alone is in units of the loss and has an `auc_pr_truncated`.

Intervals are at 90%, from resamples of the test part's groups, the same for all methods and labels. The gain is over
the rival that did best on the test part itself, which favours that rival.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from typicality import metrics
from typicality.applications.localize.maps import GIVEN, PUBLISHED, Kitchen, Recipe, families, upsampled
from typicality.applications.localize.measure import measure, rounded, truncated
from typicality.applications.localize.passes import BASE, Evidence, Request, collect
from typicality.applications.localize.work import DEFAULTS, Judge, Options, Parts, opened, parts_of, requests_of
from typicality.config import Settings, key_of
from typicality.dataset import prepare
from typicality.errors import InputError
from typicality.evaluation.intervals import bounds, group_draws, resampled_precision
from typicality.evaluation.rivals.gradcam import cnn_probabilities, gradcam, train_cnn
from typicality.progress import SILENT, Progress
from typicality.run import Run
from typicality.store import write_arrays, write_json, write_whole

OURS, UNTRAINED, UNTRAINED_OWN = "ours", "ours, not fine-tuned", "ours, not fine-tuned, own choice"
PUBLISHED_BASE = f"{PUBLISHED}, not fine-tuned"
ERROR, BIAS, SHIFT, GRADCAM = "error", "bias", "shift", "gradcam"
RIVALS = (ERROR, BIAS, SHIFT, GRADCAM)
RESAMPLES = 200
CASES = ("best", "median", "worst")


@dataclass(frozen=True)
class Method:
    """One way to make maps: evidence, and a recipe and a threshold for every label."""

    name: str
    evidence: Mapping[tuple[str, str], Evidence]
    kitchen: Kitchen
    recipes: Mapping[str, Recipe]
    thresholds: Mapping[str, float]


def localize(
    settings: Settings, folder: Path, options: Options = DEFAULTS, *, before: bool = True, epochs: int = 20,
    picture: Path | None = None, progress: Progress = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Measure maps of a run, its model before fine-tuning, and rivals on the images that chose nothing.

    Parameters
    ----------
    folder : a run directory with a fine-tuned model; `settings.dataset.masks` or `.boxes` name the truth
    before : measure the model before fine-tuning as well
    epochs : of the CNN behind Grad-CAM
    picture : PNG of the best, the median and the worst case of every label

    Returns
    -------
    macro_ap, geometric_mean_lift, best_rival, macro_ap_best_rival, gain (macro_ap / macro_ap_best_rival - 1),
    above_base (labels for which fine-tuning helped), above_base_by (how much average precision it added, with an
    interval), macro (by method), macro_ap_interval, macro_interval (by method), gain_interval, rows (a label and
    method, with average_precision_interval), cnn (epochs and held-out accuracy of the CNN behind Grad-CAM)

    Raises
    ------
    InputError : without ground truth, or with too few groups for both parts; and see `opened`.
    """
    started = time.monotonic()
    with opened(settings, folder, options, progress) as (run, options):
        asked = requests_of(list(run.dataset), options.against)
        parts = parts_of(run, asked)
        known = [(i, tuple(label for label in labels if (i, label) in parts.truths)) for i, labels in asked]
        requests = [(i, labels) for i, labels in known if labels]
        _check(parts, requests)
        evidence = collect(run, requests, options.against, options.ranges, options.draws)
        labels = [label for label in run.dataset.labels if label in {e.label for e in evidence}]
        methods = _methods(run, parts, evidence, labels, options)
        if before and run.settings.finetune.enabled:
            base = collect(run, requests, options.against, options.ranges, options.draws, BASE)
            methods += _untrained(run, parts, base, labels, options, methods[0])
        cams, cnn = _gradcams(run, requests, epochs)
        methods.append(_chosen(run, parts, cams, labels, GRADCAM, [(GIVEN,)], 1))
        groups = _Groups(run, parts)
        measured = [pair for label in labels for pair in _rows(run, parts, methods, label, options, groups)]
        rows = [row for row, _ in measured]
        resampled = {(row["label"], row["method"]): values for row, values in measured}
        result = _summary(rows, parts, options)
        result |= _intervals(rows, resampled, result["best_rival"])
        result["cnn"] = cnn
        result["rows"] = result.pop("rows")  # last: it is long
        result["seconds"] = round(time.monotonic() - started, 1)
        if picture is not None:
            _draw(run, parts, methods, labels, picture)
        return result


def _check(parts: Parts, requests: Sequence[Request]) -> None:
    pairs = [(i, label) for i, labels in requests for label in labels]
    marked = {parts.of(i, label) for i, label in pairs if parts.truths[i, label].any()}
    if not marked and parts.untold:
        raise InputError(
            f"{parts.untold} images have several labels, and the ground truth does not say of which it is: give "
            "--boxes a COCO file whose categories are the labels"
        )
    if not marked:
        raise InputError(
            "there is no ground truth for images that the model has not seen: give --masks COLUMN or --boxes FILE, "
            "and hold images out (finetune.held_out, or --folds 4) when fine-tuning"
        )
    if marked != {"validation", "test"}:
        raise InputError("too few groups with ground truth: one part has to choose and another to judge")


def _chosen(
    run: Run, parts: Parts, evidence: Sequence[Evidence], labels: Sequence[str], name: str,
    family: Sequence[tuple[str, ...]], ranges: int,
) -> Method:  # fmt: skip
    judge = Judge(run, parts, evidence, labels)
    recipes = judge.recipes(family, ranges)
    return Method(name, _keyed(evidence), judge.kitchen, recipes, judge.thresholds(recipes))


def _keyed(evidence: Sequence[Evidence]) -> dict[tuple[str, str], Evidence]:
    return {(e.image_id, e.label): e for e in evidence}


def _methods(
    run: Run, parts: Parts, evidence: Sequence[Evidence], labels: Sequence[str], options: Options
) -> list[Method]:
    """Return `ours` first, then its ingredients and the rivals that come from the same evidence."""
    judge = Judge(run, parts, evidence, labels)
    keyed = _keyed(evidence)
    methods = []
    for name, family in families(options.against is not None).items():
        recipes = judge.recipes(family, len(options.ranges))
        thresholds = judge.thresholds(recipes)
        methods.append(Method(OURS if name == "combined" else name, keyed, judge.kitchen, recipes, thresholds))
    methods.append(_published(PUBLISHED, evidence, labels))
    return methods


def _published(name: str, evidence: Sequence[Evidence], labels: Sequence[str]) -> Method:
    recipe = Recipe((PUBLISHED,), smoothing=0.0)
    return Method(name, _keyed(evidence), Kitchen(evidence), dict.fromkeys(labels, recipe), {})


def _untrained(
    run: Run, parts: Parts, base: Sequence[Evidence], labels: Sequence[str], options: Options, ours: Method
) -> list[Method]:
    family = families(options.against is not None)["combined"]
    own = _chosen(run, parts, base, labels, UNTRAINED_OWN, family, len(options.ranges))
    judge = Judge(run, parts, base, labels)
    same = Method(UNTRAINED, _keyed(base), judge.kitchen, ours.recipes, judge.thresholds(ours.recipes))
    return [same, own, _published(PUBLISHED_BASE, base, labels)]


# ----------------------------------------------------------------------------------------------- Grad-CAM


def _gradcams(run: Run, requests: Sequence[Request], epochs: int) -> tuple[list[Evidence], dict[str, Any]]:
    """Return Grad-CAM maps of a CNN that has not seen the image's group, or those kept from before, and its accuracy.

    With folds there is a CNN a fold, as there is a diffusion model; a run without fine-tuning has nothing unseen, so
    that the CNN may know some of the images: an advantage to the rival.
    """
    key = key_of(
        ["gradcam", epochs, run.settings.seed, run.weights_key, run.latents.folder.name, run.dataset.fingerprint]
    )
    path = run.directory.path("scores", f"gradcam-{key}.safetensors")
    kept = load_file(path) if path.exists() else {}
    said = path.with_suffix(".json")
    # maps of an earlier version have no accuracy beside them: the CNN is trained again
    if not said.exists() or any(f"{i}|{label}" not in kept for i, labels in requests for label in labels):
        kept, cnn = _drawn_gradcams(run, requests, epochs)
        write_arrays(path, kept)
        write_json(said, cnn)
    found = [
        Evidence(i, label, run.latents.view(i), {GIVEN: kept[f"{i}|{label}"][None]})
        for i, labels in requests
        for label in labels
    ]
    return found, json.loads(said.read_text(encoding="utf-8"))


def _drawn_gradcams(run: Run, requests: Sequence[Request], epochs: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return maps by image and label, and epochs, accuracy on images that the CNN has not seen, and their number."""
    images = {i.image_id: i for i in run.dataset}
    store, column = run.latents, {label: j for j, label in enumerate(run.dataset.labels)}
    pixels = {
        i: prepare(run.dataset.open(image), store.size, store.step, store.max_aspect)[0] for i, image in images.items()
    }
    found: dict[str, np.ndarray] = {}
    right: list[bool] = []
    by_fold: dict[int, list[Request]] = defaultdict(list)
    for request in requests:
        by_fold[run.fold_of(request[0])].append(request)
    for fold, asked in sorted(by_fold.items()):
        unseen = {i for i in images if run.fold_of(i) == fold} if run.folds > 1 else run.held_out
        training = sorted(i for i in images if i not in unseen)
        targets = np.zeros((len(training), len(column)), np.float32)
        for row, i in enumerate(training):
            targets[row, [column[label] for label in images[i].labels]] = 1
        model = train_cnn(
            [pixels[i] for i in training], targets, run.settings.seed, epochs, device=run.device, progress=run.progress
        )
        for i, labels in asked:
            for label in labels:
                found[f"{i}|{label}"] = gradcam(model, pixels[i], column[label])
        for i in sorted(unseen):
            said = int(cnn_probabilities(model, [pixels[i]])[0].argmax())
            right.append(run.dataset.labels[said] in images[i].labels)
    accuracy = round(float(np.mean(right)), 4) if right else None
    return found, {"epochs": epochs, "held_out_accuracy": accuracy, "n_held_out": len(right)}


# ----------------------------------------------------------------------------------------------- measures


def _maps(run: Run, method: Method, label: str, ids: Sequence[str]) -> list[np.ndarray]:
    images = {i.image_id: i for i in run.dataset}
    found = []
    for i in ids:
        e = method.evidence[i, label]
        cells = method.kitchen(e, method.recipes[label])
        found.append(upsampled(cells, e.view, images[i].width, images[i].height))
    return found


def _test_ids(parts: Parts, method: Method, label: str) -> list[str]:
    return sorted(i for i, name in method.evidence if name == label and parts.of(i, label) == "test")


class _Groups:
    """The groups of the test part, and how often each of them is drawn in every resample."""

    def __init__(self, run: Run, parts: Parts) -> None:
        test = {i for i, label in parts.truths if parts.of(i, label) == "test"}
        self.of = {i.image_id: i.group for i in run.dataset if i.image_id in test}
        self.row = {name: row for row, name in enumerate(sorted(set(self.of.values())))}
        self.draws = group_draws(len(self.row), RESAMPLES, run.settings.seed)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self.row[self.of[i]] for i in ids])


def _rows(
    run: Run, parts: Parts, methods: Sequence[Method], label: str, options: Options, groups: _Groups
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return a row a method, with its average precision in every resample (RESAMPLES,)."""
    ids = _test_ids(parts, methods[0], label)
    truths = [parts.truths[i, label] for i in ids]
    if not any(t.any() for t in truths):
        return []
    rows = []
    for method in methods:
        maps = _maps(run, method, label, ids)
        recipe = method.recipes[label]
        row = {"label": label, "method": method.name, "groups": len({groups.of[i] for i in ids})}
        row |= measure(maps, truths, method.thresholds.get(label))
        resampled = resampled_precision(maps, truths, groups.rows(ids), groups.draws)
        row["auc_pr_truncated"] = truncated(maps, truths) if method.name in (PUBLISHED, PUBLISHED_BASE) else None
        row["recipe"] = f"smoothed by {recipe.smoothing:g} cells" if method.name == GRADCAM else (
            recipe.describe(options.ranges)
        )  # fmt: skip
        rows.append((rounded(row) | {"average_precision_interval": _bounds(resampled)}, resampled))
        run.progress.say(f"{label}, {method.name}: average precision {row['average_precision']:.3f}")
    return rows


def _bounds(values: np.ndarray) -> list[float] | None:
    found = bounds(values)
    return None if found is None else [float(f"{v:.4g}") for v in found]


def _summary(rows: Sequence[Mapping[str, Any]], parts: Parts, options: Options) -> dict[str, Any]:
    by_method: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_method[row["method"]][row["label"]] = row
    macro = {
        name: round(float(np.mean([r["average_precision"] for r in found.values()])), 4)
        for name, found in by_method.items()
    }
    best = max(RIVALS, key=lambda name: macro[name])
    ours = by_method[OURS]
    result: dict[str, Any] = {
        "macro_ap": macro[OURS],
        "best_rival": best,
        "macro_ap_best_rival": macro[best],
        "gain": round(macro[OURS] / macro[best] - 1, 4) if macro[best] else None,
        "geometric_mean_lift": round(metrics.geometric_mean(r["lift"] for r in ours.values()), 3),
        "geometric_mean_lift_best_rival": round(metrics.geometric_mean(r["lift"] for r in by_method[best].values()), 3),
        "pointing": round(float(np.mean([r["pointing"] for r in ours.values()])), 4),
        "test_images": len({i for i, label in parts.truths if parts.of(i, label) == "test"}),
        "validation_images": len(parts.validation),
        "images_with_untold_truth": parts.untold,
        "against": options.against,
        "draws": options.draws,
        "ranges": [list(r) for r in options.ranges],
        "macro": macro,
    }
    if UNTRAINED in by_method:
        result["above_base"] = {
            label: ours[label]["average_precision"] > row["average_precision"]
            for label, row in by_method[UNTRAINED].items()
        }
    return result | {"rows": [dict(row) for row in rows]}


def _intervals(
    rows: Sequence[Mapping[str, Any]], resampled: Mapping[tuple[str, str], np.ndarray], best: str
) -> dict[str, Any]:
    """Return intervals of what `_summary` says; a resample counts where every label has something marked."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    macro = {name: np.mean([resampled[label, name] for label in labels], axis=0) for _, name in resampled}
    gain = np.divide(macro[OURS], macro[best], out=np.full(RESAMPLES, np.nan), where=macro[best] > 0) - 1
    found: dict[str, Any] = {
        "macro_ap_interval": _bounds(macro[OURS]),
        "gain_interval": _bounds(gain),
        "macro_interval": {name: _bounds(values) for name, values in macro.items()},
    }
    if UNTRAINED in macro:
        precision = {(row["label"], row["method"]): row["average_precision"] for row in rows}
        found["above_base_by"] = {
            label: {
                "difference": float(f"{precision[label, OURS] - precision[label, UNTRAINED]:.4g}"),
                "interval": _bounds(resampled[label, OURS] - resampled[label, UNTRAINED]),
            }
            for label in labels
        }
    return found


# ------------------------------------------------------------------------------------------------ picture


def _draw(run: Run, parts: Parts, methods: Sequence[Method], labels: Sequence[str], path: Path) -> None:
    """Rows: of every label the best, the median and the worst image by the average precision of our map."""
    from matplotlib.figure import Figure

    from typicality.applications.localize.pictures import heat, outlined

    named = {m.name: m for m in methods}
    shown = [named[OURS], *(named[name] for name in RIVALS)]
    images = {i.image_id: i for i in run.dataset}
    cases = [case for label in labels for case in _cases(run, parts, named[OURS], label)]
    figure = Figure(figsize=(2 * (1 + len(shown)) + 1.2, 1.9 * len(cases)), layout="constrained", dpi=80)
    axes = figure.subplots(len(cases), 1 + len(shown), squeeze=False)
    for row, (label, case, image_id, precision) in zip(axes, cases, strict=True):
        picture = run.dataset.open(images[image_id])
        truth = parts.truths[image_id, label]
        row[0].imshow(outlined(picture, truth))
        row[0].set_ylabel(f"{label}, {case}\nAP {precision:.2f}", fontsize=9)
        for axis, method in zip(row[1:], shown, strict=True):
            axis.imshow(heat(picture, _maps(run, method, label, [image_id])[0]))
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("image and truth", *(m.name for m in shown)), strict=True):
        axis.set_title(title, fontsize=10)
    write_whole(path, lambda p: figure.savefig(p, format="png"))


def _cases(run: Run, parts: Parts, ours: Method, label: str) -> list[tuple[str, str, str, float]]:
    """Return (label, case, image_id, average precision) of up to three test images."""
    ids = [i for i in _test_ids(parts, ours, label) if parts.truths[i, label].any()]
    scored = [
        (metrics.average_precision(m, parts.truths[i, label]), i)
        for m, i in zip(_maps(run, ours, label, ids), ids, strict=True)
    ]
    ranked = sorted(scored, reverse=True)
    if not ranked:
        return []
    places = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
    return [(label, case, ranked[k][1], ranked[k][0]) for case, k in zip(CASES, places, strict=False)]
