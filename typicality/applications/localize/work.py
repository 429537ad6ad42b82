"""The command: evidence, recipes, thresholds, maps, boxes, and their measures where something is marked."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from typicality import metrics
from typicality.applications.localize import distance
from typicality.applications.localize.choose import best_threshold, choose
from typicality.applications.localize.maps import Kitchen, Recipe, default_recipe, families, upsampled, variants
from typicality.applications.localize.measure import measure, rounded
from typicality.applications.localize.passes import Evidence, Range, Request, collect
from typicality.applications.localize.pictures import overlay, save
from typicality.applications.localize.places import Place, places
from typicality.applications.localize.thresholds import (
    REFERENCES,
    Threshold,
    of_references,
    references_of,
    unsupervised,
)
from typicality.applications.localize.truth import boxes_tell_labels, cell_shares, truths_of, validation_part
from typicality.config import Settings, resolve
from typicality.dataset import load_dataset
from typicality.errors import InputError, InterruptedRun, nearest
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.renewal import renew_report
from typicality.run import Run, existing_record, open_finished
from typicality.scoring.noise import check_draws
from typicality.store import write_arrays, write_json, write_table

SHARE = 0.3
"""Of the groups that have ground truth and no model has seen: they choose, the others judge."""
DRAWS = 16
BEST_IOU = "best IoU of the validation part"
BOXES = pa.schema(
    [
        ("image_id", pa.string()), ("file_name", pa.string()), ("label", pa.string()), ("x0", pa.int32()),
        ("y0", pa.int32()), ("x1", pa.int32()), ("y1", pa.int32()), ("score", pa.float32()), ("area", pa.int32()),
        ("threshold", pa.float32()),
    ]
)  # fmt: skip
PAIR_SMOOTHINGS = (0.0, 1.0, 2.0, 3.0)
Shares = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Localization:
    """What was found.

    Attributes
    ----------
    folder : the run directory
    boxes : localization.parquet
    summary : images, boxes, recipe and threshold by label; `measures` by label and their means over labels where
        the data set has ground truth for images that no model has seen
    """

    folder: Path
    boxes: pa.Table
    summary: dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What may be asked of maps.

    Attributes
    ----------
    against : label to contrast the others with, such as the healthy one
    draws : UNet draws an image, label and range
    ranges : of timesteps as shares of the training steps; that of the scores by default
    """

    against: str | None = None
    draws: int = DRAWS
    ranges: tuple[Range, ...] = ()

    def check(self, labels: Sequence[str]) -> None:
        """Raise InputError where a value cannot work."""
        if self.against is not None and self.against not in labels:
            raise InputError(f"--against: there is no label {self.against!r}; {nearest(self.against, labels)}")
        check_draws(self.draws)
        for low, high in self.ranges:
            if not 0 <= low < high <= 1:
                raise InputError(f"--range takes LOW:HIGH with 0 <= LOW < HIGH <= 1, not {low:g}:{high:g}")


DEFAULTS = Options()


@contextmanager
def opened(settings: Settings, folder: Path, options: Options, progress: Progress) -> Iterator[tuple[Run, Options]]:
    """Open a fine-tuned run, hold its lock, and fill in the options; its model and its settings stay as they are.

    Raises
    ------
    InputError : for options that cannot work, and settings that its model was not fine-tuned with.
    OutputError : when `folder` is no run, or has not been fine-tuned.
    """
    _same_prompts(folder, existing_record(folder), settings)
    run = open_finished(folder, "finetune", settings, progress)
    options.check(run.dataset.labels)
    if unknown := set(run.dataset.labels) - set(existing_record(folder)["dataset"]["labels"]):
        raise InputError(f"{folder} was fine-tuned without the labels {', '.join(sorted(unknown))}: leave out --set")
    options = replace(options, ranges=options.ranges or ((settings.score.t_min, settings.score.t_max),))
    with run.directory.lock():
        try:
            yield run, options
        except KeyboardInterrupt as stop:
            raise InterruptedRun(f"stopped; the same command continues in {folder}") from stop


def _same_prompts(folder: Path, record: Mapping[str, Any], settings: Settings) -> None:
    recorded = resolve(record["settings"])
    if settings.finetune.enabled and settings.prompt != recorded.prompt:
        raise InputError(
            f"{folder} was fine-tuned with the prompts {recorded.prompt.template!r} and {recorded.prompt.null!r}: its "
            "model knows no others; leave out prompt.*"
        )


def requests_of(images: Sequence[LabelledImage], against: str | None) -> list[Request]:
    """Return every image with the labels it can be localized for: its own but the reference."""
    pairs = [(i.image_id, tuple(label for label in i.labels if label != against)) for i in images]
    return [(image_id, labels) for image_id, labels in pairs if labels]


def plan_of(settings: Settings, folder: Path, options: Options) -> dict[str, Any]:
    """Return what a call would do, for `--dry-run`: nothing is loaded but the data set's records, nothing is written.

    Raises
    ------
    InputError, OutputError : as `opened` does.
    """
    _same_prompts(folder, existing_record(folder), settings)
    dataset = load_dataset(settings.dataset)
    options.check(dataset.labels)
    ranges = options.ranges or ((settings.score.t_min, settings.score.t_max),)
    requests = requests_of(list(dataset), options.against)
    prompts = sum(1 + len(labels) + (options.against is not None) for _, labels in requests)
    evaluations = prompts * options.draws * len(ranges)
    if options.against is not None:
        alone = 0 if _names_truth(settings) else min(REFERENCES, sum(i.labels == (options.against,) for i in dataset))
        evaluations += alone * (1 + len(dataset.labels)) * options.draws * len(ranges)
        folds = settings.finetune.folds if settings.finetune.enabled else 1
        evaluations += distance.evaluations_of(dataset, len(requests) + alone, options.against, folds)
    return {
        "run": str(folder), "images": len(requests), "against": options.against, "draws": options.draws,
        "ranges": [list(r) for r in ranges], "UNet evaluations at most": evaluations,
    }  # fmt: skip


def _names_truth(settings: Settings) -> bool:
    return settings.dataset.masks is not None or settings.dataset.boxes is not None


@dataclass(frozen=True)
class Parts:
    """Images with ground truth that no model has seen, in two parts that share no group.

    Attributes
    ----------
    truths : what is marked, bool (height, width), by image_id and label
    validation : ids of the images that choose
    held_out : ids of all images that no model has seen, marked or not
    untold : images with several labels that are left out, since what is marked does not say of which it is
    """

    truths: Mapping[tuple[str, str], np.ndarray]
    validation: frozenset[str]
    held_out: frozenset[str]
    untold: int = 0

    def of(self, image_id: str, label: str) -> str:
        if (image_id, label) not in self.truths:
            return "unmarked" if image_id in self.held_out else "training"
        return "validation" if image_id in self.validation else "test"


@dataclass(frozen=True)
class Known:
    """What is marked in images that no model has seen.

    Attributes
    ----------
    truths : bool (height, width), by image_id and label
    images : with only those of their labels of which something is known
    untold : images with several labels that are left out, since what is marked does not say of which it is
    """

    truths: Mapping[tuple[str, str], np.ndarray]
    images: tuple[LabelledImage, ...]
    untold: int

    @property
    def anything(self) -> bool:
        return any(truth.any() for truth in self.truths.values())


def known_of(run: Run, requests: Sequence[Request]) -> Known:
    """Read the ground truth of images that no model has seen."""
    asked, eligible, named = dict(requests), run.held_out, boxes_tell_labels(run.dataset)
    truths: dict[tuple[str, str], np.ndarray] = {}
    images, untold = [], 0
    for image in run.dataset:
        if image.image_id not in asked or image.image_id not in eligible:
            continue
        found = truths_of(run.dataset, image, asked[image.image_id], named)
        if found is None:
            untold += 1
        elif found:
            images.append(replace(image, labels=tuple(found)))
            truths |= {(image.image_id, label): truth for label, truth in found.items()}
    if untold:
        run.progress.say(
            f"warning: {untold} images have several labels, and their ground truth does not say of which it is; they "
            "are not measured: a COCO file whose categories are the labels would say it"
        )
    return Known(truths, tuple(images), untold)


def parts_of(run: Run, requests: Sequence[Request]) -> Parts:
    """Read the ground truth of images that no model has seen and say which of them choose."""
    known = known_of(run, requests)
    chosen = validation_part(known.images, SHARE) if known.anything else frozenset()
    return Parts(known.truths, chosen, run.held_out, known.untold)


def shares_of(evidence: Sequence[Evidence], truths: Mapping[tuple[str, str], np.ndarray]) -> Shares:
    """Return the marked share of every cell of the maps of images, (h, w) by image_id and label."""
    return {
        (e.image_id, e.label): cell_shares(
            truths[e.image_id, e.label], e.view, next(iter(e.maps.values())).shape[1:]
        )
        for e in evidence
    }  # fmt: skip


def recipes_of(family: Sequence[tuple[str, ...]], ranges: int) -> list[Recipe]:
    """Return the recipes that a family of parts is tried with."""
    single = variants([names for names in family if len(names) == 1], ranges)
    pairs = variants([names for names in family if len(names) == 2], ranges, PAIR_SMOOTHINGS)
    return [*single, *pairs]


def by_label(evidence: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    found: dict[str, list[Evidence]] = defaultdict(list)
    for e in evidence:
        found[e.label].append(e)
    return dict(sorted(found.items()))


class Judge:
    """Chooses recipes and thresholds on the validation part."""

    def __init__(self, run: Run, parts: Parts, evidence: Sequence[Evidence], labels: Sequence[str]) -> None:
        self.run = run
        self.groups = {i.image_id: i.group for i in run.dataset}
        self.validation = [e for e in evidence if parts.of(e.image_id, e.label) == "validation"]
        found = by_label(self.validation)
        self.by_label = {label: found.get(label, []) for label in labels}
        self.kitchen = Kitchen(self.validation)
        self.shares = shares_of(self.validation, parts.truths)

    def recipes(self, family: Sequence[tuple[str, ...]], ranges: int) -> dict[str, Recipe]:
        """Return the best recipe of a family for each label."""
        return choose(
            self.kitchen, self.by_label, lambda e: self.shares[e.image_id, e.label], lambda e: self.groups[e.image_id],
            recipes_of(family, ranges), self.run.progress,
        )  # fmt: skip

    def thresholds(self, recipes: Mapping[str, Recipe]) -> dict[str, float]:
        """Return the threshold of the best IoU for every label that has something marked here."""
        found = {}
        for label, recipe in recipes.items():
            evidence = self.by_label[label]
            shares = [self.shares[e.image_id, e.label] for e in evidence]
            threshold = best_threshold([self.kitchen(e, recipe) for e in evidence], shares)
            if threshold is not None:
                found[label] = threshold
        return found


def localize(
    settings: Settings, folder: Path, options: Options = DEFAULTS, *, overlays: int = 8, write_masks: bool = False,
    progress: Progress = SILENT,
) -> Localization:  # fmt: skip
    """Find where the labels of a run's images show.

    Parameters
    ----------
    folder : a run directory; `settings.dataset.masks` and `.boxes` may name ground truth
    overlays : pictures a label

    Raises
    ------
    InputError, OutputError : see `opened`.
    """
    with opened(settings, folder, options, progress) as (run, options):
        requests = requests_of(list(run.dataset), options.against)
        parts = parts_of(run, requests)  # before the work: a mask that cannot be read is refused at once
        usual = [] if options.against is None or _names_truth(settings) else references_of(run, options.against)
        present = tuple(sorted({label for _, labels in requests for label in labels}))
        asked = [*requests, *((i, present) for i in usual)]
        everything = collect(run, asked, options.against, options.ranges, options.draws)
        references = [e for e in everything if e.image_id in set(usual)]
        evidence = everything[: len(everything) - len(references)]
        labels = sorted({e.label for e in evidence})
        judged = by_label(evidence)
        kitchen = Kitchen(evidence)
        recipes = dict.fromkeys(labels, default_recipe(options.against is not None))
        thresholds: dict[str, Threshold] = {}
        chosen = False
        if parts.validation:
            judge = Judge(run, parts, evidence, labels)
            if any(shares.any() for shares in judge.shares.values()):
                kitchen, chosen = judge.kitchen, True
                recipes = judge.recipes(families(options.against is not None)["combined"], len(options.ranges))
                best = judge.thresholds(recipes)
                thresholds = {label: Threshold(value, BEST_IOU) for label, value in best.items()}
        if options.against is not None and references:
            thresholds |= of_references(references, recipes, kitchen, options.against)
        for label in labels:
            if label not in thresholds:
                cells = [kitchen(e, recipes[label]).ravel() for e in judged[label]]
                thresholds[label] = unsupervised(np.concatenate(cells))
        values = {label: threshold.value for label, threshold in thresholds.items()}
        output = _Output(run, kitchen, recipes, values, parts, overlays, write_masks)
        shutil.rmtree(output.folder, ignore_errors=True)  # pictures of an earlier call would stay beside ours
        output.write(judged)
        summary: dict[str, Any] = {
            "run": str(folder), "against": options.against, "draws": options.draws, "ranges": list(options.ranges),
            "images": len(requests), "boxes": output.boxes.num_rows,
            "labels": {
                label: {
                    "images": len(judged[label]), "recipe": recipes[label].describe(options.ranges),
                    "meaning": recipes[label].meaning(label, options.against), "settings": asdict(recipes[label]),
                    "threshold": float(f"{values[label]:.5g}"), "threshold_by": thresholds[label].by,
                    "chosen_by": "validation part" if chosen else "default", "overlays": output.pictures.get(label, []),
                }
                for label in labels
            },
        }  # fmt: skip
        if parts.untold:
            summary["images_with_untold_truth"] = parts.untold
        if output.measures:
            summary |= _means(output.measures)
        elif parts.truths:
            progress.say("nothing is marked in images that no model has seen, so nothing could be measured")
        write_json(folder / "localize" / "summary.json", summary)
        renew_report(run)
        return Localization(folder, output.boxes, summary)


def _means(measures: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the measures by label with their means over labels."""

    def macro(name: str) -> float:
        return float(np.mean([row[name] for row in measures.values()]))

    return rounded(
        {
            "macro_ap": macro("average_precision"),
            "macro_image_ap": macro("mean_image_average_precision"),
            "geometric_mean_lift": metrics.geometric_mean(row["lift"] for row in measures.values()),
            "pointing": macro("pointing"),
            "measures": {label: rounded(row) for label, row in measures.items()},
        }
    )


class _Output:
    """Makes the maps of one label after another at full size, and writes what follows from them."""

    def __init__(
        self, run: Run, kitchen: Kitchen, recipes: Mapping[str, Recipe], thresholds: Mapping[str, float], parts: Parts,
        overlays: int, write_masks: bool,
    ) -> None:  # fmt: skip
        self.run, self.kitchen, self.recipes, self.thresholds, self.parts = run, kitchen, recipes, thresholds, parts
        self.overlays, self.write_masks = overlays, write_masks
        self.images = {i.image_id: i for i in run.dataset}
        self.boxes = BOXES.empty_table()
        self.measures: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.folder = run.directory.path("localize")

    def write(self, evidence: Mapping[str, Sequence[Evidence]]) -> None:
        """Write boxes, maps, masks and overlays of all labels; measure where there is a truth."""
        rows: list[dict[str, Any]] = []
        index: list[dict[str, Any]] = []
        for label, found in evidence.items():
            shown = {e.image_id for e in self._shown(found)}
            maps, truths = [], []
            by_shape: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
            self.run.progress.start(f"maps of {label}", len(found))
            for e in found:
                image, cells = self.images[e.image_id], self.kitchen(e, self.recipes[label])
                shard = f"{_safe(label)}-{cells.shape[0]}x{cells.shape[1]}"
                index.append(self._entry(e, image, shard, len(by_shape[cells.shape])))
                by_shape[cells.shape].append(cells.astype(np.float32))
                scores = upsampled(cells, e.view, image.width, image.height)
                threshold = self.thresholds[label]
                smallest = 0.5 * e.view.scale_x * e.view.scale_y * (e.view.width / cells.shape[1]) ** 2
                found_places = places(scores, threshold, smallest)
                rows += [_row(image, label, place, threshold) for place in found_places]
                if self.parts.of(e.image_id, label) == "test":
                    maps.append(scores)
                    truths.append(self.parts.truths[e.image_id, label])
                if self.write_masks:
                    mask = Image.fromarray(((scores >= threshold) * 255).astype(np.uint8))
                    save(mask, self.folder / "masks" / _name(image, label))
                if e.image_id in shown:
                    picture = overlay(
                        self.run.dataset.open(image), scores, [p.box for p in found_places],
                        self.parts.truths.get((e.image_id, label)),
                    )  # fmt: skip
                    save(picture, self.folder / "overlays" / _name(image, label))
                    self.pictures[label].append({"file": _name(image, label), "file_name": image.file_name})
                self.run.progress.advance()
            self.run.progress.finish()
            self.kitchen.forget()
            for shape, arrays in by_shape.items():
                name = f"{_safe(label)}-{shape[0]}x{shape[1]}.safetensors"
                write_arrays(self.folder / "maps" / name, {"maps": np.stack(arrays)})
            if any(t.any() for t in truths):
                self.measures[label] = measure(maps, truths, self.thresholds[label])
        write_table(self.folder / "maps" / "index.parquet", pa.Table.from_pylist(index))
        self.boxes = pa.Table.from_pylist(rows, schema=BOXES)
        write_table(self.run.directory.path("localization.parquet"), self.boxes)

    def _shown(self, found: Sequence[Evidence]) -> list[Evidence]:
        """Overlays show images that no model has seen first, evenly over the order of their ids."""
        ordered = sorted(found, key=lambda e: (e.image_id not in self.run.held_out, e.image_id))
        return ordered[: self.overlays]

    def _entry(self, e: Evidence, image: LabelledImage, shard: str, row: int) -> dict[str, Any]:
        return {
            "image_id": e.image_id, "file_name": image.file_name, "label": e.label, "shard": shard, "row": row,
            "threshold": self.thresholds[e.label], "part": self.parts.of(e.image_id, e.label), **asdict(e.view),
        }  # fmt: skip


def _row(image: LabelledImage, label: str, place: Place, threshold: float) -> dict[str, Any]:
    x0, y0, x1, y1 = place.box
    return {
        "image_id": image.image_id, "file_name": image.file_name, "label": label, "x0": x0, "y0": y0, "x1": x1,
        "y1": y1, "score": place.score, "area": place.area, "threshold": threshold,
    }  # fmt: skip


def _safe(text: str, most: int = 80) -> str:
    """Return text as part of a file name, `most` bytes at most, distinct for distinct texts.

    What is too long ends in a hash of all of it: a file name may have 255 bytes, and this is a part of one.
    """
    parts = [c if c.isalnum() or c in "-_" else "".join(f"%{b:02x}" for b in _bytes(c)) for c in text]
    name = "".join(parts)
    if len(name.encode()) <= most:
        return name
    ending = f"~{hashlib.sha256(_bytes(text)).hexdigest()[:12]}"
    return name.encode()[: most - len(ending)].decode(errors="ignore") + ending


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # names of files need not be valid UTF-8


def _name(image: LabelledImage, label: str) -> str:
    return f"{_safe(label)}-{_safe(Path(image.file_name).stem, 60)}-{image.image_id[:8]}.png"
