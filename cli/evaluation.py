"""`evaluate ...`: the quality benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.config import Settings
from typicality.errors import SettingsError, nearest

from .console import print_document, print_json, say
from .mining import existing_run
from .options import Common, given, with_options

app = typer.Typer(help="Measure the quality of a run.", no_args_is_help=True)

AtLeast = Annotated[
    list[str] | None,
    typer.Option("--at-least", metavar="NAME=VALUE", help="Exit code 1 where a measure is lower; for CI."),
]


def writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a file that cannot be written when the option is read, which is before any work.

    Raises
    ------
    SettingsError : for a folder.
    OutputError : where the file's folder cannot be written.
    """
    from typicality.store import check_writable

    if path is not None:
        check_writable(path)
        if path.is_dir():
            raise SettingsError(f"{option.opts[0]} takes a file, and {path} is a folder")
    return path


def picture_in(*suffixes: str) -> Callable[[typer.CallbackParam, Path | None], Path | None]:
    """Return what refuses a picture of another format than these, or where none can be written."""

    def check(option: typer.CallbackParam, path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() not in suffixes:
            raise SettingsError(f"{option.opts[0]} takes a file in {' or '.join(suffixes)}, not {path}")
        return writable(option, path)

    return check


Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="FILE", help="Also write the JSON document to a file.", callback=writable),
]


@app.command()
@with_options
def classify(
    common: Common,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory with a fine-tuned model.")],
    draws: Annotated[int, typer.Option("--draws", help="UNet draws an image and label; even.")] = 8,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Accuracy of the run's model as a diffusion classifier on held-out images."""
    from typicality.evaluation.classify import classify as evaluate

    common.pass_over("out", "fresh")
    limits, settings = parse_limits(at_least), common.settings(str(existing_run(run)))
    if common.dry_run:
        return show_plan({"run": str(run), "draws": draws}, common, settings)
    result = evaluate(run, draws, common.progress, settings).as_dict()
    finish("classify", result, limits, common, write)
    return None


@app.command()
@with_options
def autoencoder(
    common: Common,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="As for `mine`.")],
    label: Annotated[str | None, typer.Option("--label", "-l", metavar="COLUMN")] = None,
    group: Annotated[str | None, typer.Option("--group", metavar="COLUMN")] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Held-out images at most.")] = 500,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="PNG of originals and reconstructions.", callback=picture_in(".png")),
    ] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """How well the model's autoencoder keeps held-out images (PSNR); what it loses cannot be mined."""
    from typicality.evaluation.autoencoder import reconstruct

    common.pass_over("out", "fresh")
    limits = parse_limits(at_least)
    settings = common.settings(dataset, {"dataset": given(label=label, group=group)})
    if common.dry_run:
        return show_plan({"dataset": settings.dataset.source, "images at most": images}, common, settings)
    result = reconstruct(settings, images, picture, common.progress).as_dict()
    finish("autoencoder", result, limits, common, write)
    return None


@app.command()
@with_options
def estimator(
    common: Common,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that `mine` has filled.")],
    images: Annotated[int, typer.Option("--images", min=1, help="Images of the sample, of all labels alike.")] = 96,
    gold: Annotated[int, typer.Option("--gold", help="Independent draws of the gold standard.")] = 1000,
    paper: Annotated[
        list[int] | None,
        typer.Option("--paper", metavar="N", help="Draws of the published protocol; may be repeated [4, 16, 100]."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="PNG, PDF or SVG of overlap against evaluations.",
            callback=picture_in(".png", ".pdf", ".svg"),
        ),
    ] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Ways of drawing against a gold standard: UNet evaluations, rank correlation, overlap, calibration."""
    from typicality.evaluation.estimator import estimator as evaluate

    common.pass_over("out", "fresh")
    limits, protocols = parse_limits(at_least), tuple(paper or (4, 16, 100))
    settings = common.settings(str(existing_run(run)))
    if common.dry_run:
        plan = {"run": str(run), "images at most": images, "gold": gold, "paper": list(protocols)}
        return show_plan(plan, common, settings)
    result = evaluate(run, images, gold, protocols, picture, common.progress, settings).as_dict()
    finish("estimator", result, limits, common, write)
    return None


def parse_limits(texts: list[str] | None) -> dict[str, float]:
    limits = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or math.isnan(limits[name.strip()]):
            raise SettingsError(f"--at-least takes name=value, for instance accuracy=0.65, not {text!r}")
    return limits


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def show_plan(plan: dict[str, Any], common: Common, settings: Settings | None = None) -> None:
    """Print what an evaluation would do, and its settings; for `--dry-run`."""
    document = plan if settings is None else plan | {"settings": settings.model_dump(mode="json")}
    print_json(document) if common.json else print_document(document)


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a document holds by its name, and what lies in inner documents as `outer.inner`."""
    for name, value in document.items():
        yield prefix + name, value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")


def finish(
    benchmark: str, result: dict[str, Any], limits: dict[str, float], common: Common, write: Path | None
) -> None:
    """Write and print the result, then hold it against the limits: exit code 1 where it does not reach one.

    A measure that could not be taken (not a number) reaches no limit.

    Raises
    ------
    SettingsError : for a limit on something that is not measured; the result has been printed by then.
    """
    from typicality.store import write_json

    if write is not None:
        write_json(write, result)
    if common.json:
        print_json(result)
    else:
        print_document(result)
    numbers = {name: math.nan if v is None else v for name, v in _flat(result) if v is None or is_number(v)}
    for name in limits:
        if name not in numbers:
            raise SettingsError(f"{benchmark} has no measure {name!r}: {nearest(name, numbers)}")
    missed = [name for name, limit in limits.items() if not numbers[name] >= limit]
    for name in missed:
        what = "could not be measured" if math.isnan(numbers[name]) else f"is {numbers[name]}, below {limits[name]}"
        say(f"{name} {what}")
    if missed:
        raise typer.Exit(1)
