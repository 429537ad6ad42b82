"""The data sets known by name: those that ship inside, the one that is an extra, and those of the paper.

This is the one module that knows data sets by name. What each one wants as settings is in `configs/`.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from typicality.dataset.places import FilePlace
from typicality.dataset.rows import Row, Source
from typicality.dataset.tables import table_source
from typicality.errors import DatasetError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class DatasetInfo:
    """What there is to know about a data set before it is loaded.

    Attributes
    ----------
    name : what `typicality mine NAME` takes
    description : one or two sentences
    labels : the columns made to be labels
    images : how many there are
    licence : under which terms
    how_to_get : what to do where it is not installed
    installed : whether it can be loaded now
    """

    name: str
    description: str
    labels: tuple[str, ...]
    images: int
    licence: str
    how_to_get: str
    installed: bool


@dataclass(frozen=True)
class _Entry:
    info: DatasetInfo
    is_here: Callable[[], bool]
    open: Callable[[], Source] | None = None


def names() -> list[str]:
    """Return the names of all data sets known by name."""
    return list(ENTRIES)


def is_opened_here(name: str) -> bool:
    """Return whether the data set comes from this package or an installed one, not from a folder of the user's."""
    return name in ENTRIES and ENTRIES[name].open is not None


def builtin_datasets() -> list[DatasetInfo]:
    """Return what is known about each data set known by name, and whether it can be loaded now."""
    return [replace(entry.info, installed=entry.is_here()) for entry in ENTRIES.values()]


def open_builtin(name: str) -> Source:
    """Return the source of a data set known by name.

    Raises
    ------
    DatasetError : it has to be fetched first; the message says how.
    """
    entry = ENTRIES[name]
    if entry.open is None or not entry.is_here():
        raise DatasetError(f"the data set {name!r} is not on this machine. {entry.info.how_to_get}")
    return replace(entry.open(), own_labels=entry.info.labels)


def _embedded(name: str) -> Callable[[], Source]:
    return lambda: table_source(HERE / f"{name}.parquet", None, name)


def _elpv_folder() -> Path | None:
    found = importlib.util.find_spec("elpv_dataset")
    return Path(found.origin).parent / "data" if found is not None and found.origin else None


def elpv_source(folder: Path) -> Source:
    """Return the source of the solar cells that the package elpv-dataset holds in `folder`.

    Its own reader fills memory with all pixels, so its table (path, probability, type) is read here. `defect` is
    'defective' from a probability of 1/2 on; the four values themselves are in `probability`.
    """
    table = folder / "labels.csv"

    def rows() -> Iterator[Row]:
        try:
            with table.open(encoding="utf-8", newline="") as file:
                for line in csv.reader(file, delimiter=" ", skipinitialspace=True):
                    path, probability, kind = (cell for cell in line if cell)
                    values = {
                        "defect": "defective" if float(probability) >= 0.5 else "functional",
                        "type": kind,
                        "probability": f"{float(probability):.2f}",
                    }
                    yield Row(path, FilePlace(str(folder / path)), values)
        except (OSError, ValueError) as error:
            raise DatasetError(f"cannot read {table}: {error}; is it elpv-dataset 1.0 or later?") from error

    return Source("elpv", ("defect", "type", "probability"), rows, folder)


def _open_elpv() -> Source:
    folder = _elpv_folder()
    if folder is None:
        raise DatasetError("the package elpv-dataset is not installed")
    return elpv_source(folder)


def _by_hand(
    name: str, description: str, labels: tuple[str, ...], images: int, licence: str, how_to_get: str
) -> _Entry:
    """A data set that its owners hand out: it is here where the working directory has a folder of its name."""
    info = DatasetInfo(name, description, labels, images, licence, how_to_get, installed=False)
    return _Entry(info, lambda: Path(name).is_dir())


_ENTRIES = (
    _Entry(
        DatasetInfo(
            "emoji",
            "The same 1,139 Noto emoji in their designs of 2016, 2019, 2022 and 2024, 64 px.",
            ("year", "category"),
            4556,
            "Apache-2.0 (Google, Noto Emoji)",
            "Ships with typicality.",
            installed=True,
        ),
        lambda: (HERE / "emoji.parquet").is_file(),
        _embedded("emoji"),
    ),
    _Entry(
        DatasetInfo(
            "flags",
            "Flags of 246 countries and territories, 128 x 96 px.",
            ("continent",),
            246,
            "MIT (flag-icons)",
            "Ships with typicality.",
            installed=True,
        ),
        lambda: (HERE / "flags.parquet").is_file(),
        _embedded("flags"),
    ),
    _Entry(
        DatasetInfo(
            "elpv",
            "Electroluminescence images of solar cells, 300 px, with the probability of a defect and the cell's type.",
            ("defect", "type", "probability"),
            2624,
            "CC BY-NC-SA 4.0 (Buerhop-Lutz, Deitsch et al.): not for commercial use, never redistributed here",
            "Install it with: pip install 'typicality[elpv]' (91 MB).",
            installed=False,
        ),
        lambda: importlib.util.find_spec("elpv_dataset") is not None,
        _open_elpv,
    ),
    _by_hand(
        "cardb",
        "CarDB: photographs of cars of 1920 to 1999 with their year; the paper mines 10,130 by decade.",
        ("folder",),
        10130,
        "research use; ask the authors (Lee, Efros, Hebert, ICCV 2013)",
        "It cannot be downloaded for you: get CarDB from the page of 'Style-aware Mid-level Representation for "
        "Discovering Visual Connections in Space and Time' (ICCV 2013), sort the images into cardb/<year>/, and run "
        "typicality mine cardb --label folder --set dataset.bin=10 beside that folder.",
    ),
    _by_hand(
        "ftt",
        "Faces Through Time: portraits by decade, 256 x 256 px; the paper mines 24,874.",
        ("folder",),
        24874,
        "photographs of Wikimedia Commons, each under its own licence; see the authors' terms (Chen et al., CVPR 2023)",
        "It cannot be downloaded for you: get the aligned faces from the page of 'What's in a Decade? Transforming "
        "Faces Through Time', sort them into ftt/<decade>/ (1880, 1890, ...), and run typicality mine ftt --label "
        "folder beside that folder.",
    ),
    _by_hand(
        "g3",
        "G^3: street-view panoramas cut to 512 x 756 px, by country; the paper mines 1,000 random images a country.",
        ("country",),
        344224,
        "street-view imagery under its provider's terms; see the authors' (Luo et al., 2022)",
        "It cannot be downloaded for you: ask for the images of 'G^3: Geolocation via Guidebook Grounding', put them "
        "into g3/ with a metadata.csv of the columns file_name and country, and run typicality mine g3 --label "
        "country --set dataset.max_per_label=1000 beside that folder.",
    ),
    _by_hand(
        "places",
        "Places365: scenes in a folder each; the paper fine-tunes on 1,803,460 and mines the validation images.",
        ("folder",),
        1803460,
        "MIT Places terms: research and education only",
        "It cannot be downloaded for you: accept the terms on the Places2 project page, unpack Places365-Standard "
        "into places/<scene>/, and run typicality mine places --label folder beside that folder.",
    ),
    _by_hand(
        "chestxray",
        "ChestX-ray8/14 (NIH): frontal chest X-rays, up to 14 diseases an image; 879 with boxes serve as the test.",
        ("Finding Labels",),
        108948,
        "NIH Clinical Center: free use with citation (Wang et al., CVPR 2017)",
        "It cannot be downloaded for you: get images and tables from the NIH Clinical Center's ChestX-ray release, put "
        "the images into chestxray/images/ and Data_Entry_2017.csv beside it as chestxray/metadata.csv, and run "
        "typicality mine chestxray --label 'Finding Labels' beside that folder.",
    ),
)
ENTRIES = {entry.info.name: entry for entry in _ENTRIES}
