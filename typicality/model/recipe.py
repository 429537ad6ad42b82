"""How a checkpoint is fine-tuned where the settings leave it to the kind of model, and for how long.

The values for the bundled base were measured (reports/benchmarks/README.md); other models take the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from typicality.config import FinetuneSettings
from typicality.errors import SettingsError
from typicality.model.calibration import LabelUse
from typicality.model.checkpoint import Checkpoint
from typicality.model.unet import sees_prompt, shared

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
    cross_attention_rate : of cross-attention, as a multiple
    contrast : weight of the margin by which the own label should beat another
    schedule : of the rate, "cosine" or "constant"
    label_blocks : so many of the last decoder blocks see the label (unet.py); 0: all blocks
    """

    lora: bool
    rate: float
    cross_attention_rate: float
    contrast: float
    schedule: str
    label_blocks: int

    @property
    def method(self) -> str:
        """Return "lora" or "full", as records and model cards call it."""
        return "lora" if self.lora else "full"


def label_use_after(settings: FinetuneSettings, checkpoint: Checkpoint, null: str) -> LabelUse:
    """Return how a checkpoint takes labels once it has been fine-tuned so, but for what will be measured."""
    if not settings.enabled:
        return checkpoint.label_use
    blocks = _label_blocks(settings.label_blocks, checkpoint)
    return replace(checkpoint.label_use, blocks=blocks, null=null if blocks else "", tilt=0.0)


def sharing_of(settings: FinetuneSettings, checkpoint: Checkpoint) -> float:
    """Return the share of a UNet evaluation that serves all prompts of an input, after fine-tuning (`unet.shared`).

    What lies before the first cross-attention of a model whose every block sees the label is too little to count.
    """
    blocks = label_use_after(settings, checkpoint, "").blocks
    if not blocks:
        return 0.0
    cells = checkpoint.size // checkpoint.factor
    return shared(checkpoint.unet, cells, checkpoint.tokenizer.model_max_length, blocks)


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
        label_blocks=_label_blocks(settings.label_blocks, checkpoint),
    )


def _label_blocks(asked: int | None, checkpoint: Checkpoint) -> int:
    """How many of the last decoder blocks see the label; left open, as many as the checkpoint was fine-tuned with.

    Raises
    ------
    SettingsError : where that was asked of a model which cannot.
    """
    if not asked:
        return checkpoint.label_use.blocks if asked is None else 0
    blocks = list(checkpoint.unet.up_blocks)
    least = next((n for n, block in enumerate(reversed(blocks), 1) if sees_prompt(block)), 0)
    if not 0 < least <= asked <= len(blocks):
        fits = f"it takes {least} to {len(blocks)}, or 0" if least else "only 0 is possible"
        raise SettingsError(
            f"finetune.label_blocks is {asked}, but of this model's {len(blocks)} decoder blocks the last that "
            f"sees a prompt is number {least} from the end: {fits}"
        )
    return asked


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
