"""Do maps of typicality show where labels are? Measured against masks or boxes that no training has seen.

Images whose groups the model has not seen are dealt, whole groups together, to three turns. Every method's maps of a
turn are made as did best on the other two (smoothing, range of timesteps, combination, threshold), so that all images
judge and none chooses for itself; measures are means over the turns. Rivals choose as freely as we do, from the same
grid:

- `error`: the plain denoising error L(null), which knows no label (the paper does not compare with it);
- `shift`: D^2 at the label scale 1, how much the label changes the prediction, without a sign;
- `gradcam`: Grad-CAM of a small CNN, trained on the same images and the same image-level labels.

`bias`, the square of the mean residual over draws, is an ingredient of ours that knows no label either. What labels are
worth is the gain over the better of `error` and `bias`, which is said beside the gain over the rivals.

`ours` combines a map of the label with one of error; its ingredients alone are measured too, under their own names.
`ours, not fine-tuned` is the same recipe with the model before fine-tuning; `ours, not fine-tuned, own choice` may
choose anew. `typicality as published` has no choice: T under the null prompt at the label scale 1, all timesteps,
no smoothing; it alone is in units of the loss and has an `auc_pr_truncated`.

Intervals are at 90%, from resamples of groups, the same for all methods and labels. The gain is over the rival that did
best in these measures themselves, which favours that rival.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from typicality import metrics
from typicality.applications.localize.choose import best, best_threshold, log_precisions
from typicality.applications.localize.maps import GIVEN, PUBLISHED, Kitchen, Recipe, families, upsampled
from typicality.applications.localize.measure import measure, rounded, truncated
from typicality.applications.localize.passes import BASE, Evidence, Request, collect
from typicality.applications.localize.truth import turns_of
from typicality.applications.localize.work import (
    DEFAULTS,
    Known,
    Options,
    by_label,
    known_of,
    opened,
    recipes_of,
    requests_of,
    shares_of,
)
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
RIVALS = (ERROR, SHIFT, GRADCAM)
WITHOUT_LABELS = (ERROR, BIAS)
RESAMPLES = 200
CASES = ("best", "median", "worst")
TURNS = 3


@dataclass(frozen=True)
class Turns:
    """Images whose truth is known, and by which turn each is judged.

    Attributes
    ----------
    turn_of : by image_id, from 0; the images of a group have one turn
    """

    known: Known
    turn_of: Mapping[str, int]

    def ids(self, label: str) -> list[list[str]]:
        """Return the ids of a label's images, turn by turn."""
        found: list[list[str]] = [[] for _ in range(TURNS)]
        for i, name in sorted(self.known.truths):
            if name == label:
                found[self.turn_of[i]].append(i)
        return found

    def truths(self, label: str, ids: Sequence[str]) -> list[np.ndarray]:
        return [self.known.truths[i, label] for i in ids]


@dataclass(frozen=True)
class Method:
    """One way to make maps: evidence, and a recipe and a threshold for every label and turn."""

    name: str
    evidence: Mapping[tuple[str, str], Evidence]
    kitchen: Kitchen
    recipes: Mapping[tuple[str, int], Recipe]
    thresholds: Mapping[tuple[str, int], float]


def localize(
    settings: Settings, folder: Path, options: Options = DEFAULTS, *, before: bool = True, epochs: int = 20,
    picture: Path | None = None, progress: Progress = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Measure maps of a run, its model before fine-tuning, and rivals, on images that no model has seen.

    Parameters
    ----------
    folder : a run directory with a fine-tuned model; `settings.dataset.masks` or `.boxes` name the truth
    before : measure the model before fine-tuning as well
    epochs : of the CNN behind Grad-CAM
    picture : PNG of the best, the median and the worst case of every label

    Returns
    -------
    macro_ap, geometric_mean_lift, best_rival, macro_ap_best_rival, gain (macro_ap / macro_ap_best_rival - 1),
    best_without_labels, macro_ap_without_labels, gain_without_labels (the same over the better map without labels),
    above_base (labels for which fine-tuning helped), above_base_by (how much average precision it added, with an
    interval), macro (by method), macro_ap_interval, macro_interval (by method), gain_interval, rows (a label and
    method, means over turns, with average_precision_interval), cnn (epochs and held-out accuracy of the CNN behind
    Grad-CAM)

    Raises
    ------
    InputError : without ground truth, or with too few groups for two turns; and see `opened`.
    """
    started = time.monotonic()
    with opened(settings, folder, options, progress) as (run, options):
        asked = requests_of(list(run.dataset), options.against)
        known = known_of(run, asked)
        marked = [(i, tuple(label for label in labels if (i, label) in known.truths)) for i, labels in asked]
        requests = [(i, labels) for i, labels in marked if labels]
        turns = Turns(known, turns_of(known.images, TURNS))
        _check(turns)
        evidence = collect(run, requests, options.against, options.ranges, options.draws)
        labels = [label for label in run.dataset.labels if label in {e.label for e in evidence}]
        methods = _methods(run, turns, evidence, labels, options)
        if before and run.settings.finetune.enabled:
            base = collect(run, requests, options.against, options.ranges, options.draws, BASE)
            methods += _untrained(run, turns, base, labels, options, methods[0])
        cams, cnn = _gradcams(run, requests, epochs)
        methods.append(_Chooser(run, turns, cams, labels).method(GRADCAM, [(GIVEN,)], 1))
        groups = _Groups(run, turns)
        measured = [pair for label in labels for pair in _rows(run, turns, methods, label, options, groups)]
        rows = [row for row, _ in measured]
        resampled = {(row["label"], row["method"]): values for row, values in measured}
        result = _summary(rows, turns, options)
        result |= _intervals(rows, resampled, result["best_rival"], result["best_without_labels"])
        result["cnn"] = cnn
        result["rows"] = result.pop("rows")  # last: it is long
        result["seconds"] = round(time.monotonic() - started, 1)
        if picture is not None:
            _draw(run, turns, methods, labels, picture)
        return result


def _check(turns: Turns) -> None:
    known = turns.known
    marked = {turns.turn_of[i] for (i, _), truth in known.truths.items() if truth.any()}
    if not marked and known.untold:
        raise InputError(
            f"{known.untold} images have several labels, and the ground truth does not say of which it is: give "
            "--boxes a COCO file whose categories are the labels"
        )
    if not marked:
        raise InputError(
            "there is no ground truth for images that the model has not seen: give --masks COLUMN or --boxes FILE, "
            "and hold images out (finetune.held_out, or --folds 4) when fine-tuning; a model that was fine-tuned on "
            "labelled images before may have seen all of them"
        )
    if len(marked) < 2:
        raise InputError("too few groups with ground truth: some have to choose and others to judge")


class _Chooser:
    """Chooses recipes and thresholds for the images of every turn on those of the others."""

    def __init__(self, run: Run, turns: Turns, evidence: Sequence[Evidence], labels: Sequence[str]) -> None:
        self.progress, self.evidence, self.labels = run.progress, evidence, labels
        self.kitchen = Kitchen(evidence)
        self.shares = shares_of(evidence, turns.known.truths)
        self.by_turn = []
        for turn in range(TURNS):
            found = by_label([e for e in evidence if turns.turn_of[e.image_id] == turn])
            self.by_turn.append({label: found.get(label, []) for label in labels})
        group_of = {image.image_id: image.group for image in turns.known.images}
        self.groups = [
            [len({group_of[e.image_id] for e in evidence}) for evidence in found.values()] for found in self.by_turn
        ]

    def method(self, name: str, family: Sequence[tuple[str, ...]], ranges: int) -> Method:
        """Return the best recipes of a family of parts, with their thresholds."""
        recipes = recipes_of(family, ranges)
        self.progress.start(f"choose ({name})", TURNS * len(recipes))
        logs = [
            log_precisions(self.kitchen, found, lambda e: self.shares[e.image_id, e.label], recipes, self.progress)
            for found in self.by_turn
        ]
        self.progress.finish()
        chosen: dict[tuple[str, int], Recipe] = {}
        for turn in range(TURNS):
            others = [k for k in range(TURNS) if k != turn]
            worth = _mean_of_known(np.stack([logs[k] for k in others]))
            groups = np.sum([self.groups[k] for k in others], axis=0).tolist()
            for label, recipe in zip(self.labels, best(worth, groups, recipes), strict=True):
                chosen[label, turn] = recipe
        return Method(name, _keyed(self.evidence), self.kitchen, chosen, self.thresholds(chosen))

    def thresholds(self, recipes: Mapping[tuple[str, int], Recipe]) -> dict[tuple[str, int], float]:
        """Return the threshold of the best IoU on the other turns, where they have something of the label marked."""
        found = {}
        for (label, turn), recipe in recipes.items():
            evidence = [e for k, of in enumerate(self.by_turn) if k != turn for e in of[label]]
            shares = [self.shares[e.image_id, e.label] for e in evidence]
            threshold = best_threshold([self.kitchen(e, recipe) for e in evidence], shares)
            if threshold is not None:
                found[label, turn] = threshold
        return found


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    number = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, number, out=np.full(values.shape[1:], np.nan), where=number > 0)


def _keyed(evidence: Sequence[Evidence]) -> dict[tuple[str, str], Evidence]:
    return {(e.image_id, e.label): e for e in evidence}


def _methods(
    run: Run, turns: Turns, evidence: Sequence[Evidence], labels: Sequence[str], options: Options
) -> list[Method]:
    """Return `ours` first, then its ingredients and the rivals that come from the same evidence."""
    chooser = _Chooser(run, turns, evidence, labels)
    methods = [
        chooser.method(OURS if name == "combined" else name, family, len(options.ranges))
        for name, family in families(options.against is not None).items()
    ]
    return [*methods, _published(PUBLISHED, evidence, labels)]


def _published(name: str, evidence: Sequence[Evidence], labels: Sequence[str]) -> Method:
    recipe = Recipe((PUBLISHED,), smoothing=0.0)
    recipes = {(label, turn): recipe for label in labels for turn in range(TURNS)}
    return Method(name, _keyed(evidence), Kitchen(evidence), recipes, {})


def _untrained(
    run: Run, turns: Turns, base: Sequence[Evidence], labels: Sequence[str], options: Options, ours: Method
) -> list[Method]:
    chooser = _Chooser(run, turns, base, labels)
    own = chooser.method(UNTRAINED_OWN, families(options.against is not None)["combined"], len(options.ranges))
    same = Method(UNTRAINED, own.evidence, chooser.kitchen, ours.recipes, chooser.thresholds(ours.recipes))
    return [same, own, _published(PUBLISHED_BASE, base, labels)]


# ----------------------------------------------------------------------------------------------- Grad-CAM


def _gradcams(run: Run, requests: Sequence[Request], epochs: int) -> tuple[list[Evidence], dict[str, Any]]:
    """Return Grad-CAM maps of a CNN that has not seen the image's group, or those kept from before, and its accuracy.

    With folds there is a CNN a fold, as there is a diffusion model. Without fine-tuning all images judge, and the CNN
    learns from those of them outside of the fixed held-out part: an advantage to the rival.
    """
    key = key_of(
        [
            "gradcam", epochs, run.settings.seed, run.weights_key, run.latents.folder.name, run.dataset.fingerprint,
            run.dataset.grouping,
        ]
    )  # fmt: skip
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
        if run.folds > 1:
            unseen = frozenset(i for i in images if run.fold_of(i) == fold)
        elif run.settings.finetune.enabled:
            unseen = run.held_out
        else:
            unseen = frozenset(image.image_id for image in run.dataset.held_out()[1])
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


def _maps(run: Run, turns: Turns, method: Method, label: str, ids: Sequence[str]) -> list[np.ndarray]:
    images = {i.image_id: i for i in run.dataset}
    found = []
    for i in ids:
        e = method.evidence[i, label]
        cells = method.kitchen(e, method.recipes[label, turns.turn_of[i]])
        found.append(upsampled(cells, e.view, images[i].width, images[i].height))
    return found


class _Groups:
    """The groups of the images that judge, and how often each of them is drawn in every resample."""

    def __init__(self, run: Run, turns: Turns) -> None:
        self.of = {i.image_id: i.group for i in turns.known.images}
        self.row = {name: row for row, name in enumerate(sorted(set(self.of.values())))}
        self.draws = group_draws(len(self.row), RESAMPLES, run.settings.seed)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self.row[self.of[i]] for i in ids])


def _rows(
    run: Run, turns: Turns, methods: Sequence[Method], label: str, options: Options, groups: _Groups
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return a row a method, with its average precision in every resample (RESAMPLES,): both are means over turns."""
    by_turn = [
        (turn, ids) for turn, ids in enumerate(turns.ids(label)) if any(t.any() for t in turns.truths(label, ids))
    ]
    if not by_turn:
        return []
    judges = [i for _, ids in by_turn for i in ids]
    rows = []
    for method in methods:
        measures, resampled, published = [], [], []
        for turn, ids in by_turn:
            maps, truths = _maps(run, turns, method, label, ids), turns.truths(label, ids)
            measures.append(measure(maps, truths, method.thresholds.get((label, turn))))
            resampled.append(resampled_precision(maps, truths, groups.rows(ids), groups.draws))
            if method.name in (PUBLISHED, PUBLISHED_BASE):
                published.append(truncated(maps, truths))
        row = {
            "label": label, "method": method.name, "groups": len({groups.of[i] for i in judges}),
            "images": len(judges), **_mean_over_turns(measures),
            "auc_pr_truncated": float(np.mean(published)) if published else None,
        }  # fmt: skip
        recipes = [method.recipes[label, turn] for turn, _ in by_turn]
        row["recipe"] = "; ".join(
            dict.fromkeys(
                f"smoothed by {recipe.smoothing:g} cells" if method.name == GRADCAM else recipe.describe(options.ranges)
                for recipe in recipes
            )
        )
        over_turns = _mean_of_known(np.stack(resampled))
        rows.append((rounded(row) | {"average_precision_interval": _bounds(over_turns)}, over_turns))
        run.progress.say(f"{label}, {method.name}: average precision {row['average_precision']:.3f}")
    return rows


def _mean_over_turns(measures: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean of every measure but the number of images, over the turns that have it."""
    found: dict[str, float | None] = {}
    for name in measures[0]:
        if name != "images":
            values = [m[name] for m in measures if m[name] is not None]
            found[name] = float(np.mean(values)) if values else None
    return found


def _bounds(values: np.ndarray) -> list[float] | None:
    found = bounds(values)
    return None if found is None else [float(f"{v:.4g}") for v in found]


def _summary(rows: Sequence[Mapping[str, Any]], turns: Turns, options: Options) -> dict[str, Any]:
    by_method: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_method[row["method"]][row["label"]] = row
    macro = {
        name: round(float(np.mean([r["average_precision"] for r in found.values()])), 4)
        for name, found in by_method.items()
    }
    rival, plain = (max(names, key=lambda name: macro[name]) for names in (RIVALS, WITHOUT_LABELS))
    ours = by_method[OURS]
    result: dict[str, Any] = {
        "macro_ap": macro[OURS],
        "best_rival": rival,
        "macro_ap_best_rival": macro[rival],
        "gain": round(macro[OURS] / macro[rival] - 1, 4) if macro[rival] else None,
        "best_without_labels": plain,
        "macro_ap_without_labels": macro[plain],
        "gain_without_labels": round(macro[OURS] / macro[plain] - 1, 4) if macro[plain] else None,
        "geometric_mean_lift": _mean_lift(ours.values()),
        "geometric_mean_lift_best_rival": _mean_lift(by_method[rival].values()),
        "pointing": round(float(np.mean([r["pointing"] for r in ours.values()])), 4),
        "images": len(turns.known.images),
        "turns": TURNS,
        "images_with_untold_truth": turns.known.untold,
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


def _mean_lift(rows: Iterable[Mapping[str, Any]]) -> float:
    return round(metrics.geometric_mean(row["lift"] for row in rows), 3)


def _intervals(
    rows: Sequence[Mapping[str, Any]], resampled: Mapping[tuple[str, str], np.ndarray], rival: str, plain: str
) -> dict[str, Any]:
    """Return intervals of what `_summary` says; a resample counts where every label has something marked."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    macro = {name: np.mean([resampled[label, name] for label in labels], axis=0) for _, name in resampled}

    def gain(name: str) -> list[float] | None:
        other = macro[name]
        return _bounds(np.divide(macro[OURS], other, out=np.full(RESAMPLES, np.nan), where=other > 0) - 1)

    found: dict[str, Any] = {
        "macro_ap_interval": _bounds(macro[OURS]),
        "gain_interval": gain(rival),
        "gain_without_labels_interval": gain(plain),
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


def _draw(run: Run, turns: Turns, methods: Sequence[Method], labels: Sequence[str], path: Path) -> None:
    """Rows: of every label the best, the median and the worst image by the average precision of our map."""
    from matplotlib.figure import Figure

    from typicality.applications.localize.pictures import heat, outlined

    named = {m.name: m for m in methods}
    shown = [named[OURS], *(named[name] for name in dict.fromkeys((*WITHOUT_LABELS, *RIVALS)))]
    images = {i.image_id: i for i in run.dataset}
    cases = [case for label in labels for case in _cases(run, turns, named[OURS], label)]
    figure = Figure(figsize=(2 * (1 + len(shown)) + 1.2, 1.9 * len(cases)), layout="constrained", dpi=80)
    axes = figure.subplots(len(cases), 1 + len(shown), squeeze=False)
    for row, (label, case, image_id, precision) in zip(axes, cases, strict=True):
        picture = run.dataset.open(images[image_id])
        truth = turns.known.truths[image_id, label]
        row[0].imshow(outlined(picture, truth))
        row[0].set_ylabel(f"{label}, {case}\nAP {precision:.2f}", fontsize=9)
        for axis, method in zip(row[1:], shown, strict=True):
            axis.imshow(heat(picture, _maps(run, turns, method, label, [image_id])[0]))
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("image and truth", *(m.name for m in shown)), strict=True):
        axis.set_title(title, fontsize=10)
    write_whole(path, lambda p: figure.savefig(p, format="png"))


def _cases(run: Run, turns: Turns, ours: Method, label: str) -> list[tuple[str, str, str, float]]:
    """Return (label, case, image_id, average precision) of up to three images."""
    ids = [i for of_turn in turns.ids(label) for i in of_turn if turns.known.truths[i, label].any()]
    scored = [
        (metrics.average_precision(m, turns.known.truths[i, label]), i)
        for m, i in zip(_maps(run, turns, ours, label, ids), ids, strict=True)
    ]
    ranked = sorted(scored, reverse=True)
    if not ranked:
        return []
    places = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
    return [(label, case, ranked[k][1], ranked[k][0]) for case, k in zip(CASES, places, strict=False)]
