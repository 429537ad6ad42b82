"""What the columns of a table are: numbers, whole numbers, categories, or something that is left as it is.

| kind      | what it is                                                                | treated as              |
|-----------|---------------------------------------------------------------------------|-------------------------|
| number    | numbers with more than two values                                         | a number                |
| integer   | the same, all of them whole, however they are written                     | a number, rounded       |
| category  | text, true and false, or two numbers; up to a limit of different values   | a choice                |
| constant  | one value                                                                 | filled with that value  |
| empty     | no value at all                                                           | left as it is           |
| passed    | dates, names and free text, codes, lists, whole numbers above 2^53,       | left as it is           |
|           | decimal commas, the index of pandas, and what the user says               |                         |

Missing are empty cells, NaN, what the user names (a number however it is written: -999.0 is -999), and among numbers
also NA, N/A, NULL, NONE, ? and -. An infinite number is no gap: it is neither learned from nor replaced.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from typicality.dataset.labels import number_of_text, text_of
from typicality.tabular.table import CODE, Sheet, Unread, are_codes

Kind = Literal["number", "integer", "category", "constant", "empty", "passed"]
WORDS = {"na", "n/a", "#n/a", "null", "none", "?", "-"}
"""Among numbers these say that there is none; among texts they may be a category."""
DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T]\d.*)?")
COMMA_NUMBER = re.compile(r"[+-]?[\d.]*\d(,\d+)?")
COMMAS = "has commas in its numbers: write 1,5 as 1.5 and 1,234 as 1234, or say with --category that they are names"
DECIMALS = 15
WHOLE_LIMIT = 2**53
"""A float64 tells whole numbers apart up to here: 2^53 + 1 is read as 2^53."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    values : (n,) numbers, or positions in `choices`; NaN where nothing is known
    gaps : (n,) cells that are missing
    choices : the different values of a category or constant, as they stand in the file
    decimals : how many the numbers are written with; what is filled in gets no more, or as many where all are whole,
        as in 34.0. Of numbers that are no text: 0 if none is a float
    text : whether the file holds its numbers as text
    why : why it is left as it is, or what else should be said of it
    """

    name: str
    kind: Kind
    values: Float[np.ndarray, " n"]
    gaps: Bool[np.ndarray, " n"]
    choices: tuple[Any, ...] = ()
    decimals: int = DECIMALS
    text: bool = False
    why: str = ""

    @property
    def modelled(self) -> bool:
        return self.kind in ("number", "integer", "category")

    def cell(self, value: float) -> Any:
        """Return a value as a cell of the file: of the same type, with as many decimals."""
        if self.kind in ("category", "constant"):
            return self.choices[round(value)]
        if self.kind == "integer":
            whole = round(value)
            return f"{whole:.{self.decimals}f}" if self.text else float(whole) if self.decimals else whole
        number = float(value)
        return plain(round(number, self.decimals)) if self.text else number


def plain(number: float) -> str:
    """The shortest text that reads as this number, without a trailing .0."""
    text = repr(number)
    return text.removesuffix(".0")


def columns_of(
    sheet: Sheet,
    limit: int = 50,
    ignore: Collection[str] = (),
    missing: Collection[str] = (),
    category: Collection[str] = (),
) -> tuple[Column, ...]:
    """Return the columns of a sheet.

    Parameters
    ----------
    limit : text with more different values is left as it is
    ignore : columns to leave as they are
    missing : texts that stand for a missing cell, besides those that always do
    category : columns whose numbers and dates are the names of categories
    """
    return tuple(
        column_of(name, cells, limit, name in ignore, missing, name in category) for name, cells in sheet.cells.items()
    )


def column_of(
    name: str,
    cells: Sequence[Any],
    limit: int = 50,
    ignored: bool = False,
    missing: Collection[str] = (),
    category: bool = False,
) -> Column:
    """Return one column from its cells."""
    gaps = gaps_of(cells, missing)
    unknown = np.full(len(cells), np.nan)
    if ignored:
        return Column(name, "passed", unknown, gaps, why="left out as asked")
    numbers = None if category else numbers_of(cells, gaps)
    if numbers is not None:
        values, gaps = numbers
        return _numeric(name, cells, values, gaps)
    known = [cell for cell, gap in zip(cells, gaps, strict=True) if not gap]
    if not known:
        return Column(name, "empty", unknown, gaps, why="no cell has a value")
    kinds = {type(cell) for cell in known}
    if kinds == {Unread}:
        return Column(name, "passed", unknown, gaps, why=known[0].why)
    if kinds not in ({str}, {bool}) and not (category and kinds <= {int, float}):
        return Column(name, "passed", unknown, gaps, why="is neither numbers nor text")
    if not category and kinds == {str} and all(is_date(cell) for cell in known):
        return Column(name, "passed", unknown, gaps, why="is dates")
    if not category and kinds == {str} and have_commas(known):
        return Column(name, "passed", unknown, gaps, why=COMMAS)
    choices = tuple(dict.fromkeys(known))
    if len(choices) > limit or (len(known) >= 20 and len(choices) > len(known) / 2):
        why = f"has {len(choices)} different texts in {len(known)} cells, too many for a category"
        return Column(name, "passed", unknown, gaps, why=why)
    return _category(name, cells, gaps, choices)


def _category(name: str, cells: Sequence[Any], gaps: np.ndarray, choices: tuple[Any, ...]) -> Column:
    position = {choice: i for i, choice in enumerate(choices)}
    values = np.array([np.nan if gap else position[c] for c, gap in zip(cells, gaps, strict=True)], dtype=np.float64)
    return Column(name, "category" if len(choices) > 1 else "constant", values, gaps, choices)


def _numeric(name: str, cells: Sequence[Any], values: np.ndarray, gaps: np.ndarray) -> Column:
    finite = np.isfinite(values)
    infinite = int((~finite & ~gaps).sum())
    why = f"{infinite} infinite number(s) are kept, and not learned from" if infinite else ""
    values = np.where(finite, values, np.nan)
    if not finite.any():
        return Column(name, "empty", values, gaps, why=why or "no cell has a value")
    different = np.unique(values[finite])
    shown = [cells[i] for i in np.flatnonzero(finite).tolist()]
    large = np.abs(different).max() >= WHOLE_LIMIT
    digits = all(isinstance(c, int) or (isinstance(c, str) and re.fullmatch(r"\s*[+-]?\d+\s*", c)) for c in shown)
    if digits and large:
        why = "has whole numbers above 2^53, which a float64 does not tell apart"
        return Column(name, "passed", np.full(len(cells), np.nan), gaps, why=why)
    text = any(isinstance(cell, str) for cell in shown)
    if len(different) <= 2:
        first = [next(cells[i] for i in np.flatnonzero(values == value).tolist()) for value in different]
        codes = np.where(finite, np.searchsorted(different, np.where(finite, values, different[0])), np.nan)
        return Column(name, "category" if len(first) > 1 else "constant", codes, gaps, tuple(first), why=why, text=text)
    decimals = max(decimals_of(str(c)) for c in shown) if text else 0 if digits else DECIMALS
    whole = not large and bool((different == np.round(different)).all())  # a large float is whole for want of digits
    return Column(name, "integer" if whole else "number", values, gaps, (), decimals, text, why)


def gaps_of(cells: Sequence[Any], missing: Collection[str] = ()) -> Bool[np.ndarray, " n"]:
    """Return which cells are empty, NaN, or one of the texts that stand for a missing cell."""
    named = {meaning_of(text) for text in missing}

    def is_missing(cell: Any) -> bool:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return True
        if isinstance(cell, str) and (not cell.strip() or cell.strip().casefold() == "nan"):
            return True
        plain = isinstance(cell, str | int | float) and not isinstance(cell, bool)
        return bool(named) and plain and meaning_of(cell) in named

    return np.array([is_missing(cell) for cell in cells], dtype=bool)


def meaning_of(cell: str | float) -> Decimal | str:
    """The exact number that a cell is or writes, else its text: -999.0 and -999 are one, 007 and 7 are not."""
    text = text_of(cell)
    return text if CODE.fullmatch(text) or number_of_text(text) is None else Decimal(text)


def numbers_of(cells: Sequence[Any], gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return all cells as numbers, NaN where missing, and which are missing; None where some is no number.

    Codes such as 007 and phone numbers are no numbers.
    """
    texts = [cell.strip() for cell, gap in zip(cells, gaps, strict=True) if isinstance(cell, str) and not gap]
    if are_codes([text for text in texts if text.casefold() not in WORDS]):
        return None
    values, missing = np.full(len(cells), np.nan), gaps.copy()
    for i, cell in enumerate(cells):
        if gaps[i]:
            continue
        if isinstance(cell, str):
            text = cell.strip()
            if text.casefold() in WORDS:
                missing[i] = True
                continue
            if "_" in text:
                return None
            try:
                values[i] = float(text)
            except ValueError:
                return None
        elif isinstance(cell, bool) or not isinstance(cell, int | float):
            return None
        else:
            values[i] = cell
    return None if missing.all() else (values, missing)


def decimals_of(cell: str) -> int:
    exponent = Decimal(cell.strip()).as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def have_commas(texts: Sequence[str]) -> bool:
    """Whether texts are numbers, besides words that say there is none, and some have a comma: 1,5 and 2 and NA."""
    shown = [text for text in map(str.strip, texts) if text.casefold() not in WORDS]
    return any("," in text for text in shown) and all(COMMA_NUMBER.fullmatch(text) for text in shown)


def is_date(text: str) -> bool:
    """Whether a text is a date or a time. Without a separator it is a code: 20200131, 10, T10."""
    text = text.strip()
    if DATE.fullmatch(text):
        return True
    for kind, separators in ((datetime.datetime, "-/.:"), (datetime.time, ":")):
        if not any(sign in text for sign in separators):
            continue
        try:
            kind.fromisoformat(text)
        except ValueError:
            continue
        return True
    return False
