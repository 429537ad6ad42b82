"""`pretrain`, `datasets`, `doctor`: what is there, what this machine can do, and how the base model was made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_text
from .options import Common, given, with_options


@with_options
def pretrain(
    common: Common,
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Parquet file with the columns image and caption.")],
    autoencoder_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of the autoencoder.")] = None,
    denoiser_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of the denoiser.")] = None,
) -> None:
    """Train a small base model from nothing on captioned images (how the bundled base was made)."""
    from typicality.errors import SettingsError
    from typicality.model.pretrain import PretrainSettings
    from typicality.model.pretrain import pretrain as train

    if common.out is None:
        raise SettingsError("pretrain needs --out DIR, the folder of the new model")
    chosen = given(autoencoder_steps=autoencoder_steps, denoiser_steps=denoiser_steps, seed=common.seed)
    if not common.quiet:
        logging.getLogger("typicality.model.pretrain").setLevel(logging.INFO)
        logging.basicConfig(format="%(message)s")
    summary = train(corpus, common.out, PretrainSettings(**chosen))
    if common.json:
        print_json(summary)
    else:
        print_text(str(common.out))


@with_options
def datasets(common: Common) -> None:
    """List the built-in data sets, and how to get the others."""
    from dataclasses import asdict

    from typicality.dataset import builtin_datasets

    found = builtin_datasets()
    if common.json:
        print_json([asdict(info) for info in found])
        return
    for info in found:
        state = "ready" if info.installed else "not installed"
        size = f"{info.images} images"
        print_text(f"{info.name:<12} {state:<14} {size:<16} labels: {', '.join(info.labels)}")
        print_text(f"             {info.description}")
        if not info.installed:
            print_text(f"             {info.how_to_get}")


@with_options
def doctor(common: Common) -> None:
    """Say what this machine can do: versions, devices, precision, the model that would be used, its speed."""
    from typicality.doctor import examine

    found = examine(common.settings(None).model)
    if common.json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print_text(f"{name}:")
            for inner, content in value.items():
                print_text(f"  {inner}: {content}")
        else:
            print_text(f"{name}: {value}")
