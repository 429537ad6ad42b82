"""Small image sets with one known defect each, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from typicality.applications.audit.images import ImageFacts, examine
from typicality.config import resolve
from typicality.dataset import LabelledImages, load_dataset

SIDE = 64
Change = Callable[[np.ndarray, str, int, np.random.Generator], np.ndarray]


def scene(rng: np.random.Generator) -> np.ndarray:
    """(64, 64, 3) uint8: smooth blobs and a few rectangles, different in every image."""
    coarse = rng.integers(40, 216, (6, 6, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).copy()
    for _ in range(4):
        y, x, h, w = rng.integers(0, 50), rng.integers(0, 50), rng.integers(4, 20), rng.integers(4, 20)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    noise = rng.normal(0, 3, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def unchanged(pixels: np.ndarray, label: str, i: int, rng: np.random.Generator) -> np.ndarray:
    return pixels


def marker(pixels: np.ndarray, y: int, x: int) -> np.ndarray:
    """A red cross on white, 10 x 10."""
    pixels = pixels.copy()
    pixels[y : y + 10, x : x + 10] = 250
    pixels[y + 4 : y + 6, x + 1 : x + 9] = pixels[y + 1 : y + 9, x + 4 : x + 6] = (220, 20, 20)
    return pixels


def write_images(folder: Path, change: Change = unchanged, each: int = 40, labels: tuple[str, ...] = ("a", "b", "c")):
    rng = np.random.default_rng(0)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(change(scene(rng), label, i, rng)).save(folder / label / f"{i}.png")
    return folder


def load(folder: Path, **options: str) -> LabelledImages:
    return load_dataset(resolve({"dataset": {"source": str(folder), "label": "folder", **options}}).dataset)


@pytest.fixture
def facts_of(tmp_path: Path) -> Callable[..., ImageFacts]:
    """Facts of images after a change."""

    def make(change: Change = unchanged, **options) -> ImageFacts:
        dataset = load(write_images(tmp_path / "images", change, **options))
        return examine(dataset, list(dataset))

    return make
