"""Score images: draw, predict, reduce to moments, write shards. Resumable at the level of a shard.

Which images share a batch follows from the jobs alone, not from what is done already nor from the number of
processes: arithmetic in another batch differs in the last bit, and a run that was stopped, or was shared by several
processes, must end with the very same numbers.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.model.calibration import with_label_scale
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.processes import ALONE, Processes
from typicality.progress import SILENT, Progress
from typicality.scoring.estimator import (
    Moments,
    denoising_loss,
    error_of_mean,
    even_part,
    loss_difference,
    moments_of,
    noised,
    squared_shift,
)
from typicality.scoring.noise import DrawPlan, image_generator
from typicality.scoring.shards import ScoredRow, ScoredRows, read_index, write_shard


@dataclass(frozen=True, slots=True)
class Job:
    """One image and the labels it is to be scored for."""

    image_id: str
    labels: tuple[str, ...]


class UnitMaps(NamedTuple):
    """Maps of every job, label and unit, float32: T, D^2, L(null) (of no label), and the even part of T.

    Their means over units are means over the range of timesteps: where its density is not uniform they are weighted.
    """

    differences: Float[Tensor, "n p units h w"]
    shifts: Float[Tensor, "n p units h w"]
    null_losses: Float[Tensor, "n units h w"]
    even: Float[Tensor, "n p units h w"]

    def weighted(self, weights: Float[Tensor, "n units"]) -> UnitMaps:
        """Return the maps times the weights of their units."""
        w = weights[:, :, None, None]
        own = w[:, None]
        return UnitMaps(self.differences * own, self.shifts * own, self.null_losses * w, self.even * own)


class UnitInputs(NamedTuple):
    """What every unit of some images is made of: latents, places in the range of timesteps, and noises."""

    latents: Float[Tensor, "n c h w"]
    places: Float[Tensor, "n units"]
    noises: Float[Tensor, "n units c h w"]


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
    processes : each scores shards of its own
    label_scale : of the shift of predictions by a label (model/calibration.py)
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
    processes: Processes = ALONE
    label_scale: float = 1.0

    def __call__(self, jobs: Sequence[Job], folder: Path, progress: Progress = SILENT) -> int:
        """Score what `folder` does not hold yet; all processes call this with the same jobs and wait for one another.

        Returns the number of images that all processes together had to score; `denoiser.evaluations` then counts
        those of all of them.
        """
        index = read_index(folder)
        done = set(zip(index["image_id"].to_pylist(), index["label"].to_pylist(), strict=True))
        shards = [left for shard in self._shards(jobs) if (left := _left(shard, done))]
        self.processes.wait()  # now all have seen the same state, and may write
        before, own = self.denoiser.evaluations, self.processes.share(shards)
        progress.start(f"score ({self.purpose})", sum(len(chunk) for shard in own for chunk in shard))
        with closing(self._scored([chunk for shard in own for chunk in shard])) as scored:
            for shard in own:
                parts = []
                for chunk in shard:
                    parts.append(next(scored))
                    progress.advance(len(chunk))
                write_shard(folder, parts)
        progress.finish()
        self.denoiser.evaluations = before + self.processes.total(self.denoiser.evaluations - before)
        return sum(len(chunk) for shard in shards for chunk in shard)

    def _shards(self, jobs: Sequence[Job]) -> list[list[list[Job]]]:
        """Group jobs by latent shape and number of labels, divide the groups into batches, and batches into shards.

        The order does not depend on the input's. Shards are smaller where otherwise some process would get none.
        """
        groups: dict[tuple, list[Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda j: (j.image_id, j.labels)):
            view = self.latents.view(job.image_id)
            groups[view.height, view.width, len(job.labels)].append(job)
        images = min(self.shard_images, -(-len(jobs) // self.processes.count))
        shards = []
        for _, group in sorted(groups.items()):
            size = self.images_at_once(len(group[0].labels))
            chunks = [group[start : start + size] for start in range(0, len(group), size)]
            together = max(1, images // size)
            shards += [chunks[start : start + together] for start in range(0, len(chunks), together)]
        return shards

    def images_at_once(self, labels: int) -> int:
        """Images whose draws under the null prompt and so many labels fill about one batch."""
        return max(1, self.batch_size // (self.plan.draws * (1 + labels)))

    def score(self, jobs: Sequence[Job]) -> list[ScoredRow]:
        """Score jobs that share a latent shape and a number of labels, all in memory."""
        return [row for part in self._scored([jobs]) for row in part.rows()]

    def _scored(self, chunks: Sequence[Sequence[Job]]) -> Generator[ScoredRows]:
        """Score batches in turn.

        A device that works by itself is kept at work: what the next batch takes is drawn by another thread meanwhile,
        and handed over before the results of this one are waited for.
        """
        waiting: tuple[Sequence[Job], Moments, Tensor] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:
            drawn = deque(pool.submit(self.draw, chunk) for chunk in chunks[:1])
            for i, jobs in enumerate(chunks):
                drawn.extend(pool.submit(self.draw, chunk) for chunk in chunks[i + 1 : i + 2])
                maps = self.maps_on_device(jobs, drawn.popleft().result())
                losses = maps.null_losses[:, None].expand_as(maps.shifts)
                moments = moments_of(maps.differences, maps.shifts, losses, maps.even)
                means = maps.differences.mean((-2, -1))  # (n, p, units)
                del maps, losses
                if waiting is not None:
                    yield self._rows(*waiting)
                waiting = jobs, moments, means
            if waiting is not None:
                yield self._rows(*waiting)

    def _rows(self, jobs: Sequence[Job], moments: Moments, means: Tensor) -> ScoredRows:
        """Bring what a batch came to from the device."""
        units = means.cpu().flatten(0, 1)
        return ScoredRows(
            keys=tuple((job.image_id, label) for job in jobs for label in job.labels),
            views=tuple(self.latents.view(job.image_id) for job in jobs for _ in job.labels),
            draws=self.plan.draws,
            means=units.mean(-1).tolist(),
            standard_errors=error_of_mean(units).tolist(),
            moments=moments.each(lambda x: x.cpu().flatten(0, 1)),
        )

    def unit_maps(self, jobs: Sequence[Job]) -> UnitMaps:
        """Return the maps of every job, label and unit, on the CPU."""
        return UnitMaps(*(maps.cpu() for maps in self.maps_on_device(jobs)))

    def draw(self, jobs: Sequence[Job]) -> UnitInputs:
        """Read the latents of jobs, and draw their timesteps and noises; on the CPU."""
        z = self.latents.stack([job.image_id for job in jobs])
        generators = [image_generator(job.image_id, self.seed, self.purpose) for job in jobs]
        places = self.plan.places(generators)
        return UnitInputs(z, places, torch.stack([self.plan.noises(tuple(z.shape[1:]), g) for g in generators]))

    def maps_on_device(self, jobs: Sequence[Job], drawn: UnitInputs | None = None) -> UnitMaps:
        """Return what `unit_maps` does where it was computed, which the caller need not wait for.

        Parameters
        ----------
        drawn : of these jobs, where that has been done
        """
        latents, places, noises = drawn or self.draw(jobs)
        plan, times = self.plan, self.plan.at(places, self.denoiser.timesteps)
        z, t, eps = (self.denoiser.send(x) for x in (latents, times, noises))
        slots = self._slots(jobs)
        n, units = t.shape
        signs = (1.0, -1.0) if self.plan.antithetic else (1.0,)
        step = max(1, self.batch_size // (n * len(signs) * len(slots)))
        parts = []
        for start in range(0, units, step):
            here = slice(start, start + step)
            parts.append(self._evaluate(z, t[:, here], eps[:, here], slots, signs))
        maps = UnitMaps(*(torch.cat(part, dim=-3) for part in zip(*parts, strict=True)))
        return maps.weighted(self.denoiser.send(plan.weights(places).float())) if plan.tilt else maps

    def _slots(self, jobs: Sequence[Job]) -> list[list[int]]:
        position = {label: i + 1 for i, label in enumerate(self.labels)}
        return [[0] * len(jobs), *([position[job.labels[j]] for job in jobs] for j in range(len(jobs[0].labels)))]

    def _evaluate(
        self, z: Tensor, t: Tensor, eps: Tensor, slots: list[list[int]], signs: tuple[float, ...]
    ) -> UnitMaps:
        """Evaluate (n, u) units under every slot: slot 0 is the null prompt, the others are labels."""
        n, u = t.shape
        sides = len(signs)
        signed = torch.stack([sign * eps for sign in signs], dim=2).flatten(0, 2)  # (n * u * sides, c, h, w)
        times = t[:, :, None].expand(n, u, sides).flatten()
        repeated = z[:, None].expand(n, u * sides, *z.shape[1:]).flatten(0, 1)
        inputs = noised(repeated, signed, self.denoiser.alphas_cumprod.to(times.device)[times])
        rows = [[prompt for prompt in slot for _ in range(u * sides)] for slot in slots]
        prediction = self.denoiser.predict_noise(inputs, times, self.states, rows, self.batch_size)
        prediction = with_label_scale(prediction, self.label_scale)
        e_null, e_label = prediction[0], prediction[1:]

        def by_unit(maps: Tensor) -> Tensor:
            """(..., n * u * sides, h, w) -> (..., n, u, h, w), averaged over the two signs."""
            return maps.unflatten(-3, (n, u, sides)).mean(-3)

        differences = by_unit(loss_difference(signed, e_null, e_label)).transpose(0, 1)
        shifts = by_unit(squared_shift(e_null, e_label)).transpose(0, 1)
        even = differences
        if sides == 2:
            both = (x.unflatten(-4, (n, u, sides)) for x in (signed, e_null, e_label))
            even = even_part(*both).transpose(0, 1)
        return UnitMaps(differences, shifts, by_unit(denoising_loss(signed, e_null)), even)


def _left(shard: Sequence[Sequence[Job]], done: Collection[tuple[str, str]]) -> list[list[Job]]:
    """Return the batches of a shard without what is done, each divided by the number of labels that are left."""
    result = []
    for chunk in shard:
        alike: dict[int, list[Job]] = defaultdict(list)
        for job in chunk:
            labels = tuple(label for label in job.labels if (job.image_id, label) not in done)
            if labels:
                alike[len(labels)].append(Job(job.image_id, labels))
        result += [alike[n] for n in sorted(alike)]
    return result


def own_label_jobs(labels_of: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return a job an image with its own labels."""
    return [Job(image_id, tuple(labels)) for image_id, labels in sorted(labels_of.items())]
