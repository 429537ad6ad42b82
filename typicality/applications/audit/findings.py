"""What an audit says: findings with an id, a severity and the images that show them, as `findings.json` and a table.

`findings.json` is one document:

    schema_version   1
    dataset          name, label, n_images, fingerprint
    counts           severity -> number of new findings
    known            number of findings that a baseline had already
    measures         name -> number, null where it could not be measured; what `--fail-on` may compare (shares are in
                     [0, 1]). With a baseline they measure what is new
    label_matrix     labels, confusion (a row a true label: share of its images that fit the column's label best)
    confusable       list of [label, label], the most easily confused first: all pairs, also those beyond the findings
    images_only      whether the audit did without the model, and so without visual elements
    not_examined     kinds of findings that this audit did not look for, or could not, as in too few groups
    notes            sentences on what was not examined, or not for every label, and why
    findings         list, the worst first, known ones included: the file is the next baseline; each with

        id               16 hexadecimal digits: kind, labels and place or column; where several things may share these,
                         also the images that it concerns. With a baseline, the id that the same thing has there
        kind             one of KINDS
        family           one of FAMILIES: what kinds have in common
        severity         high, medium or low
        identity         what tells it apart from others of its kind and labels: place, column, value
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

Of things that share kind, labels and identity, the finding of a baseline is the one that concerns the most of the same
images, at least SAME_THING of the smaller of the two. A finding that a baseline has is new again when it became graver,
or concerns images that it did not concern before. Of the family `shortcut` more than GROWN of the images must be such,
and of an element more than GROWN_ELEMENT: a threshold, or the model, decides which images show a thing.

Severity rests on effect **and** significance, by SEVERITY below: high needs the first effect and p <= 0.001, medium
the second effect and p <= 0.01; the rest is low. Kinds without a row there are capped as CAPS says. A finding with
p > 0.05 is not made in the first place, except where it says that something could not be told from chance.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from typicality.errors import InputError
from typicality.findings import concerns_of, id_of, name_of, same_things
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
NEED_MODEL = frozenset(
    {"label_error", "confusable_labels", "chance_labels", "repeated_object", "borders", "outside_truth"}
)
"""Kinds that only a model finds."""
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
GROWN_ELEMENT = 0.5
"""The same of an element, whose members a model chooses."""
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
    """One result of an audit; see the module for the meaning of the fields.

    Attributes
    ----------
    basis : what makes it this finding. "name": kind, labels and identity; "images": several things may share these, and
        differ in the images that they concern; "element": the same, and a model chose the images
    ordinal : counts findings that have all of that in common, by the boxes of their evidence
    known_as : its id in the baseline
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
    basis: Literal["name", "images", "element"] = "name"
    ordinal: int = 1
    known_as: str = ""
    new: bool = True

    @property
    def name(self) -> str:
        """A hash of kind, labels and identity, which several things may share."""
        return id_of(self.kind, self.labels, self.identity)

    @property
    def id(self) -> str:
        """A hash of what makes the finding this one, free of scores and ranks; or its id in the baseline."""
        concerns = () if self.basis == "name" else self.concerns
        return self.known_as or id_of(self.kind, self.labels, self.identity, concerns, self.ordinal)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "family": KINDS[self.kind],
            "severity": self.severity,
            "identity": self.identity,
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
    """Sort by severity, then by score, then by id; those of one id are numbered."""
    seen: Counter[str] = Counter()
    numbered = []
    for finding in sorted(findings, key=lambda f: sorted((e.image_id, e.box or ()) for e in f.evidence)):
        first = replace(finding, ordinal=1)
        seen[first.id] += 1
        numbered.append(replace(first, ordinal=seen[first.id]))
    return sorted(numbered, key=lambda f: (SEVERITIES.index(f.severity), -f.score, f.id))


@dataclass(frozen=True)
class Baseline:
    """What an earlier audit found: by id its severity, name and what it concerns; and the confusable pairs."""

    severities: Mapping[str, Severity] = field(default_factory=dict)
    concerns: Mapping[str, frozenset[str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
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
        grown = GROWN_ELEMENT if finding.basis == "element" else GROWN.get(KINDS[finding.kind], 0.0)
        return gained <= grown * len(finding.concerns)

    def recognise(self, findings: Sequence[Finding]) -> list[Finding]:
        """Give findings that `basis` does not tell by name the id that the same thing has here, the likest first."""
        unnamed = {i: f for i, f in enumerate(findings) if f.basis != "name"}
        known_as = same_things({i: (f.id, f.name, f.concerns) for i, f in unnamed.items()}, self.names, self.concerns)
        return [replace(finding, known_as=known_as.get(i, "")) for i, finding in enumerate(findings)]


NO_BASELINE = Baseline()


def against_baseline(findings: Sequence[Finding], known: Baseline) -> list[Finding]:
    """Mark the findings that the baseline knows as not new, under the ids that they have there."""
    return [replace(finding, new=not known.knows(finding)) for finding in known.recognise(findings)]


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
            {str(row["id"]): concerns_of(row) for row in rows},
            {str(row["id"]): name_of(row) for row in rows if "identity" in row},
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
