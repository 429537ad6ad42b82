"""How stages tell what they do. Stages report; only the command line draws."""

from __future__ import annotations


class Progress:
    """Receives events and ignores them: the silent default, and the base of the command line's bars."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins, with `total` steps of work."""

    def expect(self, total: int) -> None:
        """The stage will take so many steps, other than was thought when it began."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is a short state such as the current loss."""

    def finish(self) -> None:
        """The stage is over."""

    def say(self, message: str) -> None:
        """Something the user should know, one sentence."""


SILENT = Progress()
