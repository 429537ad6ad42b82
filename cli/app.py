"""The application: its commands in the order a user meets them, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from typicality.errors import InputError, InterruptedRun, OutputError, TypicalityError

from . import audit, augment, evaluation, evidence, exchange, impute, localize, machine, mining, tabular, translate
from .console import print_text, say

ORDER = (
    "mine",
    "finetune",
    "score",
    "report",
    "audit",
    "localize",
    "translate",
    "trends",
    "augment",
    "impute",
    "tabular",
    "evaluate",
    "bench",
    "estimate",
    "diff",
    "export",
    "pretrain",
    "datasets",
    "doctor",
)


class InOrder(TyperGroup):
    """Lists groups of commands among the commands, in the order in which a user meets them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="typicality",
    cls=InOrder,
    help="What is typical of each label of an image data set, measured with a diffusion model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("mine")(mining.mine)
app.command("finetune")(mining.finetune)
app.command("score")(mining.score)
app.command("report")(mining.report)
app.command("audit")(audit.audit)
app.command("localize")(localize.localize)
app.command("translate")(translate.translate)
app.command("trends")(translate.trends)
app.command("augment")(augment.augment)
app.command("impute")(impute.impute)
app.add_typer(tabular.app, name="tabular")
evaluation.app.command("elements")(evidence.elements)
evaluation.app.command("labels")(evidence.labels)
evaluation.app.command("planted")(evidence.planted)
evaluation.app.command("localize")(localize.evaluate_localize)
evaluation.app.command("translate")(translate.evaluate_translate)
evaluation.app.command("augment")(augment.evaluate_augment)
app.add_typer(evaluation.app, name="evaluate")
app.command("bench")(machine.bench)
app.command("estimate")(machine.estimate)
app.command("diff")(exchange.diff)
app.command("export")(exchange.export)
app.command("pretrain")(machine.pretrain)
app.command("datasets")(machine.datasets)
app.command("doctor")(machine.doctor)


def version(wanted: bool) -> None:
    if wanted:
        import typicality

        print_text(f"typicality {typicality.__version__}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What is typical of each label of an image data set, measured with a diffusion model."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 a limit was breached, 2 wrong input, 130 interrupted, 70 our bug."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    verbose = any(word in ("--verbose", "-v") for word in sys.argv[1:])
    code = run(sys.argv[1:], verbose)
    try:
        sys.stdout.flush()
    except OSError as error:
        if code != 2 and not isinstance(error, BrokenPipeError):  # who reads a part of it with `head` knows
            code = failed(OutputError(f"cannot write to standard output: {error.strerror}"), 2, verbose)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it is tried again on the way out
    sys.exit(code)


def run(arguments: list[str], verbose: bool = False) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(arguments, standalone_mode=False)
    except InterruptedRun as stop:
        say(str(stop))
        return 130
    except InputError as error:
        return failed(error, 2, verbose)
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except TypicalityError as error:
        return failed(error, 70, verbose)
    except OSError as error:
        from typicality.store import is_full_disk

        return failed(error, 2, verbose) if is_full_disk(error) else usage_or_bug(error, verbose)
    except Exception as error:  # the last line of defence: say that it is our bug, and how to report it
        return usage_or_bug(error, verbose)
    return code if isinstance(code, int) else 0


def failed(error: BaseException, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    say(f"error: {error}")
    return code


def usage_or_bug(error: Exception, verbose: bool) -> int:
    """Errors of the command line itself carry an exit code; anything else is a bug."""
    show: Any = getattr(error, "format_message", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        say(show())
        return 2
    if show is not None:
        context = getattr(error, "ctx", None)
        hint = f" (try `{context.command_path} --help`)" if context is not None else ""
        say(f"error: {show()}{hint}")
        return 2
    if type(error).__name__ == "Abort":
        return 130
    if verbose:
        traceback.print_exc()
    say(
        f"internal error: {type(error).__name__}: {error}\n"
        "This is a bug of typicality. Please report it with the output of the same command with --verbose."
    )
    return 70
