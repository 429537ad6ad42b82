"""From a data set and settings to a finished run: the only module that knows the order of the stages.

Each function does one stage, or all of them, in a run directory; what is already there under the same key is
reused. The order is

    data set -> latents -> fine-tuned model -> score maps -> patches -> features -> clusters -> report
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from torch import Tensor

from typicality.checks import check_maps, check_model, check_processes, check_settings
from typicality.config import Settings, key_of
from typicality.dataset.split import unit_hash
from typicality.errors import InputError, InterruptedRun, OutputError
from typicality.mining.clusters import cluster_elements
from typicality.mining.features import FeatureExtractor, element_index, write_index
from typicality.mining.patches import PatchSelection, patch_side, rescored, top_patches, with_specificity
from typicality.mining.selection import Selected, moderated, select
from typicality.mining.significance import Candidates, group_sizes
from typicality.mining.tables import clusters_table, elements_table, images_table, in_table_order
from typicality.model.calibration import CALIBRATION
from typicality.model.card import model_card
from typicality.model.checkpoint import is_model, load_checkpoint
from typicality.model.crossfit import CrossFit
from typicality.model.denoiser import Denoiser
from typicality.model.finetune import Finetuner
from typicality.model.recipe import sharing_of
from typicality.model.training import TrainingSet, parts_of
from typicality.passes import score_pass
from typicality.plan import controls_of, first_jobs, warnings_of
from typicality.processes import processes_here
from typicality.progress import SILENT, Progress
from typicality.records import Patch, ScoreMap
from typicality.report.render import write_report
from typicality.report.view import ReportInput
from typicality.run import NO_FOLD, Run, open_run
from typicality.scoring.effort import Effort, effort_of
from typicality.scoring.scorer import Job
from typicality.scoring.shards import ScoreReader
from typicality.store import hash_of_files, is_full_disk, write_array, write_table

logger = logging.getLogger(__name__)

FIRST_PASS, FURTHER, REFINEMENT = "first pass", "further", "refinement"
TABLES = ("elements.parquet", "clusters.parquet", "features.npy", "index.faiss")


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


# -------------------------------------------------------------------------------------------------- stages


def once(run: Run, stage: Callable[[Run], Any]) -> None:
    """Do a stage in the main process, while the others wait for it and read what it has recorded."""
    if run.directory.processes.main:
        stage(run)
    run.directory.processes.wait()
    if not run.directory.processes.main:
        run.directory.reload()


def ensure_latents(run: Run) -> None:
    """Encode every image that has no latent yet, and its mirror image where fine-tuning takes it."""
    tuning = run.settings.finetune
    stores = [run.latents, run.latents.mirrored] if tuning.enabled and tuning.flip else [run.latents]
    key = key_of([run.latents.folder.name, run.dataset.fingerprint])
    if run.directory.is_done("latents", key) and all(i.image_id in store for store in stores for i in run.dataset):
        return
    with run.directory.stage("latents", key) as entry:
        encoder = Denoiser(run.base, run.device, run.dtype)
        entry["encoded"] = sum(
            store.encode(run.dataset, encoder, run.progress, processes=run.directory.processes) for store in stores
        )
        entry["images"] = len(run.dataset)


def ensure_model(run: Run) -> None:
    """Fine-tune, unless that was done under the same key and the models are still there, or it is switched off."""
    settings = run.settings.finetune
    run.directory.record["model"] = {
        "name": run.base.title, "resolved": run.base.name, "revision": run.base.revision, "reason": run.base.reason,
        "weights_hash": run.base_hash, "fine_tuned": settings.enabled,
        "device": str(run.device), "dtype": run.precision,
        "engine": "openvino" if run.compiled_shapes else "torch",
    }  # fmt: skip
    if not settings.enabled or (run.directory.is_done("finetune", run.finetune_key) and has_models(run)):
        if settings.enabled:
            run.remember_settings("finetune")
            run.forget_training_states()
        if settings.enabled and run.images_since:
            run.directory.record["model"]["images_since"] = run.images_since
            run.progress.say(f"the model is kept; {run.images_since} images were added since it was fine-tuned")
        run.directory.save()
        return
    _announce(run)
    if run.folds > 1:
        _ensure_folds(run)
    else:
        _ensure_single(run)
    run.forget_training_states()


def has_models(run: Run) -> bool:
    """Return whether all models that fine-tuning makes are in the run directory; somebody may have removed some."""
    shared = [NO_FOLD] if run.folds > 1 and run.settings.finetune.shared else []
    return all(is_model(run.model_folder(fold)) for fold in (*shared, *range(run.folds)))


def _check_kept(run: Run) -> None:
    """Raise OutputError where a model is to be kept and is no longer there."""
    if run.settings.finetune.enabled and run.images_since is not None and not has_models(run):
        raise OutputError(
            f"{run.directory.path('model')} no longer holds the model that finetune.keep is to keep; put it back, or "
            "leave out --keep-model (or set finetune.keep=false) to fine-tune anew"
        )


def _ensure_single(run: Run) -> None:
    """Fine-tune one model; its training state stays until the stage is recorded as done, and then goes."""
    settings = run.settings.finetune
    training, validation, _ = parts_of(run.dataset, settings)
    data = TrainingSet(
        training=[i.image_id for i in training],
        validation=sorted(i.image_id for i in validation),
        labels_of=run.labels_of,
        labels=run.dataset.labels,
        prompts=run.prompts,
    )
    if not data.training:
        raise InputError("no image is left to fine-tune on: lower finetune.held_out, or use groups that are smaller")
    state = run.directory.path("training", run.finetune_key)
    with run.directory.stage("finetune", run.finetune_key) as entry:
        checkpoint = load_checkpoint(run.model_settings)
        trainer = Finetuner(
            checkpoint, data, run.latents, settings, run.settings.score, state, run.device, run.dtype,
            run.settings.seed,
        )  # fmt: skip
        result = trainer.run(run.progress)
        entry |= trainer.entry(result, len(run.dataset), warnings_of(run.dataset, settings))
        card = model_card(run.dataset, run.base.title, run.settings, entry)
        trainer.save(run.directory.path("model"), card, keep_state=True)
        entry |= _finished(run)
    for warning in entry["warnings"]:
        run.progress.say(f"warning: {warning}")


def _announce(run: Run) -> None:
    """Say why a finished model is about to be replaced."""
    before = run.directory.record["stages"].get("finetune", {})
    if before.get("state") != "done":
        return
    if not has_models(run):
        run.progress.say("the model that was fine-tuned is no longer there: fine-tuning anew")
    elif before.get("training_key") == run.training_key:
        run.progress.say(
            "the data set has changed since the model was fine-tuned: fine-tuning anew (--keep-model would keep it)"
        )
    else:
        run.progress.say("settings or labels have changed since the model was fine-tuned: fine-tuning anew")


def _finished(run: Run) -> dict[str, Any]:
    """What is recorded of finished models: a hash of their weights, under which maps may be reused, and for `keep`."""
    run.remember_seen()
    run.remember_settings("finetune")
    weights = hash_of_files(run.directory.path("model"), "*.safetensors", CALIBRATION)
    return {"weights": weights, "training_key": run.training_key}


def _ensure_folds(run: Run) -> None:
    """Fine-tune a model a fold; a run that was stopped continues in the part it was in."""
    crossfit = CrossFit(
        load=lambda: load_checkpoint(run.model_settings),
        dataset=run.dataset,
        prompts=run.prompts,
        latents=run.latents,
        settings=run.settings,
        folds={image.image_id: run.fold_of(image.image_id) for image in run.dataset},
        models=run.directory.path("model"),
        states=run.directory.path("training", run.finetune_key),
        key=run.finetune_key,
        device=run.device,
        dtype=run.dtype,
    )
    with run.directory.stage("finetune", run.finetune_key) as entry:
        entry |= crossfit.run(run.progress)
        entry |= _finished(run)
    for warning in entry["warnings"]:
        run.progress.say(f"warning: {warning}")


def ensure_scores(run: Run) -> None:
    """Score every image under its own labels, then the winners anew with more draws and against other labels."""
    jobs = first_jobs(run.settings, run.dataset)
    first = score_pass(run, "score", FIRST_PASS, run.first_draws, jobs)
    if run.directory.processes.main:
        write_table(run.directory.path("images.parquet"), images_table(run.dataset, run.held_out, first.index))
    if run.settings.score.protocol == "adaptive":
        before = {name for name in run.directory.record["stages"] if name.startswith("select ")}
        chosen, asked = _selected(run, run.progress.say)
        for name in before - asked:  # rounds that an earlier precision needed
            del run.directory.record["stages"][name]
        key = key_of([first.folder.name, run.settings.score.naming(), run.settings.mine.model_dump()])
        with run.directory.stage("select", key) as entry:
            entry["rounds"] = [asdict(r) for r in chosen.rounds]
            entry["expected_overlap"] = round(chosen.rounds[-1].expected_overlap, 4)
        score_pass(run, "refine", REFINEMENT, _refine_draws(run), _refinement_jobs(run, chosen.patches))


def _refinement_jobs(run: Run, chosen: Mapping[str, Sequence[Patch]]) -> list[Job]:
    """The images of the chosen patches, under their labels and under others for contrast."""
    wanted: dict[str, set[str]] = {}
    for label, patches in chosen.items():
        for patch in patches:
            wanted.setdefault(patch.image_id, set()).add(label)
    return [Job(i, _with_contrast(run, i, sorted(own))) for i, own in sorted(wanted.items())]


def _with_contrast(run: Run, image_id: str, own: Sequence[str]) -> tuple[str, ...]:
    """The labels a winner is scored for: its own, and up to `score.contrast` that it does not carry."""
    others = [label for label in run.dataset.labels if label not in run.labels_of[image_id]]
    if len(others) > run.settings.score.contrast:
        others = sorted(others, key=lambda label: unit_hash(f"{image_id}|{label}", "contrast"))
        others = others[: run.settings.score.contrast]
    return (*own, *sorted(others))


def _selection(run: Run) -> PatchSelection:
    mine = run.settings.mine
    return PatchSelection(
        side=patch_side(run.latents.short_side, mine.patch, run.base.factor),
        factor=run.base.factor,
        per_image=mine.per_image,
        per_label=mine.per_label,
        share=mine.share,
    )


def _sizes(run: Run) -> dict[str, tuple[int, int]]:
    return {image.image_id: (image.width, image.height) for image in run.dataset}


def _first_reader(run: Run) -> ScoreReader:
    return ScoreReader(run.score_folder(FIRST_PASS, run.first_draws))


def _effort(run: Run) -> Effort:
    return effort_of(run.settings.score, run.first_draws, sharing_of(run.settings.finetune, run.base))


def _refine_draws(run: Run) -> int:
    return _effort(run).refine


@dataclass(frozen=True)
class _Current:
    """Maps of images and labels that the data set holds now; a folder may also hold others, scored before."""

    run: Run
    reader: ScoreReader

    def __iter__(self) -> Iterator[ScoreMap]:
        return (m for m in self.reader if m.label in self.run.labels_of.get(m.image_id, ()))

    def get(self, image_id: str, label: str) -> ScoreMap:
        return self.reader.get(image_id, label)


def first_pass(run: Run) -> _Current:
    """The maps of the first pass: every image under its own labels."""
    return _Current(run, _first_reader(run))


def _selected(run: Run, say: Callable[[str], None] = lambda _: None) -> tuple[Selected, set[str]]:
    """Choose the patches of every label, scoring further what is undecided: nothing new, or to `say`, the second time.

    Returns the choice, and the names under which run.json has its passes.

    Winners are chosen here, by selection scores, and never by the fresh scores that they are given afterwards:
    keeping the best of the fresh ones would inflate those again.
    """
    asked: Counter[int] = Counter()
    names = set()

    def ask(level: int, draws: int, jobs: Sequence[Job]) -> ScoreReader:
        asked[level] += 1
        names.add(name := f"select {level}.{asked[level]}")
        return score_pass(run, name, f"{FURTHER} {level}", draws, jobs)

    chosen = select(
        first_pass(run), ask, _selection(run), _effort(run), run.first_draws,
        _sizes(run).__getitem__, say,
    )  # fmt: skip
    return chosen, names


def ensure_elements(run: Run) -> None:
    """Extract patches, their features and their clusters, and write the tables."""
    settings, directory = run.settings, run.directory
    passes = [run.score_folder(FIRST_PASS, run.first_draws).name]
    adaptive = settings.score.protocol == "adaptive"
    if adaptive:
        passes.append(run.score_folder(REFINEMENT, _refine_draws(run)).name)
    parts: list[Any] = [
        passes, settings.mine.model_dump(), settings.score.naming(), run.dataset.fingerprint,
        sorted((i.image_id, i.file_name) for i in run.dataset), run.dataset.grouping, run.cross_fitted, settings.seed,
    ]  # fmt: skip
    controls = controls_of(settings, run.dataset)
    key = key_of([*parts, controls] if any(controls.values()) else parts)
    if directory.is_done("mine", key) and all(directory.path(name).is_file() for name in TABLES):
        run.remember_settings("mine")
        return
    with directory.stage("mine", key) as entry:
        run.feature_denoiser.evaluations = 0
        sizes = _sizes(run)
        if adaptive:
            reader, chosen = ScoreReader(directory.path("scores", passes[1])), _selected(run)[0].patches
            asked = {(job.image_id, label) for job in _refinement_jobs(run, chosen) for label in job.labels}
            now = (m for m in reader if (m.image_id, m.label) in asked)  # the folder may hold others, of earlier calls
            patches = moderated(rescored(chosen, reader), reader)
            patches = with_specificity(patches, now, run.labels_of.__getitem__)
        else:
            patches = top_patches(first_pass(run), _selection(run), sizes.__getitem__)
        ordered = in_table_order(patches)
        features = _features(run, ordered)
        groups = {image.image_id: image.group for image in run.dataset}
        names = {image.image_id: image.file_name for image in run.dataset}
        mine = settings.mine
        clustering = cluster_elements(
            ordered, features, groups.__getitem__, clusters=mine.clusters, merge_similarity=mine.merge_similarity,
            min_images=mine.min_images, seed=settings.seed, candidates=_test_candidates(run, patches, controls),
        )  # fmt: skip
        write_table(directory.path("elements.parquet"), elements_table(ordered, clustering, names.__getitem__))
        write_table(directory.path("clusters.parquet"), clusters_table(clustering.clusters))
        write_array(directory.path("features.npy"), features)
        write_index(directory.path("index.faiss"), element_index(features))
        entry |= {
            "elements": len(ordered), "clusters": len(clustering.clusters),
            "unet_evaluations": run.feature_denoiser.evaluations,
        }  # fmt: skip
        run.remember_settings("mine")


def _test_candidates(
    run: Run, patches: Mapping[str, Sequence[Patch]], controls: Mapping[str, list[str]]
) -> Candidates | None:
    """The best patches of images with and without each label, from the first pass alone, which all have in common.

    As many as a label's elements would be if controls carried the label too; features of all of them.
    """
    labels_of = run.labels_of
    if not any(controls.values()):
        return None
    images = {label: [i for i, own in labels_of.items() if label in own] + found for label, found in controls.items()}
    known = {(label, image_id) for label, found in images.items() for image_id in found}
    selection = _selection(run)
    most = max(len(found) / max(1, run.dataset.number_of(label)) for label, found in images.items())
    selection = replace(selection, per_label=ceil(selection.per_label * most))
    reader = _first_reader(run)
    best = top_patches((m for m in reader if (m.label, m.image_id) in known), selection, _sizes(run).__getitem__)
    chosen = {
        label: found[: round(len(patches[label]) * len(images[label]) / run.dataset.number_of(label))]
        for label, found in best.items()
        if label in patches
    }
    ordered = in_table_order(chosen)
    sizes = group_sizes(run.dataset)
    return Candidates(ordered, _features(run, ordered), images, labels_of.__getitem__, sizes, run.fold_of)


def feature_extractor(
    run: Run, denoiser: Denoiser, state_of: Callable[[str], Tensor], noises: int | None = None
) -> FeatureExtractor:
    """Return what reads features as the run's settings say (but for `noises`), in batches that fit the device."""
    mine, seed = run.settings.mine, run.settings.seed
    noises = mine.noises if noises is None else noises
    return FeatureExtractor(denoiser, state_of, noises, mine.timestep, mine.up_block, seed, run.batch_size)


def _features(run: Run, patches: Sequence[Patch]) -> np.ndarray:
    """Features of all patches in order; one pass an image and label serves all its patches.

    They all come from one model, `run.feature_denoiser`: features of two models could not be compared.
    """
    if not patches:
        raise InputError("no patch was found: every label needs at least one scored image")
    denoiser, labels = run.feature_denoiser, run.dataset.labels
    states = dict(zip(labels, denoiser.encode_prompts(run.prompts.of_all(labels))[1:], strict=True))
    return feature_extractor(run, denoiser, states.__getitem__)(patches, run.latents.get, run.progress)


def ensure_report(run: Run) -> Path:
    """Render the report from what is on disk."""
    directory, settings, dataset = run.directory, run.settings, run.dataset
    images = {image.image_id: image for image in dataset}
    with directory.stage("report", key_of([settings.report.model_dump()])):
        first = _first_reader(run)
        adaptive = settings.score.protocol == "adaptive"
        refined = ScoreReader(run.score_folder(REFINEMENT, _refine_draws(run))) if adaptive else first
        elements = pq.read_table(directory.path("elements.parquet"))
        check_maps(refined, elements)

        def open_map(image_id: str, label: str) -> tuple[np.ndarray, tuple[float, float, float, float]]:
            reader = refined if (image_id, label) in refined else first
            score = reader.get(image_id, label)
            v = score.view
            return score.typicality, (v.left, v.top, v.left + v.width * v.scale_x, v.top + v.height * v.scale_y)

        stages = {name: entry for name, entry in directory.record["stages"].items() if _takes_part(name, settings)}
        return write_report(
            ReportInput(
                title=settings.report.title or f"What is typical of each {dataset.label} in {dataset.name}",
                dataset_name=dataset.name,
                label_name=dataset.label,
                labels=dataset.labels,
                ordered=dataset.ordered,
                n_images={label: dataset.number_of(label) for label in dataset.labels},
                n_distinct=len(dataset),
                elements=elements,
                clusters=pq.read_table(directory.path("clusters.parquet")),
                images=pq.read_table(directory.path("images.parquet")),
                open_image=lambda image_id: dataset.open(images[image_id]),
                open_map=open_map,
                facts=directory.record | {"stages": stages},
                warnings=run.warnings(),
                unreadable=tuple((u.file_name, u.reason) for u in dataset.unreadable),
                duplicates=tuple(d.file_names for d in dataset.duplicates),
                training=stages.get("finetune", {}).get("history", []),
                settings=settings.report,
                metadata={image.image_id: image.metadata for image in dataset},
                features=np.load(directory.path("features.npy"), allow_pickle=False),
                in_sample=not run.cross_fitted,
                trained_on=run.trained_on,
                folder=directory.folder,
            ),
            directory.folder,
        )


def _takes_part(stage: str, settings: Settings) -> bool:
    """Whether a report shows a stage: others are of the settings before, and the report's own is still running."""
    of_adaptive = stage.split()[0] in ("select", "refine")
    if stage == "report" or (stage == "finetune" and not settings.finetune.enabled):
        return False
    return not of_adaptive or settings.score.protocol == "adaptive"


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
        once(run, ensure_model)
        return run.directory.path("model") if settings.finetune.enabled else Path(run.base.name)


def score(settings: Settings, out: Path | None = None, fresh: bool = False, progress: Progress = SILENT) -> Path:
    """Score every image, fine-tuning first where that is missing, and return the folder of the shards."""
    with _working(settings, out, fresh, progress) as run:
        ensure_latents(run)
        once(run, ensure_model)
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
        once(run, ensure_model)
        ensure_scores(run)
        once(run, ensure_elements)
        once(run, ensure_report)
        return result_of(run, run.directory.path("index.html"))


def report(settings: Settings, out: Path | None = None, progress: Progress = SILENT) -> Result:
    """Render the report of a mined run again, for instance with other report settings.

    Raises
    ------
    OutputError : when the run has not been mined.
    """
    with _working(settings, out, False, progress, needs="mine") as run:
        once(run, ensure_report)
        return result_of(run, run.directory.path("index.html"))


def result_of(run: Run, report_path: Path) -> Result:
    read = {n: pq.read_table(run.directory.path(f"{n}.parquet")) for n in ("elements", "clusters", "images")}
    return Result(folder=run.directory.folder, report=report_path, record=run.directory.record, **read)


@contextmanager
def _working(
    settings: Settings, out: Path | None, fresh: bool, progress: Progress, needs: str | None = None
) -> Iterator[Run]:
    """Open a run and hold its lock; Ctrl-C becomes `InterruptedRun`, with everything finished kept.

    What cannot work is refused before anything is recorded or, with `fresh`, removed. A stage that it `needs` must have
    been done under these settings.
    Where there are several processes, the others open the run when the main one has, and all begin together.
    """
    processes = processes_here()
    check_processes(settings, processes)
    if not processes.main:
        processes.wait()
    run = open_run(settings, out, fresh, progress if processes.main else SILENT)
    with run.directory.lock():
        if needs is not None:
            run.check_done(needs)
            run.check_images()
            run.check_mined()
        elif processes.main:
            check_settings(run)
            check_model(run)
            _check_kept(run)
        if processes.main:
            run.begin()
            processes.wait()
        processes.wait()
        try:
            yield run
        except KeyboardInterrupt as stop:
            raise InterruptedRun(
                f"stopped; what is finished stays in {run.directory.folder}, and the same command continues"
            ) from stop
        except (OSError, SafetensorError) as error:
            if not is_full_disk(error):
                raise
            raise OutputError(
                f"nothing more fits into {run.directory.folder} ({error}); what is finished is kept: make room, and "
                "the same command continues"
            ) from error
