"""Strings of strangers made fit to show, and numbers made fit to read."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal

from typicality.mining.significance import SIGNIFICANT

MINUS = "\u2212"
Z90 = 1.6448536269514722  # half-width of a two-sided 90% interval, in standard errors


def clean(text: object) -> str:
    """Return `text` on one line, with control characters and lone surrogates replaced; markup stays as it is."""
    shown = str(text).encode("utf-8", "replace").decode("utf-8")
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in shown)
    return " ".join(shown.split()) or "(blank)"


def milli(value: float | None) -> str:
    """Return a typicality in units of 10^-3 with its sign and about three digits: 0.0123 -> '+12.3'."""
    if value is None or not math.isfinite(value):
        return "n/a"
    scaled = value * 1000
    size = abs(scaled)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    text = f"{size:.{digits}f}"
    if float(text) == 0:
        return "0"
    return ("+" if scaled > 0 else MINUS) + text


def count(number: float) -> str:
    """Return a whole number with thin groups of thousands: 12345 -> '12,345'."""
    return f"{int(number):,}"


def plural(number: int, noun: str) -> str:
    """Return '1 image', '3 images'."""
    return f"{count(number)} {noun if number == 1 else many(noun)}"


def many(noun: str) -> str:
    """Return the regular plural of a noun, which may be the name of a column: 'class' -> 'classes', 'years' -> 'years'.

    A name that does not end in two small Latin letters, as label_y or YEAR, stays as it is.
    """
    if re.search("[a-z][b-df-hj-np-tv-xz]y$", noun):
        return f"{noun[:-1]}ies"
    if re.search("(ss|us|x|ch|sh)$", noun):
        return f"{noun}es"
    return f"{noun}s" if re.search("[a-z][a-rt-z]$", noun) else noun


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 75 -> '1 min 15 s'."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def p_text(p_value: float | None) -> str:
    """Return 'p = 0.03', 'p < 0.001', or '' where there is none."""
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {beside(p_value, SIGNIFICANT, 'g')}"


def beside(value: float, threshold: float, style: Literal["f", "g"]) -> str:
    """Return a number with two digits, or as many more as keep it on its side of a threshold: 0.0504 -> '0.0504'.

    Parameters
    ----------
    style : two decimal places (f), or two significant digits (g)
    """
    for digits in range(2, 17):
        text = f"{value:.{digits}{style}}"
        if value == threshold or (value - threshold) * (float(text) - threshold) > 0:
            break
    return text


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Return a file name stem for each name: lower-case letters and digits of any script, and dashes, none twice.

    What is an ASCII letter but for its accents becomes one; the case is folded, for file systems may not tell it.
    """
    taken: set[str] = set()
    result: dict[str, str] = {}
    for position, name in enumerate(names, start=1):
        stem = _stem(name).encode()[:60].decode(errors="ignore") or f"label-{position}"
        slug, turn = stem, 2
        while slug in taken or slug == "overview":
            slug, turn = f"{stem}-{turn}", turn + 1
        taken.add(slug)
        result[name] = slug
    return result


def _stem(name: str) -> str:
    composed = unicodedata.normalize("NFC", name)
    plain = (unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or c for c in composed)
    stem = ""
    for character in unicodedata.normalize("NFC", "".join(plain).casefold()):
        kind = unicodedata.category(character)[0]
        if kind in "LN" or (kind == "M" and not stem[-1:].isascii()):  # as vowels of Devanagari
            stem += character
        elif kind != "M" and not stem.endswith("-"):
            stem += "-"
    return stem.strip("-")


def safe_json(content: Any) -> str:
    """Return JSON that cannot leave a `<script>` element: no <, >, & and nothing beyond ASCII; NaN is refused."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
