"""Tables: CSV, TSV, JSON lines and Parquet files with a column of image paths or of encoded images."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from typicality.dataset.labels import path_of, text_of
from typicality.dataset.places import ParquetPlace, Place
from typicality.dataset.rows import Row, Source, file_place, safe_name
from typicality.errors import DatasetError, nearest

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
FILE_NAMES = ("file_name", "filename", "file", "path", "filepath", "file_path")
PATH_COLUMNS = (*FILE_NAMES, "image_path", "image_file", "image_name", "image_index", "image", "img", "image_id")
SCAN_ROWS = 512  # Parquet rows in memory at once while listing
SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)
csv.field_size_limit(2**27)


@dataclass(frozen=True)
class Table:
    """A table, unread: its columns, those that hold encoded images, and its cells row by row.

    `cells` yields (values, row group, row in the group); the last two are 0 and the row except for Parquet.
    """

    path: Path
    columns: tuple[str, ...]
    encoded: tuple[str, ...]
    cells: Callable[[], Iterator[tuple[dict[str, Any], int, int]]]


def open_table(path: Path) -> Table:
    """Open a table by its suffix.

    Raises
    ------
    DatasetError : the file cannot be read as what its suffix says.
    """
    readers = {".csv": _text_table, ".tsv": _text_table, ".parquet": _parquet_table}
    try:
        return readers.get(path.suffix.lower(), _json_table)(path)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise DatasetError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error


def table_source(path: Path, image_column: str | None, name: str | None = None) -> Source:
    """Return the source of a table whose paths are relative to its own folder (or to images/ in it)."""
    return tables_source((path,), image_column, name or safe_name(path.stem))


def tables_source(paths: tuple[Path, ...], image_column: str | None, name: str) -> Source:
    """Return the source of several tables with the same columns, one after the other."""
    tables = [open_table(path) for path in paths]
    column = image_column_of(tables[0], image_column)
    columns = dict.fromkeys(c for table in tables for c in table.columns if c not in table.encoded)

    def rows() -> Iterator[Row]:
        for table in tables:
            folder = table.path.parent
            yield from rows_of(table, column, (folder, folder / "images"))

    return Source(name, tuple(columns), rows, paths[0].parent, image_column=column, encoded=tables[0].encoded)


def rows_of(table: Table, column: str, folders: tuple[Path, ...]) -> Iterator[Row]:
    """Yield the rows of a table whose images are in `column`, or in `folders` under the names in `column`."""
    folder = table.path.parent
    for values, group, number in table.cells():
        if column in table.encoded:
            place: Place = ParquetPlace(str(table.path), group, number, column)
            file_name = _encoded_name(values, column) or f"{table.path.stem}#{group}.{number}"
        else:
            if values and all(value == "" for value in values.values()):
                continue  # a line of nothing but separators
            place = file_place(path_of(values.get(column)), folders)
            file_name = text_of(values.get(column)) or "(no name)"
        shown = {c: value for c, value in values.items() if c not in table.encoded}
        yield Row(file_name, place, shown, folder)


def image_column_of(table: Table, wanted: str | None, beside_images: bool = False) -> str:
    """Return the column that holds images or their paths: `wanted`, or the likeliest one.

    A table `beside_images` names files: whatever binary columns it has, they come after its column of file names.
    """
    if wanted is not None:
        if wanted not in table.columns:
            raise DatasetError(f"{table.path} has no column {wanted!r} of images; {nearest(wanted, table.columns)}")
        return wanted
    texts = [column for column in reversed(table.columns) if column not in table.encoded]
    by_name = {column.lower().replace(" ", "_").replace("-", "_"): column for column in texts}
    if table.encoded and not (beside_images and by_name.keys() & set(FILE_NAMES)):
        return table.encoded[0]
    for likely in PATH_COLUMNS:
        if likely in by_name:
            return by_name[likely]
    raise DatasetError(
        f"{table.path} has no column that looks like the path of an image (such as file_name or path): "
        f"name it with dataset.image_column; the columns are {', '.join(map(repr, table.columns))}"
    )


def _encoded_name(values: dict[str, Any], image_column: str) -> str:
    for column in ("file_name", "filename", "path"):
        if column != image_column and text_of(values.get(column)):
            return text_of(values[column])
    cell = values.get(image_column)
    return text_of(cell.get("path")) if isinstance(cell, dict) else ""


def _text_table(path: Path) -> Table:
    """CSV or TSV in UTF-8, with a header; a CSV whose header has tabs or semicolons and no comma is split at those."""

    def lines() -> Iterator[list[str]]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                if told := SEPARATOR.fullmatch(header.strip()):  # as Excel writes before the header
                    yield from csv.reader(file, delimiter=told.group(1))
                    return
                file.seek(0)
                yield from csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else _delimiter(header))
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} is not in UTF-8: save it with that encoding") from error
        except csv.Error as error:
            raise DatasetError(f"{path} cannot be read as a table: {error}") from error

    header = next(lines(), None)
    if not header:
        raise DatasetError(f"{path} is empty: a table starts with a row of column names")
    columns = tuple(column.strip() for column in header)
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise DatasetError(f"{path} has two columns named {twice!r}: rename one of them")

    def cells() -> Iterator[tuple[dict[str, Any], int, int]]:
        reader = lines()
        next(reader)
        for number, line in enumerate(reader):
            if len(line) > len(columns):
                raise DatasetError(
                    f"{path}, row {number + 2} has {len(line)} cells, but there are {len(columns)} columns"
                )
            if line:
                yield dict(zip(columns, line + [""] * (len(columns) - len(line)), strict=True)), 0, number

    return Table(path, columns, (), cells)


def _delimiter(header: str) -> str:
    """Return what separates the column names of a header, not counting what stands in quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return next((sign for sign in ",\t;" if sign in bare), ",")


def _json_table(path: Path) -> Table:
    """JSON lines: an object a line."""

    def cells() -> Iterator[tuple[dict[str, Any], int, int]]:
        try:
            with path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file):
                    if line.strip():
                        content = json.loads(line)
                        if not isinstance(content, dict):
                            raise DatasetError(
                                f"{path}, line {number + 1} is not an object: JSON lines are one object a line"
                            )
                        yield content, 0, number
        except ValueError as error:
            raise DatasetError(f"{path} is not JSON lines (an object a line) in UTF-8: {error}") from error

    columns = tuple(dict.fromkeys(name for values, _, _ in cells() for name in values))
    if not columns:
        raise DatasetError(f"{path} is empty: every line of JSON lines is an object")
    return Table(path, columns, (), cells)


def _parquet_table(path: Path) -> Table:
    with pq.ParquetFile(path) as file:
        schema, groups = file.schema_arrow, file.num_row_groups
    encoded = tuple(f.name for f in schema if _holds_images(f.type))
    others = [f.name for f in schema if f.name not in encoded]
    paths = [f"{f.name}.path" for f in schema if pa.types.is_struct(f.type) and f.name in encoded]
    names = class_names(schema)
    narrow = [f.name for f in schema if f.type in (pa.float32(), pa.float16())]

    def cells() -> Iterator[tuple[dict[str, Any], int, int]]:
        wanted = others + paths
        with pq.ParquetFile(path) as file:
            for group in range(groups):
                if not wanted:
                    yield from (({}, group, row) for row in range(file.metadata.row_group(group).num_rows))
                    continue
                row = 0
                for batch in file.iter_batches(SCAN_ROWS, row_groups=[group], columns=wanted):
                    for values in batch.to_pylist():
                        values |= {c: shortest(values[c], schema.field(c).type) for c in narrow}
                        yield {c: named(v, names.get(c)) for c, v in values.items()}, group, row
                        row += 1

    return Table(path, tuple(schema.names), encoded, cells)


def shortest(value: float | None, kind: pa.DataType) -> float | None:
    """Return a number of less than double precision as people write it: 0.7, not 0.699999988079071."""
    if value is None:
        return None
    return float(str(np.float32(value) if kind == pa.float32() else np.float16(value)))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names behind integer labels, for the columns where Hugging Face metadata gives them."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    features = json.loads(metadata).get("info", {}).get("features", {})
    return {column: found for column, feature in features.items() if (found := names_of_feature(feature))}


def names_of_feature(feature: Any) -> list[str]:
    """Return the class names of a feature (or of the items of a list feature) as Hugging Face writes it in JSON."""
    if isinstance(feature, list):
        feature = feature[0] if feature else None
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return list(feature.get("names") or ())
    return names_of_feature(feature.get("feature"))


def named(value: Any, names: list[str] | None) -> Any:
    """Replace class numbers by their names; -1 and None mean that there is no label."""
    if not names:
        return value
    if isinstance(value, list):
        return [named(v, names) for v in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value
