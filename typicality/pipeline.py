"""From a data set and settings to a finished run: the only module that knows the order of the stages.

Each function does one stage, or all of them, in a run directory; what is already there under the same key is
reused. The order is

    data set -> latents -> fine-tuned model -> score maps -> patches -> features -> clusters -> report
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from typicality.config import ModelSettings, Settings, config_of, key_of, merge, read_config, resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.dataset.split import is_held_out, unit_hash
from typicality.errors import InputError, InterruptedRun, OutputError
from typicality.mining.clusters import cluster_elements
from typicality.mining.features import FeatureExtractor, element_index
from typicality.mining.patches import PatchSelection, patch_side, rescored, top_patches, with_specificity
from typicality.mining.tables import clusters_table, elements_table, in_table_order
from typicality.model.card import model_card
from typicality.model.checkpoint import Checkpoint, load_checkpoint
from typicality.model.denoiser import Denoiser, choose_device, choose_dtype
from typicality.model.finetune import Finetuner, TrainingSet, default_steps
from typicality.model.latents import LatentStore
from typicality.progress import SILENT, Progress
from typicality.prompts import Prompts
from typicality.records import Patch
from typicality.report.render import write_report
from typicality.report.view import ReportInput
from typicality.scoring.noise import DrawPlan
from typicality.scoring.scorer import Job, Scorer
from typicality.scoring.shards import ScoreReader
from typicality.store import RunDirectory, write_table, write_whole

logger = logging.getLogger(__name__)

FIRST_PASS, REFINEMENT = "first pass", "refinement"
IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("group", pa.string()),
        ("held_out", pa.bool_()),
        ("typicality", pa.float32()),
        ("standard_error", pa.float32()),
        ("n_draws", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Attributes
    ----------
    folder : the run directory
    elements, clusters, images : the tables of DESIGN.md, and a row an image and label
    report : index.html
    record : run.json
    """

    folder: Path
    elements: pa.Table
    clusters: pa.Table
    images: pa.Table
    report: Path
    record: dict[str, Any]


@dataclass
class Run:
    """A run that is being worked on: settings, data set and run directory, and what follows from them."""

    settings: Settings
    dataset: LabelledImages
    directory: RunDirectory
    progress: Progress = SILENT
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts(self.settings.prompt.template, self.settings.prompt.null)

    @cached_property
    def device(self) -> torch.device:
        return choose_device(self.settings.model.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        return choose_dtype(self.settings.model.dtype, self.device)

    @cached_property
    def base(self) -> Checkpoint:
        """The model before fine-tuning."""
        checkpoint = load_checkpoint(self.settings.model)
        self.progress.say(f"model: {checkpoint.name} ({checkpoint.reason})")
        return checkpoint

    @cached_property
    def base_hash(self) -> str:
        return self.base.weights_hash()

    @cached_property
    def latents(self) -> LatentStore:
        size = self.settings.model.size or self.base.size
        key = key_of([self.base_hash, size, self.base.step, self.settings.model.max_aspect, str(self.dtype)])
        folder = self.directory.path("latents", key)
        return LatentStore(folder, size, self.base.step, self.settings.model.max_aspect)

    @cached_property
    def finetune_key(self) -> str:
        settings = self.settings
        if not settings.finetune.enabled:
            return key_of(["not fine-tuned", self.base_hash])
        return key_of(
            [
                self.base_hash,
                self.latents.folder.name,
                self.dataset.fingerprint,
                settings.prompt.model_dump(),
                settings.finetune.model_dump(),
                [settings.score.t_min, settings.score.t_max],
                settings.seed,
                str(self.dtype),
            ]
        )

    @cached_property
    def denoiser(self) -> Denoiser:
        """The model that scores: the fine-tuned one, read back from the run directory."""
        if self.settings.finetune.enabled:
            folder = self.directory.path("model")
            checkpoint = load_checkpoint(ModelSettings(name=str(folder), offline=True))
        else:
            checkpoint = self.base
        return Denoiser(checkpoint, self.device, self.dtype)

    @cached_property
    def labels_of(self) -> dict[str, tuple[str, ...]]:
        return {image.image_id: image.labels for image in self.dataset}

    @cached_property
    def batch_size(self) -> int:
        if self.settings.score.batch_size:
            return self.settings.score.batch_size
        cells = (self.latents.size // self.base.factor) ** 2
        budget = 160 * 256 if self.device.type == "cpu" else 64 * 4096
        return max(4, budget // cells)

    def plan(self, draws: int) -> DrawPlan:
        score = self.settings.score
        if score.protocol == "paper":
            return DrawPlan(draws, score.t_min, score.t_max, antithetic=False, stratified=False)
        return DrawPlan(max(1, draws // 2), score.t_min, score.t_max)

    @property
    def first_draws(self) -> int:
        return self.settings.score.draws or {"adaptive": 4, "uniform": 16, "paper": 100}[self.settings.score.protocol]

    def score_folder(self, purpose: str, draws: int) -> Path:
        """The folder of a pass; its name covers everything its maps depend on, but not which images are in it."""
        score = self.settings.score
        key = key_of(
            [
                self.finetune_key, self.latents.folder.name, self.settings.prompt.model_dump(), purpose, draws,
                score.protocol == "paper", score.t_min, score.t_max, self.settings.seed, str(self.dtype),
            ]
        )  # fmt: skip
        return self.directory.path("scores", f"{purpose.replace(' ', '-')}-{key}")

    def warnings(self) -> tuple[str, ...]:
        """What a reader of the results must know: of the data, and of the training."""
        found = list(self.dataset.warnings)
        if self.settings.finetune.enabled:
            stage = self.directory.record["stages"].get("finetune", {})
            found += stage.get("warnings", [])
            found.append(
                "Scores are in-sample: most images were also used to fine-tune the model (the published protocol), "
                "so what is typical of an image may in part be memorised."
            )
        return tuple(found)


# ------------------------------------------------------------------------------------------------ settings


def run_record(source: str) -> dict[str, Any] | None:
    """Return run.json when `source` is a run directory, else None."""
    path = Path(source) / "run.json"
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{path} cannot be read ({error}); run `typicality mine` again with --fresh") from error
    return record


def resolve_settings(
    source: str | None = None, config: Path | None = None, overrides: Iterable[Mapping[str, Any]] = ()
) -> Settings:
    """Resolve all settings: the run's own when `source` is a run directory, else the data set's, then the user's."""
    layers: list[Mapping[str, Any]] = []
    if source is not None and (record := run_record(source)) is not None:
        layers.append(record["settings"])
    else:
        name = source or "emoji"
        layers += [config_of(name), {"dataset": {"source": name}}]
    if config is not None:
        layers.append(read_config(config))
    return resolve(merge(*layers, *overrides))


def default_folder(dataset: LabelledImages) -> Path:
    """Return reports/<data set>-<label>."""
    label = "".join(c if c.isalnum() or c in "-_" else "-" for c in dataset.label)
    return Path("reports") / f"{dataset.name}-{label}"


def open_run(settings: Settings, out: Path | None = None, fresh: bool = False, progress: Progress = SILENT) -> Run:
    """Load the data set, open the run directory and check that the two belong together.

    Raises
    ------
    DatasetError, OutputError, SettingsError
    """
    dataset = load_dataset(settings.dataset)
    directory = RunDirectory(out or default_folder(dataset))
    if fresh:
        with directory.lock():
            directory.clear()
    before = directory.record.get("dataset")
    if before and (before["name"], before["label"]) != (dataset.name, dataset.label):
        raise OutputError(
            f"{directory.folder} holds a run of {before['name']} by {before['label']}, not of {dataset.name} by "
            f"{dataset.label}; choose another --out, or --fresh to replace it"
        )
    run = Run(settings, dataset, directory, progress)
    directory.record |= {
        "settings": settings.model_dump(),
        "seed": settings.seed,
        "dataset": {
            "name": dataset.name,
            "label": dataset.label,
            "labels": {label: dataset.number_of(label) for label in dataset.labels},
            "n_images": len(dataset),
            "fingerprint": dataset.fingerprint,
            "unreadable": [[u.file_name, u.reason] for u in dataset.unreadable],
            "duplicates": [list(d.file_names) for d in dataset.duplicates],
            "warnings": list(dataset.warnings),
        },
    }
    for warning in dataset.warnings:
        progress.say(f"warning: {warning}")
    return run


# -------------------------------------------------------------------------------------------------- stages


def ensure_latents(run: Run) -> None:
    """Encode every image that has no latent yet."""
    key = key_of([run.latents.folder.name, run.dataset.fingerprint])
    if run.directory.is_done("latents", key) and all(i.image_id in run.latents for i in run.dataset):
        return
    with run.directory.stage("latents", key) as entry:
        encoder = Denoiser(run.base, run.device, run.dtype)
        entry["encoded"] = run.latents.encode(run.dataset, encoder, run.progress)
        entry["images"] = len(run.dataset)


def ensure_model(run: Run) -> None:
    """Fine-tune, unless that was done under the same key or is switched off."""
    settings = run.settings.finetune
    run.directory.record["model"] = {
        "name": run.base.name, "revision": run.base.revision, "reason": run.base.reason,
        "weights_hash": run.base_hash, "fine_tuned": settings.enabled,
        "device": str(run.device), "dtype": str(run.dtype).removeprefix("torch."),
    }  # fmt: skip
    if not settings.enabled or run.directory.is_done("finetune", run.finetune_key):
        run.directory.save()
        return
    held_out = {i.image_id for i in run.dataset if is_held_out(i.group, settings.held_out)}
    data = TrainingSet(
        training=[i.image_id for i in run.dataset if i.image_id not in held_out],
        held_out=sorted(held_out),
        labels_of=run.labels_of,
        labels=run.dataset.labels,
        prompts=run.prompts,
    )
    if not data.training:
        raise InputError("no image is left to fine-tune on: lower finetune.held_out, or use groups that are smaller")
    state = run.directory.path("training", run.finetune_key)
    with run.directory.stage("finetune", run.finetune_key) as entry:
        checkpoint = load_checkpoint(run.settings.model)
        trainer = Finetuner(
            checkpoint, data, run.latents, settings, run.settings.score, state, run.device, run.dtype,
            run.settings.seed,
        )  # fmt: skip
        result = trainer.run(run.progress)
        entry |= {
            "steps": result.steps, "best_step": result.best_step, "images": result.images,
            "held_out": len(held_out), "method": "lora" if trainer.lora else "full",
            "text_encoder": trainer.train_text, "history": result.history, "warnings": list(result.warnings),
        }  # fmt: skip
        card = model_card(run.dataset, run.base.name, run.settings, entry)
        trainer.save(run.directory.path("model"), card)
    for warning in result.warnings:
        run.progress.say(f"warning: {warning}")


def scorer(run: Run, purpose: str, draws: int) -> Scorer:
    """Return the scorer of one pass."""
    denoiser = run.denoiser
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
    )


def ensure_scores(run: Run) -> None:
    """Score every image under its own labels, then the winners anew with more draws and against other labels."""
    folder = run.score_folder(FIRST_PASS, run.first_draws)
    jobs = [Job(image_id, labels) for image_id, labels in sorted(run.labels_of.items())]
    _score_pass(run, "score", FIRST_PASS, run.first_draws, folder, jobs)
    write_table(run.directory.path("images.parquet"), _images_table(run, ScoreReader(folder)))
    if run.settings.score.protocol == "adaptive":
        candidates = _candidates(run)
        wanted: dict[str, set[str]] = {}
        for label, patches in candidates.items():
            for patch in patches:
                wanted.setdefault(patch.image_id, set()).add(label)
        jobs = [Job(i, _with_contrast(run, i, sorted(own))) for i, own in sorted(wanted.items())]
        draws = run.settings.score.refine_draws
        _score_pass(run, "refine", REFINEMENT, draws, run.score_folder(REFINEMENT, draws), jobs)


def _score_pass(run: Run, stage: str, purpose: str, draws: int, folder: Path, jobs: Sequence[Job]) -> None:
    key = key_of([folder.name, [[j.image_id, *j.labels] for j in jobs]])
    if run.directory.is_done(stage, key):
        return
    with run.directory.stage(stage, key) as entry:
        run.denoiser.evaluations = 0
        try:
            entry["images"] = len(jobs)
            entry["draws"] = draws
            scorer(run, purpose, draws)(jobs, folder, run.progress)
        finally:
            entry["unet_evaluations"] = entry.get("unet_evaluations", 0) + run.denoiser.evaluations


def _with_contrast(run: Run, image_id: str, own: Sequence[str]) -> tuple[str, ...]:
    """The labels a winner is scored for: its own, and up to `score.contrast` that it does not carry."""
    others = [label for label in run.dataset.labels if label not in run.labels_of[image_id]]
    if len(others) > run.settings.score.contrast:
        others = sorted(others, key=lambda label: unit_hash(f"{image_id}|{label}", "contrast"))
        others = others[: run.settings.score.contrast]
    return (*own, *sorted(others))


def _selection(run: Run, factor: float = 1.0) -> PatchSelection:
    mine = run.settings.mine
    return PatchSelection(
        side=patch_side(run.latents.size, mine.patch, run.base.factor),
        factor=run.base.factor,
        per_image=mine.per_image,
        per_label=round(mine.per_label * factor),
        share=min(1.0, mine.share * factor),
    )


def _sizes(run: Run) -> dict[str, tuple[int, int]]:
    return {image.image_id: (image.width, image.height) for image in run.dataset}


def _first_reader(run: Run) -> ScoreReader:
    return ScoreReader(run.score_folder(FIRST_PASS, run.first_draws))


def _current(run: Run, reader: ScoreReader) -> Iterable[Any]:
    """Maps of images and labels that the data set holds now; a folder may also hold others, scored before."""
    return (m for m in reader if m.label in run.labels_of.get(m.image_id, ()))


def _candidates(run: Run) -> dict[str, list[Patch]]:
    """Patches of the first pass that may be among the best, `refine_factor` times as many as are kept."""
    selection = _selection(run, run.settings.score.refine_factor)
    sizes = _sizes(run)
    return top_patches(_current(run, _first_reader(run)), selection, sizes.__getitem__)


def _images_table(run: Run, reader: ScoreReader) -> pa.Table:
    images = {image.image_id: image for image in run.dataset}
    share = run.settings.finetune.held_out
    rows = []
    for entry in reader.index.to_pylist():
        image = images.get(entry["image_id"])
        if image is None or entry["label"] not in image.labels:
            continue
        rows.append(
            {
                "image_id": image.image_id, "file_name": image.file_name, "label": entry["label"],
                "width": image.width, "height": image.height, "group": image.group,
                "held_out": is_held_out(image.group, share), "typicality": entry["mean"],
                "standard_error": entry["standard_error"], "n_draws": entry["draws"],
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)


def ensure_elements(run: Run) -> None:
    """Extract patches, their features and their clusters, and write the tables."""
    settings, directory = run.settings, run.directory
    passes = [run.score_folder(FIRST_PASS, run.first_draws).name]
    adaptive = settings.score.protocol == "adaptive"
    if adaptive:
        passes.append(run.score_folder(REFINEMENT, settings.score.refine_draws).name)
    key = key_of(
        [passes, settings.mine.model_dump(), settings.score.model_dump(), run.dataset.fingerprint, settings.seed]
    )
    if directory.is_done("mine", key):
        return
    with directory.stage("mine", key) as entry:
        run.denoiser.evaluations = 0
        sizes = _sizes(run)
        if adaptive:
            reader = ScoreReader(directory.path("scores", passes[1]))
            kept = _selection(run)
            candidates = _candidates(run)
            patches = rescored(candidates, reader)
            patches = with_specificity(patches, reader, run.labels_of.__getitem__)
            totals = {label: run.dataset.number_of(label) * settings.mine.per_image for label in patches}
            patches = {label: found[: kept.kept(totals[label])] for label, found in patches.items()}
        else:
            patches = top_patches(_current(run, _first_reader(run)), _selection(run), sizes.__getitem__)
        ordered = in_table_order(patches)
        features = _features(run, ordered)
        groups = {image.image_id: image.group for image in run.dataset}
        names = {image.image_id: image.file_name for image in run.dataset}
        mine = settings.mine
        clustering = cluster_elements(
            ordered, features, groups.__getitem__, clusters=mine.clusters, merge_similarity=mine.merge_similarity,
            min_images=mine.min_images, seed=settings.seed,
        )  # fmt: skip
        write_table(directory.path("elements.parquet"), elements_table(ordered, clustering, names.__getitem__))
        write_table(directory.path("clusters.parquet"), clusters_table(clustering.clusters))
        write_whole(directory.path("features.npy"), lambda p: _save_array(p, features))
        index = element_index(features)
        write_whole(directory.path("index.faiss"), lambda p: faiss.write_index(index, str(p)))
        entry |= {
            "elements": len(ordered), "clusters": len(clustering.clusters),
            "unet_evaluations": run.denoiser.evaluations,
        }  # fmt: skip


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)


def _features(run: Run, patches: Sequence[Patch]) -> np.ndarray:
    """Features of all patches in order; one pass an image and label serves all its patches."""
    if not patches:
        raise InputError("no patch was found: every label needs at least one scored image")
    mine, denoiser, labels = run.settings.mine, run.denoiser, run.dataset.labels
    states = dict(zip(labels, denoiser.encode_prompts(run.prompts.of_all(labels))[1:], strict=True))
    extractor = FeatureExtractor(
        denoiser, states.__getitem__, mine.noises, mine.timestep, mine.up_block, run.settings.seed
    )
    return extractor(patches, run.latents.get, run.progress)


def ensure_report(run: Run) -> Path:
    """Render the report from what is on disk."""
    directory, settings, dataset = run.directory, run.settings, run.dataset
    images = {image.image_id: image for image in dataset}
    with directory.stage("report", key_of([settings.report.model_dump()])):
        first = _first_reader(run)
        refined = (
            ScoreReader(run.score_folder(REFINEMENT, settings.score.refine_draws))
            if settings.score.protocol == "adaptive"
            else first
        )

        def open_map(image_id: str, label: str) -> tuple[np.ndarray, tuple[float, float, float, float]]:
            reader = refined if (image_id, label) in refined else first
            score = reader.get(image_id, label)
            v = score.view
            return score.typicality, (v.left, v.top, v.left + v.width * v.scale_x, v.top + v.height * v.scale_y)

        history = directory.record["stages"].get("finetune", {}).get("history", [])
        return write_report(
            ReportInput(
                title=settings.report.title or f"What is typical of each {dataset.label} in {dataset.name}",
                dataset_name=dataset.name,
                label_name=dataset.label,
                labels=dataset.labels,
                ordered=dataset.ordered,
                n_images={label: dataset.number_of(label) for label in dataset.labels},
                elements=pq.read_table(directory.path("elements.parquet")),
                clusters=pq.read_table(directory.path("clusters.parquet")),
                images=pq.read_table(directory.path("images.parquet")),
                open_image=lambda image_id: dataset.open(images[image_id]),
                open_map=open_map,
                facts=directory.record,
                warnings=run.warnings(),
                unreadable=tuple((u.file_name, u.reason) for u in dataset.unreadable),
                duplicates=tuple(d.file_names for d in dataset.duplicates),
                training=history,
                settings=settings.report,
            ),
            directory.folder,
        )


# ------------------------------------------------------------------------------------------ public functions


def finetune(settings: Settings, out: Path | None = None, fresh: bool = False, progress: Progress = SILENT) -> Path:
    """Fine-tune the model on a labelled data set and return the folder of the model.

    Raises
    ------
    InputError : with one message that says what to change.
    InterruptedRun : after Ctrl-C; the same call continues.
    """
    with _working(settings, out, fresh, progress) as run:
        ensure_latents(run)
        ensure_model(run)
        return run.directory.path("model") if settings.finetune.enabled else Path(run.base.name)


def score(settings: Settings, out: Path | None = None, fresh: bool = False, progress: Progress = SILENT) -> Path:
    """Score every image, fine-tuning first where that is missing, and return the folder of the shards."""
    with _working(settings, out, fresh, progress) as run:
        ensure_latents(run)
        ensure_model(run)
        ensure_scores(run)
        return run.directory.path("scores")


def mine(settings: Settings, out: Path | None = None, fresh: bool = False, progress: Progress = SILENT) -> Result:
    """Do the whole job: fine-tune, score, extract, cluster, report.

    Parameters
    ----------
    settings : from `resolve_settings`
    out : run directory; reports/<data set>-<label> by default
    fresh : start anew instead of reusing what is there
    """
    with _working(settings, out, fresh, progress) as run:
        ensure_latents(run)
        ensure_model(run)
        ensure_scores(run)
        ensure_elements(run)
        report_path = ensure_report(run)
        return result_of(run, report_path)


def report(settings: Settings, out: Path | None = None, progress: Progress = SILENT) -> Result:
    """Render the report of a mined run again, for instance with other report settings.

    Raises
    ------
    OutputError : when the run has not been mined.
    """
    with _working(settings, out, False, progress) as run:
        if run.directory.record["stages"].get("mine", {}).get("state") != "done":
            raise OutputError(f"{run.directory.folder} has not been mined yet; run `typicality mine` first")
        return result_of(run, ensure_report(run))


def result_of(run: Run, report_path: Path) -> Result:
    read = {n: pq.read_table(run.directory.path(f"{n}.parquet")) for n in ("elements", "clusters", "images")}
    return Result(folder=run.directory.folder, report=report_path, record=run.directory.record, **read)


@contextmanager
def _working(settings: Settings, out: Path | None, fresh: bool, progress: Progress) -> Iterator[Run]:
    """Open a run and hold its lock; Ctrl-C becomes `InterruptedRun`, with everything finished kept."""
    run = open_run(settings, out, fresh, progress)
    with run.directory.lock():
        run.directory.save()
        try:
            yield run
        except KeyboardInterrupt as stop:
            raise InterruptedRun(
                f"stopped; what is finished stays in {run.directory.folder}, and the same command continues"
            ) from stop


def plan_of(settings: Settings, dataset: LabelledImages) -> dict[str, Any]:
    """Return what a run would do, for `--dry-run`: nothing is loaded but the data set's records."""
    finetune = settings.finetune
    held_out = sum(is_held_out(i.group, finetune.held_out) for i in dataset)
    draws = settings.score.draws or {"adaptive": 4, "uniform": 16, "paper": 100}[settings.score.protocol]
    steps = f"{finetune.minutes} minutes" if finetune.minutes else (
        finetune.steps or default_steps(len(dataset) - held_out, finetune.batch_size)
    )  # fmt: skip
    return {
        "images": len(dataset),
        "labels": {label: dataset.number_of(label) for label in dataset.labels},
        "prompts": Prompts(settings.prompt.template, settings.prompt.null).of_all(dataset.labels)[:6],
        "fine-tuning": f"{steps} steps on {len(dataset) - held_out} images" if finetune.enabled else "none",
        "UNet evaluations of the first pass": sum((1 + len(i.labels)) * draws for i in dataset),
        "unreadable images": len(dataset.unreadable),
    }
