"""Small images whose colour says which they are, written where a test wants them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from typicality.config import DatasetSettings
from typicality.dataset import LabelledImages, load_dataset

Write = Callable[..., Path]
Load = Callable[..., LabelledImages]


def encoded(number: int, size: tuple[int, int] = (12, 8), form: str = "PNG") -> bytes:
    """Return the bytes of a plain image; equal numbers give equal bytes, others differ."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 77)).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write plain images below tmp_path: write("cats/1.png", 1, "dogs/2.png", 2) returns tmp_path."""

    def write(*names_and_numbers: Any) -> Path:
        for name, number in zip(names_and_numbers[::2], names_and_numbers[1::2], strict=True):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(number))
        return tmp_path

    return write


@pytest.fixture
def load() -> Load:
    """Load with one image a label being enough: load(path, label="year")."""

    def load(source: Path | str, **settings: Any) -> LabelledImages:
        return load_dataset(DatasetSettings(**{"source": str(source), "min_per_label": 1, **settings}))

    return load
