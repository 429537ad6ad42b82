"""`translate`, `trends` and `evaluate translate`: images as another label, and elements that change over labels."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from typicality.errors import SettingsError

from .console import print_document, print_json, print_text, say
from .evaluation import AtLeast, Write, finish, parse_limits, picture_in, show_plan
from .mining import existing_run
from .options import WORK, Common, RunArgument, with_options

if TYPE_CHECKING:
    from typicality.applications.translate.methods import Method


class MethodName(StrEnum):
    delta = "delta"
    pnp = "pnp"
    sdedit = "sdedit"
    edit_friendly = "edit-friendly"
    mean = "mean"


Source = Annotated[str | None, typer.Option("--from", metavar="LABEL", help="Label of the images.")]
Target = Annotated[str | None, typer.Option("--to", metavar="LABEL", help="Label to translate to.")]
SamplerSteps = Annotated[int, typer.Option("--sampler-steps", help="Steps of the sampler.", rich_help_panel=WORK)]


@with_options
def translate(
    common: Common,
    run: RunArgument,
    source: Source = None,
    target: Target = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Every label to every other.")] = False,
    method: Annotated[
        MethodName, typer.Option("--method", help="pnp is the published choice; delta keeps most of the subject.")
    ] = MethodName.delta,
    strength: Annotated[
        float | None, typer.Option("--strength", help="Share of the noise schedule that is used, 0 to 1.")
    ] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Weight of the target label.")] = None,
    inject: Annotated[
        float | None, typer.Option("--inject", help="Share of the steps with injected features (pnp); 0.8 by default.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", help="Share of the source that stays (mean); 0.2 by default.")
    ] = None,
    average: Annotated[
        float | None, typer.Option("--average", help="Share of the label's own average (mean); 0.2 by default.")
    ] = None,
    sampler_steps: SamplerSteps = 25,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Images of a label at most.", rich_help_panel=WORK)
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Draws of the typicality.", rich_help_panel=WORK)] = 8,
    write: Write = None,
) -> None:
    """Re-synthesise the images of one label as another, and score both sides with the same noise."""
    from typicality.applications.translate.methods import TranslateOptions, evaluations_of
    from typicality.applications.translate.run import check_pair, translate_all_pairs
    from typicality.applications.translate.run import translate as translate_pair
    from typicality.dataset import load_dataset

    common.pass_over("out")
    if all_pairs == (source is not None or target is not None) or (source is None) != (target is None):
        raise SettingsError("name two labels with --from and --to, or use --all-pairs")
    options = TranslateOptions(method.value, strength, guidance, inject, keep, average, sampler_steps, draws).resolved()
    options.check_steps()
    settings = common.settings(str(existing_run(run)))
    if common.dry_run:
        if source is not None and target is not None:
            check_pair(load_dataset(settings.dataset), source, target)
        plan = {"run": str(run), "options": options.as_dict(), "unet_evaluations_an_image": evaluations_of(options)}
        show(plan | {"settings": settings.model_dump(mode="json")}, common, None)
        return
    if source is not None and target is not None:
        found = translate_pair(run, source, target, options, images, common.fresh, settings, common.progress)
        show({"folder": str(found.folder), **found.summary}, common, write)
        return
    table = translate_all_pairs(run, options, images, common.fresh, settings, common.progress)
    if not common.json:
        for row in table.to_pylist():
            print_text(
                f"{row['from']} -> {row['to']}: {row['flip_rate']:.0%} of {row['n']} flipped, "
                f"typicality {row['mean_change']:+.5f}"
            )
    show({"pairs": table.to_pylist()}, common, write, text=False)


@with_options
def trends(
    common: Common,
    run: RunArgument,
    images: Annotated[
        int, typer.Option("--images", min=4, help="Images searched in every label.", rich_help_panel=WORK)
    ] = 400,
    members: Annotated[
        int, typer.Option("--members", min=2, help="Best members of a cluster that define it.", rich_help_panel=WORK)
    ] = 16,
    draws: Annotated[int, typer.Option("--draws", help="Draws of members' scores.", rich_help_panel=WORK)] = 4,
    write: Write = None,
) -> None:
    """When each visual element appears, peaks and vanishes over the labels; which labels look alike."""
    from typicality.applications.trends.run import trends as follow
    from typicality.scoring.noise import check_draws

    check_draws(draws)
    common.pass_over("out", "fresh")
    settings = common.settings(str(existing_run(run)))
    if common.dry_run:
        plan = {"run": str(run), "images": images, "members": members, "draws": draws}
        show(plan | {"settings": settings.model_dump(mode="json")}, common, None)
        return
    found = follow(run, images, members, draws, settings=settings, progress=common.progress)
    if not common.json:
        for line in found.document["timelines"]:
            if line["direction"] != "none":
                rates = " ".join("-" if at["rate"] is None else f"{at['rate']:.0%}" for at in line["at"])
                print_text(f"{line['direction']}: element {line['cluster'] + 1} of {line['label']}: {rates}")
        say(f"{found.document['n_rising']} rise, {found.document['n_falling']} fall; written to {found.folder}")
    show(found.document, common, write, text=False)


@with_options
def evaluate_translate(
    common: Common,
    run: RunArgument,
    source: Annotated[str, typer.Option("--from", metavar="LABEL", help="Label of the images.")],
    target: Annotated[str, typer.Option("--to", metavar="LABEL", help="Label to translate to.")],
    methods: Annotated[
        list[MethodName] | None, typer.Option("--methods", help="Again for more; all by default.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose strength, guidance, injection and keep on a part of the subjects."),
    ] = False,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Test subjects at most.")] = None,
    tune_images: Annotated[int, typer.Option("--tune-images", min=1, help="Tuning subjects at most.")] = 30,
    sampler_steps: SamplerSteps = 25,
    draws: Annotated[int, typer.Option("--draws", help="Draws of the diffusion classifier.")] = 8,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the CNN that judges labels.")] = 12,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="PNG of examples.", callback=picture_in(".png"))
    ] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Translations against the truth: the same subject exists with the other label."""
    from typicality.applications.translate.methods import METHODS
    from typicality.evaluation.translate import evaluate_translate as evaluate
    from typicality.evaluation.translate import plan_of

    common.pass_over("out", "fresh")
    limits = parse_limits(at_least)
    settings = common.settings(str(existing_run(run)))
    chosen = cast("list[Method]", [m.value for m in methods]) if methods else METHODS
    work: dict[str, Any] = {
        "images": images, "tune": tune, "tune_images": tune_images, "steps": sampler_steps, "draws": draws,
    }  # fmt: skip
    if common.dry_run:
        return show_plan(plan_of(settings, run, source, target, chosen, **work), common, settings)
    result = evaluate(
        run, source, target, chosen, **work, epochs=epochs, picture=picture, settings=settings,
        progress=common.progress,
    )  # fmt: skip
    finish("translate", result, limits, common, write)
    return None


def show(document: dict[str, Any], common: Common, write: Path | None, text: bool = True) -> None:
    """Print a document as JSON where that was asked for, else line by line; write it to a file where one is named."""
    from typicality.store import write_json

    if write is not None:
        write_json(write, document)
    if common.json:
        print_json(document)
    elif text:
        print_document(document)
