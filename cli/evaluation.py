"""`evaluate ...`: the quality benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.errors import SettingsError, nearest

from .console import print_json, print_text, say
from .options import Common, given, with_options

app = typer.Typer(help="Measure the quality of a run.", no_args_is_help=True)

AtLeast = Annotated[
    list[str] | None,
    typer.Option("--at-least", metavar="NAME=VALUE", help="Exit code 1 where a measure is lower; for CI."),
]
Write = Annotated[Path | None, typer.Option("--write", metavar="FILE", help="Also write the JSON document to a file.")]


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

    limits = parse_limits(at_least)
    result = evaluate(run, draws, common.progress).as_dict()
    finish("classify", result, limits, common, write)


@app.command()
@with_options
def autoencoder(
    common: Common,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="As for `mine`.")],
    label: Annotated[str | None, typer.Option("--label", "-l", metavar="COLUMN")] = None,
    group: Annotated[str | None, typer.Option("--group", metavar="COLUMN")] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Held-out images at most.")] = 500,
    picture: Annotated[Path | None, typer.Option("--picture", help="PNG of originals and reconstructions.")] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """How well the model's autoencoder keeps held-out images (PSNR); what it loses cannot be mined."""
    from typicality.evaluation.autoencoder import reconstruct

    limits = parse_limits(at_least)
    settings = common.settings(dataset, {"dataset": given(label=label, group=group)})
    result = reconstruct(settings, images, picture, common.progress).as_dict()
    finish("autoencoder", result, limits, common, write)


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
        Path | None, typer.Option("--picture", metavar="FILE", help="Figure of overlap against evaluations.")
    ] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Ways of drawing against a gold standard: UNet evaluations, rank correlation, overlap, calibration."""
    from typicality.evaluation.estimator import estimator as evaluate

    limits = parse_limits(at_least)
    result = evaluate(run, images, gold, tuple(paper or (4, 16, 100)), picture, common.progress).as_dict()
    finish("estimator", result, limits, common, write)


def parse_limits(texts: list[str] | None) -> dict[str, float]:
    limits = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise SettingsError(f"--at-least takes name=value, for instance accuracy=0.65, not {text!r}")
    return limits


def finish(
    benchmark: str, result: dict[str, Any], limits: dict[str, float], common: Common, write: Path | None
) -> None:
    """Print the result, and exit with 1 where it is below a limit."""
    import json

    from typicality.store import write_text

    for name in limits:
        if not isinstance(result.get(name), (int, float)):
            numbers = [n for n, v in result.items() if isinstance(v, (int, float))]
            raise SettingsError(f"{benchmark} has no measure {name!r}: {nearest(name, numbers)}")
    if write is not None:
        write_text(write, json.dumps(result, indent=2, ensure_ascii=False, default=str) + "\n")
    if common.json:
        print_json(result)
    else:
        for name, value in result.items():
            if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
                print_text(f"{name}:")
                for row in value:
                    print_text("  " + "  ".join(f"{n} {v}" for n, v in row.items() if v is not None))
            else:
                print_text(f"{name}: {value}")
    breaches = [f"{name} is {result[name]}, below {limit}" for name, limit in limits.items() if result[name] < limit]
    for breach in breaches:
        say(breach)
    if breaches:
        raise typer.Exit(1)
