"""Paths in settings, recorded so that they hold from any directory, and where a run goes by default."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from typicality.config import config_of
from typicality.dataset import LabelledImages, is_opened_here
from typicality.dataset.labels import printable
from typicality.errors import SettingsError
from typicality.model.checkpoint import BASE


def shipped_settings(source: str) -> dict[str, Any]:
    """Return the settings that ship for a data set of this name; its folder here may be written `cardb/` or `./cardb`.

    A folder in the working directory that has the name of a built-in data set is not that data set, and has none.
    """
    here = os.path.isdir(Path(source).expanduser())
    name = os.path.normpath(source) if here else source
    return {} if here and is_opened_here(name) else config_of(name)


def absolute(text: str, section: str, setting: str) -> str:
    """Return the absolute path of what is there, or the text where it is a name, or could not be written elsewhere.

    Raises
    ------
    SettingsError : when it cannot be told whether there is anything, for folders on the way may not be entered.
    """
    path = Path(text).expanduser()
    model = setting == "name" and text in (BASE, "auto")
    if not text.strip() or model:
        return text
    try:
        if setting == "source" and is_opened_here(text) and not path.is_dir():
            return text
        if setting == "boxes":  # else a column, or several
            there = path.is_file()
        else:
            there = path.exists() or (setting == "source" and any(glob.iglob(str(path))))
    except OSError as error:
        raise SettingsError(f"{section}.{setting}: {path} cannot be looked for: {error.strerror}") from error
    if not there:
        return text
    whole = os.path.abspath(path)  # links keep their names, of which data sets are called
    return whole if printable(whole) == whole else text


def default_folder(dataset: LabelledImages) -> Path:
    """Return reports/<data set>-<label>."""
    label = "".join(c if c.isalnum() or c in "-_" else "-" for c in dataset.label)
    return Path("reports") / f"{dataset.name}-{label}"
