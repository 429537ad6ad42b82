"""How much work adaptive scoring may do, as the settings say.

How it is used, and what further draws are worth, is in adaptive.py and mining/selection.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


def preset(precision: str, first: int, sharing: float = 0.0) -> Effort:
    """Return the effort of a precision after a first pass of so many draws.

    Presets are for draws of two UNet evaluations each. Where both prompts share most of an evaluation, a precision
    spends what that saves on more draws, and so costs as many evaluations; `fast` saves it.

    Parameters
    ----------
    sharing : share of an evaluation that serves all prompts of an input (`model.unet.shared`)
    """
    plain, more = PRECISION[precision], 1.0 if precision == "fast" else 2 / (2 - sharing)
    further = (first + plain.further) * more - first
    return replace(plain, further=further, refine=2 * round(plain.refine * more / 2))


def effort_of(settings: ScoreSettings, first: int, sharing: float = 0.0) -> Effort:
    """The preset of `score.precision`; with `score.overlap` as many rounds as that takes; raw numbers override."""
    plain = preset(settings.precision, first, sharing)
    rounds, further = plain.rounds, plain.further
    if settings.overlap is not None:
        rounds, further = 7, float("inf")
    return Effort(
        rounds=rounds if settings.rounds is None else settings.rounds,
        further=further if settings.further_draws is None else settings.further_draws,
        refine=settings.refine_draws or plain.refine,
        overlap=settings.overlap,
    )
