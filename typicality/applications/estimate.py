"""What a run will cost, before it is begun: UNet evaluations, seconds and bytes, from a probe of a few seconds.

Evaluations follow from the settings. Seconds and bytes are those of the real stages on a few of the data set's own
images, in a temporary run directory: reading, encoding, scoring with its shards, training steps, features, pictures. Of
adaptive scoring the number of images with a winner is not known beforehand; it is taken from a formula (`winners`).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from typicality.config import Settings
from typicality.dataset import LabelledImages, load_dataset
from typicality.dataset.split import unit_hash
from typicality.mining.clusters import cluster_elements
from typicality.mining.patches import PatchSelection, patch_side
from typicality.model.checkpoint import load_checkpoint
from typicality.model.crossfit import seen_by_a_fold
from typicality.model.denoiser import Denoiser
from typicality.model.finetune import FEW, Finetuner
from typicality.model.probe import timed
from typicality.model.recipe import default_steps, label_use_after, sharing_of, validation_interval
from typicality.model.training import TrainingSet, parts_of
from typicality.model.validation import predictions_of_means, predictions_of_spread
from typicality.passes import scorer
from typicality.pipeline import feature_extractor
from typicality.plan import controls_of, first_jobs
from typicality.progress import SILENT, Progress
from typicality.records import Patch
from typicality.report.pictures import LEVELS, draw_crop, encode, shrink
from typicality.run import Run
from typicality.scoring.effort import effort_of, preset
from typicality.scoring.scorer import Job
from typicality.store import RunDirectory

PROBE_IMAGES = 32
PROBE_SECONDS = 2.0
SPREAD = 0.85
"""Images with a winner, as a share of what they would be if winners fell on images at random (measured on the
embedded data: 769 images for 960 patches, 545 for 640)."""


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage: UNet evaluations (a training step counts three an image: forward, and twice that backward)."""

    unet_evaluations: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Cost of a run.

    Attributes
    ----------
    images : of the data set
    unet_evaluations, seconds : of all stages together; early stopping of the fine-tuning is not foreseen
    disk_bytes : of the run directory at the end, the report's pictures taken at half of their budget
    disk_bytes_an_image : the part that grows with the data set, an image
    stages : data, latents, finetune, score, rounds, refine, features, clusters, report, where the settings ask for them
    """

    images: int
    unet_evaluations: int
    seconds: float
    disk_bytes: int
    disk_bytes_an_image: int
    device: str
    dtype: str
    stages: dict[str, StageCost]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def winners(n_images: int, per_image: int, kept: int) -> float:
    """Return the expected number of images that hold one of `kept` patches, of per_image in each of n_images."""
    share = min(1.0, kept / (n_images * per_image))
    return n_images * min(1.0, SPREAD * (1 - (1 - share) ** per_image)) if share < 1 else float(n_images)


def estimate(settings: Settings, progress: Progress = SILENT) -> Estimate:
    """Estimate the cost of `mine` with these settings; writes nothing but a temporary folder.

    Raises
    ------
    InputError : as `mine` does, for data or a model that cannot be read.
    """
    began = time.perf_counter()
    dataset = load_dataset(settings.dataset)
    reading = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="typicality-estimate-") as folder:
        return _Probe(settings, dataset, Path(folder), progress).estimate(reading)


class _Probe:
    """The stages at work on a few images, and the clock beside them."""

    def __init__(self, settings: Settings, dataset: LabelledImages, folder: Path, progress: Progress) -> None:
        self.settings, self.dataset, self.folder, self.progress = settings, dataset, folder, progress
        chosen = sorted(dataset, key=lambda image: unit_hash(image.image_id, "estimate"))[:PROBE_IMAGES]
        sample = replace(dataset, images=tuple(chosen))
        # as it is scored after fine-tuning: the same UNet, with an adapter merged
        plain = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"enabled": False})})
        self.run = Run(plain, sample, RunDirectory(folder), progress)
        self.run.base.label_use = label_use_after(settings.finetune, self.run.base, self.run.prompts.null)
        whole = Run(settings, dataset, self.run.directory, progress)
        whole.take_model(self.run)
        self.run.__dict__["compiled_shapes"] = whole.compiled_shapes  # as for all images, not for these few

    def estimate(self, reading: float) -> Estimate:
        """Put the stages' costs together; `reading` the data set took so many seconds."""
        settings, dataset = self.settings, self.dataset
        n = len(dataset)
        seconds_image = self._latents()
        sides = 2 if self.settings.finetune.flip and self.settings.finetune.enabled else 1
        stages = {"data": StageCost(0, reading), "latents": StageCost(0, seconds_image * n * sides)}
        labels_an_image = sum(len(i.labels) for i in dataset) / n
        per_evaluation, shard_bytes = self._scoring(1, self.run.first_draws)
        if settings.finetune.enabled:
            stages["finetune"] = self._finetuning(per_evaluation)
        jobs = first_jobs(settings, dataset)
        first = sum((1 + len(job.labels)) * self.run.first_draws for job in jobs)
        stages["score"] = StageCost(first, first * per_evaluation)
        selection = self._selection()
        kept = {
            label: selection.kept(max(1, dataset.number_of(label) * selection.per_image)) for label in dataset.labels
        }
        holders = sum(winners(dataset.number_of(label), selection.per_image, kept[label]) for label in dataset.labels)
        map_count: float = sum(len(job.labels) for job in jobs)
        if settings.score.protocol == "adaptive":
            first_draws, sharing = self.run.first_draws, sharing_of(settings.finetune, self.run.base)
            effort = effort_of(settings.score, first_draws, sharing)
            most = preset("exact", first_draws, sharing).further  # assumed where `score.overlap` leaves it open
            further_draws = effort.further if math.isfinite(effort.further) else most
            further = round(further_draws * n * (1 + labels_an_image)) if effort.rounds else 0
            stages["rounds"] = StageCost(further, further * per_evaluation)
            slots = 2 + min(settings.score.contrast, len(dataset.labels) - 1)
            refined, refine_bytes = self._scoring(slots - 1, effort.refine)
            fresh = round(holders * slots * effort.refine)
            stages["refine"] = StageCost(fresh, fresh * refined)
            map_count += holders * (slots - 1) + further / (1 + labels_an_image) / max(1, self.run.first_draws)
            shard_bytes = max(shard_bytes, refine_bytes)
        per_job, width = self._features(selection)
        pools = kept
        if any((controls := controls_of(settings, dataset)).values()):  # the same search, among controls as well
            both = {label: dataset.number_of(label) + len(found) for label, found in controls.items()}
            pools = {label: round(kept[label] * both[label] / dataset.number_of(label)) for label in kept}
            holders += sum(winners(both[label], selection.per_image, pools[label]) for label in kept)
        stages["features"] = StageCost(round(holders * settings.mine.noises), holders * per_job)
        stages["clusters"] = StageCost(0, self._clusters(max(pools.values()), width) * len(dataset.labels))
        stages["report"] = StageCost(0, self._report(kept))
        an_image = round(self._latent_bytes() * sides + map_count * shard_bytes / n)
        elements = sum(kept.values())
        fixed = self._model_bytes() + elements * (8 * width + 100) + round(settings.report.budget_mb * 5e5)
        return Estimate(
            images=n,
            unet_evaluations=sum(stage.unet_evaluations for stage in stages.values()),
            seconds=round(sum(stage.seconds for stage in stages.values()), 1),
            disk_bytes=an_image * n + fixed,
            disk_bytes_an_image=an_image,
            device=str(self.run.device),
            dtype=self.run.precision,
            stages={k: StageCost(v.unet_evaluations, round(v.seconds, 1)) for k, v in stages.items()},
        )

    def _latents(self) -> float:
        """Seconds an image, decoding included."""
        run = self.run
        encoder = Denoiser(run.base, run.device, run.dtype)
        few = replace(run.dataset, images=run.dataset.images[:2])
        run.latents.encode(few, encoder)  # the first use of a kernel is slow
        began = time.perf_counter()
        run.latents.encode(run.dataset, encoder, self.progress)
        return (time.perf_counter() - began) / len(run.dataset)

    def _scoring(self, labels: int, draws: int) -> tuple[float, float]:
        """Seconds an evaluation and bytes a map, shards included, of jobs with so many labels."""
        run = self.run
        names = run.dataset.labels[:labels]
        at_work, count = scorer(run, "estimate", draws), 0
        jobs = [Job(image.image_id, names) for image in run.dataset][: max(2, at_work.images_at_once(len(names)))]

        def work() -> None:
            nonlocal count
            count += 1
            at_work(jobs, self.folder / f"shards-{labels}-{draws}-{count}")

        seconds = timed(work, run.device, PROBE_SECONDS)
        stored = sum(p.stat().st_size for p in (self.folder / f"shards-{labels}-{draws}-1").iterdir())
        return seconds / (len(jobs) * draws * (1 + len(names))), stored / (len(jobs) * len(names))

    def _finetuning(self, per_evaluation: float) -> StageCost:
        tuning, run = self.settings.finetune, self.run
        training, validation, _ = parts_of(self.dataset, tuning)
        batch = tuning.batch_size
        seen = seen_by_a_fold(len(self.dataset), tuning.folds) if tuning.folds > 1 else len(training)
        steps = tuning.steps or default_steps(seen, batch)
        ids = [image.image_id for image in run.dataset]
        data = TrainingSet(ids, [], run.labels_of, run.dataset.labels, run.prompts)
        trainer = Finetuner(
            load_checkpoint(run.model_settings), data, run.latents, tuning.model_copy(update={"flip": False}),
            self.settings.score,
            self.folder / "training", run.device, run.dtype, self.settings.seed,
        )  # fmt: skip
        trainer.checkpoint.unet.train()
        per_step = timed(lambda: trainer.train_step(0.5), run.device, PROBE_SECONDS)
        prompts = 2 if trainer.contrast else 1
        validations = max(1, math.ceil(steps / validation_interval(tuning, steps)))
        checked = min(len(validation), tuning.validation_images) + min(len(training), tuning.validation_images)
        evaluations = validations * predictions_of_means(checked)
        if len(validation) >= FEW:
            evaluations += predictions_of_spread(len(validation))
        models = tuning.shared + tuning.folds * (1 - tuning.shared) if tuning.folds > 1 else 1.0
        seconds = models * (steps * per_step + evaluations * per_evaluation)
        if tuning.minutes:
            steps = max(1, round(steps * tuning.minutes * 60 / seconds))
            seconds = tuning.minutes * 60
        return StageCost(round(models * (3 * steps * batch * prompts + evaluations)), seconds)

    def _selection(self) -> PatchSelection:
        mine, run = self.settings.mine, self.run
        side = patch_side(run.latents.short_side, mine.patch, run.base.factor)
        return PatchSelection(side, run.base.factor, mine.per_image, mine.per_label, mine.share)

    def _features(self, selection: PatchSelection) -> tuple[float, int]:
        """Seconds an image and label, and the width of a feature."""
        run = self.run
        states = run.denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels))
        extractor = feature_extractor(run, run.denoiser, lambda _: states[1])
        patches = [_patch(image.image_id, selection.side) for image in run.dataset][:16]
        found = extractor(patches, run.latents.get)
        seconds = timed(lambda: extractor(patches, run.latents.get), run.device, PROBE_SECONDS / 2, least=1)
        return seconds / len(patches), found.shape[1]

    def _clusters(self, elements: int, width: int) -> float:
        """Seconds a label, on random features of the same number and width."""
        features = np.random.default_rng(0).standard_normal((elements, width), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        patches = [_patch(f"{i // 2:032x}", 1) for i in range(elements)]
        began = time.perf_counter()
        cluster_elements(patches, features, lambda image_id: image_id, clusters=self.settings.mine.clusters)
        return time.perf_counter() - began

    def _report(self, kept: Mapping[str, int]) -> float:
        """Seconds for its pictures, each original being opened once, and once more for a sample of coarser levels."""
        report, images = self.settings.report, self.run.dataset.images[:8]
        shown = sum(min(number, report.clusters * report.columns) + 2 * report.images for number in kept.values())
        began = time.perf_counter()
        for image in images:
            original = self.run.dataset.open(image)
            encode(shrink(original, LEVELS[0].source), LEVELS[0].source_quality, LEVELS[0].lossless)
            draw_crop(original, (0, 0, original.width // 4, original.height // 4), LEVELS[0])
        return 2 * shown * (time.perf_counter() - began) / len(images)

    def _latent_bytes(self) -> float:
        files = [p for p in self.run.latents.folder.iterdir() if p.suffix == ".safetensors"]
        return sum(p.stat().st_size for p in files) / len(self.run.dataset)

    def _model_bytes(self) -> int:
        """Of the fine-tuned models: all weights in float32, or a small adapter."""
        tuning, base = self.settings.finetune, self.run.base
        lora = tuning.method == "lora" or (tuning.method == "auto" and not base.is_small)
        if not tuning.enabled:
            return 0
        weights = sum(p.numel() for part in (base.unet, base.vae, base.text_encoder) for p in part.parameters())
        models = tuning.folds + (tuning.folds > 1 and tuning.shared > 0)  # the one that folds begin with stays
        return models * (base.parameters // 50 * 4 if lora else 4 * weights)


def _patch(image_id: str, side: int) -> Patch:
    return Patch(image_id, "", 0, 0, side, (0, 0, 1, 1), typicality=0.0, standard_error=0.0)
