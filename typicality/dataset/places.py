"""Where the bytes of an image are. A place is small, picklable, and reads one image without reading the others."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

CACHE_BYTES = 64 * 2**20  # encoded images of the Parquet row groups that were read last


class Place(Protocol):
    """Knows how to read the encoded bytes of one image. `read` raises OSError where that fails."""

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A file of its own."""

    path: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class NoPlace:
    """A row that names no file that could be read; kept so that it is reported, not dropped."""

    reason: str

    def read(self) -> bytes:
        raise OSError(self.reason)


@dataclass(frozen=True, slots=True)
class TarPlace:
    """A member of an uncompressed tar archive: `size` bytes from `offset`."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.path, "rb") as archive:
            archive.seek(self.offset)
            data = archive.read(self.size)
        if len(data) < self.size:
            raise OSError("the archive ends before the image does")
        return data


@dataclass(frozen=True, slots=True)
class ParquetPlace:
    """A cell of a Parquet file: bytes, or a struct of bytes and path as Hugging Face writes it."""

    path: str
    row_group: int
    row: int
    column: str

    def read(self) -> bytes:
        return bytes_of_cell(_row_groups.cell(self), Path(self.path).parent)


@dataclass(frozen=True, slots=True)
class SavedPlace:
    """A cell of a Hugging Face data set, saved to a folder or in the local cache of the hub."""

    source: str
    split: str
    row: int
    column: str
    offline: bool = False

    def read(self) -> bytes:
        version = saved_version(self.source, self.split)
        column = _encoded_column(self.source, self.split, self.column, self.offline, version)
        return bytes_of_cell(column[self.row][self.column], Path(self.source))


def bytes_of_cell(cell: Any, folder: Path) -> bytes:
    """Return the image in a table's cell: its bytes, or those of the file that it names, relative to `folder`."""
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, dict) and cell.get("bytes") is not None:
        return cell["bytes"]
    if isinstance(cell, dict) and cell.get("path"):
        return (folder / cell["path"]).read_bytes()
    raise OSError("the row holds no image")


Version = tuple[int, int]
"""When a file was written, in nanoseconds, and its size: what was read of it before holds for no other version."""


def version_of(path: str | Path) -> Version:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


def saved_version(source: str, split: str) -> tuple[Version, ...]:
    """Return the version of a saved data set, by the records that `save_to_disk` writes; () of one on the hub."""
    folder = Path(source)
    records = (folder / "dataset_dict.json", folder / "state.json", folder / split / "state.json")
    return tuple(version_of(record) for record in records if record.is_file())


class _RowGroups:
    """The image columns of the row groups read last, up to CACHE_BYTES and at least one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[str, Version, int, str], Any] = OrderedDict()

    def cell(self, place: ParquetPlace) -> Any:
        key = (place.path, version_of(place.path), place.row_group, place.column)
        with self._lock:
            if key not in self._columns:
                with pq.ParquetFile(place.path) as file:
                    self._columns[key] = file.read_row_group(place.row_group, columns=[place.column]).column(0)
                while len(self._columns) > 1 and sum(c.nbytes for c in self._columns.values()) > CACHE_BYTES:
                    self._columns.popitem(last=False)
            self._columns.move_to_end(key)
            column = self._columns[key]
        return column[place.row].as_py()


_row_groups = _RowGroups()


@lru_cache(maxsize=4)
def _encoded_column(source: str, split: str, column: str, offline: bool, version: tuple[Version, ...]) -> Any:
    from datasets import Image

    from typicality.dataset.hub import open_saved

    return open_saved(source, split, offline).select_columns([column]).cast_column(column, Image(decode=False))
