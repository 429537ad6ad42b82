"""`evaluate elements`, `labels` and `planted`: findings beside their rivals, and beside what is known to be there."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .evaluation import AtLeast, Write, finish, parse_limits, picture_in, show_plan
from .mining import existing_run
from .options import Common, Data, DatasetArgument, Scoring, Training, with_options

Picture = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="PNG of the curves.", callback=picture_in(".png"))
]


class PlaceName(StrEnum):
    free = "free"
    fixed = "fixed"


class How(StrEnum):
    uniform = "uniform"
    confusable = "confusable"


@with_options
def elements(
    common: Common,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that `mine` has filled.")],
    count: Annotated[int, typer.Option("--elements", min=1, help="Elements a label and method.")] = 20,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Draws of elements, and trainings of rivals.")] = 3,
    images: Annotated[int, typer.Option("--images", min=1, help="Training and held-out images at most.")] = 4000,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the CNN behind Grad-CAM.")] = 15,
    paper_draws: Annotated[int, typer.Option("--paper-draws", min=2, help="Of the published protocol.")] = 16,
    draws: Annotated[int, typer.Option("--draws", help="Where elements are searched, under every label.")] = 8,
    picture: Picture = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Mined elements on held-out images: purity, coverage and label accuracy, beside those of rivals."""
    from typicality.evaluation.elements import elements as evaluate

    common.pass_over("out", "fresh")
    limits, settings = parse_limits(at_least), common.settings(str(existing_run(run)))
    if common.dry_run:
        plan = {"run": str(run), "elements": count, "seeds": seeds, "images at most": images}
        return show_plan(plan, common, settings)
    result = evaluate(
        run, count=count, seeds=seeds, images=images, epochs=epochs, paper_draws=paper_draws, draws=draws,
        picture=picture, settings=settings, progress=common.progress,
    )  # fmt: skip
    finish("elements", result.as_dict(), limits, common, write)
    return None


@with_options
def labels(
    common: Common,
    data: Data,
    training: Training,
    dataset: DatasetArgument = None,
    flip: Annotated[float, typer.Option("--flip", help="Share of the images that get a wrong label.")] = 0.1,
    how: Annotated[How, typer.Option("--how", help="To any label, or to the most similar one.")] = How.uniform,
    draws: Annotated[int, typer.Option("--draws", help="UNet draws an image and label; even.")] = 16,
    exclude: Annotated[
        float,
        typer.Option(
            "--exclude-near-identical", metavar="DIST",
            help="Leave out images that differ from one of another label in their group by so little: mean absolute "
            "difference of pixels, 0 to 255; below 0 keeps all.",
        ),
    ] = 2.0,
    picture: Picture = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:  # fmt: skip
    """Flipped labels found again, beside confident learning on the same folds (2 by default)."""
    from typicality.dataset import load_dataset
    from typicality.evaluation.labels import TWO_FOLDS, folder_of, plan_of
    from typicality.evaluation.labels import labels as evaluate

    from .mining import dry_run

    limits = parse_limits(at_least)
    settings = common.settings(dataset, data.layer(), training.layer(), usual=TWO_FOLDS)
    if common.dry_run:
        images = load_dataset(settings.dataset)
        plan = plan_of(settings, images, flip=flip, how=how.value, draws=draws)
        return dry_run(settings, common.out or folder_of(images), common, plan)
    result = evaluate(
        settings, common.out, flip=flip, how=how.value, draws=draws, exclude=exclude if exclude >= 0 else None,
        picture=picture, fresh=common.fresh, progress=common.progress,
    )  # fmt: skip
    finish("labels", result.as_dict(), limits, common, write)
    return None


@with_options
def planted(
    common: Common,
    data: Data,
    training: Training,
    scoring: Scoring,
    dataset: DatasetArgument = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images, in whole groups; labels are ignored.")] = 2000,
    n_labels: Annotated[int, typer.Option("--labels", help="Labels, assigned to groups at random.")] = 2,
    motifs: Annotated[
        str, typer.Option("--motifs", metavar="KIND,...", help="Of each label: glyph, texture, tint, overlay.")
    ] = "glyph",
    distractors: Annotated[
        str, typer.Option("--distractors", metavar="KIND,...", help="In images of all labels alike; '' for none.")
    ] = "glyph",
    prevalence: Annotated[float, typer.Option("--prevalence", help="Share of a label's images with a motif.")] = 0.5,
    size: Annotated[float, typer.Option("--size", help="Side of a motif, in pixels of an image of 64.")] = 14.0,
    contrast: Annotated[float, typer.Option("--contrast", help="Opacity of motifs, up to 1.")] = 1.0,
    place: Annotated[PlaceName, typer.Option("--place", help="Anywhere, or always the same.")] = PlaceName.free,
    control: Annotated[bool, typer.Option("--control", help="Plant nothing, and count false alarms.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs, each with other labels and places.")] = 1,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="NAME=V,V", help="Run with each value of prevalence, size, contrast or place."),
    ] = None,
    map_draws: Annotated[int, typer.Option("--map-draws", help="UNet draws behind pixel_ap; even.")] = 16,
    maps: Annotated[int, typer.Option("--maps", min=1, help="Images behind pixel_ap.")] = 300,
    picture: Picture = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Motifs planted into any images under random labels and mined again, with held-out scores (2 folds by default).

    The planted images go to OUT/data and the run to OUT/run, with a sweep or seeds in folders of their own.
    """
    from typicality.evaluation.labels import TWO_FOLDS
    from typicality.evaluation.planted import plan_of
    from typicality.evaluation.planted import planted as evaluate
    from typicality.evaluation.planting import Planting

    limits = parse_limits(at_least)
    settings = common.settings(dataset, data.layer(), training.layer(), scoring.layer(), usual=TWO_FOLDS)
    planting = Planting(
        labels=n_labels, motifs=_names(motifs), distractors=_names(distractors), prevalence=prevalence, size=size,
        contrast=contrast, place=place.value, control=control,
    )  # fmt: skip
    if common.dry_run:
        return show_plan(plan_of(settings, common.out, planting, images, seeds, sweep), common)
    result = evaluate(
        settings, common.out, planting=planting, images=images, seeds=seeds, sweep=sweep, draws=map_draws, maps=maps,
        picture=picture, fresh=common.fresh, progress=common.progress,
    )  # fmt: skip
    finish("planted", result.as_dict(), limits, common, write)
    return None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))
