"""What makes two findings of audits the same thing: for baselines, and to compare two runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SAME_THING = 0.5
"""Share of the images of the smaller of two findings that the other one must concern, too, to be of the same thing."""


def id_of(kind: str, labels: Iterable[str], identity: str, concerns: Iterable[str] = (), ordinal: int = 1) -> str:
    """Return the id of a finding. Which labels are at chance is what `chance_labels` concerns, and not part of it."""
    named = [] if kind == "chance_labels" else sorted(labels)
    further = [part for part in (sorted(concerns), ordinal) if part not in ([], 1)]
    content = json.dumps([kind, named, identity, *further], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def name_of(row: Mapping[str, Any]) -> str:
    """Return what a row of findings.json shares with findings of the same kind, labels and identity."""
    return id_of(row["kind"], row["labels"], row.get("identity", ""))


def concerns_of(row: Mapping[str, Any]) -> frozenset[str]:
    """Return what a row of findings.json concerns, in most cases ids of images."""
    return frozenset(map(str, row["concerns"] if "concerns" in row else row["image_ids"]))


def same_things(
    findings: Mapping[int, tuple[str, str, Sequence[str]]], names: Mapping[str, str],
    concerns: Mapping[str, frozenset[str]],
) -> dict[int, str]:  # fmt: skip
    """Return the id that the same thing has elsewhere, the likest first.

    Parameters
    ----------
    findings : by position: id, name and what each concerns
    names, concerns : of the findings elsewhere, by id
    """
    likeness = []
    for i, (own_id, name, concerned) in findings.items():
        own = set(concerned)
        for there in names:
            other = concerns.get(there, frozenset())
            shared = len(own & other) if names[there] == name else 0
            if shared and shared >= SAME_THING * min(len(own), len(other)):
                likeness.append((-shared, own_id != there, own_id, i, there))
    known_as: dict[int, str] = {}
    for *_, i, there in sorted(likeness):
        if i not in known_as and there not in known_as.values():
            known_as[i] = there
    return known_as
