"""The findings of an audit as a page of their own, for data that has not been mined: `audit --images-only`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa

from typicality.config import ReportSettings
from typicality.report.render import page_of
from typicality.report.sections.audit import Findings
from typicality.report.sections.base import Source
from typicality.report.view import ReportInput
from typicality.store import write_text


def write_checks(
    folder: Path,
    dataset_name: str,
    label_name: str,
    files: Mapping[str, str],
    open_image: Callable[[str], PIL.Image.Image],
    settings: ReportSettings,
) -> Path:
    """Write `index.html` from the findings.json in the folder, within the report's budget; return its path.

    Parameters
    ----------
    files : image_id -> file name
    open_image : image_id -> the original in RGB
    """
    nothing, images = pa.table({}), pa.table({"image_id": list(files), "file_name": list(files.values())})
    data = ReportInput(
        title=settings.title or f"What to check in {dataset_name}",
        dataset_name=dataset_name, label_name=label_name, labels=(), ordered=False, n_images={},
        n_distinct=len(files),
        elements=nothing, clusters=nothing, images=images, open_image=open_image, open_map=_no_map, facts={},
        settings=settings, folder=folder,
    )  # fmt: skip
    page = ""
    for level in range(Source.LEVELS):
        page = page_of("checks.html", view=data, section=Findings.read(Source(folder, data, level)), stale={})
        if len(page.encode()) <= settings.budget_mb * 1e6:
            break
    path = folder / "index.html"
    write_text(path, page)
    return path


def _no_map(image_id: str, label: str) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Stand where a report opens maps of its elements; a page of findings has no element, so that nobody calls it."""
    raise AssertionError(f"a page of findings asked for the map of {image_id} under {label}")
