"""Small image sets with one known defect each, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from typicality.applications.audit.elements import Element, elements_of
from typicality.applications.audit.images import ImageFacts, examine
from typicality.config import resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.mining.boxes import box_means
from typicality.mining.clusters import cluster_elements
from typicality.mining.patches import PatchSelection, top_patches
from typicality.mining.tables import elements_table, in_table_order
from typicality.records import ModelView, ScoreMap

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


CELL, PATCH = 4, 4
"""Pixels of a cell, and cells of a patch."""


def colours(pixels: np.ndarray) -> np.ndarray:
    """(...) number of the colour of each pixel (..., 3): six levels a channel."""
    return (pixels // 43).astype(np.int64) @ np.array([36, 6, 1])


def colour_maps(facts: ImageFacts) -> list[ScoreMap]:
    """Maps of every image under its label from a model that knows one thing: in how many images a colour occurs.

    The typicality of a pixel is the log odds that an image with its colour carries the label.
    """
    found = colours(facts.thumbnails)
    present = np.stack([np.bincount(image.ravel(), minlength=216) > 0 for image in found])
    maps = []
    for i, image in enumerate(facts.images):
        own = facts.carries(image.labels[0])
        odds = (present[own].sum(0) + 1) / (present[~own].sum(0) * own.sum() / (~own).sum() + 1)
        cells = np.log(odds)[found[i]].reshape(SIDE // CELL, CELL, SIDE // CELL, CELL).mean((1, 3)).astype(np.float32)
        squares = {PATCH: (box_means(cells[None], PATCH)[0] ** 2 + 1e-4).astype(np.float32)}
        view = ModelView(SIDE, SIDE, 1.0, 1.0, 0.0, 0.0)
        maps.append(ScoreMap(image.image_id, image.labels[0], view, 4, cells, squares, cells, cells))
    return maps


def mined(facts: ImageFacts) -> tuple[list[Element], list[ScoreMap]]:
    """Elements as `mine` makes them, but from `colour_maps` and by the colours of each patch; and the maps."""
    maps = colour_maps(facts)
    patches = in_table_order(top_patches(maps, PatchSelection(PATCH, CELL, per_image=2), lambda _: (SIDE, SIDE)))
    row_of = {image.image_id: i for i, image in enumerate(facts.images)}
    features = np.zeros((len(patches), 216), dtype=np.float32)
    for features_of, patch in zip(features, patches, strict=True):
        x0, y0, x1, y1 = patch.box
        part = colours(facts.thumbnails[row_of[patch.image_id], y0:y1, x0:x1])
        features_of[:] = np.sqrt(np.bincount(part.ravel(), minlength=216) / part.size)
    clustering = cluster_elements(patches, features, str, clusters=3, min_images=3)
    return elements_of(facts, elements_table(patches, clustering, str)), maps
