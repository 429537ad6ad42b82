"""The grammar of `--fail-on`: when an audit fails in continuous integration.

    conditions  = condition {"," condition}
    condition   = measure (">" | ">=") number ["%"]  |  kind ":" severity
    kind        = a kind or family of findings, or "any"

`label_errors>2%` compares a measure of the audit; `shortcut:high` holds where a finding of that kind or family is at
least that severe. With a baseline only new findings count, and measures are of what is new. A limit that a share can
never exceed (`label_errors>2`) and a percentage of a number of findings (`high>50%`) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from typicality.applications.audit.findings import FAMILIES, KINDS, NEED_MODEL, SEVERITIES, Finding
from typicality.errors import SettingsError, nearest

MEASURES: dict[str, str] = {
    "label_errors": "share of the images whose label is likely wrong",
    "near_duplicates": "share of the images with a near-duplicate under another label, split or group",
    "chance_labels": "share of the labels that the model cannot tell from chance",
    "confusable_labels": "number of label pairs that are easily confused",
    "giveaway": "how far size, brightness and the like predict the label: 0 chance, 1 always",
    "findings": "number of findings",
    "high": "number of findings of high severity",
    "medium": "number of findings of medium severity",
    "low": "number of findings of low severity",
}
COUNTS = ("confusable_labels", "findings", "high", "medium", "low")
"""Measures that are numbers; the others are shares."""
MEASURE_OF = {
    "label_error": "label_errors",
    "confusable_labels": "confusable_labels",
    "chance_labels": "chance_labels",
    "giveaway": "giveaway",
    "near_duplicates": "near_duplicates",
}
"""Kind of finding -> its measure, which is unknown where the kind could not be looked for."""
EXAMPLE = "label_errors>2%,shortcut:high"
COMPARISON = re.compile(r"(?P<name>[\w-]+)\s*(?P<sign>>=|>)\s*(?P<number>[0-9.]+)\s*(?P<percent>%?)")
FINDING = re.compile(r"(?P<name>[\w-]+)\s*:\s*(?P<severity>[\w-]+)")


@dataclass(frozen=True)
class Comparison:
    """A measure above a limit."""

    text: str
    measure: str
    limit: float
    inclusive: bool


@dataclass(frozen=True)
class Presence:
    """A finding of some kinds that is at least so severe."""

    text: str
    kinds: frozenset[str]
    severity: str


Condition = Comparison | Presence


def parse_conditions(text: str) -> list[Condition]:
    """Read the conditions.

    Raises
    ------
    SettingsError : for what cannot be read or can never hold, naming what is possible.
    """
    return [_condition(part.strip()) for part in text.split(",")]


def _condition(text: str) -> Condition:
    if found := COMPARISON.fullmatch(text):
        name = found["name"].replace("-", "_")
        if name not in MEASURES:
            raise SettingsError(f"--fail-on {text!r}: there is no measure {name!r}; {nearest(name, MEASURES)}")
        try:
            limit = float(found["number"]) / (100 if found["percent"] else 1)
        except ValueError:
            raise SettingsError(f"--fail-on {text!r}: {found['number']!r} is not a number") from None
        inclusive, bare = found["sign"] == ">=", f"{name}{found['sign']}{found['number']}"
        if name in COUNTS and found["percent"]:
            raise SettingsError(f"--fail-on {text!r}: {name} is a {MEASURES[name]}, so write {bare}")
        if name not in COUNTS and (limit > 1 or (limit == 1 and not inclusive)):
            remedy = f", so write {bare}%" if not found["percent"] and limit < 100 else ""
            raise SettingsError(f"--fail-on {text!r} can never hold: {name} is at most 1, or 100%{remedy}")
        return Comparison(text, name, limit, inclusive)
    if found := FINDING.fullmatch(text):
        name, severity = found["name"].replace("-", "_"), found["severity"]
        names = {"any": frozenset(KINDS)} | {kind: frozenset([kind]) for kind in KINDS}
        names |= {family: frozenset(k for k, f in KINDS.items() if f == family) for family in FAMILIES}
        if name not in names:
            raise SettingsError(f"--fail-on {text!r}: there is no kind {name!r}; {nearest(name, names)}")
        if severity not in SEVERITIES:
            raise SettingsError(f"--fail-on {text!r}: severity is one of {', '.join(SEVERITIES)}, not {severity!r}")
        return Presence(text, names[name], severity)
    raise SettingsError(
        f"--fail-on {text!r} cannot be read: give measure>number[%] or kind:severity, separated by commas, for "
        f"instance {EXAMPLE!r}; measures: {', '.join(MEASURES)}; kinds: any, {', '.join((*FAMILIES, *KINDS))}"
    )


def needs_model(condition: Condition) -> bool:
    """Whether a condition can hold only where the model was asked."""
    if isinstance(condition, Comparison):
        return condition.measure in {MEASURE_OF.get(kind) for kind in NEED_MODEL}
    return condition.kinds <= NEED_MODEL


def not_measured(measures: Mapping[str, float | None]) -> set[str]:
    """Return the kinds of findings whose measure this audit could not take."""
    return {kind for kind, measure in MEASURE_OF.items() if measures.get(measure) is None}


def breaches(
    conditions: Sequence[Condition], findings: Sequence[Finding], measures: Mapping[str, float | None]
) -> list[str]:
    """Return a sentence for every condition that holds.

    Findings that are not new do not count, nor do conditions on what this audit did not measure; see `unmeasured`.
    """
    found = []
    new = [finding for finding in findings if finding.new]
    for condition in conditions:
        if isinstance(condition, Comparison):
            value = measures.get(condition.measure)
            if value is not None and (value > condition.limit or (condition.inclusive and value == condition.limit)):
                found.append(f"{condition.measure} is {value:.4g}, which breaches {condition.text}")
        else:
            graver = SEVERITIES[: SEVERITIES.index(condition.severity) + 1]
            hits = [f for f in new if f.kind in condition.kinds and f.severity in graver]
            if hits:
                found.append(f"{len(hits)} finding(s) breach {condition.text}: {hits[0].title}")
    return found


def unmeasured(
    conditions: Sequence[Condition],
    measures: Mapping[str, float | None],
    not_examined: Collection[str] = (),
    in_part: Collection[str] = (),
) -> list[str]:
    """Return a sentence for every condition that this audit could not check, or in part only, as with too few images.

    Parameters
    ----------
    not_examined : kinds of findings that were not looked for. Places to compare with are rarely given, so that a
        condition on several kinds says nothing of `outside_truth` alone.
    in_part : kinds that could be looked for, but not for every label
    """
    sentences = []
    for condition in conditions:
        if isinstance(condition, Comparison) and measures.get(condition.measure) is None:
            sentences.append(
                f"The condition {condition.text} was not checked: {condition.measure} could not be measured."
            )
            continue
        kinds = _kinds(condition)
        missing = [kind for kind in KINDS if kind in kinds and kind in not_examined]
        some = [kind for kind in KINDS if kind in kinds and kind in in_part and kind not in not_examined]
        if len(missing) == len(kinds):
            names = ", ".join(missing)
            sentences.append(f"The condition {condition.text} was not checked: {names} could not be examined.")
            continue
        why = []
        if set(missing) - {"outside_truth"}:
            why.append(f"{', '.join(missing)} could not be examined")
        if some:
            why.append(f"{', '.join(some)} could not be examined for every label")
        if why:
            sentences.append(f"The condition {condition.text} was checked in part: {'; '.join(why)}.")
    return sentences


def _kinds(condition: Condition) -> Collection[str]:
    """The kinds of findings that a condition rests on; numbers of findings rest on all."""
    if isinstance(condition, Presence):
        return condition.kinds
    return [kind for kind, measure in MEASURE_OF.items() if measure == condition.measure] or KINDS
