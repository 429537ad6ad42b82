"""`mine` and its stages: `finetune`, `score`, `report`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.config import Settings

from .console import print_json, print_text, say
from .options import Common, given, with_common

DATA = "Data"
WORK = "Amount of work"


class ProtocolName(StrEnum):
    adaptive = "adaptive"
    uniform = "uniform"
    paper = "paper"


Dataset = Annotated[
    str | None,
    typer.Argument(metavar="DATASET", help="Built-in name, folder, table, hf://owner/name, or a run directory."),
]
Label = Annotated[str | None, typer.Option("--label", "-l", metavar="COLUMN", help="Column that holds the label.")]
Bin = Annotated[
    float | None,
    typer.Option("--bin", help="Width of a numeric label's bins: 10 for decades.", rich_help_panel=DATA),
]
Group = Annotated[
    str | None,
    typer.Option("--group", metavar="COLUMN", help="Relatives stay on one side of a split.", rich_help_panel=DATA),
]
Where = Annotated[
    str | None,
    typer.Option("--where", metavar="CONDITION", help="Keep rows, e.g. \"camera == 'a'\".", rich_help_panel=DATA),
]
Separator = Annotated[
    str | None, typer.Option("--label-separator", help="Several labels an image, e.g. '|'.", rich_help_panel=DATA)
]
ImageColumn = Annotated[
    str | None,
    typer.Option("--image-column", metavar="COLUMN", help="Column with the image or its path.", rich_help_panel=DATA),
]
MaxPerLabel = Annotated[
    int | None, typer.Option("--max-per-label", help="Keep so many images of a label.", rich_help_panel=DATA)
]
Strict = Annotated[bool, typer.Option("--strict", help="An unreadable image is an error.", rich_help_panel=DATA)]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", metavar="TEXT", help="Template with {label}, e.g. 'a car from the {label}s'.",
                 rich_help_panel=DATA),
]  # fmt: skip
NullPrompt = Annotated[
    str | None,
    typer.Option("--null-prompt", metavar="TEXT", help="The same without its label, e.g. 'a car'.",
                 rich_help_panel=DATA),
]  # fmt: skip
Steps = Annotated[int | None, typer.Option("--steps", help="Fine-tuning steps.", rich_help_panel=WORK)]
Minutes = Annotated[float | None, typer.Option("--minutes", help="Fine-tuning time instead.", rich_help_panel=WORK)]
NoFinetune = Annotated[bool, typer.Option("--no-finetune", help="Score with the model as it is.", rich_help_panel=WORK)]
Draws = Annotated[
    int | None, typer.Option("--draws", help="Draws an image (the first pass of adaptive).", rich_help_panel=WORK)
]
Protocol = Annotated[
    ProtocolName | None,
    typer.Option("--protocol", help="paper: 100 independent draws, as published.", rich_help_panel=WORK),
]
Patch = Annotated[int | None, typer.Option("--patch", help="Patch side in model pixels.", rich_help_panel=WORK)]


def data_layer(
    label: str | None, bin: float | None, group: str | None, where: str | None, label_separator: str | None,
    image_column: str | None, max_per_label: int | None, strict: bool, prompt: str | None, null_prompt: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The data options as a layer of settings; a prompt without a null prompt gets one by dropping its label."""
    layer: dict[str, Any] = {
        "dataset": given(
            label=label, bin=bin, group=group, where=where, label_separator=label_separator,
            image_column=image_column, max_per_label=max_per_label, strict=strict,
        )
    }  # fmt: skip
    if prompt is not None:
        layer["prompt"] = {"template": prompt, "null": null_prompt or without_label(prompt)}
    elif null_prompt is not None:
        layer["prompt"] = {"null": null_prompt}
    return layer


def without_label(template: str) -> str:
    """Drop `{label}` and what clings to it: "a car from the {label}s" -> "a car"; at least one word stays."""
    words = template.partition("{label}")[0].split()
    while len(words) > 1 and words[-1].lower() in {"of", "from", "in", "the", "with", "a", "an", "at", "by", "year"}:
        words.pop()
    return " ".join(words).rstrip(",;:- ") or "an image"


def work_layer(
    steps: int | None, minutes: float | None, no_finetune: bool, draws: int | None, protocol: ProtocolName | None,
    patch: int | None,
) -> dict[str, Any]:  # fmt: skip
    finetune = given(steps=steps, minutes=minutes)
    if no_finetune:
        finetune["enabled"] = False
    return {
        "finetune": finetune,
        "score": given(draws=draws, protocol=protocol and protocol.value),
        "mine": given(patch=patch),
    }


@with_common
def mine(
    common: Common, dataset: Dataset = None, label: Label = None, bin: Bin = None, group: Group = None,
    where: Where = None, label_separator: Separator = None, image_column: ImageColumn = None,
    max_per_label: MaxPerLabel = None, strict: Strict = False, prompt: Prompt = None, null_prompt: NullPrompt = None,
    steps: Steps = None, minutes: Minutes = None, no_finetune: NoFinetune = False, draws: Draws = None,
    protocol: Protocol = None, patch: Patch = None,
) -> None:  # fmt: skip
    """Show what is typical of each label: fine-tune, score, extract, cluster, report."""
    from typicality import pipeline

    settings = common.settings(
        dataset,
        data_layer(label, bin, group, where, label_separator, image_column, max_per_label, strict, prompt, null_prompt),
        work_layer(steps, minutes, no_finetune, draws, protocol, patch),
    )
    folder = common.folder(dataset)
    if common.dry_run:
        return dry_run(settings, folder, common)
    result = pipeline.mine(settings, folder, common.fresh, common.progress)
    done(result, common)
    return None


@with_common
def finetune(
    common: Common, dataset: Dataset = None, label: Label = None, bin: Bin = None, group: Group = None,
    where: Where = None, label_separator: Separator = None, image_column: ImageColumn = None,
    max_per_label: MaxPerLabel = None, strict: Strict = False, prompt: Prompt = None, null_prompt: NullPrompt = None,
    steps: Steps = None, minutes: Minutes = None,
) -> None:  # fmt: skip
    """Fine-tune the model on the labels: the first stage of `mine`."""
    from typicality import pipeline

    settings = common.settings(
        dataset,
        data_layer(label, bin, group, where, label_separator, image_column, max_per_label, strict, prompt, null_prompt),
        work_layer(steps, minutes, False, None, None, None),
    )
    folder = common.folder(dataset)
    if common.dry_run:
        return dry_run(settings, folder, common)
    model = pipeline.finetune(settings, folder, common.fresh, common.progress)
    record = pipeline.run_record(str(model.parent)) or {}
    if common.json:
        print_json({"model": str(model), **record.get("stages", {}).get("finetune", {})})
    else:
        print_text(str(model))
    return None


@with_common
def score(
    common: Common, dataset: Dataset = None, label: Label = None, bin: Bin = None, group: Group = None,
    where: Where = None, label_separator: Separator = None, image_column: ImageColumn = None,
    max_per_label: MaxPerLabel = None, strict: Strict = False, prompt: Prompt = None, null_prompt: NullPrompt = None,
    steps: Steps = None, minutes: Minutes = None, no_finetune: NoFinetune = False, draws: Draws = None,
    protocol: Protocol = None,
) -> None:  # fmt: skip
    """Score every image: typicality maps under its labels, fine-tuning first where that is missing."""
    from typicality import pipeline

    settings = common.settings(
        dataset,
        data_layer(label, bin, group, where, label_separator, image_column, max_per_label, strict, prompt, null_prompt),
        work_layer(steps, minutes, no_finetune, draws, protocol, None),
    )
    folder = common.folder(dataset)
    if common.dry_run:
        return dry_run(settings, folder, common)
    scores = pipeline.score(settings, folder, common.fresh, common.progress)
    if common.json:
        record = pipeline.run_record(str(scores.parent)) or {}
        stages = {name: record["stages"][name] for name in ("score", "refine") if name in record["stages"]}
        print_json({"scores": str(scores), "stages": stages})
    else:
        print_text(str(scores))
    return None


@with_common
def report(
    common: Common,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that `mine` has filled.")],
    title: Annotated[str | None, typer.Option("--title", help="Heading of the report.")] = None,
) -> None:
    """Render the HTML report of a run again."""
    from typicality import pipeline
    from typicality.errors import OutputError

    if pipeline.run_record(str(run)) is None:
        raise OutputError(f"{run} is no run directory: it has no run.json; run `typicality mine` first")
    settings = common.settings(str(run), {"report": given(title=title)})
    if common.dry_run:
        return dry_run(settings, run, common)
    done(pipeline.report(settings, run, common.progress), common)
    return None


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


def dry_run(settings: Settings, folder: Path | None, common: Common) -> None:
    """Print the resolved settings and what would be done; nothing is written."""
    import yaml

    from typicality.dataset import load_dataset
    from typicality.pipeline import default_folder, plan_of

    dataset = load_dataset(settings.dataset)
    plan = plan_of(settings, dataset)
    where = str(folder or default_folder(dataset))
    if common.json:
        print_json({"settings": settings.model_dump(mode="json"), "out": where, "plan": plan})
        return
    print_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    print_text(f"would write to {where}")
    for name, value in plan.items():
        print_text(f"  {name}: {value}")
