"""`mine` and its stages: `finetune`, `score`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.config import Settings

from .console import print_json, print_text, say
from .options import Common, Data, DatasetArgument, Patch, RunArgument, Scoring, Training, given, with_options


@with_options
def mine(
    common: Common, data: Data, training: Training, scoring: Scoring, dataset: DatasetArgument = None,
    patch: Patch = None,
) -> None:  # fmt: skip
    """Show what is typical of each label: fine-tune, score, extract, cluster, report."""
    from typicality import pipeline

    layers = [data.layer(), training.layer(), scoring.layer(), {"mine": given(patch=patch)}]
    settings = common.settings(dataset, *layers)
    folder = common.folder(dataset)
    if common.dry_run:
        return dry_run(settings, folder, common)
    done(pipeline.mine(settings, folder, common.fresh, common.progress), common)
    return None


@with_options
def finetune(common: Common, data: Data, training: Training, dataset: DatasetArgument = None) -> None:
    """Fine-tune the model on the labels: the first stage of `mine`."""
    from typicality import pipeline
    from typicality.run import run_record

    settings = common.settings(dataset, data.layer(), training.layer())
    folder = common.folder(dataset)
    if common.dry_run:
        return dry_run(settings, folder, common, scoring=False)
    model = pipeline.finetune(settings, folder, common.fresh, common.progress)
    if common.json:
        record = run_record(str(model.parent)) or {}
        print_json({"model": str(model), **record.get("stages", {}).get("finetune", {})})
    else:
        print_text(str(model))
    return None


@with_options
def score(common: Common, data: Data, training: Training, scoring: Scoring, dataset: DatasetArgument = None) -> None:
    """Score every image: typicality maps under its labels, fine-tuning first where that is missing."""
    from typicality import pipeline
    from typicality.run import run_record

    settings = common.settings(dataset, data.layer(), training.layer(), scoring.layer())
    folder = common.folder(dataset)
    if common.dry_run:
        return dry_run(settings, folder, common)
    scores = pipeline.score(settings, folder, common.fresh, common.progress)
    if common.json:
        record = run_record(str(scores.parent)) or {}
        done = record.get("stages", {})
        stages = {name: done[name] for name in done if name.split()[0] in ("score", "select", "refine")}
        print_json({"scores": str(scores), "stages": stages})
    else:
        print_text(str(scores))
    return None


@with_options
def report(
    common: Common,
    run: RunArgument,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the report.")] = None,
) -> None:
    """Render the HTML report of a run again."""
    from typicality import pipeline

    common.pass_over("out", "fresh")
    settings = common.settings(str(existing_run(run)), {"report": given(title=title)})
    if common.dry_run:
        return dry_run(settings, run, common, {"report": f"{run / 'index.html'}, rendered from what the run holds"})
    done(pipeline.report(settings, run, common.progress), common)
    return None


def existing_run(run: Path) -> Path:
    """Return `run`, or say that it is no run directory."""
    from typicality.run import existing_record

    existing_record(run)
    return run


def done(result: Any, common: Common) -> None:
    """Say where the result is and what it holds."""
    clusters: dict[str, int] = {}
    for label in result.clusters["label"].to_pylist():
        clusters[label] = clusters.get(label, 0) + 1
    if common.json:
        print_json(
            {
                "run": str(result.folder), "report": str(result.report), "elements": len(result.elements),
                "clusters": clusters, "stages": result.record["stages"], "model": result.record.get("model"),
                "dataset": result.record["dataset"],
            }
        )  # fmt: skip
        return
    if not common.quiet:
        say(f"{len(result.elements)} elements in {len(result.clusters)} clusters of {len(clusters)} labels")
    print_text(str(result.report))


def dry_run(
    settings: Settings, folder: Path | None, common: Common, plan: dict[str, Any] | None = None, scoring: bool = True
) -> None:
    """Print the resolved settings and what would be done; nothing is written.

    What a user should know of the data goes to stderr: its warnings, and every file that cannot be read.

    Parameters
    ----------
    plan : what would be done; by default that of `mine`, or of fine-tuning alone where `scoring` is false
    """
    import yaml

    from typicality.dataset import load_dataset
    from typicality.paths import default_folder
    from typicality.plan import plan_of, warnings_of

    dataset = load_dataset(settings.dataset)
    warnings = list(dataset.warnings)
    if plan is None:
        plan = plan_of(settings, dataset, scoring)
        warnings += warnings_of(dataset, settings.finetune)
    where = str(folder or default_folder(dataset))
    unreadable = [[image.file_name, image.reason] for image in dataset.unreadable]
    for warning in warnings:
        common.progress.say(f"warning: {warning}")
    for file_name, reason in unreadable:
        common.progress.say(f"unreadable: {file_name}: {reason}")
    if common.json:
        plan = {**plan, "warnings": warnings, "unreadable": unreadable}
        print_json({"settings": settings.model_dump(mode="json"), "out": where, "plan": plan})
        return
    print_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    print_text(f"would write to {where}")
    for name, value in plan.items():
        print_text(f"  {name}: {value}")
