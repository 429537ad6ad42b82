"""DIFT features of patches, and the index to search them.

A diffusion feature is the output of a UNet decoder block on the noised image with the label's prompt, averaged over
noises (Tang et al., NeurIPS 2023, "Emergent Correspondence from Image Diffusion"); a patch's feature is its average
over the patch, L2-normalised (Siglidis et al., ECCV 2024, section 3.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from torch import Tensor

from typicality.progress import SILENT, Progress
from typicality.records import Patch
from typicality.scoring.noise import image_generator
from typicality.store import write_whole

Job = tuple[str, str]  # image_id, label
PURPOSE = "features"
AT_ONCE = 64
"""Partial UNet evaluations at once, where the device's memory allows more."""


class FeatureModel(Protocol):
    """What features need of a denoiser."""

    timesteps: int

    def features(
        self, latents: Tensor, noise: Tensor, timestep: int, prompt_states: Tensor, up_block: int = 1
    ) -> Tensor: ...


@dataclass(frozen=True)
class FeatureExtractor:
    """Features of patches: one pass over its noises serves all patches that an image has for a label.

    Parameters
    ----------
    denoiser : stops its UNet after the block that is read
    states : label -> (tokens, width), the state of its prompt
    noises : noises over which a feature is averaged, drawn by each image's own generator
    timestep : of 1000, at which features are read; scaled where the model has another number of training steps
    up_block : decoder block whose output is the feature
    seed : of the noises
    batch_size : partial UNet evaluations at once, AT_ONCE at most
    """

    denoiser: FeatureModel
    states: Callable[[str], Tensor]
    noises: int = 8
    timestep: int = 161
    up_block: int = 1
    seed: int = 0
    batch_size: int = AT_ONCE

    def __call__(
        self, patches: Sequence[Patch], latent_of: Callable[[str], Tensor], progress: Progress = SILENT
    ) -> np.ndarray:
        """Extract the features of patches of any images and labels, in any order.

        Parameters
        ----------
        patches : n patches
        latent_of : image_id -> (c, h, w) float32

        Returns
        -------
        (n, d) float32, unit rows, in the order of the patches
        """
        rows_of: defaultdict[Job, list[int]] = defaultdict(list)
        for row, patch in enumerate(patches):
            rows_of[patch.image_id, patch.label].append(row)
        progress.start("features", len(rows_of))
        result = np.zeros((len(patches), 0), dtype=np.float32)
        for jobs, latents in self._batches(sorted(rows_of), latent_of):
            for job, feature_map in zip(jobs, self._maps(jobs, latents), strict=True):
                rows = rows_of[job]
                found = patch_features(feature_map, [patches[i] for i in rows], (latents.shape[-2], latents.shape[-1]))
                if not result.shape[1]:
                    result = np.zeros((len(patches), found.shape[1]), dtype=np.float32)
                result[rows] = found
            progress.advance(len(jobs))
        progress.finish()
        return result

    @property
    def _at_once(self) -> int:
        return min(AT_ONCE, self.batch_size)

    def _batches(self, jobs: Sequence[Job], latent_of: Callable[[str], Tensor]) -> Iterator[tuple[list[Job], Tensor]]:
        """Jobs whose latents (n, c, h, w) have one shape, as many as fill a batch."""
        size = max(1, self._at_once // self.noises)
        waiting: defaultdict[tuple[int, ...], list[tuple[Job, Tensor]]] = defaultdict(list)
        for job in jobs:
            latent = latent_of(job[0])
            alike = waiting[tuple(latent.shape)]
            alike.append((job, latent))
            if len(alike) == size:
                yield [j for j, _ in alike], torch.stack([z for _, z in alike])
                alike.clear()
        for alike in waiting.values():
            if alike:
                yield [j for j, _ in alike], torch.stack([z for _, z in alike])

    def _maps(self, jobs: Sequence[Job], latents: Tensor) -> Tensor:
        """(n, d, fh, fw) features of n jobs, averaged over the noises."""
        n, shape = len(jobs), latents.shape[1:]
        generators = [image_generator(image_id, self.seed, PURPOSE) for image_id, _ in jobs]
        noise = torch.stack([torch.randn((self.noises, *shape), generator=g) for g in generators])
        total = self.denoiser.timesteps
        timestep = min(round(self.timestep * total / 1000), total - 1)
        prompts = torch.stack([self.states(label) for _, label in jobs])
        inputs = [x.repeat_interleave(self.noises, dim=0) for x in (latents, prompts)]
        maps = []
        for start in range(0, n * self.noises, self._at_once):
            here = slice(start, start + self._at_once)
            z, eps, states = (x[here] for x in (inputs[0], noise.flatten(0, 1), inputs[1]))
            maps.append(self.denoiser.features(z, eps, timestep, states, self.up_block).float())
        return torch.cat(maps).unflatten(0, (n, self.noises)).mean(dim=1)


def patch_features(
    feature_map: Tensor | np.ndarray, patches: Sequence[Patch], map_shape: tuple[int, int]
) -> np.ndarray:
    """Average a feature map over patches, weighting each feature cell by the share of the patch that it covers.

    Parameters
    ----------
    feature_map : (d, fh, fw), already averaged over noises; it may be finer or coarser than the latent grid
    patches : in cells of the latent grid
    map_shape : (h, w) of the latent grid

    Returns
    -------
    (len(patches), d) float32, unit rows (a zero feature stays zero)
    """
    features = torch.as_tensor(feature_map).detach().to("cpu", torch.float64).numpy()
    _, height, width = features.shape
    sides = np.array([p.side for p in patches], dtype=np.float64)
    rows = _coverage(np.array([p.row for p in patches]), sides, map_shape[0], height)
    columns = _coverage(np.array([p.column for p in patches]), sides, map_shape[1], width)
    means = np.einsum("dnw,nw->nd", np.einsum("dhw,nh->dnw", features, rows, optimize=True), columns)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return (means / np.maximum(norms, np.finfo(np.float64).tiny)).astype(np.float32)


def _coverage(starts: np.ndarray, sides: np.ndarray, cells: int, feature_cells: int) -> np.ndarray:
    """(n, feature_cells) share of each span of latent cells that lies in each feature cell; rows sum to 1."""
    scale = feature_cells / cells
    low, high = (starts * scale)[:, None], ((starts + sides) * scale)[:, None]
    edges = np.arange(feature_cells)
    overlap = np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0, None)
    return overlap / (high - low)


def element_index(features: np.ndarray) -> Any:
    """FAISS index of unit features (n, d) float32 by cosine, in the order of the elements table."""
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(np.ascontiguousarray(features, dtype=np.float32))
    return index


def write_index(path: Path, index: Any) -> None:
    """Write an index, whole or not at all, as `faiss.read_index` reads it."""
    write_whole(path, lambda p: p.write_bytes(faiss.serialize_index(index).tobytes()))
