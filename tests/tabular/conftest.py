"""Small tables with known answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from typicality.tabular.columns import Column, column_of

WriteTable = Callable[..., Path]


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteTable:
    """Write columns of cells as CSV: write_csv(a=["1", "2"], b=["x", ""]) returns tmp_path/table.csv."""

    def write(name: str = "table.csv", /, **columns: Sequence[Any]) -> Path:
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path = tmp_path / name
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


def numbers(values: np.ndarray) -> tuple[Column, ...]:
    """The columns of a matrix of numbers."""
    return tuple(column_of(f"x{i}", [float(v) for v in values[:, i]]) for i in range(values.shape[1]))


def cells_of(path: Path) -> Mapping[str, list[str]]:
    """Read a CSV without quotes as columns of text."""
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def correlated(n: int, rho: float, seed: int = 0) -> np.ndarray:
    """(n, 2) draws of a Gaussian with means 10 and -5, standard deviations 2 and 3, and correlation rho."""
    z = np.random.default_rng(seed).normal(size=(n, 2))
    return np.stack([10 + 2 * z[:, 0], -5 + 3 * (rho * z[:, 0] + np.sqrt(1 - rho**2) * z[:, 1])], axis=1)
