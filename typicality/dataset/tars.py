"""WebDataset archives: in an uncompressed tar, the members that share a stem are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typicality.dataset.labels import printable
from typicality.dataset.pixels import IMAGE_SUFFIXES
from typicality.dataset.places import NoPlace, Place, TarPlace
from typicality.dataset.rows import Row, Source
from typicality.errors import DatasetError

TEXTS = {"cls", "cls2", "txt", "text", "caption", "label"}
IMAGES = {suffix[1:] for suffix in IMAGE_SUFFIXES}


def tar_source(paths: tuple[Path, ...], name: str) -> Source:
    """Return the source of one or several archives.

    A sample's columns are the entries of its .json member and the text of its .cls, .txt, ... members, named
    after their extension.
    """
    columns: dict[str, None] = {}
    for path in paths:
        for _, _, values in _samples(path):
            columns.update(dict.fromkeys(values))

    def rows() -> Iterator[Row]:
        for path in paths:
            for file_name, place, values in _samples(path):
                yield Row(file_name, place, values)

    return Source(name, tuple(columns), rows, paths[0].parent)


def _samples(path: Path) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Yield (file name, place, columns) of every sample; consecutive members of equal stem belong together."""
    stem: str | None = None
    file_name, place, values = "", None, {}  # type: str, Place | None, dict[str, Any]
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                if not member.isfile() or base.startswith("."):
                    continue
                key, _, extension = base.partition(".")
                key, extension = f"{folder}/{key}", extension.lower()
                if key != stem:
                    if stem is not None:
                        yield _sample(stem, file_name, place, values)
                    stem, file_name, place, values = key, "", None, {}
                if extension in IMAGES and place is None:
                    file_name = printable(member.name.removeprefix("./"))
                    place = TarPlace(str(path), member.offset_data, member.size)
                elif extension in TEXTS or extension == "json":
                    values.update(_values(archive, member, extension, path))
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            _check_end(archive, path)
    except tarfile.ReadError as error:
        raise DatasetError(f"{path} is not an uncompressed tar archive (unpack .tar.gz first): {error}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    if stem is not None:
        yield _sample(stem, file_name, place, values)


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Refuse an archive that has been read only up to a damaged or missing header, which tarfile takes for the end.

    The end is a block of zeros, and nothing else follows.
    """
    with path.open("rb") as file:
        file.seek(archive.offset)
        rest = file.read(tarfile.BLOCKSIZE)
        whole = len(rest) == tarfile.BLOCKSIZE
        while rest and not any(rest):
            rest = file.read(tarfile.RECORDSIZE)
    if rest or not whole:
        raise DatasetError(
            f"{path} can be read up to byte {archive.offset} only: it is damaged, cut short, or joined from several "
            "archives; write it anew, as for instance `tar -cf` does"
        )


def _sample(
    stem: str, file_name: str, place: Place | None, values: dict[str, Any]
) -> tuple[str, Place, dict[str, Any]]:
    if place is None:
        return printable(stem.lstrip("/")), NoPlace("the sample holds no image"), values
    return file_name, place, values


def _values(archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, path: Path) -> dict[str, Any]:
    handle = archive.extractfile(member)
    data = handle.read() if handle is not None else b""
    try:
        if extension != "json":
            return {extension: data.decode("utf-8").strip()}
        content = json.loads(data)
    except ValueError as error:
        raise DatasetError(f"{path}, member {member.name}: {error}") from error
    return content if isinstance(content, dict) else {"json": content}
