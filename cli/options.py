"""The common options: the same names and meanings for every command, resolved to settings in one place."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.config import Settings, merge, parse_assignment
from typicality.progress import Progress

from .console import progress_for


class DeviceName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class DtypeName(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


COMMON = "Common options"


@dataclass(frozen=True)
class Common:
    """Options that every command takes."""

    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings.", rich_help_panel=COMMON)
    ] = None
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. score.draws=8.", rich_help_panel=COMMON),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run directory [reports/<dataset>-<label>].", rich_help_panel=COMMON),
    ] = None
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="ID|DIR", help="auto, base, a hub id or a folder.", rich_help_panel=COMMON),
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.", rich_help_panel=COMMON)] = None
    device: Annotated[DeviceName | None, typer.Option("--device", rich_help_panel=COMMON)] = None
    dtype: Annotated[DtypeName | None, typer.Option("--dtype", rich_help_panel=COMMON)] = None
    offline: Annotated[bool, typer.Option("--offline", help="Never contact a hub.", rich_help_panel=COMMON)] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings and plan, do nothing.", rich_help_panel=COMMON)
    ] = False
    fresh: Annotated[
        bool,
        typer.Option("--fresh/--resume", help="Start anew, or continue what is there.", rich_help_panel=COMMON),
    ] = False
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=COMMON)] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=COMMON)] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log details; show tracebacks.", rich_help_panel=COMMON)
    ] = False

    @property
    def progress(self) -> Progress:
        return progress_for(self.quiet)

    def settings(self, source: str | None, *layers: Mapping[str, Any]) -> Settings:
        """Resolve the settings: data set's or run's, --config, options, --set."""
        from typicality.pipeline import resolve_settings

        chosen = {
            "name": self.model,
            "device": self.device and self.device.value,
            "dtype": self.dtype and self.dtype.value,
            "offline": self.offline or None,
        }
        own: dict[str, Any] = {"model": {name: value for name, value in chosen.items() if value is not None}}
        if self.seed is not None:
            own["seed"] = self.seed
        assigned = [parse_assignment(text) for text in self.assign or []]
        return resolve_settings(source, self.config, [merge(*layers, own, *assigned)])

    def folder(self, source: str | None) -> Path | None:
        """--out, or the run directory that was named as the source."""
        from typicality.pipeline import run_record

        if self.out is not None:
            return self.out
        return Path(source) if source is not None and run_record(source) is not None else None


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None and value is not False}


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command, which receives them as its argument `common`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "common"]
    hints = inspect.get_annotations(Common, eval_str=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(Common)
    ]

    @functools.wraps(command)
    def shell(**arguments: Any) -> None:
        common = Common(**{f.name: arguments.pop(f.name) for f in fields(Common)})
        if common.offline:  # read when the hub's packages are first imported, which is later
            os.environ["HF_HUB_OFFLINE"] = "1"
        if common.verbose:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        command(**arguments, common=common)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    shell.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]
    shell.__annotations__ = {p.name: p.annotation for p in [*keyword, *shared]} | {"return": None}
    return shell
