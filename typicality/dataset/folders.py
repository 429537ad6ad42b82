"""Folders of images: with a metadata table, or with the folder's name as the label."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from typicality.dataset.labels import printable
from typicality.dataset.pixels import IMAGE_SUFFIXES, UNKNOWN_SUFFIXES
from typicality.dataset.places import FilePlace
from typicality.dataset.rows import FOLDER, Row, Source, find_file, safe_name
from typicality.dataset.tables import Table, image_column_of, open_table, rows_of
from typicality.errors import DatasetError, OutputError
from typicality.store import read_record

METADATA = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet", ".tsv"))


def metadata_files(root: Path) -> tuple[Path, ...]:
    """Return the metadata tables of a folder: its own, that of images/ in it, or those of its sub-folders."""
    for folder in (root, root / "images"):
        for name in METADATA:
            if (folder / name).is_file():
                return (folder / name,)
    nested = (folder for folder in sorted(root.iterdir()) if _is_visible(folder) and folder.is_dir())
    tables = [folder / name for folder in nested for name in METADATA if (folder / name).is_file()]
    return tuple(table for table in tables if not holds_run(table.parent))


def holds_run(folder: Path) -> bool:
    """Return whether a run was written into this folder, also by another version of this program."""
    try:
        return read_record(folder) is not None
    except OutputError:
        return os.access(folder, os.R_OK | os.X_OK)  # of what may not be entered nothing is known


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name not in ("__MACOSX", "lost+found")


def walk_images(root: Path, suffixes: Container[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """Yield the image files below `root` in a fixed order, or those that end otherwise; links are followed once.

    Hidden names are left out, and so are run directories below `root`: their pictures are made from the data.
    """
    seen: set[str] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            visible = [e for e in sorted(folder.iterdir()) if _is_visible(e)]
            # what ends like an image and leads where nobody may go is an image that cannot be read
            inner = {e for e in visible if (os.path.isdir(e) if e.suffix.lower() in suffixes else e.is_dir())}
        except OSError as error:
            raise DatasetError(f"cannot read the folder {error.filename or folder}: {error.strerror}") from error
        pending.extend(e for e in reversed(visible) if e in inner and not holds_run(e))
        yield from (e for e in visible if e.suffix.lower() in suffixes and e not in inner)


def tree_source(root: Path, name: str) -> Source:
    """Return the source of a folder tree without metadata.

    The column `folder` is the name of the folder that holds the image; where the tree is deeper than one
    level, `folder_1`, `folder_2`, ... are the names along the path from the root.
    """
    depth, found = 0, False
    unknown: list[str] = []
    for path in walk_images(root, IMAGE_SUFFIXES | UNKNOWN_SUFFIXES):
        if path.suffix.lower() in UNKNOWN_SUFFIXES:
            unknown.append(path.relative_to(root).as_posix())
            continue
        found = True
        depth = max(depth, len(path.relative_to(root).parts) - 1)
    if not found:
        raise DatasetError(
            f"the folder {root} holds no image (no file that ends in {', '.join(sorted(IMAGE_SUFFIXES)[:8])}, ...)"
        )
    levels = tuple(f"{FOLDER}_{level + 1}" for level in range(depth)) if depth > 1 else ()

    notes = []
    if unknown:
        notes.append(
            f"{len(unknown)} files of formats that are not read, first {printable(unknown[0])}: left out; convert them "
            "to PNG or JPEG"
        )

    def rows() -> Iterator[Row]:
        for path in walk_images(root):
            parts = path.relative_to(root).parts[:-1]
            values: dict[str, Any] = {FOLDER: parts[-1] if parts else None}
            values.update(zip(levels, parts, strict=False))
            yield Row(printable(path.relative_to(root).as_posix()), FilePlace(str(path)), values)

    return Source(name, (FOLDER, *levels), rows, root, has_folders=depth > 0, own_labels=(FOLDER,), notes=notes)


def metadata_source(root: Path, tables: tuple[Path, ...], image_column: str | None, name: str) -> Source:
    """Return the source of a folder whose images are described in metadata tables.

    File names are relative to the table's folder, to images/ in it, or to `root`. Images below `root` that no table
    names, in whatever column, are left out, and counted in the notes.
    """
    opened = [(table, image_column_of(table, image_column, beside_images=True)) for table in map(open_table, tables)]
    columns = dict.fromkeys(c for table, _ in opened for c in table.columns if c not in table.encoded)
    adds_folder = FOLDER not in columns
    notes: list[str] = []

    def rows() -> Iterator[Row]:
        named: set[str] = set()
        for table, column in opened:
            for row in _rows_of(table, column, root, adds_folder):
                named.update(map(os.path.realpath, _files_of(row, column, root)))
                yield row
        note = _left_out(root, named)
        if note and note not in notes:
            notes.append(note)

    shown = (*columns, FOLDER) if adds_folder else tuple(columns)
    encoded = tuple(c for table, _ in opened for c in table.encoded)
    return Source(
        name, shown, rows, tables[0].parent, opened[0][1], has_folders=adds_folder, encoded=encoded, notes=notes
    )


def _rows_of(table: Table, column: str, root: Path, adds_folder: bool) -> Iterator[Row]:
    folder = table.path.parent
    for row in rows_of(table, column, (folder, folder / "images", root)):
        own = {FOLDER: Path(row.file_name).parent.name or None} if adds_folder else {}
        yield replace(row, values={**row.values, **own})


def _files_of(row: Row, column: str, root: Path) -> Iterator[Path]:
    """Yield the image that a row names in `column`, and what else has the name of one: a mask, a smaller copy."""
    if isinstance(row.place, FilePlace):
        yield Path(row.place.path)
    folder = row.base or root
    for name, value in row.values.items():
        if name != column and isinstance(value, str) and os.path.splitext(value)[1].strip().lower() in IMAGE_SUFFIXES:
            found = find_file(value, (folder / "masks", folder, folder / "images", root))
            if found is not None:
                yield found


def _left_out(root: Path, named: set[str]) -> str:
    """Say how many images below `root` are none of those `named` (real paths); '' where all are."""
    try:
        unnamed = [f for f in walk_images(root) if os.path.realpath(f) not in named]
    except DatasetError as error:
        return f"{error}: images in it that the metadata does not name would be left out"
    if not unnamed:
        return ""
    first = printable(unnamed[0].relative_to(root).as_posix())
    return (
        f"{len(unnamed)} image files in {printable(str(root))} are not named in the metadata, first {first}: left out"
    )


def folder_name(root: Path) -> str:
    """Return the short name of a folder, also for '.'."""
    return safe_name(root.resolve().name)
