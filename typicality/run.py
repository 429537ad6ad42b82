"""A run that is being worked on: its settings, its data set, its directory, and everything that follows from them.

The stages themselves, and their order, are in pipeline.py.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from typicality.config import ModelSettings, Settings, key_of, merge, read_config, resolve, settings_key
from typicality.dataset import LabelledImages, load_dataset
from typicality.errors import OutputError, SettingsError
from typicality.model import recipe
from typicality.model.checkpoint import Checkpoint, knows_labels, load_checkpoint
from typicality.model.compiled import WORTH
from typicality.model.crossfit import SHARED, folds_of
from typicality.model.denoiser import Denoiser, cells_at_once, choose_device, choose_dtype, compiles, precision_of
from typicality.model.latents import LatentStore
from typicality.model.probe import chosen_engine, slow_precision
from typicality.model.training import parts_of
from typicality.paths import absolute, default_folder, shipped_settings
from typicality.processes import processes_here
from typicality.progress import SILENT, Progress
from typicality.prompts import Prompts
from typicality.scoring.noise import DrawPlan
from typicality.store import RunDirectory, read_record, write_table

NO_FOLD = -1
SEEN = ("training", "images.parquet")
"""Where in the run directory it is written which images fine-tuning knew."""


@dataclass
class Run:
    """A run that is being worked on: settings, data set and run directory, and what follows from them.

    Attributes
    ----------
    model_seed : seed under which the models that lie in the directory were fine-tuned, and images divided into folds;
        that of the settings by default
    """

    settings: Settings
    dataset: LabelledImages
    directory: RunDirectory
    progress: Progress = SILENT
    model_seed: int | None = None
    _denoisers: dict[int, Denoiser] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts(self.settings.prompt.template, self.settings.prompt.null)

    @cached_property
    def device(self) -> torch.device:
        return choose_device(self.settings.model.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision: as set, or as this run has had it, perhaps on another machine, or as the device has it."""
        chosen = choose_dtype(self.settings.model.dtype, self.device)
        before = self.directory.record.get("model", {}).get("dtype")
        if self.settings.model.dtype == "auto" and before is not None:
            if chosen != getattr(torch, before):
                self.progress.say(f"precision: {before}, as this run has had it; --dtype would set another")
            chosen = getattr(torch, before)
        if slow := slow_precision(chosen, self.device):
            self.progress.say(f"warning: {slow}")
        return chosen

    @property
    def precision(self) -> str:
        """The name under which run.json has `dtype`."""
        return precision_of(self.dtype)

    @cached_property
    def model_settings(self) -> ModelSettings:
        """Those of the model before fine-tuning; `auto` is what it was for this run before, whatever there is now."""
        model, before = self.settings.model, self.directory.record.get("model", {}).get("resolved")
        return model.model_copy(update={"name": before}) if model.name == "auto" and before else model

    @cached_property
    def _loaded(self) -> tuple[Checkpoint, str]:
        """The model before fine-tuning and its hash, taken before training or a cast can change the weights."""
        checkpoint = load_checkpoint(self.model_settings)
        if self.model_settings.name != self.settings.model.name:
            checkpoint.reason = self.directory.record["model"].get("reason", "as before")
        self.progress.say(f"model: {checkpoint.title} ({checkpoint.reason})")
        return checkpoint, checkpoint.weights_hash()

    @property
    def base(self) -> Checkpoint:
        """The model before fine-tuning, in float32 until a denoiser casts it."""
        return self._loaded[0]

    @property
    def base_hash(self) -> str:
        return self._loaded[1]

    def take_model(self, other: Run) -> None:
        """Use the model that another run has loaded, instead of loading it again."""
        self.__dict__["_loaded"] = other._loaded
        self._denoisers = other._denoisers

    @cached_property
    def latents(self) -> LatentStore:
        size = self.settings.model.size or self.base.size
        key = key_of([self.base_hash, size, self.base.step, self.settings.model.max_aspect, str(self.dtype)])
        folder = self.directory.path("latents", key)
        return LatentStore(folder, size, self.base.step, self.settings.model.max_aspect)

    @cached_property
    def finetune_key(self) -> str:
        """Key of the fine-tuning: of all that its models depend on, or that of the models which `finetune.keep` keeps.

        Raises
        ------
        SettingsError : when a finished model was to be kept and cannot be.
        """
        if not self.settings.finetune.enabled:
            return key_of(["not fine-tuned", self.base_hash])
        if self.images_since is not None:
            return str(self._finetuned["key"])
        return key_of([self.training_key, self.dataset.fingerprint, self.dataset.grouping])

    @property
    def training_key(self) -> str:
        """Key of what the fine-tuned models depend on apart from the images."""
        settings = self.settings
        leave_out = {"keep"} if self.folds > 1 else {"keep", "folds", "shared"}
        return key_of(
            [
                self.base_hash,
                self.latents.folder.name,
                [settings.dataset.group, *self.dataset.labels],
                settings.prompt.model_dump(),
                settings.finetune.naming(leave_out),
                recipe.VERSION,
                [settings.score.t_min, settings.score.t_max],
                self._model_seed,
                str(self.dtype),
            ]
        )

    @property
    def _finetuned(self) -> dict[str, Any]:
        """What run.json says of the fine-tuning; {} where it is not finished."""
        entry: dict[str, Any] = self.directory.record["stages"].get("finetune", {})
        return entry if entry.get("state") == "done" else {}

    @cached_property
    def images_since(self) -> int | None:
        """Number of images that were added after the kept models were fine-tuned; None where no models are kept.

        Raises
        ------
        SettingsError : when there are finished models that cannot be kept: other settings, labels or groups.
        """
        if not self.settings.finetune.keep or not self._finetuned:
            return None
        refused = f"finetune.keep: the model in {self.directory.folder} cannot be kept, for "
        remedy = "; leave out --keep-model (or set finetune.keep=false) to fine-tune anew"
        seen = _read_seen(self.directory.path(*SEEN))
        if self._finetuned.get("training_key") != self.training_key or seen is None:
            raise SettingsError(f"{refused}it was made with other settings, labels or another base{remedy}")
        changed = [i for i in self.dataset if i.image_id in seen and seen[i.image_id][:2] != (i.labels, i.group)]
        if changed:
            raise SettingsError(
                f"{refused}labels or groups of {len(changed)} images have changed, first {changed[0].file_name}{remedy}"
            )
        trained = {group for _, group, held_out in seen.values() if not held_out}
        if self.folds == 1 and any(i.group in trained for i in self.dataset if i.image_id in self.held_out):
            raise SettingsError(f"{refused}images that it was trained on would now count as held out{remedy}")
        return sum(image.image_id not in seen for image in self.dataset)

    def remember_seen(self) -> None:
        """Write which images the models know, so that it can be told later whether they may be kept."""
        single = self.folds == 1
        validation = {i.image_id for i in parts_of(self.dataset, self.settings.finetune)[1]} if single else set()
        rows = [
            {
                "image_id": image.image_id, "labels": list(image.labels), "group": image.group,
                "held_out": image.image_id in self.held_out, "validation": image.image_id in validation,
            }
            for image in self.dataset
        ]  # fmt: skip
        write_table(self.directory.path(*SEEN), pa.Table.from_pylist(rows))

    @property
    def trained_on(self) -> frozenset[str] | None:
        """Ids of images that the only model learned from, without those that chose its step; None where not known."""
        path = self.directory.path(*SEEN)
        if knows_labels(self.model_settings):
            return None
        if not self.settings.finetune.enabled:
            return frozenset()
        if self.folds > 1 or not path.is_file():
            return None
        rows = pq.read_table(path).to_pylist()
        return frozenset(r["image_id"] for r in rows if not r["held_out"] and not r.get("validation"))

    def forget_training_states(self) -> None:
        """Remove what finished or abandoned fine-tunings have left to be resumed."""
        for state in self.directory.path("training").glob("*/"):
            shutil.rmtree(state, ignore_errors=True)

    def remember_settings(self, stage: str) -> None:
        """Note under which settings, and when mined of which images, a stage stands: so it can be told if it holds."""
        entry = self.directory.record["stages"].get(stage, {})
        entry |= {"settings": settings_key(self.settings, stage), "dtype": self.precision}
        if stage == "mine":
            entry["fingerprint"] = self.dataset.fingerprint

    def begin(self) -> None:
        """Write the run's record, and where it starts anew, remove first what an earlier one has left.

        The directory's lock is held, and what cannot work has been refused: a finished run is not lost to a typing
        error, nor is a setting recorded that nothing can be done with.
        """
        if self.directory.fresh:
            self.directory.clear()
            self.__dict__.pop("latents", None)  # it has read what is gone
        self.directory.save()

    def check_images(self) -> None:
        """Raise OutputError where images that were mined are no longer in the data set; see `check_mined`, too."""
        path = self.directory.path("images.parquet")
        if not path.is_file():
            return
        rows = pq.read_table(path, columns=["image_id", "file_name"]).to_pylist()
        gone = {row["image_id"]: row["file_name"] for row in rows if row["image_id"] not in self.labels_of}
        if gone:
            raise OutputError(
                f"{len(gone)} images of {self.directory.folder} are no longer in {self.dataset.name}, first "
                f"{next(iter(gone.values()))}: put them back (or leave out the settings that leave them out), or run "
                "`typicality mine` again"
            )

    def check_mined(self) -> None:
        """Raise OutputError where images or labels are others than when the run was mined."""
        entry = self.directory.record["stages"].get("mine", {})
        if entry.get("fingerprint", self.dataset.fingerprint) != self.dataset.fingerprint:
            raise OutputError(
                f"images or labels of {self.dataset.name} have changed since {self.directory.folder} was mined; "
                f"`typicality mine {self.directory.folder}` brings it up to date"
            )

    def check_groups(self) -> None:
        """Raise SettingsError where images that the models of this run were fine-tuned on now count as held out.

        Groups say who is held out, and in which fold: where their names have changed in the data set, what is measured
        on "unseen" images would be measured on images that were learned by heart.
        """
        seen = _read_seen(self.directory.path(*SEEN)) if self.settings.finetune.enabled else None
        if seen is None:
            return
        known = [image for image in self.dataset if image.image_id in seen]
        moved = [i.file_name for i in known if seen[i.image_id][1:] != (i.group, i.image_id in self.held_out)]
        if moved:
            raise SettingsError(
                f"groups of {len(moved)} images have changed since {self.directory.folder} was fine-tuned, first "
                f"{moved[0]}: its model has seen images that would now count as unseen; run `typicality mine` again, "
                "or use the groups of before"
            )

    def check_done(self, stage: str, settings: Settings | None = None) -> None:
        """Raise OutputError unless a stage has been done, under the settings given or else those of this session."""
        entry = self.directory.record["stages"].get(stage, {})
        folder = self.directory.folder
        if entry.get("state") != "done":
            raise OutputError(f"{folder} has not been {DONE[stage]} yet; run `typicality {stage}` first")
        key = settings_key(settings or self.settings, stage)
        other_precision = settings is None and entry.get("dtype", self.precision) != self.precision
        if entry.get("settings", key) != key or other_precision:
            raise OutputError(
                f"{folder} was {DONE[stage]} under other settings than the present ones: leave out what this call "
                f"changes, or give it to `typicality {stage} {folder}`, which also finishes what a stopped call changed"
            )

    @property
    def weights_key(self) -> str:
        """Key of the weights that score: a hash of the model's files where it was fine-tuned."""
        if not self.settings.finetune.enabled:
            return self.base_hash
        return key_of([self.base_hash, self._finetuned.get("weights") or self.finetune_key])

    @property
    def _model_seed(self) -> int:
        return self.settings.seed if self.model_seed is None else self.model_seed

    @property
    def folds(self) -> int:
        """Number of models that score: one, or one a fold. A model that is not fine-tuned has seen no image."""
        return self.settings.finetune.folds if self.settings.finetune.enabled else 1

    @cached_property
    def _folds_of(self) -> dict[str, int]:
        return folds_of(self.dataset, self.folds, self._model_seed)

    def fold_of(self, image_id: str) -> int:
        """Return the fold that holds an image out: its model scores the image and has not seen its group.

        Raises
        ------
        DatasetError : when there are too few groups for so many folds.
        """
        return self._folds_of[image_id] if self.folds > 1 else 0

    def model_folder(self, fold: int = 0) -> Path:
        """The folder of the fine-tuned model, or of that of one fold."""
        if self.folds == 1:
            return self.directory.path("model")
        return self.directory.path("model", SHARED if fold == NO_FOLD else f"fold-{fold}")

    def denoiser_of(self, fold: int) -> Denoiser:
        """Return the model that scores the images of a fold, read back from the run directory.

        Small models (the bundled base) stay in memory; of larger ones only the one asked for last, so go fold by fold.
        """
        if fold not in self._denoisers:
            if not self.base.is_small:
                self._denoisers.clear()
            tuning = self.settings.finetune
            if tuning.enabled and (fold != NO_FOLD or tuning.shared):
                folder = self.model_folder(fold).resolve()  # a relative one might pass for an id of a hub
                checkpoint = load_checkpoint(ModelSettings(name=str(folder), offline=True))
            else:
                checkpoint = self.base
            self._denoisers[fold] = Denoiser(checkpoint, self.device, self.dtype, self.compiled_shapes)
        return self._denoisers[fold]

    @cached_property
    def compiled_shapes(self) -> frozenset[tuple[int, int]]:
        """Shapes of latents, in cells, for which the UNet is compiled: where the first pass saves more than that takes.

        It follows from data set, settings and `engine`, not from what is done, for predictions differ in the last bits.
        """
        model = self.settings.model
        if not compiles(model.engine, self.device, self.dtype, self.base):
            return frozenset()
        evaluations: Counter[tuple[int, int]] = Counter()
        for image in self.dataset:
            height, width = self.latents.shape_of(image)
            cells = (height // self.base.factor, width // self.base.factor)
            evaluations[cells] += self.first_draws * (1 + len(image.labels))
        least = 0 if model.engine == "openvino" else WORTH * self.folds
        shapes = frozenset(shape for shape, n in evaluations.items() if n >= least)
        return shapes if shapes and self.engine == "openvino" else frozenset()

    @cached_property
    def engine(self) -> str:
        """What is better for a long run, openvino or torch: as a probe finds, and then as the run remembers it.

        A probe may turn with the load of the machine when a run is continued, or differ between processes.
        """
        if self.settings.model.engine != "auto":
            return self.settings.model.engine
        remembered = self.directory.record.setdefault("engines", {})
        if (precision := str(self.dtype)) not in remembered:
            use = recipe.label_use_after(self.settings.finetune, self.base, self.prompts.null)
            remembered[precision] = chosen_engine(self.settings.model, self.device, self.dtype, self.base, use)
        return str(remembered[precision])

    @property
    def denoiser(self) -> Denoiser:
        """The only model, or that of fold 0 where there are folds: for what must come from one model that knows labels.

        Scores come from `denoiser_of`, features from `feature_denoiser`.
        """
        return self.denoiser_of(0)

    @property
    def feature_denoiser(self) -> Denoiser:
        """The model of all features, for features of two models could not be compared.

        With folds it is the one that they begin with, which was shown every image and no label: features of a model
        that has seen the labels of most images might tell them apart by what it memorised of them.
        """
        return self.denoiser_of(0) if self.folds == 1 else self.denoiser_of(NO_FOLD)

    @property
    def cross_fitted(self) -> bool:
        """Whether no image is scored by a model that was shown its label."""
        return is_cross_fitted(self.settings)

    @cached_property
    def labels_of(self) -> dict[str, tuple[str, ...]]:
        return {image.image_id: image.labels for image in self.dataset}

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Ids of the images that are scored by a model which has not seen their group.

        With folds, and without fine-tuning, these are all images; else those that fine-tuning keeps apart by
        `finetune.held_out`, and none where the base was itself fine-tuned on labelled images, perhaps on these.
        """
        if self.cross_fitted:
            return frozenset(image.image_id for image in self.dataset)
        if knows_labels(self.model_settings):
            return frozenset()
        return frozenset(i.image_id for i in self.dataset.held_out(self.settings.finetune.held_out)[1])

    @cached_property
    def batch_size(self) -> int:
        if self.settings.score.batch_size:
            return self.settings.score.batch_size
        shapes = {self.latents.shape_of(image) for image in self.dataset}
        cells = max(height * width for height, width in shapes) // self.base.factor**2
        return max(1, cells_at_once(self.device, self.dtype) // cells)

    def plan(self, draws: int) -> DrawPlan:
        score = self.settings.score
        if score.protocol == "paper":
            return DrawPlan(draws, score.t_min, score.t_max, antithetic=False, stratified=False)
        return DrawPlan(max(1, draws // 2), score.t_min, score.t_max)

    def label_scale_of(self, denoiser: Denoiser) -> float:
        """Return the label scale at which a model scores: its own, but for the published protocol, which has none."""
        return 1.0 if self.settings.score.protocol == "paper" else denoiser.checkpoint.label_use.scale

    @property
    def first_draws(self) -> int:
        return self.settings.score.draws or {"adaptive": 4, "uniform": 16, "paper": 100}[self.settings.score.protocol]

    def score_folder(self, purpose: str, draws: int) -> Path:
        """The folder of a pass; its name covers everything its maps depend on, but not which images are in it."""
        score = self.settings.score
        key = key_of(
            [
                self.weights_key, self.latents.folder.name, self.settings.prompt.model_dump(), purpose, draws,
                score.protocol == "paper", score.t_min, score.t_max, self.settings.seed, str(self.dtype), "even",
                *([] if score.tilt is None else [score.tilt]),
            ]
        )  # fmt: skip
        return self.directory.path("scores", f"{purpose.replace(' ', '-')}-{key}")

    def warnings(self) -> tuple[str, ...]:
        """What a reader of the results must know: of the data, and of the training."""
        found = list(self.dataset.warnings)
        if self.settings.finetune.enabled:
            found += self.directory.record["stages"].get("finetune", {}).get("warnings", [])
        if added := self.directory.record.get("model", {}).get("images_since"):
            found.append(
                f"The model was kept (--keep-model): {added} of {len(self.dataset)} images were added after it had "
                "been fine-tuned."
            )
        if knows_labels(self.model_settings):
            found.append(
                "Scores are in-sample: the model was fine-tuned on labelled images before, perhaps on these, so what "
                "is typical of an image may in part be memorised."
            )
        if self.settings.score.protocol != "adaptive":
            found.append(
                "Scores of elements are those that they were selected by: too high on average, and their intervals too "
                "narrow. The adaptive protocol draws anew for the selected."
            )
        if not knows_labels(self.model_settings) and self.settings.finetune.enabled and self.folds == 1:
            found.append(
                "Scores are in-sample: most images were also used to fine-tune the model (the published protocol), "
                "so what is typical of an image may in part be memorised."
            )
        return tuple(found)


def is_cross_fitted(settings: Settings) -> bool:
    """Return whether no image is scored by a model that was shown its label."""
    tuning = settings.finetune
    return (tuning.folds > 1 or not tuning.enabled) and not knows_labels(settings.model)


def _read_seen(path: Path) -> dict[str, tuple[tuple[str, ...], str, bool]] | None:
    """image_id -> (labels, group, whether it was held out), as fine-tuning has left it; None where nothing was."""
    if not path.is_file():
        return None
    rows = pq.read_table(path).to_pylist()
    return {row["image_id"]: (tuple(row["labels"]), row["group"], row["held_out"]) for row in rows}


def run_record(source: str) -> dict[str, Any] | None:
    """Return run.json when `source` is a run directory, else None.

    Raises
    ------
    OutputError : when it cannot be read, or is of another version.
    """
    record = read_record(Path(source))
    return record if record is not None and "settings" in record else None


def existing_record(folder: str | Path) -> dict[str, Any]:
    """Return run.json of a run directory.

    Raises
    ------
    OutputError : when `folder` is no run directory.
    """
    if (record := run_record(str(folder))) is None:
        raise OutputError(
            f"{folder} is no run directory: it has no run.json that a run wrote; run `typicality mine` first"
        )
    return record


def resolve_settings(
    source: str | None = None, config: Path | None = None, overrides: Iterable[Mapping[str, Any]] = (),
    usual: Mapping[str, Any] | None = None,
) -> Settings:  # fmt: skip
    """Resolve all settings: the run's own when `source` is a run directory, else the data set's, then the user's.

    `usual` is what a command takes instead of the former, unless the user says otherwise. Folders and files are
    recorded by their absolute paths, so that a run can be used from any directory.
    """
    overrides = list(overrides)
    file = [usual or {}] if config is None else [usual or {}, read_config(config)]
    recorded: Mapping[str, Any] = {}
    if source is not None and (record := run_record(source)) is not None:
        recorded = record["settings"]
        layers: list[Mapping[str, Any]] = [recorded, *file]
    else:
        named = merge({"dataset": {"source": "emoji"}}, *file, *overrides)["dataset"]
        name = source if source is not None else str(named["source"]) if isinstance(named, Mapping) else "emoji"
        layers = [shipped_settings(name), *file, {"dataset": {"source": name}}]
    merged = merge(*layers, *overrides)
    for section, setting in (("dataset", "source"), ("dataset", "boxes"), ("model", "name"), ("model", "lora")):
        part = merged.get(section)
        value = part.get(setting) if isinstance(part, dict) else None
        if isinstance(value, str) and value != recorded.get(section, {}).get(setting):
            merged[section][setting] = absolute(value, section, setting)
    return resolve(merged)


def open_run(
    settings: Settings,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    dataset: LabelledImages | None = None,
) -> Run:
    """Load the data set, open the run directory and check that the two belong together.

    Nothing is written or removed before `Run.begin`. `dataset` takes the place of the one that the settings name:
    benchmarks change its labels or images.

    Raises
    ------
    DatasetError, OutputError, SettingsError
    """
    dataset = load_dataset(settings.dataset) if dataset is None else dataset
    processes = processes_here()
    directory = RunDirectory(out or default_folder(dataset), processes, fresh and processes.main)
    before = directory.record.get("dataset")
    if before and (before["name"], before["label"]) != (dataset.name, dataset.label):
        raise OutputError(
            f"{directory.folder} holds a run of {before['name']} by {before['label']}, not of {dataset.name} by "
            f"{dataset.label}; choose another --out, or --fresh to replace it"
        )
    if not directory.fresh:
        _same_images(directory, dataset)
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


def _same_images(directory: RunDirectory, dataset: LabelledImages) -> None:
    """Refuse a data set of which a run knows no single image, mined or fine-tuned: only its name is the same."""
    path = next((p for p in (directory.path("images.parquet"), directory.path(*SEEN)) if p.is_file()), None)
    if path is None:
        return
    known = set(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
    if known and not any(image.image_id in known for image in dataset):
        raise OutputError(
            f"{directory.folder} holds a run of {len(known)} images none of which is in this data set, though it has "
            f"the name {dataset.name}, too; choose another --out, or --fresh to replace it"
        )


def _same_split(folder: Path, recorded: Settings, wanted: Settings) -> None:
    """Refuse settings under which it would be misstated which images the models of a finished run have seen."""
    pairs = [("dataset.group", recorded.dataset.group, wanted.dataset.group)]
    pairs += [(f"finetune.{n}", v, getattr(wanted.finetune, n)) for n, v in recorded.finetune]
    for name, was, now in pairs:
        if was != now:
            raise SettingsError(
                f"{folder} was made with {name}={was}, which cannot be {now} afterwards: it decides which images its "
                "models have seen; leave the setting out, or run `typicality mine` with it and another --out"
            )


DONE = {"finetune": "fine-tuned", "score": "scored", "mine": "mined"}


def open_finished(folder: Path, stage: str, settings: Settings | None = None, progress: Progress = SILENT) -> Run:
    """Open a run on which some stages have been done, to read it or to add to it.

    Parameters
    ----------
    stage : that must be done: finetune (with latents), score or mine
    settings : with what is to differ in this session, as another device; the run's own by default. Another seed is
        that of noise alone: folds stay as they were fine-tuned. What run.json says of the run does not change.

    Raises
    ------
    OutputError : when `folder` is no run, or has not got so far.
    SettingsError : when `settings` differ in what decides which model has seen which image.
    """
    existing_record(folder)
    before = RunDirectory(folder).record
    own: dict[str, Any] = {name: before[name] for name in ("settings", "seed", "dataset") if name in before}
    recorded = resolve_settings(str(folder))
    _same_split(folder, recorded, settings or recorded)
    run = open_run(settings or recorded, folder, progress=progress)
    run.model_seed = recorded.seed
    run.directory.record |= own
    if stage != "finetune" or run.settings.finetune.enabled:
        run.check_done(stage, recorded)
    run.check_images()
    run.check_groups()
    if missing := sum(image.image_id not in run.latents for image in run.dataset):
        raise OutputError(
            f"{folder} has no latents of {missing} of {len(run.dataset)} images: where the data set has grown, run "
            "`typicality mine` again; latents also belong to the run's own --model and --dtype"
        )
    if stage == "mine":
        run.check_mined()
    return run
