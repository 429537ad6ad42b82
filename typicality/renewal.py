"""The report of a mined run, rendered again after an application has added something to the run directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from typicality.config import resolve
from typicality.errors import InputError
from typicality.pipeline import ensure_report
from typicality.run import Run


def renew_report(run: Run) -> Path | None:
    """Render the report of a mined run with what an application has just added to it; the run's lock must be held.

    The report is of the run as it was mined: its recorded settings hold, but for device and precision. Where it cannot
    be rendered, since the run has not been mined, its model is gone (by which its maps are found), or this session
    reads other images, the user is told.
    """
    record = run.directory.record
    where = run.directory.folder
    if record["stages"].get("mine", {}).get("state") != "done":
        run.progress.say(f"not in a report yet, for {where} has not been mined: `typicality mine {where}` makes one")
        return None
    if record["dataset"]["fingerprint"] != run.dataset.fingerprint:
        run.progress.say(f"this session reads other images than the report of {where}: `typicality report {where}`")
        return None
    settings = resolve(record["settings"]).model_copy(update={"model": run.settings.model})
    mined = replace(run, settings=settings)
    try:
        mined.take_model(run)
        mined.check_done("mine")
        mined.check_mined()
    except InputError as error:  # what the application found is written all the same
        run.progress.say(f"not in the report yet: {error}")
        return None
    return ensure_report(mined)
