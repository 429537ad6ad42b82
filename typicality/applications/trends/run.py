"""Trends of a mined run: members, centroids, detections in a sample of every label, scores, tests, files."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from typicality.applications.trends.changes import SCHEMA as CHANGES_SCHEMA
from typicality.applications.trends.changes import consistent_changes, translated_folders
from typicality.applications.trends.detection import Detections, detect, elements_of, patch_at, whitening_of
from typicality.applications.trends.plots import similarity_svg, timelines_svg
from typicality.applications.trends.statistics import (
    label_groups,
    label_means,
    label_rates,
    life_span,
    neighbour_shares,
    trend_test,
)
from typicality.config import Settings, key_of
from typicality.dataset.split import unit_hash
from typicality.errors import InputError
from typicality.mining.significance import adjusted_p_values
from typicality.passes import score_pass
from typicality.pipeline import feature_extractor
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.renewal import renew_report
from typicality.run import Run, open_finished
from typicality.scoring.noise import check_draws
from typicality.scoring.scorer import Job
from typicality.store import write_table, write_text

PURPOSE = "trends"
HALF = "trends half"
"""Salt of the hash that splits groups: members of one half define elements, images of the other are searched. Were an
image that an element comes from searched, it would be found there, of course; were it left out, the element's own label
would lack the very images that show it best."""
FEWEST = 4
"""Groups that an element's defining members must come from, or its rates are not measured."""
SIGNIFICANT = 0.05
MOST_LABELS = 24
"""With more labels members are scored under their own label alone: K labels cost K + 1 evaluations a draw."""
WHITENING_IMAGES = 200
SHOWN_MEMBERS, SHOWN_FOUND, SHOWN_TIMELINES = 8, 3, 12
SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("cluster", pa.int32()),
        ("at", pa.string()),
        ("position", pa.int32()),
        *((name, pa.float32()) for name in ("rate", "rate_low", "rate_high")),
        *((name, pa.int32()) for name in ("n_images", "n_groups")),
        *((name, pa.float32()) for name in ("typicality", "typicality_low", "typicality_high")),
        ("n_members", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Trends:
    """What `trends` found: the table (`SCHEMA`), the document of trends.json, and the folder of both."""

    folder: Path
    table: pa.Table
    document: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The images searched. An observation is an image under one of its labels.

    Attributes
    ----------
    image_ids : searched, each once
    row, label, group : (n,) int of every observation: row of `image_ids`, label, group
    group_names : names of the groups
    """

    image_ids: list[str]
    row: np.ndarray
    label: np.ndarray
    group: np.ndarray
    group_names: list[str]


def trends(
    folder: Path,
    images: int = 400,
    members: int = 16,
    draws: int = 4,
    permutations: int = 4999,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Trends:
    """Follow every visual element of a mined run over the labels, and render its report again.

    Parameters
    ----------
    images : searched in every label at most, of the half of the groups that defines nothing; the same groups in all
        labels as far as there are
    members : best members of a cluster, of the other half, that define it
    draws : UNet draws a member's image and label; even
    permutations : of the test of trend
    settings : with what is to differ from the run's own: seed, device, precision

    Raises
    ------
    OutputError : when `folder` is no run, or has not been mined.
    InputError : when there are too few groups for two halves; for draws that cannot be.
    """
    check_draws(draws)
    run = open_finished(folder, "mine", settings, progress)
    with run.directory.lock():
        found = _trends(run, images, members, draws, permutations)
        renew_report(run)
    return found


def _trends(run: Run, images: int, members: int, draws: int, permutations: int) -> Trends:
    started = time.monotonic()
    directory, labels = run.directory, run.dataset.labels
    elements = [e for e in pq.read_table(directory.path("elements.parquet")).to_pylist() if e["cluster"] >= 0]
    clusters = pq.read_table(directory.path("clusters.parquet")).to_pylist()
    column = {(c["label"], c["cluster"]): i for i, c in enumerate(clusters)}
    groups = {i.image_id: i.group for i in run.dataset}
    chosen = defining(elements, groups, members)
    sample = sample_of(run, images)
    if not chosen or not sample.image_ids:
        raise InputError("too few groups: members of one half of them define elements, the other half is searched")
    key = key_of([directory.record["stages"]["mine"]["key"], images, members, draws, permutations])
    with directory.stage("trends", key) as entry:
        entry |= directory.built_on("finetune", "mine")
        denoiser = run.feature_denoiser
        denoiser.evaluations = 0
        null = denoiser.encode_prompts([run.prompts.null])[0]
        extractor = feature_extractor(run, denoiser, lambda _: null)
        side = int(chosen[0]["side"])
        whitening = whitening_of(extractor, sample.image_ids[:WHITENING_IMAGES], side, run.latents.get)
        patches = [patch_at(e["image_id"], e["row"], e["column"], e["side"]) for e in chosen]
        features = whitening.unit(extractor(patches, run.latents.get, run.progress))
        member_of = np.array([column[e["label"], e["cluster"]] for e in chosen])
        found = elements_of(features, member_of, len(clusters))
        detections = detect(extractor, sample.image_ids, side, run.latents.get, found, whitening, run.progress)
        seen = detections.similarity[sample.row] >= found.radii
        enough = _enough(chosen, member_of, len(clusters), groups)
        known = np.tile(enough, (len(sample.row), 1))
        rates = label_rates(seen, known, sample.label, sample.group, len(labels), run.settings.seed)
        slope, p_value = (np.full(len(clusters), np.nan) for _ in range(2))
        if run.dataset.ordered and enough.any():
            slope[enough], p_value[enough] = trend_test(
                seen[:, enough].astype(np.float64), known[:, enough], sample.label, sample.group, permutations,
                run.settings.seed,
            )  # fmt: skip
        adjusted = adjusted_p_values(p_value)
        spent = denoiser.evaluations  # the pass over the members counts its own
        scores = _member_scores(run, chosen, member_of, len(clusters), draws)
        denoiser.evaluations = spent
        n_images = np.array([known[sample.label == at].sum(0) for at in range(len(labels))])
        n_groups = label_groups(known, sample.label, sample.group, len(labels))
        timelines = []
        for c, cluster in enumerate(clusters):
            line = _timeline(run, cluster, rates, scores, (n_images, n_groups), c)
            line |= _test(slope[c], p_value[c], adjusted[c])
            line["measured"], line["radius"] = bool(enough[c]), float(found.radii[c])
            line["members"] = [
                {"image_id": e["image_id"], "box": [e[n] for n in ("x0", "y0", "x1", "y1")]}
                for e, m in zip(chosen, member_of, strict=True)
                if m == c
            ][:SHOWN_MEMBERS]
            line["found"] = _found(run, sample, detections, known, side, c)
            timelines.append(line)
        timelines.sort(key=lambda x: (x["direction"] == "none", -abs(x["slope"] or 0.0), x["label"], x["cluster"]))
        _, group_rows = np.unique([groups[e["image_id"]] for e in chosen], return_inverse=True)
        label_rows = np.array([labels.index(e["label"]) for e in chosen])
        alike = neighbour_shares(features, label_rows, group_rows, len(labels), run.settings.seed)
        change_rows, changes = [], []
        places, passed_over = translated_folders(directory)
        for place in places:
            rows, records = consistent_changes(place, extractor, whitening, groups, run.settings.seed)
            change_rows += rows
            changes += records
        entry["unet_evaluations"] = denoiser.evaluations
        document = {
            "schema": 1, "label_name": run.dataset.label, "labels": list(labels), "ordered": run.dataset.ordered,
            "images_a_label": images, "level": 0.9, "significant_at": SIGNIFICANT,
            "n_rising": sum(x["direction"] == "rise" for x in timelines),
            "n_falling": sum(x["direction"] == "fall" for x in timelines),
            "n_unmeasured": int((~enough).sum()), "warnings": _warnings(run, sample, enough, passed_over),
            "timelines": timelines,
            "similarity": {
                "labels": list(labels), "share": _listed(alike.share), "lift": _listed(alike.lift),
                "low": _listed(alike.low), "high": _listed(alike.high),
            },
            "changes": changes,
            "plots": {"similarity": "similarity.svg"}
            | ({"timelines": "timelines.svg"} if run.dataset.ordered else {}),
            "unet_evaluations": entry["unet_evaluations"], "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        out = directory.path("trends")
        write_table(out / "changes.parquet", pa.Table.from_pylist(change_rows, schema=CHANGES_SCHEMA))
        table = pa.Table.from_pylist(_table_rows(timelines, labels), schema=SCHEMA)
        write_table(out / "trends.parquet", table)
        write_text(out / "trends.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
        if run.dataset.ordered:
            write_text(out / "timelines.svg", timelines_svg(timelines[:SHOWN_TIMELINES], labels, run.dataset.label))
        write_text(out / "similarity.svg", similarity_svg(alike.lift, labels))
    return Trends(out, table, document)


def sample_of(run: Run, images: int) -> Sample:
    """Choose images of every label, of the half of the groups that defines nothing.

    A hash of their group orders them, so that groups are the same in all labels where they can. The order takes labels
    in turn: a first part of it holds all of them.
    """
    by_label: dict[str, list[LabelledImage]] = defaultdict(list)
    searched = [i for i in run.dataset if not defines(i.group)]
    for image in sorted(searched, key=lambda i: (unit_hash(i.group, PURPOSE), i.image_id)):
        for label in image.labels:
            by_label[label].append(image)
    chosen = [(place, at, i) for at, x in enumerate(run.dataset.labels) for place, i in enumerate(by_label[x][:images])]
    chosen.sort(key=lambda item: item[:2])
    image_ids = list(dict.fromkeys(image.image_id for _, _, image in chosen))
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    names, group = np.unique(np.array([image.group for _, _, image in chosen], dtype=str), return_inverse=True)
    return Sample(
        image_ids,
        row=np.array([row_of[image.image_id] for _, _, image in chosen]),
        label=np.array([at for _, at, _ in chosen]),
        group=group,
        group_names=names.tolist(),
    )


def defines(group: str) -> bool:
    """Whether a group is of the half that defines elements; images of the others are searched."""
    return unit_hash(group, HALF) < 0.5


def defining(elements: Sequence[dict[str, Any]], groups: Mapping[str, str], members: int) -> list[dict[str, Any]]:
    """Return the best `members` elements of every cluster from the half of the groups that defines.

    Parameters
    ----------
    elements : rows of elements.parquet
    groups : image_id -> group
    """
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for e in sorted(elements, key=lambda e: e["rank_in_cluster"]):
        own = found[e["label"], e["cluster"]]
        if len(own) < members and defines(groups[e["image_id"]]):
            own.append(e)
    return [e for _, own in sorted(found.items()) for e in own]


def _enough(
    chosen: Sequence[dict[str, Any]], member_of: np.ndarray, count: int, groups: Mapping[str, str]
) -> np.ndarray:
    """(c,) bool: whether a cluster is defined by members of at least FEWEST groups."""
    of: list[set[str]] = [set() for _ in range(count)]
    for e, c in zip(chosen, member_of.tolist(), strict=True):
        of[c].add(groups[e["image_id"]])
    return np.array([len(names) >= FEWEST for names in of], dtype=bool)


def _member_scores(
    run: Run, chosen: Sequence[dict[str, Any]], member_of: np.ndarray, count: int, draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean typicality of every cluster's members under every label, with intervals: three (labels, clusters)."""
    labels = run.dataset.labels
    wanted: dict[str, set[str]] = defaultdict(set)
    for e in chosen:
        wanted[e["image_id"]].add(e["label"])
    many = len(labels) > MOST_LABELS
    jobs = [Job(i, tuple(x for x in labels if not many or x in own)) for i, own in sorted(wanted.items())]
    reader = score_pass(run, "trends scores", PURPOSE, draws, jobs)
    values = np.full((len(labels), len(chosen)), np.nan)
    for i, e in enumerate(chosen):
        rows, columns = slice(e["row"], e["row"] + e["side"]), slice(e["column"], e["column"] + e["side"])
        for at, label in enumerate(labels):
            if (e["image_id"], label) in reader:
                values[at, i] = reader.get(e["image_id"], label).typicality[rows, columns].mean()
    groups = {image.image_id: image.group for image in run.dataset}
    _, group = np.unique([groups[e["image_id"]] for e in chosen], return_inverse=True)
    of_cluster = member_of[:, None] == np.arange(count)
    found = []
    for at in range(len(labels)):
        known = of_cluster & np.isfinite(values[at])[:, None]
        spread = np.where(known, np.nan_to_num(values[at])[:, None], 0.0)
        one = np.zeros(len(chosen), dtype=np.int64)
        found.append([m[0] for m in label_means(spread, known, one, group, 1, run.settings.seed)])
    mean, low, high = (np.array([f[k] for f in found]) for k in range(3))
    return mean, low, high


def _timeline(
    run: Run,
    cluster: dict[str, Any],
    rates: tuple[np.ndarray, ...],
    scores: tuple[np.ndarray, ...],
    numbers: tuple[np.ndarray, np.ndarray],
    c: int,
) -> dict[str, Any]:
    labels = run.dataset.labels
    appears, peak, vanishes = life_span(rates[0][:, c]) or (None, None, None)
    ordered = run.dataset.ordered

    def named(at: int | None) -> str | None:
        return None if at is None else labels[at]

    known = rates[0][np.isfinite(rates[0][:, c]), c]
    names = ("rate", "low", "high"), ("typicality", "typicality_low", "typicality_high")
    at = [
        {
            "label": label,
            **{name: _value(values[i, c]) for name, values in zip(names[0], rates, strict=True)},
            **{name: int(n[i, c]) for name, n in zip(("n_images", "n_groups"), numbers, strict=True)},
            **{name: _value(values[i, c]) for name, values in zip(names[1], scores, strict=True)},
        }
        for i, label in enumerate(labels)
    ]
    return {
        "label": cluster["label"], "cluster": cluster["cluster"], "rank": cluster["rank"],
        "n_members": cluster["size"],
        "appears": named(appears) if ordered else None, "peaks": named(peak),
        "vanishes": named(vanishes) if ordered else None,
        "change": _value(known[-1] - known[0]) if ordered and len(known) > 1 else None, "at": at,
    }  # fmt: skip


def _test(slope: float, p_value: float, adjusted: float) -> dict[str, Any]:
    significant = bool(adjusted <= SIGNIFICANT)  # NaN is not
    direction = ("rise" if slope > 0 else "fall") if significant and slope != 0 else "none"
    return {
        "direction": direction, "slope": _value(slope), "p_value": _value(p_value), "adjusted_p_value": _value(adjusted)
    }  # fmt: skip


def _found(
    run: Run, sample: Sample, detections: Detections, known: np.ndarray, side: int, c: int
) -> dict[str, list[dict[str, Any]]]:
    """The best matches of one cluster in every label, for the eye; below the radius, too, where nothing is above."""
    images = {image.image_id: image for image in run.dataset}
    factor = run.base.factor
    found: dict[str, list[dict[str, Any]]] = {}
    for at, label in enumerate(run.dataset.labels):
        rows = np.flatnonzero((sample.label == at) & known[:, c])
        best = rows[np.argsort(-detections.similarity[sample.row[rows], c], kind="stable")][:SHOWN_FOUND]
        found[label] = []
        for observation in best.tolist():
            row = int(sample.row[observation])
            image = images[sample.image_ids[row]]
            r, k = detections.cell[row, c].tolist()
            corners = (k * factor, r * factor, (k + side) * factor, (r + side) * factor)
            box = run.latents.view(image.image_id).to_original(corners, image.width, image.height)
            found[label].append(
                {"image_id": image.image_id, "box": list(box), "similarity": float(detections.similarity[row, c])}
            )
    return found


def _table_rows(timelines: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "label": line["label"], "cluster": line["cluster"],
            "at": at["label"], "position": labels.index(at["label"]),
            "rate": at["rate"], "rate_low": at["low"], "rate_high": at["high"],
            **{name: at[name] for name in ("n_images", "n_groups", "typicality", "typicality_low", "typicality_high")},
            "n_members": line["n_members"],
        }
        for line in sorted(timelines, key=lambda x: (x["label"], x["cluster"]))
        for at in line["at"]
    ]  # fmt: skip


def _warnings(run: Run, sample: Sample, enough: np.ndarray, passed_over: int) -> list[str]:
    found = []
    unseen = [label for at, label in enumerate(run.dataset.labels) if not (sample.label == at).any()]
    if unseen:
        found.append(
            f"No image of these labels is in the half of the groups that is searched: {', '.join(unseen)}. Whether "
            "elements are found there is not known."
        )
    if not enough.all():
        found.append(
            f"{(~enough).sum()} of {len(enough)} visual elements have members of fewer than {FEWEST} groups in the "
            "half that defines them: how often they are found was not measured."
        )
    if not run.dataset.ordered:
        found.append("The labels have no order, so there is no test of trend; name an order with dataset.labels.")
    if run.folds == 1 and run.settings.finetune.enabled:
        found.append(
            "The model that reads the features was fine-tuned on most of these images and may know their label."
        )
    if passed_over:
        found.append(
            "Translations that were stopped, or made by an earlier model, are left out of what changes together "
            f"({passed_over}); `typicality translate` makes them anew."
        )
        run.progress.say(f"warning: {found[-1]}")
    return found


def _value(x: float) -> float | None:
    """A number for JSON; NaN and infinities have no place there."""
    return float(x) if np.isfinite(x) else None


def _listed(matrix: np.ndarray) -> list[list[float | None]]:
    return [[_value(round(float(x), 4)) for x in row] for row in matrix]
