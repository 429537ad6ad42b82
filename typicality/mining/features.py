"""DIFT features of patches, and the index to search them.

A diffusion feature is the output of a UNet decoder block on the noised image with the label's prompt, averaged over
noises (Tang et al., NeurIPS 2023, "Emergent Correspondence from Image Diffusion"); a patch's feature is its average
over the patch, L2-normalised (Siglidis et al., ECCV 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from torch import Tensor

from typicality.records import Patch


class FeatureModel(Protocol):
    """What features need of a denoiser."""

    def features(
        self, latents: Tensor, noise: Tensor, timestep: int, prompt_states: Tensor, up_block: int
    ) -> Tensor: ...


@dataclass(frozen=True)
class FeatureExtractor:
    """Features of all patches that one image has for one label, from one pass over its noises.

    Parameters
    ----------
    denoiser : stops its UNet after the block that is read
    timestep : of the training steps, at which features are read
    up_block : decoder block whose output is the feature
    """

    denoiser: FeatureModel
    timestep: int = 161
    up_block: int = 1

    def __call__(self, latent: Tensor, states: Tensor, noise: Tensor, patches: Sequence[Patch]) -> np.ndarray:
        """Extract features.

        Parameters
        ----------
        latent : (c, h, w) of the image
        states : (tokens, width) of the label's prompt
        noise : (noises, c, h, w), drawn by the image's own generator
        patches : patches of this image for this label

        Returns
        -------
        (len(patches), d) float32, unit rows
        """
        n = len(noise)
        latents, prompts = latent.expand(n, *latent.shape), states.expand(n, *states.shape)
        maps = self.denoiser.features(latents, noise, self.timestep, prompts, self.up_block)
        return patch_features(maps.float().mean(dim=0), patches, (latent.shape[-2], latent.shape[-1]))


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
    """FAISS index of unit features (n, d) float32 by cosine, in the order of the elements table.

    Save it with `faiss.write_index(index, path)`.
    """
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(np.ascontiguousarray(features, dtype=np.float32))
    return index


def nearest_elements(index: Any, features: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the n elements nearest to each query.

    Parameters
    ----------
    features : (queries, d), unit rows

    Returns
    -------
    similarities : (queries, m) float32 cosine, best first, with m = min(n, elements)
    rows : (queries, m) int64 rows of the elements table
    """
    queries = np.ascontiguousarray(features, dtype=np.float32)
    return index.search(queries, min(n, index.ntotal))
