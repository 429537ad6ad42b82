"""What is to be made: the kind of synthetic images, how far from their sources, and how they are filtered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from typicality.errors import SettingsError, nearest

Kind = Literal["variants", "negatives"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULTS: Mapping[Kind, Mapping[str, float]] = {
    "variants": {"strength": 0.4, "guidance": 3.0, "far": 0.7},
    "negatives": {"strength": 0.7, "guidance": -2.0},
}
"""Options where none is given. DA-Fusion (Trabucco et al. 2023) has a strength of 0.5 and a guidance of 7.5 with Stable
Diffusion; on the small bundled base fine lines then break up (reports/benchmarks)."""


@dataclass(frozen=True)
class AugmentOptions:
    """What is made of every source image, and what is kept of it.

    Parameters
    ----------
    kind : `variants` are denoised under their own label; `negatives` under the null prompt, away from the mean prompt
        of all labels where the guidance is negative
    per_image : synthetic images a source
    strength : share of the noise schedule, from clean, to which a source is noised, in (0, 1]; the kind's own by
        default
    guidance : weight of the prompt; the kind's own by default, for negatives 0 (null prompt alone) or less
    steps : sampler steps
    draws : UNet draws an image and label for its typicality; even
    near, far : a variant is kept at a distance in [near, far): see `rules.unit_distance` for its unit; a negative at
        any from `near` on
    """

    kind: Kind = "variants"
    per_image: int = 4
    strength: float | None = None
    guidance: float | None = None
    steps: int = 15
    draws: int = 8
    near: float = 0.05
    far: float | None = None

    def resolved(self) -> AugmentOptions:
        """Fill in the kind's own options where none is given, and check everything.

        Raises
        ------
        SettingsError
        """
        if self.kind not in KINDS:
            raise SettingsError(f"--kind cannot be {self.kind!r}; {nearest(self.kind, KINDS)}")
        if self.kind == "negatives" and self.far is not None:
            raise SettingsError("--far has no effect on negatives: they need not show their source")
        missing: dict[str, Any] = {n: v for n, v in DEFAULTS[self.kind].items() if getattr(self, n) is None}
        found = replace(self, **missing)
        guidance = (0.0, 100.0) if self.kind == "variants" else (-100.0, 0.0)
        limits = {"strength": (0.01, 1.0), "guidance": guidance, "near": (0.0, 10.0), "far": (0.0, 10.0)}
        for name, (low, high) in limits.items():
            value = getattr(found, name)
            if value is not None and not low <= value <= high:
                raise SettingsError(f"--{name} must lie between {low:g} and {high:g} for {found.kind}, not {value}")
        if found.far is not None and found.near >= found.far:
            raise SettingsError(f"--near must be less than --far, but they are {found.near} and {found.far}")
        if found.steps < 2:
            raise SettingsError(f"--sampler-steps must be at least 2, not {found.steps}")
        if found.per_image < 1:
            raise SettingsError(f"--per-image must be at least 1, not {found.per_image}")
        if found.draws < 4 or found.draws % 2:
            raise SettingsError(f"--draws must be even and at least 4 (two antithetic pairs), not {found.draws}")
        return found

    @property
    def made_of(self) -> dict[str, Any]:
        """The options that decide what is made, without those that decide what is kept."""
        return {name: value for name, value in asdict(self.resolved()).items() if name not in ("near", "far")}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluations_of(options: AugmentOptions, labels: int) -> int:
    """Return the UNet evaluations a source at most: sampling, and the scores of it and of all made of it.

    `labels` are those that it is scored under.
    """
    options = options.resolved()
    prompts = 1 if options.guidance in (0, 1) else 2
    return options.per_image * options.steps * prompts + (options.per_image + 1) * options.draws * (1 + labels)
