"""What both commands on tables begin with: options that are checked, the table, its columns, and the label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from typicality.dataset.labels import in_order, text_of
from typicality.errors import DatasetError, SettingsError, nearest
from typicality.tabular.columns import Column, columns_of, gaps_of, numbers_of
from typicality.tabular.table import Sheet, Unread, read_sheet

MOST_LABELS = 100
LEAST_ROWS = 4
SEEDS = 2**31


@dataclass(frozen=True)
class TableOptions:
    """What the user chose about a table and its model.

    Attributes
    ----------
    label : column of the label
    ignore : columns that are left as they are and not learned from
    missing : texts that stand for a missing cell, besides those that always do
    category : columns whose numbers are the names of categories
    categories : text with more different values is left as it is
    steps : of training, at most
    sampler_steps : of the sampler
    seed : of everything random, at least 0 and below 2^31, as of a run

    Where several may be named, one text alone stands for itself.
    """

    label: str | None = None
    ignore: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    categories: int = 50
    steps: int = 3000
    sampler_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(field.default, tuple):
                given = getattr(self, field.name)
                object.__setattr__(self, field.name, (given,) if isinstance(given, str) else tuple(given))
        for name, least in (("categories", 2), ("steps", 1), ("sampler_steps", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise SettingsError(f"--seed must be at least 0 and below {SEEDS}, not {self.seed}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Options = TypeVar("Options", bound=TableOptions)


def options_from(kind: type[Options], **given: Any) -> Options:
    """Return options from keywords.

    Raises
    ------
    SettingsError : an option that does not exist, or cannot work.
    """
    names = [f.name for f in fields(kind)]
    for name in given:
        if name not in names:
            raise SettingsError(f"unknown option {name!r}: {nearest(name, names)}")
    return kind(**given)


@dataclass(frozen=True)
class Prepared:
    """A table that was read.

    Attributes
    ----------
    columns : all of them, as they stand
    notes : what else the user should know
    """

    sheet: Sheet
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def modelled(self) -> tuple[Column, ...]:
        """The columns that are learned."""
        return tuple(column for column in self.columns if column.modelled)

    @property
    def values(self) -> Float[np.ndarray, "n m"]:
        """The rows of the columns that are learned; NaN where nothing is known."""
        return np.stack([column.values for column in self.modelled], axis=1)

    def summary(self) -> dict[str, Any]:
        """Say what each column is taken for, and why some are left as they are."""
        return {
            "table": str(self.sheet.path),
            "rows": len(self.sheet),
            "kinds": dict(Counter(column.kind for column in self.columns)),
            "learned": [column.name for column in self.modelled],
            "notes": [*self.sheet.notes, *self.notes, *(f"{c.name!r} {c.why}" for c in self.columns if c.why)],
        }


def prepare(table: Path, options: TableOptions) -> Prepared:
    """Read a table and say what its columns are; the label and the index of pandas are left out of what is learned.

    Raises
    ------
    DatasetError : it cannot be read, an option names a column that it does not have, or nothing can be learned.
    """
    sheet = read_sheet(table)
    for name in (*options.ignore, *options.category, *([] if options.label is None else [options.label])):
        if name not in sheet.columns:
            raise DatasetError(f"{table} has no column {name!r}; {nearest(name, sheet.columns)}")
    if options.label in options.ignore:
        raise SettingsError(f"{options.label!r} cannot be the label and be ignored")
    columns = columns_of(sheet, options.categories, options.ignore, options.missing, options.category)
    left = dict.fromkeys({*sheet.index} - {*options.ignore, *options.category}, "is the index that pandas stored")
    if options.label is not None:
        left[options.label] = "is the label: it is left as it is"
    columns = tuple(replace(c, kind="passed", why=left[c.name]) if c.name in left else c for c in columns)
    if not any(column.modelled for column in columns):
        reasons = "; ".join(f"{c.name!r} {c.why or 'is constant'}" for c in columns)
        raise DatasetError(f"{table} has no column to learn from: {reasons}")
    return Prepared(sheet, columns)


@dataclass(frozen=True)
class Labels:
    """The label of every row.

    Attributes
    ----------
    names : the labels, in their order, as text
    codes : (n,) positions in `names`; -1 where the label is missing
    cells : the labels as they stand in the file
    """

    names: tuple[str, ...]
    codes: Int[np.ndarray, " n"]
    cells: tuple[Any, ...]

    @property
    def counts(self) -> Int[np.ndarray, " k"]:
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))


def labels_of_rows(sheet: Sheet, column: str, missing: Sequence[str] = (), category: bool = False) -> Labels:
    """Return the labels of a sheet.

    Parameters
    ----------
    missing : texts that stand for a missing label, besides those that always do (see `columns`)
    category : its numbers are names, and NA among them is one, too

    Raises
    ------
    DatasetError : there are fewer than two, or too many, or they are neither plain numbers nor text.
    """
    cells = sheet.cells[column]
    for cell in cells:
        if isinstance(cell, Unread):
            raise DatasetError(f"column {column!r} of {sheet.path} {cell.why}: it cannot be the label")
    gaps = gaps_of(cells, missing)
    numbers = None if category else numbers_of(cells, gaps)
    gaps = gaps if numbers is None else numbers[1]
    texts = ["" if gap else text_of(cell) for cell, gap in zip(cells, gaps, strict=True)]
    names, _ = in_order({text for text in texts if text}, None)
    if len(names) < 2:
        found = f"only the label {names[0]!r}" if names else "no label"
        raise DatasetError(f"column {column!r} of {sheet.path} has {found}: at least two are needed")
    if len(names) > MOST_LABELS:
        raise DatasetError(f"column {column!r} of {sheet.path} has {len(names)} different values, too many for labels")
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([place.get(text, -1) for text in texts])
    return Labels(names, codes, tuple(cells[texts.index(name)] for name in names))
