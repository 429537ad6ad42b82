"""The corpus that the bundled base is trained on: a Parquet file of captioned images, and batches of them.

See dataset/builtin/build.py for how it is made.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from typicality.errors import DatasetError


@dataclass(frozen=True)
class Corpus:
    """Drawings as (n, 64, 64, 4) uint8 with alpha; photographs as RGB pyramids of several sizes."""

    drawings: np.ndarray
    drawing_captions: list[str]
    photographs: list[list[np.ndarray]]
    photograph_captions: list[str]


def number_of_images(path: Path) -> int:
    """Return the rows of a corpus, without reading its images.

    Raises
    ------
    DatasetError : the file does not exist, or is no such table.
    """
    try:
        with pq.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"cannot read the corpus {path}: {str(error).splitlines()[0]}") from error
    if not {"image", "caption"} <= set(names):
        raise DatasetError(f"the corpus {path} needs the columns 'image' and 'caption'")
    return int(rows)


def load_corpus(path: Path, size: int) -> Corpus:
    """Read the corpus; images more than twice `size` are photographs, to be cropped at random.

    Raises
    ------
    DatasetError : the file does not exist, is no such table, or has a row without an image or a caption, or no drawing
        or no photograph.
    """
    number_of_images(path)
    table = pq.read_table(path, columns=["image", "caption"])
    drawings, drawing_captions, photographs, photograph_captions = [], [], [], []
    pairs = zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True)
    for row, (data, caption) in enumerate(pairs):
        if not isinstance(caption, str):
            raise DatasetError(f"row {row} of the corpus {path} has no caption; leave it out, or write one")
        try:
            image = Image.open(io.BytesIO(data["bytes"]))
            if min(image.size) > 2 * size:
                photographs.append(pyramid(image.convert("RGB"), size))
                photograph_captions.append(caption)
            else:
                square = image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
                drawings.append(np.asarray(square))
                drawing_captions.append(caption)
        except (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(
                f"the image in row {row} of the corpus {path} ({caption!r}) cannot be read: {error}; leave it out"
            ) from error
    if not drawings or not photographs:
        raise DatasetError(
            f"the corpus {path} has {len(drawings)} drawings (short side up to {2 * size} pixels) and "
            f"{len(photographs)} photographs (larger images); it needs both"
        )
    return Corpus(np.stack(drawings), drawing_captions, photographs, photograph_captions)


def pyramid(image: Image.Image, size: int) -> list[np.ndarray]:
    """The photograph with its short side at `size` times 1, 1.5, 2.5 and 4, where it is large enough."""
    levels = []
    for factor in (1.0, 1.5, 2.5, 4.0):
        scale = size * factor / min(image.size)
        if scale <= 1.0:
            shape = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
            levels.append(np.asarray(image.resize(shape, Image.Resampling.LANCZOS)))
    return levels


def drawing_batch(corpus: Corpus, index: np.ndarray, rng: np.random.Generator, vary: bool) -> Tensor:
    """Composite drawings on white (or, to vary, on a random colour), flip and zoom. (n, 3, h, w) in [-1, 1]."""
    rgba = corpus.drawings[index].astype(np.float32) / 255
    n = len(index)
    background = np.ones((n, 1, 1, 3), np.float32)
    if vary:
        coloured = rng.random(n) < 0.25
        background[coloured] = rng.random((int(coloured.sum()), 1, 1, 3), dtype=np.float32)
    rgb = rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])
    batch = torch.from_numpy(rgb * 2 - 1).permute(0, 3, 1, 2)
    if not vary:
        return batch
    zoom = np.where(rng.random(n) < 0.5, 1.0, rng.uniform(0.6, 1.1, n)).astype(np.float32)
    shift = rng.uniform(-1, 1, (n, 2)).astype(np.float32) * np.abs(1 - zoom)[:, None]
    flip = np.where(rng.random(n) < 0.5, 1.0, -1.0).astype(np.float32)
    matrix = np.zeros((n, 2, 3), np.float32)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = zoom * flip, zoom, shift
    grid = F.affine_grid(torch.from_numpy(matrix), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def photograph_crop(levels: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    level = levels[rng.integers(len(levels))]
    y = rng.integers(level.shape[0] - size + 1)
    x = rng.integers(level.shape[1] - size + 1)
    crop = level[y : y + size, x : x + size]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.2:
        crop = np.repeat(crop.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    return crop


def photograph_batch(corpus: Corpus, index: np.ndarray, size: int, rng: np.random.Generator) -> Tensor:
    crops = np.stack([photograph_crop(corpus.photographs[i], size, rng) for i in index])
    gain = rng.uniform(0.6, 1.2, (len(index), 1, 1, 1)).astype(np.float32)
    values = np.clip(crops.astype(np.float32) / 255 * gain, 0, 1)
    return torch.from_numpy(values * 2 - 1).permute(0, 3, 1, 2)
