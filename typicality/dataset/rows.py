"""What every source becomes before a pixel is read: a stream of rows, each with a place and its columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typicality.dataset.places import FilePlace, NoPlace, Place

FOLDER = "folder"  # the column that holds the name of an image's folder


@dataclass(frozen=True, slots=True)
class Row:
    """One image, unread: as its source names it, where its bytes are, and its columns.

    `base` is the folder that the relative path of its mask starts from, where it is not that of the whole source.
    """

    file_name: str
    place: Place
    values: Mapping[str, Any]
    base: Path | None = None


@dataclass(frozen=True)
class Source:
    """A data set, unread.

    Attributes
    ----------
    name : short name, safe as part of a path
    columns : those a label, a group or an expression may name
    rows : streams the rows; may be called again
    image_column : the column that names the image or holds it, never a label
    base : folder that relative paths of masks start from
    has_folders : whether the column `folder` may serve as the label
    own_labels : columns that were made to be labels; any other column where empty
    encoded : columns that hold images, which are none of `columns`
    notes : what the reader wants to tell the user; complete once the rows were streamed
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    base: Path
    image_column: str | None = None
    has_folders: bool = False
    own_labels: tuple[str, ...] = ()
    encoded: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def safe_name(text: str) -> str:
    """Return `text` as part of a path: word characters, dots and hyphens only."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-._") or "dataset"


def find_file(name: str, folders: tuple[Path, ...]) -> Path | None:
    """Return the file of that (relative or absolute) name in the first of `folders` that has it.

    The name is tried as it stands and without blanks around it, then with composed and with decomposed letters: an
    é may be one character in the table and two in the folder, or the other way round.
    """
    plain = dict.fromkeys((name, name.strip()))
    spellings = dict.fromkeys([*plain, *(unicodedata.normalize(form, n) for form in ("NFC", "NFD") for n in plain)])
    for candidate in (folder / spelling for folder in folders for spelling in spellings):
        try:
            if candidate.is_file():
                return candidate
        except (OSError, ValueError):  # names that no file can have
            continue
    return None


def file_place(name: str, folders: tuple[Path, ...]) -> Place:
    """Return where the named file is, or a place that says why it cannot be read; `name` is that of `path_of`."""
    if not name.strip():
        return NoPlace("the row names no file")
    if "://" in name:
        return NoPlace("is an address: images are read from disk only, so download them first")
    found = find_file(name, folders)
    return FilePlace(str(found)) if found is not None else NoPlace(f"no such file in {folders[0]}")
