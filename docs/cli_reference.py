"""Write the reference of the command line from the commands' own help: `make docs`.

The text goes to stdout. `tests/test_docs.py` fails when `docs/cli.md` says something else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from typicality.cli.app import app

WIDTH = 100
HEADER = """# Command line

Written by `make docs` from the commands' own help; do not edit.

Exit codes: 0 done; 1 done, and a limit such as `--at-least` was missed; 2 the input or the settings are wrong (one
message says what to change); 130 interrupted, the same command continues; 70 a bug of ours.
"""


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command's path and the command, then everything below it, in the order of the help."""
    yield path, command
    for name in command.list_commands(typer.Context(command)) if hasattr(command, "list_commands") else ():
        yield from commands(command.commands[name], (*path, name))


def help_of(command: Any, path: tuple[str, ...]) -> str:
    """Return what `--help` prints, at a fixed width."""
    context = typer.Context(command, info_name=" ".join(path), terminal_width=WIDTH, max_content_width=WIDTH)
    text: str = command.get_help(context)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def reference() -> str:
    """Return the whole page as Markdown."""
    parts = [HEADER]
    for path, command in commands(typer.main.get_command(app), ("typicality",)):
        parts.append(f"{'#' * (len(path) + 1)} {' '.join(path)}\n\n```text\n{help_of(command, path)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
