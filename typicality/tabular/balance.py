"""`tabular balance`: more rows of rare labels, each with its typicality.

A denoiser of whole rows is trained with labels that are dropped now and then, so that it knows rows of a label and
rows of any. New rows of a rare label are drawn, and held to what its real rows are: how much the label helps to
denoise them, T = E[L(null) - L(label)], must reach a low quantile of the real rows', and copies of real rows are
dropped. What is dropped is counted.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from typicality.dataset.labels import text_of
from typicality.errors import DatasetError, SettingsError, nearest
from typicality.progress import SILENT, Progress
from typicality.scoring.noise import DrawPlan, check_draws, image_generator
from typicality.tabular.columns import Column
from typicality.tabular.denoiser import CHUNK, Denoiser, Training, filled, train
from typicality.tabular.diffusion import T_RANGE
from typicality.tabular.encoding import Encoding, fit_encoding
from typicality.tabular.preparing import LEAST_ROWS, Labels, Prepared, TableOptions, labels_of_rows, prepare
from typicality.tabular.table import output_path, write_sheet

TIMES = 10_000  # resolution of timesteps
JUDGED = 2000  # real rows of a label whose typicality is taken, at most
ROUNDS = 20
ADDED = ("synthetic", "typicality")


@dataclass(frozen=True)
class BalanceOptions(TableOptions):
    """How rare labels are given more rows.

    Attributes
    ----------
    rare : labels to add to; all that are rarer than the ratio by default
    ratio : rows of a rare label, as a share of those of the most frequent one
    quantile : of the real rows' typicality, below which a new row is dropped
    draws : evaluations of a row's typicality, in antithetic pairs
    """

    rare: tuple[str, ...] = ()
    ratio: float = 1.0
    quantile: float = 0.05
    draws: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draws(self.draws)
        if not 0 < self.ratio <= 1:
            raise SettingsError(
                f"--ratio must be above 0 and at most 1 (as many as the most frequent), not {self.ratio}"
            )
        if not 0 <= self.quantile < 1:
            raise SettingsError(f"--quantile must be at least 0 and below 1, not {self.quantile}")


@dataclass(frozen=True)
class Generator:
    """Draws rows of a label, and says how typical rows are of it."""

    columns: tuple[Column, ...]
    encoding: Encoding
    denoiser: Denoiser
    options: BalanceOptions

    def draw(self, label: int, first: int, count: int) -> Float[np.ndarray, "count m"]:
        """Return new rows of a label; row i of a label is the same whatever is drawn with it."""
        width, seed = len(self.encoding.owner), self.options.seed
        parts = []
        for begin in range(first, first + count, CHUNK):
            numbers = range(begin, min(begin + CHUNK, first + count))
            own = [image_generator(f"{label}|{i}", seed, "tabular balance") for i in numbers]
            noise = torch.stack([torch.randn(1, width, generator=generator) for generator in own])
            nothing = torch.zeros(len(numbers), width, dtype=torch.bool)
            labels = torch.full((len(numbers),), label + 1)
            drawn = self.denoiser.sample(noise[:, 0], nothing, noise, labels, self.options.sampler_steps)
            parts.append(self.encoding.decode(drawn[:, 0].double().numpy()))
        return np.concatenate(parts)

    def typicality(self, values: Float[np.ndarray, "n m"], label: int) -> Float[np.ndarray, " n"]:
        """Return T of rows for a label: > 0 where it helps to denoise them. Missing cells do not count."""
        vectors, known = self.encoding.encode(values)
        plan = DrawPlan(self.options.draws // 2, *T_RANGE)
        parts = []
        for first in range(0, len(values), CHUNK):
            part = slice(first, first + CHUNK)
            own = [
                image_generator(hashlib.sha256(row.tobytes()).hexdigest(), self.options.seed, "tabular typicality")
                for row in vectors[part]
            ]
            t = torch.stack([plan.timesteps(TIMES, g) for g in own]) / TIMES
            noise = torch.stack([plan.noises((vectors.shape[1],), g) for g in own])
            counted = torch.from_numpy(known[part])
            fixed = torch.Generator().manual_seed(self.options.seed)
            z = filled(self.denoiser.base, torch.from_numpy(vectors[part]), counted, fixed)
            labels = torch.full((len(z),), label + 1)
            parts.append(self.denoiser.typicality(z, counted, t.float(), noise, labels).mean(1).numpy())
        return np.concatenate(parts)


def fit_generator(
    columns: Sequence[Column],
    values: Float[np.ndarray, "n m"],
    codes: Int[np.ndarray, " n"],
    n_labels: int,
    options: BalanceOptions,
    progress: Progress = SILENT,
) -> Generator:
    """Train on these rows alone; `codes` are their labels."""
    encoding = fit_encoding(columns, values)
    vectors, known = encoding.encode(values)
    denoiser = train(
        torch.from_numpy(vectors), torch.from_numpy(known), torch.from_numpy(encoding.owner),
        torch.from_numpy(codes), n_labels,
        Training(steps=options.steps, seed=options.seed, conditional=False), progress,
    )  # fmt: skip
    return Generator(tuple(columns), encoding, denoiser, options)


@dataclass(frozen=True)
class NewRows:
    """Synthetic rows of one label with their typicality, and what was dropped on the way.

    Attributes
    ----------
    threshold : the least typicality that is kept
    """

    values: Float[np.ndarray, "n m"]
    typicality: Float[np.ndarray, " n"]
    threshold: float
    drawn: int
    atypical: int
    copies: int


def new_rows(generator: Generator, real: Float[np.ndarray, "r m"], label: int, count: int) -> NewRows:
    """Draw rows of a label until `count` have passed; fewer where most are dropped."""
    judged = real[:: max(1, -(-len(real) // JUDGED))]
    threshold = float(np.quantile(generator.typicality(judged, label), generator.options.quantile))
    known = {_cells(generator.columns, row) for row in real}
    rows: list[np.ndarray] = []
    scores: list[float] = []
    drawn = atypical = copies = 0
    for _ in range(ROUNDS):
        left = count - len(rows)
        if left <= 0:
            break
        values = generator.draw(label, drawn, left + 16)
        found = generator.typicality(values, label)
        for row, score in zip(values, found, strict=True):
            if len(rows) == count:
                break
            drawn += 1
            if _cells(generator.columns, row) in known:
                copies += 1
            elif score < threshold:
                atypical += 1
            else:
                rows.append(row)
                scores.append(score)
    width = real.shape[1]
    return NewRows(np.array(rows).reshape(-1, width), np.array(scores), threshold, drawn, atypical, copies)


def _cells(columns: Sequence[Column], row: np.ndarray) -> tuple[Any, ...]:
    """A row as its cells are written, for comparing."""
    return tuple(None if math.isnan(v) else text_of(c.cell(v)) for c, v in zip(columns, row, strict=True))


def wanted(labels: Labels, options: BalanceOptions) -> dict[int, int]:
    """Return how many rows each rare label is to be given.

    Raises
    ------
    DatasetError : a label that does not exist or has too few rows to learn from, or none that is rare.
    """
    counts = labels.counts
    goal = math.ceil(options.ratio * counts.max())
    for name in options.rare:
        if text_of(name) not in labels.names:
            raise DatasetError(f"column {options.label!r} has no label {name!r}; {nearest(name, labels.names)}")
    named = [labels.names.index(text_of(name)) for name in options.rare]
    chosen = named or [i for i in range(len(counts)) if LEAST_ROWS <= counts[i] < goal]
    few = [i for i in chosen if counts[i] < LEAST_ROWS]
    if few:
        raise DatasetError(
            f"label {labels.names[few[0]]!r} has {counts[few[0]]} row(s), and {LEAST_ROWS} at least are needed"
        )
    missing = lacking(labels, chosen, options.ratio)
    if not missing:
        shown = ", ".join(f"{name!r} {count}" for name, count in zip(labels.names, counts, strict=True))
        why = "".join(f"; {reason}" for reason in passed_over(labels, options))
        raise DatasetError(f"no label is to be given more rows at --ratio {options.ratio:g}: {shown}{why}")
    return missing


def lacking(labels: Labels, chosen: Collection[int], ratio: float) -> dict[int, int]:
    """Return how many rows each of the chosen labels lacks of its share of the most frequent one's, where it does."""
    counts = labels.counts
    goal = math.ceil(ratio * counts.max())
    return {i: int(goal - counts[i]) for i in chosen if counts[i] < goal}


def passed_over(labels: Labels, options: BalanceOptions) -> list[str]:
    """Return a sentence a label that is given no row: too rare to learn from, or named and not rare."""
    counts = labels.counts
    goal = math.ceil(options.ratio * counts.max())
    named = {text_of(name) for name in options.rare}
    found = []
    for name, count in zip(labels.names, counts.tolist(), strict=True):
        if name in named and count >= goal:
            found.append(f"label {name!r} has {count} rows already, and --ratio {options.ratio:g} asks for {goal}")
        elif not named and count < min(goal, LEAST_ROWS):
            found.append(f"label {name!r} has {count} row(s), and is passed over: {LEAST_ROWS} at least are needed")
    return found


@dataclass(frozen=True)
class Balance:
    """What was written, and a summary of it."""

    path: Path
    summary: dict[str, Any]


def examined(table: Path, options: BalanceOptions) -> tuple[Prepared, Labels, dict[int, int]]:
    """Read a table and its labels, and how many rows each rare label is to be given.

    Raises
    ------
    InputError
    """
    if options.label is None:
        raise SettingsError("name the column of the label with --label")
    found = prepare(table, options)
    labels = labels_of_rows(found.sheet, options.label, options.missing, options.label in options.category)
    asked = wanted(labels, options)
    return replace(found, notes=tuple(passed_over(labels, options))), labels, asked


def plan(
    table: Path, out: Path | None, options: BalanceOptions, fresh: bool
) -> tuple[Prepared, Labels, dict[int, int], Path]:
    """Look at everything that could stand in the way, before any work.

    Raises
    ------
    InputError
    """
    path, _ = output_path(table, out, "balanced", fresh)
    found, labels, asked = examined(table, options)
    taken = [name for name in ADDED if name in found.sheet.columns]
    if taken:
        raise DatasetError(f"{table} has a column {taken[0]!r}, which is to be added: rename it")
    return found, labels, asked, path


def balance(
    table: Path, out: Path | None = None, options: BalanceOptions | None = None, fresh: bool = False,
    progress: Progress = SILENT,
) -> Balance:  # fmt: skip
    """Write the table with synthetic rows of the rare labels after its own, marked in `synthetic`.

    Parameters
    ----------
    out : TABLE-balanced by default
    fresh : replace what is there

    Raises
    ------
    InputError : the table cannot be read, has no rare label or nothing to learn, or the place is taken.
    """
    started, options = time.monotonic(), options or BalanceOptions()
    found, labels, missing, path = plan(table, out, options, fresh)
    usable = np.flatnonzero(labels.codes >= 0)
    values, codes = found.values[usable], labels.codes[usable]
    generator = fit_generator(found.modelled, values, codes, len(labels.names), options, progress)
    extra: list[dict[str, Any]] = []
    scores: list[float | None] = [None] * len(found.sheet)
    report = {}
    fixed = {c.name: c.cell(0) for c in found.columns if c.kind == "constant"}
    progress.start("balance", len(missing))
    for label, count in missing.items():
        made = new_rows(generator, values[codes == label], label, count)
        for row, score in zip(made.values, made.typicality, strict=True):
            cells = {c.name: c.cell(v) for c, v in zip(found.modelled, row, strict=True)}
            extra.append(fixed | cells | {str(options.label): labels.cells[label]})
            scores.append(round(float(score), 6))
        report[labels.names[label]] = {
            "real": int(labels.counts[label]), "asked": count, "added": len(made.values), "drawn": made.drawn,
            "dropped_atypical": made.atypical, "dropped_copies": made.copies,
            "least_typicality": round(made.threshold, 6),
            "mean_typicality": round(float(made.typicality.mean()), 6) if len(made.typicality) else None,
        }  # fmt: skip
        progress.advance()
    progress.finish()
    marks = [False] * len(found.sheet) + [True] * len(extra)
    write_sheet(path, found.sheet, {}, extra, {"synthetic": marks, "typicality": scores})
    summary = found.summary() | {
        "out": str(path),
        "added": len(extra),
        "labels": report,
        "training": generator.denoiser.record,
        "options": options.as_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }
    return Balance(path, summary)
