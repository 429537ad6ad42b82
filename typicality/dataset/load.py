"""Settings to a data set: choose the columns, read every image once, merge identical ones, say what is odd."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from typicality.config import DatasetSettings
from typicality.dataset import pixels
from typicality.dataset.images import LabelledImages
from typicality.dataset.labels import in_order, labels_of, printable, text_of
from typicality.dataset.places import NoPlace, Place
from typicality.dataset.rows import FOLDER, Row, Source
from typicality.dataset.sources import open_source
from typicality.dataset.split import unit_hash
from typicality.dataset.truth import NamedBox, boxes_reader, clip, mask_place, outside
from typicality.dataset.where import compile_where
from typicality.errors import DatasetError, nearest
from typicality.records import Duplicate, LabelledImage, UnreadableImage

IMBALANCE = 50  # the most frequent label has so many times the images of the rarest: worth a warning
SHOWN = 8  # names in a warning
MERGED = 0.05  # share of the groups that are lost because they share images: worth a warning
TWELVE_BITS = 4095  # their largest value

_Measured = tuple[str, int, int, int | None]


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A row that is kept, with what its columns say about the image. `others` are labels that nobody asked for."""

    row: Row
    labels: tuple[str, ...]
    group: str
    boxes: tuple[NamedBox, ...]
    mask: Place | None
    others: tuple[str, ...] = ()


@dataclass(slots=True)
class _Image:
    """All rows whose bytes are the same."""

    width: int
    height: int
    brightest: int | None
    rows: list[_Labelled] = field(default_factory=list)

    @property
    def first(self) -> _Labelled:
        """The row that leads: the first by file name."""
        return min(self.rows, key=lambda item: item.row.file_name)

    @property
    def files(self) -> dict[Place, str]:
        return {item.row.place: item.row.file_name for item in self.rows}

    @property
    def groups(self) -> set[str]:
        return {item.group for item in self.rows} - {""}

    @property
    def labels(self) -> set[str]:
        return {label for item in self.rows for label in item.labels}

    @property
    def others(self) -> set[str]:
        return {label for item in self.rows for label in item.others}

    @property
    def boxes(self) -> set[NamedBox]:
        return {box for item in self.rows for box in item.boxes}

    @property
    def masks(self) -> tuple[Place, ...]:
        """In the order of the rows, without repeats."""
        return tuple(dict.fromkeys(item.mask for item in self.rows if item.mask is not None))

    @property
    def conflict(self) -> bool:
        """Whether its files have different labels. Several rows of one file are several labels of it."""
        labels: defaultdict[Place, set[str]] = defaultdict(set)
        for item in self.rows:
            labels[item.row.place].update(item.labels)
        return len({frozenset(names) for names in labels.values()}) > 1


@dataclass
class _Tally:
    """What happened to the rows on the way."""

    rows: int = 0
    kept: int = 0
    missing: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    missing_masks: list[str] = field(default_factory=list)


def load_dataset(settings: DatasetSettings) -> LabelledImages:
    """List, check and label every image of a data set; pixels are decoded once, and none are kept.

    Raises
    ------
    DatasetError : the data set or a column does not exist, nothing can be read, or fewer than two labels are left.
    """
    source = open_source(settings)
    label = _label_column(settings, source)
    if settings.masks in source.encoded:
        raise DatasetError(
            f"dataset.masks: the column {settings.masks!r} holds images, and masks are read from files: save them, and "
            "name a column of their paths"
        )
    for name, column in (("group", settings.group), ("masks", settings.masks)):
        if column is not None and column not in source.columns:
            raise DatasetError(f"dataset.{name}: there is no column {column!r}; {nearest(column, source.columns)}")
    tally = _Tally()
    images, unreadable = _read_all(_labelled(source, label, settings, tally), settings.strict)
    _check_labels(settings, tally, label)
    same = merged_groups(image.groups for image in images.values())
    records = _limited(
        [_record(image_id, image, same) for image_id, image in sorted(images.items())], settings.max_per_label
    )
    if not records:
        raise DatasetError(_nothing(source, settings, tally, unreadable))
    wanted = _wanted(settings)
    labels, ordered = in_order((name for record in records for name in record.labels), wanted)
    if len(labels) < 2:
        raise DatasetError(
            f"all {len(records)} images of {source.name} have the label {labels[0]!r} (column {label!r}): what is "
            "typical shows only in contrast, so at least two labels are needed"
        )
    duplicates = tuple(
        Duplicate(image_id, tuple(sorted(image.files.values())), tuple(sorted(image.labels)), image.conflict)
        for image_id, image in sorted(images.items())
        if len(image.files) > 1
    )
    data = LabelledImages(
        name=source.name,
        label=label,
        labels=labels,
        ordered=ordered,
        images=records,
        unreadable=tuple(sorted(unreadable, key=lambda u: (u.file_name, u.reason))),
        duplicates=duplicates,
        fingerprint=_fingerprint(records),
        columns=source.columns,
    )
    return replace(data, warnings=tuple(_warnings(data, settings, source, tally, images.values(), same)))


def _label_column(settings: DatasetSettings, source: Source) -> str:
    """Return the column of the labels: the one named, or the only one that can be meant."""
    named = settings.label
    if not source.columns and source.image_column is None:
        raise DatasetError(
            f"the images of {source.name} have no label: in a tar it comes from a member beside the image, such as "
            "0001.json or 0001.cls beside 0001.png"
        )
    if named is not None:
        folder = source.has_folders and named in (FOLDER, "label")
        if named in source.columns and (named != FOLDER or source.has_folders or not source.own_labels):
            return named
        if folder:
            return FOLDER
    elif "label" in source.columns:
        return "label"
    if source.own_labels == (FOLDER,) and not source.has_folders:
        raise DatasetError(
            f"the images of {source.name} are in no sub-folders and there is no metadata table, so they have no label: "
            "put each label's images into a folder of its own, or add metadata.csv with a file_name column"
        )
    if named is not None:
        raise DatasetError(f"{source.name} has no column {named!r} of labels; {nearest(named, source.columns)}")
    taken = {source.image_column, settings.group, settings.masks, FOLDER, "file_name", "filename"}
    taken |= {name.strip() for name in (settings.boxes or "").split(",")} | {settings.boxes}
    candidates = source.own_labels or tuple(c for c in source.columns if c not in taken)
    if not candidates and source.has_folders:
        return FOLDER
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise DatasetError(f"{source.name} has no column that could be a label: add one beside {source.image_column!r}")
    raise DatasetError(
        f"which column of {source.name} holds the label? Set --label to one of: {', '.join(map(repr, candidates))}"
    )


def _labelled(source: Source, label: str, settings: DatasetSettings, tally: _Tally) -> Iterator[_Labelled]:
    """Stream the rows that `where` keeps and that have a label in question."""
    columns = dict.fromkeys((*source.columns, "file_name"))
    keeps = compile_where(settings.where, columns) if settings.where else None

    def kept(row: Row) -> bool:
        return keeps is None or keeps({"file_name": row.file_name, **row.values})

    boxes_of = boxes_reader(settings.boxes, source, filter(kept, source.rows()))
    wanted = _wanted(settings)
    for row in source.rows():
        tally.rows += 1
        if not kept(row):
            continue
        tally.kept += 1
        labels = labels_of(row.values.get(label), settings.label_separator, settings.bin, row.file_name)
        if not labels:
            tally.missing += 1
            continue
        tally.labels.update(labels)
        only = labels[0] if len(labels) == 1 else ""
        others: tuple[str, ...] = ()
        if wanted is not None:
            others = tuple(name for name in labels if name not in wanted)
            labels = tuple(name for name in labels if name in wanted)
        if labels:
            mask = mask_place(settings.masks, row, source)
            if isinstance(mask, NoPlace):
                tally.missing_masks.append(row.file_name)
                mask = None
            group = text_of(row.values.get(settings.group)) if settings.group else ""
            yield _Labelled(row, labels, group, boxes_of(row, only), mask, others)


def _wanted(settings: DatasetSettings) -> tuple[str, ...] | None:
    return tuple(text_of(name) for name in settings.labels) if settings.labels is not None else None


def _check_labels(settings: DatasetSettings, tally: _Tally, column: str) -> None:
    for name in _wanted(settings) or ():
        if name not in tally.labels:
            raise DatasetError(f"dataset.labels: no image has {name!r} in {column!r}; {nearest(name, tally.labels)}")


def _read_all(rows: Iterable[_Labelled], strict: bool) -> tuple[dict[str, _Image], list[UnreadableImage]]:
    """Read and decode every image, and merge those of equal bytes."""
    images: dict[str, _Image] = {}
    unreadable: list[UnreadableImage] = []
    for item, result in _in_threads(rows):
        if isinstance(result, UnreadableImage):
            if strict:
                raise DatasetError(
                    f"{result.file_name} cannot be read ({result.reason}): replace or remove it, "
                    "or run without --strict"
                )
            unreadable.append(result)
            continue
        image_id, width, height, brightest = result
        images.setdefault(image_id, _Image(width, height, brightest)).rows.append(item)
    return images, unreadable


def _in_threads(rows: Iterable[_Labelled]) -> Iterator[tuple[_Labelled, _Measured | UnreadableImage]]:
    """Map `_read` over the rows in order, with a bounded number of images in memory."""
    workers = min(8, os.cpu_count() or 1)
    pending: deque[tuple[_Labelled, Future[_Measured | UnreadableImage]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="typicality-read") as pool:
        for item in rows:
            pending.append((item, pool.submit(_read, item.row)))
            if len(pending) >= 4 * workers:
                oldest, future = pending.popleft()
                yield oldest, future.result()
        while pending:
            oldest, future = pending.popleft()
            yield oldest, future.result()


def _read(row: Row) -> _Measured | UnreadableImage:
    """Return (image_id, width, height, brightest), or why the image cannot be read."""
    try:
        data = row.place.read()
        return (pixels.content_id(data), *pixels.measure(data))
    except pixels.UnreadablePixelsError as error:
        return UnreadableImage(row.file_name, str(error))
    except OSError as error:
        return UnreadableImage(row.file_name, printable(error.strerror or str(error)))
    except pa.ArrowException as error:
        return UnreadableImage(row.file_name, f"damaged: {error}")


def merged_groups(groups_of: Iterable[Collection[str]]) -> dict[str, str]:
    """Return under which name each group counts that shares an image with others: they are relatives, all of them.

    Parameters
    ----------
    groups_of : for every image the groups of its files

    Returns
    -------
    group -> the first name of all that it hangs together with; groups that share nothing are left out.
    """
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.get(group, group) != group:
            group = parent[group]
        return group

    for groups in groups_of:
        if len(groups) > 1:
            first, *others = sorted({root(group) for group in groups})
            parent |= dict.fromkeys([first, *others], first)
    return {group: root(group) for group in sorted(parent)}


def _record(image_id: str, image: _Image, same: Mapping[str, str]) -> LabelledImage:
    first = image.first
    group = min((same.get(name, name) for name in image.groups), default=image_id)
    boxes = clip(image.boxes, image.width, image.height)
    masks = image.masks
    return LabelledImage(
        image_id=image_id,
        file_name=first.row.file_name,
        labels=tuple(sorted(image.labels)),
        group=group,
        width=image.width,
        height=image.height,
        source=first.row.place,
        metadata={name: _printable(value) for name, value in first.row.values.items()},
        boxes=tuple(box for box, _ in boxes),
        mask=masks if len(masks) > 1 else next(iter(masks), None),
        box_labels=tuple(name for _, name in boxes) if any(name for _, name in boxes) else (),
        other_labels=tuple(sorted(image.others - image.labels)),
    )


def _printable(value: Any) -> Any:
    """Return a cell whose texts can be written, also inside lists and mappings."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: _printable(inner) for name, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def _limited(records: list[LabelledImage], limit: int | None) -> tuple[LabelledImage, ...]:
    """Keep at most `limit` images of each label: those of the smallest hash, whatever else the data set holds.

    An image of several labels is kept only where all of them have room.
    """
    if limit is None:
        return tuple(records)
    taken: Counter[str] = Counter()
    kept: list[LabelledImage] = []
    for record in sorted(records, key=lambda r: unit_hash(r.image_id, salt="max_per_label")):
        if all(taken[label] < limit for label in record.labels):
            taken.update(record.labels)
            kept.append(record)
    return tuple(sorted(kept, key=lambda r: r.image_id))


def _fingerprint(records: Iterable[LabelledImage]) -> str:
    pairs = sorted((record.image_id, record.labels) for record in records)
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()[:32]


def _nothing(source: Source, settings: DatasetSettings, tally: _Tally, unreadable: list[UnreadableImage]) -> str:
    """Say why no image is left."""
    if unreadable:
        first = min(unreadable, key=lambda u: u.file_name)
        return (
            f"no image of {source.name} could be read: {len(unreadable)} were tried; "
            f"the first is {first.file_name}: {first.reason}"
        )
    if not tally.rows:
        return f"{source.name} holds no image"
    if not tally.kept:
        return f"--where {settings.where!r} keeps none of the {tally.rows} images of {source.name}"
    if tally.missing == tally.kept:
        return f"none of the {tally.kept} images of {source.name} has a label in the chosen column"
    return f"no image of {source.name} is left by the settings of the data set"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _warnings(
    data: LabelledImages, settings: DatasetSettings, source: Source, tally: _Tally, images: Collection[_Image],
    same: Mapping[str, str],
) -> Iterator[str]:  # fmt: skip
    yield from source.notes
    if data.unreadable:
        bad = data.unreadable[0]
        what = _counted(len(data.unreadable), "image")
        yield f"{what} could not be read and left out, first {bad.file_name}: {bad.reason}"
    if tally.missing:
        yield f"{tally.missing} of {tally.kept} images have no value in the column {data.label!r} and are left out"
    if tally.missing_masks:
        yield f"no file for {_counted(len(tally.missing_masks), 'mask')}, first that of {min(tally.missing_masks)}"
    yield from _odd_boxes(data, tally, images)
    deep = [image.brightest for image in images if image.brightest]
    dim = sum(brightest <= TWELVE_BITS for brightest in deep)
    if dim > len(deep) / 2:
        yield (
            f"{dim} of {len(deep)} images of 16 bits use at most 12 of 16 bits: rescale them first, or no more than 17 "
            "greys are left of them"
        )
    conflicts = [image.first.row.file_name for image in images if image.conflict]
    if conflicts:
        yield (
            f"the same bytes under different labels, counted for each of them: {_counted(len(conflicts), 'image')}, "
            f"first {min(conflicts)}"
        )
    merged = len(same) - len(set(same.values()))
    if merged > MERGED * (merged + len({image.group for image in data})):
        yield (
            f"{len(same)} groups have images in common (the same bytes) and count as {len(set(same.values()))}, so "
            f"that no image is on both sides of a split: {_some(map(repr, same))}; remove such files where they are "
            "blank or stand for what is missing"
        )
    lost = sorted(set(tally.labels) - set(data.labels)) if settings.labels is None else []
    if lost:
        yield f"no image is left of {_counted(len(lost), 'label')}: {_some(map(repr, lost))}"
    few = {label: n for label, n in data.counts.items() if n < settings.min_per_label}
    if few:
        named = _some(f"{label!r} ({n})" for label, n in few.items())
        hint = (
            ": numbers? dataset.bin makes bins of them" if data.ordered and not settings.bin and len(few) > 20 else ""
        )
        yield f"labels with fewer than the {settings.min_per_label} images that a result needs: {named}{hint}"
    most, least = max(data.counts, key=data.number_of), min(data.counts, key=data.number_of)
    if data.counts[most] >= IMBALANCE * data.counts[least]:
        yield (
            f"the labels are very unequal: {data.counts[most]} images of {most!r}, {data.counts[least]} of {least!r}; "
            "dataset.max_per_label evens them out"
        )


def _odd_boxes(data: LabelledImages, tally: _Tally, images: Collection[_Image]) -> Iterator[str]:
    """Say what about the boxes suggests that they are meant for other images or labels."""
    out = {i.first.row.file_name: n for i in images if (n := outside(i.boxes, i.width, i.height))}
    if out:
        total = sum(len(image.boxes) for image in images)
        yield (
            f"boxes that lie wholly or for the most part outside of their image: {sum(out.values())} of {total}, first "
            f"of {min(out)}; are they those of images of another size?"
        )
    names = {name for image in data for name in image.box_labels}
    if not names & set(data.labels):
        return  # names that say what is marked in other words, and tell no label
    known = {label.casefold(): label for label in data.labels}
    ignored = []
    for name in sorted(names - set(tally.labels) - {""}):
        close = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.7)
        ignored.append(f"{name!r}" + (f" (did you mean {known[close[0]]!r}?)" if close else ""))
    if ignored:
        yield f"boxes of these names count for no label, since none is called so: {_some(ignored)}"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
