"""Synthetic images of a run: of which sources, what is written, and what is already there."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

from typicality.applications.augment.making import make
from typicality.applications.augment.options import AugmentOptions
from typicality.applications.augment.pictures import sheet
from typicality.applications.augment.rules import PAIRS, unit_distance, verdict
from typicality.config import Settings, key_of
from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.errors import DatasetError, InterruptedRun, nearest
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.renewal import renew_report
from typicality.run import Run, open_finished
from typicality.store import write_arrays, write_json, write_table, write_whole

SHARD_SOURCES = 8
"""Sources a shard: what a killed run loses at most."""
SHEET = 24
"""Sources on the sheet."""
DEFAULT_OPTIONS = AugmentOptions()
SCORES = pa.list_(pa.struct([("label", pa.string()), ("typicality", pa.float32())]))
SHARD_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("file_name", "source_image_id", "source", "group", "label")),
        ("variant", pa.int32()),
        ("typicality", pa.float32()),
        ("standard_error", pa.float32()),
        ("best_label", pa.string()),
        ("source_typicality", pa.float32()),
        ("source_best_label", pa.string()),
        ("scores", SCORES),
        ("moved", pa.float32()),
    ]
)
SCHEMA = pa.schema([*SHARD_SCHEMA, ("distance", pa.float32()), ("kept", pa.bool_()), ("why", pa.string())])
"""A row a synthetic image. `label` is its source's; `typicality` is T(x | label), of negatives the highest under any
label; `best_label` is the diffusion classifier's, `source_...` the same of the source under the same noise; `moved` is
the root mean squared difference of latents to the source, `distance` the same in units of `rules.unit_distance`."""
MEASURED = ("source_image_id", "source", "typicality", "standard_error", "distance", "kept", "why")
"""Columns of the data set's metadata beside file name, label and group. None ends in `_file_name`: the `datasets`
library would take it for a file."""


@dataclass(frozen=True)
class Augmentation:
    """Synthetic images of a run: their folder, the table (`SCHEMA`) and the summary."""

    folder: Path
    table: pa.Table
    summary: dict[str, Any]

    @property
    def images(self) -> Path:
        """The folder that loads as a data set."""
        return self.folder / "images"


def augment(
    folder: Path,
    options: AugmentOptions = DEFAULT_OPTIONS,
    images: int | None = None,
    label: str | None = None,
    fresh: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Augmentation:
    """Make synthetic images of a run's training images and keep those that the measure passes; see the package.

    Parameters
    ----------
    images : sources of a label at most, chosen by a hash of the group, so that fewer are the first of more; what is
        written is of these alone, whatever else was made before
    label : only sources of this label
    fresh : make again what is there under the same options
    settings : with what is to differ from the run's own: seed, device, precision

    Raises
    ------
    OutputError, DatasetError, SettingsError
    """
    options = options.resolved()
    run = open_finished(folder, "finetune", settings, progress)
    sources, several = sources_of(run, label, images)
    if run.folds > 1:
        run.progress.say(
            "warning: models of folds have seen the held-out images of one another; to measure a classifier on the "
            "held-out part, augment a run without --folds"
        )
    made = shards_folder(run, options)
    key = key_of([made.name, label, options.near, options.far])
    where = run.directory.path("augment", f"{options.kind}-{key}")
    with run.directory.lock():
        try:
            with run.directory.stage(f"augment {options.kind}", key) as entry:
                entry |= run.directory.built_on("finetune")
                if fresh:
                    shutil.rmtree(where, ignore_errors=True)
                names, now = make_shards(run, made, sources, options, fresh)
                counts = {"sources": len(sources), "several_labels": several}
                found = _finish(run, where, made, names, options, counts)
                entry |= {"images": found.table.num_rows, "made_now": now, "folder": where.name}
            renew_report(run)
        except KeyboardInterrupt as stop:
            raise InterruptedRun(f"stopped; finished shards stay in {made}, and the same command continues") from stop
    return found


def shards_folder(run: Run, options: AugmentOptions) -> Path:
    """Return the folder of shards; its name covers all that pictures and scores depend on, but for their sources."""
    score = run.settings.score
    key = key_of(
        [run.weights_key, run.latents.folder.name, run.settings.prompt.model_dump(), run.dataset.labels,
         run.dataset.grouping, options.made_of, score.t_min, score.t_max, score.protocol, str(run.dtype),
         run.settings.seed]
    )  # fmt: skip
    return run.directory.path("augment", f"shards-{key}")


def training_images(dataset: LabelledImages, held_out: float) -> list[LabelledImage]:
    """Return the images that are never held out, in the order in which a part of them is chosen.

    Also where folds or the lack of fine-tuning leave every image unseen by some model: who measures a classifier on the
    data set's fixed held-out part must find nothing of it in what the classifier learned from.
    """
    training, _ = dataset.held_out(held_out)
    return sorted(training, key=lambda i: (unit_hash(i.group, "augment"), i.image_id))


def sources_of(run: Run, label: str | None = None, images: int | None = None) -> tuple[list[LabelledImage], int]:
    """Return the sources, label by label, and how many images were passed over since they have several labels.

    Under the prompt of one label nothing says that the others are preserved.

    Raises
    ------
    DatasetError : for a label that there is not, or when no image is left.
    """
    check_label(run.dataset, label)
    wanted = run.dataset.labels if label is None else (label,)
    training = training_images(run.dataset, run.settings.finetune.held_out)
    of_label = {name: [i for i in training if i.labels == (name,)] for name in wanted}
    several = sum(len(i.labels) > 1 and not set(i.labels).isdisjoint(wanted) for i in training)
    found = [image for name in wanted for image in of_label[name][:images]]
    if not found:
        named = "with any label" if label is None else f"with the label {label!r}"
        raise DatasetError(
            f"no training image of {run.dataset.name} {named} has that label alone ({several} have several): what is "
            "made under the prompt of one label need not keep the others, so choose data with one label an image"
        )
    if several:
        run.progress.say(f"passed over: {several} images have several labels, which one prompt need not keep")
    return found, several


def check_label(dataset: LabelledImages, label: str | None) -> None:
    """Raise DatasetError where there is no such label."""
    if label is not None and label not in dataset.labels:
        raise DatasetError(f"{dataset.name} has no label {label!r}; {nearest(label, dataset.labels)}")


def make_shards(
    run: Run, folder: Path, images: Sequence[LabelledImage], options: AugmentOptions, fresh: bool = False
) -> tuple[list[str], int]:
    """Make the shards of these sources that `folder` does not hold yet, or all; the run's lock must be held.

    What shares a shard, and so a batch, follows from the sources alone and not from what is done: arithmetic in another
    batch differs in the last bit, and a run that was stopped must end with the very same files.

    Returns
    -------
    names of all shards of these sources, and the number of sources that were missing
    """
    parts = list(_parts(run, images))
    if fresh:
        for name, _ in parts:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
    missing = [part for part in parts if not (folder / f"{part[0]}.parquet").is_file()]
    run.progress.start(f"augment ({options.kind})", sum(len(chunk) for _, chunk in missing))
    for name, chunk in missing:
        made = make(run, run.denoiser_of(run.fold_of(chunk[0].image_id)), chunk, chunk[0].labels[0], options)
        write_arrays(folder / f"{name}.safetensors", {"sources": made.sources, "pictures": made.pictures})
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(made.rows, schema=SHARD_SCHEMA))
        run.progress.advance(len(chunk))
    run.progress.finish()
    return [name for name, _ in parts], sum(len(chunk) for _, chunk in missing)


def _parts(run: Run, images: Sequence[LabelledImage]) -> Iterator[tuple[str, list[LabelledImage]]]:
    """Divide sources of one label, fold and shape into shards, in their order; yield names and sources."""
    alike: dict[tuple[int, str, int, int], list[LabelledImage]] = defaultdict(list)
    for image in images:
        view = run.latents.view(image.image_id)
        alike[run.fold_of(image.image_id), image.labels[0], view.height, view.width].append(image)
    for (_, label, _, _), group in sorted(alike.items(), key=lambda item: item[0]):
        for start in range(0, len(group), SHARD_SOURCES):
            chunk = group[start : start + SHARD_SOURCES]
            content = "|".join([label, *(i.image_id for i in chunk)])
            yield hashlib.sha256(content.encode()).hexdigest()[:16], chunk


@dataclass(frozen=True)
class Shard:
    """One shard as it lies on disk: sources (n, H, W, 3), pictures (n, k, H, W, 3), rows by file name."""

    sources: np.ndarray
    pictures: np.ndarray
    rows: list[dict[str, Any]]

    def position(self, row: dict[str, Any]) -> int:
        """The index of a row's source."""
        return list(dict.fromkeys(r["source_image_id"] for r in self.rows)).index(row["source_image_id"])


def read_shard(folder: Path, name: str) -> Shard:
    arrays = load_file(folder / f"{name}.safetensors")
    rows = pq.read_table(folder / f"{name}.parquet", schema=SHARD_SCHEMA).to_pylist()
    return Shard(arrays["sources"], arrays["pictures"], rows)


def judged(rows: Sequence[dict[str, Any]], options: AugmentOptions, unit: float) -> list[dict[str, Any]]:
    """Return rows of shards with distance, whether they are kept, and why not."""
    found = []
    for row in rows:
        away = row["moved"] / unit
        scores = {entry["label"]: entry["typicality"] for entry in row["scores"]}
        why = verdict(options, row["label"], scores, away)
        found.append({**row, "distance": away, "kept": why == "kept", "why": why})
    return found


def unit_of(run: Run) -> float:
    """Return the unit of distance of a run: that of a fixed sample of its training images."""
    sample = training_images(run.dataset, run.settings.finetune.held_out)[:PAIRS]
    latents = [run.latents.get(i.image_id).float() for i in sample]
    return unit_distance(latents, [i.group for i in sample])


def _finish(
    run: Run, folder: Path, made: Path, names: Sequence[str], options: AugmentOptions, counts: dict[str, int]
) -> Augmentation:
    """Judge all rows and write the data set, the table, the sheet and the summary."""
    unit = unit_of(run)
    part = folder / "images.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    strips: dict[str, list[Any]] = defaultdict(list)
    for name in names:
        shard = read_shard(made, name)
        own = judged(shard.rows, options, unit)
        for row in own:
            if row["kept"]:
                picture = shard.pictures[shard.position(row), row["variant"]]
                write_whole(part / row["file_name"], lambda p, x=picture: Image.fromarray(x).save(p, format="PNG"))
        for i, image_id in enumerate(dict.fromkeys(row["source_image_id"] for row in own)):
            kept = [row["kept"] for row in own if row["source_image_id"] == image_id]
            if len(strips[own[0]["label"]]) < SHEET:
                strips[own[0]["label"]].append((shard.sources[i], shard.pictures[i], kept))
        rows += own
    rows.sort(key=lambda row: (row["source_image_id"], row["variant"]))
    kept_rows = [row for row in rows if row["kept"]]
    write_whole(part / "metadata.csv", lambda p: _write_metadata(p, run, kept_rows, options))
    final = folder / "images"
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    each = max(1, SHEET // max(1, len(strips)))
    shown = [strip for label in strips for strip in strips[label][:each]][:SHEET]
    write_whole(folder / "sheet.png", lambda p: sheet(shown).save(p, format="PNG"))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_table(folder / "rows.parquet", table)
    summary = _summary(run, rows, options, unit) | counts
    write_json(folder / "summary.json", summary)
    if not kept_rows:
        run.progress.say(f"nothing was kept of {len(rows)} synthetic images; {folder / 'summary.json'} says why")
    return Augmentation(folder, table, summary)


def _write_metadata(path: Path, run: Run, rows: Sequence[dict[str, Any]], options: AugmentOptions) -> None:
    """Write the data set's table: UTF-8 CSV. Labels and groups stand under the names that they have in the run.

    Any other column with the name of the labels' is called `augment_...`, also where there are none: with it negatives
    would load as if they had labels.
    """
    label, group = run.dataset.label, run.settings.dataset.group or "group"
    named = {"group": "augment_group" if group in ("file_name", label) else group}
    if options.kind == "variants":
        named = {"label": label} | named
    taken = {label, *named.values()}
    measured = {name: f"augment_{name}" if name in taken else name for name in MEASURED}
    columns = {"file_name": "file_name"} | named | measured
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns.values())
        writer.writerows([row[name] for name in columns] for row in rows)


def _summary(run: Run, rows: Sequence[dict[str, Any]], options: AugmentOptions, unit: float) -> dict[str, Any]:
    kept = [row for row in rows if row["kept"]]

    def mean(name: str, of: Sequence[dict[str, Any]]) -> float | None:
        return float(np.mean([row[name] for row in of])) if of else None

    return {
        **options.as_dict(), "seed": run.settings.seed, "made": len(rows), "kept": len(kept),
        "kept_share": round(len(kept) / len(rows), 4), "why": dict(sorted(Counter(r["why"] for r in rows).items())),
        "kept_of_label": {n: sum(r["label"] == n for r in kept) for n in run.dataset.labels},
        "mean_typicality": mean("typicality", rows), "mean_typicality_kept": mean("typicality", kept),
        "mean_typicality_sources": mean("source_typicality", rows), "mean_distance": mean("distance", rows),
        "sources_best_under_own_label": mean("source_is_best", [
            {"source_is_best": row["source_best_label"] == row["label"]} for row in rows
        ]),
        "unit_distance": unit, "images": "images", "model_folds": run.folds,
    }  # fmt: skip
