"""Imputations of a run: which images, in what order, what is written, and what is already there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from typicality.applications.impute import baselines
from typicality.applications.impute.choose import check_part, chosen_images, pretrained_on, seen_by
from typicality.applications.impute.fill import Hole, decode, encode, fills_of, sample_latents, spread_of
from typicality.applications.impute.judge import best_samples, judge
from typicality.applications.impute.measure import (
    METHODS,
    compare,
    label_shows,
    mean_and_error,
    rmse,
    rmse_of_one,
    spread_quality,
)
from typicality.applications.impute.options import (
    HIDDEN_IMAGES,
    ImputeOptions,
    Part,
    Region,
    chooses,
    evaluations_of,
)
from typicality.applications.impute.pictures import hatched, heat, sheet, strip
from typicality.applications.impute.regions import Regions
from typicality.config import Settings, key_of
from typicality.dataset import LabelledImages, load_dataset
from typicality.dataset.rows import safe_name
from typicality.errors import DatasetError, InterruptedRun, SettingsError, nearest
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.renewal import renew_report
from typicality.rescoring import MOST_LABELS, batches, rival_labels
from typicality.run import Run, existing_record, open_finished
from typicality.store import write_json, write_table, write_whole

PURPOSE = "imputed"
SHARD_IMAGES = 16
"""Images a shard: what a killed imputation loses at most."""
SHEET = 24
"""Images on the sheet: the first in the order in which images are chosen, not the best."""
DEFAULT_OPTIONS = ImputeOptions()
SIDES = ("", "_original", "_null")
ERRORS = tuple(f"rmse_{name}" for name in METHODS)

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "file_name", "group")),
        ("labels", pa.list_(pa.string())),
        ("label", pa.string()),
        ("held_out", pa.bool_()),
        ("region", pa.string()),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1")),
        *((name, pa.float32()) for name in ("share", "outside_view")),
        ("samples", pa.int32()),
        *(
            column
            for side in SIDES
            for column in (
                (f"typicality{side}", pa.float32()), (f"standard_error{side}", pa.float32()),
                (f"others{side}", pa.float32()), (f"label_found{side}", pa.string()),
            )
        ),
        ("spread", pa.float32()),
        *((name, pa.float32()) for name in ERRORS),
        ("picture", pa.string()),
        ("spread_picture", pa.string()),
    ]
)  # fmt: skip
"""A row an image. `label` is that which the region was filled under, `region` a hash of both, x0 ... y1 its box (pixels
of the original) and `share` its share of the image; `outside_view` of it was cropped away and has the harmonic fill.
`typicality` is T(region | label) of the filled image with its standard error, `others` the mean under other labels,
`label_found` the label with the highest, all null where the whole region was cropped away; `_original` says the same of
the image as it was, and `_null` of a fill without a label (hidden regions only). `spread` is the root mean squared
standard deviation between samples, and `rmse_*` are errors within the hole, both on a scale from 0, black, to 1, white;
null where unknown. Pictures are relative to the table."""


@dataclass(frozen=True)
class Imputation:
    """Filled images: their folder, the table (`SCHEMA`) and the summary."""

    folder: Path
    table: pa.Table
    summary: dict[str, Any]


def impute(
    folder: Path,
    region: Region,
    options: ImputeOptions = DEFAULT_OPTIONS,
    images: int | None = None,
    part: Part | None = None,
    fresh: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Imputation:
    """Fill regions of a run's images; see the package for what is written.

    Parameters
    ----------
    images : at most so many, one of each group before a second of any, chosen by a hash, so that fewer are the first
        of more; all by default, and `HIDDEN_IMAGES` where regions are hidden to measure errors
    part : of the images; all by default, and those that neither the model nor the bundled base has seen where regions
        are hidden
    fresh : fill again what is there under the same options
    settings : with what is to differ from the run's own: seed, device, precision, masks

    Raises
    ------
    SettingsError, DatasetError, OutputError
    """
    region.check()
    options.check()
    run = open_finished(folder, "finetune", settings, progress)
    check_label(run.dataset, region, options)
    regions = Regions(run.dataset, region, run.settings.seed)
    chosen, empty = chosen_images(run, regions, images, part)
    key = key_of(
        [run.weights_key, run.latents.folder.name, run.settings.prompt.model_dump(), run.dataset.labels,
         run.dataset.grouping, region.as_dict()["region"], region.hide, options.as_dict(), run.settings.score.t_min,
         run.settings.score.t_max, run.settings.score.protocol, str(run.dtype), run.settings.seed,
         run.dataset.fingerprint if region.hide is not None else None]
    )  # fmt: skip
    work = Work(run, regions, options, run.directory.path("impute", key))
    with run.directory.lock():
        try:
            found = work(chosen, empty, key, fresh)
            renew_report(run)
        except KeyboardInterrupt as stop:
            raise InterruptedRun(
                f"stopped; finished shards stay in {work.folder}, and the same command continues"
            ) from stop
    return found


def plan_of(
    folder: Path, settings: Settings, region: Region, options: ImputeOptions, images: int | None, part: Part | None
) -> dict[str, Any]:
    """Return what `impute` would do, as far as it can be told without the model; the same is refused."""
    region.check()
    options.check()
    existing_record(folder)
    dataset = load_dataset(settings.dataset)
    check_label(dataset, region, options)
    check_part(part)
    found = len(Regions(dataset, region, settings.seed).candidates())
    most = HIDDEN_IMAGES if images is None and region.hide is not None else images
    labels = min(len(dataset.labels), MOST_LABELS)
    return {
        "run": str(folder), **region.as_dict(), "options": options.as_dict(),
        "images": part or ("unseen" if region.hide is not None else "all"),
        "images_at_most": found if most is None else min(found, most),
        "unet_evaluations_an_image": evaluations_of(options, region.hide is not None, labels),
    }  # fmt: skip


def check_label(dataset: LabelledImages, region: Region, options: ImputeOptions) -> None:
    """Check that the label to fill under exists, and may be chosen.

    Raises
    ------
    DatasetError, SettingsError
    """
    if options.label is None:
        return
    if options.label not in dataset.labels:
        raise DatasetError(f"{dataset.name} has no label {options.label!r}; {nearest(options.label, dataset.labels)}")
    if region.hide is not None:
        raise SettingsError("--as does not go with --hide: what was hidden is the truth under the image's own label")


@dataclass
class Work:
    """One imputation of an open run whose lock is held."""

    run: Run
    regions: Regions
    options: ImputeOptions
    folder: Path
    references: baselines.References | None = None

    @property
    def hides(self) -> bool:
        return self.regions.region.hide is not None

    def __call__(
        self, chosen: Sequence[LabelledImage], empty: Sequence[LabelledImage], key: str, fresh: bool
    ) -> Imputation:
        """Fill what is not there yet, and write table, sheet and summary of the chosen images alone."""
        run = self.run
        with run.directory.stage("impute", key) as entry:
            entry |= run.directory.built_on("finetune")
            if fresh and self.folder.exists():
                shutil.rmtree(self.folder)
                entry.pop("unet_evaluations", None)
            done = self.rows()
            pending = [i for i in chosen if done.get(i.image_id, {}).get("region") != self.region_of(i)]
            run.progress.start("impute", len(pending))
            for fold, part in batches(run, pending, SHARD_IMAGES):
                before = run.denoiser_of(fold).evaluations
                self.write_shard(part, fold)
                done_now = run.denoiser_of(fold).evaluations - before
                entry["unet_evaluations"] = entry.get("unet_evaluations", 0) + done_now
                run.progress.advance(len(part))
            run.progress.finish()
            found = self.finish(chosen, empty)
            entry |= {"images": len(chosen), "imputed_now": len(pending), "folder": self.folder.name}
        return found

    def label_of(self, image: LabelledImage) -> str:
        return self.options.label or image.labels[0]

    def region_of(self, image: LabelledImage) -> str:
        """A hash of what is missing and of the label it is filled under: a changed mask is filled anew."""
        missing = self.regions.of(image, self.run.latents.view(image.image_id))
        assert missing is not None  # chosen_images
        digest = hashlib.sha256(f"{missing.shape} {self.label_of(image)} ".encode())
        digest.update(np.packbits(missing).tobytes())
        return digest.hexdigest()[:16]

    def rows(self) -> dict[str, dict[str, Any]]:
        """image_id -> its row in the shard that was written last."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("shards/*.parquet"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            found |= {row["image_id"]: row for row in pq.read_table(path, schema=SCHEMA).to_pylist()}
        return found

    def hole(self, image: LabelledImage) -> Hole:
        view = self.run.latents.view(image.image_id)
        missing = self.regions.of(image, view)
        assert missing is not None  # chosen_images
        return Hole(image, np.asarray(self.run.dataset.open(image)), missing, view, self.run.base.factor)

    def write_shard(self, images: Sequence[LabelledImage], fold: int) -> None:
        """Fill, judge and measure images of one shape: pictures first, then the rows that make them count."""
        run, options = self.run, self.options
        denoiser = run.denoiser_of(fold)
        holes = [self.hole(image) for image in images]
        labels = [self.label_of(image) for image in images]
        names = tuple(sorted(set(labels)))
        states = denoiser.encode_prompts(run.prompts.of_all(names))
        z = encode(denoiser, [hole.neutral for hole in holes], run.latents)
        prompts = [1 + names.index(label) for label in labels]
        latents = sample_latents(denoiser, holes, z, states, prompts, options, run.settings.seed, run.batch_size)
        samples = fills_of(denoiser, holes, latents)
        best = [0] * len(holes)
        if chooses(options, self.hides):
            best = best_samples(run, denoiser, holes, latents, labels, options.draws)
        fills: dict[str, list[np.ndarray]] = {
            "mean": [s.mean(0) for s in samples],
            "best": [s[b] for s, b in zip(samples, best, strict=True)],
        }
        if self.hides:
            alone = replace(options, guidance=0.0)
            seed, rows_of_null = run.settings.seed, [0] * len(holes)
            nothing = sample_latents(denoiser, holes, z, states, rows_of_null, alone, seed, run.batch_size)
            fills["null"] = [s.mean(0) for s in fills_of(denoiser, holes, nothing)]
        rows = [self.row(hole, label) for hole, label in zip(holes, labels, strict=True)]
        pictures = [hole.filled(values) for hole, values in zip(holes, fills[options.keep], strict=True)]
        self.judge(denoiser, holes, labels, rows, "", pictures)
        self.judge(denoiser, holes, labels, rows, "_original", [hole.pixels for hole in holes])
        if self.hides:
            without = [hole.filled(values) for hole, values in zip(holes, fills["null"], strict=True)]
            self.judge(denoiser, holes, labels, rows, "_null", without)
            self.measure(denoiser, fold, holes, labels, rows, samples, fills)
        for hole, row, picture, own in zip(holes, rows, pictures, samples, strict=True):
            self.save(row["picture"], picture)
            spread = spread_of(own)
            row["spread"] = None if spread is None else float(np.sqrt(np.mean(spread**2))) / 255
            if spread is not None:
                shown = np.zeros(hole.missing.shape, np.uint8)
                shown[hole.missing] = spread.clip(0, 255).round()
                row["spread_picture"] = f"spread/{Path(row['picture']).name}"
                self.save(row["spread_picture"], shown)
        name = hashlib.sha256("".join(row["image_id"] + row["region"] for row in rows).encode()).hexdigest()[:16]
        write_table(self.folder / "shards" / f"{name}.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))

    def save(self, name: str, pixels: np.ndarray) -> None:
        write_whole(self.folder / name, lambda p: Image.fromarray(pixels).save(p, format="PNG"))

    def row(self, hole: Hole, label: str) -> dict[str, Any]:
        """Return what is known of an image before it is filled."""
        image = hole.image
        ys, xs = np.nonzero(hole.missing)
        stem = safe_name(PurePosixPath(image.file_name).stem)[:60]
        return {
            "image_id": image.image_id, "file_name": image.file_name, "group": image.group,
            "labels": list(image.labels), "label": label, "held_out": image.image_id in self.run.held_out,
            "region": self.region_of(image), "x0": int(xs.min()), "y0": int(ys.min()), "x1": int(xs.max()) + 1,
            "y1": int(ys.max()) + 1, "share": float(hole.missing.mean()),
            "outside_view": float(1 - hole.in_view.mean()), "samples": self.options.samples,
            "picture": f"filled/{stem}-{image.image_id}.png",
        }  # fmt: skip

    def judge(
        self, denoiser: Any, holes: Sequence[Hole], labels: Sequence[str], rows: list[dict[str, Any]], side: str,
        pictures: Sequence[np.ndarray],
    ) -> None:  # fmt: skip
        """Add to every row how typical the region of a picture is of its label and of others, if the model sees it."""
        latents = encode(denoiser, pictures, self.run.latents)
        rivals = [rival_labels(self.run.dataset.labels, label, label) for label in labels]
        seen = [i for i, hole in enumerate(holes) if hole.shares.any()]
        for size in sorted({len(rivals[i]) for i in seen}):
            at = [i for i in seen if len(rivals[i]) == size]
            judged = judge(
                self.run, denoiser, [holes[i] for i in at], latents[at], [rivals[i] for i in at],
                self.options.draws, PURPOSE,
            )  # fmt: skip
            for i, found in zip(at, judged, strict=True):
                others = found.others(labels[i])
                rows[i] |= {
                    f"typicality{side}": found.typicality[labels[i]],
                    f"standard_error{side}": found.standard_error[labels[i]],
                    f"others{side}": None if np.isnan(others) else others,
                    f"label_found{side}": found.found,
                }

    def measure(
        self, denoiser: Any, fold: int, holes: Sequence[Hole], labels: Sequence[str], rows: list[dict[str, Any]],
        samples: Sequence[np.ndarray], fills: dict[str, list[np.ndarray]],
    ) -> None:  # fmt: skip
        """Add to every row the errors of all methods."""
        dataset, allowed = self.run.dataset, seen_by(self.run, fold)
        if self.references is None:
            pool = allowed if self.run.folds == 1 else frozenset(self.run.labels_of)
            self.references = baselines.References(dataset, baselines.reference_pool(dataset, pool))
        through = decode(denoiser, encode(denoiser, [hole.pixels for hole in holes], self.run.latents), holes[0].factor)
        for i, hole in enumerate(holes):
            truth, missing = hole.pixels[hole.missing], hole.missing
            found = {name: own[i] for name, own in fills.items() if name != "best" or self.options.samples > 1}
            found["mean_colour"] = baselines.mean_colour(hole.pixels, missing)
            found["harmonic"] = hole.neutral[missing].astype(np.float64)
            found["autoencoder"] = hole.read(through[i])
            images, thumbnails = self.references.of(labels[i], hole.image.group, allowed)
            if images:
                near = baselines.nearest(hole.neutral, missing, thumbnails)
                found["neighbours"] = baselines.mean_of([dataset.open(images[k]) for k in near], missing)
                average = Image.fromarray(thumbnails.mean(0).round().astype(np.uint8))
                found["average"] = baselines.mean_of([average], missing)
            rows[i] |= {f"rmse_{name}": rmse(values, truth) for name, values in found.items()}
            rows[i]["rmse_one"] = rmse_of_one(samples[i], truth)

    def finish(self, chosen: Sequence[LabelledImage], empty: Sequence[LabelledImage]) -> Imputation:
        """Merge the rows of these images, of all shards, into the table, the sheet and the summary."""
        every = self.rows()
        rows = [every[image.image_id] for image in chosen]
        self.draw_sheet(rows[:SHEET], chosen)
        table = pa.Table.from_pylist(rows, schema=SCHEMA).sort_by("image_id")
        summary = self.summary(sorted(rows, key=lambda row: row["image_id"]), empty)
        write_table(self.folder / "imputed.parquet", table)
        write_json(self.folder / "summary.json", summary)
        return Imputation(self.folder, table, summary)

    def draw_sheet(self, rows: Sequence[dict[str, Any]], chosen: Sequence[LabelledImage]) -> None:
        spreads = [
            np.zeros((1, 1), np.uint8) if row["spread_picture"] is None
            else np.asarray(Image.open(self.folder / row["spread_picture"]))
            for row in rows
        ]  # fmt: skip
        largest = max(int(s.max()) for s in spreads)
        strips = []
        for row, spread, image in zip(rows, spreads, chosen, strict=False):
            hole = self.hole(image)
            shown = spread if row["spread_picture"] is not None else np.zeros(hole.missing.shape, np.uint8)
            filled = np.asarray(Image.open(self.folder / row["picture"]))
            strips.append(strip([hole.pixels, hatched(hole.pixels, hole.missing), filled, heat(shown, largest)]))
        write_whole(self.folder / "sheet.png", lambda p: sheet(strips).save(p, format="PNG"))

    def summary(self, rows: Sequence[dict[str, Any]], empty: Sequence[LabelledImage]) -> dict[str, Any]:
        groups = [row["group"] for row in rows]
        found: dict[str, Any] = {
            **self.regions.region.as_dict(), **self.options.as_dict(), "seed": self.run.settings.seed, "n": len(rows),
            "groups": len(set(groups)), "held_out": sum(row["held_out"] for row in rows), "nothing_missing": len(empty),
            "share": float(f"{np.mean([row['share'] for row in rows]):.4g}"),
            "notes": self.notes(rows, empty),
            "typicality": {
                name: label_shows(rows, side)
                for name, side in (("fill", ""), ("original", "_original"), ("fill_without_label", "_null"))
                if self.hides or side != "_null"
            },
        }  # fmt: skip
        if self.options.samples > 1:
            found["spread"], found["spread_se"] = mean_and_error([row["spread"] for row in rows], groups)
        if self.hides:
            found["errors"] = compare(rows, self.options.keep if self.options.samples > 1 else "mean")
            if self.options.samples > 1:
                found["spread_quality"] = spread_quality(rows, self.options.samples)
        return found

    def notes(self, rows: Sequence[dict[str, Any]], empty: Sequence[LabelledImage]) -> list[str]:
        """What a reader of the numbers must know."""
        found = []
        seen = sum(not row["held_out"] for row in rows)
        if self.hides and not self.run.held_out:
            found.append(
                "In-sample: this run holds no image out, so its model may have seen what was hidden, and errors are "
                "too low."
            )
        elif self.hides and seen:
            found.append(f"In-sample: the model may have seen what was hidden of {seen} of {len(rows)} images.")
        learned = pretrained_on(self.run)
        if self.hides and (drawn := sum(row["held_out"] and row["image_id"] in learned for row in rows)):
            found.append(
                f"In-sample: the bundled base was pretrained on {drawn} of these {len(rows)} images, without their "
                "labels, so errors are too low."
            )
        if any(row["outside_view"] > 0 for row in rows):
            found.append("Parts of some regions were cropped away from what the model sees: they have a harmonic fill.")
        if unseen := sum(row["typicality"] is None for row in rows):
            found.append(f"{unseen} regions lie wholly outside of what the model sees: they have no typicality.")
        if strangers := self.regions.strangers:
            found.append(f"{len(strangers)} masks belong to no image and were not used, first {strangers[0]}.")
        if empty:
            found.append(f"Nothing is marked as missing in {len(empty)} images: they were left out.")
        found.append(
            "Typicality is that of the same model which filled the regions: it says whether the label shows to it."
        )
        return found
