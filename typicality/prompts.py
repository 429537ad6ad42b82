"""The only author of prompts: training, scoring and features all take theirs from here.

A template is a sentence with one `{label}`; the null prompt is the same sentence without its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typicality.errors import SettingsError

FIELD = "{label}"


@dataclass(frozen=True)
class Prompts:
    """Turns labels into prompts.

    Parameters
    ----------
    template : a sentence with `{label}` exactly once, for instance "a car from the {label}s"
    null : the same sentence without its label, for instance "a car"
    """

    template: str
    null: str

    def __post_init__(self) -> None:
        if self.template.count(FIELD) != 1:
            raise SettingsError(
                f"prompt.template must hold {FIELD} exactly once, but is {self.template!r}; "
                "write for instance 'a car from the {label}s'"
            )
        if FIELD in self.null:
            raise SettingsError(f"prompt.null is the prompt without a label, but holds {FIELD}: {self.null!r}")

    def of(self, label: str) -> str:
        """Return the prompt of one label. Underscores become spaces, as in folder names."""
        return self.template.replace(FIELD, label.replace("_", " "))

    def of_all(self, labels: Sequence[str]) -> list[str]:
        """Return the null prompt followed by the prompt of every label: the order every stage uses."""
        return [self.null, *(self.of(label) for label in labels)]
