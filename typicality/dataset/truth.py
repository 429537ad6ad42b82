"""Ground truth for evaluation: boxes and masks, from columns of the data set or a COCO file. Never for training."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from typicality.dataset.labels import number_of_text, path_of, printable, text_of
from typicality.dataset.places import FilePlace, Place
from typicality.dataset.rows import Row, Source, file_place
from typicality.errors import DatasetError, nearest
from typicality.records import Box

NamedBox = tuple[Box, str]
"""A box and what its source says it shows, such as a COCO category; '' where it says nothing."""
BoxesOf = Callable[[Row, str], tuple[NamedBox, ...]]
"""Finds the boxes of a row, given its label where it has one alone, else ''."""
CORNERS = "[[x0, y0, x1, y1], ...] in pixels of the original image, x1 and y1 exclusive"


def no_boxes(row: Row, label: str) -> tuple[NamedBox, ...]:
    """Return () for every row: there is no ground truth."""
    return ()


def boxes_reader(setting: str | None, source: Source, rows: Iterable[Row]) -> BoxesOf:
    """Return the function that finds a row's boxes.

    `setting` names a column of JSON lists (or of lists), four columns 'x0,y0,x1,y1', or a COCO file. The last names its
    boxes by category. Those in columns are of the row's label where it has one alone, as where each box has a row.
    """
    if setting is None:
        return no_boxes
    if setting in source.columns:
        return lambda row, label: _named(_parse(row.values.get(setting), row.file_name), label)
    four = [name.strip() for name in setting.split(",")]
    if len(four) == 4 and all(name in source.columns for name in four):
        return lambda row, label: _named(_of_corners([row.values.get(name) for name in four], row.file_name), label)
    for path in (Path(setting).expanduser(), source.base / setting):
        if path.is_file():
            return _coco(path, source, rows)
    raise DatasetError(
        f"dataset.boxes = {setting!r} is neither a column, nor four columns such as 'x0,y0,x1,y1', nor a COCO file: "
        f"{nearest(setting, source.columns)}"
    )


def mask_place(setting: str | None, row: Row, source: Source) -> Place | None:
    """Return where a row's mask is; None where it has none."""
    if setting is None or not text_of(row.values.get(setting)):
        return None
    base = row.base or source.base
    return file_place(path_of(row.values[setting]), (base / "masks", base))


def _named(boxes: Iterable[Box], name: str) -> tuple[NamedBox, ...]:
    return tuple((box, name) for box in boxes)


def _parse(value: Any, file_name: str) -> tuple[Box, ...]:
    if isinstance(value, str):
        if not value.strip():
            return ()
        try:
            value = json.loads(value)
        except ValueError:
            raise DatasetError(f"{file_name}: the boxes {value!r} are not a JSON list {CORNERS}") from None
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return ()
    if not isinstance(value, (list, tuple)):
        raise DatasetError(f"{file_name}: the boxes {value!r} are not a list {CORNERS}")
    several = value if isinstance(value[0], (list, tuple)) else [value]
    return tuple(box for corners in several for box in _of_corners(corners, file_name))


def _of_corners(corners: Iterable[Any], file_name: str) -> tuple[Box, ...]:
    """Return the box that covers these corners in whole pixels; () where all are missing."""
    texts = [text_of(value) for value in corners]
    if not any(texts):
        return ()
    numbers = [number for text in texts if (number := number_of_text(text)) is not None]
    if len(numbers) != 4 or len(texts) != 4:
        raise DatasetError(f"{file_name}: a box is four numbers x0, y0, x1, y1, not {', '.join(texts)}")
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        raise DatasetError(f"{file_name}: the box {numbers} is empty; boxes are {CORNERS}, not width and height")
    return ((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)),)


def clip(boxes: Iterable[NamedBox], width: int, height: int) -> tuple[NamedBox, ...]:
    """Cut boxes at the borders of the image; what lies outside goes. Sorted, without repeats of box and name."""
    cut = {(_cut(box, width, height), name) for box, name in boxes}
    return tuple(sorted((box, name) for box, name in cut if _area(box)))


def outside(boxes: Iterable[NamedBox], width: int, height: int) -> int:
    """Return how many boxes lie outside of the image with more than half of their area."""
    return sum(2 * _area(_cut(box, width, height)) < _area(box) for box, _ in boxes)


def _cut(box: Box, width: int, height: int) -> Box:
    x0, y0, x1, y1 = box
    return max(0, x0), max(0, y0), min(width, x1), min(height, y1)


def _area(box: Box) -> int:
    x0, y0, x1, y1 = box
    return max(0, x1 - x0) * max(0, y1 - y0)


def _coco(path: Path, source: Source, rows: Iterable[Row]) -> BoxesOf:
    """Boxes of a COCO file, found by file name as `_images_of` says; what is left out is told in the source's notes.

    The name of a box is that of its category.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: text_of(image["file_name"]) for image in content["images"]}
        categories = {c["id"]: text_of(c.get("name")) for c in content.get("categories") or ()}
        by_name: dict[str, list[NamedBox]] = {name: [] for name in names.values()}
        flat = 0
        for annotation in content["annotations"]:
            if annotation.get("bbox"):
                x, y, width, height = annotation["bbox"]
                name = names[annotation["image_id"]]
                if x + width <= x or y + height <= y:
                    flat += 1
                    continue
                what = categories.get(annotation.get("category_id"), "")
                by_name[name] += [(box, what) for box in _of_corners([x, y, x + width, y + height], name)]
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not a COCO file (images and annotations with bbox): {error!r}") from error
    if flat:
        source.notes.append(f"{path}: boxes without an area are left out: {flat}")
    name_of, unclear = _images_of(by_name, rows)
    if without := [name for name in unclear if by_name[name]]:
        source.notes.append(
            f"{path}: {len(without)} file names that have boxes could mean several images, first "
            f"{printable(without[0])}: left out; write such names with their folders"
        )
    elif by_name and not name_of:
        source.notes.append(f"{path} names no image of {source.name}, first {printable(next(iter(by_name)))}: no boxes")
    return lambda row, _: tuple(by_name[name_of[row.file_name]]) if row.file_name in name_of else ()


def _images_of(names: Collection[str], rows: Iterable[Row]) -> tuple[dict[str, str], list[str]]:
    """Find the image that each name means: that of this very name, else the only one with the same ending.

    A data set and a file about it may name the same image from different folders on: what the shorter name has must
    be what the longer one ends with, folder by folder. Where the folders are others altogether, the name without them
    must be the only one on either side.

    Returns
    -------
    file name of an image -> the one of `names` that means it, and the names that could mean several images.
    """
    places: dict[str, set[Place | None]] = {}
    for row in rows:
        # rows of a table may name one image several times, under a label each
        places.setdefault(row.file_name, set()).add(row.place if isinstance(row.place, FilePlace) else None)
    free, others = places.keys() - set(names), set(names) - places.keys()
    meant = {name: {name} for name in names if name in places}
    meant |= {name: free & set(_endings(name)) for name in others}
    for file_name in free:
        for name in others.intersection(_endings(file_name)):
            meant[name].add(file_name)
    ours, theirs = (Counter(PurePosixPath(n).name for n in side) for side in (places, names))
    alone = {base: n for n in free if ours[base := PurePosixPath(n).name] == theirs[base] == 1}
    meant |= {n: {alone[base]} for n in others if not meant[n] and (base := PurePosixPath(n).name) in alone}
    taken = Counter(file_name for found in meant.values() for file_name in found)
    name_of = {
        file_name: name
        for name, found in meant.items()
        for file_name in found
        if len(found) == taken[file_name] == len(places[file_name]) == 1
    }
    known = set(name_of.values())
    return name_of, sorted(name for name, found in meant.items() if found and name not in known)


def _endings(name: str) -> list[str]:
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
