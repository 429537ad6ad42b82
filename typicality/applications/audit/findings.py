"""What an audit says: findings with an id, a severity and the images that show them, as `findings.json` and a table.

`findings.json` is one document:

    schema_version   1
    dataset          name, label, n_images, fingerprint
    counts           severity -> number of new findings
    known            number of findings that a baseline had already
    measures         name -> number; what `--fail-on` may compare (shares are in [0, 1]). With a baseline they measure
                     what is new
    label_matrix     labels, confusion (a row a true label: share of its images that fit the column's label best)
    confusable       list of [label, label], the most easily confused first: all pairs, also those beyond the findings
    notes            sentences on what was not examined, and why
    findings         list, the worst first, known ones included: the file is the next baseline; each with

        id               16 hexadecimal digits: kind, labels and place or column. What a model or a threshold chooses
                         is not part of it, so that it is the same after fine-tuning anew
        kind             one of KINDS
        family           one of FAMILIES: what kinds have in common
        severity         high, medium or low
        title            one line
        explanation      a few sentences: what was measured, what it means, what to do
        labels           those concerned; empty for the whole data set
        score            effect size in [0, 1], comparable within a family
        standard_error   of the score, or null
        p_value          after correction for the number of tests of this kind, or null
        evidence         list of {image_id, file_name, label, box}; box is [x0, y0, x1, y1] in pixels of the original or
                         null for the whole image
        image_ids        of the evidence, without repeats
        concerns         ids of all images that the finding is about, or for `chance_labels` the labels; empty where it
                         is about a label or the data set as a whole
        details          numbers behind the explanation, by name
        new              false where a baseline has the same id, no lower severity, and what the finding concerns

`findings.parquet` has a row a finding and image: id, kind, severity, new, title, score, image_id, file_name, label, x0,
y0, x1, y1.

A finding that a baseline has is new again when it became graver, or concerns images that it did not concern before. Of
the family `shortcut` more than GROWN of the images must be such: which images show a thing depends on a threshold.

Severity rests on effect **and** significance, by SEVERITY below: high needs the first effect and p <= 0.001, medium
the second effect and p <= 0.01; the rest is low. Kinds without a row there are capped as CAPS says. A finding with
p > 0.05 is not made in the first place, except where it says that something could not be told from chance.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from typicality.errors import InputError
from typicality.records import Box, LabelledImage
from typicality.store import write_table, write_text

Severity = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
SCHEMA_VERSION = 1
EVIDENCE = 24
"""Images shown a finding, at most."""

KINDS: dict[str, str] = {
    "label_error": "labels",
    "confusable_labels": "labels",
    "chance_labels": "labels",
    "same_place": "shortcut",
    "repeated_object": "shortcut",
    "borders": "shortcut",
    "outside_truth": "shortcut",
    "other_column": "shortcut",
    "giveaway": "shortcut",
    "near_duplicates": "duplicates",
}
"""Kind of finding -> family."""
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(KINDS.values()))

SEVERITY: dict[str, tuple[float, float]] = {
    "label_error": (0.05, 0.01),  # share of a label's images whose label is likely wrong
    "same_place": (0.5, 0.2),  # how surely the thing tells the label: (precision - share of the label) / (1 - share)
    "repeated_object": (0.5, 0.2),  # the same
    "borders": (0.5, 0.25),  # share of typicality in the border, above what uniform typicality would have there
    "outside_truth": (0.8, 0.5),  # how much of the given boxes' lift is missing: 1 - density inside / density at chance
    "other_column": (0.6, 0.3),  # share of the column's uncertainty that the label explains
    "giveaway": (0.3, 0.1),  # balanced accuracy above chance, as a share of what is possible; 1 / (K - 1) where
    # one label of K is given away entirely and the others not at all
    "near_duplicates": (0.2, 0.02),  # share of the images concerned
}
"""Effect sizes from which a significant finding is of high and of medium severity."""
CAPS: dict[str, Severity] = {"confusable_labels": "medium", "chance_labels": "medium", "borders": "medium"}
"""Kinds that are never graver than this: they describe the labels or the framing rather than a defect."""
GROWN = {"shortcut": 0.25}
"""Family -> share of a finding's images that may be unknown to the baseline before the finding is new; else 0."""
LEVELS = (0.001, 0.01)
REPORTED = 0.05


@dataclass(frozen=True)
class Evidence:
    """An image that shows a finding, and where; box None is the whole image."""

    image_id: str
    file_name: str
    label: str
    box: Box | None = None


@dataclass(frozen=True)
class Finding:
    """One result of an audit; see the module for the meaning of the fields. `identity` is what `id` names beside them.

    `ordinal` counts findings of one kind, labels and identity, which are different things all the same.
    """

    kind: str
    severity: Severity
    title: str
    explanation: str
    labels: tuple[str, ...]
    score: float
    standard_error: float | None
    p_value: float | None
    evidence: tuple[Evidence, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    concerns: tuple[str, ...] = ()
    ordinal: int = 1
    new: bool = True

    @property
    def id(self) -> str:
        """A hash of kind, labels and what makes the finding this one; free of scores and of the order of images."""
        return id_of(self.kind, self.labels, self.identity, self.ordinal)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "family": KINDS[self.kind],
            "severity": self.severity,
            "title": self.title,
            "explanation": self.explanation,
            "labels": list(self.labels),
            "score": _number(self.score),
            "standard_error": _number(self.standard_error),
            "p_value": _number(self.p_value),
            "evidence": [asdict(e) | {"box": list(e.box) if e.box else None} for e in self.evidence],
            "image_ids": list(dict.fromkeys(e.image_id for e in self.evidence)),
            "concerns": list(self.concerns),
            "details": dict(self.details),
            "new": self.new,
        }


def id_of(kind: str, labels: Iterable[str], identity: str, ordinal: int = 1) -> str:
    """Return the id of a finding. Which labels are at chance is what `chance_labels` concerns, and not part of it."""
    named = [] if kind == "chance_labels" else sorted(labels)
    content = json.dumps([kind, named, identity, *([ordinal] if ordinal > 1 else [])], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def severity_of(kind: str, score: float, p_value: float | None) -> Severity:
    """Return the severity by the documented thresholds; without a p-value the effect alone decides."""
    p = 0.0 if p_value is None else p_value
    high, medium = SEVERITY.get(kind, (math.inf, 0.0))
    found: Severity = "low"
    if score >= high and p <= LEVELS[0]:
        found = "high"
    elif score >= medium and p <= LEVELS[1]:
        found = "medium"
    cap = CAPS.get(kind, "high")
    return max(found, cap, key=SEVERITIES.index)


def show(image: LabelledImage, box: Box | None = None, label: str | None = None) -> Evidence:
    """Return an image as evidence, under one of its labels."""
    return Evidence(image.image_id, image.file_name, label or " | ".join(image.labels), box)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by severity, then by score, then by id; findings of one kind, labels and identity are numbered."""
    seen: Counter[str] = Counter()
    ordered = []
    for finding in sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.score, f.id, f.concerns)):
        name = id_of(finding.kind, finding.labels, finding.identity)
        seen[name] += 1
        ordered.append(replace(finding, ordinal=seen[name]))
    return ordered


@dataclass(frozen=True)
class Baseline:
    """What an earlier audit found: by id of the finding its severity and what it concerns; and the confusable pairs."""

    severities: Mapping[str, Severity] = field(default_factory=dict)
    concerns: Mapping[str, frozenset[str]] = field(default_factory=dict)
    confusable: frozenset[frozenset[str]] = frozenset()

    def concerned(self, finding_id: str) -> frozenset[str]:
        """What the finding concerned then; nothing where there was none."""
        return self.concerns.get(finding_id, frozenset())

    def knows(self, finding: Finding) -> bool:
        """Whether the finding is neither graver than it was nor about more; GROWN says how much more is let pass."""
        before = self.severities.get(finding.id)
        if before is None or SEVERITIES.index(finding.severity) < SEVERITIES.index(before):
            return False
        gained = len(set(finding.concerns) - self.concerned(finding.id))
        return gained <= GROWN.get(KINDS[finding.kind], 0.0) * len(finding.concerns)


NO_BASELINE = Baseline()


def against_baseline(findings: Sequence[Finding], known: Baseline) -> list[Finding]:
    """Mark the findings that the baseline knows as not new."""
    return [replace(finding, new=not known.knows(finding)) for finding in findings]


def read_baseline(path: Path) -> Baseline:
    """Return what a findings.json says.

    Raises
    ------
    InputError : it cannot be read, or is no findings.json.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["findings"]
        return Baseline(
            {str(row["id"]): SEVERITIES[SEVERITIES.index(row["severity"])] for row in rows},
            {str(row["id"]): frozenset(map(str, row.get("concerns", row["image_ids"]))) for row in rows},
            frozenset(frozenset(map(str, pair)) for pair in document.get("confusable", ())),
        )
    except OSError as error:
        raise InputError(f"cannot read the baseline {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no findings.json of `typicality audit`: {error!r}") from error


def counts_of(findings: Iterable[Finding]) -> dict[str, int]:
    counts = dict.fromkeys(SEVERITIES, 0)
    for finding in findings:
        counts[finding.severity] += 1
    return {str(severity): n for severity, n in counts.items()}


PARQUET_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "kind", "severity")),
        ("new", pa.bool_()),
        ("title", pa.string()),
        ("score", pa.float64()),
        *((name, pa.string()) for name in ("image_id", "file_name", "label")),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1")),
    ]
)


def write_findings(folder: Path, document: Mapping[str, Any]) -> None:
    """Write findings.parquet, then findings.json."""
    rows = []
    for finding in document["findings"]:
        head = {name: finding[name] for name in ("id", "kind", "severity", "new", "title", "score")}
        for shown in finding["evidence"] or [{"image_id": None, "file_name": None, "label": None, "box": None}]:
            corners = dict(zip(("x0", "y0", "x1", "y1"), shown["box"] or [None] * 4, strict=True))
            rows.append(head | {name: shown[name] for name in ("image_id", "file_name", "label")} | corners)
    write_table(folder / "findings.parquet", pa.Table.from_pylist(rows, schema=PARQUET_SCHEMA))
    write_text(folder / "findings.json", json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
