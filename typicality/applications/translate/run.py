"""Translations of a run: which images, in what order, what is written, and what is already there."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from typicality.applications.translate.methods import TranslateOptions, translate_latents
from typicality.applications.translate.pictures import (
    change_picture,
    sheet,
    source_pixels,
    strip,
    to_bytes,
    translated_pixels,
)
from typicality.config import Settings, key_of
from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.errors import DatasetError, InterruptedRun, nearest
from typicality.metrics import clustered_error
from typicality.mining.boxes import best_boxes, box_means
from typicality.mining.patches import patch_side
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.renewal import renew_report
from typicality.rescoring import batches, rival_labels, score_latents
from typicality.run import Run, open_finished
from typicality.scoring.shards import ScoredRow
from typicality.store import write_arrays, write_json, write_table, write_whole

PURPOSE = "translated"
SHARD_IMAGES = 32
"""Images a shard: what a killed translation loses at most."""
EVALUATIONS_AN_IMAGE = 8
"""Evaluations that one image brings to a batch of a sampler, at most."""
CHANGES = 3
"""Boxes of change an image."""
DEFAULT_OPTIONS = TranslateOptions()
SHEET = 24
"""Strips on the sheet."""

BOX = pa.struct(
    [
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1", "row", "column", "side")),
        ("change", pa.float32()),
    ]
)
NUMBERS = tuple(
    f"{side}_{label}{what}" for side in ("before", "after") for label in ("from", "to") for what in ("", "_se")
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "file_name", "group", "from", "to", "method")),
        ("held_out", pa.bool_()),
        *((name, pa.float32()) for name in NUMBERS),
        ("change", pa.float32()),
        *((name, pa.string()) for name in ("label_before", "label_after")),
        ("flipped", pa.bool_()),
        ("changes", pa.list_(BOX)),
        ("picture", pa.string()),
    ]
)
"""A row an image. `before_from` is T(source | from), `after_to` is T(result | to), `_se` their standard errors;
`change` is `after_to - before_to`; `label_before` and `label_after` are the diffusion classifier's; `flipped` says that
the latter is `to`; `changes` are boxes in pixels of the original (and in latent cells) where typicality under `to`
changed most, either way; `picture` is relative to the table."""
PAIRS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("from", "to", "method", "folder")),
        ("n", pa.int32()),
        *((name, pa.float32()) for name in ("flip_rate", "flip_rate_se", "already", "mean_change", "mean_change_se")),
    ]
)
"""A row a pair of labels: share of results classified as `to`, share of sources that already were, and the mean change
of typicality under `to`; standard errors (`_se`) take groups for what is independent, and are null of a single one."""


@dataclass(frozen=True)
class Translation:
    """Translations from one label to another: their folder, the table (`SCHEMA`) and the summary."""

    folder: Path
    table: pa.Table
    summary: dict[str, Any]


def translate(
    folder: Path,
    source: str,
    target: str,
    options: TranslateOptions = DEFAULT_OPTIONS,
    images: int | None = None,
    fresh: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Translation:
    """Translate images of one label of a run to another; see the package for what is written.

    The report of a mined run is rendered again.

    Parameters
    ----------
    images : at most so many, chosen by a hash of the group, so that fewer are the first of more; the table and the
        summary are of these alone, whatever else lies in the folder from before
    fresh : translate again what is there under the same options
    settings : with what is to differ from the run's own: seed, device, precision

    Raises
    ------
    OutputError, DatasetError, SettingsError
    """
    options = options.resolved()
    options.check_steps()
    run = open_finished(folder, "finetune", settings, progress)
    with _held(run):
        found = translate_pair(run, source, target, options, images, fresh)
        renew_report(run)
    return found


def translate_all_pairs(
    folder: Path,
    options: TranslateOptions = DEFAULT_OPTIONS,
    images: int | None = None,
    fresh: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> pa.Table:
    """Translate between all ordered pairs of labels, and write and return `translate/pairs.parquet`."""
    options = options.resolved()
    options.check_steps()
    run = open_finished(folder, "finetune", settings, progress)
    rows = []
    with _held(run):
        for source, target in permutations(run.dataset.labels, 2):
            if not images_of_pair(run.dataset, source, target):
                run.progress.say(f"left out: no image has the label {source!r} without {target!r}")
                continue
            found = translate_pair(run, source, target, options, images, fresh)
            rows.append({**found.summary, "folder": found.folder.name})
        kept = [{name: row[name] for name in PAIRS_SCHEMA.names} for row in rows]
        table = pa.Table.from_pylist(kept, schema=PAIRS_SCHEMA)
        write_table(run.directory.path("translate", "pairs.parquet"), table)
        renew_report(run)
    return table


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """Hold the run's lock; Ctrl-C becomes `InterruptedRun`, with every finished shard kept."""
    with run.directory.lock():
        try:
            yield
        except KeyboardInterrupt as stop:
            raise InterruptedRun(
                f"stopped; finished shards stay in {run.directory.path('translate')}, and the same command continues"
            ) from stop


def translate_pair(
    run: Run, source: str, target: str, options: TranslateOptions, images: int | None = None, fresh: bool = False
) -> Translation:
    """Translate one pair of labels in an open run whose lock is held: see `translate`."""
    check_pair(run.dataset, source, target)
    chosen = images_of_pair(run.dataset, source, target)[:images]
    if not chosen:
        raise DatasetError(f"no image has the label {source!r} without {target!r}")
    key = key_of(
        [run.weights_key, run.latents.folder.name, run.settings.prompt.model_dump(), run.dataset.labels,
         run.dataset.grouping, source, target, options.used, run.settings.score.t_min, run.settings.score.t_max,
         run.settings.score.protocol, run.settings.mine.patch, str(run.dtype), run.settings.seed]
    )  # fmt: skip
    folder = run.directory.path("translate", f"{safe(source)}-{safe(target)}-{key}")
    with run.directory.stage(f"translate {source} to {target}", key) as entry:
        entry |= run.directory.built_on("finetune")
        if fresh and folder.exists():
            shutil.rmtree(folder)
        done = {row["image_id"] for row in read_rows(folder).to_pylist()}
        pending = [i for i in chosen if i.image_id not in done]
        run.progress.start(f"translate {source} to {target}", len(pending))
        for fold, part in batches(run, pending, SHARD_IMAGES):
            _write_shard(run, folder, part, run.denoiser_of(fold), source, target, options)
            run.progress.advance(len(part))
        run.progress.finish()
        found = _finish(run, folder, source, target, options, [i.image_id for i in chosen])
        entry |= {"images": found.table.num_rows, "translated_now": len(pending), "folder": folder.name}
    return found


def images_of_pair(dataset: LabelledImages, source: str, target: str) -> list[LabelledImage]:
    """Return the images of one label without the other, in the order in which a part of them is chosen."""
    found = [i for i in dataset if source in i.labels and target not in i.labels]
    return sorted(found, key=lambda i: (unit_hash(i.group, "translate"), i.image_id))


def check_pair(dataset: LabelledImages, source: str, target: str) -> None:
    """Check that a data set has both labels, and that they are two.

    Raises
    ------
    DatasetError
    """
    for label in (source, target):
        if label not in dataset.labels:
            raise DatasetError(f"{dataset.name} has no label {label!r}; {nearest(label, dataset.labels)}")
    if source == target:
        raise DatasetError(f"--from and --to are both {source!r}; name two labels")


def safe(label: str) -> str:
    """A label as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in label)[:40]


def translate_images(
    run: Run, denoiser: Any, images: Sequence[LabelledImage], source: str, target: str, options: TranslateOptions
) -> tuple[Tensor, Tensor]:
    """Return latents (n, c, h, w) of images of one shape, before and after, float32."""
    ids = [i.image_id for i in images]
    before = run.latents.stack(ids)
    states = denoiser.encode_prompts(run.prompts.of_all([source, target]))
    size = max(1, run.batch_size // EVALUATIONS_AN_IMAGE)
    after = [
        translate_latents(denoiser, before[s : s + size], ids[s : s + size], states, options, run.settings.seed)
        for s in range(0, len(ids), size)
    ]
    return before, torch.cat(after)


def _write_shard(
    run: Run, folder: Path, images: Sequence[LabelledImage], denoiser: Any, source: str, target: str,
    options: TranslateOptions,
) -> None:  # fmt: skip
    """Translate, score and draw one shard, and write it: pictures, then latents, then the rows that make it count."""
    before, after = translate_images(run, denoiser, images, source, target, options)
    ids = [i.image_id for i in images]
    labels = rival_labels(run.dataset.labels, source, target)
    scores = [score_latents(run, denoiser, ids, z, labels, options.draws, PURPOSE) for z in (before, after)]
    originals = source_pixels(run.dataset, images, run.latents)
    results = translated_pixels(denoiser, originals, before, after, options.detail)
    rows = []
    for i, image in enumerate(images):
        pair = (scores[0][image.image_id], scores[1][image.image_id])
        row = _row(run, image, pair, source, target, options)
        change = (pair[1][target].moments.typicality - pair[0][target].moments.typicality).numpy()
        original = to_bytes(originals[i])
        picture = strip(original, to_bytes(results[i]), change_picture(change, original))
        write_whole(folder / row["picture"], lambda p, picture=picture: picture.save(p, format="PNG"))
        rows.append(row)
    name = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]
    arrays = {"before": before.half().numpy(), "after": after.half().numpy()}
    write_arrays(folder / "shards" / f"{name}.safetensors", arrays)
    write_table(folder / "shards" / f"{name}.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(
    run: Run,
    image: LabelledImage,
    pair: tuple[dict[str, ScoredRow], dict[str, ScoredRow]],
    source: str,
    target: str,
    options: TranslateOptions,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image_id": image.image_id, "file_name": image.file_name, "group": image.group, "from": source, "to": target,
        "method": options.method, "held_out": image.image_id in run.held_out,
        "picture": f"pictures/{image.image_id}.png",
    }  # fmt: skip
    for side, scored in zip(("before", "after"), pair, strict=True):
        for name, label in (("from", source), ("to", target)):
            row[f"{side}_{name}"] = scored[label].mean
            row[f"{side}_{name}_se"] = scored[label].standard_error
        row[f"label_{side}"] = max(scored, key=lambda label, s=scored: s[label].mean)  # type: ignore[misc]
    row["change"] = row["after_to"] - row["before_to"]
    row["flipped"] = row["label_after"] == target
    change = (pair[1][target].moments.typicality - pair[0][target].moments.typicality).numpy()
    row["changes"] = change_boxes(run, image, change)
    return row


def change_boxes(run: Run, image: LabelledImage, change: np.ndarray) -> list[dict[str, Any]]:
    """Return the boxes, of the run's patch size, where a map of change (h, w) is largest in absolute value."""
    factor = run.base.factor
    side = min(patch_side(run.latents.short_side, run.settings.mine.patch, factor), *change.shape)
    means = box_means(change[None].astype(np.float32), side)
    rows, columns, sizes = best_boxes(np.abs(means), side, CHANGES)
    found = []
    for r, c, size in zip(rows[0].tolist(), columns[0].tolist(), sizes[0].tolist(), strict=True):
        if not np.isfinite(size):
            break
        view = run.latents.view(image.image_id)
        corners = (c * factor, r * factor, (c + side) * factor, (r + side) * factor)
        x0, y0, x1, y1 = view.to_original(corners, image.width, image.height)
        found.append(
            {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "row": r, "column": c, "side": side,
             "change": float(means[0, r, c])}
        )  # fmt: skip
    return found


def read_rows(folder: Path) -> pa.Table:
    """Return the rows of all finished shards, by image."""
    tables = [pq.read_table(path, schema=SCHEMA) for path in sorted(folder.glob("shards/*.parquet"))]
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by("image_id")


def read_latents(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return image_id -> latents (c, h, w) before and after, float32, of all finished shards."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for path in sorted(folder.glob("shards/*.parquet")):
        ids = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
        with safe_open(path.with_suffix(".safetensors"), "pt") as arrays:
            before, after = arrays.get_tensor("before").float(), arrays.get_tensor("after").float()
        found |= {i: (before[row], after[row]) for row, i in enumerate(ids)}
    return found


def _finish(
    run: Run, folder: Path, source: str, target: str, options: TranslateOptions, image_ids: Sequence[str]
) -> Translation:
    """Merge the rows of these images, of all shards, into the table, the sheet and the summary."""
    table = read_rows(folder)
    table = table.filter(pc.is_in(table["image_id"], pa.array(image_ids, pa.string())))
    rows = table.to_pylist()
    shown = sorted(rows, key=lambda row: -row["change"])[:SHEET]
    strips = [Image.open(folder / row["picture"]).convert("RGB") for row in shown]
    write_whole(folder / "strips.png", lambda p: sheet(strips).save(p, format="PNG"))
    change = np.array([row["change"] for row in rows], dtype=np.float64)
    flips = np.array([row["flipped"] for row in rows], dtype=np.float64)
    summary = {
        "from": source, "to": target, **options.as_dict(), "seed": run.settings.seed, "n": len(rows),
        "flip_rate": round(float(flips.mean()), 4),
        "flip_rate_se": _error(flips, rows),
        "already": round(float(np.mean([row["label_before"] == target for row in rows])), 4),
        "mean_change": float(change.mean()),
        "mean_change_se": _error(change, rows),
        "labels_after": dict(sorted(Counter(row["label_after"] for row in rows).items())),
    }  # fmt: skip
    write_table(folder / "translations.parquet", table)
    write_json(folder / "summary.json", summary)
    return Translation(folder, table, summary)


def _error(values: np.ndarray, rows: Sequence[dict[str, Any]]) -> float | None:
    """The standard error of a mean over rows; None of a single group."""
    error = clustered_error(values, [row["group"] for row in rows])
    return None if np.isnan(error) else float(f"{error:.4g}")
