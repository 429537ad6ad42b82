"""Settings and provenance of a run, flattened for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typicality.report.text import clean, count, duration


@dataclass(frozen=True)
class FactGroup:
    """A titled table of names and values."""

    name: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Stage:
    """What one stage of the run did, and what it cost."""

    name: str
    state: str
    seconds: str
    counts: str
    evaluations: str
    memory: str


def model_name(facts: Mapping[str, Any]) -> str:
    """Return the model's name, whether it is given alone or with its revision and hash."""
    model = facts.get("model", {})
    if isinstance(model, Mapping):
        return clean(model.get("name") or "an unnamed model")
    return clean(model)


def fact_groups(facts: Mapping[str, Any]) -> tuple[FactGroup, ...]:
    """Return the run, its model, versions and settings as tables; stages are apart, in `stages`."""
    run: list[tuple[str, str]] = []
    groups: list[FactGroup] = []
    for name, value in facts.items():
        if name in ("settings", "stages"):
            continue
        if isinstance(value, Mapping):
            groups.append(FactGroup(_title(name), tuple(_flat(value))))
        else:
            run.append((_title(name), _value(value)))
    settings = facts.get("settings")
    if isinstance(settings, Mapping):
        loose = {n: v for n, v in settings.items() if not isinstance(v, Mapping)}
        run.extend((f"Settings: {n}", _value(v)) for n, v in loose.items() if n not in facts)
        groups.extend(
            FactGroup(f"Settings: {clean(n)}", tuple(_flat(v))) for n, v in settings.items() if isinstance(v, Mapping)
        )
    first = (FactGroup("Run", tuple(run)),) if run else ()
    return first + tuple(group for group in groups if group.rows)


NOT_COUNTED = ("unet_evaluations", "peak_memory_mb", "seconds")
"""Numbers of a stage that have columns of their own."""


def stages(facts: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the stages in the order they ran."""
    given = facts.get("stages")
    if not isinstance(given, Mapping):
        return ()
    return tuple(_stage(name, stage) for name, stage in given.items() if isinstance(stage, Mapping))


def _stage(name: str, stage: Mapping[str, Any]) -> Stage:
    counts = {n: v for n, v in stage.items() if n not in NOT_COUNTED and type(v) is int}
    told = [f"{clean(n).replace('_', ' ')} {count(v)}" for n, v in counts.items()]
    for name_of in ("label_scale", "tilt"):
        of_folds = stage[name_of] if isinstance(stage.get(name_of), list) else [stage.get(name_of)]
        told += [f"{name_of.replace('_', ' ')} {v:.2f}" for v in of_folds if isinstance(v, float)]
    seconds, evaluations, memory = (stage.get(n) for n in ("seconds", "unet_evaluations", "peak_memory_mb"))
    return Stage(
        name=clean(name),
        state=clean(stage.get("state", "")) if stage.get("state") else "",
        seconds=duration(seconds) if isinstance(seconds, int | float) else "",
        counts=", ".join(told),
        evaluations=count(evaluations) if isinstance(evaluations, int | float) else "",
        memory=f"{count(memory)} MB" if isinstance(memory, int | float) else "",
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(_flat(value, f"{prefix}{clean(name)}."))
        else:
            rows.append((prefix + clean(name), _value(value)))
    return rows


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 else count(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value) or "–"
    return clean(value)


def _title(name: str) -> str:
    return clean(name).replace("_", " ").capitalize()
