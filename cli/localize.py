"""`localize` and `evaluate localize`: where labels show in images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import print_json, print_text
from .evaluation import AtLeast, Write, finish, parse_limits, picture_in, show_plan
from .options import WORK, Common, RunArgument, given, with_options


@dataclass(frozen=True)
class Where:
    """Options of both commands: what to contrast with, the ground truth, and how to draw."""

    against: Annotated[
        str | None,
        typer.Option("--against", metavar="LABEL", help="Contrast with this label too, e.g. the healthy one."),
    ] = None
    masks: Annotated[
        str | None, typer.Option("--masks", metavar="COLUMN", help="Ground truth: column with paths of masks.")
    ] = None
    boxes: Annotated[
        str | None,
        typer.Option("--boxes", metavar="FILE", help="Ground truth: COCO file (categories are labels), or column(s)."),
    ] = None
    draws: Annotated[
        int, typer.Option("--draws", help="UNet draws an image, label and range; even.", rich_help_panel=WORK)
    ] = 16
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="LOW:HIGH", rich_help_panel=WORK,
            help="Timesteps as shares of the training steps; several are drawn apart, and the best is chosen.",
        ),
    ] = None  # fmt: skip

    def resolved(self, common: Common, run: Path) -> tuple[Any, Any]:
        """Return the run's settings with the ground truth that was named, and the options of maps."""
        from typicality.applications.localize.work import Options

        from .mining import existing_run

        common.pass_over("out", "fresh")
        settings = common.settings(str(existing_run(run)), {"dataset": given(masks=self.masks, boxes=self.boxes)})
        return settings, Options(self.against, self.draws, tuple(parse_range(text) for text in self.ranges or ()))


@with_options
def localize(
    common: Common,
    run: RunArgument,
    where: Where,
    overlays: Annotated[int, typer.Option("--overlays", min=0, help="Pictures a label.")] = 8,
    write_masks: Annotated[bool, typer.Option("--write-masks", help="A PNG mask an image and label.")] = False,
) -> None:
    """Where in the images each label shows: maps, boxes and masks; measured where there is ground truth."""
    from typicality.applications.localize import localize as work
    from typicality.applications.localize import plan_of

    settings, options = where.resolved(common, run)
    if common.dry_run:
        return show_plan(plan_of(settings, run, options), common, settings)
    result = work(
        settings, run, options, overlays=overlays, write_masks=write_masks, progress=common.progress
    )  # fmt: skip
    if common.json:
        print_json(result.summary)
        return None
    for label, facts in result.summary["labels"].items():
        print_text(f"{label}: {facts['recipe']}; threshold {facts['threshold']:g} ({facts['threshold_by']})")
    for label, row in result.summary.get("measures", {}).items():
        print_text(
            f"{label}: average precision {row['average_precision']:.3f}, prevalence {row['prevalence']:.3f}, "
            f"lift {row['lift']:.1f}, pointing {row['pointing']:.2f}, best IoU {row['iou_best']:.2f}"
        )
    print_text(f"{result.summary['boxes']} boxes: {result.folder / 'localization.parquet'}")
    return None


@with_options
def evaluate_localize(
    common: Common,
    run: RunArgument,
    where: Where,
    before: Annotated[
        bool, typer.Option("--before/--no-before", help="Measure the model before fine-tuning as well.")
    ] = True,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the CNN behind Grad-CAM.")] = 20,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of best, median and worst cases.", callback=picture_in(".png"))
    ] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Average precision of maps over pixels, against Grad-CAM, D^2 and the plain denoising error."""
    from typicality.applications.localize import plan_of
    from typicality.evaluation.localize import localize as evaluate

    limits = parse_limits(at_least)
    settings, options = where.resolved(common, run)
    if common.dry_run:
        plan = plan_of(settings, run, options)
        plan["UNet evaluations at most"] *= 2 if before and settings.finetune.enabled else 1
        return show_plan(plan | {"epochs of the CNN": epochs}, common, settings)
    result = evaluate(
        settings, run, options, before=before, epochs=epochs, picture=picture, progress=common.progress
    )  # fmt: skip
    finish("localize", result, limits, common, write)
    return None


def parse_range(text: str) -> tuple[float, float]:
    """Turn 0.1:0.4 into (0.1, 0.4)."""
    from typicality.errors import SettingsError

    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise SettingsError(f"--range takes LOW:HIGH, for instance 0.1:0.4, not {text!r}") from None
