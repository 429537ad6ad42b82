"""What applications left in a run directory, as sections of the report.

A section is one dataclass and one template. The dataclass holds plain data, says under which heading, where on the
page and with which template it stands, and has a class method `read` that looks into the run directory:

    @dataclass(frozen=True)
    class Things(Section):
        things: tuple[Thing, ...]
        slug, short = "things", "Things"
        heading, template = "Things found", "sections/things.html"

        @classmethod
        def read(cls, source: Source) -> Things | None: ...

and is named in `SECTIONS`. `read` returns None where there is nothing, and a file that is absent, half understood or
of another version is nothing: the report is shown all the same. Pictures come from `Source`, which never leaves the
run directory and keeps within a budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from typicality.report.sections.audit import Findings
from typicality.report.sections.base import Section, Source
from typicality.report.sections.evaluation import Evaluation
from typicality.report.sections.filled import Filled
from typicality.report.sections.localize import Localization
from typicality.report.sections.synthetic import Synthetic
from typicality.report.sections.translate import Translations
from typicality.report.sections.trends import Trends
from typicality.report.view import ReportInput
from typicality.store import foundation

SECTIONS: tuple[type[Section], ...] = (
    Findings, Localization, Translations, Synthetic, Filled, Trends, Evaluation,
)  # fmt: skip
SHARE = 0.25  # of the report's budget, at most, for the pictures of all sections


def read_sections(data: ReportInput) -> tuple[Section, ...]:
    """Return the sections for which the run directory has something, with pictures as fine as the budget allows."""
    if data.folder is None:
        return ()
    room = SHARE * data.settings.budget_mb * 1e6
    found: tuple[Section, ...] = ()
    for level in range(Source.LEVELS):
        source = Source(Path(data.folder), data, level)
        found = tuple(s for s in (section.read(source) for section in SECTIONS) if s is not None)
        if source.spent <= room:
            break
    return found


def stale_sections(data: ReportInput, sections: Iterable[Section]) -> dict[str, str]:
    """Return by slug what to do about sections that are of an earlier state of the run: another model, other elements.

    What a stage has recorded as `built_on` is compared with what is there; where nothing is recorded, nothing is said.
    """
    found = {}
    stages: Mapping[str, Mapping[str, Any]] = data.facts.get("stages", {})
    for section in sections:
        for name in (n for n in stages if section.stage and n.startswith(section.stage)):
            known = stages[name].get("built_on")
            if known and known != foundation(data.facts, known):
                found[section.slug] = f"typicality {section.stage}"
    return found


__all__ = ["SECTIONS", "Section", "Source", "read_sections", "stale_sections"]
