"""`audit`: wrong labels, confusable labels, shortcuts and near-duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_text, say
from .evaluation import Write
from .mining import dry_run
from .options import WORK, Common, Data, DatasetArgument, Scoring, Training, given, with_options

SHOWN = 25


@with_options
def audit(
    common: Common,
    data: Data,
    training: Training,
    scoring: Scoring,
    dataset: DatasetArgument = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on", metavar="CONDITIONS", help="Exit code 1 where one holds, e.g. 'label_errors>2%,shortcut:high'."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="FILE", help="An earlier findings.json: only what is new counts."),
    ] = None,
    images_only: Annotated[
        bool, typer.Option("--images-only", help="Without the model: files, duplicates, marks and text; seconds.")
    ] = False,
    label_draws: Annotated[
        int, typer.Option("--label-draws", help="Draws for labels that are not ruled out.", rich_help_panel=WORK)
    ] = 16,
    masks: Annotated[
        str | None,
        typer.Option(
            "--masks", metavar="COLUMN", help="Column with paths of masks: is what is typical outside of them?"
        ),
    ] = None,
    boxes: Annotated[
        str | None, typer.Option("--boxes", metavar="FILE", help="The same of boxes: COCO file, or column(s).")
    ] = None,
    write: Write = None,
) -> None:
    """Look for wrong labels, confusable labels, shortcuts and near-duplicate images."""
    from typicality.applications.audit.auditing import asked, plan_of, with_folds
    from typicality.applications.audit.auditing import audit as examine
    from typicality.dataset import load_dataset
    from typicality.paths import default_folder
    from typicality.store import write_text

    truth = {"dataset": given(masks=masks, boxes=boxes)}
    settings = common.settings(dataset, data.layer(), truth, training.layer(), scoring.layer())
    folder = common.folder(dataset)
    if common.dry_run:
        asked(label_draws, images_only, fail_on, baseline)
        images = load_dataset(settings.dataset)
        folder = folder or default_folder(images)
        settings = with_folds(settings, folder)
        return dry_run(settings, folder, common, plan_of(settings, images, label_draws, images_only))
    result = examine(
        settings, folder, draws=label_draws, images_only=images_only, fail_on=fail_on, baseline=baseline,
        fresh=common.fresh, progress=common.progress,
    )  # fmt: skip
    if write is not None:
        write_text(write, (result.folder / "findings.json").read_text(encoding="utf-8"))
    if common.json:
        print_json(result.document)
    else:
        new = [finding for finding in result.findings if finding.new]
        for finding in new[:SHOWN]:
            print_text(f"{finding.severity:<6}  {finding.kind:<17}  {finding.title}")
        if not common.quiet:
            more = f", {len(new) - SHOWN} more" if len(new) > SHOWN else ""
            known = f", {len(result.findings) - len(new)} known" if len(new) < len(result.findings) else ""
            say(f"{len(new)} findings{more}{known}")
            say(f"report: {result.report}")
        print_text(str(result.folder / "findings.json"))
    for breach in result.breaches:
        say(breach)
    if result.breaches:
        raise typer.Exit(1)
    return None
