"""The model card that is written beside every fine-tuned model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typicality.config import Settings
from typicality.dataset import LabelledImages

MADE_BY = "fine-tuned by `typicality`"


def is_fine_tuned(path: Path) -> bool:
    """Return whether a model or adapter is one that this program has fine-tuned: the card in its folder says so."""
    card = (path.parent if path.is_file() else path) / "README.md"
    return card.is_file() and MADE_BY in card.read_text(encoding="utf-8", errors="replace")


def model_card(dataset: LabelledImages, base: str, settings: Settings, entry: Mapping[str, Any]) -> str:
    """Return a Markdown card: what was trained on what, how, and what was measured."""
    labels = ", ".join(f"{label} ({dataset.number_of(label)})" for label in dataset.labels[:50])
    last: Mapping[str, float] = next((e for e in reversed(entry["history"]) if e["step"] == entry["best_step"]), {})
    measured = "\n".join(f"- {name}: {value:.6g}" for name, value in last.items())
    warnings = "\n".join(f"- {w}" for w in entry["warnings"]) or "- none"
    return f"""# {dataset.name} by {dataset.label}

A label-conditional latent diffusion model, {MADE_BY} to measure what is typical of each label.
It is a measuring instrument for this data set, not a generator of pictures to publish.

- base: {base}
- method: {entry["method"]}, text encoder {"trained" if entry["text_encoder"] else "frozen"}
- loss: {_loss(entry["contrast"])}
- label: {_label(entry["label_blocks"])}
- images: {entry["images"]} for training, {entry["validation"]} for validation, {entry["held_out"]} held out, by whole
  groups
- labels: {labels}
- prompt: `{settings.prompt.template}`; without label: `{settings.prompt.null}`
- data set fingerprint: `{dataset.fingerprint}`
- steps: {entry["steps"]}, kept: {entry["best_step"]}; seed {settings.seed}

## Measured at the kept step

{measured}

## Warnings

{warnings}

## Licence

Weights derive from the base model and from the images they were trained on; the terms of both apply.
"""


def _loss(contrast: float) -> str:
    error = "squared error of the noise"
    return error if contrast == 0 else f"{error}, and by how much the own label beats another (weight {contrast:g})"


def _label(blocks: int) -> str:
    if not blocks:
        return "seen by every block that has cross-attention"
    last = "the last decoder block alone sees" if blocks == 1 else f"the last {blocks} decoder blocks alone see"
    return (
        f"{last} the label, all others the prompt without one. `typicality` does that by itself; other programs give "
        "the label to every block, which this model was not trained for"
    )
