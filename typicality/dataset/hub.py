"""Hugging Face data sets: saved to a folder, or on the hub as hf://owner/name.

`datasets` takes seconds to import, so it is imported only when such a data set is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from typicality.config import DatasetSettings
from typicality.dataset.labels import path_of, text_of
from typicality.dataset.places import Place, SavedPlace, Version, saved_version
from typicality.dataset.rows import Row, Source, file_place, safe_name
from typicality.dataset.tables import PATH_COLUMNS, named
from typicality.errors import DatasetError, nearest

PREFIX = "hf://"
SCAN_ROWS = 512


def is_saved(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def hub_name(address: str) -> tuple[str, str | None]:
    """Split hf://owner/name or hf://owner/name:config into the hub's id and the configuration."""
    name = address.removeprefix(PREFIX).removeprefix("datasets/").strip("/")
    name, _, config = name.partition(":")
    if not name or name.count("/") > 1:
        raise DatasetError(f"{address!r} is not a data set of the hub: write hf://owner/name or hf://owner/name:config")
    return name, config or None


def hub_source(source: str, split: str, image_column: str | None, offline: bool = False) -> Source:
    """Return the source of a saved data set (a folder) or of one on the hub (hf://owner/name), as `open_saved` does."""
    data = open_saved(source, split, offline)
    column, encoded = _image_column(data.features, image_column, source)
    hidden = [c for c, feature in data.features.items() if _is_image(feature)]
    shown = [c for c in data.column_names if c not in hidden]
    names = {c: found for c in shown if (found := _class_names(data.features[c]))}
    remote = source.startswith(PREFIX)
    base = Path() if remote else Path(source)

    def rows() -> Iterator[Row]:
        plain = data.select_columns(shown)
        for start in range(0, len(data), SCAN_ROWS):
            stop = min(start + SCAN_ROWS, len(data))
            batch = plain[start:stop] if shown else {}
            for row in range(start, stop):
                values = {c: named(cells[row - start], names.get(c)) for c, cells in batch.items()}
                if encoded:
                    named_path = next((text_of(values[c]) for c in ("file_name", "filename") if c in values), "")
                    file_name = named_path or f"{split}#{row}"
                    place: Place = SavedPlace(source, split, row, column, offline)
                else:
                    file_name = text_of(values.get(column))
                    place = file_place(path_of(values.get(column)), (base, base / "images"))
                yield Row(file_name, place, values)

    name = safe_name(hub_name(source)[0].replace("/", "-")) if remote else safe_name(Path(source).resolve().name)
    return Source(name, tuple(shown), rows, base, image_column=column, encoded=tuple(hidden))


def open_saved(source: str, split: str, offline: bool) -> Any:
    """Open one split of a Hugging Face data set, memory-mapped.

    Parameters
    ----------
    offline : take a data set of the hub from the local cache, without contacting the hub

    Raises
    ------
    DatasetError : no such data set or split, or it is not in the local cache and the hub must not or cannot be reached.
    """
    return _opened(source, split, offline, saved_version(source, split))


@lru_cache(maxsize=4)
def _opened(source: str, split: str, offline: bool, version: tuple[Version, ...]) -> Any:
    import datasets

    if not source.startswith(PREFIX):
        try:
            opened = datasets.load_from_disk(source)
        except (OSError, ValueError) as error:
            raise DatasetError(f"cannot read the saved data set {source}: {error}") from error
        if not isinstance(opened, datasets.DatasetDict):
            whole = DatasetSettings.model_fields["split"].default, str(opened.split or "")
            if split not in whole:
                raise DatasetError(f"{source} holds no splits, so there is no {split!r}: leave out dataset.split")
            return opened
        if split not in opened:
            raise DatasetError(f"{source} has no split {split!r}: set dataset.split; {nearest(split, opened)}")
        return opened[split]
    name, config = hub_name(source)
    try:
        with _without_hub(offline):
            return datasets.load_dataset(name, config, split=split)
    except ValueError as error:  # an unknown split or configuration
        raise DatasetError(f"{source}, split {split!r}: {error}") from error
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if offline:
            raise DatasetError(
                f"{source} is not in the local cache, and the run is offline (model.offline, dataset.offline): "
                f"download it first, without them ({reason})"
            ) from error
        raise DatasetError(
            f"cannot get {source}: no such data set, no access to it, or no connection ({reason}). Offline, use a "
            "folder, a table or a built-in data set; or save it elsewhere with save_to_disk and name that folder"
        ) from error
    except datasets.exceptions.DatasetsError as error:  # files that do not fit together, a download cut short, ...
        raise DatasetError(f"{source}, split {split!r}, cannot be prepared: {error.__cause__ or error}") from error


@contextmanager
def _without_hub(offline: bool) -> Iterator[None]:
    """Keep `datasets` from the hub where `offline`: it has no argument for that, but reads these at every request."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _class_names(feature: Any) -> list[str]:
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, list) and inner:
        inner = inner[0]
    return list(getattr(inner, "names", None) or ()) if type(inner).__name__ == "ClassLabel" else []


def _image_column(features: Any, wanted: str | None, source: str) -> tuple[str, bool]:
    if wanted is not None:
        if wanted not in features:
            raise DatasetError(f"{source} has no column {wanted!r} of images; {nearest(wanted, features)}")
        return wanted, _is_image(features[wanted])
    images = [c for c, feature in features.items() if _is_image(feature)]
    if images:
        return images[0], True
    for likely in PATH_COLUMNS:
        if likely in features:
            return likely, False
    raise DatasetError(
        f"{source} has no column of images: name one with dataset.image_column; the columns are {', '.join(features)}"
    )
