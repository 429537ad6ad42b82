"""`export` and `diff`: a run for other tools, and two runs compared."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_text, say, words
from .evaluation import show_plan
from .options import SETTINGS, Common, RunArgument, with_options


class FormatName(StrEnum):
    coco = "coco"
    parquet = "parquet"
    csv = "csv"
    hf = "hf"
    fiftyone = "fiftyone"
    png = "png"


@with_options
def export(
    common: Common,
    run: RunArgument,
    to: Annotated[FormatName, typer.Option("--to", help="Format.")],
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export wrote.")] = False,
) -> None:
    """Write the elements of a run for other tools: COCO JSON, Parquet, CSV, HF data set, FiftyOne, PNG crops.

    Goes to --out, or RUN/export.
    """
    from typicality.applications.export import export as write
    from typicality.applications.export import place_of

    common.pass_over("fresh", *SETTINGS, why="it writes what the run has found")
    if common.dry_run:
        path = place_of(run, to.value, common.out, force)
        print_json({"to": to.value, "out": str(path)}) if common.json else print_text(f"would write {path}")
        return
    path = write(run, to.value, common.out, force, common.progress)
    if common.json:
        print_json({"to": to.value, "out": str(path)})
    else:
        print_text(str(path))


@with_options
def diff(
    common: Common,
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The run before.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The run after.")],
) -> None:
    """What changed between two runs: settings, data, elements, clusters, findings.

    With --out FILE.html also as a page.
    """
    from typicality.applications.diff import diff as compare
    from typicality.applications.diff import open_side, write_page
    from typicality.errors import SettingsError
    from typicality.store import check_writable

    common.pass_over("fresh", *SETTINGS, why="it compares what two runs have found")
    if common.out is not None:
        check_writable(common.out)
        if common.out.is_dir() or common.out.suffix not in (".html", ".htm"):
            raise SettingsError(f"--out of diff takes a page, for instance diff.html, not {common.out}")
    if common.dry_run:
        for run in (run_a, run_b):
            open_side(run)
        return show_plan({"from": run_a, "to": run_b, "page": common.out}, common)
    found = compare(run_a, run_b)
    if common.out is not None:
        write_page(found, common.out)
        if not common.quiet:
            say(f"page: {common.out}")
    if common.json:
        return print_json(found.as_dict())
    print_text("nothing changed" if found.same else f"from {found.a} to {found.b}")
    for change in (*found.settings, *found.model):
        print_text(f"  {change.name}: {words(change.before)} -> {words(change.after)}")
    data = found.data
    if data.added or data.removed or data.relabelled:
        print_text(f"  images: {data.added} added, {data.removed} removed, {data.relabelled} with other labels")
    for label in found.labels:
        kept = "n/a" if label.rank_correlation is None else f"{label.rank_correlation:.2f}"
        sound = ["not tested" if n is None else str(n) for n in (label.sound_before, label.sound_after)]
        print_text(
            f"  {label.label}: {label.matched} of {label.elements_before} elements kept, "
            f"{label.elements_after - label.matched} new, rank correlation {kept}; "
            f"visual elements that hold up {sound[0]} -> {sound[1]}"
        )
    for finding in found.findings:
        before = f"{finding.severity_before} -> " if finding.severity_before is not None else ""
        print_text(f"  {finding.state} finding ({before}{finding.severity}): {finding.title}")
    for stale in found.findings_stale:
        print_text(
            f"  findings are not compared: an earlier state of {stale} was audited; run `typicality audit {stale}`"
        )
    if found.findings_known and found.findings_not_compared:
        kinds = ", ".join(found.findings_not_compared)
        print_text(f"  findings of these kinds are not compared, as one of the audits did not look for them: {kinds}")
    return None
