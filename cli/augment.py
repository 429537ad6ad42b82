"""`augment` and `evaluate augment`: synthetic variants and negatives, and whether they help a classifier."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from typicality.applications.augment.options import AugmentOptions, evaluations_of

from .evaluation import AtLeast, Write, finish, parse_limits, show_plan
from .mining import existing_run
from .options import WORK, Common, RunArgument, with_options
from .translate import show


class KindName(StrEnum):
    variants = "variants"
    negatives = "negatives"


DEFAULT = AugmentOptions()
Strength = Annotated[
    float | None,
    typer.Option("--strength", help="Share of the noise schedule that is used, 0 to 1 [0.4; negatives 0.7]."),
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", help="Weight of the own label [3]; of all labels, not above 0, for negatives [-2]."),
]
PerImage = Annotated[int, typer.Option("--per-image", help="Synthetic images a source.", rich_help_panel=WORK)]
Steps = Annotated[int, typer.Option("--sampler-steps", help="Steps of the sampler.", rich_help_panel=WORK)]
Draws = Annotated[int, typer.Option("--draws", help="Draws of the typicality.", rich_help_panel=WORK)]
Near = Annotated[float, typer.Option("--near", help="At a smaller distance it is a copy (unrelated images: 1).")]
Far = Annotated[float | None, typer.Option("--far", help="At this distance a variant has lost its source [0.7].")]


@with_options
def augment(
    common: Common,
    run: RunArgument,
    kind: Annotated[
        KindName, typer.Option("--kind", help="variants keep their label; negatives have none.")
    ] = KindName.variants,
    strength: Strength = None,
    guidance: Guidance = None,
    near: Near = DEFAULT.near,
    far: Far = None,
    label: Annotated[
        str | None, typer.Option("--label", "-l", metavar="LABEL", help="Only images of this label.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Sources of a label at most.", rich_help_panel=WORK)
    ] = None,
    per_image: PerImage = DEFAULT.per_image,
    sampler_steps: Steps = DEFAULT.steps,
    draws: Draws = DEFAULT.draws,
    write: Write = None,
) -> None:
    """Make variants of training images that keep their label, or negatives, and keep what the measure passes."""
    from typicality.applications.augment.run import augment as make
    from typicality.applications.augment.run import check_label, training_images
    from typicality.dataset import load_dataset
    from typicality.rescoring import rival_labels

    common.pass_over("out")
    options = AugmentOptions(kind.value, per_image, strength, guidance, sampler_steps, draws, near, far).resolved()
    settings = common.settings(str(existing_run(run)))
    if common.dry_run:
        dataset = load_dataset(settings.dataset)
        check_label(dataset, label)
        wanted = dataset.labels if label is None else (label,)
        alone = [i.labels for i in training_images(dataset, settings.finetune.held_out)]
        sources = {name: min(alone.count((name,)), images or len(alone)) for name in wanted}
        rivals = len(rival_labels(dataset.labels, wanted[0], wanted[0]))
        work = sum(sources.values()) * evaluations_of(options, rivals)
        plan = {"run": str(run), "options": options.as_dict(), "sources": sources, "UNet evaluations at most": work}
        show(plan | {"settings": settings.model_dump(mode="json")}, common, None)
        return
    found = make(run, options, images, label, common.fresh, settings, common.progress)
    show({"folder": str(found.folder), **found.summary}, common, write)


@with_options
def evaluate_augment(
    common: Common,
    run: RunArgument,
    per_label: Annotated[
        int, typer.Option("--per-label", min=2, help="Real training images of a label.", rich_help_panel=WORK)
    ] = 20,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Repeats with other images and weights.", rich_help_panel=WORK)
    ] = 3,
    train_steps: Annotated[
        int, typer.Option("--train-steps", min=1, help="Steps of each classifier.", rich_help_panel=WORK)
    ] = 200,
    negatives: Annotated[
        bool, typer.Option("--negatives/--no-negatives", help="Also contrastive learning with negatives.")
    ] = True,
    ood: Annotated[str, typer.Option("--ood", metavar="DATASET", help="What is to be told from the run's.")] = "flags",
    strength: Strength = None,
    guidance: Guidance = None,
    per_image: PerImage = 2,
    sampler_steps: Steps = DEFAULT.steps,
    draws: Draws = DEFAULT.draws,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Does it help? Small classifiers on few real images, with and without synthetic ones, on held-out images."""
    from typicality.evaluation.augment import evaluate_augment as evaluate
    from typicality.evaluation.augment import plan_of

    common.pass_over("out", "fresh")
    limits = parse_limits(at_least)
    options = AugmentOptions("variants", per_image, strength, guidance, sampler_steps, draws).resolved()
    settings = common.settings(str(existing_run(run)))
    work: dict[str, Any] = {
        "per_label": per_label, "seeds": seeds, "train_steps": train_steps, "negatives": negatives, "ood": ood,
    }  # fmt: skip
    if common.dry_run:
        return show_plan(plan_of(settings, run, options, **work), common, settings)
    result = evaluate(run, options, **work, settings=settings, progress=common.progress)
    finish("augment", result.as_dict(), limits, common, write)
    return None
