"""Values of a label column to labels: text, several of them, bins, and their order."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any

from typicality.errors import DatasetError

WHOLE = re.compile(r"([+-]?\d+)\.0+")


def text_of(value: Any) -> str:
    """Return a cell as text: stripped, NFC, printable, '' where it is missing, '1999' for 1999.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    text = unicodedata.normalize("NFC", printable(str(value))).strip()
    whole = WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def printable(text: str) -> str:
    """Return text that can be written as UTF-8: a surrogate, as a file name that is not UTF-8 has, is escaped."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def path_of(value: Any) -> str:
    """Return a cell that names a file: text as it stands, since by another spelling the file may not be found."""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return value if isinstance(value, str) else text_of(value)


def number_of_text(text: str) -> float | None:
    """Return the finite number that `text` writes, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def labels_of(value: Any, separator: str | None, bin_width: float | None, where: str) -> tuple[str, ...]:
    """Return the labels in one cell, sorted and without repeats; () where the value is missing, as empty or NaN.

    Parameters
    ----------
    value : text, a number, or a list of them
    separator : splits text into several labels
    bin_width : replaces each number by the lower edge of its bin
    where : names the row in an error

    Raises
    ------
    DatasetError : a value that is not a number, where bins are asked for.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = [text_of(v) for v in values]
    if separator:
        texts = [text_of(part) for text in texts for part in text.split(separator)]
    texts = [text for text in texts if text and text.casefold() != "nan"]
    if bin_width is not None:
        texts = [lower_edge(text, bin_width, where) for text in texts]
    return tuple(sorted(set(texts)))


def lower_edge(text: str, width: float, where: str) -> str:
    """Return the lower edge of the bin [k * width, (k + 1) * width) that holds the number: '1923', 10 -> '1920'."""
    try:
        number, step = Decimal(text), Decimal(repr(width))
        edge = (number / step).to_integral_value(ROUND_FLOOR) * step
    except InvalidOperation:
        edge = Decimal("nan")
    if not edge.is_finite():
        raise DatasetError(
            f"{where}: the label {text!r} is not a number, so it has no bin; "
            "leave --bin out, or leave such rows out with --where"
        )
    plain = format(edge + 0, "f")  # + 0 turns -0 into 0
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def natural_key(label: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts 'ward 2' before 'ward 10' and ignores case."""
    parts = re.split(r"(\d+)", label.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p], label


def in_order(found: Iterable[str], wanted: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """Return the labels in their order, and whether that order means something.

    The order is that of `wanted` where given, else by number where every label is one, else alphabetical.
    """
    labels = set(found)
    if wanted is not None:
        return tuple(label for label in dict.fromkeys(wanted) if label in labels), True
    numbers = {label: number_of_text(label) for label in labels}
    if labels and None not in numbers.values():
        return tuple(sorted(labels, key=lambda label: (float(label), label))), True
    return tuple(sorted(labels, key=natural_key)), False
