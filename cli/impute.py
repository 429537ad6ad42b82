"""`impute`: missing, damaged or marked regions of images, filled in under their label."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import print_document, print_json, print_text, say
from .evaluation import Write, show_plan
from .mining import existing_run
from .options import WORK, Common, RunArgument, with_options


class ShapeName(StrEnum):
    square = "square"
    half = "half"


class KeepName(StrEnum):
    mean = "mean"
    best = "best"


class PartName(StrEnum):
    held_out = "held-out"
    validation = "validation"
    training = "training"
    all = "all"


@with_options
def impute(
    common: Common,
    run: RunArgument,
    masks: Annotated[
        Path | None,
        typer.Option("--masks", metavar="FOLDER", help="Masks with the images' file names; white is missing."),
    ] = None,
    where_marked: Annotated[
        bool, typer.Option("--where-marked", help="Fill what the data set's own masks and boxes mark.")
    ] = False,
    hide: Annotated[
        float | None,
        typer.Option("--hide", metavar="SHARE", help="Hide this share on purpose, and measure errors."),
    ] = None,
    hide_shape: Annotated[
        ShapeName | None,
        typer.Option("--hide-shape", help="With --hide: a square anywhere, or the strip along a side [square]."),
    ] = None,
    as_label: Annotated[
        str | None, typer.Option("--as", metavar="LABEL", help="Fill under this label [each image's own].")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Fills an image, each from its own noise.")] = 4,
    result: Annotated[
        KeepName, typer.Option("--result", help="Mean of the samples, or the one of highest typicality.")
    ] = KeepName.mean,
    guidance: Annotated[float, typer.Option("--guidance", help="Weight of the label; 1 is its own prediction.")] = 1.0,
    jumps: Annotated[int, typer.Option("--jumps", help="Times each step is done, noised again in between.")] = 2,
    strength: Annotated[
        float, typer.Option("--strength", help="Noise to begin at, 0 to 1; below 1 from a harmonic fill.")
    ] = 0.6,
    sampler_steps: Annotated[
        int, typer.Option("--sampler-steps", help="Steps of the sampler.", rich_help_panel=WORK)
    ] = 6,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Images at most [all; 60 with --hide].", rich_help_panel=WORK),
    ] = None,
    part: Annotated[
        PartName | None,
        typer.Option("--part", help="Of the images [all; unseen ones with --hide].", rich_help_panel=WORK),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Draws of the typicality.", rich_help_panel=WORK)] = 8,
    write: Write = None,
) -> None:
    """Fill missing, damaged or hidden regions of images in, under their label; with --hide, measure the errors."""
    from typicality.applications.impute.options import ImputeOptions, Region
    from typicality.applications.impute.run import impute as fill
    from typicality.applications.impute.run import plan_of
    from typicality.store import write_json

    common.pass_over("out")
    region = Region(masks, where_marked, hide, None if hide_shape is None else hide_shape.value)
    options = ImputeOptions(
        as_label, samples, result.value, guidance, jumps, sampler_steps, strength, draws
    )  # fmt: skip
    region.check()
    options.check()
    settings = common.settings(str(existing_run(run)))
    chosen: Any = None if part is None else part.value
    if common.dry_run:
        return show_plan(plan_of(run, settings, region, options, images, chosen), common, settings)
    found = fill(run, region, options, images, chosen, common.fresh, settings, common.progress)
    document = {"folder": str(found.folder), **found.summary}
    if write is not None:
        write_json(write, document)
    if common.json:
        print_json(document)
        return None
    errors = document.pop("errors", {})
    print_document(document)
    for name, entry in errors.items():
        better = f", the result is better in {entry['kept_better']:.0%}" if "kept_better" in entry else ""
        error = "" if entry["rmse_se"] is None else f" ± {entry['rmse_se']:.4f}"
        print_text(f"error of {name}: {entry['rmse']:.4f}{error}{better}")
    say(f"look at {found.folder / 'sheet.png'}")
    return None
