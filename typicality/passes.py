"""One pass of scoring: which model scores which image, where its draws lie, and which maps are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from typicality.config import key_of
from typicality.errors import OutputError
from typicality.model.denoiser import Denoiser
from typicality.run import Run
from typicality.scoring.scorer import Job, Scorer
from typicality.scoring.shards import ScoreReader


def by_fold(run: Run, jobs: Sequence[Job]) -> list[tuple[int, list[Job]]]:
    """Divide jobs by the fold that holds their image out: (fold, jobs) in order; one fold where there is one model."""
    divided: dict[int, list[Job]] = {}
    for job in jobs:
        divided.setdefault(run.fold_of(job.image_id), []).append(job)
    return sorted(divided.items())


def scorer(run: Run, purpose: str, draws: int, fold: int = 0) -> Scorer:
    """Return the scorer of one pass for the images of one fold; where there is one model, it is that of all images."""
    denoiser = run.denoiser_of(fold)
    return Scorer(
        denoiser=denoiser,
        latents=run.latents,
        states=denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels)),
        labels=run.dataset.labels,
        plan=run.plan(draws),
        seed=run.settings.seed,
        purpose=purpose,
        batch_size=run.batch_size,
        shard_images=run.settings.score.shard_images,
        processes=run.directory.processes,
        label_scale=run.label_scale_of(denoiser),
    )


def tilt_of(run: Run, denoiser: Denoiser) -> float:
    """Return the tilt of the density of timesteps at which mining scores by a model; the published one has none."""
    score = run.settings.score
    if score.protocol == "paper":
        return 0.0
    return denoiser.checkpoint.label_use.tilt if score.tilt is None else score.tilt


def tilted(run: Run, measure: Scorer) -> Scorer:
    """Return a scorer that draws where its model's scores are noisiest, as mining does."""
    return replace(measure, plan=replace(measure.plan, tilt=tilt_of(run, measure.denoiser)))


def score_pass(run: Run, stage: str, purpose: str, draws: int, jobs: Sequence[Job]) -> ScoreReader:
    """Score images under labels, as far as that has not been done, and return a reader of the maps.

    Parameters
    ----------
    stage : its name in run.json
    purpose : names the pass's folder and its noise: other purposes draw independent noise
    draws : UNet draws an image and label; even unless the protocol is `paper`
    jobs : which images under which labels; one null prediction serves all labels of a job

    With folds each image is scored by the model that has not seen it; the maps of all folds lie in one folder. Shards
    that are no longer there are made again.

    Raises
    ------
    OutputError : when maps are missing although all was scored.
    """
    folder = run.score_folder(purpose, draws)
    key = key_of([folder.name, [[j.image_id, *j.labels] for j in jobs]])
    reader, wanted = ScoreReader(folder), [(job.image_id, label) for job in jobs for label in job.labels]
    if not run.directory.is_done(stage, key) or not reader.has_all(wanted):
        with run.directory.stage(stage, key) as entry:
            entry |= {"images": len(jobs), "draws": draws}
            for fold, held_out in by_fold(run, jobs):
                denoiser = run.denoiser_of(fold)
                denoiser.evaluations = 0
                measure = tilted(run, scorer(run, purpose, draws, fold))
                try:
                    measure(held_out, folder, run.progress)
                finally:
                    entry["unet_evaluations"] = entry.get("unet_evaluations", 0) + denoiser.evaluations
            reader = ScoreReader(folder)
            if not reader.has_all(wanted):
                raise OutputError(f"shards of {folder} were removed while it was being filled; give the command again")
    return reader
