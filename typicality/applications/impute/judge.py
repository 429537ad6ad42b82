"""Typicality of a filled region: the run's own measure, over the cells of the hole alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from typicality.applications.impute.fill import Hole
from typicality.model.denoiser import Denoiser
from typicality.rescoring import MemoryLatents, memory_scorer
from typicality.run import Run
from typicality.scoring.estimator import error_of_mean
from typicality.scoring.scorer import Job


@dataclass(frozen=True)
class Judged:
    """Typicality of one region under some labels, and the standard error of each."""

    typicality: Mapping[str, float]
    standard_error: Mapping[str, float]

    @property
    def found(self) -> str:
        """The label under which the region is most typical."""
        return max(self.typicality, key=lambda label: self.typicality[label])

    def others(self, label: str) -> float:
        """Mean typicality under the other labels; NaN where there are none."""
        rest = [value for name, value in self.typicality.items() if name != label]
        return float(np.mean(rest)) if rest else float("nan")


def judge(
    run: Run,
    denoiser: Denoiser,
    holes: Sequence[Hole],
    latents: Float[Tensor, "n c h w"],
    labels: Sequence[tuple[str, ...]],
    draws: int,
    purpose: str,
) -> list[Judged]:
    """Return T(region | label): the mean of each image's map over the hole's cells, by the share that is missing.

    Two calls with the same holes, draws and purpose use the same noise, and can be compared draw by draw.

    Parameters
    ----------
    latents : of the filled images, of one shape
    labels : of each hole, as many for all
    """
    ids = [hole.image.image_id for hole in holes]
    names = tuple(label for label in run.dataset.labels if any(label in own for own in labels))
    memory = MemoryLatents(dict(zip(ids, latents, strict=True)), {})
    scorer = memory_scorer(run, denoiser, memory, names, draws, purpose)
    found = []
    size = scorer.images_at_once(len(labels[0]))
    for start in range(0, len(holes), size):
        here = slice(start, start + size)
        maps = scorer.unit_maps([Job(i, own) for i, own in zip(ids[here], labels[here], strict=True)])[0]
        shares = torch.from_numpy(np.stack([hole.shares for hole in holes[here]]))[:, None, None]
        weights = shares / shares.sum((-2, -1), keepdim=True).clamp_min(1e-12)
        units = (maps * weights).sum((-2, -1)).double()  # (n, p, units)
        errors = error_of_mean(units).tolist()
        for own, mean, error in zip(labels[here], units.mean(-1).tolist(), errors, strict=True):
            found.append(Judged(dict(zip(own, mean, strict=True)), dict(zip(own, error, strict=True))))
    return found


def best_samples(
    run: Run,
    denoiser: Denoiser,
    holes: Sequence[Hole],
    latents: Float[Tensor, "n samples c h w"],
    labels: Sequence[str],
    draws: int,
) -> list[int]:
    """Return for every hole the sample whose region is most typical of its label.

    The draws that choose are not those that judge what was chosen (the winner's curse).
    """
    scores = [
        [
            judged.typicality[label]
            for judged, label in zip(
                judge(run, denoiser, holes, latents[:, k], [(x,) for x in labels], draws, "imputed choice"),
                labels,
                strict=True,
            )
        ]
        for k in range(latents.shape[1])
    ]
    return np.argmax(scores, axis=0).tolist()
