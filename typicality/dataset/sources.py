"""What `dataset.source` names: the order in which the readers are asked.

1. `hf://owner/name`: the hub. 2. A folder: a saved Hugging Face data set, else one with a metadata table, else a
tree of images, else shards (.tar, .parquet). 3. A built-in name. 4. A file: a table or a .tar. 5. A pattern of
tars. A folder in the working directory thus wins over a built-in data set of the same name, and a warning says so.
"""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path

from typicality.config import DatasetSettings
from typicality.dataset import folders, hub, tables, tars
from typicality.dataset.builtin import catalogue
from typicality.dataset.labels import printable
from typicality.dataset.pixels import IMAGE_SUFFIXES
from typicality.dataset.rows import Source, safe_name
from typicality.errors import DatasetError, nearest

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
KINDS = (
    "a folder of images, a table (.csv, .tsv, .jsonl, .parquet), a .tar in WebDataset form, a saved Hugging Face "
    "data set, or hf://owner/name"
)


def open_source(settings: DatasetSettings) -> Source:
    """Return the source that `settings.source` names.

    Raises
    ------
    DatasetError : nothing of that name, or something that holds no images.
    """
    text = settings.source.strip()
    if printable(text) != text:  # run.json could not say where the data are
        raise DatasetError(
            f"the name {printable(text)!r} is not in UTF-8: rename it, make a link to it, or go there and name it '.'"
        )
    if text.startswith(hub.PREFIX):
        return hub.hub_source(text, settings.split, settings.image_column, settings.offline)
    path = Path(text).expanduser()
    try:
        is_folder, is_file = bool(text) and path.is_dir(), bool(text) and path.is_file()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    if is_folder:
        source = _folder(path, settings)
        if catalogue.is_opened_here(path.name) and path.absolute().parent == Path.cwd():
            source.notes.append(
                f"{path.name!r} is a folder here, so it was used instead of the built-in data set of that name"
            )
        return source
    if text in catalogue.names():
        return catalogue.open_builtin(text)
    if is_file:
        return _file(path, settings)
    if any(sign in text for sign in "*?["):
        found = tuple(Path(p) for p in sorted(glob(str(path))) if p.endswith(".tar"))
        if not found:
            raise DatasetError(f"no .tar archive matches {text!r}")
        return tars.tar_source(found, safe_name(found[0].resolve().parent.name))
    raise DatasetError(
        f"there is no data set {text!r}: no folder or file of that name in {Path.cwd()}, and no built-in data set "
        f"({nearest(text, catalogue.names())}). A data set is {KINDS}"
    )


def _folder(root: Path, settings: DatasetSettings) -> Source:
    name = folders.folder_name(root)
    try:
        if hub.is_saved(root):
            return hub.hub_source(str(root), settings.split, settings.image_column)
        metadata = folders.metadata_files(root)
        if metadata:
            return folders.metadata_source(root, metadata, settings.image_column, name)
        archives = tuple(sorted(root.glob("*.tar")))
        shards = tuple(sorted(root.glob("*.parquet"))) or tuple(sorted((root / "data").glob("*.parquet")))
    except OSError as error:
        raise DatasetError(f"cannot read the folder {error.filename or root}: {error.strerror}") from error
    if (archives or shards) and next(folders.walk_images(root), None) is None:
        if archives:
            return tars.tar_source(archives, name)
        return tables.tables_source(_of_split(shards, settings.split), settings.image_column, name)
    return folders.tree_source(root, name)


def _of_split(shards: tuple[Path, ...], split: str) -> tuple[Path, ...]:
    """Return the shards of a split, which are named train-00000-of-00003.parquet; all where none is of any split."""
    found: dict[str, list[Path]] = {}
    for path in shards:
        if match := SHARD.fullmatch(path.stem):
            found.setdefault(match.group(1), []).append(path)
    if not found:
        return shards
    if split not in found:
        raise DatasetError(
            f"dataset.split = {split!r} is no split of {shards[0].parent}: {nearest(split, list(found))}"
        )
    return tuple(found[split])


def _file(path: Path, settings: DatasetSettings) -> Source:
    suffix = path.suffix.lower()
    if suffix in tables.TABLE_SUFFIXES:
        return tables.table_source(path, settings.image_column)
    if suffix == ".tar":
        return tars.tar_source((path,), safe_name(path.stem))
    if suffix in IMAGE_SUFFIXES:
        raise DatasetError(f"{path} is one image: name the folder that holds the data set")
    if suffix in (".zip", ".gz", ".tgz", ".bz2", ".xz"):
        raise DatasetError(f"{path} is compressed: unpack it, then name the folder (or the .tar)")
    raise DatasetError(f"{path} is of no known kind ({suffix or 'no suffix'}): a data set is {KINDS}")
