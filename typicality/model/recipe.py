"""How a checkpoint is fine-tuned where the settings leave it to the kind of model, and for how long.

The values for the bundled base were measured (reports/benchmarks/README.md); other models take the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from typicality.config import FinetuneSettings
from typicality.model.checkpoint import Checkpoint

VERSION = 2
"""Of what follows: models that were fine-tuned by another version are not taken for those of this one."""
RATE, PUBLISHED_RATE = 6e-4, 1e-4  # of the base, and of others
CROSS_ATTENTION_RATE = 2.0  # of the base; measured in reports/benchmarks/README.md
CONTRAST = 8.0  # of the base; measured there too
MARGIN = 0.03  # of the loss: about how much better the own label should do than another; measured there too
FULL_SIZE = 100_000_000  # parameters up to which `auto` trains all weights


@dataclass(frozen=True)
class Recipe:
    """What the settings may leave to the kind of model, resolved.

    Attributes
    ----------
    lora : train an adapter instead of all weights
    rate : peak learning rate
    cross_attention_rate : of the weights that see the label, as a multiple
    contrast : weight of the margin by which the own label should beat another
    schedule : of the rate, "cosine" or "constant"
    """

    lora: bool
    rate: float
    cross_attention_rate: float
    contrast: float
    schedule: str

    @property
    def method(self) -> str:
        """Return "lora" or "full", as records and model cards call it."""
        return "lora" if self.lora else "full"


def recipe_of(settings: FinetuneSettings, checkpoint: Checkpoint) -> Recipe:
    """Return the settings, with what was measured for the bundled base or what was published for other models."""
    lora = settings.method == "lora" or (settings.method == "auto" and checkpoint.parameters > FULL_SIZE)
    small, whole = checkpoint.is_small, checkpoint.is_small and not lora
    multiple, contrast, schedule = settings.cross_attention_rate, settings.contrast, settings.schedule
    return Recipe(
        lora=lora,
        rate=settings.rate or (RATE if small else PUBLISHED_RATE),
        cross_attention_rate=(CROSS_ATTENTION_RATE if whole else 1.0) if multiple is None else multiple,
        contrast=(CONTRAST if whole else 0.0) if contrast is None else contrast,
        schedule=("cosine" if small else "constant") if schedule == "auto" else schedule,
    )


def default_steps(n_images: int, batch_size: int) -> int:
    """Return the steps of about six passes over the data, but of 4,800 draws at least and 25,600 at most."""
    return min(25_600, max(4_800, 6 * n_images)) // batch_size


def validation_interval(settings: FinetuneSettings, steps: int) -> int:
    """Return the steps between two validations: a sixth of all, so that patience can run out before the end.

    With `minutes` the number of steps is an estimate that follows the clock; the interval is then rounded down to 1, 2
    or 5 times a power of ten, so that it stays the same for long, and for all folds.
    """
    if settings.validate_every:
        return settings.validate_every
    sixth = max(20, steps // 6)
    if not settings.minutes:
        return sixth
    power = 10 ** (len(str(sixth)) - 1)
    return power * max(n for n in (1, 2, 5) if n * power <= sixth)
