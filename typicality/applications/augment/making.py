"""Make synthetic images of one shard: latents noised and denoised, decoded, and scored as the pictures they became."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from typicality.applications.augment.options import AugmentOptions
from typicality.applications.augment.rules import distance
from typicality.dataset import prepare
from typicality.model.denoiser import Denoiser
from typicality.model.sampling import NULL, grid_of
from typicality.model.sdedit import sdedit
from typicality.records import LabelledImage
from typicality.rescoring import rival_labels, score_latents
from typicality.run import Run
from typicality.scoring.noise import image_generator
from typicality.scoring.shards import ScoredRow

PURPOSE = "augment"
SCORING = "augmented"
EVALUATIONS_AN_IMAGE = 8
"""Evaluations that one image brings to a batch of the sampler, at most."""
MEAN = 1
"""Row of negatives' prompt states that is the mean of all labels' (0 is the null prompt)."""


@dataclass(frozen=True)
class Made:
    """What was made of n sources, in 8-bit pixels, and a row each (`run.SHARD_SCHEMA`), sources first."""

    sources: UInt8[np.ndarray, "n H W 3"]
    pictures: UInt8[np.ndarray, "n k H W 3"]
    rows: list[dict[str, Any]]


def make(run: Run, denoiser: Denoiser, images: Sequence[LabelledImage], label: str, options: AugmentOptions) -> Made:
    """Make `options.per_image` synthetic images of each source, all of one label and shape, and score them.

    What is scored is the picture as it is written, encoded again. A source and all that is made of it share the noise
    of the scores, so that their typicality can be compared.
    """
    ids = [i.image_id for i in images]
    before = run.latents.stack(ids)
    original = torch.from_numpy(np.stack([_pixels(run, i) for i in images]))
    lost = original - denoiser.decode_latents(before)
    labels = rival_labels(run.dataset.labels, label, label)
    scored = [score_latents(run, denoiser, ids, before, labels, options.draws, SCORING)]
    rows: list[dict[str, Any]] = []
    pictures = []
    for k in range(options.per_image):
        noise = torch.stack([noise_of(i, k, before.shape[1:], run.settings.seed) for i in ids])
        pixels = denoiser.decode_latents(synthesise(run, denoiser, before, label, options, noise))
        if options.kind == "variants":  # what the autoencoder loses of the source belongs to what keeps its place
            pixels = pixels + lost
        pictures.append(to_bytes(pixels))
        after = denoiser.encode_images(from_bytes(pictures[-1])).float()
        scored.append(score_latents(run, denoiser, ids, after, labels, options.draws, SCORING))
        for i, image in enumerate(images):
            own = row_of(image, label, k, options, scored[0][image.image_id], scored[-1][image.image_id])
            rows.append(own | {"moved": distance(before[i], after[i])})
    return Made(to_bytes(original), np.stack(pictures, axis=1), rows)


def synthesise(
    run: Run, denoiser: Denoiser, z: Float[Tensor, "n c h w"], label: str, options: AugmentOptions, noise: Tensor
) -> Float[Tensor, "n c h w"]:
    """Noise latents and denoise them: variants under their label, negatives under none or away from all."""
    assert options.strength is not None  # resolved
    assert options.guidance is not None
    grid = grid_of(denoiser.alphas_cumprod, options.steps, options.strength)
    if options.kind == "variants":
        states, row = denoiser.encode_prompts(run.prompts.of_all([label])), 1
    else:
        of_all = denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels))
        states = torch.cat([of_all[:1], of_all[1:].mean(0, keepdim=True)])
        row = MEAN if options.guidance else NULL
    size = max(1, run.batch_size // EVALUATIONS_AN_IMAGE)
    parts = [slice(start, start + size) for start in range(0, len(z), size)]
    return torch.cat([sdedit(denoiser, z[p], states, grid, options.guidance, noise[p], row) for p in parts])


def noise_of(image_id: str, k: int, shape: Sequence[int], seed: int) -> Float[Tensor, "c h w"]:
    """Return the noise of the k-th synthetic image of a source: a function of these alone."""
    return torch.randn(tuple(shape), generator=image_generator(image_id, seed, f"{PURPOSE} {k}"))


def row_of(
    image: LabelledImage, label: str, k: int, options: AugmentOptions, source: dict[str, ScoredRow],
    made: dict[str, ScoredRow],
) -> dict[str, Any]:  # fmt: skip
    """One row of a shard, but for how far it moved."""
    best = max(made, key=lambda name: made[name].mean)
    shown = label if options.kind == "variants" else best
    return {
        "file_name": f"{image.image_id}-{k}.png", "source_image_id": image.image_id, "source": image.file_name,
        "group": image.group, "label": label, "variant": k, "typicality": made[shown].mean,
        "standard_error": made[shown].standard_error, "best_label": best, "source_typicality": source[label].mean,
        "source_best_label": max(source, key=lambda name: source[name].mean),
        "scores": [{"label": name, "typicality": row.mean} for name, row in made.items()],
    }  # fmt: skip


def _pixels(run: Run, image: LabelledImage) -> np.ndarray:
    latents = run.latents
    return prepare(run.dataset.open(image), latents.size, latents.step, latents.max_aspect)[0]


def to_bytes(pixels: Float[Tensor, "n 3 H W"]) -> UInt8[np.ndarray, "n H W 3"]:
    """Pixels in [-1, 1] as 8 bits a channel; what is outside is clipped."""
    return ((pixels.clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)


def from_bytes(pixels: UInt8[np.ndarray, "n H W 3"]) -> Float[Tensor, "n 3 H W"]:
    """8-bit pixels in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
