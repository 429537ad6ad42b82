"""Latents on disk: every image is decoded, resized and encoded once a run, for all later stages.

Stored as half precision (c, h, w) beside the view that was encoded. Shards hold images of one shape; a
shard's index is written last, so an interrupted encoding continues with what is missing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from typicality.dataset import LabelledImages, prepare, view_shape
from typicality.model.denoiser import Denoiser
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage, ModelView
from typicality.store import write_arrays, write_table

SHARD_IMAGES = 512
VIEW_FIELDS = ("width", "height", "scale_x", "scale_y", "left", "top")


class LatentStore:
    """Latents of a data set's images in one folder.

    Parameters
    ----------
    folder : named by a key over autoencoder, size and cropping, so that its content never goes stale
    size, step, max_aspect : as `typicality.dataset.prepare` takes them, in pixels
    """

    def __init__(self, folder: Path, size: int, step: int, max_aspect: float) -> None:
        self.folder, self.size, self.step, self.max_aspect = folder, size, step, max_aspect
        self._where: dict[str, tuple[str, int, ModelView]] = {}
        self._open: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.parquet")):
            self._add_index(path.stem, pq.read_table(path))

    def _add_index(self, shard: str, table: pa.Table) -> None:
        for entry in table.to_pylist():
            view = ModelView(**{name: entry[name] for name in VIEW_FIELDS})
            self._where[entry["image_id"]] = (shard, entry["row"], view)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._where

    def view(self, image_id: str) -> ModelView:
        return self._where[image_id][2]

    def shape_of(self, image: LabelledImage) -> tuple[int, int]:
        """Return (height, width) in model pixels without reading the image."""
        return view_shape(image.width, image.height, self.size, self.step, self.max_aspect)

    def get(self, image_id: str) -> Float[Tensor, "c h w"]:
        """Return one latent as float32. Shards are memory-mapped."""
        shard, row, _ = self._where[image_id]
        if shard not in self._open:
            with safe_open(self.folder / f"{shard}.safetensors", "pt") as handle:
                self._open[shard] = handle.get_tensor("latents")
        return self._open[shard][row].float()

    def stack(self, image_ids: Sequence[str]) -> Float[Tensor, "n c h w"]:
        return torch.stack([self.get(i) for i in image_ids])

    def encode(self, dataset: LabelledImages, denoiser: Denoiser, progress: Progress = SILENT, batch: int = 64) -> int:
        """Encode what is missing, shard by shard, reading ahead while the autoencoder works.

        Returns the number of images encoded.
        """
        by_shape: dict[tuple[int, int], list[LabelledImage]] = defaultdict(list)
        for image in dataset:
            if image.image_id not in self:
                by_shape[self.shape_of(image)].append(image)
        shards = [
            images[start : start + SHARD_IMAGES]
            for images in by_shape.values()
            for start in range(0, len(images), SHARD_IMAGES)
        ]
        progress.start("encode images", sum(map(len, shards)))
        for images in shards:
            views, latents = [], []
            for part in self._read(dataset, images, batch):
                pixels = torch.from_numpy(np.stack([p for p, _ in part]))
                latents.append(denoiser.encode_images(pixels).half())
                views += [view for _, view in part]
                progress.advance(len(part))
            self._write(images, torch.cat(latents), views)
        progress.finish()
        return sum(map(len, shards))

    def _read(
        self, dataset: LabelledImages, images: Sequence[LabelledImage], batch: int
    ) -> Iterator[list[tuple[np.ndarray, ModelView]]]:
        """Yield prepared batches, one batch read ahead."""

        def read(part: Sequence[LabelledImage]) -> list[tuple[np.ndarray, ModelView]]:
            return [prepare(dataset.open(image), self.size, self.step, self.max_aspect) for image in part]

        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        with ThreadPoolExecutor(1) as pool:
            ahead: Future | None = None
            for part in parts:
                following = pool.submit(read, part)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def _write(self, images: Sequence[LabelledImage], latents: Tensor, views: Sequence[ModelView]) -> None:
        name = hashlib.sha256("".join(i.image_id for i in images).encode()).hexdigest()[:16]
        write_arrays(self.folder / f"{name}.safetensors", {"latents": latents.numpy()})
        columns: dict[str, list] = {"image_id": [i.image_id for i in images], "row": list(range(len(images)))}
        for field in VIEW_FIELDS:
            columns[field] = [getattr(view, field) for view in views]
        table = pa.table(columns)
        write_table(self.folder / f"{name}.parquet", table)
        self._add_index(name, table)
