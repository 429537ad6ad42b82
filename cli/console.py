"""Progress and messages on stderr; documents on stdout."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from typicality.processes import is_main
from typicality.progress import Progress

stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
SECONDS_BETWEEN_LINES = 20.0


class BarProgress(Progress):
    """A bar a stage, for terminals."""

    def __init__(self) -> None:
        self.bars: Bars | None = None
        self.task: Any = None

    def start(self, stage: str, total: int) -> None:
        self.finish()
        if total == 0:
            return
        self.bars = Bars(
            TextColumn("{task.description:>20}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=stderr,
        )
        self.bars.start()
        self.task = self.bars.add_task(stage, total=total, note="")

    def expect(self, total: int) -> None:
        if self.bars is not None:
            self.bars.update(self.task, total=total)

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self.bars is not None:
            self.bars.update(self.task, advance=steps, note=note)

    def finish(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def say(self, message: str) -> None:
        say(message)


class LineProgress(Progress):
    """A line now and then, for logs."""

    def start(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done, self.note = stage, total, 0, ""
        self.began = self.last = time.monotonic()

    def expect(self, total: int) -> None:
        self.total = total

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self.note = note
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self._line()

    def finish(self) -> None:
        if self.total:
            self._line()

    def _line(self) -> None:
        self.last = time.monotonic()
        note = f", {self.note}" if self.note else ""
        say(f"{self.stage}: {self.done}/{self.total}, {self.last - self.began:.0f} s{note}")

    def say(self, message: str) -> None:
        say(message)


def progress_for(quiet: bool) -> Progress:
    if quiet or not is_main():
        return Progress()
    return BarProgress() if stderr.is_terminal else LineProgress()


def say(message: str) -> None:
    """Print one message on stderr, without reading markup, or names of emoji, in it."""
    stderr.print(message, markup=False)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; of several processes only the main one does."""
    from typicality.store import json_text

    if is_main():
        text = json_text(document)
        if not _can_be_written(text):  # a terminal that is not in UTF-8
            text = re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match.group())[1:-1], text)
        sys.stdout.write(text + "\n")


def print_text(text: str) -> None:
    if is_main():
        if not _can_be_written(text):
            text = text.encode("ascii", errors="backslashreplace").decode("ascii")
        sys.stdout.write(text + "\n")


def _can_be_written(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def print_document(document: Mapping[str, Any]) -> None:
    """Print a document for people: a line an entry, and below it a line for each part that has parts of its own."""
    for name, value in document.items():
        rows = list(_rows(value))
        print_text(f"{name}:" if rows else f"{name}: {words(value)}")
        for row in rows:
            print_text(f"  {row}")


def _rows(value: Any) -> Iterator[str]:
    """The lines of a list of records, or of a mapping that holds more than plain values; none for anything else."""
    if isinstance(value, Mapping) and any(map(_is_nested, value.values())):
        yield from (f"{name}: {words(inner)}" for name, inner in value.items())
    elif isinstance(value, list | tuple) and _is_nested(value):
        for row in value:
            known = {n: v for n, v in row.items() if v is not None} if isinstance(row, Mapping) else row
            yield words(known, "  ")


def _is_nested(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, Mapping) for part in parts)


def words(value: Any, separator: str = ", ") -> str:
    """Return a value as people write it: {"labels": 2, "motifs": ["glyph", "tint"]} -> labels 2, motifs glyph and tint.

    What is unknown, not a number or not set is n/a.
    """
    if isinstance(value, Mapping):
        return separator.join(f"{name} {_inner(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return separator.join(map(_inner, value)) or "none"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _inner(value: Any) -> str:
    """A part of a list or mapping, which has its commas; text that could be misread among them is quoted."""
    if isinstance(value, Mapping):
        return f"({words(value)})"
    if isinstance(value, str) and ("," in value or not value.strip()):
        return f'"{value}"'
    return words(value, " and ") if isinstance(value, list | tuple) else words(value)
