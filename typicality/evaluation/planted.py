"""Motifs put into images on purpose: how well mining finds them again, on any images and with the truth known.

Groups of images get labels at random, so that nothing real tells the labels apart. Motifs of each label (motifs.py)
are pasted into a share of its images, distractors into images of all labels alike. The planted images are mined as
any others would be, scored by models that have not seen them, and the elements are held against the boxes. With
`control` nothing is planted: whatever then counts as significant is a false alarm.

An element hits a box when they share at least half of the smaller of both areas.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.ndimage import gaussian_filter

from typicality import metrics
from typicality.applications.localize.maps import upsampled
from typicality.config import DatasetSettings, Settings
from typicality.dataset import pixels
from typicality.dataset.sources import open_source
from typicality.dataset.split import unit_hash
from typicality.errors import InputError, InterruptedRun, nearest
from typicality.evaluation.motifs import generator
from typicality.evaluation.planted_figure import draw_figure
from typicality.evaluation.planting import Original, Planting, Truth, choose_images, read_truth, write_planted
from typicality.mining.significance import tested_p_value
from typicality.passes import score_pass
from typicality.pipeline import Result, mine
from typicality.progress import SILENT, Progress
from typicality.records import Box, ScoreMap
from typicality.run import Run, open_run
from typicality.scoring.scorer import Job

TOP = 100
LEVEL = 0.05
SMOOTHING = 1.0
"""Standard deviation in cells of the Gaussian over maps; chosen beforehand, as `localize` uses without ground truth."""
FINEST = 128
"""Pixels of the short side at which maps are measured at most."""
REPEATS = 20
MEASURES = (
    "precision_at_100", "chance_precision", "recall", "recall_bound", "planted_cluster_rank", "planted_first",
    "cluster_purity", "planted_significant", "others_significant", "distractor_at_100", "elements",
    "pixel_ap", "prevalence", "lift", "pixel_ap_unsmoothed", "pixel_ap_error",
)  # fmt: skip
CONTROL_MEASURES = ("false_alarms", "nominal_alarms", "sign_flip_alarms", "any_alarm", "clusters")
SWEPT = {"prevalence": float, "size": float, "contrast": float, "place": str}


@dataclass(frozen=True)
class PlantedBenchmark:
    """The result of `evaluate planted`.

    Attributes
    ----------
    measures : means over labels and seeds; with a sweep under `name@value`.
        precision_at_100: share of a label's first 100 elements (of all, where it has fewer: `elements` is the
        smallest number of a label) that hit a motif of it; chance_precision: the same of these boxes on images of the
        label at random; recall: share of the planted boxes hit by any element, and recall_bound, what it would be if
        every element hit another one; planted_cluster_rank: of the first cluster with
        a planted majority, from 0, of the worst label (the number of its clusters where there is none);
        planted_first: share of the labels whose first cluster is one; cluster_purity: share of planted elements in
        such clusters; planted_significant, others_significant: shares of these clusters and of all others with an
        adjusted p-value of at most 0.05; distractor_at_100: first elements that hit a distractor and no motif;
        pixel_ap: average precision of the pixels of smoothed maps, over planted and other images of a label; its
        chance level prevalence, and lift = pixel_ap / prevalence; pixel_ap_unsmoothed; pixel_ap_error: of the plain
        denoising error, which knows no label.
        With `control`: false_alarms, the share of all clusters of all seeds with an adjusted p-value of at most 0.05;
        nominal_alarms, the same before adjustment; sign_flip_alarms, what false_alarms would be if the sign-flip test
        of clusters without controls were believed, as without folds; any_alarm, the share of seeds with at least one
        false alarm; clusters a seed.
    rows : means of every value of the sweep; runs : every single run
    """

    dataset: str
    measures: dict[str, float | None]
    rows: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    planting: dict[str, Any]
    motifs: list[str]
    n: int
    n_groups: int
    folds: int
    steps: int | None
    draws: int
    seeds: int
    seed: int
    unet_evaluations: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        own = asdict(self)
        return own.pop("measures") | own


def planted(
    settings: Settings, out: Path | None = None, *, planting: Planting | None = None, images: int = 2000,
    seeds: int = 1, sweep: str | None = None, draws: int = 16, maps: int = 300, picture: Path | None = None,
    fresh: bool = False, progress: Progress = SILENT,
) -> PlantedBenchmark:  # fmt: skip
    """Plant motifs, mine, and measure what was found.

    Parameters
    ----------
    settings : data set, model, amounts; its labels are ignored. `finetune.folds` should be 2 at least
    out : folder of the planted images (data) and the mined run (run), with sweeps and seeds in folders of their own;
        reports/<data set>-planted or -control by default
    images : how many, in whole groups but for the last
    seeds : how many runs a value, each with other labels, places and noise
    sweep : "prevalence=1,0.5,0.2", or size, contrast, place
    draws : UNet draws of the maps behind pixel_ap; even
    maps : images whose maps are measured, of all labels together
    picture : PNG

    Raises
    ------
    InputError : for impossible numbers, or too few images or groups.
    """
    started = time.monotonic()
    base = Planting() if planting is None else planting
    plans = parse_sweep(sweep, base)
    if min(images, seeds, maps) < 1 or draws < 2 or draws % 2:
        raise InputError("--images, --seeds and --maps must be at least 1, and --map-draws even")
    name, folder = _name_and_folder(settings, out, base)
    runs: list[dict[str, Any]] = []
    originals: list[Original] = []
    first = folder
    last: Run | None = None
    for value, plan in plans:
        for seed in range(settings.seed, settings.seed + seeds):
            originals = choose_images(settings.dataset, images, seed)
            parts = [f"{str(sweep).partition('=')[0]}-{value}"] * (value is not None)
            parts += [f"seed-{seed}"] * (seeds > 1)
            here = folder.joinpath(*parts)
            first = first if runs else here / "data"
            if parts:
                progress.say(f"planted: {' '.join(parts)}")
            truth = write_planted(here / "data", originals, plan, seed, settings.model.max_aspect, fresh)
            own = settings_of(settings, here / "data", seed, plan)
            result = mine(own, here / "run", fresh, progress)
            last = open_run(own, here / "run", progress=progress)
            measured = control_measures(result.clusters) if plan.control else element_measures(result, truth, seed)
            if not plan.control:
                measured |= _measured_maps(last, truth, draws, maps)
            stages = last.directory.record["stages"]
            runs.append(
                {"value": value, "seed": seed, **measured}
                | {"unet_evaluations": sum(s.get("unet_evaluations", 0) for s in stages.values())}
            )
    assert last is not None
    names = CONTROL_MEASURES if base.control else MEASURES
    found = [(value, means([r for r in runs if r["value"] == value], names)) for value, _ in plans]
    rows = [{"value": value, **row} for value, row in found]
    measures = found[0][1] if sweep is None else {f"{n}@{value}": row[n] for value, row in found for n in names}
    if picture is not None:
        examples = _examples(first)
        draw_figure(picture, rows, runs, examples, sweep.partition("=")[0] if sweep else None, base.control)
    return PlantedBenchmark(
        dataset=name,
        measures=measures,
        rows=rows if sweep is not None else [],
        runs=[{n: v for n, v in run.items() if not isinstance(v, (list, dict))} for run in runs],
        planting=asdict(base) | ({"sweep": sweep} if sweep else {}),
        motifs=[m.name for m in base.draw(settings.seed)],
        n=len(originals),
        n_groups=len({o.group for o in originals}),
        folds=last.folds,
        steps=last.directory.record["stages"].get("finetune", {}).get("steps"),
        draws=draws,
        seeds=seeds,
        seed=settings.seed,
        unet_evaluations=sum(run["unet_evaluations"] for run in runs),
        seconds=round(time.monotonic() - started, 1),
    )


def _name_and_folder(settings: Settings, out: Path | None, planting: Planting) -> tuple[str, Path]:
    name = open_source(settings.dataset).name
    return name, out or Path("reports") / f"{name}-{'control' if planting.control else 'planted'}"


def plan_of(
    settings: Settings, out: Path | None, planting: Planting, images: int, seeds: int, sweep: str | None
) -> dict[str, Any]:
    """Return what `planted` would do, for `--dry-run`: no image is read."""
    plans = parse_sweep(sweep, planting)
    name, folder = _name_and_folder(settings, out, planting)
    return {
        "settings": settings.model_dump(mode="json"), "out": str(folder),
        "plan": {
            "dataset": name, "images": images, "runs": len(plans) * seeds, "folds": settings.finetune.folds,
            "planting": [asdict(plan) for _, plan in plans],
        },
    }  # fmt: skip


def parse_sweep(sweep: str | None, base: Planting) -> list[tuple[str | None, Planting]]:
    """Return (value as it was written, planting) for each value of "name=value,value"; the base alone without one."""
    plans: list[tuple[str | None, Planting]] = [(None, base)]
    if sweep is not None:
        name, equals, values = sweep.partition("=")
        if name not in SWEPT or not equals:
            raise InputError(f"--sweep takes name=value,value with another name than {name!r}: {nearest(name, SWEPT)}")
        if base.control:
            raise InputError("--control plants nothing, so there is nothing to --sweep")
        try:
            plans = [(v, replace(base, **{name: SWEPT[name](v)})) for v in map(str.strip, values.split(",")) if v]
        except ValueError:
            raise InputError(f"--sweep {name} takes numbers, such as {name}=1,0.5, not {values!r}") from None
        if len({value for value, _ in plans}) < max(1, len(plans)):
            raise InputError(f"--sweep {sweep}: every value once")
        if not plans:
            raise InputError(f"--sweep {name} needs values, such as {name}=1,0.5")
    for _, plan in plans:
        plan.check()
    return plans


def settings_of(settings: Settings, data: Path, seed: int, planting: Planting) -> Settings:
    """Return the settings with the planted images as the data set; model and amounts stay."""
    what = "with nothing planted" if planting.control else "with planted motifs"
    return settings.model_copy(
        update={
            "dataset": DatasetSettings.model_validate({"source": str(data), "label": "label", "group": "group"}),
            "report": settings.report.model_copy(update={"title": f"Labels at random, {what}"}),
            "seed": seed,
        }
    )


# ----------------------------------------------------------------------------------------------------- elements


def hits(box: Box, targets: Sequence[Box]) -> list[bool]:
    """Whether a box shares at least half of the smaller of both areas with each target."""
    found = []
    for target in targets:
        width = min(box[2], target[2]) - max(box[0], target[0])
        height = min(box[3], target[3]) - max(box[1], target[1])
        smaller = min(area(box), area(target))
        found.append(width > 0 and height > 0 and 2 * width * height >= smaller)
    return found


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def element_measures(result: Result, truth: Mapping[str, Truth], seed: int) -> dict[str, Any]:
    """Hold elements and clusters of a mined run against what was planted; see `PlantedBenchmark`."""
    return measure_elements(result.elements.to_pylist(), result.clusters.to_pylist(), truth, seed)


def measure_elements(
    elements: Sequence[Mapping[str, Any]], clusters: Sequence[Mapping[str, Any]], truth: Mapping[str, Truth], seed: int
) -> dict[str, Any]:
    """The same from rows of both tables: file_name, label, x0 ... y1, rank, cluster; label, cluster, rank, ..."""
    labels = sorted({t.label for t in truth.values()})
    by_label: dict[str, list[Mapping[str, Any]]] = {label: [] for label in labels}
    for element in sorted(elements, key=lambda e: e["rank"]):
        by_label[element["label"]].append(element)
    own: defaultdict[str, dict[str, float]] = defaultdict(dict)
    curves: dict[str, list[float]] = {}
    kinds: dict[tuple[str, int], bool] = {}
    for label in labels:
        rows = by_label[label]
        boxes = [(e["x0"], e["y0"], e["x1"], e["y1"]) for e in rows]
        targets = {name: t.planted for name, t in truth.items() if t.label == label}
        reached = [hits(box, targets[e["file_name"]]) for box, e in zip(boxes, rows, strict=True)]
        hit = np.array([any(r) for r in reached], dtype=bool)
        found = {(e["file_name"], i) for e, r in zip(rows, reached, strict=True) for i in np.flatnonzero(r)}
        total = sum(len(t) for t in targets.values())
        other = [any(hits(b, truth[e["file_name"]].distractors)) for b, e in zip(boxes[:TOP], rows, strict=False)]
        members: defaultdict[int, list[bool]] = defaultdict(list)
        for element, right in zip(rows, hit, strict=True):
            members[element["cluster"]].append(bool(right))
        ranked = sorted((c for c in clusters if c["label"] == label), key=lambda c: c["rank"])
        major = [2 * sum(members[c["cluster"]]) > len(members[c["cluster"]]) for c in ranked]
        kinds |= {(label, c["cluster"]): m for c, m in zip(ranked, major, strict=True)}
        pure = [right for c, m in zip(ranked, major, strict=True) if m for right in members[c["cluster"]]]
        own[label] = {
            "precision_at_100": _mean(hit[:TOP]),
            "chance_precision": _chance(boxes[:TOP], list(targets.values()), seed),
            "recall": len(found) / total if total else float("nan"),
            "recall_bound": min(1.0, len(rows) / total) if total else float("nan"),
            "planted_cluster_rank": major.index(True) if any(major) else len(ranked),
            "planted_first": float(bool(major) and major[0]),
            "cluster_purity": _mean(pure) if pure else 0.0,
            "distractor_at_100": _mean(np.array(other, dtype=bool) & ~hit[: len(other)]),
        }
        curves[label] = (np.cumsum(hit) / np.arange(1, len(hit) + 1)).round(4).tolist()
    names = own[labels[0]]
    result: dict[str, Any] = {n: _mean([m[n] for m in own.values() if not np.isnan(m[n])]) for n in names}
    result["elements"] = min(len(rows) for rows in by_label.values())
    result["planted_cluster_rank"] = max(m["planted_cluster_rank"] for m in own.values())
    for name, wanted in (("planted_significant", True), ("others_significant", False)):
        values = [tested_p_value(c) for c in clusters if kinds[c["label"], c["cluster"]] is wanted]
        result[name] = _mean([p is not None and p <= LEVEL for p in values])
    return {name: _rounded(value) for name, value in result.items()} | {"curves": curves}


def _chance(boxes: Sequence[Box], targets: Sequence[tuple[Box, ...]], seed: int) -> float:
    """Share of boxes that hit when each is laid on images of the label drawn at random."""
    rng = generator("chance", seed, len(boxes))
    return _mean([any(hits(b, targets[i])) for b in boxes for i in rng.integers(0, len(targets), REPEATS)])


def control_measures(clusters: pa.Table) -> dict[str, Any]:
    """False alarms among the clusters of a run with nothing planted; one not tested against controls raises none."""
    tested = np.array(clusters["p_value_method"].to_pylist()) == "controls"
    every, nominal = (
        np.array(clusters[name].to_pylist(), dtype=np.float64) for name in ("adjusted_p_value", "p_value")
    )
    adjusted, plain = np.where(tested, every, np.nan), np.where(tested, nominal, np.nan)
    return {
        "false_alarms": _rounded(_mean(adjusted <= LEVEL)),
        "nominal_alarms": _rounded(_mean(plain <= LEVEL)),
        "sign_flip_alarms": _rounded(_mean(~tested & (every <= LEVEL))),
        "any_alarm": float((adjusted <= LEVEL).any()),
        "clusters": len(adjusted),
        "untested": int(np.isnan(adjusted).sum()),
        "p_values": plain[~np.isnan(plain)].round(5).tolist(),
    }


def means(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float | None]:
    """Means over runs, without those where a measure is unknown; alarms count every cluster of every run alike."""
    result: dict[str, float | None] = {}
    for name in names:
        known = [
            (run[name], run["clusters"] if name.endswith("_alarms") else 1) for run in runs if run[name] is not None
        ]
        weight = sum(w for _, w in known)
        result[name] = _rounded(sum(v * w for v, w in known) / weight) if weight else None
    return result


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


# --------------------------------------------------------------------------------------------------------- maps


def _measured_maps(run: Run, truth: Mapping[str, Truth], draws: int, number: int) -> dict[str, Any]:
    """Score a sample of every label's images anew and measure the maps."""
    by_label: defaultdict[str, list[Any]] = defaultdict(list)
    for image in sorted(run.dataset, key=lambda i: unit_hash(i.image_id, "planted maps")):
        by_label[truth[image.file_name].label].append(image)
    each = max(1, number // len(by_label))
    chosen = {image.image_id: image for members in by_label.values() for image in members[:each]}
    jobs = [Job(image_id, image.labels) for image_id, image in sorted(chosen.items())]
    try:
        with run.directory.lock():
            reader = score_pass(run, "planted maps", "planted", draws, jobs)
    except KeyboardInterrupt as stop:
        raise InterruptedRun(
            f"stopped; what is finished stays in {run.directory.folder}, and the same command continues"
        ) from stop
    found: defaultdict[str, list[tuple[ScoreMap, np.ndarray]]] = defaultdict(list)
    for job in jobs:
        image = chosen[job.image_id]
        marked = np.zeros((image.height, image.width), dtype=bool)
        for x0, y0, x1, y1 in truth[image.file_name].planted:
            marked[y0:y1, x0:x1] = True
        found[job.labels[0]].append((reader.get(job.image_id, job.labels[0]), marked))
    return measure_maps(list(found.values()))


def measure_maps(labels: Sequence[Sequence[tuple[ScoreMap, np.ndarray]]]) -> dict[str, Any]:
    """Pixel average precision of maps against masks, by label; means over labels.

    Parameters
    ----------
    labels : for every label its maps and bool (height, width) of the original
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for pairs in labels:
        if not any(marked.any() for _, marked in pairs):
            continue
        truth = np.concatenate([_thinned(marked) for _, marked in pairs])
        found["prevalence"].append(metrics.prevalence(truth))
        for name, cells in (
            ("pixel_ap", lambda m: gaussian_filter(m.typicality, SMOOTHING, mode="nearest")),
            ("pixel_ap_unsmoothed", lambda m: m.typicality),
            ("pixel_ap_error", lambda m: gaussian_filter(m.null_loss, SMOOTHING, mode="nearest")),
        ):
            scores = [_thinned(upsampled(cells(m), m.view, t.shape[1], t.shape[0])) for m, t in pairs]
            found[name].append(metrics.average_precision(np.concatenate(scores), truth))
    result = {name: _mean(found[name]) for name in ("pixel_ap", "prevalence", "pixel_ap_unsmoothed", "pixel_ap_error")}
    result["lift"] = metrics.lift(result["pixel_ap"], result["prevalence"])
    return {name: _rounded(value) for name, value in result.items()}


def _thinned(values: np.ndarray) -> np.ndarray:
    """Every n-th pixel of every n-th row, so that the short side has FINEST at most; flat."""
    step = -(-min(values.shape) // FINEST)
    return values[step // 2 :: step, step // 2 :: step].ravel()


def _examples(data: Path, number: int = 4) -> list[tuple[str, np.ndarray, Truth]]:
    """(label, pixels, truth) of the first planted images of each label."""
    taken: defaultdict[str, list[str]] = defaultdict(list)
    truth = read_truth(data / "metadata.csv")
    for name in sorted(truth, key=lambda n: (not truth[n].planted, n)):
        if len(taken[truth[name].label]) < number:
            taken[truth[name].label].append(name)
    return [
        (label, np.asarray(pixels.rgb((data / name).read_bytes())), truth[name])
        for label in sorted(taken)
        for name in taken[label]
    ]
