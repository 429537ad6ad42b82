"""How much work adaptive scoring may do, as the settings say.

How it is used, and what further draws are worth, is in adaptive.py and mining/selection.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from typicality.config import ScoreSettings


@dataclass(frozen=True)
class Effort:
    """How much work adaptive scoring may do.

    Parameters
    ----------
    rounds : rounds of further draws at most; each doubles the draws of the images that it scores
    further : draws of all rounds together, as a mean over all images and labels: cost is known beforehand
    refine : fresh draws of the chosen
    overlap : stop when the expected share of the chosen that are truly among the best reaches this; None: never
    """

    rounds: int
    further: float
    refine: int
    overlap: float | None = None


PRECISION = {
    "fast": Effort(rounds=1, further=0.5, refine=4),
    "standard": Effort(rounds=4, further=6.75, refine=6),
    "exact": Effort(rounds=5, further=16.0, refine=32),
}


def effort_of(settings: ScoreSettings) -> Effort:
    """The preset of `score.precision`; with `score.overlap` as many rounds as that takes; raw numbers override."""
    preset = PRECISION[settings.precision]
    rounds, further = preset.rounds, preset.further
    if settings.overlap is not None:
        rounds, further = 7, float("inf")
    return Effort(
        rounds=rounds if settings.rounds is None else settings.rounds,
        further=further if settings.further_draws is None else settings.further_draws,
        refine=settings.refine_draws or preset.refine,
        overlap=settings.overlap,
    )
