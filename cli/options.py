"""Groups of options with the same names and meanings for every command, resolved to settings in one place."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.config import Settings, layer_of, merge, parse_assignment
from typicality.errors import SettingsError
from typicality.progress import Progress

from .console import progress_for, say


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


class PrecisionName(StrEnum):
    fast = "fast"
    standard = "standard"
    exact = "exact"


class ProtocolName(StrEnum):
    adaptive = "adaptive"
    uniform = "uniform"
    paper = "paper"


UNUSED = {
    "out": "what it writes goes to the run directory that it is given, or where another of its options says",
    "fresh": "what was done under the same settings is the same when done again",
}
"""Why a command has no use for a common option."""
SETTINGS = ("config", "set", "model", "seed", "device", "dtype")
"""Common options that only say what the settings are."""
PLACE = ("out", "fresh")
"""Common options that only say where a run goes, and whether it begins anew."""
COMMON, DATA, WORK = "Common options", "Data", "Amount of work"

DatasetArgument = Annotated[
    str | None,
    typer.Argument(metavar="DATASET", help="Built-in name, folder, table, hf://owner/name, or a run directory."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that `mine` has filled.")]
Patch = Annotated[int | None, typer.Option("--patch", help="Patch side in model pixels.", rich_help_panel=WORK)]


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

    def settings(
        self, source: str | None, *layers: Mapping[str, Any], usual: Mapping[str, Any] | None = None
    ) -> Settings:
        """Resolve the settings: data set's or run's, those usual for the command, --config, options, --set."""
        from typicality.run import resolve_settings

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
        chosen = merge(*layers, own, *assigned)
        settings = resolve_settings(source, self.config, [chosen], usual)
        for sentence in without_effect(chosen, settings):
            say(f"warning: {sentence}")
        return settings

    def pass_over(self, *names: str, why: str | None = None) -> None:
        """Warn of options that were given to a command on which they have no effect, and would do no harm.

        Every command takes every common option, so that a script may give the same ones to all.

        Parameters
        ----------
        names : of options, without dashes
        why : what the command does instead; that of `UNUSED` by default
        """
        for name in self._given(names):
            say(f"warning: --{name} has no effect on this command; {why or UNUSED[name]}")

    def reject(self, *names: str, why: str) -> None:
        """Refuse options that were given, where what they ask for would silently not be done.

        Raises
        ------
        SettingsError
        """
        for name in self._given(names):
            raise SettingsError(f"--{name} has no effect on this command; {why}")

    def _given(self, names: Iterable[str]) -> list[str]:
        values = {name: getattr(self, "assign" if name == "set" else name) for name in names}
        return [n for n, v in values.items() if v is not None and v is not False and v != []]  # --seed 0 was given

    def folder(self, source: str | None) -> Path | None:
        """--out, or the run directory that was named as the source."""
        from typicality.run import run_record

        if self.out is not None:
            return self.out
        return Path(source) if source is not None and run_record(source) is not None else None


@dataclass(frozen=True)
class Settable:
    """Options each of which is a setting."""

    def layer(self) -> dict[str, Any]:
        """Return the options as a layer of settings."""
        return layer_of({n: v.value if isinstance(v, StrEnum) else v for n, v in asdict(self).items()})


@dataclass(frozen=True)
class Data(Settable):
    """Options of every command that reads a data set."""

    label: Annotated[
        str | None, typer.Option("--label", "-l", metavar="COLUMN", help="Column that holds the label.")
    ] = None
    bin: Annotated[
        float | None,
        typer.Option("--bin", help="Width of a numeric label's bins: 10 for decades.", rich_help_panel=DATA),
    ] = None
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="Relatives stay on one side of a split.", rich_help_panel=DATA),
    ] = None
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            rich_help_panel=DATA,
            help="Keep rows, e.g. \"camera == 'a'\"; a column such as `my camera` in backticks.",
        ),
    ] = None
    label_separator: Annotated[
        str | None, typer.Option("--label-separator", help="Several labels an image, e.g. '|'.", rich_help_panel=DATA)
    ] = None
    image_column: Annotated[
        str | None,
        typer.Option(
            "--image-column", metavar="COLUMN", help="Column with the image or its path.", rich_help_panel=DATA
        ),
    ] = None
    max_per_label: Annotated[
        int | None, typer.Option("--max-per-label", help="Keep so many images of a label.", rich_help_panel=DATA)
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="An unreadable image is an error.", rich_help_panel=DATA)] = (
        False
    )
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Template with {label}, e.g. 'a car from the {label}s'.",
            rich_help_panel=DATA,
        ),
    ] = None  # fmt: skip
    null_prompt: Annotated[
        str | None,
        typer.Option(
            "--null-prompt", metavar="TEXT", help="The same without its label, e.g. 'a car' [made from --prompt].",
            rich_help_panel=DATA,
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Training(Settable):
    """Options of every command that may fine-tune."""

    steps: Annotated[int | None, typer.Option("--steps", help="Fine-tuning steps.", rich_help_panel=WORK)] = None
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Fine-tuning time instead.", rich_help_panel=WORK)
    ] = None
    folds: Annotated[
        int | None,
        typer.Option("--folds", help="Score each image with a model that has not seen it.", rich_help_panel=WORK),
    ] = None
    no_finetune: Annotated[
        bool, typer.Option("--no-finetune", help="Score with the model as it is.", rich_help_panel=WORK)
    ] = False
    keep_model: Annotated[
        bool,
        typer.Option("--keep-model", help="Images were added: score them with the model there.", rich_help_panel=WORK),
    ] = False


@dataclass(frozen=True)
class Scoring(Settable):
    """Options of every command that scores."""

    draws: Annotated[
        int | None, typer.Option("--draws", help="Draws an image (the first pass of adaptive).", rich_help_panel=WORK)
    ] = None
    protocol: Annotated[
        ProtocolName | None,
        typer.Option("--protocol", help="paper: 100 independent draws, as published.", rich_help_panel=WORK),
    ] = None
    precision: Annotated[
        PrecisionName | None,
        typer.Option("--precision", help="How many draws adaptive scoring may take.", rich_help_panel=WORK),
    ] = None
    overlap: Annotated[
        float | None,
        typer.Option(
            "--overlap", metavar="SHARE", help="Score until so many of the patches are expected to be right, e.g. 0.9.",
            rich_help_panel=WORK,
        ),
    ] = None  # fmt: skip


def without_effect(chosen: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return a sentence for each setting that was chosen and that another setting leaves without effect."""
    protocol = settings.score.protocol
    idle: list[tuple[str, tuple[str, ...], str]] = []
    if protocol != "adaptive":
        idle.append(
            (
                "score", ("precision", "overlap", "rounds", "further_draws", "refine_draws"),
                f"the protocol {protocol} takes the same draws for every image",
            )
        )  # fmt: skip
    if not settings.finetune.enabled:
        idle.append(("finetune", ("steps", "minutes", "folds", "keep"), "the model is not fine-tuned"))
    return [
        f"{section}.{name} has no effect, for {why}"
        for section, names, why in idle
        for name in names
        if chosen.get(section, {}).get(name) is not None
    ]


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None and value is not False}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each argument that is a group of options (Common, Data, Training, Scoring) into those options.

    A command declares `common: Common, data: Data` and receives them filled; its own arguments come first.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters if p.name not in groups]
    order = sorted(groups, key=lambda name: name == "common")  # the common options are listed last
    shared = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default,
            annotation=inspect.get_annotations(groups[name], eval_str=True)[f.name],
        )
        for name in order
        for f in fields(groups[name])
    ]  # fmt: skip

    @functools.wraps(command)
    def shell(**arguments: Any) -> None:
        filled = {
            name: group(**{f.name: arguments.pop(f.name) for f in fields(group)}) for name, group in groups.items()
        }
        common: Common = filled["common"]
        if common.offline:  # read when the hub's packages are first imported, which is later
            os.environ["HF_HUB_OFFLINE"] = "1"
        if common.verbose:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        command(**arguments, **filled)

    shell.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    shell.__annotations__ = {p.name: p.annotation for p in [*own, *shared]} | {"return": None}
    return shell
