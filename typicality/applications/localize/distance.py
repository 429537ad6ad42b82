"""How far every cell of an image is from anything seen in images of a reference label, in features of the denoiser.

The reference says what is usual: cells of its images, described by DIFT features (Tang et al. 2023) under the null
prompt, form a memory, and a cell's distance is that to its nearest neighbours there, each channel in units of its
spread over the memory. It is the idea of PatchCore (Roth et al., CVPR 2022) with features of the denoiser that measures
typicality. Image-level labels are all it takes: which images are of the reference.

Two distances are multiplied, for they miss different things: the squared Euclidean one, which sees what is *more* than
usual (a deep hole), and one minus the cosine, which sees what is *other* than usual at any strength (a faint break).

An image is compared with images that its model may know: of other folds, or of the training part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.model.denoiser import Denoiser
from typicality.records import LabelledImage
from typicality.run import Run
from typicality.scoring.noise import image_generator

NAME = "reference_distance"
MEASURE = "geometric mean of squared Euclidean and cosine distance"
"""Part of the key that maps are stored under."""
IMAGES = 200
"""Reference images in a memory at most."""
CELLS = 20_000
"""Cells in a memory at most; distances to more change little and cost more."""
NEIGHBOURS = 3
NOISES = 4
"""Over which a feature is averaged."""


def evaluations_of(dataset: LabelledImages, images: int, reference: str, folds: int) -> int:
    """Return the partial UNet evaluations of `distance_maps` of so many images, at most."""
    alone = sum(i.labels == (reference,) for i in dataset)
    return NOISES * (images + folds * min(IMAGES, alone))


class Memory:
    """Feature vectors of usual cells.

    Parameters
    ----------
    cells : (n, d) float32, n at least 1
    """

    def __init__(self, cells: Float[np.ndarray, "n d"]) -> None:
        self.mean, self.spread = cells.mean(0), cells.std(0) + 1e-6
        width = cells.shape[1]
        scaled = self._scaled(cells)
        self._lengths, self._directions = faiss.IndexFlatL2(width), faiss.IndexFlatIP(width)
        self._lengths.add(scaled)
        self._directions.add(_unit(scaled))

    def _scaled(self, cells: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray((cells - self.mean) / self.spread, dtype=np.float32)

    def distances(self, features: Float[Tensor, "d h w"]) -> Float[np.ndarray, "h w"]:
        """Return how far every cell is from its nearest neighbours in the memory, float32.

        The geometric mean of two: the mean squared distance, a channel, to the NEIGHBOURS nearest cells, and the mean
        of one minus the cosine over the NEIGHBOURS of the most similar directions.
        """
        cells = self._scaled(features.flatten(1).T.numpy())
        nearest = min(NEIGHBOURS, self._lengths.ntotal)
        squared = self._lengths.search(cells, nearest)[0].mean(1) / cells.shape[1]
        turned = 1 - self._directions.search(_unit(cells), nearest)[0].mean(1)
        return np.sqrt(np.maximum(squared * turned, 0)).reshape(features.shape[1:]).astype(np.float32)


def _unit(cells: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)


def feature_map(run: Run, denoiser: Denoiser, state: Float[Tensor, "tokens width"], image_id: str) -> Tensor:
    """Return (d, h, w) features of an image under the null prompt at latent size, mean over antithetic noises."""
    z = run.latents.get(image_id)
    generator = image_generator(image_id, run.settings.seed, NAME)
    half = torch.randn((NOISES // 2, *z.shape), generator=generator)
    mine, total = run.settings.mine, denoiser.timesteps
    timestep = min(round(mine.timestep * total / 1000), total - 1)
    repeated = z[None].expand(NOISES, *z.shape)
    states = state[None].expand(NOISES, *state.shape)
    features = denoiser.features(repeated, torch.cat([half, -half]), timestep, states, mine.up_block).mean(0)
    if features.shape[1:] == z.shape[1:]:
        return features
    return F.interpolate(features[None], size=z.shape[1:], mode="bilinear", align_corners=False)[0]


def reference_images(run: Run, reference: str) -> Iterator[tuple[int, list[LabelledImage]]]:
    """Yield (fold, images of nothing but the reference label) that judge the images of each fold.

    Those of its own fold take no part, nor with a single model those held out: what is measured stays apart from what
    measures it.
    """
    alone = [i for i in run.dataset if i.labels == (reference,)]
    alone.sort(key=lambda i: unit_hash(i.image_id, NAME))
    if run.folds > 1:
        for fold in range(run.folds):
            yield fold, [i for i in alone if run.fold_of(i.image_id) != fold][:IMAGES]
        return
    held_out = run.held_out
    apart = [i for i in alone if i.image_id not in held_out]
    yield 0, (apart or alone)[:IMAGES]


def memory_of(
    run: Run, denoiser: Denoiser, state: Float[Tensor, "tokens width"], images: Sequence[LabelledImage]
) -> Memory | None:
    """Return the memory of images, None where there are none. Each gives as many cells, and no more of it is kept."""
    if not images:
        return None
    each = max(1, CELLS // len(images))
    rows = []
    run.progress.start("reference images", len(images))
    for image in images:
        cells = feature_map(run, denoiser, state, image.image_id).flatten(1).T
        generator = image_generator(image.image_id, run.settings.seed, f"{NAME} cells")
        rows.append(cells[torch.randperm(len(cells), generator=generator)[:each]].numpy())
        run.progress.advance()
    run.progress.finish()
    return Memory(np.concatenate(rows))


def distance_maps(
    run: Run, denoiser: Denoiser, image_ids: Sequence[str], reference: str, fold_of: Mapping[str, int]
) -> Iterator[tuple[str, Float[np.ndarray, "h w"]]]:
    """Yield (image_id, distances) of images, fold by fold; zeros where a fold has no reference image.

    Parameters
    ----------
    denoiser : one model for all images, or features could not be compared
    fold_of : image_id -> fold
    """
    state = denoiser.encode_prompts([run.prompts.null])[0].cpu()
    wanted: defaultdict[int, list[str]] = defaultdict(list)
    for image_id in sorted(image_ids):
        wanted[fold_of[image_id]].append(image_id)
    for fold, images in reference_images(run, reference):
        if not wanted[fold]:
            continue
        memory = memory_of(run, denoiser, state, images)
        run.progress.start(f"distance from {reference}", len(wanted[fold]))
        for image_id in wanted[fold]:
            if memory is None:
                yield image_id, np.zeros(run.latents.get(image_id).shape[1:], dtype=np.float32)
            else:
                yield image_id, memory.distances(feature_map(run, denoiser, state, image_id))
            run.progress.advance()
        run.progress.finish()
