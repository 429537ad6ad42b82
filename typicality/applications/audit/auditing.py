"""The whole audit: what is done in which order, and what comes out of it.

On a data set it does first what `mine` does, with two folds unless the settings say otherwise, so that every image is
judged by a model that has not seen it; on a run directory it uses what is there. The parts that need no model come
first and can be had alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from typicality import pipeline, plan
from typicality.applications.audit.duplicates import duplicate_findings, near_duplicates
from typicality.applications.audit.elements import (
    column_findings,
    elements_of,
    object_findings,
    place_findings,
    untold_objects,
)
from typicality.applications.audit.findings import (
    EVIDENCE,
    KINDS,
    NEED_MODEL,
    NO_BASELINE,
    REPORTED,
    SCHEMA_VERSION,
    Baseline,
    Finding,
    against_baseline,
    counts_of,
    id_of,
    in_order,
    read_baseline,
    severity_of,
    show,
    write_findings,
)
from typicality.applications.audit.gates import (
    Condition,
    breaches,
    needs_model,
    not_measured,
    parse_conditions,
    unmeasured,
)
from typicality.applications.audit.giveaways import giveaway_findings
from typicality.applications.audit.groups import clustered_error
from typicality.applications.audit.images import MOST_IMAGES, ImageFacts, examine, sample_of
from typicality.applications.audit.labels import (
    FIRST_ROUND,
    SURE,
    ConfusablePair,
    LabelErrors,
    LabelScores,
    chance_p_values,
    confusable_pairs,
    label_error_score,
    label_scores,
    rounds_of,
    unjudged_labels,
    write_label_scores,
)
from typicality.applications.audit.maps import LEAST, Share, map_findings, shares_of
from typicality.applications.audit.places import (
    mark_findings,
    text_findings,
    too_few_for_text,
    too_few_groups,
    untold_labels,
)
from typicality.applications.audit.probe import label_probe
from typicality.config import Settings, key_of
from typicality.dataset import LabelledImages, load_dataset
from typicality.errors import DatasetError, OutputError, SettingsError
from typicality.mining.significance import adjusted_p_values
from typicality.paths import default_folder
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.renewal import renew_report
from typicality.report.checks import write_checks
from typicality.run import Run, open_run, resolve_settings, run_record
from typicality.scoring.shards import ScoreReader

FOLDS = 2
"""Models of an audit that were not asked for otherwise; each image is scored by the one that has not seen it."""
CONFUSABLE, CONFUSABLE_MEDIUM = 0.25, 0.35
"""Lower bounds of a pair's confusion from which it is reported, and from which it is of medium severity."""
MOST_PAIRS = 20


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    folder : the run directory; it holds findings.json, findings.parquet and labels.parquet
    report : index.html; of the findings alone where the run has not been mined
    document : the content of findings.json; see `findings`
    findings : the worst first
    breaches : a sentence for every condition of `fail_on` that holds
    """

    folder: Path
    report: Path
    document: dict[str, Any]
    findings: tuple[Finding, ...]
    breaches: tuple[str, ...]


def audit(
    settings: Settings,
    out: Path | None = None,
    *,
    draws: int = 16,
    images_only: bool = False,
    fail_on: str | None = None,
    baseline: Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> Audit:
    """Look for wrong labels, confusable labels, shortcuts and near-duplicates.

    Parameters
    ----------
    settings : from `resolve_settings`
    out : run directory; reports/<data set>-<label> by default
    draws : UNet draws an image and label that is not ruled out earlier; even, at least 4
    images_only : do without the model: files, near-duplicates, marks and text only
    fail_on : conditions, see `gates`
    baseline : a findings.json; what it has is not new, is in no measure and breaches no condition

    Raises
    ------
    InputError : with one message that says what to change.
    """
    conditions, known = asked(draws, images_only, fail_on, baseline)
    masks = settings.dataset.masks is not None and not images_only
    if out is None or masks:
        dataset = load_dataset(settings.dataset)
        out = out or default_folder(dataset)
        if masks:
            check_masks(dataset, progress)
    settings = with_folds(settings, out)
    if not images_only:
        pipeline.mine(settings, out, fresh, progress)
    before = (run_record(str(out)) if images_only and not fresh else None) or {"stages": {}}
    run = open_run(settings, out, fresh and images_only, progress)
    if before["stages"].get("latents"):  # a look at the images is no reason to say something else of the run's model
        run.directory.record |= {name: before[name] for name in ("settings", "seed", "dataset")}
    with run.directory.lock():
        run.begin()
        parts = _examine(run, draws, images_only, known, progress)
        findings = against_baseline(in_order(parts.findings), known)
        new = [finding for finding in findings if finding.new]
        measures = parts.measures | {"findings": float(len(new))}
        measures |= {name: float(n) for name, n in counts_of(new).items()}
        not_examined = parts.not_examined | not_measured(measures)
        unchecked = unmeasured(conditions, measures, not_examined, parts.in_part)
        document = {
            "schema_version": SCHEMA_VERSION,
            "dataset": {
                "name": run.dataset.name, "label": run.dataset.label, "n_images": len(run.dataset),
                "fingerprint": run.dataset.fingerprint,
            },
            "counts": counts_of(new),
            "known": len(findings) - len(new),
            "measures": {name: None if v is None else round(v, 6) for name, v in measures.items()},
            "label_matrix": parts.matrix,
            "confusable": [list(pair.labels) for pair in parts.confusable],
            "images_only": images_only,
            "not_examined": [kind for kind in KINDS if kind in not_examined],
            "notes": [*parts.notes, *unchecked],
            "findings": [finding.as_dict() for finding in findings],
        }  # fmt: skip
        with run.directory.stage("audit", key_of([run.dataset.fingerprint, draws, images_only])) as entry:
            entry["findings"] = len(findings)
            if not images_only:
                entry |= run.directory.built_on("finetune", "mine")
            write_findings(out, document)
        if run.directory.record["stages"].get("mine", {}).get("state") == "done":
            of_run = replace(run, settings=resolve_settings(str(out))) if images_only else run
            report = renew_report(of_run) or run.directory.path("index.html")
        else:
            images = {image.image_id: image for image in run.dataset}
            report = write_checks(
                out, run.dataset.name, run.dataset.label, {i: image.file_name for i, image in images.items()},
                lambda image_id: run.dataset.open(images[image_id]), settings.report,
            )  # fmt: skip
    for sentence in unchecked:
        progress.say(sentence)
    return Audit(out, report, document, tuple(findings), tuple(breaches(conditions, findings, measures)))


def asked(
    draws: int, images_only: bool, fail_on: str | None, baseline: Path | None
) -> tuple[list[Condition], Baseline]:
    """Return the conditions and the baseline; see `audit`.

    Raises
    ------
    InputError : for what cannot be read or can never work, before any work.
    """
    conditions = parse_conditions(fail_on) if fail_on is not None else []
    if images_only and (needed := [condition for condition in conditions if needs_model(condition)]):
        raise SettingsError(f"--fail-on {needed[0].text!r} needs the model: leave out --images-only")
    if not images_only:
        rounds_of(draws)
    return conditions, read_baseline(baseline) if baseline is not None else NO_BASELINE


def check_masks(dataset: LabelledImages, progress: Progress = SILENT) -> None:
    """Open all masks, which are compared with maps at the end: that costs little beside the maps.

    Raises
    ------
    DatasetError : one cannot be read, or does not fit its image.
    """
    masked = [image for image in dataset if image.mask is not None]
    if not masked:
        return
    progress.start("open the masks", len(masked))
    for image in masked:
        dataset.mask(image)
        progress.advance()
    progress.finish()


def with_folds(settings: Settings, folder: Path) -> Settings:
    """Set `finetune.folds` where nobody has: to that of the run in the folder, else to FOLDS."""
    if "folds" in settings.finetune.model_fields_set:
        return settings
    record = run_record(str(folder))
    folds = FOLDS
    if record is not None and record["stages"].get("finetune"):
        folds = record["settings"]["finetune"].get("folds", 1)
    return settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"folds": folds})})


@dataclass
class _Parts:
    """What the parts of an audit add to: findings, measures, notes, and of labels the matrix and confusable pairs.

    `not_examined` are the kinds of findings that were not looked for, beside those whose measure is unknown; `in_part`
    those that were not looked for in the images of every label.
    """

    findings: list[Finding]
    measures: dict[str, float | None]
    notes: list[str]
    not_examined: set[str] = field(default_factory=set)
    in_part: set[str] = field(default_factory=set)
    matrix: dict[str, Any] | None = None
    confusable: tuple[ConfusablePair, ...] = ()

    def add_untold(self, labels: Sequence[str], untold: Mapping[str, tuple[str, Sequence[str]]]) -> None:
        """Say which labels are in too few groups for something to be found: a thing -> its kind, and the labels."""
        things: dict[tuple[str, ...], list[str]] = {}
        for thing, (kind, few) in untold.items():
            if few:
                (self.not_examined if len(few) == len(labels) and kind != "same_place" else self.in_part).add(kind)
                things.setdefault(tuple(few), []).append(thing)
        self.notes += [
            f"Too few groups carry {_listed(few)}, or do not, so that there these cannot be told from a habit of one "
            f"group and were not examined: {', '.join(of_these)}."
            for few, of_these in things.items()
        ]


def _examine(run: Run, draws: int, images_only: bool, known: Baseline, progress: Progress) -> _Parts:
    """Do all parts."""
    dataset = run.dataset
    parts = _Parts([], {}, [])
    sample = sample_of(dataset)
    if len(sample) < len(dataset):
        parts.notes.append(
            f"{MOST_IMAGES} of {len(dataset)} images were looked at for near-duplicates, marks and giveaways."
        )
    with run.directory.stage("audit images", key_of([dataset.fingerprint])) as entry:
        entry["images"] = len(sample)
        facts = examine(dataset, sample, progress)
        grouped = run.settings.dataset.group is not None
        columns = [c for c in dataset.columns if c not in (dataset.label, "file_name", run.settings.dataset.group)]
        try:
            sides = sides_of(run)
        except DatasetError as error:  # a model cannot be trained then, but images can be looked at
            sides = {}
            parts.notes.append(f"Near-duplicates were not looked for across folds: {error}.")
        copies = {duplicate.image_id for duplicate in dataset.duplicates if duplicate.conflict}
        findings, share = duplicate_findings(facts, near_duplicates(facts), columns, sides, grouped, known, copies)
        giveaways, effect = giveaway_findings(facts, dataset.labels, run.settings.seed, known)
        parts.findings += [*findings, *giveaways]
        parts.findings += [*mark_findings(facts, dataset.labels), *text_findings(facts, dataset.labels)]
        marks = untold_labels(facts, dataset.labels, len(dataset.labels))
        text = too_few_for_text(facts, dataset.labels)
        parts.add_untold(dataset.labels, {"marks": ("same_place", marks), "printed text": ("same_place", text)})
        if too_few_groups(facts):
            parts.not_examined.add("same_place")
    parts.measures |= {"near_duplicates": share, "giveaway": effect}
    if effect is None:
        parts.notes.append("Giveaways were not looked for: too few images and groups carry at least two of the labels.")
    if images_only:
        parts.notes.append("Labels and visual elements were not examined, since that needs the model (--images-only).")
        parts.findings += column_findings(facts, [], columns, dataset.label)
        parts.not_examined |= NEED_MODEL
        return parts
    _add_elements(parts, run, facts, columns)
    _add_labels(parts, run, draws, known, progress)
    return parts


def sides_of(run: Run) -> dict[str, int]:
    """Return the fold of every image; with one model 1 for those that `finetune.held_out` keeps apart, else 0.

    Raises
    ------
    DatasetError : too few groups for so many folds.
    """
    if run.folds > 1:
        return {image.image_id: run.fold_of(image.image_id) for image in run.dataset}
    kept = {image.image_id for image in run.dataset.held_out(run.settings.finetune.held_out)[1]}
    return {image.image_id: int(image.image_id in kept) for image in run.dataset}


def _add_labels(parts: _Parts, run: Run, draws: int, known: Baseline, progress: Progress) -> None:
    """Score all images under all labels; what is said of labels rests on images that the model had not seen."""
    if len(run.dataset.labels) < 2:
        parts.notes.append("There is one label only, so labels could not be compared.")
        return
    scores = label_scores(run, draws, progress=progress)
    probe = label_probe(run, scores.image_ids)
    errors = label_error_score(scores, probe)
    images = {image.image_id: image for image in run.dataset}
    names = [images[i].file_name for i in scores.image_ids]
    write_label_scores(run.directory.path("labels.parquet"), scores, errors, names)
    kept = scores.held_out
    if not kept.all():
        parts.notes.append(
            f"What is said of labels rests on the {int(kept.sum())} of {len(kept)} images that the model had not seen: "
            "it may have learnt wrong labels of the others, which labels.parquet ranks all the same. To judge all "
            "images, audit with --folds 2 and another --out."
        )
    if not kept.any():
        return
    unseen = scores.part(kept)
    by_label, measures, parts.confusable = label_findings(unseen, errors.part(kept), images, known)
    parts.findings += by_label
    parts.measures |= measures
    if unjudged := unjudged_labels(unseen):
        parts.in_part |= {"label_error", "confusable_labels", "chance_labels"}
        parts.notes.append(
            f"Too few groups carry {_listed(unjudged)}, or do not, to tell whether the model knows these labels: wrong "
            "labels of their images, and pairs with them, were not looked for. labels.parquet ranks the images all "
            "the same."
        )
    parts.matrix = label_matrix(unseen)
    parts.notes.append(
        f"Label errors rest on losses at a temperature of {errors.temperature:.3g}, on a classifier on frozen features "
        f"with a weight of {errors.probe_weight:.2g}, and on a share of random labels of {errors.noise_rate:.1%}, all "
        "fitted to the given labels."
    )


def plan_of(settings: Settings, dataset: LabelledImages, draws: int, images_only: bool) -> dict[str, Any]:
    """Return what an audit would do, for `--dry-run`; settings are those of `with_folds`."""
    if images_only:
        return {"images": len(dataset), "model": "not used: files, near-duplicates, marks and text only"}
    evaluations = [len(dataset) * (1 + len(dataset.labels)) * d for d in (min(draws, FIRST_ROUND), draws)]
    return plan.plan_of(settings, dataset) | {
        "UNet evaluations for labels": f"{evaluations[0]} to {evaluations[1]}, fewer as labels are ruled out"
    }


def _add_elements(parts: _Parts, run: Run, facts: ImageFacts, columns: Sequence[str]) -> None:
    """Look at what `mine` left: elements and maps."""
    path = run.directory.path("elements.parquet")
    if not path.exists():
        raise OutputError(f"{run.directory.folder} has no elements; run `typicality mine` first")
    elements = elements_of(facts, pq.read_table(path))
    images = {image.image_id: image for image in run.dataset}
    reader = ScoreReader(run.score_folder(pipeline.FIRST_PASS, run.first_draws))
    shares = shares_of(reader, run.dataset, images)
    known = [share for share in shares if np.isfinite(share.inside)]
    labels = run.dataset.labels
    untold = {
        "repeated objects": ("repeated_object", untold_objects(facts, elements, labels)),
        "borders": ("borders", _in_few_groups(shares, images, labels)),
    }
    if known:
        marked = [label for label in labels if any(share.label == label for share in known)]
        untold["what lies outside the given places"] = ("outside_truth", _in_few_groups(known, images, marked))
    else:
        parts.not_examined.add("outside_truth")
    parts.add_untold(labels, untold)
    parts.findings += [
        *object_findings(facts, elements),
        *place_findings(facts, elements, run.settings.seed),
        *column_findings(facts, elements, columns, run.dataset.label),
        *map_findings(shares, images, labels),
    ]


def _in_few_groups(shares: Sequence[Share], images: Mapping[str, LabelledImage], labels: Sequence[str]) -> list[str]:
    """Labels that `map_findings` leaves out."""
    groups = {label: {images[s.image_id].group for s in shares if s.label == label} for label in labels}
    return [label for label in labels if len(groups[label]) < LEAST]


def _listed(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(map(repr, labels[:most])) + (f" and {len(labels) - most} others" if len(labels) > most else "")


# --------------------------------------------------------------------------------------------------- labels


def label_findings(
    scores: LabelScores, errors: LabelErrors, images: dict[str, LabelledImage], known: Baseline = NO_BASELINE
) -> tuple[list[Finding], dict[str, float | None], tuple[ConfusablePair, ...]]:
    """Wrong labels, confusable pairs and labels at chance.

    Returns
    -------
    findings, the measures of `--fail-on` without what the baseline knows, and all confusable pairs. A measure is None
    where nothing could be said: of no label, or of pairs of fewer than two.
    """
    p_values = adjusted_p_values(chance_p_values(scores))
    judged = np.isfinite(p_values)
    chance = [label for label, p in zip(scores.labels, p_values, strict=True) if p > REPORTED]
    told = [label for label, p in zip(scores.labels, p_values, strict=True) if p <= REPORTED]
    findings = _wrong_labels(scores, errors, images, known, told)
    suspects = {i for f in findings for i in f.concerns if i not in known.concerned(f.id)}
    at_chance = id_of("chance_labels", (), "chance")
    if chance:
        share = len(chance) / judged.sum()
        findings.append(
            Finding(
                kind="chance_labels", severity=severity_of("chance_labels", share, None) if share > 0.25 else "low",
                title=f"{len(chance)} of {judged.sum()} labels cannot be told from chance",
                explanation=f"Images of {', '.join(map(repr, chance[:12]))}{' and others' if len(chance) > 12 else ''} "
                "do not fit their label better than other images do: the label is not in the picture, there are too "
                "few images, or the model is too small or too little trained to see it. So nothing is said of single "
                "images of theirs.",
                labels=tuple(chance), score=share, standard_error=None,
                p_value=None, evidence=(), identity="chance", concerns=tuple(chance),
                details={"p_values": {c: float(p_values[scores.labels.index(c)]) for c in chance[:50]}},
            )
        )  # fmt: skip
    pairs = tuple(
        pair
        for pair in confusable_pairs(scores)
        if set(pair.labels) <= set(told) and pair.confusion - SURE * pair.standard_error >= CONFUSABLE
    )
    findings += [_confusable(pair.labels, pair.confusion, pair.standard_error) for pair in pairs[:MOST_PAIRS]]
    new_chance = set(chance) - known.concerned(at_chance)
    new_pairs = [pair for pair in pairs if frozenset(pair.labels) not in known.confusable]
    measures = {
        "label_errors": len(suspects) / len(scores.image_ids) if told else None,
        "chance_labels": len(new_chance) / int(judged.sum()) if judged.any() else None,
        "confusable_labels": float(len(new_pairs)) if len(told) > 1 else None,
    }
    return findings, measures, pairs


def _confusable(labels: tuple[str, str], confusion: float, error: float) -> Finding:
    return Finding(
        kind="confusable_labels", severity="medium" if confusion - SURE * error >= CONFUSABLE_MEDIUM else "low",
        title=f"{labels[0]!r} and {labels[1]!r} are easily confused",
        explanation=f"In {confusion:.0%} of their images the other of the two labels fits better (50% would be "
        "chance). They may overlap in meaning, or differ in something that a picture does not show.",
        labels=labels, score=min(1.0, 2 * confusion), standard_error=2 * error, p_value=None, evidence=(),
        identity="pair", details={"confusion": round(confusion, 4)},
    )  # fmt: skip


def _wrong_labels(
    scores: LabelScores, errors: LabelErrors, images: dict[str, LabelledImage], known: Baseline, told: Sequence[str]
) -> list[Finding]:
    """A finding a label with images whose label is likely wrong; those that the baseline has are shown last.

    Nothing can be said of labels that are not `told` from chance: where no image fits its label, some misfit by more
    than others.
    """
    findings = []
    for k, label in enumerate(scores.labels):
        if label not in told:
            continue
        own = np.flatnonzero(scores.given[:, k])
        wrong = [int(i) for i in own if errors.reported[i]]
        if not wrong:
            continue
        old = known.concerned(id_of("label_error", (label,), "wrong label"))
        wrong.sort(key=lambda i: (scores.image_ids[i] in old, -errors.score[i], scores.image_ids[i]))
        share = len(wrong) / len(own)
        groups = np.array([scores.groups[i] for i in own])
        error = clustered_error((np.isin(own, wrong) - share) / len(own), groups)
        suggestions = [scores.labels[errors.likeliest[i]] for i in wrong]
        most = max(sorted(set(suggestions)), key=suggestions.count)
        findings.append(
            Finding(
                kind="label_error", severity=severity_of("label_error", share, None) if len(wrong) > 2 else "low",
                title=f"{len(wrong)} of {len(own)} images of {label!r} look wrongly labelled",
                explanation=f"Another label fits them far better, most often {most!r}. labels.parquet has the score of "
                "every image with its error; look at these first.",
                labels=(label,), score=share, standard_error=error or None,
                p_value=None, evidence=tuple(show(images[scores.image_ids[i]], None, label) for i in wrong[:EVIDENCE]),
                identity="wrong label", concerns=tuple(scores.image_ids[i] for i in wrong),
                details={
                    "likeliest": suggestions[:EVIDENCE],
                    "probability": [round(float(errors.probability[i]), 4) for i in wrong[:EVIDENCE]],
                    "log_odds": [round(float(errors.score[i]), 3) for i in wrong[:EVIDENCE]],
                    "log_odds_error": [round(float(errors.standard_error[i]), 3) for i in wrong[:EVIDENCE]],
                },
            )
        )  # fmt: skip
    return findings


def label_matrix(scores: LabelScores) -> dict[str, Any]:
    """Share of the images of each label (row) that fit each label (column) best."""
    best = scores.mean.argmax(1)
    rows = []
    for k in range(len(scores.labels)):
        own = scores.given[:, k]
        counts = np.bincount(best[own], minlength=len(scores.labels))
        rows.append([round(float(v), 4) for v in counts / max(1, own.sum())])
    return {"labels": list(scores.labels), "confusion": rows}
