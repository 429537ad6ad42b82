"""The public functions: every command as a Python call, with settings as keywords.

Each takes `source` (a built-in name, a folder, a table, hf://owner/name, or a run directory), the common options, the
other options of the command by their names (`steps=300`, `no_finetune=True`; `typicality.config.OPTIONS`), and any
setting as `section={"name": value}`; see `typicality.config.Settings` for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from typicality import pipeline
from typicality.applications.audit.auditing import Audit
from typicality.applications.audit.auditing import audit as audit_dataset
from typicality.applications.augment.options import AugmentOptions, Kind
from typicality.applications.augment.run import Augmentation
from typicality.applications.augment.run import augment as make_augmentation
from typicality.applications.diff import Diff
from typicality.applications.diff import diff as compare_runs
from typicality.applications.estimate import Estimate
from typicality.applications.estimate import estimate as estimate_cost
from typicality.applications.export import export as export_elements
from typicality.applications.impute.options import HideShape, ImputeOptions, Keep, Part, Region
from typicality.applications.impute.run import DEFAULT_OPTIONS as DEFAULT_IMPUTATION
from typicality.applications.impute.run import Imputation
from typicality.applications.impute.run import impute as impute_regions
from typicality.applications.localize import Localization
from typicality.applications.localize import localize as locate
from typicality.applications.localize.work import DRAWS, Options
from typicality.applications.translate.methods import METHODS, Method, TranslateOptions
from typicality.applications.translate.run import Translation
from typicality.applications.translate.run import translate as translate_pair
from typicality.applications.translate.run import translate_all_pairs as translate_pairs
from typicality.applications.trends.run import Trends
from typicality.applications.trends.run import trends as follow_trends
from typicality.config import OPTIONS, Settings, layer_of
from typicality.dataset import DatasetInfo, builtin_datasets
from typicality.errors import SettingsError, nearest
from typicality.evaluation.augment import AugmentBenchmark
from typicality.evaluation.augment import evaluate_augment as benchmark_augment
from typicality.evaluation.autoencoder import Reconstruction, reconstruct
from typicality.evaluation.classify import Classification
from typicality.evaluation.classify import classify as measure_accuracy
from typicality.evaluation.elements import ElementsBenchmark
from typicality.evaluation.elements import elements as benchmark_elements
from typicality.evaluation.estimator import EstimatorQuality
from typicality.evaluation.estimator import estimator as benchmark_estimator
from typicality.evaluation.labels import TWO_FOLDS, How, LabelBenchmark
from typicality.evaluation.labels import labels as benchmark_labels
from typicality.evaluation.localize import localize as benchmark_localize
from typicality.evaluation.planted import PlantedBenchmark
from typicality.evaluation.planted import planted as benchmark_planted
from typicality.evaluation.planting import Planting
from typicality.evaluation.speed import bench as measure_speed
from typicality.evaluation.translate import evaluate_translate as benchmark_translate
from typicality.machine import examine
from typicality.model.pretrain import PretrainSettings
from typicality.model.pretrain import pretrain as train_base
from typicality.pipeline import Result
from typicality.progress import SILENT, Progress
from typicality.run import resolve_settings, run_record
from typicality.tabular import balance as table_balance
from typicality.tabular import impute as table_imputation
from typicality.tabular.balance_benchmark import evaluate_balance
from typicality.tabular.imputation_benchmark import evaluate_imputation
from typicality.tabular.preparing import options_from

OWN = ("model", "seed", "device", "dtype", "offline", "config")
"""Keywords of `settings_for` itself."""


def settings_for(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    config: str | Path | None = None,
    usual: Mapping[str, Any] | None = None,
    **options: Any,
) -> Settings:
    """Resolve settings from a source, options by their names, and sections such as `score={"draws": 8}`.

    `model` is a name or a section, as `prompt` is a template or one. `usual` are sections that replace what a run has
    recorded, where neither `config` nor the call says otherwise.
    """
    named = {n: v for n, v in options.items() if n in OPTIONS and not isinstance(v, Mapping)}  # prompt is both
    sections = {name: value for name, value in options.items() if name not in named}
    for name in sections.keys() - Settings.model_fields.keys() - OPTIONS.keys():
        raise SettingsError(f"unknown setting {name!r}: {nearest(name, [*Settings.model_fields, *OPTIONS, *OWN])}")
    layer = layer_of({"label": label} | named)
    chosen = {
        **(model if isinstance(model, Mapping) else {"name": None if model is None else str(model)}),
        "device": device,
        "dtype": dtype,
        "offline": offline or None,
    }
    layer["model"] = {name: value for name, value in chosen.items() if value is not None}
    if seed is not None:
        layer["seed"] = seed
    return resolve_settings(str(source), _path(config), [layer, sections], usual)


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _folder(source: str | Path, out: str | Path | None) -> Path | None:
    """A run directory as source is also the place where its stages go."""
    if out is not None:
        return Path(out)
    return Path(source) if run_record(str(source)) is not None else None


def mine(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Result:
    """Do the whole job: fine-tune if needed, score, extract, cluster, report.

    Returns
    -------
    Result : tables, paths and the run's record.

    Raises
    ------
    typicality.errors.InputError : with one message that says what to change.
    """
    return pipeline.mine(settings_for(source, label, **options), _folder(source, out), fresh, progress)


def finetune(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Path:
    """Fine-tune only; return the folder of the model."""
    return pipeline.finetune(settings_for(source, label, **options), _folder(source, out), fresh, progress)


def score(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Path:
    """Fine-tune if needed and score; return the folder of the score shards."""
    return pipeline.score(settings_for(source, label, **options), _folder(source, out), fresh, progress)


def report(run: str | Path, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Render the report of a run directory again."""
    return pipeline.report(settings_for(run, **options), Path(run), progress)


def translate(
    run: str | Path,
    source: str,
    target: str,
    *,
    method: Method = "delta",
    strength: float | None = None,
    guidance: float | None = None,
    inject: float | None = None,
    keep: float | None = None,
    average: float | None = None,
    steps: int = 25,
    draws: int = 8,
    images: int | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Translation:
    """Re-synthesise images of one label of a run as another, and score both sides with the same noise."""
    chosen = TranslateOptions(method, strength, guidance, inject, keep, average, steps, draws)
    return translate_pair(Path(run), source, target, chosen, images, fresh, settings_for(run, **options), progress)


def translate_all_pairs(
    run: str | Path,
    *,
    method: Method = "delta",
    strength: float | None = None,
    guidance: float | None = None,
    inject: float | None = None,
    keep: float | None = None,
    average: float | None = None,
    steps: int = 25,
    draws: int = 8,
    images: int | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> pa.Table:
    """Translate between all ordered pairs of a run's labels; return a row a pair, as in `translate/pairs.parquet`."""
    chosen = TranslateOptions(method, strength, guidance, inject, keep, average, steps, draws)
    return translate_pairs(Path(run), chosen, images, fresh, settings_for(run, **options), progress)


def augment(
    run: str | Path, *, kind: Kind = "variants", per_image: int = 4, strength: float | None = None,
    guidance: float | None = None, steps: int = 15, draws: int = 8, near: float = 0.05, far: float | None = None,
    images: int | None = None, only: str | None = None, fresh: bool = False, progress: Progress = SILENT,
    **options: Any,
) -> Augmentation:  # fmt: skip
    """Make variants of a run's training images, or negatives, and keep those that the measure passes.

    `only` is the label to which sources are restricted (`--label` of the command).
    """
    chosen = AugmentOptions(kind, per_image, strength, guidance, steps, draws, near, far)
    return make_augmentation(Path(run), chosen, images, only, fresh, settings_for(run, **options), progress)


def evaluate_augment(
    run: str | Path, *, per_label: int = 20, seeds: int = 3, train_steps: int = 200, negatives: bool = True,
    ood: str = "flags", per_image: int = 2, strength: float | None = None, guidance: float | None = None,
    steps: int = 15, draws: int = 8, progress: Progress = SILENT, **options: Any,
) -> AugmentBenchmark:  # fmt: skip
    """Measure on held-out images whether a run's synthetic images help small classifiers of few real ones."""
    return benchmark_augment(
        Path(run), AugmentOptions("variants", per_image, strength, guidance, steps, draws), per_label=per_label,
        seeds=seeds, train_steps=train_steps, negatives=negatives, ood=ood, settings=settings_for(run, **options),
        progress=progress,
    )  # fmt: skip


def trends(
    run: str | Path, *, images: int = 400, members: int = 16, draws: int = 4, progress: Progress = SILENT,
    **options: Any,
) -> Trends:  # fmt: skip
    """Follow every visual element of a mined run over its labels."""
    return follow_trends(Path(run), images, members, draws, settings=settings_for(run, **options), progress=progress)


def impute(
    run: str | Path,
    *,
    masks: str | Path | None = None,
    where_marked: bool = False,
    hide: float | None = None,
    hide_shape: HideShape | None = None,
    as_label: str | None = None,
    samples: int = DEFAULT_IMPUTATION.samples,
    keep: Keep = DEFAULT_IMPUTATION.keep,
    guidance: float = DEFAULT_IMPUTATION.guidance,
    jumps: int = DEFAULT_IMPUTATION.jumps,
    steps: int = DEFAULT_IMPUTATION.steps,
    strength: float = DEFAULT_IMPUTATION.strength,
    draws: int = DEFAULT_IMPUTATION.draws,
    images: int | None = None,
    part: Part | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Imputation:
    """Fill missing, marked or hidden regions of a run's images; errors are measured where the truth was hidden."""
    region = Region(_path(masks), where_marked, hide, hide_shape)
    chosen = ImputeOptions(as_label, samples, keep, guidance, jumps, steps, strength, draws)
    settings = settings_for(run, **options)
    return impute_regions(Path(run), region, chosen, images, part, fresh, settings, progress)


def audit(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    out: str | Path | None = None,
    label_draws: int = 16,
    images_only: bool = False,
    fail_on: str | None = None,
    baseline: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Audit:
    """Look for wrong labels, confusable labels, shortcuts and near-duplicates in a data set or a finished run.

    `draws` are those of `mine`; `label_draws` are the UNet draws an image and label of the look for wrong labels.
    """
    return audit_dataset(
        settings_for(source, label, **options), _folder(source, out), draws=label_draws, images_only=images_only,
        fail_on=fail_on, baseline=_path(baseline), fresh=fresh, progress=progress,
    )  # fmt: skip


def evaluate_classify(
    run: str | Path, *, draws: int = 8, progress: Progress = SILENT, **options: Any
) -> Classification:
    """Use a run's model as a diffusion classifier on its held-out images."""
    return measure_accuracy(Path(run), draws, progress, settings_for(run, **options))


classify = evaluate_classify


def bench(
    source: str | Path = "emoji", label: str = "year", *, images: int | None = None, progress: Progress = SILENT,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure the speed of scoring against the bare UNet and against this machine's peak."""
    return measure_speed(settings_for(source, label, **options), images, progress)


def estimate(
    source: str | Path = "emoji", label: str | None = None, *, progress: Progress = SILENT, **options: Any
) -> Estimate:
    """Say what `mine` would cost with the same arguments: UNet evaluations, seconds, bytes."""
    return estimate_cost(settings_for(source, label, **options), progress)


def localize(
    run: str | Path, *, against: str | None = None, masks: str | None = None, boxes: str | None = None,
    draws: int = DRAWS, ranges: Sequence[tuple[float, float]] = (), overlays: int = 8, write_masks: bool = False,
    progress: Progress = SILENT, **options: Any,
) -> Localization:  # fmt: skip
    """Find where the labels of a run's images show: maps, boxes, masks; measured where `masks` or `boxes` are given."""
    truth = {name: value for name, value in {"masks": masks, "boxes": boxes}.items() if value is not None}
    settings = settings_for(run, **(options | {"dataset": truth | dict(options.get("dataset", {}))}))
    wanted = Options(against, draws, tuple(ranges))
    return locate(settings, Path(run), wanted, overlays=overlays, write_masks=write_masks, progress=progress)


def evaluate_localize(
    run: str | Path, *, against: str | None = None, masks: str | None = None, boxes: str | None = None,
    draws: int = DRAWS, ranges: Sequence[tuple[float, float]] = (), before: bool = True, epochs: int = 20,
    picture: str | Path | None = None, progress: Progress = SILENT, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure the maps of a run against ground truth, beside rivals and the model before fine-tuning."""
    truth = {name: value for name, value in {"masks": masks, "boxes": boxes}.items() if value is not None}
    settings = settings_for(run, **(options | {"dataset": truth | dict(options.get("dataset", {}))}))
    return benchmark_localize(
        settings, Path(run), Options(against, draws, tuple(ranges)), before=before, epochs=epochs,
        picture=_path(picture), progress=progress,
    )  # fmt: skip


def evaluate_translate(
    run: str | Path, source: str, target: str, methods: Sequence[Method] = METHODS, *, images: int | None = None,
    tune: bool = False, tune_images: int = 30, steps: int = 25, draws: int = 8, epochs: int = 12,
    picture: str | Path | None = None, progress: Progress = SILENT, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure translations on held-out subjects of a run whose true image under the other label exists."""
    return benchmark_translate(
        Path(run), source, target, methods, images=images, tune=tune, tune_images=tune_images, steps=steps,
        draws=draws, epochs=epochs, picture=_path(picture),
        settings=settings_for(run, **options), progress=progress,
    )  # fmt: skip


def evaluate_autoencoder(
    source: str | Path = "emoji", label: str | None = None, *, images: int = 500,
    picture: str | Path | None = None, progress: Progress = SILENT, **options: Any,
) -> Reconstruction:  # fmt: skip
    """Measure how well the model's autoencoder keeps held-out images; what it loses cannot be mined."""
    where = _path(picture)
    return reconstruct(settings_for(source, label, **options), images, where, progress)


def export(
    run: str | Path, to: str, *, out: str | Path | None = None, force: bool = False, progress: Progress = SILENT
) -> Path:
    """Write a run's elements as coco, parquet, csv, hf, fiftyone or png; return the file or folder."""
    return export_elements(Path(run), to, _path(out), force, progress)


def diff(run_a: str | Path, run_b: str | Path) -> Diff:
    """Compare two mined runs."""
    return compare_runs(Path(run_a), Path(run_b))


def evaluate_elements(
    run: str | Path,
    *,
    elements: int = 20,
    seeds: int = 3,
    images: int = 4000,
    epochs: int = 15,
    paper_draws: int = 16,
    draws: int = 8,
    picture: str | Path | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> ElementsBenchmark:
    """Compare a run's elements with those of rivals on held-out images."""
    return benchmark_elements(
        Path(run), count=elements, seeds=seeds, images=images, epochs=epochs, paper_draws=paper_draws, draws=draws,
        picture=_path(picture), settings=settings_for(run, **options), progress=progress,
    )  # fmt: skip


def evaluate_estimator(
    run: str | Path, *, images: int = 96, gold: int = 1000, paper: Sequence[int] = (4, 16, 100),
    picture: str | Path | None = None, progress: Progress = SILENT, **options: Any,
) -> EstimatorQuality:  # fmt: skip
    """Compare ways of drawing with a gold standard on a sample of a run's images: cost, overlap, calibration."""
    where = _path(picture)
    return benchmark_estimator(Path(run), images, gold, paper, where, progress, settings_for(run, **options))


def evaluate_labels(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    flip: float = 0.1,
    how: How = "uniform",
    draws: int = 16,
    exclude: float | None = 2.0,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> LabelBenchmark:
    """Flip labels and find them again, beside confident learning on the same folds (2 unless the options say more)."""
    return benchmark_labels(
        settings_for(source, label, usual=TWO_FOLDS, **options), _path(out), flip=flip, how=how,
        draws=draws, exclude=exclude, picture=_path(picture), fresh=fresh,
        progress=progress,
    )  # fmt: skip


def evaluate_planted(
    source: str | Path = "emoji", *, images: int = 2000, seeds: int = 1, sweep: str | None = None,
    planting: Mapping[str, Any] | None = None, map_draws: int = 16, maps: int = 300, out: str | Path | None = None,
    picture: str | Path | None = None, fresh: bool = False, progress: Progress = SILENT, **options: Any,
) -> PlantedBenchmark:  # fmt: skip
    """Plant motifs under random labels and mine them again (with 2 folds unless the options say more).

    `planting` such as {"prevalence": 0.2, "control": True}.
    """
    return benchmark_planted(
        settings_for(source, usual=TWO_FOLDS, **options), _path(out),
        planting=Planting(**dict(planting or {})), images=images, seeds=seeds, sweep=sweep, draws=map_draws, maps=maps,
        picture=_path(picture), fresh=fresh, progress=progress,
    )  # fmt: skip


def tabular_impute(
    table: str | Path, label: str | None = None, *, out: str | Path | None = None, fresh: bool = False,
    progress: Progress = SILENT, **options: Any,
) -> table_imputation.Imputation:  # fmt: skip
    """Fill in every missing cell of a table; options as in `typicality.tabular.impute.ImputeOptions`."""
    chosen = options_from(table_imputation.ImputeOptions, label=label, **options)
    return table_imputation.impute(Path(table), _path(out), chosen, fresh, progress)


def tabular_balance(
    table: str | Path, label: str, *, out: str | Path | None = None, fresh: bool = False, progress: Progress = SILENT,
    **options: Any,
) -> table_balance.Balance:  # fmt: skip
    """Add synthetic rows of rare labels to a table; options as in `typicality.tabular.balance.BalanceOptions`."""
    chosen = options_from(table_balance.BalanceOptions, label=label, **options)
    return table_balance.balance(Path(table), _path(out), chosen, fresh, progress)


def evaluate_tabular_impute(
    table: str | Path, label: str | None = None, *, hide: float = 0.2, repeats: int = 3, progress: Progress = SILENT,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Hide known cells of a table and fill them in again, beside mean, k-NN, MICE and missForest."""
    chosen = options_from(table_imputation.ImputeOptions, label=label, **options)
    return evaluate_imputation(Path(table), chosen, hide, repeats, progress)


def evaluate_tabular_balance(
    table: str | Path, label: str, *, repeats: int = 5, test: float = 0.3, progress: Progress = SILENT, **options: Any
) -> dict[str, Any]:
    """Judge synthetic rows by classifiers on real held-out rows, beside weights, oversampling and SMOTE."""
    chosen = options_from(table_balance.BalanceOptions, label=label, **options)
    return evaluate_balance(Path(table), chosen, repeats, test, progress)


def datasets() -> list[DatasetInfo]:
    """Return what is known of the data sets that have a name, and whether each can be loaded now."""
    return builtin_datasets()


def doctor(**options: Any) -> dict[str, Any]:
    """Say what this machine can do: versions, devices, precision, the model that would be used, its speed."""
    return examine(settings_for(**options).model)


def pretrain(corpus: str | Path, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Train a base model from a captioned corpus; return what was measured."""
    return train_base(Path(corpus), Path(out), PretrainSettings(**settings))
