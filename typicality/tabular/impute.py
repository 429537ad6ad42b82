"""`tabular impute`: every missing cell filled in from the joint distribution of the columns.

A denoiser is trained to fill in what random masks hide. For every row with gaps it then draws several completions that
agree with what is known of the row; a number becomes their mean, a category the choice of most of them. How far they
differ is written beside it: the standard deviation of a number, the share of the chosen category.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from typicality.errors import SettingsError
from typicality.progress import SILENT, Progress
from typicality.scoring.noise import image_generator
from typicality.tabular.columns import Column
from typicality.tabular.denoiser import CHUNK, Training, train
from typicality.tabular.encoding import fit_encoding
from typicality.tabular.preparing import Prepared, TableOptions, prepare
from typicality.tabular.table import Sheet, output_path, write_sheet


@dataclass(frozen=True)
class ImputeOptions(TableOptions):
    """How gaps are filled; `samples` are the completions drawn of every row with gaps."""

    samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise SettingsError(f"--samples must be at least 2, not {self.samples}: they show the uncertainty")


@dataclass(frozen=True)
class Filled:
    """Rows without gaps.

    Attributes
    ----------
    values : (n, m) known values as they were, others filled in
    spread : (n, m) standard deviation or share of the chosen category; NaN where the value was known
    record : of the training
    """

    values: Float[np.ndarray, "n m"]
    spread: Float[np.ndarray, "n m"]
    record: dict[str, Any]


@dataclass(frozen=True)
class Imputation:
    """What was written, and a summary of it."""

    path: Path
    uncertainty: Path
    summary: dict[str, Any]


def fill(
    columns: Sequence[Column], values: Float[np.ndarray, "n m"], options: ImputeOptions, progress: Progress = SILENT
) -> Filled:
    """Fill in the NaN of `values`, whose columns are all modelled. Only what is known is ever read."""
    encoding = fit_encoding(columns, values)
    vectors, known = encoding.encode(values)
    z, observed, owner = torch.from_numpy(vectors), torch.from_numpy(known), torch.from_numpy(encoding.owner)
    result, spread = values.copy(), np.full(values.shape, np.nan)
    gaps = np.isnan(values)
    rows = np.flatnonzero(gaps.any(1))
    if not len(rows):
        return Filled(result, spread, {})
    denoiser = train(z, observed, owner, options=Training(steps=options.steps, seed=options.seed), progress=progress)
    progress.start("impute", len(rows))
    for first in range(0, len(rows), CHUNK):
        part = rows[first : first + CHUNK]
        noise = torch.stack([noises(values[i], options.samples, z.shape[1], options.seed) for i in part])
        label = torch.zeros(len(part), dtype=torch.long)
        drawn = denoiser.sample(z[part], observed[part], noise, label, options.sampler_steps)
        samples = encoding.decode(drawn.double().numpy())
        estimate, deviation = summarised(samples, columns)
        result[part] = np.where(gaps[part], estimate, values[part])
        spread[part] = np.where(gaps[part], deviation, np.nan)
        progress.advance(len(part))
    progress.finish()
    return Filled(result, spread, denoiser.record)


def noises(row: Float[np.ndarray, " m"], samples: int, width: int, seed: int) -> torch.Tensor:
    """Return the noise (samples, width) that a row begins with: of its own content, in pairs of opposite sign.

    In the mean over a pair, all that is odd in the noise cancels.
    """
    digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
    half = torch.randn(-(-samples // 2), width, generator=image_generator(digest, seed, "tabular impute"))
    return torch.cat([half, -half])[:samples]


def summarised(
    samples: Float[np.ndarray, "n s m"], columns: Sequence[Column]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Return mean and standard deviation of numbers, and of categories the choice of most samples and its share."""
    estimate, spread = samples.mean(1), samples.std(1, ddof=1)
    for i, column in enumerate(columns):
        if column.kind == "category":
            shares = (samples[:, :, i, None] == np.arange(len(column.choices))).mean(1)
            estimate[:, i], spread[:, i] = shares.argmax(1), shares.max(1)
    return estimate, spread


def blank(sheet: Sheet) -> Sheet:
    """A sheet of the same columns and rows for numbers, none of which is known."""
    nothing = {name: [None] * len(sheet) for name in sheet.columns}
    arrow = pa.table({name: pa.nulls(len(sheet), pa.float64()) for name in sheet.columns})
    return Sheet(sheet.path, nothing, arrow)


def plan(table: Path, out: Path | None, options: ImputeOptions, fresh: bool) -> tuple[Prepared, Path, Path]:
    """Look at everything that could stand in the way, before any work.

    Raises
    ------
    InputError
    """
    path, beside = output_path(table, out, "imputed", fresh)
    return prepare(table, options), path, beside


def impute(
    table: Path,
    out: Path | None = None,
    options: ImputeOptions | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> Imputation:
    """Write the table without gaps, and beside it `<name>-uncertainty`: empty where a cell was known.

    Parameters
    ----------
    out : TABLE-imputed by default
    fresh : replace what is there

    Raises
    ------
    InputError : the table cannot be read or holds nothing to learn, or the place is taken.
    """
    started, options = time.monotonic(), options or ImputeOptions()
    found, path, beside = plan(table, out, options, fresh)
    modelled = found.modelled
    open_cells = found.values
    filled = fill(modelled, open_cells, options, progress)
    fills: dict[str, dict[int, Any]] = {}
    spread: dict[str, dict[int, float]] = {}
    for i, column in enumerate(modelled):  # an infinite number is unknown to the model, but no gap
        places = np.flatnonzero(column.gaps)
        fills[column.name] = {int(j): column.cell(filled.values[j, i]) for j in places}
        spread[column.name] = {int(j): float(f"{filled.spread[j, i]:.6g}") for j in places}
    for column in found.columns:
        if column.kind == "constant":
            fills[column.name] = {int(j): column.cell(0) for j in np.flatnonzero(column.gaps)}
            spread[column.name] = dict.fromkeys(fills[column.name], 1.0)
    write_sheet(path, found.sheet, fills)
    write_sheet(beside, blank(found.sheet), spread)
    left = {c.name: int(c.gaps.sum()) for c in found.columns if c.name not in fills and c.gaps.any()}
    summary = found.summary() | {
        "out": str(path),
        "uncertainty": str(beside),
        "filled": sum(map(len, fills.values())),
        "filled_by_column": {name: len(cells) for name, cells in fills.items() if cells},
        "left_missing": left,
        "training": filled.record,
        "options": options.as_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }
    return Imputation(path, beside, summary)
