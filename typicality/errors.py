"""Every error that `typicality` raises on purpose.

    TypicalityError              the root: catch this one to catch them all
    ├── InputError               the user's input or settings are wrong (exit code 2)
    │   ├── DatasetError         a data set cannot be read, or does not hold what was asked
    │   ├── SettingsError        an unknown or impossible setting
    │   ├── CheckpointError      a model cannot be loaded, or is of another class
    │   ├── DeviceMemoryError    the memory of the device does not suffice
    │   └── OutputError          the run directory cannot be written, or belongs to another run
    └── InterruptedRun           stopped by the user; the run can be continued (exit code 130)

A message says what is wrong, where, and what to do about it, in one or two sentences. Only the command line
turns errors into text and exit codes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TypicalityError(Exception):
    """Root of the errors of this package."""


class InputError(TypicalityError):
    """The user's input or settings are wrong; the message says what to change."""


class DatasetError(InputError):
    """A data set cannot be read, or does not hold what was asked of it."""


class SettingsError(InputError):
    """An unknown setting, or a value that cannot work."""


class CheckpointError(InputError):
    """A model checkpoint cannot be loaded, or is of a class that is not supported."""


class DeviceMemoryError(InputError):
    """The memory of the device, a GPU's perhaps, does not suffice for what is asked of it."""


class OutputError(InputError):
    """The run directory cannot be written, is in use, or holds another run."""


class InterruptedRun(TypicalityError):
    """The user stopped the run; what was finished is kept and the same command continues it."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a phrase that names the choices nearest to a misspelt `name`, for error messages."""
    names = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(repr(n) for n in sorted(names)[:12])
    return f"choose from: {shown}{', ...' if len(names) > 12 else ''}"
