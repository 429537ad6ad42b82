"""What a section of the report is, and where it gets its data and pictures from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from typicality.errors import InputError
from typicality.report.pictures import Crop, Level, draw_crop, encode, shrink
from typicality.report.view import ReportInput

logger = logging.getLogger(__name__)

PIXELS = 40_000_000  # pixels of a picture that is taken over
PICTURES = (  # crops' side and quality, whole pictures' longest side and quality
    Level(112, 80, 520, 80, 0, lossless=64),
    Level(88, 70, 400, 70, 0, lossless=48),
    Level(64, 56, 280, 56, 0),
    Level(48, 40, 160, 40, 0),
)


@dataclass(frozen=True)
class Section:
    """A part of the page: `short` names it in the navigation, `place` is before or after the grids of elements.

    `stage` is the command whose stages in run.json say what the section's results stand on.
    """

    slug: ClassVar[str]
    short: ClassVar[str]
    heading: ClassVar[str]
    template: ClassVar[str]
    place: ClassVar[Literal["before", "after"]] = "after"
    stage: ClassVar[str] = ""

    @classmethod
    def read(cls, source: Source) -> Self | None:
        """Return the section, or None where the run directory has nothing for it."""
        raise NotImplementedError


@dataclass
class Source:
    """The run directory as sections see it: tables, documents and pictures, or None where they are missing.

    Parameters
    ----------
    folder : the run directory; nothing outside of it is ever read
    level : how coarse pictures are, from 0 to LEVELS - 1
    """

    folder: Path
    data: ReportInput
    level: int = 0
    spent: int = 0  # characters of pictures handed out
    files: Mapping[str, str] = field(init=False)
    LEVELS: ClassVar[int] = len(PICTURES)

    def __post_init__(self) -> None:
        rows = zip(self.data.images["image_id"].to_pylist(), self.data.images["file_name"].to_pylist(), strict=True)
        self.files = dict(rows)

    def inside(self, *parts: str) -> Path | None:
        """Return a file of the run directory, or None where it is missing or elsewhere (a link, `..`)."""
        path = self.folder.joinpath(*parts)
        if not path.is_file() or not path.resolve().is_relative_to(self.folder.resolve()):
            return None
        return path

    def json(self, *parts: str) -> Any:
        """Return a JSON document, or None."""
        path = self.inside(*parts)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning("left out of the report: %s (%s)", path, error)
            return None

    def mapping(self, *parts: str) -> Mapping[str, Any]:
        """Return a JSON document that is a mapping; an empty one for anything else."""
        document = self.json(*parts)
        return document if isinstance(document, Mapping) else {}

    def in_order(self, labels: Iterable[str]) -> list[str]:
        """Return labels in the order of the run, others behind them by name."""
        order = {label: n for n, label in enumerate(self.data.labels)}
        return sorted(labels, key=lambda label: (order.get(label, len(order)), label))

    def table(self, *parts: str, columns: Sequence[str] = ()) -> pa.Table | None:
        """Return a Parquet table that has these columns, or None."""
        path = self.inside(*parts)
        if path is None:
            return None
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            logger.warning("left out of the report: %s (%s)", path, error)
            return None
        return table if set(columns) <= set(table.column_names) else None

    def crop(self, image_id: str, box: Sequence[float] | None) -> Crop | None:
        """Return a part of an image with its surroundings, or the whole image where there is no box."""
        if image_id not in self.files:
            return None
        try:
            return self._crop(self.data.open_image(image_id), box)
        except InputError as error:
            logger.warning("left out of the report: %s (%s)", image_id, error)
            return None

    def crop_of(self, box: Sequence[float] | None, *parts: str) -> Crop | None:
        """Return what `crop` does of a picture file of the run directory."""
        image = self._open(parts)
        return None if image is None else self._crop(image, box)

    def _crop(self, original: PIL.Image.Image, box: Sequence[float] | None) -> Crop:
        level = PICTURES[self.level]
        if box is None:
            whole = shrink(original, level.crop)
            crop = Crop(encode(whole, level.crop_quality, level.lossless), max(whole.size), (0.0, 0.0, 1.0, 1.0))
        else:
            x0, y0, x1, y1 = (round(v) for v in box)
            x0, y0 = min(max(x0, 0), original.width - 1), min(max(y0, 0), original.height - 1)
            x1, y1 = min(max(x1, x0 + 1), original.width), min(max(y1, y0 + 1), original.height)
            crop = draw_crop(original, (x0, y0, x1, y1), level)
        self.spent += len(crop.uri)
        return crop

    def finished(self, command: str) -> list[str]:
        """Return the folders of the last finished stages of a command, as the run's record names them.

        Others may lie there from before: of other options, or of a command that was stopped.
        """
        stages = self.data.facts.get("stages")
        entries = stages.items() if isinstance(stages, Mapping) else ()
        return [
            str(entry["folder"])
            for name, entry in entries
            if (str(name) == command or str(name).startswith(f"{command} ")) and isinstance(entry, Mapping)
            if entry.get("state") == "done" and entry.get("folder")
        ]

    def picture(self, *parts: str) -> Picture | None:
        """Return a picture file of the run directory, decoded and encoded again."""
        image, level = self._open(parts), PICTURES[self.level]
        if image is None:
            return None
        image = shrink(image, level.source * (2 if image.width > 2 * image.height else 1))
        uri = encode(image, level.source_quality, level.lossless)
        self.spent += len(uri)
        return Picture(uri, image.width, image.height)

    def _open(self, parts: Sequence[str]) -> PIL.Image.Image | None:
        path = self.inside(*parts)
        if path is None:
            return None
        try:
            with PIL.Image.open(path) as opened:
                return opened.convert("RGB") if opened.width * opened.height <= PIXELS else None
        except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
            logger.warning("left out of the report: %s (%s)", path, error)
            return None


@dataclass(frozen=True)
class Picture:
    """A whole picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return those items of a list that are mappings; an empty list for anything else."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list | tuple) else []


def words(value: Any) -> tuple[str, ...]:
    """Return a name, or a list of names, as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(v) for v in value) if isinstance(value, list | tuple) else ()
