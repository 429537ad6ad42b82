"""Paths in settings, recorded so that they hold from any directory, and where a run goes by default."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from typicality.dataset import LabelledImages, is_opened_here
from typicality.dataset.labels import printable
from typicality.model.checkpoint import BASE


def absolute(text: str, setting: str) -> str:
    """Return the absolute path of what is there, or the text where it is a name, or could not be written elsewhere."""
    path = Path(text).expanduser()
    model = setting == "name" and text in (BASE, "auto")
    builtin = setting == "source" and is_opened_here(text) and not path.is_dir()
    if not text.strip() or model or builtin:
        return text
    if setting == "boxes":  # else a column, or several
        there = path.is_file()
    else:
        there = path.exists() or (setting == "source" and any(glob.iglob(str(path))))
    if not there:
        return text
    whole = os.path.abspath(path)  # links keep their names, of which data sets are called
    return whole if printable(whole) == whole else text


def default_folder(dataset: LabelledImages) -> Path:
    """Return reports/<data set>-<label>."""
    label = "".join(c if c.isalnum() or c in "-_" else "-" for c in dataset.label)
    return Path("reports") / f"{dataset.name}-{label}"
