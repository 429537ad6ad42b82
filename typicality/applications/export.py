"""Export: the elements of a mined run in the formats of other tools.

| format   | what is written                                                                                    |
|----------|----------------------------------------------------------------------------------------------------|
| coco     | one JSON file: images with original sizes, a category a cluster, an annotation an element          |
| parquet  | one table: elements.parquet with the cluster's columns beside each element                         |
| csv      | the same as text                                                                                   |
| hf       | a folder that `datasets.load_dataset` opens: an image a row, with its elements as boxes            |
| fiftyone | a folder of FiftyOne's FiftyOneImageDetectionDataset: data/ and labels.json                        |
| png      | a folder a label with a folder a cluster: the elements themselves, and index.csv                   |

Boxes are in pixels of the original after EXIF orientation: [x, y, width, height] in COCO and HF (its convention), and
shares of the image in FiftyOne. Pictures are written from decoded pixels, so no EXIF survives. What is unknown is null.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from typicality.checks import check_current
from typicality.config import resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.errors import InputError, OutputError, nearest
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.report.text import slugs
from typicality.run import existing_record
from typicality.store import cannot_write, check_writable, write_table, write_text, write_whole

MARKER = "typicality-export.json"
"""In every exported folder: says what it is, and that --force may replace it."""
TABLES = ("elements.parquet", "clusters.parquet", "images.parquet")
COLUMNS = ("image_id", "file_name", "label", "x0", "y0", "x1", "y1")
"""The first columns of every exported table, which also has CLUSTER_COLUMN."""
CLUSTER_COLUMN = "cluster_size"
BATCH = 256
SCORES = ("typicality", "standard_error", "lower_bound", "specificity")
RANKS = ("rank", "cluster", "rank_in_cluster")


@dataclass(frozen=True)
class Mined:
    """A mined run, as far as exports need it; the data set is opened only for its pixels."""

    folder: Path
    record: dict[str, Any]
    progress: Progress = field(default=SILENT, repr=False)

    @cached_property
    def elements(self) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / "elements.parquet").to_pylist()

    @cached_property
    def clusters(self) -> dict[tuple[str, int], dict[str, Any]]:
        rows = pq.read_table(self.folder / "clusters.parquet").to_pylist()
        return {(row["label"], row["cluster"]): row for row in rows}

    @cached_property
    def images(self) -> dict[str, dict[str, Any]]:
        """The images that were scored, each once; `labels` are all of its labels."""
        found: dict[str, dict[str, Any]] = {}
        for row in pq.read_table(self.folder / "images.parquet").to_pylist():
            found.setdefault(row["image_id"], {**row, "labels": []})["labels"].append(row["label"])
        return found

    @cached_property
    def by_image(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.elements:
            found[row["image_id"]].append(row)
        return found

    @cached_property
    def labels(self) -> list[str]:
        return list(self.record["dataset"]["labels"])

    @cached_property
    def dataset(self) -> LabelledImages:
        return load_dataset(resolve({"dataset": self.record["settings"]["dataset"]}).dataset)

    def sources(self) -> Iterator[tuple[LabelledImage, list[dict[str, Any]]]]:
        """Images that hold elements, with these elements.

        Raises
        ------
        OutputError : when the data set no longer holds them.
        """
        known = {image.image_id: image for image in self.dataset}
        missing = [image_id for image_id in self.by_image if image_id not in known]
        if missing:
            raise OutputError(
                f"{len(missing)} images of {self.folder} are no longer in {self.dataset.name}, first "
                f"{self.by_image[missing[0]][0]['file_name']}; put them back, or mine the data set again"
            )
        self.progress.start("export", len(self.by_image))
        for image_id, rows in self.by_image.items():
            yield known[image_id], rows
            self.progress.advance()
        self.progress.finish()


def export(run: Path, to: str, out: Path | None = None, force: bool = False, progress: Progress = SILENT) -> Path:
    """Write the elements of a mined run in another format and return the path of the file or folder.

    Parameters
    ----------
    to : coco, parquet, csv, hf, fiftyone or png
    out : RUN/export/<name> by default
    force : replace what an earlier export wrote; other files and folders are never replaced

    Raises
    ------
    InputError : for an unknown format.
    OutputError : when `run` has not been mined, or not as it is now, or `out` exists or cannot be written.
    """
    path = place_of(run, to, out, force)
    _, write, is_folder = WRITERS[to]
    mined = Mined(Path(run), existing_record(run), progress)
    if is_folder:
        with _new_folder(path, to, mined) as folder:
            write(mined, folder)
    else:
        write(mined, path)
    return path


def place_of(run: Path, to: str, out: Path | None = None, force: bool = False) -> Path:
    """Return where `export` would write, with the same arguments and errors; nothing is written."""
    if to not in WRITERS:
        raise InputError(f"there is no export format {to!r}: {nearest(to, WRITERS)}")
    record = existing_record(run)
    missing = [name for name in TABLES if not (Path(run) / name).is_file()]
    if missing:
        raise OutputError(f"{run} has no {missing[0]}: it has not been mined yet; run `typicality mine` first")
    check_current(Path(run), record)
    name, _, is_folder = WRITERS[to]
    path = Path(out) if out is not None else Path(run) / "export" / name
    _may_write(path, is_folder, force)
    return path


def _may_write(path: Path, is_folder: bool, force: bool) -> None:
    """Refuse to replace anything without `force`, and with it anything that no export wrote."""
    check_writable(path)
    if not path.exists() or (is_folder and path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise OutputError(f"{path} exists; choose another --out, or replace it with --force")
    if not is_folder and path.is_dir():
        raise OutputError(f"{path} is a folder; name a file with --out")
    if not ((path / MARKER).is_file() if is_folder else _is_export(path)):
        raise OutputError(f"{path} was not written by `typicality export`, so --force does not replace it")


def _is_export(path: Path) -> bool:
    """Whether a file is one that an export wrote: a table with its columns, or a COCO file that names its data set."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(b"{"):
            return "fingerprint" in json.loads(path.read_text(encoding="utf-8"))["info"]
        if start == b"PAR1":
            names = pq.read_schema(path).names
        else:
            with path.open(encoding="utf-8", newline="") as text:
                names = next(csv.reader(text), [])
    except (OSError, ValueError, KeyError, TypeError, csv.Error, pa.ArrowException):
        return False
    return tuple(names[: len(COLUMNS)]) == COLUMNS and CLUSTER_COLUMN in names


@contextmanager
def _new_folder(path: Path, to: str, mined: Mined) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `path` once it is complete.

    Raises
    ------
    OutputError : when it cannot be written; nothing of it is left then.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        about = {"format": to, "run": mined.folder.name, "elements": len(mined.elements), **_origin(mined)}
        write_text(temporary / MARKER, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _origin(mined: Mined) -> dict[str, Any]:
    data = mined.record["dataset"]
    return {
        "dataset": data["name"], "label": data["label"], "fingerprint": data["fingerprint"],
        "typicality_version": mined.record.get("versions", {}).get("typicality"),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """The scores and ranks of an element; what is unknown is None."""
    return {name: _finite(row[name]) for name in (*SCORES, *RANKS)}


# -------------------------------------------------------------------------------------------------- one file


def write_coco(mined: Mined, path: Path) -> None:
    """COCO object detection: https://cocodataset.org/#format-data; scores beside each annotation."""
    keys = sorted(
        {(row["label"], row["cluster"]) for row in mined.elements},
        key=lambda key: (mined.labels.index(key[0]) if key[0] in mined.labels else len(mined.labels), *key),
    )
    categories = {key: number for number, key in enumerate(keys, start=1)}
    numbers = {image_id: number for number, image_id in enumerate(mined.images, start=1)}
    annotations = []
    for number, row in enumerate(mined.elements, start=1):
        x, y, width, height = row["x0"], row["y0"], row["x1"] - row["x0"], row["y1"] - row["y0"]
        annotations.append(
            {
                "id": number, "image_id": numbers[row["image_id"]],
                "category_id": categories[row["label"], row["cluster"]], "bbox": [x, y, width, height],
                "area": width * height, "iscrowd": 0, "segmentation": [], "score": _finite(row["typicality"]),
                "attributes": {"label": row["label"], **_attributes(row)},
            }
        )  # fmt: skip
    document = {
        "info": {"description": f"Visual elements by {mined.record['dataset']['label']}", **_origin(mined)},
        "licenses": [],
        "images": [
            {
                "id": numbers[image_id], "file_name": row["file_name"], "width": row["width"],
                "height": row["height"], "image_id": image_id, "labels": row["labels"],
            }
            for image_id, row in mined.images.items()
        ],
        "categories": [_category(mined, key, number) for key, number in categories.items()],
        "annotations": annotations,
    }  # fmt: skip
    write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def _category(mined: Mined, key: tuple[str, int], number: int) -> dict[str, Any]:
    label, cluster = key
    row = {n: _finite(v) for n, v in mined.clusters.get(key, {}).items() if n not in ("label", "cluster")}
    name = f"{label}/{cluster}" if cluster >= 0 else f"{label}/none"
    return {"id": number, "name": name, "supercategory": label, "attributes": {"cluster": cluster, **row}}


def joined_table(mined: Mined) -> pa.Table:
    """elements.parquet with the columns of clusters.parquet beside it, as cluster_<column>; what is unknown is null."""
    elements = pq.read_table(mined.folder / "elements.parquet")
    clusters = pq.read_table(mined.folder / "clusters.parquet")
    keys = list(zip(elements["label"].to_pylist(), elements["cluster"].to_pylist(), strict=True))
    for column in clusters.schema:
        if column.name not in ("label", "cluster"):
            values = [mined.clusters.get(key, {}).get(column.name) for key in keys]
            name = column.name if column.name.startswith("cluster_") else f"cluster_{column.name}"
            elements = elements.append_column(name, pa.array(values, column.type))
    return _known(elements)


def _known(table: pa.Table) -> pa.Table:
    """Return a table with null for every number that is not finite."""
    for place, column in enumerate(table.schema):
        if pa.types.is_floating(column.type):
            values = table[column.name]
            finite = pc.if_else(pc.is_finite(values), values, pa.scalar(None, column.type))
            table = table.set_column(place, column, finite)
    return table


def write_parquet(mined: Mined, path: Path) -> None:
    write_table(path, joined_table(mined))


def write_csv(mined: Mined, path: Path) -> None:
    write_whole(path, lambda part: pyarrow.csv.write_csv(joined_table(mined), part))


# -------------------------------------------------------------------------------------------------- folders


def png(pixels: Any) -> bytes:
    """Encode decoded pixels; nothing but pixels is written."""
    buffer = io.BytesIO()
    bare = pixels.convert("RGB")
    bare.info.clear()
    bare.save(buffer, "PNG")
    return buffer.getvalue()


def write_hf(mined: Mined, folder: Path) -> None:
    """A Parquet file with the features of `datasets`, so that `load_dataset(folder)` decodes images by itself."""
    from datasets import Features, Image, List, Value

    element = {
        "bbox": List(Value("int32"), length=4), "label": Value("string"),
        **{name: Value("float32") for name in SCORES}, **{name: Value("int32") for name in RANKS},
    }  # fmt: skip
    features = Features(
        {
            "image": Image(), "image_id": Value("string"), "file_name": Value("string"), "width": Value("int32"),
            "height": Value("int32"), "labels": List(Value("string")), "group": Value("string"),
            "elements": List(element),
        }
    )  # fmt: skip
    schema = features.arrow_schema
    (folder / "data").mkdir()
    with pq.ParquetWriter(folder / "data" / "train-00000-of-00001.parquet", schema) as writer:
        rows: list[dict[str, Any]] = []
        for image, elements in mined.sources():
            rows.append(
                {
                    "image": {"bytes": png(mined.dataset.open(image)), "path": f"{image.image_id}.png"},
                    "image_id": image.image_id, "file_name": image.file_name, "width": image.width,
                    "height": image.height, "labels": list(image.labels), "group": image.group,
                    "elements": [
                        {"bbox": [e["x0"], e["y0"], e["x1"] - e["x0"], e["y1"] - e["y0"]], "label": e["label"],
                         **_attributes(e)} for e in elements
                    ],
                }
            )  # fmt: skip
            if len(rows) == BATCH:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    data = mined.record["dataset"]
    write_text(
        folder / "README.md",
        f"# Visual elements of {data['name']} by {data['label']}\n\nMined with typicality. An image a row; `elements` "
        "are its boxes `[x, y, width, height]` in pixels, with their typicality (squared error per latent value).\n\n"
        "```python\nfrom datasets import load_dataset\nload_dataset(\"path/to/this/folder\", split=\"train\")\n```\n",
    )  # fmt: skip


def write_fiftyone(mined: Mined, folder: Path) -> None:
    """FiftyOneImageDetectionDataset: data/<id>.png and labels.json, boxes as shares of width and height.

    https://docs.voxel51.com/user_guide/import_datasets.html#fiftyoneimagedetectiondataset
    """
    classes = {label: number for number, label in enumerate(mined.labels)}
    labels: dict[str, list[dict[str, Any]]] = {}
    (folder / "data").mkdir()
    for image, elements in mined.sources():
        (folder / "data" / f"{image.image_id}.png").write_bytes(png(mined.dataset.open(image)))
        labels[image.image_id] = [
            {
                "label": classes[e["label"]],
                "bounding_box": [
                    e["x0"] / image.width, e["y0"] / image.height,
                    (e["x1"] - e["x0"]) / image.width, (e["y1"] - e["y0"]) / image.height,
                ],
                "attributes": {"file_name": image.file_name, **_attributes(e)},
            }
            for e in elements
        ]  # fmt: skip
    document = {"classes": list(classes), "labels": labels}
    write_text(folder / "labels.json", json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def write_png(mined: Mined, folder: Path) -> None:
    """<label>/<cluster>/<place>-<name>.png and index.csv with all that is known of each."""
    named = slugs(mined.labels)
    table = pq.read_table(mined.folder / "elements.parquet")
    places: dict[tuple[str, int, str], str] = {}
    for image, elements in mined.sources():
        pixels = mined.dataset.open(image)
        for e in elements:
            cluster = f"{e['cluster']:03d}" if e["cluster"] >= 0 else "none"
            name = f"{max(e['rank_in_cluster'], 0):04d}-{e['rank']:04d}-{safe(image.file_name)}.png"
            place = f"{named[e['label']]}/{cluster}/{name}"
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels.crop((e["x0"], e["y0"], e["x1"], e["y1"]))))
            places[e["label"], e["rank"], e["image_id"]] = place
    keys = zip(*(table[name].to_pylist() for name in ("label", "rank", "image_id")), strict=True)
    table = table.add_column(0, "picture", pa.array([places[key] for key in keys]))
    pyarrow.csv.write_csv(_known(table), folder / "index.csv")


def safe(file_name: str) -> str:
    """Return the stem of a file name in letters that every file system takes: a.b/ü 1.png -> 1."""
    stem = file_name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:60] or "image"


WRITERS: dict[str, tuple[str, Callable[[Mined, Path], None], bool]] = {
    "coco": ("elements.coco.json", write_coco, False),
    "parquet": ("elements.parquet", write_parquet, False),
    "csv": ("elements.csv", write_csv, False),
    "hf": ("hf", write_hf, True),
    "fiftyone": ("fiftyone", write_fiftyone, True),
    "png": ("png", write_png, True),
}
"""Format -> name in RUN/export, writer, and whether it is a folder."""
