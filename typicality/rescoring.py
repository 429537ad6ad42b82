"""Typicality of latents that are in memory and in no data set: the usual scorer, on another source of latents.

And what everything that makes such latents from images needs: images that can share a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.dataset.split import unit_hash
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.records import LabelledImage, ModelView
from typicality.run import Run
from typicality.scoring.scorer import Job, Scorer
from typicality.scoring.shards import ScoredRow

MOST_LABELS = 12
"""Labels that an image is classified among; with more labels, its own, the one it is to get, and others by a hash."""


@dataclass(frozen=True)
class MemoryLatents:
    """What the scorer needs of a latent store."""

    latents: Mapping[str, Float[Tensor, "c h w"]]
    views: Mapping[str, ModelView]

    def stack(self, image_ids: Sequence[str]) -> Float[Tensor, "n c h w"]:
        return torch.stack([self.latents[i] for i in image_ids])

    def view(self, image_id: str) -> ModelView:
        return self.views[image_id]


def batches(run: Run, images: Sequence[LabelledImage], size: int) -> Iterator[tuple[int, list[LabelledImage]]]:
    """Images of one shape and one fold, at most `size` together, with their fold."""
    groups: dict[tuple[int, int, int], list[LabelledImage]] = defaultdict(list)
    for image in images:
        view = run.latents.view(image.image_id)
        groups[run.fold_of(image.image_id), view.height, view.width].append(image)
    for (fold, _, _), alike in sorted(groups.items(), key=lambda item: item[0]):
        for start in range(0, len(alike), size):
            yield fold, alike[start : start + size]


def rival_labels(labels: Sequence[str], source: str, target: str) -> tuple[str, ...]:
    """Return the labels to classify among, in their order: all of them unless they are many.

    Which of many they are differs from one pair of labels to the next, so that all of them are asked of some images.
    """
    if len(labels) <= MOST_LABELS:
        return tuple(labels)
    own = {source, target}
    others = sorted((x for x in labels if x not in own), key=lambda x: unit_hash(f"{source}|{target}|{x}", "rival"))
    chosen = {*own, *others[: MOST_LABELS - len(own)]}
    return tuple(x for x in labels if x in chosen)


def memory_scorer(
    run: Run, denoiser: Denoiser, latents: MemoryLatents, labels: tuple[str, ...], draws: int, purpose: str
) -> Scorer:
    """Return the scorer of a run for latents in memory. The noise of each is that of the image whose id it has."""
    return Scorer(
        denoiser=denoiser,
        latents=cast(LatentStore, latents),
        states=denoiser.encode_prompts(run.prompts.of_all(labels)),
        labels=labels,
        plan=run.plan(draws),
        seed=run.settings.seed,
        purpose=purpose,
        batch_size=run.batch_size,
        label_scale=run.label_scale_of(denoiser),
    )


def score_latents(
    run: Run,
    denoiser: Denoiser,
    image_ids: Sequence[str],
    latents: Float[Tensor, "n c h w"],
    labels: tuple[str, ...],
    draws: int,
    purpose: str,
) -> dict[str, dict[str, ScoredRow]]:
    """Score latents of one shape under labels with the noise of the images they belong to.

    Two calls with the same ids, draws and purpose use the same noise: before and after can be compared draw by draw.

    Returns
    -------
    image_id -> label -> maps and mean
    """
    views = {i: run.latents.view(i) for i in image_ids}
    memory = MemoryLatents(dict(zip(image_ids, latents, strict=True)), views)
    scorer = memory_scorer(run, denoiser, memory, labels, draws, purpose)
    found: dict[str, dict[str, ScoredRow]] = {i: {} for i in image_ids}
    size = scorer.images_at_once(len(labels))
    for start in range(0, len(image_ids), size):
        for row in scorer.score([Job(i, labels) for i in image_ids[start : start + size]]):
            found[row.image_id][row.label] = row
    return found
