"""Images with labels at random and motifs planted into some of them, written as a data set of their own.

The source is only read. What is planted where follows from the seed and the content of the images alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from typicality.config import DatasetSettings, key_of
from typicality.dataset import pixels
from typicality.dataset.labels import text_of
from typicality.dataset.places import Place as Where
from typicality.dataset.sources import open_source
from typicality.dataset.split import unit_hash
from typicality.dataset.where import compile_where
from typicality.errors import InputError, OutputError, nearest
from typicality.evaluation.motifs import SIDE, Motif, Place, draw_motifs, generator, plant
from typicality.records import Box
from typicality.store import write_text, write_whole

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
"""Labels: words that say nothing about an image."""


@dataclass(frozen=True)
class Planting:
    """What is planted, and where.

    Attributes
    ----------
    labels : how many
    motifs, distractors : kinds (motifs.KINDS), one each a label, and in all labels alike
    prevalence : share of a label's images that get each motif
    size : side in pixels of an image whose short side has 64
    contrast : opacity, above 0 and at most 1
    place : anywhere (free), or always at one place (fixed)
    control : plant nothing
    """

    labels: int = 2
    motifs: tuple[str, ...] = ("glyph",)
    distractors: tuple[str, ...] = ("glyph",)
    prevalence: float = 0.5
    size: float = 14.0
    contrast: float = 1.0
    place: Place = "free"
    control: bool = False

    def check(self) -> None:
        """Raise InputError for what cannot be planted."""
        if not 2 <= self.labels <= len(NAMES):
            raise InputError(f"--labels must be 2 to {len(NAMES)}, not {self.labels}")
        if not 0 < self.prevalence <= 1:
            raise InputError(f"prevalence must be above 0 and at most 1, not {self.prevalence}; --control plants none")
        if not 0 < self.size <= SIDE / 2:
            raise InputError(
                f"size is in pixels of an image of {SIDE}: above 0 and at most {SIDE // 2}, not {self.size}"
            )
        if not 0 < self.contrast <= 1:
            raise InputError(f"contrast must be above 0 and at most 1, not {self.contrast}")
        if self.place not in ("free", "fixed"):
            raise InputError(f"place is free or fixed, not {self.place!r}")
        if not self.motifs:
            raise InputError("name a motif at least, or plant nothing with --control")
        self.draw(0)

    def draw(self, seed: int) -> list[Motif]:
        """Return the motifs, labels' first; none for a control."""
        if self.control:
            return []
        return draw_motifs(NAMES[: self.labels], self.motifs, self.distractors, seed)


@dataclass(frozen=True)
class Original:
    """An image before anything is planted. `image_id` is a hash of its pixels: two files of equal pixels are one."""

    image_id: str
    group: str
    place: Where


@dataclass(frozen=True)
class Truth:
    """What was planted into one image; boxes in its pixels."""

    label: str
    planted: tuple[Box, ...]
    distractors: tuple[Box, ...]


def choose_images(settings: DatasetSettings, number: int, seed: int) -> list[Original]:
    """Choose images by a hash of their group and the seed, without reading more than are needed; labels are ignored.

    Images that cannot be read, or have the very pixels of another one, are passed over.

    Raises
    ------
    InputError : where fewer than four groups are left, for two labels need two folds.
    """
    source = open_source(settings)
    if settings.group is not None and settings.group not in source.columns:
        raise InputError(
            f"dataset.group: there is no column {settings.group!r}; {nearest(settings.group, source.columns)}"
        )
    keeps = None
    if settings.where:
        keeps = compile_where(settings.where, dict.fromkeys((*source.columns, "file_name")))
    rows = []
    for row in source.rows():
        if keeps is None or keeps({"file_name": row.file_name, **row.values}):
            group = text_of(row.values.get(settings.group)) if settings.group else ""
            key = group or row.file_name
            rows.append((unit_hash(key, f"planted:{seed}"), key, row.file_name, group, row.place))
    found: dict[str, Original] = {}
    for *_, group, place in sorted(rows, key=lambda r: r[:3]):
        if len(found) == number:
            break
        try:
            image_id = pixel_id(np.asarray(pixels.rgb(place.read())))
        except (OSError, pa.ArrowException, pixels.UnreadablePixelsError):
            continue
        found.setdefault(image_id, Original(image_id, group or image_id, place))
    if len({o.group for o in found.values()}) < 4:
        raise InputError(f"{source.name} has too few different images or groups that can be read: four at least")
    return list(found.values())


def pixel_id(image: np.ndarray) -> str:
    """Return 32 hexadecimal digits of a hash of (h, w, 3) uint8."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:32]


def assign_labels(groups: Sequence[str], count: int, seed: int) -> dict[str, str]:
    """Deal labels to groups in the order of a hash: as many of each as can be, whatever the images."""
    ordered = sorted(set(groups), key=lambda g: (unit_hash(g, f"planted label:{seed}"), g))
    return {group: NAMES[i % count] for i, group in enumerate(ordered)}


def chosen_for(motif: Motif, images: Mapping[str, str], prevalence: float, seed: int) -> set[str]:
    """Ids of the images that get a motif: round(prevalence * n) of each label it belongs to, by a hash.

    Parameters
    ----------
    images : image_id -> label
    """
    by_label: defaultdict[str, list[str]] = defaultdict(list)
    for image_id, label in images.items():
        if motif.label in (label, None):
            by_label[label].append(image_id)
    found: set[str] = set()
    for members in by_label.values():
        ranked = sorted(members, key=lambda i: (unit_hash(f"{i}|{motif.name}", f"plant:{seed}"), i))
        found.update(ranked[: max(1, round(prevalence * len(members)))])
    return found


def write_planted(
    folder: Path, originals: Sequence[Original], planting: Planting, seed: int, max_aspect: float, fresh: bool = False
) -> dict[str, Truth]:
    """Write the planted images and metadata.csv, unless they are there; the source is only read.

    The columns of metadata.csv: file_name, label, group, and as JSON lists of boxes `planted` (fit for
    `dataset.boxes`) and `distractors`, with the names of the motifs in `motifs`.

    Returns
    -------
    file_name -> what was planted

    Raises
    ------
    OutputError : where the folder holds something else.
    """
    key = key_of([asdict(planting), seed, max_aspect, [[o.image_id, o.group] for o in originals]])
    done, table = folder / "planted.json", folder / "metadata.csv"
    if done.is_file():
        if not fresh and json.loads(done.read_text(encoding="utf-8"))["key"] == key and table.is_file():
            return read_truth(table)
        for old in (table, *folder.glob("*.png")):
            old.unlink(missing_ok=True)
    elif folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds files that are no planted images; choose another --out")
    motifs = planting.draw(seed)
    about = {"key": key, "seed": seed, "planting": asdict(planting), "motifs": [m.name for m in motifs]}
    write_text(done, json.dumps(about, indent=2) + "\n")
    label_of = assign_labels([o.group for o in originals], planting.labels, seed)
    images = {o.image_id: label_of[o.group] for o in originals}
    takers = {m.name: chosen_for(m, images, planting.prevalence, seed) for m in motifs}
    rows = []
    for i, original in enumerate(originals):
        own = [m for m in motifs if original.image_id in takers[m.name]]
        image = np.asarray(pixels.rgb(original.place.read()))
        image, placed = plant(
            image, own, size=planting.size, contrast=planting.contrast, place=planting.place, max_aspect=max_aspect,
            rng=generator("place", seed, original.image_id),
        )  # fmt: skip
        file_name = f"{i:06}.png"
        picture = Image.fromarray(image)
        write_whole(folder / file_name, lambda p, picture=picture: picture.save(p, format="PNG"))
        hidden = [(m, box) for m, box in placed if m.label is not None]
        also = [(m, box) for m, box in placed if m.label is None]
        rows.append(
            [
                file_name, images[original.image_id], original.group,
                json.dumps([box for _, box in hidden]), json.dumps([box for _, box in also]),
                json.dumps([m.name for m, _ in hidden + also]),
            ]
        )  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "group", "planted", "distractors", "motifs"])
    writer.writerows(rows)
    write_text(table, text.getvalue())
    return read_truth(table)


def read_truth(table: Path) -> dict[str, Truth]:
    """Read metadata.csv back: file_name -> what was planted."""
    with table.open(encoding="utf-8", newline="") as file:
        return {
            row["file_name"]: Truth(row["label"], _boxes(row["planted"]), _boxes(row["distractors"]))
            for row in csv.DictReader(file)
        }


def _boxes(text: str) -> tuple[Box, ...]:
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in json.loads(text))
