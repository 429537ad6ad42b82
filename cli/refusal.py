"""Common options that a command cannot use: refused, with the reason, instead of ignored."""

from __future__ import annotations

from typicality.errors import SettingsError

from .options import Common

SETTINGS = ("config", "set", "model", "seed", "device", "dtype")
"""Options that only say what the settings are."""
PLACE = ("out", "fresh")
"""Options that only say where a run goes, and whether it begins anew."""


def refuse(common: Common, why: str, *names: str) -> None:
    """Refuse options that were given to a command on which they have no effect.

    Parameters
    ----------
    why : what the command does instead, as the second half of a sentence
    names : of options, without dashes

    Raises
    ------
    SettingsError
    """
    for name in names:
        value = getattr(common, "assign" if name == "set" else name)
        if value is not None and value is not False and value != []:  # --seed 0 was given
            raise SettingsError(f"--{name} has no effect on this command, {why}")
