"""What may be chosen of an imputation: which part of the images is missing, and how it is filled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from typicality.errors import SettingsError, nearest
from typicality.scoring.noise import check_draws

HideShape = Literal["square", "half"]
Keep = Literal["mean", "best"]
Part = Literal["held-out", "validation", "training", "all"]
HIDE_SHAPES: tuple[HideShape, ...] = get_args(HideShape)
KEEPS: tuple[Keep, ...] = get_args(Keep)
PARTS: tuple[Part, ...] = get_args(Part)
HIDDEN_IMAGES = 60
"""Images that a measurement (`hide`) is of where no number is given."""


@dataclass(frozen=True)
class Region:
    """Which part of the images is filled: one of three.

    Parameters
    ----------
    masks : folder with a mask image per file, white where the image is missing
    marked : what the data set's own masks and boxes mark
    hide : share of each image that is hidden on purpose, so that the truth is known
    shape : of what is hidden: a square anywhere (the default), or the strip along a side that `half` of an image is at
        0.5
    """

    masks: Path | None = None
    marked: bool = False
    hide: float | None = None
    shape: HideShape | None = None

    @property
    def hidden_shape(self) -> HideShape:
        return self.shape or "square"

    def check(self) -> None:
        """Raise SettingsError unless exactly one way is chosen, and can work."""
        if (self.masks is not None) + self.marked + (self.hide is not None) != 1:
            raise SettingsError(
                "say what is missing by one of --masks FOLDER (a mask per image), --where-marked (the data set's own "
                "masks and boxes) and --hide SHARE (hidden on purpose, to measure errors)"
            )
        shape = self.hidden_shape
        if shape not in HIDE_SHAPES:
            raise SettingsError(f"--hide-shape: there is no shape {shape!r}; {nearest(shape, HIDE_SHAPES)}")
        if self.hide is None and self.shape is not None:
            raise SettingsError("--hide-shape has no effect without --hide: masks and marks have their own shapes")
        if self.hide is not None and not 0 < self.hide < 1:
            raise SettingsError(f"--hide is a share of the image between 0 and 1, for instance 0.2, not {self.hide:g}")

    def as_dict(self) -> dict[str, Any]:
        if self.hide is not None:
            return {"region": f"hidden {self.hidden_shape}", "hide": self.hide}
        return {"region": "masks", "masks": str(self.masks)} if self.masks is not None else {"region": "marked"}


@dataclass(frozen=True)
class ImputeOptions:
    """How a region is filled. The defaults were measured (see the benchmark page).

    Parameters
    ----------
    label : under which regions are filled; each image's own by default (the first of several)
    samples : fills an image, each from noise of its own
    keep : `mean` of the samples, which has the smallest squared error, or `best`, the sample of highest typicality
    guidance : weight of the label against the null prompt; 1 is the label's own prediction
    jumps : times that each step is done, noised again in between (RePaint's resampling)
    steps : sampler steps
    strength : share of the noise schedule from which the region is drawn; below 1 it begins from the harmonic fill
    draws : UNet draws of each typicality; even
    """

    label: str | None = None
    samples: int = 4
    keep: Keep = "mean"
    guidance: float = 1.0
    jumps: int = 2
    steps: int = 6
    strength: float = 0.6
    draws: int = 8

    def check(self) -> None:
        """Raise SettingsError where a value cannot work."""
        if self.keep not in KEEPS:
            raise SettingsError(f"--result: there is no {self.keep!r}; {nearest(self.keep, KEEPS)}")
        if not 0.01 <= self.strength <= 1:
            raise SettingsError(f"--strength must lie between 0.01 and 1, not {self.strength:g}")
        if not 0 <= self.guidance <= 100:
            raise SettingsError(f"--guidance must lie between 0 and 100, not {self.guidance:g}")
        for name, value, least in (("samples", self.samples, 1), ("jumps", self.jumps, 1), ("steps", self.steps, 2)):
            if value < least:
                option = "sampler-steps" if name == "steps" else name
                raise SettingsError(f"--{option} must be at least {least}, not {value}")
        check_draws(self.draws)
        if self.draws < 4:
            raise SettingsError(f"--draws must be at least 4 (two antithetic pairs), not {self.draws}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluations_of(options: ImputeOptions, hidden: bool, labels: int) -> int:
    """Return the UNet evaluations an image: of its samples, of those without a label, and of all typicalities.

    Parameters
    ----------
    hidden : whether the truth is known, so that rivals are computed too
    labels : labels that a region is scored under
    """
    once = options.samples * ((options.steps - 1) * options.jumps + 1)
    sampling = once * ((1 if options.guidance in (0, 1) else 2) + hidden)
    choosing = options.samples * options.draws * 2 if chooses(options, hidden) else 0
    return sampling + choosing + options.draws * (1 + labels) * (3 if hidden else 2)


def chooses(options: ImputeOptions, hidden: bool) -> bool:
    """Whether the samples of an image are scored to find the best: where it is kept, or compared with the mean."""
    return options.samples > 1 and (hidden or options.keep == "best")
