"""Tables in and out: what the user's file holds, cell by cell, and the same file with cells or rows added.

A cell that is not filled is written as it was read: the very text in CSV, the very value of the same type in Parquet.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from typicality.dataset.tables import TABLE_SUFFIXES, open_table, shortest
from typicality.errors import DatasetError, OutputError, SettingsError
from typicality.store import check_writable, write_table, write_text, write_whole

CODE = re.compile(r"[+-]?0\d+")
"""With a leading zero, such as 007, a text is a name and no number."""
PHONE = re.compile(r"\+\d{7,}")


def are_codes(texts: Sequence[str]) -> bool:
    """Whether some texts of a column are names though they read like numbers: 007, or +4930123456 among phone numbers.

    +12345678 beside -300 or 5 is a number with its sign.
    """
    phones = any(PHONE.fullmatch(text) for text in texts) and all(re.fullmatch(r"\+?\d{7,}", text) for text in texts)
    return phones or any(CODE.fullmatch(text) for text in texts)


@dataclass(frozen=True)
class Unread:
    """A cell that has a value, which is never looked into: of a date, a list, bytes and the like (see `readable`).

    Attributes
    ----------
    kind : the type of its Arrow column
    """

    kind: str

    @property
    def why(self) -> str:
        return f"is of the type {self.kind}, which is neither plain numbers nor text"


@dataclass(frozen=True)
class Sheet:
    """A table as it was read.

    Attributes
    ----------
    cells : of every column its cells, as text where the file is text; `Unread` where they are not looked into
    arrow : the same with its types, of a Parquet file
    notes : what the reader wants to tell the user
    """

    path: Path
    cells: dict[str, list[Any]]
    arrow: pa.Table | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.cells)

    @property
    def index(self) -> tuple[str, ...]:
        """The columns that pandas stored as the names of rows."""
        stored = None if self.arrow is None else self.arrow.schema.pandas_metadata
        return tuple(name for name in (stored or {}).get("index_columns", ()) if isinstance(name, str))

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))


def read_sheet(path: Path) -> Sheet:
    """Read a whole table (.csv, .tsv, .jsonl, .ndjson or .parquet).

    Raises
    ------
    DatasetError : no such file, not a table, no rows, or two columns of one name.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DatasetError(f"{path} is not a table: its name ends in none of {', '.join(TABLE_SUFFIXES)}")
    table = open_table(path)
    twice = [name for name in dict.fromkeys(table.columns) if table.columns.count(name) > 1]
    if twice:
        raise DatasetError(f"{path} has two columns named {twice[0]!r}: rename one of them")
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            arrow = file.read()
        sheet = Sheet(path, {name: _cells_of(arrow, name) for name in table.columns}, arrow)
    else:
        rows, empty, last = [], 0, -1
        for values, _, number in table.cells():
            rows.append(values)
            empty, last = empty + number - last - 1, number
        bare = sum(all(cell is None or cell == "" for cell in row.values()) for row in rows)
        notes = [f"{empty} empty line(s) were left out"] if empty else []
        notes += [f"{bare} row(s) without any value are kept"] if bare else []
        sheet = Sheet(path, {name: [row.get(name) for row in rows] for name in table.columns}, None, tuple(notes))
    if not len(sheet):
        raise DatasetError(f"{path} has no rows")
    return sheet


def _cells_of(arrow: pa.Table, name: str) -> list[Any]:
    column = arrow.column(name)
    if readable(arrow, name):
        kind = _value_type(column.type)
        narrow = kind in (pa.float32(), pa.float16())
        return [shortest(cell, kind) for cell in column.to_pylist()] if narrow else column.to_pylist()
    unread = Unread(str(column.type))
    return [None if gap else unread for gap in column.is_null().to_pylist()]


def readable(arrow: pa.Table, name: str) -> bool:
    """Whether a column holds plain values; lists, records, bytes and the like are never looked into."""
    kind = _value_type(arrow.schema.field(name).type)
    checks = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_null,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def output_path(sheet: Path, out: Path | None, ending: str, fresh: bool) -> tuple[Path, Path]:
    """Return where a result goes, and the table beside it: `--out`, or TABLE-<ending> with the suffix of the input.

    Raises
    ------
    SettingsError : a suffix that is no table's.
    OutputError : it is the input itself, a folder, exists without --fresh, or cannot be written.
    """
    path = out or sheet.with_name(f"{sheet.stem}-{ending}{sheet.suffix}")
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise SettingsError(f"--out takes a table ({', '.join(TABLE_SUFFIXES)}), not {path}")
    beside = path.with_name(f"{path.stem}-uncertainty{path.suffix}")
    for place in (path, beside) if ending == "imputed" else (path,):
        if place.exists() and sheet.exists() and place.samefile(sheet):
            raise OutputError(f"{place} is the input, which is never replaced; choose another --out")
        if place.is_dir():
            raise OutputError(f"{place} is a folder; --out takes a file")
        if place.exists() and not fresh:
            raise OutputError(f"{place} exists; choose another --out, or replace it with --fresh")
        check_writable(place)
    return path, beside


def write_sheet(
    path: Path,
    sheet: Sheet,
    fills: Mapping[str, Mapping[int, Any]],
    extra: Sequence[Mapping[str, Any]] = (),
    added: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write a sheet with some of its cells filled, rows after its own, and columns after its own, by the suffix.

    Parameters
    ----------
    fills : column -> row -> new value; every other cell stays as it is
    extra : rows to append; what one does not name is missing
    added : column -> values of all rows, those of `extra` included
    """
    suffix, more = path.suffix.lower(), dict(added or {})
    if suffix == ".parquet":
        return write_table(path, _arrow(sheet, fills, extra, more))
    cells = {name: _filled(sheet.cells[name], fills.get(name, {}), extra, name) for name in sheet.columns}
    if sheet.arrow is not None:  # what is not looked into is written as text
        for name in sheet.columns:
            if not readable(sheet.arrow, name):
                cells[name] = sheet.arrow.column(name).to_pylist() + [None] * len(extra)
    columns = cells | {name: list(values) for name, values in more.items()}
    rows = zip(*columns.values(), strict=True)
    if suffix in (".csv", ".tsv"):
        return write_whole(path, lambda part: _write_text(part, columns, "\t" if suffix == ".tsv" else ","))
    return write_text(path, "".join(_json_line(dict(zip(columns, row, strict=True))) for row in rows))


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(in_json(row), ensure_ascii=False, allow_nan=False, default=text_of_cell) + "\n"


def in_json(value: Any) -> Any:
    """Return a value with what JSON cannot write replaced: NaN by null, an infinite number by its text, inf or -inf."""
    if isinstance(value, dict):
        return {name: in_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else text_of_cell(value)
    return value


def _write_text(path: Path, columns: Mapping[str, list[Any]], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([text_of_cell(value) for value in row] for row in zip(*columns.values(), strict=True))


def text_of_cell(value: Any) -> str:
    """Return a cell as it stands in a text file; nothing where it is missing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return value if isinstance(value, str) else repr(value) if isinstance(value, float) else str(value)


def _filled(cells: Sequence[Any], fills: Mapping[int, Any], extra: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [fills.get(i, cell) for i, cell in enumerate(cells)] + [row.get(name) for row in extra]


def _arrow(
    sheet: Sheet,
    fills: Mapping[str, Mapping[int, Any]],
    extra: Sequence[Mapping[str, Any]],
    added: Mapping[str, Sequence[Any]],
) -> pa.Table:
    """The result as an Arrow table: with the types of a Parquet source, else those that its cells show."""
    arrays: dict[str, Any] = {}
    for name in sheet.columns:
        own = fills.get(name, {})
        if sheet.arrow is None:
            arrays[name] = _typed(_filled(sheet.cells[name], own, extra, name))
            continue
        column, kind = sheet.arrow.column(name), sheet.arrow.schema.field(name).type
        chunks = pa.chunked_array([pa.array(_filled(sheet.cells[name], own, (), name), kind)]) if own else column
        tail = (
            pa.array([row.get(name) for row in extra], kind)
            if readable(sheet.arrow, name)
            else pa.nulls(len(extra), kind)
        )
        arrays[name] = pa.chunked_array([*chunks.chunks, tail], kind) if extra else chunks
    table = pa.table(arrays | {name: pa.array(list(values)) for name, values in added.items()})
    return table if sheet.arrow is None else table.replace_schema_metadata(sheet.arrow.schema.metadata)


def _typed(cells: list[Any]) -> pa.Array:
    """Text cells as whole numbers or numbers where all of them are, an empty text as missing; others as they are.

    Names that read like numbers stay text: 007, phone numbers, 2020_01 (Python takes the underscore), whole numbers of
    over 64 bits.
    """
    if not all(cell is None or isinstance(cell, str) for cell in cells):
        try:
            return pa.array(cells)
        except (pa.ArrowException, OverflowError):
            return pa.array([None if cell is None else text_of_cell(cell) for cell in cells])
    present = [None if cell is None or not cell.strip() else cell for cell in cells]
    known = [cell for cell in present if cell is not None]
    plain = not any("_" in cell for cell in known) and not are_codes([cell.strip() for cell in known])
    for read in (int, float) if plain and known else ():
        try:
            numbers = [None if cell is None else read(cell) for cell in present]
        except ValueError:
            continue
        try:
            return pa.array(numbers)
        except (pa.ArrowException, OverflowError):
            break
    return pa.array(present, pa.string())
