"""The public functions: every command as a Python call, with settings as keywords.

Each takes `source` (a built-in name, a folder, a table, hf://owner/name, or a run directory), the common options,
and any setting as `section={"name": value}`; see `typicality.config.Settings` for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typicality import pipeline
from typicality.config import Settings
from typicality.evaluation.classify import Classification
from typicality.evaluation.classify import classify as evaluate_classify
from typicality.model.pretrain import PretrainSettings
from typicality.model.pretrain import pretrain as train_base
from typicality.pipeline import Result
from typicality.progress import SILENT, Progress
from typicality.run import resolve_settings, run_record


def settings_for(
    source: str | Path = "emoji",
    label: str | None = None,
    *,
    model: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    config: Path | None = None,
    **sections: Mapping[str, Any],
) -> Settings:
    """Resolve settings from a source, the common options and sections such as `score={"draws": 8}`."""
    layer: dict[str, Any] = {"dataset": {}, "model": {}}
    if label is not None:
        layer["dataset"]["label"] = label
    chosen = {"name": model, "device": device, "dtype": dtype, "offline": offline or None}
    layer["model"] |= {name: value for name, value in chosen.items() if value is not None}
    if seed is not None:
        layer["seed"] = seed
    return resolve_settings(str(source), config, [layer, sections])


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


def classify(run: str | Path, *, draws: int = 8, progress: Progress = SILENT) -> Classification:
    """Use a run's model as a diffusion classifier on its held-out images."""
    return evaluate_classify(Path(run), draws, progress)


def pretrain(corpus: str | Path, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Train a base model from a captioned corpus; return what was measured."""
    return train_base(Path(corpus), Path(out), PretrainSettings(**settings))
