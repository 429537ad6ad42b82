"""`bench`, `estimate`, `pretrain`, `datasets`, `doctor`: what is there, what this machine can do, and what it costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_text, words
from .evaluation import AtLeast, Write, finish, parse_limits, show_plan
from .options import (
    PLACE,
    SETTINGS,
    Common,
    Data,
    DatasetArgument,
    DeviceName,
    DtypeName,
    Patch,
    Scoring,
    Training,
    given,
    with_options,
)


@with_options
def bench(
    common: Common,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Images to score [by speed].")] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Speed of scoring against the bare UNet and against this machine's peak, in about three minutes."""
    from typicality.evaluation.speed import as_measured
    from typicality.evaluation.speed import bench as measure

    common.pass_over(*PLACE, why="it keeps nothing but what --write names")
    limits = parse_limits(at_least)
    settings = common.settings(None, {"dataset": {"label": "year"}})
    if common.dry_run:
        return show_plan({"images": images or "by speed", "kept": write or "nothing"}, common, as_measured(settings))
    finish("bench", measure(settings, images, common.progress), limits, common, write)
    return None


@with_options
def estimate(
    common: Common, data: Data, training: Training, scoring: Scoring, dataset: DatasetArgument = None,
    patch: Patch = None,
) -> None:  # fmt: skip
    """Cost before work: images, UNet evaluations, time and disk of `mine` with the same options."""
    from typicality.applications.estimate import PROBE_IMAGES
    from typicality.applications.estimate import estimate as measure
    from typicality.dataset import load_dataset

    common.pass_over(*PLACE, why="it keeps nothing")
    layers = [data.layer(), training.layer(), scoring.layer(), {"mine": given(patch=patch)}]
    settings = common.settings(dataset, *layers)
    if common.dry_run:
        n = len(load_dataset(settings.dataset))
        plan = {"images": n, "images that are timed": min(n, PROBE_IMAGES), "kept": "nothing"}
        return show_plan(plan, common, settings)
    result = measure(settings, common.progress).as_dict()
    if common.json:
        return print_json(result)
    stages = result.pop("stages")
    print_text(f"images: {result['images']}")
    print_text(f"on: {result['device']}, {result['dtype']}")
    for name, cost in stages.items():
        print_text(f"  {name + ':':<10} {cost['unet_evaluations']:>10} UNet evaluations  {duration(cost['seconds'])}")
    print_text(f"together: {result['unet_evaluations']} UNet evaluations, {duration(result['seconds'])}")
    each = f"{result['disk_bytes_an_image'] / 1e3:.1f} KB an image"
    print_text(f"disk: {result['disk_bytes'] / 1e6:.0f} MB, of it {each}")
    return None


def duration(seconds: float) -> str:
    """1 h 05 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


@with_options
def pretrain(
    common: Common,
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Parquet file with the columns image and caption.")],
    autoencoder_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of the autoencoder.")] = None,
    denoiser_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of the denoiser.")] = None,
) -> None:
    """Train a small base model from nothing on captioned images (how the bundled base was made), on the CPU."""
    from typicality.errors import SettingsError
    from typicality.model.pretrain import PretrainSettings, plan_of
    from typicality.model.pretrain import pretrain as train

    if common.out is None:
        raise SettingsError("pretrain needs --out DIR, the folder of the new model")
    common.reject("config", "set", "model", why="it begins from nothing and has few settings")
    if common.device not in (None, DeviceName.auto, DeviceName.cpu) or common.dtype not in (None, DtypeName.auto):
        raise SettingsError("pretrain runs on the CPU in mixed bfloat16: leave out --device and --dtype")
    chosen = given(autoencoder_steps=autoencoder_steps, denoiser_steps=denoiser_steps, seed=common.seed)
    settings = PretrainSettings(**chosen)
    if common.dry_run:
        return show_plan(plan_of(corpus, common.out, settings, common.fresh), common)
    if not common.quiet:
        logging.getLogger("typicality.model.pretrain").setLevel(logging.INFO)
        logging.basicConfig(format="%(message)s")
    summary = train(corpus, common.out, settings, common.fresh)
    if common.json:
        print_json(summary)
    else:
        print_text(str(common.out))
    return None


@with_options
def datasets(common: Common) -> None:
    """List the built-in data sets, and how to get the others."""
    from dataclasses import asdict

    from typicality.dataset import builtin_datasets

    common.pass_over(*SETTINGS, *PLACE, why="it only lists what there is")
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
    from typicality.machine import examine

    common.pass_over("seed", *PLACE, why="it keeps nothing and draws nothing")
    settings = common.settings(None)
    if common.dry_run:
        return show_plan({"timed": "the UNet in each precision on offer", "kept": "nothing"}, common, settings)
    found = examine(settings.model)
    if common.json:
        return print_json(found)
    for name, value in found.items():
        if isinstance(value, dict):
            print_text(f"{name}:")
            for inner, content in value.items():
                print_text(f"  {inner}: {words(content)}")
        else:
            print_text(f"{name}: {words(value)}")
    return None
