"""Score images: draw, predict, reduce to moments, write shards. Resumable at the level of a shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.progress import SILENT, Progress
from typicality.scoring.estimator import Moments, denoising_loss, loss_difference, moments_of, noised, squared_shift
from typicality.scoring.noise import DrawPlan, image_generator
from typicality.scoring.shards import ScoredRow, read_index, write_shard


@dataclass(frozen=True)
class Job:
    """One image and the labels it is to be scored for."""

    image_id: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Scorer:
    """Scores jobs under one plan.

    Parameters
    ----------
    denoiser, latents : where predictions and latents come from
    states : (labels + 1, tokens, width) prompt states, the null prompt first, then `labels` in order
    labels : names of the prompts after the first
    plan : how timesteps and noises are drawn
    seed, purpose : of the noise; other purposes draw independent noise
    batch_size : UNet evaluations at once
    shard_images : images a shard
    """

    denoiser: Denoiser
    latents: LatentStore
    states: Float[Tensor, "p tokens width"]
    labels: tuple[str, ...]
    plan: DrawPlan
    seed: int
    purpose: str
    batch_size: int = 128
    shard_images: int = 256

    def __call__(self, jobs: Sequence[Job], folder: Path, progress: Progress = SILENT) -> int:
        """Score what `folder` does not hold yet and return the number of images scored."""
        index = read_index(folder)
        done = set(zip(index["image_id"].to_pylist(), index["label"].to_pylist(), strict=True))
        pending = [
            Job(job.image_id, labels)
            for job in jobs
            if (labels := tuple(label for label in job.labels if (job.image_id, label) not in done))
        ]
        shards = self._shards(pending)
        progress.start(f"score ({self.purpose})", len(pending))
        for shard in shards:
            rows: list[ScoredRow] = []
            for chunk in self._chunks(shard):
                rows += self.score(chunk)
                progress.advance(len(chunk))
            write_shard(folder, rows)
        progress.finish()
        return len(pending)

    def _shards(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Group jobs by latent shape, then by number of labels, in an order that does not depend on the input's."""
        groups: dict[tuple, list[Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda j: j.image_id):
            view = self.latents.view(job.image_id)
            groups[view.height, view.width, len(job.labels)].append(job)
        return [
            group[start : start + self.shard_images]
            for _, group in sorted(groups.items())
            for start in range(0, len(group), self.shard_images)
        ]

    def _chunks(self, jobs: Sequence[Job]) -> list[Sequence[Job]]:
        """Split jobs so that the draws of a chunk fill about one batch."""
        evaluations = self.plan.draws * (1 + len(jobs[0].labels))
        size = max(1, self.batch_size // evaluations)
        return [jobs[start : start + size] for start in range(0, len(jobs), size)]

    def score(self, jobs: Sequence[Job]) -> list[ScoredRow]:
        """Score jobs that share a latent shape and a number of labels, all in memory."""
        differences, shifts, null_losses = self.unit_maps(jobs)
        rows = []
        for i, job in enumerate(jobs):
            for j, label in enumerate(job.labels):
                moments = moments_of(differences[i, j], shifts[i, j], null_losses[i])
                rows.append(self._row(job.image_id, label, differences[i, j], moments))
        return rows

    def _row(self, image_id: str, label: str, differences: Float[Tensor, "units h w"], moments: Moments) -> ScoredRow:
        means = differences.mean((-2, -1))
        n = len(means)
        variance = means.diff().square().sum() / (2 * n * (n - 1)) if n > 1 else torch.tensor(torch.inf)
        return ScoredRow(
            image_id=image_id, label=label, view=self.latents.view(image_id), draws=self.plan.draws,
            mean=float(means.mean()), standard_error=float(variance.sqrt()), moments=moments,
        )  # fmt: skip

    def unit_maps(
        self, jobs: Sequence[Job]
    ) -> tuple[Float[Tensor, "n p units h w"], Float[Tensor, "n p units h w"], Float[Tensor, "n units h w"]]:
        """Return for every job, label and unit the maps of T, of D^2, and of L(null), float32 on the CPU."""
        z = self.latents.stack([job.image_id for job in jobs])
        plan, total = self.plan, self.denoiser.timesteps
        times, noises = [], []
        for job in jobs:
            generator = image_generator(job.image_id, self.seed, self.purpose)
            times.append(plan.timesteps(total, generator))
            noises.append(plan.noises(tuple(z.shape[1:]), generator))
        t, eps = torch.stack(times), torch.stack(noises)  # (n, units), (n, units, c, h, w)
        slots = self._slots(jobs)
        n, units = t.shape
        signs = (1.0, -1.0) if plan.antithetic else (1.0,)
        step = max(1, self.batch_size // (n * len(signs) * len(slots)))
        parts = []
        for start in range(0, units, step):
            here = slice(start, start + step)
            parts.append(self._evaluate(z, t[:, here], eps[:, here], slots, signs))
        differences, shifts, losses = (torch.cat([p[k] for p in parts], dim=-3) for k in range(3))
        return differences, shifts, losses

    def _slots(self, jobs: Sequence[Job]) -> list[list[int]]:
        position = {label: i + 1 for i, label in enumerate(self.labels)}
        return [[0] * len(jobs), *([position[job.labels[j]] for job in jobs] for j in range(len(jobs[0].labels)))]

    def _evaluate(
        self, z: Tensor, t: Tensor, eps: Tensor, slots: list[list[int]], signs: tuple[float, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate (n, u) units under every slot: slot 0 is the null prompt, the others are labels."""
        n, u = t.shape
        sides = len(signs)
        signed = torch.stack([sign * eps for sign in signs], dim=2).flatten(0, 2)  # (n * u * sides, c, h, w)
        times = t[:, :, None].expand(n, u, sides).flatten()
        repeated = z[:, None].expand(n, u * sides, *z.shape[1:]).flatten(0, 1)
        inputs = noised(repeated, signed, self.denoiser.alphas_cumprod[times])
        rows = [[prompt for prompt in slot for _ in range(u * sides)] for slot in slots]
        prediction = self.denoiser.predict_noise(inputs, times, self.states, rows)
        target = signed.to(prediction.device)
        e_null, e_label = prediction[0], prediction[1:]

        def by_unit(maps: Tensor) -> Tensor:
            """(..., n * u * sides, h, w) -> (..., n, u, h, w), averaged over the two signs."""
            return maps.unflatten(-3, (n, u, sides)).mean(-3).cpu()

        differences = by_unit(loss_difference(target, e_null, e_label)).transpose(0, 1)
        shifts = by_unit(squared_shift(e_null, e_label)).transpose(0, 1)
        return differences, shifts, by_unit(denoising_loss(target, e_null))


def own_label_jobs(labels_of: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return a job an image with its own labels."""
    return [Job(image_id, tuple(labels)) for image_id, labels in sorted(labels_of.items())]
