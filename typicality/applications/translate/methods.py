"""The methods of translation under one call: options in, latents out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.applications.translate.delta import delta
from typicality.applications.translate.edit_friendly import edit_friendly
from typicality.applications.translate.inversion import plug_and_play
from typicality.applications.translate.posterior_mean import posterior_mean
from typicality.errors import SettingsError, nearest
from typicality.model.denoiser import Denoiser
from typicality.model.sampling import grid_of
from typicality.model.sdedit import sdedit
from typicality.scoring.noise import image_generator

Method = Literal["delta", "pnp", "sdedit", "edit-friendly", "mean"]
METHODS: tuple[Method, ...] = get_args(Method)
PURPOSE = "translate"
DELTA_PAIRS = 1
"""Antithetic pairs of noises a step of `delta`."""

MEAN_PAIRS = 8
"""Antithetic pairs of noises of `mean`."""

DEFAULTS: dict[Method, dict[str, float]] = {
    "delta": {"strength": 0.7, "guidance": 3.0, "keep": 0.0, "average": 0.0},
    "pnp": {"strength": 1.0, "guidance": 4.0, "inject": 0.8, "keep": 0.0, "average": 0.0},
    "sdedit": {"strength": 0.4, "guidance": 4.0, "keep": 0.0, "average": 0.0},
    "edit-friendly": {"strength": 0.65, "guidance": 4.0, "keep": 0.0, "average": 0.0},
    "mean": {"strength": 0.7, "guidance": 12.0, "keep": 0.2, "average": 0.2},
}
"""Options where none is given."""
ONLY_OF: dict[str, Method] = {"inject": "pnp", "keep": "mean", "average": "mean"}
"""Options that one method alone uses."""
AVERAGE_STRENGTH = 0.98
"""Share of the noise schedule from which a mean is the label's average: of the source next to nothing is left."""


@dataclass(frozen=True)
class TranslateOptions:
    """How images are translated.

    Parameters
    ----------
    method : `delta`, `pnp` (plug-and-play, the published choice), `sdedit`, `edit-friendly` or `mean`
    strength : share of the schedule, from clean, that is used, in (0, 1]; the method's own by default
    guidance : weight of the target label; the method's own by default
    inject : share of the steps with injected features (pnp alone, 0.8 by default)
    steps : sampler steps; `mean` has none
    keep : share of the source that stays, of its latent and of the detail that no latent holds (mean alone, 0.2 by
        default; the other methods carry all of that detail over)
    average : share of the target label's average, restored from next to nothing but noise (mean alone, 0.2 by default)
    draws : UNet draws an image, side and label for their typicality; even
    """

    method: Method = "delta"
    strength: float | None = None
    guidance: float | None = None
    inject: float | None = None
    keep: float | None = None
    average: float | None = None
    steps: int = 25
    draws: int = 8

    def resolved(self) -> TranslateOptions:
        """Fill in the method's own options where none is given, and check everything.

        Raises
        ------
        SettingsError
        """
        if self.method not in METHODS:
            raise SettingsError(f"there is no method {self.method!r} of translation; {nearest(self.method, METHODS)}")
        own = DEFAULTS[self.method]
        for name, method in ONLY_OF.items():
            if method != self.method and getattr(self, name) not in (None, own.get(name)):
                raise SettingsError(f"--{name} has no effect with --method {self.method}; only {method} uses it")
        missing: dict[str, Any] = {n: v for n, v in own.items() if getattr(self, n) is None}
        found = replace(self, **missing)
        assert found.keep is not None
        limits = {
            "strength": (0.01, 1.0), "inject": (0.0, 1.0), "keep": (0.0, 1.0), "average": (0.0, 1.0 - found.keep),
            "guidance": (0.0, 100.0),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(found, name)
            if value is not None and not low <= value <= high:
                raise SettingsError(f"--{name} must lie between {low:g} and {high:g}, not {value}")
        if found.steps < 2:
            raise SettingsError(f"--sampler-steps must be at least 2, not {found.steps}")
        if found.draws < 4 or found.draws % 2:
            raise SettingsError(f"--draws must be even and at least 4 (two antithetic pairs), not {found.draws}")
        return found

    def check_steps(self) -> None:
        """Raise SettingsError for a number of sampler steps that the method does not use.

        `resolved` does not, since all methods that are compared are given the same number.
        """
        if self.method == "mean" and self.steps != TranslateOptions.steps:
            raise SettingsError("--sampler-steps has no effect with --method mean; all other methods use it")

    @property
    def detail(self) -> float:
        """Share of what the autoencoder loses of the source that a picture of the result gets back."""
        if self.method != "mean":
            return 1.0
        keep = self.resolved().keep
        assert keep is not None  # resolved
        return keep

    @property
    def used(self) -> dict[str, Any]:
        """The options that a result depends on: those that the method uses."""
        unused = {name for name, method in ONLY_OF.items() if method != self.method}
        if self.method == "mean":
            unused.add("steps")
        return {name: value for name, value in asdict(self.resolved()).items() if name not in unused}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def translate_latents(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    image_ids: Sequence[str],
    states: Float[Tensor, "3 tokens width"],
    options: TranslateOptions,
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Translate clean latents from one label to another.

    Parameters
    ----------
    image_ids : seeds of each image's own noise: neither batch nor order changes a result
    states : prompt states: null, source label, target label
    options : resolved

    Returns
    -------
    clean latents, float32 on the CPU
    """
    options = options.resolved()
    assert options.strength is not None  # resolved
    assert options.guidance is not None
    assert options.keep is not None
    assert options.average is not None
    grid = grid_of(denoiser.alphas_cumprod, options.steps, options.strength)
    if options.method == "pnp":
        assert options.inject is not None
        return plug_and_play(denoiser, z, states, grid, options.guidance, options.inject)
    if options.method == "sdedit":
        return sdedit(denoiser, z, states, grid, options.guidance, _noises(image_ids, (), z, seed))
    if options.method == "edit-friendly":
        noises = _noises(image_ids, (len(grid),), z, seed)
        return edit_friendly(denoiser, z, states, grid, options.guidance, noises)
    if options.method == "mean":
        noises = _noises(image_ids, (MEAN_PAIRS,), z, seed)
        mean = posterior_mean(denoiser, z, states, grid, options.guidance, noises)
        result = options.keep * z + (1 - options.keep - options.average) * mean
        if options.average:
            nearly_noise = grid_of(denoiser.alphas_cumprod, 2, AVERAGE_STRENGTH)
            result += options.average * posterior_mean(denoiser, z, states, nearly_noise, 1.0, noises)
        return result
    noises = _noises(image_ids, (len(grid), DELTA_PAIRS), z, seed)
    return delta(denoiser, z, states, grid, options.guidance, noises)


def evaluations_of(options: TranslateOptions) -> int:
    """Return the UNet evaluations an image of one translation, without its scoring."""
    options = options.resolved()
    prompts = 1 if options.guidance == 1 else 2
    if options.method == "mean":
        return 2 * MEAN_PAIRS * (prompts + bool(options.average))
    each = {
        "delta": 4 * DELTA_PAIRS * prompts,
        "pnp": 1 + prompts + (options.inject or 0),
        "sdedit": prompts,
        "edit-friendly": 1 + prompts,
    }[options.method]
    return round(options.steps * each)


def _noises(image_ids: Sequence[str], lead: tuple[int, ...], z: Tensor, seed: int) -> Tensor:
    """(*lead, n, c, h, w) of independent noise, each image's from its own generator."""
    shape = (*lead, *z.shape[1:])
    each = [torch.randn(shape, generator=image_generator(i, seed, PURPOSE)) for i in image_ids]
    return torch.stack(each, dim=len(lead))
