"""Latents on disk: every image is decoded, resized and encoded once a run, for all later stages.

Stored as half precision (c, h, w) beside the view that was encoded. Shards hold images of one shape; a
shard's index is written last, so an interrupted encoding continues with what is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from typicality.dataset import LabelledImages, prepare, view_shape
from typicality.model.denoiser import Denoiser
from typicality.processes import ALONE, Processes
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage, ModelView
from typicality.store import write_arrays, write_table

SHARD_IMAGES = 512
PIXELS_AT_ONCE = 64 * 128 * 128
"""Pixels in one call of the autoencoder: 64 images of up to 128 px, 4 of 512 px."""
CPU_PIXELS_AT_ONCE = 16 * 64 * 64
"""The same on a CPU, where 64 images of 64 px take nearly twice as long each as 16, for want of cache."""
READERS = 8
"""Threads that decode images for an autoencoder on a device of its own, at most; on a CPU one, beside its work."""
OPEN_SHARDS = 16
"""Shards that are mapped into memory at once; opening one takes far less than one UNet evaluation."""
VIEW_FIELDS = ("width", "height", "scale_x", "scale_y", "left", "top")


class LatentStore:
    """Latents of a data set's images in one folder.

    Parameters
    ----------
    folder : named by a key over autoencoder, size and cropping, so that its content never goes stale
    size, step, max_aspect : as `typicality.dataset.prepare` takes them, in pixels
    mirror : hold the latents of the images' mirror images; `mirrored` is the store that does
    """

    def __init__(self, folder: Path, size: int, step: int, max_aspect: float, mirror: bool = False) -> None:
        self.folder, self.size, self.step, self.max_aspect = folder, size, step, max_aspect
        self.mirror = mirror
        self._where: dict[str, tuple[str, int, ModelView]] = {}
        self._views: dict[ModelView, ModelView] = {}  # images of one shape share one record
        self._read: set[str] = set()
        self._open: OrderedDict[str, Any] = OrderedDict()
        self.reload()

    @property
    def short_side(self) -> int:
        """Short side of images as the model sees them, in pixels: `size` rounded down to a multiple of `step`."""
        return view_shape(self.size, self.size, self.size, self.step, self.max_aspect)[0]

    @cached_property
    def mirrored(self) -> LatentStore:
        """Latents of the mirror images. They are encoded apart: the mirror image of a latent is no image's latent."""
        return LatentStore(self.folder / "mirrored", self.size, self.step, self.max_aspect, mirror=True)

    def reload(self) -> None:
        """Read the indexes of shards that have been written since, by this process or by others."""
        for path in sorted(self.folder.glob("*.parquet")):
            if path.stem not in self._read:
                self._add_index(path.stem, pq.read_table(path))

    def _add_index(self, shard: str, table: pa.Table) -> None:
        self._read.add(shard)
        for entry in table.to_pylist():
            view = ModelView(**{name: entry[name] for name in VIEW_FIELDS})
            self._where[entry["image_id"]] = (shard, entry["row"], self._views.setdefault(view, view))

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._where

    def view(self, image_id: str) -> ModelView:
        return self._where[image_id][2]

    def shape_of(self, image: LabelledImage) -> tuple[int, int]:
        """Return (height, width) in model pixels without reading the image."""
        return view_shape(image.width, image.height, self.size, self.step, self.max_aspect)

    def get(self, image_id: str) -> Float[Tensor, "c h w"]:
        """Return one latent as float32. Shards are memory-mapped, a few at a time."""
        shard, row, _ = self._where[image_id]
        if shard not in self._open:
            handle = safe_open(self.folder / f"{shard}.safetensors", "pt")
            self._open[shard] = handle.get_slice("latents")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard][row].float()

    def stack(self, image_ids: Sequence[str]) -> Float[Tensor, "n c h w"]:
        return torch.stack([self.get(i) for i in image_ids])

    def encode(
        self,
        dataset: LabelledImages,
        denoiser: Denoiser,
        progress: Progress = SILENT,
        batch: int = 64,
        processes: Processes = ALONE,
    ) -> int:
        """Encode what is missing, shard by shard, reading ahead while the autoencoder works.

        `batch` is the most images at once; large ones go in fewer (`PIXELS_AT_ONCE`, `CPU_PIXELS_AT_ONCE`).

        Which images share a batch depends on the data set alone, not on what is missing nor on the number of
        processes, so that a latent does not change in its last bit either (images added later make batches of their
        own). Returns the number of images that all processes together had to encode; they wait for one another.
        """
        by_shape: dict[tuple[int, int], list[LabelledImage]] = defaultdict(list)
        for image in dataset:
            by_shape[self.shape_of(image)].append(image)
        share = min(SHARD_IMAGES, -(-len(dataset) // processes.count))
        # shards hold whole batches, so what an interrupted run has left are whole batches too
        missing, room = [], CPU_PIXELS_AT_ONCE if denoiser.device.type == "cpu" else PIXELS_AT_ONCE
        for (height, width), images in by_shape.items():
            at_once = max(1, min(batch, room // (height * width)))
            size = max(at_once, share // at_once * at_once)
            for start in range(0, len(images), size):
                if left := [image for image in images[start : start + size] if image.image_id not in self]:
                    missing.append((at_once, left))
        processes.wait()  # now all have seen the same state, and may write
        own = processes.share(missing)
        readers = 1 if denoiser.device.type == "cpu" else min(READERS, os.cpu_count() or 1)
        progress.start("encode mirror images" if self.mirror else "encode images", sum(len(left) for _, left in own))
        for at_once, images in own:
            views, latents = [], []
            for part in self._prepared(dataset, images, at_once, readers):
                pixels = torch.from_numpy(np.stack([p for p, _ in part]))
                if self.mirror:
                    pixels = pixels.flip(-1)
                latents.append(denoiser.encode_images(pixels).half())
                views += [view for _, view in part]
                progress.advance(len(part))
            self._write(images, torch.cat(latents), views)
        progress.finish()
        processes.wait()
        self.reload()
        return sum(len(left) for _, left in missing)

    def _prepared(
        self, dataset: LabelledImages, images: Sequence[LabelledImage], batch: int, readers: int
    ) -> Iterator[list[tuple[np.ndarray, ModelView]]]:
        """Yield prepared batches; the next one is decoded by other threads meanwhile."""

        def read(image: LabelledImage) -> tuple[np.ndarray, ModelView]:
            return prepare(dataset.open(image), self.size, self.step, self.max_aspect)

        with ThreadPoolExecutor(readers) as pool:
            ahead: list[Future] = []
            for start in range(0, len(images), batch):
                following = [pool.submit(read, image) for image in images[start : start + batch]]
                if ahead:
                    yield [one.result() for one in ahead]
                ahead = following
            yield [one.result() for one in ahead]

    def _write(self, images: Sequence[LabelledImage], latents: Tensor, views: Sequence[ModelView]) -> None:
        name = hashlib.sha256("".join(i.image_id for i in images).encode()).hexdigest()[:16]
        write_arrays(self.folder / f"{name}.safetensors", {"latents": latents.numpy()})
        columns: dict[str, list] = {"image_id": [i.image_id for i in images], "row": list(range(len(images)))}
        for field in VIEW_FIELDS:
            columns[field] = [getattr(view, field) for view in views]
        table = pa.table(columns)
        write_table(self.folder / f"{name}.parquet", table)
        self._add_index(name, table)
